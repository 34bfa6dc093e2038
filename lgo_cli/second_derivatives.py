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
from torch.utils.checkpoint import CheckpointError

from lgo_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_NO_DERIVATIVE = "derivative for"
"""What PyTorch says of an operator of its own that can be differentiated only once."""

_REENTRANT = "use_reentrant=True"
"""What it says of a reentrant checkpoint outside of backward()."""


@contextmanager
def twice_differentiable(*, is_recurrent: bool) -> Iterator[None]:
    """Whatever a model calls in here has a second derivative that is right.

    Attention runs under its math kernel, LSTM and GRU without cuDNN, weight normalisation and the
    hard sigmoid by their definitions. Derivatives are taken in here too, since a part of a model
    under torch.utils.checkpoint runs again then, and has to be what it was.

    Args:
        is_recurrent: Whether there is an LSTM or GRU; all else may have cuDNN.

    Raises:
        InputError: if the model has no second derivative that PyTorch can take.
    """
    cudnn = torch.backends.cudnn.flags(enabled=False) if is_recurrent else nullcontext()
    try:
        with sdpa_kernel(SDPBackend.MATH), cudnn, _ByDefinition():
            yield
    except RuntimeError as error:  # NotImplementedError and CheckpointError too
        reason = str(error).splitlines()[0] if str(error) else ""
        if _NO_DERIVATIVE in reason:
            raise InputError(
                f"the model has no second derivative: {reason}",
                hint="write that operator out in others, such as nn.EmbeddingBag as nn.Embedding "
                "and a mean",
            ) from error
        if _REENTRANT in reason or isinstance(error, CheckpointError):
            raise InputError(
                "the model has no second derivative through its torch.utils.checkpoint",
                hint="use_reentrant=False, or none for the analysis: --memory bounds what is kept",
            ) from error
        raise


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
