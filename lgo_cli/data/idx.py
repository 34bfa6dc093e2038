"""MNIST and Fashion-MNIST from their IDX files, gzipped or not.

An IDX file is a magic number (two zero bytes, the type 0x08 for unsigned bytes, the number of
dimensions), each dimension as a big-endian 32-bit integer, and the values in C order (LeCun,
Cortes & Burges, "The MNIST database").
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from lgo_cli.data.dataset import Dataset, from_pixels
from lgo_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from lgo_cli.data.registry import IdxArgs

IMAGE_SIZE = 28
NUM_CLASSES = 10
UNSIGNED_BYTE = 0x08

# Both data sets come under the same four names; the first test labels tell them apart.
FIRST_TEST_LABELS = {
    "mnist": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9],
    "fashion-mnist": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7],
}


def _load(
    files: Mapping[str, Path], args: IdxArgs, *, mean: float, std: float, other: str
) -> Dataset:
    """Load one of the two, normalised by the mean and deviation of its training images' pixels.

    Args:
        files: The four IDX files by name.
        args: Size and channels.
        mean: Of the pixels, after scaling to [0, 1].
        std: Likewise.
        other: The data set of the same file names that it must not be.

    Raises:
        InputError: if a file is truncated, corrupt or not in IDX format.
    """

    def split(name: str) -> tuple[Tensor, Tensor]:
        path = files[f"{name}-images-idx3-ubyte"]
        images = read_idx(path, num_dims=3)
        if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise InputError(
                f"{path} holds images of {images.shape[1]}x{images.shape[2]}, not 28x28"
            )
        before = (args.image_size - IMAGE_SIZE) // 2
        after = args.image_size - IMAGE_SIZE - before
        images = F.pad(images, (before, after, before, after)).unsqueeze(1)
        labels = read_idx(files[f"{name}-labels-idx1-ubyte"], num_dims=1)
        return images, labels

    train, test = split("train"), split("t10k")
    if test[1][:10].tolist() == FIRST_TEST_LABELS[other]:
        path = files["t10k-labels-idx1-ubyte"]
        raise InputError(f"{path} belongs to {other}", hint=f"--dataset {other}")
    grey = from_pixels(train, test, NUM_CLASSES, max_value=255, mean=(mean,), std=(std,))
    # Equal channels share their memory.
    shape = (-1, args.channels, -1, -1)
    return replace(
        grey,
        x_train=grey.x_train.expand(shape),
        x_test=grey.x_test.expand(shape),
        normalization={"mean": [mean] * args.channels, "std": [std] * args.channels},
    )


load_mnist = partial(_load, mean=0.1307, std=0.3081, other="fashion-mnist")

load_fashion_mnist = partial(_load, mean=0.2860, std=0.3530, other="mnist")
"""Of Xiao, Rasul & Vollgraf 2017."""


def read_idx(path: Path, num_dims: int) -> Tensor:
    """Read an IDX file of unsigned bytes.

    Args:
        path: The file; gzipped if its name ends with `.gz`.
        num_dims: How many dimensions it must have.

    Returns:
        A uint8 tensor of the shape that the file states.

    Raises:
        InputError: if it cannot be read, is not such a file, or has too few or too many bytes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            content = handle.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is a damaged gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    header_size = 4 + 4 * num_dims
    magic = content[:4]
    if magic != bytes([0, 0, UNSIGNED_BYTE, num_dims]):
        raise InputError(
            f"{path} is no IDX file of unsigned bytes in {num_dims} dimensions: it begins with "
            f"{magic.hex()}, not {UNSIGNED_BYTE << 8 | num_dims:08x}"
        )
    if len(content) < header_size:
        raise InputError(f"{path} is truncated: it ends inside its header")
    shape = struct.unpack(f">{num_dims}I", content[4:header_size])
    expected, found = math.prod(shape), len(content) - header_size
    if found != expected:
        kind = "truncated" if found < expected else "too long"
        stated = "x".join(map(str, shape))
        raise InputError(f"{path} is {kind}: it states {stated} bytes of data and has {found}")
    # A copy: torch wants memory it may write to.
    values = np.frombuffer(content, np.uint8, offset=header_size).copy()
    return torch.from_numpy(values).reshape(shape)
