"""A loss surface from a few of its cells, with an error for each of the others.

Shapes: a grid of ny rows and nx columns, m = ny·nx cells in the order of rows.
theory.md, section 28.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy import ndarray as Array

from lgo_cli.landscape.borders import border, nearest_is_finite
from lgo_cli.landscape.checking import compare
from lgo_cli.landscape.spline import GrowingSpline, fit
from lgo_cli.seeding import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lgo_cli.results import FillingCheck

    Measure = Callable[[Sequence[tuple[int, int]]], Sequence[float]]
    Preview = Callable[["Array", "Array"], None]

COARSE = 6
"""Rows and columns measured first. On planes of small networks twice as many cells are about what a
percent needs; elsewhere their residuals say how far they are from it."""

NUM_CHECKED = 20
"""Cells of a check. If all hold at the first, at least 83 % of the filled cells do, with 95 %
confidence."""

BATCH = 5
"""A batch is a fifth of what is measured: the next one then profits from it, and few are needed."""

SAFETY = 1.5
"""Stated error over the standard deviation of the spline's error. On thirteen surfaces of MLPs and
a ResNet-20 0 to 7 % of the filled cells exceed what is stated, and none twice the tolerance; on one
with a kink 0.4 % exceed the tolerance, the worst by 3.1 times it (theory.md, section 28)."""

SMALL_SHARE = 0.5
"""Share of the tolerance that the spline of the small losses may use up. Errors add in squares, so
the ratio keeps 87 %; small cells are cheap."""

SMALL_GROWTH = 1.1
"""The spline of the small losses is laid anew after a batch of its own, not after a few cells."""

CLEAR_GAIN = 2.0
"""A choice between one level and two that rests on a coarse grid has to promise this much."""

LEAST_FOR_LEVELS = 20
"""Finite cells of the coarse grid on which the choice between one level and two can rest."""

MOST_ENLARGED = 2.0
"""Factor on all estimates after a check that found them too small."""

ROUNDING = 2.0**-23
"""No error is stated below it: losses come from float32 arithmetic."""

WHOLE_SHARE = 0.5
"""Cost, in cells of the grid, from which on all are measured: splines, of cubic cost, save little
then."""

MAX_HEIGHT = 700.0
"""A spline that overshoots before it is refined must not overflow: sinh does so at 710."""

FLOOR_SHARE = 1e-3
"""Of the centre's loss: no level below is drawn apart from it."""


@dataclass(frozen=True)
class Filled:
    """A loss surface, measured in part.

    Attributes:
        loss: [ny, nx]. As measured where `measured`; NaN where it is not measured and surrounded by
            cells that are not finite.
        measured: [ny, nx], bool.
        error_estimate: Of |loss − what would be measured| [ny, nx], in units of the loss: 0 where
            measured, NaN where filled with NaN.
        num_measured: Cells measured on all samples, those of all checks included.
        num_small: Cells measured on the few samples.
        cost: Both, in cells on all samples.
        floor: The tolerance is relative to max(|loss|, floor).
        check: The last one; `None` if nothing was left to check.
        num_checks: How many there were; each but the last found the tolerance violated.
        converged: Whether all estimates and the last check are within the tolerance.
    """

    loss: Array
    measured: Array
    error_estimate: Array
    num_measured: int
    num_small: int
    cost: float
    floor: float
    check: FillingCheck | None
    num_checks: int
    converged: bool


