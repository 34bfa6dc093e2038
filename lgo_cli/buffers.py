"""Which tensors are a model's buffers, and what became of them: forward may replace or write them.

A table is a module's own buffers by their names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn

    Table = tuple[nn.Module, dict[str, Tensor | None]]


def buffer_tables(model: nn.Module) -> list[Table]:
    """The tables of all modules, in the order of `modules`."""
    return [(module, dict(module._buffers)) for module in model.modules()]


def put_back(tables: Iterable[Table]) -> None:
    """Have the tensors of these tables in their places again, and no others."""
    for module, own in tables:
        for name in module._buffers.keys() - own.keys():
            del module._buffers[name]
        for name, buffer in own.items():
            if name not in module._buffers or module._buffers[name] is not buffer:
                # Only then: of a compiled module they are fixed.
                module._buffers[name] = buffer


def moved_buffers(
    model: nn.Module, tables: Iterable[Table], values: Sequence[tuple[Tensor, Tensor]]
) -> list[str]:
    """Names of the buffers that have other values now, or are new.

    Args:
        model: The tables are of it.
        tables: As they were.
        values: Tensors of theirs with what they held then, in any dtype.
    """
    held = {id(tensor): value for tensor, value in values}
    return [
        f"{prefix}.{name}".removeprefix(".")
        for (prefix, module), (_, own) in zip(model.named_modules(), tables, strict=True)
        for name, now in module._buffers.items()
        if now is not None
        and not (
            isinstance(before := own.get(name), torch.Tensor)
            and torch.equal(now, held[id(before)].to(now))
        )
    ]


def keeps_in_eval_mode(model: nn.Module) -> bool:
    """Whether a model in eval mode, once called, keeps what it forgets in training mode.

    As LeViT keeps what it makes of its parameters, to be used again however these are moved.
    """
    before = _attributes(model)
    forget(model)
    after = _attributes(model)
    return any(
        old.keys() != new.keys()
        or any(old[name][0] is not new[name][0] or old[name][1] != new[name][1] for name in old)
        for old, new in zip(before, after, strict=True)
    )


def _attributes(model: nn.Module) -> list[dict[str, tuple[object, int]]]:
    """What each module has beside its mode, and how much is in it."""
    return [
        {
            name: (value, len(value) if isinstance(value, dict | list | set) else 0)
            for name, value in vars(module).items()
            if name != "training"
        }
        for module in model.modules()
    ]


def forget(model: nn.Module, *_: object) -> None:
    """Have a model forget what it keeps in eval mode; a hook before its forward."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    model.eval()
    for module, training in modes:
        module.training = training
