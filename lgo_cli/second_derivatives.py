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

from lgo_cli.errors import (
    InputError,
    LgoError,
    first_sentence,
    is_out_of_memory,
    is_strangers,
    raised_at,
)
from lgo_cli.outputs import model_failures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_REENTRANT = "use_reentrant=True"
"""What PyTorch says of a reentrant checkpoint outside of backward()."""

_UNCOMPILED = "leave out torch.compile for the analysis, which has the same weights without"

_ADVICE = {
    "derivative for": "write that operator out in others, such as nn.EmbeddingBag as nn.Embedding "
    "and a mean",
    "modified by an inplace operation": "write y = y + 1 in forward where it has y += 1, and "
    "inplace=False",
    "was compiled with": _UNCOMPILED,
    "torch.compile": _UNCOMPILED,
}
"""What to do about what PyTorch says, by a part of that: of an operator of its own that can be
differentiated only once, of a forward that overwrites what backward needs, and of a compiled one.
"""


@contextmanager
def twice_differentiable(*, is_recurrent: bool) -> Iterator[None]:
    """Whatever a model calls in here has a second derivative that is right.

    Attention runs under its math kernel, LSTM and GRU without cuDNN, weight normalisation, the hard
    sigmoid and complex views by their definitions. Derivatives are taken in here too, since a part
    of a model under torch.utils.checkpoint runs again then, and has to be what it was.

    Args:
        is_recurrent: Whether there is an LSTM or GRU; all else may have cuDNN.

    Raises:
        InputError: if the model has no second derivative that PyTorch can take.
    """
    cudnn = torch.backends.cudnn.flags(enabled=False) if is_recurrent else nullcontext()
    with _refusing("second derivative"), sdpa_kernel(SDPBackend.MATH), cudnn, ByDefinition():
        yield


@contextmanager
def once_differentiable() -> Iterator[None]:
    """Where a model's gradient is taken as it is, and nothing else is done.

    Raises:
        InputError: if the model has no gradient that PyTorch can take, or fails in its own part of
            it.
    """
    with model_failures("the model has no gradient"), _refusing("gradient"):
        yield


@contextmanager
def _refusing(derivative: str) -> Iterator[None]:
    """Say that a model has no such derivative, where that is why this fails; else leave it.

    A handler of `Exception`: a backward of the model's own may raise anything.
    """
    try:
        yield
    except LgoError:
        raise
    except Exception as error:
        refusal = _refusal(error, derivative)
        if refusal is None:
            raise
        raise refusal from error


def _refusal(error: Exception, derivative: str) -> InputError | None:
    """That a model has no such derivative, if this is what PyTorch or its own code says."""
    reason = first_sentence(error)
    if _REENTRANT in reason or isinstance(error, CheckpointError):
        return no_derivative_through_checkpoint(derivative)
    hint = next((hint for text, hint in _ADVICE.items() if text in reason), None)
    if hint is None and is_strangers(error) and not is_out_of_memory(error):
        hint = f"it was raised at {raised_at(error)}"
    return InputError(f"the model has no {derivative}: {reason}", hint=hint) if hint else None


def no_derivative_through_checkpoint(derivative: str) -> InputError:
    """That a model's checkpoint is in the way of its first or second derivative."""
    return InputError(
        f"the model has no {derivative} through its torch.utils.checkpoint",
        hint="use_reentrant=False, or none for the analysis: --memory bounds what is kept",
    )


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g·v/‖v‖; the kernel's second derivative by v is wrong, and makes products asymmetric."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3)/6; the kernel has no second derivative."""
    result = F.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result


def _view_as_complex(input: Tensor) -> Tensor:
    """x[..., 0] + i·x[..., 1]; the view takes no tensor that begins at an odd place in memory."""
    return torch.complex(input[..., 0], input[..., 1])


_DEFINITIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,
    F.hardsigmoid: _hardsigmoid,
    torch.view_as_complex: _view_as_complex,
}


class ByDefinition(TorchFunctionMode):
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
