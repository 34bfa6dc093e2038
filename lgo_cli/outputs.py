"""What a model puts out, and what cannot be a classifier's outputs."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from lgo_cli.errors import InputError, a_kind, dtype_name, is_out_of_memory

_DTYPES = re.compile(r"bfloat16|half|float16|float64|double|float", re.IGNORECASE)
"""How PyTorch's errors name the dtypes of models."""


def first_outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs [n, C] of a few inputs, no graph kept.

    Raises:
        InputError: if the model cannot take them, or returns anything else.
    """
    try:
        with torch.no_grad():
            outputs = model(inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the model cannot take inputs of shape {tuple(inputs.shape[1:])}: {reason}",
            hint=_hint(model, inputs, reason),
        ) from error
    return checked_outputs(outputs, inputs)


def _hint(model: nn.Module, inputs: Tensor, reason: str) -> str:
    if len({name.lower() for name in _DTYPES.findall(reason)}) > 1:
        in_float64 = any(parameter.dtype == torch.float64 for parameter in model.parameters())
        return (
            "leave out --dtype float64, or " if in_float64 else ""
        ) + "keep every tensor of the model as a parameter or a buffer, which change dtype with it"
    if inputs.is_floating_point():
        return "give the data set it was made for: --dataset"
    return "the inputs are integers, as embeddings take them; store numbers as float32"


def checked_outputs(outputs: object, inputs: Tensor, *, training: bool = False) -> Tensor:
    """The outputs of a call, if they are real numbers [n, C].

    Args:
        outputs: What the model returned.
        inputs: Of that call [n, *input_shape].
        training: Whether it was in training mode, where some return more than in eval mode.

    Raises:
        InputError: if they are anything else.
    """
    hint = "return the logits alone, a tensor [samples, classes]"
    if training:
        hint += (
            ", in training mode too; a factory with auxiliary outputs may have an argument that "
            "leaves them out, such as --model-arg aux_logits=false"
        )
    where = "in training mode " if training else ""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(inputs):
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
