"""How high a path is above the straight line between its end losses; without torch."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as Array


def highest(alpha: Array, loss: Array) -> tuple[int, float]:
    """Where a path is highest above the straight line between its ends (Entezari et al. 2022).

    Args:
        alpha: Coordinates [n] with 0 and 1 among them.
        loss: Losses there [n].

    Returns:
        The index of the maximum over [0, 1], and the height L(α) − [(1−α)L(0) + αL(1)] there, at
        least 0. Infinite if a loss between the ends is; NaN if one is NaN, or if an end is not
        finite and there is no line to measure from.
    """
    within = np.flatnonzero((alpha >= 0) & (alpha <= 1))
    heights = heights_of(alpha[within], loss[within])
    top = int(np.argmax(heights))  # the first NaN, if there is one
    return int(within[top]), float(heights[top])


def heights_of(a: Array, loss: Array) -> Array:
    """Heights [n] over the coordinates of [0, 1]; NaN if an end is not finite."""
    if not np.isfinite(loss[[0, -1]]).all():
        return np.full(len(a), math.nan)
    heights: Array = loss - ((1 - a) * loss[0] + a * loss[-1])
    # The ends lie on the line by definition, whatever rounding says.
    heights[[0, -1]] = 0.0
    return heights
