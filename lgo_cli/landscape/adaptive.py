"""A loss surface from a few of its cells, with an error for each of the others.

Shapes: a grid of ny rows and nx columns, m = ny·nx cells in the order of rows. theory.md, section 28.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lgo_cli.landscape.spline import Spline, fit
from lgo_cli.seeding import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Measure = Callable[[Sequence[tuple[int, int]]], Sequence[float]]
    Preview = Callable[["Array", "Array"], None]

Array = np.ndarray[Any, Any]

COARSE = 8
"""Rows and columns measured first. On planes of small networks 64 cells are about what a percent
needs; elsewhere their residuals say how far they are from it."""

NUM_CHECKED = 20
"""Cells of a check. If all hold, at least 86 % of the filled cells do, with 95 % confidence."""

CONFIDENCE = 0.95

BATCH = 5

SAFETY = 2.5
"""Stated error over the standard deviation of the spline's error."""

SMALL_SHARE = 0.5
"""Share of the tolerance that the spline of the small losses may use up. Errors add in squares, so
the ratio keeps 87 %; small cells are cheap."""

ROUNDING = 2.0**-23
"""No error is stated below it: losses come from float32 arithmetic."""

FLOOR_SHARE = 1e-3
"""Of the centre's loss: no level below is drawn apart from it."""


