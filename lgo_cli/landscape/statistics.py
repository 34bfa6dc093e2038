"""What several random planes have in common: one of them is one sample; without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy import ndarray as Array

NUM_ANGLES = 96
"""Points on a circle of a profile; more than a 51 × 51 grid has cells on its largest."""

NUM_RADII = 25
"""Circles of a profile beside the centre, up to the largest within the grid."""


@dataclass(frozen=True)
class Band:
    """Order statistics over K planes, of a number or an array each; NaN counts as infinite.

    The range of K independent planes holds the median over all planes with probability
    1 − 2^(1−K) at least, whatever the distribution.

    Attributes:
        median: The middle value, or the mean of the middle two.
        lower: Median of the lower half, the middle value included (Tukey's hinge).
        upper: Of the upper half.
        minimum: Least.
        maximum: Largest.
    """

    median: Array
    lower: Array
    upper: Array
    minimum: Array
    maximum: Array


@dataclass(frozen=True)
class PlaneStatistics:
    """Statistics of K surfaces over planes of one kind.

    Attributes:
        num_planes: K.
        radii: Distances r from the centre, in the planes' coordinates [n].
        profile: Mean loss over the circle of radius r [n].
        loss_min: Smallest loss of a plane that is finite.
        loss_max: Largest loss of a plane, infinite if a cell is not finite.
    """

    num_planes: int
    radii: Array
    profile: Band
    loss_min: Band
    loss_max: Band


def band(values: Array) -> Band:
    """Order statistics over the first axis of values [K, ...]."""
    ordered = np.sort(np.where(np.isnan(values), np.inf, values), axis=0)
    half = (len(ordered) + 1) // 2
    return Band(
        median=_middle(ordered),
        lower=_middle(ordered[:half]),
        upper=_middle(ordered[-half:]),
        minimum=ordered[0],
        maximum=ordered[-1],
    )


@np.errstate(over="ignore", invalid="ignore")  # what no float holds is infinite
def profile(x: Array, y: Array, loss: Array, radii: Array, center: float) -> Array:
    """Mean loss over circles about the centre [n], interpolated between cells.

    By Keys' cubic convolution (1981) of asinh(loss / centre), nearly the logarithm: linear
    interpolation of the loss is twice too high in a minimum as wide as a cell. Beside cells that
    are not finite the interpolation is linear, and a circle that touches one has an infinite mean.

    Args:
        x: Coordinates [nx], ascending.
        y: Coordinates [ny], ascending.
        loss: [ny, nx].
        radii: [n], each circle within the grid.
        center: The loss at the centre, which is that of radius 0 whether or not it is a cell.
    """
    angles = 2 * np.pi * np.arange(NUM_ANGLES) / NUM_ANGLES
    column, right = _between(x, radii[:, None] * np.cos(angles))
    row, up = _between(y, radii[:, None] * np.sin(angles))
    scale = abs(center) if math.isfinite(center) and center != 0 else 1.0
    height = np.full((len(y) + 2, len(x) + 2), np.nan)
    height[1:-1, 1:-1] = np.arcsinh(np.where(np.isfinite(loss), loss, np.nan) / scale)
    # Beyond the grid its parabolas go on, as far as it has three cells.
    for each in (height, height.T):
        if len(each) > 4:
            each[0], each[-1] = (3 * a - 3 * b + c for a, b, c in (each[1:4], each[-2:-5:-1]))
    found = np.full(column.shape, np.inf)
    for first, weights in ((1, _linear), (0, _cubic)):
        total = np.zeros(column.shape)
        for i, weight_y in enumerate(weights(up), start=first):
            for j, weight_x in enumerate(weights(right), start=first):
                weight = weight_x * weight_y
                # A neighbour of no weight has no say, finite or not.
                total += weight * np.where(weight == 0, 0.0, height[row + i, column + j])
        found = np.where(np.isfinite(total), total, found)
    mean = (scale * np.sinh(found)).mean(axis=1)
    return np.where(radii == 0, center if math.isfinite(center) else np.inf, mean)


def plane_statistics(x: Array, y: Array, losses: Array, center: float) -> PlaneStatistics:
    """Median and band of each statistic over surfaces on one grid.

    Args:
        x: Coordinates [nx], ascending, on both sides of 0.
        y: Coordinates [ny], likewise.
        losses: [K, ny, nx].
        center: The loss at the centre.

    Raises:
        ValueError: if the centre is not inside the grid.
    """
    reach = min(-x[0], x[-1], -y[0], y[-1])
    if reach <= 0:
        raise ValueError("a profile needs the centre inside the grid")
    radii = reach * np.arange(NUM_RADII + 1) / NUM_RADII
    finite = np.where(np.isfinite(losses), losses, np.inf)
    return PlaneStatistics(
        num_planes=len(losses),
        radii=radii,
        profile=band(np.stack([profile(x, y, loss, radii, center) for loss in losses])),
        loss_min=band(finite.min(axis=(1, 2))),
        loss_max=band(finite.max(axis=(1, 2))),
    )


def _middle(ordered: Array) -> Array:
    """Median of values that are sorted along the first axis."""
    count = len(ordered)
    low, high = ordered[(count - 1) // 2], ordered[count // 2]
    return np.asarray((low + high) / 2)


def _between(grid: Array, points: Array) -> tuple[Array, Array]:
    """Index of the interval that each point lies in, and how far along it in [0, 1]."""
    index = np.clip(np.searchsorted(grid, points, side="right") - 1, 0, len(grid) - 2)
    low, high = grid[index], grid[index + 1]
    return index, np.clip((points - low) / (high - low), 0.0, 1.0)


def _linear(share: Array) -> tuple[Array, ...]:
    """Weights of the two neighbours of points that lie so far in [0, 1] between them."""
    return 1 - share, share


def _cubic(share: Array) -> tuple[Array, ...]:
    """Weights of four neighbours, the points being between the middle two; exact for parabolas."""
    s = share
    return (
        ((1 - s / 2) * s - 0.5) * s,
        (1.5 * s - 2.5) * s * s + 1,
        ((2 - 1.5 * s) * s + 0.5) * s,
        (s - 1) / 2 * s * s,
    )
