"""Handwritten digits from a file inside the package; a real data set without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from lgo_cli.data.dataset import Dataset, from_pixels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lgo_cli.data.registry import DigitsArgs

NUM_TRAIN = 1437
"""Rows before this are the training split; the last 360 are the test split.

The stored order goes writer by writer, so that nearly all test digits are by unseen hands.
"""

MAX_VALUE = 16
MEAN, STD = (0.3054,), (0.3755,)
"""Of the training split, after division by 16."""


def load(files: Mapping[str, Path], args: DigitsArgs) -> Dataset:
    """Load the 1,797 digits [1, 8, 8] of `digits.npz` (see `digits.LICENSE`).

    Args:
        files: None are needed.
        args: There are none.
    """
    del files, args
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as archive:
        images = torch.from_numpy(archive["images"]).unsqueeze(1)
        labels = torch.from_numpy(archive["labels"])
    return from_pixels(
        (images[:NUM_TRAIN], labels[:NUM_TRAIN]),
        (images[NUM_TRAIN:], labels[NUM_TRAIN:]),
        10,
        max_value=MAX_VALUE,
        mean=MEAN,
        std=STD,
    )
