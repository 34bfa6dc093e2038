"""PyTorch's fused operators that have no second derivative, or a wrong one, and what runs instead.

Of 200 operators, with and without their options, gradgradcheck in float64 finds the others right.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def twice_differentiable(*, is_recurrent: bool) -> Iterator[None]:
    """Whatever a model calls in here has a second derivative that is right.

    Attention runs under its math kernel, LSTM and GRU without cuDNN, weight normalisation and the
    hard sigmoid by their definitions.

    Args:
        is_recurrent: Whether there is an LSTM or GRU; all else may have cuDNN.
    """
    cudnn = torch.backends.cudnn.flags(enabled=False) if is_recurrent else nullcontext()
    with sdpa_kernel(SDPBackend.MATH), cudnn, _ByDefinition():
        yield


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g·v/‖v‖; the kernel's second derivative by v is wrong, and makes products asymmetric."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3)/6; the kernel has no second derivative."""
    result = F.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result


_DEFINITIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,
    F.hardsigmoid: _hardsigmoid,
}


class _ByDefinition(TorchFunctionMode):
    """Calls an operator's definition in its place."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        return _DEFINITIONS.get(func, func)(*args, **(kwargs or {}))
