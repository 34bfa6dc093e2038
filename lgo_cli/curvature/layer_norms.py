"""Layer norm whose second derivatives are cheap.

PyTorch composes the derivatives of its backward of some forty passes over the activations, a fifth
of a ConvNeXt's Hessian product. With x̂ = r(x − m(x)), m the mean over a row of N entries,
P(a) = a − m(a) − x̂ m(a x̂) and h = γ g, the backward is r P(h), Σ g x̂ and Σ g; and its derivatives
follow from ∂x̂/∂x = r P and ∂r/∂x = −r² x̂/N.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

if TYPE_CHECKING:
    from collections.abc import Sequence


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> Tensor:
    """γ x̂ + β."""
    size = math.prod(normalized_shape)
    rows: Tensor = _LayerNorm.apply(
        input.reshape(-1, size), weight.reshape(size), bias.reshape(size), eps
    )
    return rows.view(input.shape)


class _LayerNorm(Function):
    """Of rows [n, N]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        result, mean, rstd = torch.native_layer_norm(x, x.shape[1:], weight, bias, eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_LayerNormBackward.apply(grad, *ctx.saved_tensors), None)


class _LayerNormBackward(Function):
    """(g, x, mean, r, γ) -> gradients of x, γ and β, all of them linear in g."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
    ) -> tuple[Tensor, ...]:
        result = _backward(grad, x, mean, rstd, weight)
        ctx.save_for_backward(grad, x, mean, rstd, weight, result[0])
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(
        ctx: Any, u: Tensor | None, v: Tensor | None, w: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, x, mean, rstd, weight, of_input = ctx.saved_tensors
        normalized = (x - mean) * rstd
        of_grad = torch.zeros_like(grad) if w is None else w.expand_as(grad).clone()
        of_x, of_weight = torch.zeros_like(x), None
        if v is not None:
            of_grad.addcmul_(v, normalized)
            of_x = _backward(grad, x, mean, rstd, v)[0]
        if u is not None:
            moved = _backward(u, x, mean, rstd)[0]  # x̂ along u
            of_grad.addcmul_(weight, moved)
            of_weight = (grad * moved).sum(0)
            scale = -rstd / len(weight)
            of_x.addcmul_(normalized, scale * (u * of_input).sum(1, keepdim=True))
            of_x.addcmul_(of_input, scale * (u * normalized).sum(1, keepdim=True))
            of_x.addcmul_(moved, scale * ((grad * normalized) @ weight)[:, None])
        return of_grad, of_x, None, None, of_weight


def _backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, ...]:
    has_weight = weight is not None
    result: tuple[Tensor, ...] = torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), x, x.shape[1:], mean, rstd, weight, weight,
        (True, has_weight, has_weight),
    )  # fmt: skip
    return result