def fill_surface(
    x: Sequence[float],
    y: Sequence[float],
    measure: Measure,
    *,
    tolerance: float,
    measure_small: Measure | None = None,
    small_cost: float = 1 / 16,
    max_cost: float = math.inf,
    seed: int = 0,
    preview: Preview | None = None,
) -> Filled:
    """Measure cells of a grid until a spline through them gives the others to a tolerance.

    First a coarse grid, denser towards the edges; then, in batches, the cells with the largest
    estimated errors; last, as a check, a random sample of the filled cells. It fails if one is off
    by more than the tolerance, or by more than its estimate where the estimates, enlarged by as
    much, exceed the tolerance. Its cells then join the data, and another check follows. The border
    of a region where the loss is not finite is measured cell by cell.

    The spline is of asinh(loss / floor): the logarithm of large losses, which takes zero and
    negative ones too. The floor is the smallest magnitude on the coarse grid, or a thousandth of
    the centre's loss if that is larger.

    Given `measure_small`, and if the coarse grid says that it is cheaper, the spline is a sum of
    two: of the losses on few samples, and, through fewer cells, of the difference of logarithms.

    Which cells are asked for depends on the arguments and values alone, and none is asked for
    twice, so that a killed run goes on from a journal of values.

    Args:
        x: Coordinates of the columns [nx], ascending.
        y: Of the rows [ny].
        measure: Losses at cells (row, column); they may be non-finite.
        tolerance: In (0, 1): |error| / max(|loss|, floor) at each cell.
        measure_small: Losses at cells on the first few samples.
        small_cost: Of such a cell, in cells on all samples.
        max_cost: Cells to spend at most, one on few samples as `small_cost`; a check's are laid
            aside. From 72 on it is kept: the coarse grid and a check are measured whatever it is,
            and a grid of 72 cells is measured whole. Cells asked for with less are asked for with
            more.
        seed: The user's seed, for the checks.
        preview: Shown losses [ny, nx] and the mask of those measured, after each batch.
    """
    filling = _Filling(x, y, measure, measure_small, small_cost, tolerance, preview)
    m = len(x) * len(y)
    if m <= 2 * COARSE**2:
        filling.ask(range(m))
        return filling.result(None, 0, converged=True)
    filling.ask(filling.coarse())
    filling.floor = filling.choose_floor()
    filling.choose_levels()
    num_checks, check = 0, None
    while True:
        done = filling.refine(max_cost)
        drawn = torch.randperm(m, generator=generator(seed, "contour", "check", num_checks))
        cells = [cell for cell in drawn.tolist() if not filling.known[cell]][:NUM_CHECKED]
        if not cells:
            return filling.result(None, num_checks, converged=True)
        if check is not None and filling.cost + filling.price * len(cells) > max_cost:
            return filling.result(check, num_checks, converged=False)
        num_checks += 1
        check = filling.check(cells, num_checks)
        good = filling.enlarge(check) and check.share_within == 1
        if good or not done:
            return filling.result(check, num_checks, converged=done)


