"""Losses on a plane (Li et al. 2018), measured cell by cell or filled in to a tolerance."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray as Array

from lgo_cli.landscape.adaptive import Filled, fill_surface
from lgo_cli.landscape.batchnorm import is_frozen, statistics_at
from lgo_cli.landscape.cells import Cells
from lgo_cli.progress import SILENT, Progress
from lgo_cli.results import RecomputedCell
from lgo_cli.seeding import derive_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lgo_cli.landscape.adaptive import Preview
    from lgo_cli.landscape.evaluator import Evaluator
    from lgo_cli.samples import Evaluation

SMALL_SHARE = 16
"""The few samples of an adaptive surface are the first sixteenth of them."""

LONG_S = 60.0
"""A surface that takes longer is worth a hint."""


@dataclass(frozen=True)
class SelfCheck:
    """Evidence that a surface is what it says.

    Attributes:
        center_difference: L at (0, 0) by the way of every cell, less the untouched model's loss.
        fast_path_difference: Largest relative difference of the fast path from the model's own pass
            at the centre and two corners, on the first few samples.
        recomputed_cell: A cell off the centre that the seed chooses.
        num_nonfinite: Cells that are NaN or infinite; cells among such that were not measured too.
    """

    center_difference: float
    fast_path_difference: float
    recomputed_cell: RecomputedCell
    num_nonfinite: int


@dataclass(frozen=True)
class Surface:
    """Losses at θ + x[j]·d₀ + y[i]·d₁.

    Attributes:
        x: [nx].
        y: [ny].
        loss: Mean loss [ny, nx]; non-finite cells stay so.
        standard_error: Of the mean loss [ny, nx]; NaN where it was not measured.
        accuracy: Fraction [ny, nx]; NaN where it was not measured.
        measured: [ny, nx], bool.
        error_estimate: Of the loss [ny, nx], 0 where measured.
        loss_at_center: Loss at (0, 0): the untouched model's, as its batch-norm policy has it.
        accuracy_at_center: Accuracy there.
        loss_min: Smallest loss of a finite cell; `None` if there is none.
        loss_max: Largest loss of a finite cell; `None` if there is none.
        num_cells: nx·ny.
        num_measured: Cells measured on all samples, whenever that was.
        filled: How the others were filled in; `None` if every cell was measured.
        plan: Which path the cells took, and why.
        is_fast: Whether that is not the model's own pass.
        self_check: Evidence that the surface is what it says.
    """

    x: Array
    y: Array
    loss: Array
    standard_error: Array
    accuracy: Array
    measured: Array
    error_estimate: Array
    loss_at_center: float
    accuracy_at_center: float
    loss_min: float | None
    loss_max: float | None
    num_cells: int
    num_measured: int
    filled: Filled | None
    plan: str
    is_fast: bool
    self_check: SelfCheck


def measure_surface(
    evaluator: Evaluator,
    x: Sequence[float],
    y: Sequence[float],
    *,
    tolerance: float | None = None,
    max_cells: int | None = None,
    cells: Cells | None = None,
    seed: int = 0,
    preview: Preview | None = None,
    progress: Progress = SILENT,
) -> Surface:
    """Measure the cells of a grid on a plane: all, or as many as a tolerance needs.

    Each cell's parameters are computed from the centre, never by steps from a neighbour. The cell
    at (0, 0), if there is one, is the untouched model.

    Args:
        evaluator: Of the plane's two directions, on its own samples or on others.
        x: Coordinates along the first direction [nx], ascending.
        y: Along the second [ny].
        tolerance: Relative error of the filled cells (`fill_surface`); `None` measures all.
        max_cells: To spend on it at most, as `Filled.cost` counts; see `fill_surface`.
        cells: What was measured before, and is not measured again.
        seed: Which cells are checked.
        preview: Shown losses [ny, nx], NaN or filled where not measured, and the mask of measured
            ones, now and then.
        progress: Told of each cell.

    Cost: at most a fast pass over the probe set for each cell, and about two plain passes for the
    self-check.
    """
    cells = Cells() if cells is None else cells
    difference = verify_on(evaluator, x, y)
    grid = _Grid(evaluator, x, y, cells)
    filled = None
    if tolerance is None:
        _measure_all(grid, preview, progress)
    else:
        filled = _fill(grid, tolerance, max_cells, seed, preview, progress)
    loss = grid.values[0] if filled is None else filled.loss
    finite = loss[np.isfinite(loss)]
    return Surface(
        x=np.array(x),
        y=np.array(y),
        loss=loss,
        standard_error=grid.values[1],
        accuracy=grid.values[2],
        measured=grid.visited,
        error_estimate=np.zeros_like(loss) if filled is None else filled.error_estimate,
        loss_at_center=grid.center.loss,
        accuracy_at_center=grid.center.accuracy,
        loss_min=float(finite.min()) if len(finite) else None,
        loss_max=float(finite.max()) if len(finite) else None,
        num_cells=loss.size,
        num_measured=int(grid.visited.sum()),
        filled=filled,
        plan=evaluator.plan,
        is_fast=evaluator.is_fast,
        self_check=SelfCheck(
            center_difference=evaluator(0.0, 0.0).loss - grid.center.loss,
            fast_path_difference=difference,
            recomputed_cell=_recompute(grid, seed),
            num_nonfinite=loss.size - len(finite),
        ),
    )


def verify_on(evaluator: Evaluator, x: Sequence[float], y: Sequence[float]) -> float:
    """Compare an evaluator with the model at the centre and two corners of a grid."""
    return evaluator.verify([(0.0, 0.0), (x[0], y[0]), (x[-1], y[-1])])


def measure_share(
    evaluator: Evaluator,
    x: Sequence[float],
    y: Sequence[float],
    cells: Cells,
    *,
    index: int,
    count: int,
    progress: Progress = SILENT,
) -> None:
    """Measure every `count`-th cell of a grid, from cell `index` on, into `cells`.

    Args:
        evaluator: Of the plane's two directions.
        x: Coordinates along the first direction [nx], ascending.
        y: Along the second [ny].
        cells: Where they go.
        index: In [0, count).
        count: Number of shares; together they are the grid.
        progress: Told of each cell.
    """
    verify_on(evaluator, x, y)
    grid = _Grid(evaluator, x, y, cells)
    mine = [cell for level in _coarse_to_fine(grid.shape) for cell in level][index::count]
    with progress.task(f"shard {index}/{count}", len(mine), "cells") as task:
        for i, j in mine:
            task.advance(1, loss=grid.measure(i, j).loss)


def is_complete(x: Sequence[float], y: Sequence[float], num_samples: int, cells: Cells) -> bool:
    """Whether nothing of a grid is left to measure on so many samples."""
    return all(
        (x_j, y_i, num_samples) in cells.known for y_i in y for x_j in x if (x_j, y_i) != (0.0, 0.0)
    )


class _Grid:
    """Cells by row and column."""

    def __init__(
        self, evaluator: Evaluator, x: Sequence[float], y: Sequence[float], cells: Cells
    ) -> None:
        self.evaluator = evaluator
        self.x, self.y, self.cells = x, y, cells
        self.shape = (len(y), len(x))
        self.values = np.full((3, *self.shape), np.nan)
        self.visited = np.zeros(self.shape, dtype=bool)
        objective = evaluator.objective
        own = evaluator.samples is objective.samples
        self.title = "surface" if own else "test surface"
        frozen = is_frozen(evaluator.batchnorm)
        self.center = objective.center if own and frozen else evaluator.reference(0.0, 0.0)

    def measure(self, i: int, j: int) -> Evaluation:
        """The cell in row i and column j, on all samples."""
        x, y = self.x[j], self.y[i]
        center = x == 0 and y == 0
        cell = self.center if center else self.cells.measure(self.evaluator, x, y)
        self.values[:, i, j] = cell.loss, cell.standard_error, cell.accuracy
        self.visited[i, j] = True
        return cell


def _coarse_to_fine(shape: tuple[int, int]) -> Iterator[list[tuple[int, int]]]:
    """All cells, every sixteenth row and column first, so that a picture sharpens."""
    ny, nx = shape
    seen: set[tuple[int, int]] = set()
    for stride in (16, 8, 4, 2, 1):
        level = [(i, j) for i in range(0, ny, stride) for j in range(0, nx, stride)]
        yield [cell for cell in level if cell not in seen]
        seen.update(level)


def _measure_all(grid: _Grid, preview: Preview | None, progress: Progress) -> None:
    num_cells = math.prod(grid.shape)
    started, before = time.monotonic(), grid.cells.num_measured
    hinted = False
    with progress.task(grid.title, num_cells, "cells") as task:
        for level in _coarse_to_fine(grid.shape):
            for i, j in level:
                task.advance(1, loss=grid.measure(i, j).loss)
            elapsed, done = time.monotonic() - started, grid.cells.num_measured - before
            left = num_cells - int(grid.visited.sum())
            if not hinted and done >= 9 and elapsed / done * left > LONG_S:
                hinted = True
                minutes = elapsed / done * left / 60
                progress.note(
                    f"hint: the other {left:,} cells take about {minutes:.0f} min; "
                    "--tolerance 0.01 measures a part, often a small one, and fills in the rest "
                    "to 1 %"
                )
            if preview is not None and left:
                preview(grid.values[0].copy(), grid.visited.copy())


def _fill(
    grid: _Grid,
    tolerance: float,
    max_cells: int | None,
    seed: int,
    preview: Preview | None,
    progress: Progress,
) -> Filled:
    samples = grid.evaluator.samples
    few = None
    if len(samples) >= 16 * SMALL_SHARE:
        few = grid.evaluator.on(samples.head(len(samples) // SMALL_SHARE))
    with progress.task(grid.title, None, "cells") as task:

        def measure(wanted: Sequence[tuple[int, int]]) -> list[float]:
            losses = []
            for i, j in wanted:
                losses.append(grid.measure(i, j).loss)
                task.advance(1, loss=losses[-1])
            return losses

        def measure_few(wanted: Sequence[tuple[int, int]]) -> list[float]:
            assert few is not None
            losses = []
            for i, j in wanted:
                losses.append(grid.cells.measure(few, grid.x[j], grid.y[i]).loss)
                task.advance(0, few=losses[-1])
            return losses

        return fill_surface(
            grid.x,
            grid.y,
            measure,
            tolerance=tolerance,
            measure_small=None if few is None else measure_few,
            small_cost=1 / SMALL_SHARE,
            max_cost=math.inf if max_cells is None else max_cells,
            seed=seed,
            preview=preview,
        )


def _recompute(grid: _Grid, seed: int) -> RecomputedCell:
    """Measure one cell on fresh parameters, by plain arithmetic and without the buffer's code."""
    evaluator = grid.evaluator
    objective, x, y = evaluator.objective, grid.x, grid.y
    # At the centre there would be nothing to check.
    cells = [(i, j) for i, j in np.argwhere(grid.visited).tolist() if (x[j], y[i]) != (0, 0)]
    i, j = cells[derive_seed(seed, "contour", "recompute") % len(cells)]
    views = [parameter.data for parameter in objective.parameters]
    split = objective.layout.split
    centers, firsts, seconds = (split(v) for v in (objective.theta, *evaluator.directions))
    try:
        for parameter, center, d0, d1 in zip(
            objective.parameters, centers, firsts, seconds, strict=True
        ):
            parameter.data = center + x[j] * d0 + y[i] * d1
        with statistics_at(evaluator.batchnorm, x[j], y[i]):
            again = objective.evaluate(evaluator.samples).loss
    finally:
        for parameter, view in zip(objective.parameters, views, strict=True):
            parameter.data = view
    objective.move(objective.theta)
    difference = relative_difference(float(grid.values[0, i, j]), again)
    return RecomputedCell(row=i, column=j, difference=difference)


def relative_difference(a: float, b: float) -> float:
    """|a − b| / max(|a|, |b|); see `RecomputedCell`."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))
