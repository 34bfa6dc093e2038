"""A device that computes on the CPU and behaves as a GPU does, on a machine that has none.

Its tensors say that they lie on `meta`, the one device beside the CPU that PyTorch's autograd knows
without hardware, and hold their numbers. An operation between it and the CPU fails, as on a GPU,
and all for which the CPU has to wait until a GPU has done its work is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

DEVICE = torch.device("meta")

COPIES = (aten._to_copy.default, aten.copy_.default)

READS = (
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
)
"""What the CPU learns a number or a size by."""


class OnGPU(Tensor):
    """A tensor of the pretended device."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Self:
        layout = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset()}
        self = Tensor._make_wrapper_subclass(
            cls, numbers.size(), dtype=numbers.dtype, device=DEVICE, **layout
        )
        self.numbers = numbers
        return self

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _compute(func, args, kwargs or {}, [])

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: OnGPU) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.numbers = value.numbers

    def tolist(self) -> Any:
        return self.cpu().tolist()


class _GPU(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _compute(func, args, kwargs or {}, self.waits)


@contextmanager
def pretended() -> Iterator[list[str]]:
    """The device is there, and what waits for it is in the list: the name of each operation."""
    with _GPU() as gpu:
        yield gpu.waits


def _compute(func: Any, args: Any, kwargs: dict[str, Any], waits: list[str]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [isinstance(tensor, OnGPU) for tensor in tensors]
    # A tensor without dimensions goes along with an operation, as an index does, at a wait.
    strangers = [x for x in tensors if any(there) and not isinstance(x, OnGPU) and x.dim()]
    is_copy, is_index = func in COPIES, "index" in func.name()
    if strangers and not is_copy and not is_index:
        raise RuntimeError(f"{func.name()} of tensors on two devices")
    target = kwargs.get("device")
    result_there = any(there) if target is None else torch.device(target) == DEVICE
    if func is aten.copy_.default:
        result_there = there[0]
        crosses = there[0] != there[1]
    else:
        crosses = is_copy and result_there != there[0]
    masks = any(x.dtype in (torch.bool, torch.uint8) for x in tensors[1:])
    reads = func in READS or (is_index and (masks or bool(strangers)))
    if (crosses and not kwargs.get("non_blocking")) or (reads and any(there)):
        waits.append(func.name())
    found = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if not result_there:
        return found
    written = {id(x.numbers): x for x in tensors if isinstance(x, OnGPU)}

    def there_again(value: Any) -> Any:
        """In place it is the very tensor that was given."""
        if not isinstance(value, Tensor):
            return value
        return written[id(value)] if id(value) in written else OnGPU(value)

    return tree_map(there_again, found)


def _here(value: Any) -> Any:
    if isinstance(value, OnGPU):
        return value.numbers
    return torch.device("cpu") if isinstance(value, torch.device) else value
