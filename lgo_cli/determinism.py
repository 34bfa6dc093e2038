"""Which module of a model puts out two results for one input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


def nondeterministic_module(model: nn.Module, inputs: Tensor) -> str | None:
    """Name the innermost module that puts out two results for one input, or `None`.

    Runs the model twice and compares what goes into and comes out of each module; children finish
    before their parents, so the first that differs on equal inputs is the innermost.

    Args:
        model: As it is called, in eval mode.
        inputs: [n, *input_shape].
    """
    records: list[tuple[str, list[Tensor], list[Tensor]]] = []
    names = {module: name or type(module).__name__ for name, module in model.named_modules()}

    def record(module: nn.Module, inputs: object, outputs: object) -> None:
        records.append((names[module], _tensors(inputs), _tensors(outputs)))

    handles = [module.register_forward_hook(record) for module in model.modules()]
    try:
        with torch.no_grad():
            model(inputs)
            first = records.copy()
            records.clear()
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for (name, inputs_a, outputs_a), (_, inputs_b, outputs_b) in zip(first, records, strict=False):
        if _equal(inputs_a, inputs_b) and not _equal(outputs_a, outputs_b):
            return name
    return None


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.clone()]
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _tensors(part)]
    return []


def _equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