@dataclass(frozen=True)
class Check:
    """Filled cells that were measured, drawn at random, after the filling was done.

    Attributes:
        num_cells: How many.
        worst_error: The largest |filled − measured| / max(|measured|, floor); infinite if only one
            of the two is finite.
        worst_ratio: The largest |filled − measured| over the error stated for that cell.
        share_within: Share of them within the tolerance.
        least_share: Share of all filled cells within the tolerance, a lower bound with 95 %
            confidence (Clopper & Pearson 1934).
    """

    num_cells: int
    worst_error: float
    worst_ratio: float
    share_within: float
    least_share: float


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
    check: Check | None
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

    First a coarse grid, denser towards the edges; then, a batch at a time, the cells where the error
    of the spline is estimated largest; last a random sample of the cells that are filled. If one of
    those is off by more than the tolerance, all of them join the data, estimates are enlarged until
    they cover them, and it goes on. The border of a region where the loss is not finite is measured
    cell by cell.

    The spline is one of asinh(loss / floor), which is the logarithm where losses are large against
    the floor, and takes zero and negative ones. The floor is the smallest magnitude on the coarse
    grid, or a thousandth of the centre's loss if that is larger.

    Where cells can be measured on a few of the samples, the spline is the sum of two, one of the
    small losses and one, through fewer cells, of the difference of the two logarithms, if the coarse
    grid says that this is cheaper.

    Which cells are asked for depends on the arguments and the values alone, and no cell is asked for
    twice: a run that was killed goes on from a journal of values.

    Args:
        x: Coordinates of the columns [nx], ascending.
        y: Of the rows [ny].
        measure: Losses at cells (row, column); they may be non-finite.
        tolerance: In (0, 1): |error| / max(|loss|, floor) at each cell.
        measure_small: Losses at cells on the first few samples.
        small_cost: Of such a cell, in cells on all samples.
        max_cost: Stop refining there, in cells on all samples. The coarse grid and a check are
            always measured.
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
    num_checks = 0
    while True:
        done = filling.refine(max_cost)
        drawn = torch.randperm(m, generator=generator(seed, "contour", "check", num_checks))
        cells = [cell for cell in drawn.tolist() if not filling.known[cell]][:NUM_CHECKED]
        if not cells:
            return filling.result(None, num_checks, converged=True)
        num_checks += 1
        check = filling.check(cells)
        good = filling.enlarge(check) and check.share_within == 1
        if good or not done:
            return filling.result(check, num_checks, converged=done and good)


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
        self.cells = np.stack([columns, rows], axis=1)
        # Of order one, so that powers of distances stay so; a cell counts alike along both axes.
        self.grid = 2.0 * self.cells / (max(self.shape) - 1) - 1
        self.floor = 1.0
        self.margin = 1.0
        self.two_levels = False
        self.small_spline: Spline | None = None
        self.orders: dict[str, tuple[int | None, int]] = {}

    @property
    def cost(self) -> float:
        return float(self.known.sum() + self.small_cost * self.known_small.sum())

    def coarse(self) -> list[int]:
        """Chebyshev's points along both axes, and the cell nearest to the origin."""
        rows, columns = (
            np.unique(np.round((1 - np.cos(np.pi * np.arange(COARSE) / (COARSE - 1))) / 2 * (n - 1)))
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
        if self.measure_small is None or not np.isfinite(self.full[self.known]).all():
            return
        full = np.arcsinh(self.full / self.floor)
        needed = self._growth(full)
        if needed * (1 - self.small_cost) <= 1 + self.small_cost:
            return
        self.ask_small(np.flatnonzero(self.known))
        if not np.isfinite(self.small[self.known]).all():
            return
        small = np.arcsinh(self.small / self.floor)
        cost = max(1.0, self._growth(full - small)) + self.small_cost * self._growth(small)
        self.two_levels = cost < needed

    def _growth(self, heights: Array) -> float:
        """Cells needed over cells of the coarse grid."""
        spline = fit(self.grid[self.known], heights[self.known], self.grid, self.tolerance)
        return float(np.quantile(np.abs(spline.residuals), 0.9)) / self.tolerance

    def ask(self, cells: Iterable[int]) -> None:
        """Measure cells on all samples, and on few where both are wanted."""
        new = list(cells)
        self.full[new] = self.measure([divmod(cell, self.shape[1]) for cell in new])
        self.known[new] = True
        self.loss[new] = self.full[new]
        self.error[new] = 0.0
        if self.two_levels:
            self.ask_small(cell for cell in new if not self.known_small[cell])

    def ask_small(self, cells: Iterable[int]) -> None:
        """Measure cells on few samples."""
        new = list(cells)
        if new and self.measure_small is not None:
            self.small[new] = self.measure_small([divmod(cell, self.shape[1]) for cell in new])
            self.known_small[new] = True

    def refine(self, max_cost: float) -> bool:
        """Measure until all estimates are within the tolerance; whether they are."""
        while True:
            finite, distance = self._nearest()
            small, full = self._fill(finite)
            border = self._border(finite, distance)
            if not (small or full or border):
                return True
            if self.cost >= max_cost:
                return False
            if small and not border:
                self.ask_small(small)
                # What overflows on few samples does so on all: that is for the border.
                self.ask(cell for cell in small if not np.isfinite(self.small[cell]))
            else:
                self.ask(border or full)

    def _nearest(self) -> tuple[Array, Array]:
        """Whether the measured cell nearest to each is finite, and how far away it is."""
        measured = np.flatnonzero(self.known)
        if np.isfinite(self.full[measured]).all():
            return np.ones(len(self.full), bool), np.zeros(len(self.full))
        gaps = np.abs(self.cells[:, None] - self.cells[measured][None]).max(axis=2)
        nearest = np.argmin(gaps, axis=1)
        return np.isfinite(self.full[measured[nearest]]), gaps.min(axis=1)

    def _border(self, finite: Array, distance: Array) -> list[int]:
        """Cells to measure between finite and non-finite ones: halfway first, side by side last.

        Until, of two neighbours that differ, both are measured.
        """
        padded = np.pad(finite.reshape(self.shape), 1, mode="edge")
        ny, nx = self.shape
        windows = [padded[i : i + ny, j : j + nx] for i in range(3) for j in range(3)]
        differs = (np.any(windows, axis=0) & ~np.all(windows, axis=0)).ravel() & ~self.known
        chosen: list[int] = []
        candidates = np.flatnonzero(differs)
        for cell in candidates[np.argsort(-distance[candidates], kind="stable")]:
            gaps = np.abs(self.cells[chosen] - self.cells[cell]).max(axis=1)
            if not (gaps < distance[cell]).any():
                chosen.append(int(cell))
        return chosen

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
        heights = np.arcsinh(self.full / self.floor)
        if self.two_levels:
            small_heights = np.arcsinh(self.small / self.floor)
            small = self._small_spline(small_heights)
            full = self._spline("full", data, heights - small_heights)
            filled, variance = small.values + full.values, small.deviation**2
        else:
            full = self._spline("full", data, heights)
            filled, variance = full.values, np.zeros(len(heights))
        stated = SAFETY * self.margin * np.sqrt(variance + full.deviation**2) + ROUNDING
        with np.errstate(over="ignore"):
            size = np.sinh(np.abs(filled))
            room = np.arcsinh(size + self.tolerance * np.maximum(size, 1)) - np.abs(filled)
            self.loss[wanted] = (self.floor * np.sinh(filled))[wanted]
            self.error[wanted] = (self.floor * (np.sinh(np.abs(filled) + stated) - size))[wanted]
        if self.preview is not None:
            self.preview(self.loss.reshape(self.shape).copy(), self.known.reshape(self.shape).copy())
        limit = np.where(wanted, room / (SAFETY * self.margin), np.inf)
        if self.two_levels:
            few = np.where(self.known_small, np.inf, SMALL_SHARE * limit)
            cells = small.rank(few, _batch(self.known_small))
            if cells:
                return cells, []
            limit = np.sqrt(np.maximum(limit**2 - variance, (SMALL_SHARE * limit) ** 2))
        return [], full.rank(limit, _batch(self.known))

    def _small_spline(self, heights: Array) -> Spline:
        """Through the small losses; laid anew when a tenth more are there, as after a batch."""
        data = self.known_small & np.isfinite(self.small)
        if self.small_spline is None or data.sum() >= 1.1 * len(self.small_spline.residuals):
            self.small_spline = self._spline("small", data, heights)
        return self.small_spline

    def _spline(self, role: str, data: Array, heights: Array) -> Spline:
        """Through some cells; its order is chosen again when they are half as many more."""
        n = int(data.sum())
        order, chosen_at = self.orders.get(role, (None, 0))
        if n >= 1.5 * chosen_at:
            order, chosen_at = None, n
        spline = fit(self.grid[data], heights[data], self.grid, self.tolerance, order)
        self.orders[role] = (spline.order, chosen_at)
        return spline

    def check(self, cells: Sequence[int]) -> Check:
        """Measure filled cells and compare."""
        chosen = list(cells)
        filled, stated = self.loss[chosen], self.error[chosen]
        self.ask(chosen)
        measured = self.full[chosen]
        both = np.isfinite(filled) & np.isfinite(measured)
        one = np.isfinite(filled) != np.isfinite(measured)
        error = np.where(one, np.inf, 0.0)
        error[both] = np.abs(filled - measured)[both]
        relative = error.copy()
        relative[both] /= np.maximum(np.abs(measured), self.floor)[both]
        ratio = np.divide(error, stated, out=np.zeros_like(error), where=both)
        num_within = int(np.sum(relative <= self.tolerance))
        return Check(
            num_cells=len(chosen),
            worst_error=float(relative.max()),
            worst_ratio=float(np.where(one, np.inf, ratio).max()),
            share_within=num_within / len(chosen),
            least_share=_least_share(num_within, len(chosen)),
        )

    def enlarge(self, check: Check) -> bool:
        """State no less than what a check found; whether that is still within the tolerance."""
        factor = max(1.0, check.worst_ratio) if math.isfinite(check.worst_ratio) else 1.0
        self.margin *= factor
        self.error *= factor
        allowed = self.tolerance * np.maximum(np.abs(self.loss), self.floor)
        return not (self.error > allowed)[~self.known].any()

    def result(self, check: Check | None, num_checks: int, *, converged: bool) -> Filled:
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


def _batch(known: Array) -> int:
    """Cells of a batch, a share of what there is: few enough that the next batch profits."""
    return max(4, int(known.sum()) // BATCH)


def _least_share(num_within: int, num_cells: int) -> float:
    """p of which `num_within` or more of `num_cells` have a chance of 5 % (Clopper & Pearson)."""
    low, high = 0.0, num_within / num_cells
    for _ in range(60):
        p = (low + high) / 2
        tail = sum(
            math.comb(num_cells, k) * p**k * (1 - p) ** (num_cells - k)
            for k in range(num_within, num_cells + 1)
        )
        low, high = (p, high) if tail < 1 - CONFIDENCE else (low, p)
    return low
