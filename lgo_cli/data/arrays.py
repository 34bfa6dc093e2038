"""The user's own data: an `.npz` file, or what a factory returns. Used exactly as given."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from lgo_cli.data.dataset import Dataset
from lgo_cli.errors import InputError, a_kind, dtype_name

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("x_train", "y_train", "x_test", "y_test")

_SAVEZ = f"numpy.savez(path, {', '.join(f'{name}=...' for name in NAMES)})"

MAX_CLASSES = 1_000_000
"""Vocabularies have up to 262,144 tokens. A larger label is no class index but something else, and
would cost a huge output layer."""


def read_npz(path: Path) -> Dataset:
    """Read `x_train`, `y_train`, `x_test` and `y_test`; never unpickles.

    Raises:
        InputError: if the file is no `.npz`, is damaged, or lacks an array.
    """
    try:
        with path.open("rb") as handle:
            if not zipfile.is_zipfile(handle):
                raise InputError(
                    f"{path} is no .npz file, or a truncated one",
                    hint=_SAVEZ,
                )
            handle.seek(0)
            with np.load(handle, allow_pickle=False) as archive:
                _require_all(str(path), archive.files, _SAVEZ)
                arrays = {name: archive[name] for name in NAMES}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    except (ValueError, NotImplementedError, RuntimeError) as error:
        # NumPy on object arrays and bad headers; zipfile on encrypted or exotic members.
        raise InputError(
            f"{path} cannot be read: {error}",
            hint=f"save arrays of numbers, in which all samples have one shape: {_SAVEZ}",
        ) from error
    return from_arrays(str(path), arrays)


def from_factory(source: str, returned: object) -> Dataset:
    """Take what a factory returned.

    Args:
        source: How the user named the factory.
        returned: A `Dataset`, a mapping with the four arrays and, if it likes, `num_classes`, or
            a tuple (x_train, y_train, x_test, y_test).

    Raises:
        InputError: if it is none of these.
    """
    if isinstance(returned, Dataset):
        return returned
    if isinstance(returned, tuple | list) and len(returned) == len(NAMES):
        returned = dict(zip(NAMES, returned, strict=True))
    hint = f"return a tuple or a dict of {', '.join(NAMES)}"
    if not isinstance(returned, Mapping):
        size = f" of {len(returned)}" if isinstance(returned, tuple | list) else ""
        raise InputError(
            f"{source} returned {a_kind(returned)}{size}, not a data set",
            hint=hint,
        )
    _require_all(source, list(returned), hint)
    return from_arrays(source, returned)


def _require_all(source: str, names: list[str], hint: str) -> None:
    missing = [name for name in NAMES if name not in names]
    if missing:
        raise InputError(
            f"{source} lacks {', '.join(missing)}; "
            f"it has {', '.join(map(str, names)) or 'nothing'}",
            hint=hint,
        )


def from_arrays(source: str, arrays: Mapping[str, Any]) -> Dataset:
    """Convert arrays or tensors: inputs to float32, labels to int64; scaled by nothing.

    Inputs of int32 or int64 are indices, such as tokens, and become int64. Narrower integers are
    pixels and the like.

    Labels in floating point are soft ones, for each sample a distribution over classes; or else
    real-valued targets, of which single numbers [N] become [N, 1].

    The number of classes is `arrays["num_classes"]`; or what either split's soft labels have, or
    one more than its largest label, and at least 2. Of real-valued targets it is how many numbers
    each has.

    Raises:
        InputError: if an array is not numeric.
    """
    x_train, x_test = (_inputs(f"{source}: {name}", arrays[name]) for name in ("x_train", "x_test"))
    y_train, y_test = (_labels(f"{source}: {name}", arrays[name]) for name in ("y_train", "y_test"))
    sizes = [_num_classes(y) for y in (y_train, y_test) if y.numel()]
    least = 1 if y_train.is_floating_point() else 2
    num_classes = arrays.get("num_classes", max([least, *sizes]))
    if not isinstance(num_classes, int | np.integer) or num_classes < least:
        raise InputError(
            f"{source}: num_classes is {num_classes!r}, not an integer of {least} or more"
        )
    return Dataset(x_train, y_train, x_test, y_test, int(num_classes))


def _is_plain(value: object) -> TypeGuard[Tensor]:
    return (
        isinstance(value, Tensor)
        and not value.is_complex()
        and value.layout is torch.strided
        and not value.is_meta
    )


def _inputs(where: str, value: object) -> Tensor:
    if _is_plain(value):
        are_indices = value.dtype in (torch.int32, torch.int64)
        dtype = torch.int64 if are_indices else torch.float32
        return value.detach().to("cpu", dtype).contiguous()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        are_indices = value.dtype.kind == "i" and value.dtype.itemsize >= 4
        with np.errstate(over="ignore"):  # an infinity, which validation names with its row
            kept = np.array(value, dtype=np.int64 if are_indices else np.float32, order="C")
        return torch.from_numpy(kept)
    raise InputError(f"{where} is {_kind(value)}, not an array of numbers")


def _labels(where: str, value: object) -> Tensor:
    if _is_plain(value):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim:
        with np.errstate(over="ignore"):  # an infinity, which validation names with its row
            targets = np.array(value, dtype=np.float32, order="C")
        return torch.from_numpy(targets[:, None] if targets.ndim == 1 else targets)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or not value.ndim:
        raise InputError(
            f"{where} is {_kind(value)}, but labels are integers from 0, one or several a row",
            hint="class indices: y.astype('int64'); in floating point soft labels, a row of "
            "probabilities for each sample, or real-valued targets",
        )
    if value.size and int(value.max()) >= MAX_CLASSES:
        raise InputError(
            f"{where} has label {value.max()} in row {value.argmax() // value[0].size}; "
            f"labels are class indices below {MAX_CLASSES:,}"
        )
    return torch.from_numpy(np.array(value, dtype=np.int64, order="C"))


def _num_classes(labels: Tensor) -> int:
    return labels[0].numel() if labels.is_floating_point() else int(labels.max()) + 1


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    if isinstance(value, Tensor):
        kind = "meta " if value.is_meta else "" if value.layout is torch.strided else "sparse "
        return f"a {kind}tensor of {dtype_name(value.dtype)}"
    return a_kind(value)
