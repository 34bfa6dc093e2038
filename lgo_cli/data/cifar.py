"""CIFAR-10 and CIFAR-100 from the batches of their Python version, without running a pickle.

The batches are pickles, and a pickle is a program. Here it runs on a machine that knows only what
those files hold: numbers, strings, lists, dicts, and stand-ins that write down how an array of
bytes is put together. NumPy's own reconstruction never sees the file's content.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lgo_cli.data.dataset import Dataset, from_pixels
from lgo_cli.errors import InputError, a_kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from lgo_cli.data.registry import CifarArgs

IMAGE_SHAPE = (3, 32, 32)

MD5 = {
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    "cifar100": {
        "train_batch": "16019d7e3df5f24257cddd939b257f8d",
        "test_batch": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
}
"""Published digests of the files, as in torchvision/datasets/cifar.py."""


def _load(
    files: Mapping[str, Path],
    args: CifarArgs,
    *,
    name: str,
    labels: str,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    """Load one of the two (Krizhevsky 2009), normalised per channel by its training images.

    Args:
        files: The batches by name.
        args: Whether to compare digests.
        name: Of the data set.
        labels: Which labels of a batch to take.
        num_classes: How many there are.
        mean: Of each channel, after scaling to [0, 1].
        std: Likewise.

    Raises:
        InputError: if a file is not the published one, or not of that format.
    """
    md5 = MD5[name] if args.verify else {}
    batches = {batch: read_batch(path, labels, md5.get(batch)) for batch, path in files.items()}
    test = batches.pop("test_batch")
    images, of_images = map(torch.cat, zip(*batches.values(), strict=True))
    return from_pixels((images, of_images), test, num_classes, max_value=255, mean=mean, std=std)


load_cifar10 = partial(
    _load, name="cifar10", labels="labels", num_classes=10,
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
)  # fmt: skip

load_cifar100 = partial(
    _load, name="cifar100", labels="fine_labels", num_classes=100,
    mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
)  # fmt: skip


def read_batch(path: Path, labels_key: str, md5: str | None) -> tuple[Tensor, Tensor]:
    """Read one batch.

    Args:
        path: The pickle.
        labels_key: Which labels to take.
        md5: Digest that the file must have; `None` takes any file of the format.

    Returns:
        Images [N, 3, 32, 32], uint8, and labels [N], int64.

    Raises:
        InputError: if the file is not the published one, holds anything but data, or lacks the
            images or the labels.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if md5 is not None:
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5:
            raise InputError(
                f"{path} is not the published file: its MD5 is {found}, not {md5}",
                hint="download it again, or take it as it is: --dataset-arg verify=false",
            )
    batch = _unpickle(content, path)
    if not isinstance(batch, dict):
        raise InputError(f"{path} holds {a_kind(batch)}, not a CIFAR batch")
    fields = {_text(key): value for key, value in batch.items()}
    data, labels = fields.get("data"), fields.get(labels_key)
    if not isinstance(data, _Array) or not isinstance(labels, list):
        held = ", ".join(repr(key) for key in fields)
        raise InputError(
            f"{path} lacks an array 'data' or a list {labels_key!r}; it has {held or 'nothing'}"
        )
    images = data.to_numpy(path)
    if images.ndim != 2 or images.shape[1] != math.prod(IMAGE_SHAPE):
        raise InputError(f"{path} holds data of shape {list(images.shape)}, not [N, 3072]")
    if not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise InputError(f"{path} holds {labels_key} that are no class indices")
    return torch.from_numpy(images).view(-1, *IMAGE_SHAPE), torch.tensor(labels, dtype=torch.int64)


def _text(value: object) -> str:
    """Text of a string, which Python 2 pickled as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Dtype:
    """Stands in for `numpy.dtype`: only the name is kept."""

    def __init__(self, name: object, *_: object) -> None:
        self.name = _text(name)

    def __setstate__(self, state: object) -> None:
        del state  # byte order and fields: meaningless for single bytes


class _Array:
    """Stands in for `numpy.ndarray`: what the pickle says of it."""

    shape: Sequence[int] = ()
    dtype: object = None
    fortran: bool = False
    buffer: object = b""

    def __setstate__(self, state: tuple[object, Any, object, bool, object]) -> None:
        _, self.shape, self.dtype, self.fortran, self.buffer = state

    def to_numpy(self, path: Path) -> NDArray[np.uint8]:
        """Put the array together, in memory of its own.

        Raises:
            InputError: if it is no array of bytes, or not of the stated shape.
        """
        if not isinstance(self.dtype, _Dtype) or self.dtype.name != "u1":
            raise InputError(f"{path} holds an array that is not of unsigned bytes")
        if not isinstance(self.buffer, bytes | bytearray) or not (
            isinstance(self.shape, tuple)
            and all(type(size) is int and size >= 0 for size in self.shape)
            and math.prod(self.shape) == len(self.buffer)
        ):
            raise InputError(f"{path} holds an array whose shape and content disagree")
        flat = np.frombuffer(self.buffer, np.uint8)
        array = flat.reshape(self.shape[::-1]).T if self.fortran else flat.reshape(self.shape)
        return np.array(array, order="C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(buffer: object, dtype: object, shape: Sequence[int], order: str) -> _Array:
    array = _Array()
    array.buffer, array.dtype, array.shape, array.fortran = buffer, dtype, shape, order == "F"
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for `codecs.encode`, by which Python 3 writes bytes in old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding!r} is not admitted")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{
        (f"{core}.multiarray", "_reconstruct"): _reconstruct
        for core in ("numpy.core", "numpy._core")
    },
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in ("numpy.core", "numpy._core")},
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


def _unpickle(content: bytes, path: Path) -> object:
    try:
        # Python 2's strings stay bytes: the buffer of an array is one of them.
        return _RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load()
    except (
        # What a malformed pickle raises: the first by rule, the others by accident.
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        IndexError,
        KeyError,
        MemoryError,  # of a length that is damaged
        OverflowError,
        TypeError,
        UnicodeError,
        ValueError,
    ) as error:
        raise InputError(
            f"{path} is no CIFAR batch: {error}", hint="nothing in the file was executed"
        ) from error