class _Filling:
    """What is measured of a grid, and what the splines make of it. All arrays are [m]."""

    def __init__(
        self,
        x: Sequence[float],
        y: Sequence[float],
        measure: Measure,
        measure_small: Measure | None,
        small_cost: float,
        tolerance: float,
        preview: Preview | None,
    ) -> None:
        self.shape = (len(y), len(x))
        self.x, self.y = np.asarray(x, float), np.asarray(y, float)
        self.measure, self.measure_small = measure, measure_small
        self.small_cost, self.tolerance, self.preview = small_cost, tolerance, preview
        m = len(x) * len(y)
        self.full, self.known = np.full(m, np.nan), np.zeros(m, bool)
        self.small, self.known_small = np.full(m, np.nan), np.zeros(m, bool)
        self.loss, self.error = np.full(m, np.nan), np.zeros(m)
        rows, columns = np.divmod(np.arange(m), len(x))
        # Of order one, so that powers of distances stay so; a cell counts alike along both axes.
        self.grid = 2.0 * np.stack([columns, rows], axis=1) / max(1, *self.shape) - 1
        self.floor = 1.0
        self.margin = 1.0
        self.two_levels = False
        self.small_spline = GrowingSpline(self.grid, tolerance, SMALL_GROWTH)
        self.full_spline = GrowingSpline(self.grid, tolerance)

    @property
    def cost(self) -> float:
        return float(self.known.sum() + self.small_cost * self.known_small.sum())

    @property
    def price(self) -> float:
        """What a cell adds to the cost, if it is measured on few samples too."""
        return 1 + self.small_cost if self.two_levels else 1.0

    def coarse(self) -> list[int]:
        """Chebyshev's points along both axes, and the cell nearest to the origin."""
        rows, columns = (
            np.unique(
                np.round((1 - np.cos(np.pi * np.arange(COARSE) / (COARSE - 1))) / 2 * (n - 1))
            )
            for n in self.shape
        )
        cells = {int(i) * self.shape[1] + int(j) for i in rows for j in columns}
        return sorted(cells | {self.origin})

    @property
    def origin(self) -> int:
        return int(np.argmin(np.abs(self.y))) * self.shape[1] + int(np.argmin(np.abs(self.x)))

    def choose_floor(self) -> float:
        sizes = np.abs(self.full[np.isfinite(self.full) & (self.full != 0)])
        center = abs(float(self.full[self.origin]))
        smallest = float(sizes.min()) if len(sizes) else 1.0
        return max(smallest, FLOOR_SHARE * center) if math.isfinite(center) else smallest

    def choose_levels(self) -> None:
        """Measure the coarse grid on few samples, if that may pay, and see whether it does.

        The number of cells that a tolerance takes is as the residuals over it, for an error of
        second order in the spacing.
        """
        finite = self.known & np.isfinite(self.full)
        if self.measure_small is None or finite.sum() < LEAST_FOR_LEVELS:
            return
        full = self._heights(self.full)
        needed = self._growth(finite, full)
        if needed <= CLEAR_GAIN * (1 + 2 * self.small_cost):  # what two levels take at least
            return
        self.ask_small(np.flatnonzero(self.known))
        finite &= np.isfinite(self.small)
        if finite.sum() < LEAST_FOR_LEVELS:
            return
        small = self._heights(self.small)
        with np.errstate(invalid="ignore"):
            ratio = max(1.0, self._growth(finite, full - small))
        two = ratio + self.small_cost * self._growth(finite, small)
        self.two_levels = CLEAR_GAIN * two < needed

    def _heights(self, loss: Array) -> Array:
        """What splines are laid through; infinite where the loss is beyond float64 floors."""
        with np.errstate(over="ignore"):
            return np.asarray(np.arcsinh(loss / self.floor))

    def _growth(self, data: Array, heights: Array) -> float:
        """Cells needed over cells of the coarse grid."""
        spline = fit(self.grid[data], heights[data], self.grid[data], self.tolerance)
        growth = float(np.quantile(np.abs(spline.residuals), 0.9)) / self.tolerance
        return min(growth, len(self.known) / len(heights[data]))

    def ask(self, cells: Iterable[int]) -> None:
        """Measure cells on all samples, and on few where both are wanted; row by row."""
        new = sorted(cells)
        self.full[new] = self.measure([divmod(cell, self.shape[1]) for cell in new])
        self.known[new] = True
        self.loss[new] = self.full[new]
        self.error[new] = 0.0
        if self.two_levels:
            self.ask_small(cell for cell in new if not self.known_small[cell])

    def ask_small(self, cells: Iterable[int]) -> None:
        """Measure cells on few samples, row by row."""
        new = sorted(cells)
        if new and self.measure_small is not None:
            self.small[new] = self.measure_small([divmod(cell, self.shape[1]) for cell in new])
            self.known_small[new] = True

    def refine(self, max_cost: float) -> bool:
        """Measure until all estimates are within the tolerance; whether they are.

        What a check takes is left of `max_cost`. The last batch is as much of one as is left.
        """
        whole = True
        while True:
            measured = np.flatnonzero(self.known)
            finite, distance = nearest_is_finite(self.shape, measured, self.full[measured])
            small, full = self._fill(finite)
            edge = border(self.shape, self.known, finite, distance)
            if not (small or full or edge):
                return True
            if not whole:
                return False
            missing = np.flatnonzero(~self.known).tolist()
            if self.cost > WHOLE_SHARE * len(self.known) and self.cost + len(missing) <= max_cost:
                self.two_levels = False
                self.ask(missing)
                return True
            left = max_cost - NUM_CHECKED * self.price - self.cost
            if small and not edge:
                batch = _first(small, left / self.small_cost)
                whole = len(batch) == len(small)
                self.ask_small(batch)
                # What overflows on few samples does so on all: that is for the border.
                lost = [cell for cell in batch if not np.isfinite(self.small[cell])]
                if len(lost) > left - self.small_cost * len(batch):
                    return False
                self.ask(lost)
            else:
                batch = _first(edge or full, left / self.price)
                whole = len(batch) == len(edge or full)
                self.ask(batch)

    def _fill(self, finite: Array) -> tuple[list[int], list[int]]:
        """Fill the cells that are not measured; name those to measure on few samples, and on all.

        Those on few come first, until the spline through them is good enough.
        """
        missing = ~self.known
        wanted = missing & finite
        self.loss[missing] = self.error[missing] = np.nan
        data = self.known & np.isfinite(self.full)
        if self.two_levels:
            data &= np.isfinite(self.small)
        if data.sum() < 2:
            return [], np.flatnonzero(wanted).tolist()
        heights = self._heights(self.full)
        if self.two_levels:
            small_heights = self._heights(self.small)
            few = self.known_small & np.isfinite(self.small)
            small = self.small_spline.through(few, small_heights)
            with np.errstate(invalid="ignore"):
                full = self.full_spline.through(data, heights - small_heights)
            filled, variance = small.values + full.values, small.deviation**2
        else:
            full = self.full_spline.through(data, heights)
            filled, variance = full.values, np.zeros(len(heights))
        stated = SAFETY * self.margin * np.sqrt(variance + full.deviation**2) + ROUNDING
        filled = np.clip(filled, -MAX_HEIGHT, MAX_HEIGHT)
        with np.errstate(over="ignore"):
            size = np.sinh(np.abs(filled))
            room = np.arcsinh(size + self.tolerance * np.maximum(size, 1)) - np.abs(filled)
            self.loss[wanted] = (self.floor * np.sinh(filled))[wanted]
            self.error[wanted] = (self.floor * (np.sinh(np.abs(filled) + stated) - size))[wanted]
        if self.preview is not None:
            self.preview(
                self.loss.reshape(self.shape).copy(), self.known.reshape(self.shape).copy()
            )
        limit = np.where(wanted, room / (SAFETY * self.margin), np.inf)
        if self.two_levels:
            small_limit = np.where(self.known_small, np.inf, SMALL_SHARE * limit)
            cells = small.rank(small_limit, _batch(self.known_small))
            if cells:
                return cells, []
            limit = np.sqrt(np.maximum(limit**2 - variance, (SMALL_SHARE * limit) ** 2))
        return [], full.rank(limit, _batch(self.known))

    def check(self, cells: Sequence[int], number: int) -> FillingCheck:
        """Measure filled cells and compare, for the `number`-th time."""
        chosen = list(cells)
        filled, stated = self.loss[chosen], self.error[chosen]
        self.ask(chosen)
        return compare(filled, stated, self.full[chosen], self.floor, self.tolerance, number)

    def enlarge(self, check: FillingCheck) -> bool:
        """State no less than what a check found; whether that is still within the tolerance.

        If it is not, splines to come state more, but not much: a surprise at one place is data.
        """
        if math.isinf(check.worst_ratio):
            return False
        factor = max(1.0, check.worst_ratio)
        self.error *= factor
        self.margin *= min(factor, MOST_ENLARGED)
        allowed = self.tolerance * np.maximum(np.abs(self.loss), self.floor)
        return not (self.error > allowed)[~self.known].any()

    def result(self, check: FillingCheck | None, num_checks: int, *, converged: bool) -> Filled:
        """What there is by now."""
        return Filled(
            loss=self.loss.reshape(self.shape),
            measured=self.known.reshape(self.shape),
            error_estimate=self.error.reshape(self.shape),
            num_measured=int(self.known.sum()),
            num_small=int(self.known_small.sum()),
            cost=self.cost,
            floor=self.floor,
            check=check,
            num_checks=num_checks,
            converged=converged,
        )


def _first(cells: list[int], number: float) -> list[int]:
    """No more than so many of the cells."""
    return cells[: int(min(max(number, 0), len(cells)))]


def _batch(known: Array) -> int:
    """Cells of a batch, a share of what there is: few enough that the next batch profits."""
    return max(4, int(known.sum()) // BATCH)
