"""Gradients and vector-Jacobian products, zero where nothing depends on an input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Seed(Function):
    """A scalar whose derivative by each output is its cotangent, at no arithmetic."""

    @staticmethod
    def forward(ctx: Any, cotangents: Sequence[Tensor], *outputs: Tensor) -> Tensor:
        ctx.cotangents = cotangents
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        del grad  # one
        return (None, *ctx.cotangents)


def pull_back(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    create_graph: bool = False,
    retain_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Σ Jᵢᵀcᵢ for each input, zero where no output depends on it.

    The same as `torch.autograd.grad` with `grad_outputs`, which imports a library for symbolic
    mathematics at its first call, for a third of a second.

    Args:
        outputs: That require a gradient.
        inputs: To differentiate by.
        cotangents: cᵢ, of the outputs' shapes and dtypes.
        create_graph: Whether the result can be differentiated, by the cotangents too.
        retain_graph: Whether the graph of the outputs is used again.
    """
    return gradients(
        _Seed.apply(cotangents, *outputs),
        inputs,
        create_graph=create_graph,
        retain_graph=retain_graph or create_graph,
    )


def gradients(
    output: Tensor,
    inputs: Sequence[Tensor],
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Tensor, ...]:
    """The derivative of a scalar by each input, zero where it does not depend on it.

    `torch.autograd.grad` has `materialize_grads` for that, whose zeros require gradients of their
    own: before PyTorch 2.10 always, and with `create_graph` today.
    """
    found = torch.autograd.grad(
        output, inputs, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
    )
    return tuple(
        torch.zeros_like(x) if derivative is None else derivative
        for derivative, x in zip(found, inputs, strict=True)
    )
