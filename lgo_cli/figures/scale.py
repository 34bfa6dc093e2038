"""How losses become colours, heights and round numbers, alike in every picture of one surface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from numpy import ndarray as Array

from lgo_cli.figures.numbers import round_levels, tick_names
from lgo_cli.figures.style import (
    ink_on,
    loss_label,
    number,
    spans_decades,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

COLOURS = "viridis"
NUM_LINES = 10
NUM_BANDS = 20


@dataclass(frozen=True)
class LossScale:
    """A scale over the finite losses of a surface.

    Attributes:
        low: Its lower end.
        high: Its upper end, above `low` also where all losses are equal.
        logarithmic: Whether equal factors, rather than equal differences, look equal.
        levels: Round losses for lines and ticks, ascending.
        names: What is written at each.
        label: Name and unit of the axis.
    """

    low: float
    high: float
    logarithmic: bool
    levels: Array
    names: list[str]
    label: str

    @classmethod
    def of(cls, loss: Array, results: Mapping[str, Any]) -> LossScale:
        """The scale of a surface with at least one finite loss."""
        finite = loss[np.isfinite(loss)]
        low, high = float(finite.min()), float(finite.max())
        logarithmic = spans_decades(finite)
        if low == high:
            levels = np.array([low])
            room = 0.1 * abs(low) or 1.0
            low, high = low - room, high + room
        else:
            levels = round_levels(low, high, logarithmic=logarithmic, about=NUM_LINES)
        label = loss_label(results, logarithmic=logarithmic)
        return cls(low, high, logarithmic, levels, tick_names(levels), label)

    @property
    def norm(self) -> Normalize:
        """From losses to [0, 1], for colours."""
        return (LogNorm if self.logarithmic else Normalize)(self.low, self.high)

    @property
    def band_edges(self) -> Array:
        """Edges of bands of colour: every level is one, with some between, from low to high."""
        levels, low, high = (self.height(v) for v in (self.levels, self.low, self.high))
        if len(levels) < 2:
            inner = np.linspace(low, high, NUM_BANDS + 1)
        else:
            parts = math.ceil(NUM_BANDS / len(levels))
            # Beyond the outermost levels, bands go on as wide as their neighbours.
            ends = 2 * levels[0] - levels[1], 2 * levels[-1] - levels[-2]
            knots = np.array([ends[0], *levels, ends[1]])
            ranks = np.arange((len(knots) - 1) * parts + 1) / parts
            inner = np.interp(ranks, np.arange(len(knots)), knots)
        inner = inner[(inner > low) & (inner < high)]
        # The extreme cells lie inside the outermost bands, whatever rounding says.
        bottom, top = np.nextafter(self.low, -np.inf), np.nextafter(self.high, np.inf)
        return np.array([bottom, *(10.0**inner if self.logarithmic else inner), top])

    def height(self, loss: Any) -> Any:
        """Losses as heights: their logarithm to base ten on a logarithmic scale."""
        return np.log10(loss) if self.logarithmic else np.asarray(loss, dtype=float)

    def ink_on(self, loss: float) -> str:
        """A colour that is readable on the colour of a loss: white on dark, ink on light."""
        return ink_on(*colormaps[COLOURS](self.norm(loss)))


def bilinear(x: Array, y: Array, values: Array, at_x: Array, at_y: Array) -> Array:
    """Interpolate a grid's values [ny, nx] at points of any shape; NaN outside of the grid.

    A value that is not finite spoils the squares that it is a corner of, and no others.
    """
    j = np.clip(np.searchsorted(x, at_x) - 1, 0, len(x) - 2)
    i = np.clip(np.searchsorted(y, at_y) - 1, 0, len(y) - 2)
    s, t = (at_x - x[j]) / (x[j + 1] - x[j]), (at_y - y[i]) / (y[i + 1] - y[i])
    low = _mix(values[i, j], values[i, j + 1], s)
    high = _mix(values[i + 1, j], values[i + 1, j + 1], s)
    inside = (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
    values_at: Array = np.where(inside, _mix(low, high, t), np.nan)
    return values_at


def _mix(a: Array, b: Array, share: Array) -> Array:
    """(1 − share)·a + share·b, where a share of nothing takes nothing, not even a NaN."""
    mixed: Array = np.where(share == 0, a, np.where(share == 1, b, (1 - share) * a + share * b))
    return mixed


def center_on(results: Mapping[str, Any], x: Array, y: Array) -> float | None:
    """The loss at the centre, or `None` if the grid does not reach that far."""
    reaches = x[0] <= 0 <= x[-1] and y[0] <= 0 <= y[-1]
    return number(results["loss_at_center"]) if reaches else None
