"""What a model's output depends on beside its own sample: chance, and the samples of its call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def nondeterministic_module(model: nn.Module, inputs: Tensor) -> str | None:
    """Name the innermost module that puts out two results for one input, or `None`.

    Runs the model twice and compares what goes into and comes out of each module; children finish
    before their parents, so the first that differs on equal inputs is the innermost.

    Args:
        model: As it is called, in eval mode.
        inputs: [n, *input_shape].
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return None  # which takes no hooks
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


def sensitivities(
    loss_function: Callable[[Tensor, Tensor], Tensor], calls: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Losses ℓ [n] of several calls, and |ℓ| + ‖∂ℓ/∂z‖₁ ‖z‖_∞ [n].

    A relative change r of the outputs z moves a loss by r of that at most, to first order, however
    small losses are beside outputs. Outputs that do not move the loss, as of masked classes, are
    not in ‖z‖_∞.

    Args:
        loss_function: Losses from outputs and labels.
        calls: Outputs, float64, and labels of each; one after the other, since those of a text, of
            a large vocabulary, take much memory.
    """
    found = []
    for outputs, labels in calls:
        with torch.enable_grad():
            z = outputs.detach().requires_grad_()
            losses = loss_function(z, labels)
            (slope,) = torch.autograd.grad(losses.sum(), z)
        losses = losses.detach()
        largest = torch.where(slope == 0, 0.0, outputs.abs()).flatten(1).amax(dim=1)
        scales = losses.abs() + slope.abs().flatten(1).sum(dim=1) * largest
        found.append(torch.stack([losses, scales]))
    losses, scales = torch.cat(found, dim=1)
    return losses, scales


def coupling(losses: Tensor, scales: Tensor, others: Tensor) -> float:
    """How far samples' losses are from those of the same samples in other calls.

    Args:
        losses: ℓ [n], float64.
        scales: What `sensitivities` has beside them [n].
        others: ℓ' [n], float64.

    Returns:
        max |ℓ − ℓ'| / max scale.
    """
    tiny = torch.finfo(scales.dtype).tiny
    return float((losses - others).abs().max() / scales.max().clamp_min(tiny))
