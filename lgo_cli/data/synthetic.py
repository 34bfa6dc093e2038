"""A mixture of Gaussian clusters, the same bytes on every machine for a seed.

A class is a union of clusters whose centres are drawn from N(0, I_d); a sample is a centre plus
`noise` times N(0, I_d). With the defaults the clusters overlap (the Bayes classifier, which knows
the centres, gets 94 % of the test samples right) and the classes are far from linearly separable
(logistic regression: 55 %).

Bits are pinned as follows. Only raw PCG64 output is drawn, which NumPy guarantees never to change
(the methods of its `Generator` may, NEP 19). A Gaussian is the sum of twelve uniform 16-bit
integers (Irwin-Hall: mean and variance exact, tails cut at six standard deviations), exact in
int64. What follows is elementwise +, -, *, / and sqrt in float64, each correctly rounded by
IEEE 754; no sum whose order a library may choose, no transcendental function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lgo_cli.data.dataset import Dataset

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from lgo_cli.data.registry import SyntheticArgs

NUM_UNIFORMS = 12
CHUNK = 1 << 20
"""Gaussians made at a time, 24 bytes of random bits each."""


def load(files: Mapping[str, Path], args: SyntheticArgs) -> Dataset:
    """Generate the data set.

    Row i has class i mod `num_classes`, and the clusters of a class follow each other likewise, so
    that each prefix is balanced; a larger `num_train` only adds rows.

    Args:
        files: None are needed.
        args: Sizes, noise and seed.

    Returns:
        Inputs [N, dimension] of unit variance, not normalised further.
    """
    del files
    shape = (args.num_clusters, args.num_classes, args.dimension)
    centers = gaussians(np.random.PCG64([args.seed, 0]), int(np.prod(shape))).reshape(shape)
    scale = np.sqrt(1 + args.noise * args.noise)

    def draw(stream: int, num_samples: int) -> tuple[Tensor, Tensor]:
        index = np.arange(num_samples)
        labels = index % args.num_classes
        clusters = index // args.num_classes % args.num_clusters
        x = gaussians(np.random.PCG64([args.seed, stream]), num_samples * args.dimension)
        x = x.reshape(num_samples, args.dimension)
        x *= args.noise
        x += centers[clusters, labels]
        x /= scale
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))

    x_train, y_train = draw(1, args.num_train)
    x_test, y_test = draw(2, args.num_test)
    return Dataset(x_train, y_train, x_test, y_test, args.num_classes)


def gaussians(bits: np.random.PCG64, size: int) -> NDArray[np.float64]:
    """Draw `size` nearly Gaussian numbers: (Σ uₖ - 6·65535) / 65536 over twelve 16-bit uₖ.

    Three 64-bit draws each. The variance is 1 - 2^-32; every value is a multiple of 2^-16.
    """
    z = np.empty(size)
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        # The four quarters of a draw are summed, so that byte order does not matter.
        quarters = bits.random_raw(3 * (stop - start)).view(np.uint16)
        z[start:stop] = quarters.reshape(-1, NUM_UNIFORMS).sum(axis=1, dtype=np.int64)
    z -= NUM_UNIFORMS // 2 * 65535
    z /= 65536
    return z
