"""What a model holds beside its parameters: buffers, its modules' modes, and what those decide.

Forward may replace or write buffers. A table is a module's own by their names.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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


def keepers(model: nn.Module) -> list[nn.Module]:
    """Modules of a model in eval mode, once called, whose training mode changes more than the mode.

    As LeViT's attention keeps what it makes of its parameters, and loralib's layers add theirs to
    the weights, and use it again however these are moved.
    """
    before = _attributes(model)
    model.train()
    after = _attributes(model)
    model.eval()
    return [
        module
        for module, old, new in zip(model.modules(), before, after, strict=True)
        if old.keys() != new.keys() or any(map(operator.is_not, old.values(), new.values()))
    ]


def _attributes(model: nn.Module) -> list[dict[object, object]]:
    """What each module has beside its mode, and what is in its dictionaries and lists."""
    return [
        {
            key: value
            for name, held in vars(module).items()
            if name != "training"
            for key, value in [(name, held), *_contents(name, held)]
        }
        for module in model.modules()
    ]


def _contents(name: str, held: object) -> Iterator[tuple[object, object]]:
    if isinstance(held, dict | list):
        for key, value in held.items() if isinstance(held, dict) else enumerate(held):
            yield (name, key), value


def forget(model: nn.Module, *_: object) -> None:
    """Have a model forget what it keeps in eval mode; a hook before its forward."""
    modes = modes_of(model)
    model.train()
    model.eval()
    set_modes(modes)


def modes_of(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    """All modules of a model, and whether each is in training mode, for `set_modes`."""
    return [(module, module.training) for module in model.modules()]


def set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    """Put all modules of a model, each after those around it, in modes that may differ."""
    for module, training in modes:
        if module.training != training:
            module.train(training)
    for module, training in modes:
        module.training = training
