"""Convolutions whose second derivatives are cheap, and oneDNN's own with what comes after them.

PyTorch spells the derivatives of a convolution's backward as convolutions over transposed
batches; here they are the two forward and the one backward call that they amount to.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOPE = 1e-30
"""oneDNN's ReLU makes 0 of NaN, which would hide an overflow behind a finite loss. Its leaky ReLU
keeps what is not finite, and this slope is lost in float32 wherever a unit is active."""


class Geometry(NamedTuple):
    """Of a convolution, a number for each of its axes."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, own_derivatives: bool
) -> Tensor:
    """A convolution, differentiated by the functions below or by PyTorch's own."""
    if not own_derivatives:
        return _convolve(x, weight, bias, geometry)
    result: Tensor = _Convolution.apply(x, weight, bias, Geometry(*geometry))
    return result


class _Convolution(Function):
    """y = x ∗ w + b, with derivatives that can themselves be differentiated cheaply."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        ctx.has_bias = bias is not None
        return _convolve(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias)
        return (*_ConvolutionBackward.apply(grad, x, weight, ctx.geometry, needs), None)


class _ConvolutionBackward(Function):
    """(grad, x, w) -> gradients of x, w and b, all of them linear in grad."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        geometry: Geometry,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return _convolve_backward(grad, x, weight, geometry, needs)

    @staticmethod
    def backward(
        ctx: Any, grad_x: Tensor | None, grad_weight: Tensor | None, grad_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, x, weight = ctx.saved_tensors
        geometry = ctx.geometry
        of_grad = None
        if grad_x is not None:
            of_grad = _convolve(grad_x, weight, grad_bias, geometry)
        if grad_weight is not None:
            if of_grad is None:
                of_grad = _convolve(x, grad_weight, grad_bias, geometry)
            elif _is_fusible(x) and not torch.is_grad_enabled():
                of_grad = convolution_sum(x, grad_weight, None, geometry, of_grad, True)
            else:
                of_grad = of_grad.add_(_convolve(x, grad_weight, None, geometry))
        elif of_grad is None and grad_bias is not None:
            of_grad = grad_bias.view(-1, *[1] * (grad.ndim - 2)).expand_as(grad)
        needs = (
            grad_weight is not None and ctx.needs_input_grad[1],
            grad_x is not None and ctx.needs_input_grad[2],
            False,
        )
        of_x, of_weight, _ = _convolve_backward(
            grad,
            x if grad_x is None else grad_x,
            weight if grad_weight is None else grad_weight,
            geometry,
            needs,
        )
        return of_grad, of_x, of_weight, None, None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    no_output_padding = [0] * len(stride)
    result: Tensor = torch.ops.aten.convolution(
        x, weight, bias, stride, padding, dilation, False, no_output_padding, groups
    )
    return result


def _convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, ...]:
    stride, padding, dilation, groups = geometry
    if not any(needs):
        return (None, None, None)  # type: ignore[return-value]
    result: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], stride, padding, dilation, False, [0] * len(stride),
        groups, needs,
    )  # fmt: skip
    return result


@functools.cache
def can_fuse() -> bool:
    """Whether this PyTorch has the operators, which it does not promise to keep."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x, weight = torch.ones(1, 1, 2, 2), torch.full((1, 1, 1, 1), 2.0)
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
    try:
        weight = laid_out(weight, geometry, x.shape)
        positive = convolution_relu(x, weight, None, geometry)
        added = convolution_sum(x, weight, None, geometry, x.clone(), True)
        kept = convolution_relu(x * torch.nan, weight, None, geometry)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((positive == 2).all() and (added == 3).all() and kept.isnan().all())


def _is_fusible(x: Tensor) -> bool:
    of_kind = x.ndim == 4 and x.dtype == torch.float32 and x.device.type == "cpu"
    return of_kind and can_fuse()


def laid_out(weight: Tensor, geometry: Geometry, size: Sequence[int]) -> Tensor:
    """A weight as oneDNN reads it in convolutions of inputs of a size [n, C, H, W]."""
    stride, padding, dilation, groups = geometry
    result: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, padding, stride, dilation, groups, size
    )
    return result


def convolution_relu(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution's ReLU."""
    stride, padding, dilation, groups = geometry
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, stride, dilation, groups, "leaky_relu", [SLOPE], ""
    )
    return result


def convolution_sum(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, other: Tensor, unread: bool
) -> Tensor:
    """The convolution plus another tensor, written over that if nothing else will read it."""
    stride, padding, dilation, groups = geometry
    axes = zip(x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in axes]
    if other.shape != (len(x), len(weight), *size):  # one of them is spread over some axis
        weight = weight.to_dense() if weight.is_mkldnn else weight
        return convolution(x, weight, bias, geometry, False) + other
    rest: list[Any] = [weight, bias, padding, stride, dilation, groups, "add", 1.0, None, [], ""]
    result: Tensor
    if unread:
        result = torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *rest)
    else:
        result = torch.ops.mkldnn._convolution_pointwise.binary(x, other, *rest)
    return result
