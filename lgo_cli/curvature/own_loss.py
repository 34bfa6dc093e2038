"""Whether autograd sees the second derivatives of a loss of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lgo_cli.errors import InputError
from lgo_cli.gradients import gradients
from lgo_cli.seeding import standard_normal

if TYPE_CHECKING:
    from lgo_cli.loss import LossFunction

AGREE = 0.05
"""Relative difference of two quotients, of which one has a quarter of the other's step and hence a
sixteenth of its error, below which the finer one is off by 0.4 % at most."""

APART = 0.2
"""Relative difference of a product from such a quotient which is no rounding."""


def refuse_hidden_curvature(loss: LossFunction, outputs: Tensor, labels: Tensor) -> None:
    """See that autograd's ∂²ℓ/∂z² is one: a backward of one's own may keep it from it.

    PyTorch takes for constant what a backward computes out of its sight, and at the very end of a
    graph also what it does under `once_differentiable`: the product would be zero, without a word.
    Differences of the gradient tell. Where kinks or rounding decide, two of them are far apart, and
    nothing is said.

    Args:
        loss: Of one's own.
        outputs: Of a few samples [n, ..., C].
        labels: Of the same.

    Raises:
        InputError: if the product is another for most of them.
    """
    z = outputs.detach().double()
    tangent = standard_normal(z.numel(), 0, "hessian", "loss").view_as(z).to(z.device)
    product = loss.curve(z, labels, tangent)

    def slope(at: Tensor) -> Tensor:
        with torch.enable_grad():
            at.requires_grad_()
            return gradients(loss(at, labels).sum(), [at])[0]

    def quotient(step: float) -> Tensor:
        return (slope(z + step * tangent) - slope(z - step * tangent)) / (2 * step)

    def size(each: Tensor) -> Tensor:
        return each.flatten(1).square().sum(dim=1).sqrt()

    step = 1e-3 * (float(z.abs().max()) or 1.0)
    coarse, fine = quotient(step), quotient(step / 4)
    agree = size(coarse - fine) < AGREE * size(fine)
    if bool((agree & (size(fine - product) > APART * size(fine))).double().mean() > 0.5):
        raise InputError(
            f"{loss.called} has no second derivative by autograd: its gradient changes with the "
            "outputs, which autograd does not see",
            hint="an autograd.Function must be differentiable twice, or --operator "
            "empirical-fisher, which takes gradients only",
        )
