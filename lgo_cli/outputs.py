"""A model's call: what it raises, what it puts out, and what cannot be a loss's outputs."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lgo_cli.errors import (
    InputError,
    LgoError,
    UsageError,
    a_kind,
    dtype_name,
    first_sentence,
    is_out_of_memory,
    raised_at,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DTYPES = re.compile(r"bfloat16|half|float16|float64|double|float", re.IGNORECASE)
"""How PyTorch's errors name the dtypes of models."""

_ONE_VALUE = "Expected more than 1 value per channel"
"""What PyTorch says where batch norm is to take the variance of one value."""


@contextmanager
def model_failures(
    what: str, advise: Callable[[Exception], str | None] = lambda error: None
) -> Iterator[None]:
    """Turn whatever a user's model raises into one error that says what it was and where.

    Only a model's own code may run in here, or autograd through it: what a stranger's code raises
    cannot be listed (compare `factories`).

    Args:
        what: Of the model fails, as a sentence begins.
        advise: What to do about an error, if that is known.

    Raises:
        InputError: for all but lgo's own errors and a lack of memory.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, LgoError) or is_out_of_memory(error):
            raise
        hint = advise(error) or f"it was raised at {raised_at(error)}"
        raise InputError(f"{what}: {first_sentence(error)}", hint=hint) from error


def call(model: Callable[[Tensor], object], inputs: Tensor, *, training: bool = False) -> Tensor:
    """Outputs [n, ..., C] of a model, or of what is called in its place.

    Args:
        model: As it is called.
        inputs: [n, *input_shape].
        training: Whether it is in training mode.

    Raises:
        InputError: if the model fails, or returns anything else; or, where gradients are on, what
            has none.
        UsageError: if it takes batch statistics of one sample.
    """
    needs_gradient = torch.is_grad_enabled()  # which a forward may switch off for good
    with model_failures(f"the model fails{' in training mode' if training else ''}"):
        outputs = checked_outputs(_called(model, inputs, training), inputs, training=training)
    if needs_gradient and not outputs.requires_grad:
        raise InputError(
            "the model has no gradient: autograd sees no parameter behind its outputs",
            hint="leave out detach(), torch.no_grad(), NumPy and the like in forward",
        )
    return outputs


def _called(model: Callable[[Tensor], object], inputs: Tensor, training: bool) -> object:
    try:
        return model(inputs)
    except ValueError as error:
        if len(inputs) == 1 and _ONE_VALUE in str(error):
            raise no_variance(training=training) from error
        raise


def no_variance(*, training: bool = False) -> UsageError:
    """That batch norm takes its statistics from a single sample."""
    if training:
        return UsageError(
            "batch norm has no variance in a batch of one sample",
            hint="train on more than one sample: --train-samples, --batch-size",
        )
    return UsageError(
        "batch norm has no variance in a micro-batch of one sample",
        hint="choose --micro-batch-size, or the number of samples, so that the last micro-batch "
        "has more than one",
    )


def first_outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs [n, ..., C] of a few inputs, no graph kept.

    Raises:
        InputError: if the model cannot take them, returns anything else, or changes them.
        UsageError: if it takes batch statistics of one sample.
    """
    what = f"the model cannot take inputs of shape {tuple(inputs.shape[1:])}"
    given = inputs.clone()
    version = given._version
    with torch.no_grad(), model_failures(what, lambda error: _hint(model, inputs, error)):
        outputs = checked_outputs(_called(model, given, training=False), inputs)
        if given._version != version:
            before = given.clone()
            _called(model, given, training=False)
            if not torch.equal(given, before):  # unlike by a ReLU in place, say
                raise InputError(
                    "forward writes into its inputs, which are the data: each pass finds others",
                    hint="write x = x + 1 in forward where it has x += 1",
                )
    return outputs


def _hint(model: nn.Module, inputs: Tensor, error: Exception) -> str | None:
    # What PyTorch raises of a shape or a dtype; NotImplementedError is a RuntimeError too.
    if type(error) not in (RuntimeError, TypeError, ValueError, IndexError) or not str(error):
        return None
    if len({name.lower() for name in _DTYPES.findall(first_sentence(error))}) > 1:
        in_float64 = any(parameter.dtype == torch.float64 for parameter in model.parameters())
        return (
            "leave out --dtype float64, or " if in_float64 else ""
        ) + "keep every tensor of the model as a parameter or a buffer, which change dtype with it"
    # Of the model's own forward, not of a layer's that it calls.
    forwards = [f"{kind.__name__}.forward()" for kind in type(model).__mro__]
    if any(f"{forward} missing " in str(error) for forward in forwards):
        return "a model is called with one tensor: wrap it in a module whose forward splits that"
    if any(f"{forward} takes 1 positional argument but 2 " in str(error) for forward in forwards):
        return "wrap it in a module whose forward takes one tensor and passes that on by its name"
    if inputs.is_floating_point():
        hint = "give the data set it was made for: --dataset"
        if inputs.ndim > 2 and "cannot be multiplied" in str(error):  # by a dense layer
            hint += ", or flatten them in forward: x.flatten(1)"
        if "'indices'" in str(error):  # an embedding's
            hint = 'store indices, such as tokens, as int64: x.astype("int64")'
        return hint
    return "the inputs are integers, as embeddings take them; store numbers as float32"


def checked_outputs(outputs: object, inputs: Tensor, *, training: bool = False) -> Tensor:
    """The outputs of a call, if they are real numbers [n, ..., C].

    Args:
        outputs: What the model returned.
        inputs: Of that call [n, *input_shape].
        training: Whether it was in training mode, where some return more than in eval mode.

    Raises:
        InputError: if they are anything else.
    """
    hint = "return the logits alone, a tensor [samples, classes]"
    if isinstance(outputs, Tensor) and outputs.shape == inputs.shape[:1]:
        hint = "a single output keeps its axis: [samples, 1]"
    elif training:
        hint += (
            ", in training mode too; a factory with auxiliary outputs may have an argument that "
            "leaves them out, such as --model-arg aux_logits=false"
        )
    where = "in training mode " if training else ""
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or len(outputs) != len(inputs):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else a_kind(outputs)
        raise InputError(
            f"{where}the model must return outputs of shape [samples, classes], it returned {got}",
            hint=hint,
        )
    if not outputs.is_floating_point():
        raise InputError(
            f"{where}the model must return real floating-point outputs, it returned "
            f"{dtype_name(outputs.dtype)}",
            hint=hint,
        )
    return outputs
