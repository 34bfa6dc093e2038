"""How convex a surface is where it looks so: both ends of the Hessian's spectrum at each cell.

Li et al. 2018, section 6: a plane shows two curvatures of P, and a random one their mean, so that a
bowl may be a picture of a saddle (theory.md, section 30).
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy import ndarray as Array

from lgo_cli.curvature.audit import measure_rounding
from lgo_cli.curvature.eigenpairs import Eigenpairs, extreme_eigenpairs
from lgo_cli.curvature.folding import Rewritten, fold
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.curvature.search import Wanted
from lgo_cli.errors import NumericsError
from lgo_cli.landscape.batchnorm import statistics_at
from lgo_cli.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from lgo_cli.landscape.batchnorm import BatchNorm
    from lgo_cli.objective import Objective


SHARE = 0.1
"""Share of the tolerance to which error estimates must come down. They do not know of an eigenvalue
at the dense end that no step has shown yet, which a loose tolerance believes too early after a warm
start: with the whole of it 5 ratios in 130 were off by more than the tolerance of 0.01, by up to
0.03. With a tenth of it, for about a half more products, one in 180 was off by 0.005 and the others
by less than 0.0002."""


NUM_VALUES = 10
"""What is found at a cell; see `Finished`."""


@dataclass(frozen=True)
class Convexity:
    """The Hessian's extreme eigenvalues over a plane θ + x·d₀ + y·d₁; row y, column x.

    NaN where the loss, or a product with the Hessian, is not finite.

    Attributes:
        x: Coordinates [nx], ascending.
        y: Coordinates [ny].
        loss: Mean loss [ny, nx], on the samples of the Hessian.
        largest: λmax [ny, nx], the algebraically largest eigenvalue.
        smallest: λmin [ny, nx], the algebraically smallest.
        largest_residual_bound: An eigenvalue of the Hessian lies within it of `largest` [ny, nx],
            the rounding of float32 products being allowed for as it was measured at the cell.
        smallest_residual_bound: The bound of `smallest` [ny, nx].
        largest_error_estimate: The error of `largest` if its neighbours are what they seem.
        smallest_error_estimate: The error estimate of `smallest`.
        converged: Whether both error estimates are within `SHARE` of the map's rtol·max |λ|
            [ny, nx].
        num_matvecs: Products spent on each cell [ny, nx].
        warnings: What a reader must know.
        complaints: Cells that are NaN, and why, and cells that did not converge.
    """

    x: Array
    y: Array
    loss: Array
    largest: Array
    smallest: Array
    largest_residual_bound: Array
    smallest_residual_bound: Array
    largest_error_estimate: Array
    smallest_error_estimate: Array
    converged: Array
    num_matvecs: Array
    warnings: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()

    @property
    def ratio(self) -> Array:
        """|λmin / λmax| [ny, nx], near zero where the loss is nearly convex; NaN where λmax is 0.

        Only the sign of `smallest` tells a saddle from a loss that is strictly convex.
        """
        largest = np.where(self.largest == 0, math.nan, self.largest)
        ratio: Array = np.abs(self.smallest / largest)
        return ratio

    @property
    def ratio_error(self) -> Array:
        """Error estimate of `ratio` [ny, nx], to first order: (δmin + ratio·δmax) / |λmax|."""
        largest = np.where(self.largest == 0, math.nan, np.abs(self.largest))
        errors = self.smallest_error_estimate + self.ratio * self.largest_error_estimate
        error: Array = errors / largest
        return error


@dataclass(frozen=True)
class Finished:
    """The cells of a map that are done: the first of its order, and what the next begins from.

    Attributes:
        cells: [n, 10], float64: loss; largest and smallest eigenvalue, their residual bounds, their
            error estimates; whether they converged; products spent; units of rounding measured,
            NaN if the model does not run in float64.
        warm_start: Eigenvectors [2, P] of the last cell that has any; `None` before the first such
            cell, and when no cell is left to begin.
    """

    cells: Array
    warm_start: Tensor | None = None


def convexity_map(
    objective: Objective,
    directions: Tensor,
    x: Sequence[float],
    y: Sequence[float],
    *,
    seed: int = 0,
    rtol: float = 1e-2,
    batchnorm: BatchNorm | None = None,
    memory_bytes: int | None = None,
    finished: Finished | None = None,
    keep: Callable[[Finished], None] | None = None,
    progress: Progress = SILENT,
) -> Convexity:
    """Find λmin and λmax of the Hessian at each cell of a grid.

    Cells are visited in serpentine order, and each begins from the eigenvectors of the neighbour
    before it. Both tolerances are relative to the cell's max |λ|, as the ratio needs: a share of a
    small λmin, which lies among crowded eigenvalues, would cost many more products.

    Args:
        objective: Entered; left at its centre.
        directions: d₀ and d₁ [2, P].
        x: Coordinates of the columns.
        y: Coordinates of the rows.
        seed: Of the starting vectors.
        rtol: Error of either eigenvalue that is fine, relative to max |λ|; see `SHARE`.
        batchnorm: Whose statistics; the objective's own by default. Those of `batch` are functions
            of θ and part of the Hessian, those of the other policies constants.
        memory_bytes: Of a cell's graphs, as `HessianOperator` has it.
        finished: Cells of an earlier call with equal arguments, to go on behind them: every bit is
            then that of an undisturbed call.
        keep: Given what is finished after each cell.
        progress: Told of each cell.

    Raises:
        UsageError: if the model has one parameter.

    Cost: see theory.md, section 30. Measuring rounding, seven products on a part of a micro-batch,
    takes about 5 % of a cell's time and is not counted.
    """
    order = list(_serpentine(len(y), len(x)))
    finished = finished or Finished(np.empty((0, NUM_VALUES)))
    wanted = Wanted(1, 1, rtol=SHARE * rtol, floor_share=1.0, seed=seed)
    objective.move(objective.theta)
    with statistics_at(batchnorm, 0.0, 0.0):
        model = fold(objective)  # the same function of any parameters
    with progress.task("convexity", len(order), "cells") as task:
        task.advance(len(finished.cells))
        for row, column in order[len(finished.cells) :]:
            x_i, y_i = x[column], y[row]
            objective.displace((x_i, directions[0]), (y_i, directions[1]))
            values, warm_start = np.full(NUM_VALUES, math.nan), finished.warm_start
            values[7:] = 0
            with statistics_at(batchnorm, x_i, y_i):
                values[0] = objective.evaluate().loss
                if math.isfinite(values[0]):
                    wanted = replace(wanted, warm_start=warm_start)
                    pairs, *values[8:] = _eigenpairs(objective, model, wanted, memory_bytes)
                    if pairs is not None:
                        evidence = (pairs.values, pairs.residual_bounds, pairs.error_estimates)
                        values[1:7] = torch.stack(evidence).flatten().numpy()
                        values[7] = pairs.converged
                        warm_start = pairs.eigenvectors
            cells = np.vstack([finished.cells, values])
            finished = Finished(cells, warm_start if len(cells) < len(order) else None)
            if keep is not None:
                keep(finished)
            task.advance(1, loss=float(values[0]))
    objective.move(objective.theta)
    found = np.empty((NUM_VALUES, len(y), len(x)))
    found[:, *np.transpose(order)] = finished.cells.T
    loss, largest, smallest, *bounds = found[:7]
    converged = found[7].astype(bool)
    return Convexity(
        x=np.array(x),
        y=np.array(y),
        loss=loss,
        largest=largest,
        smallest=smallest,
        largest_residual_bound=bounds[0],
        smallest_residual_bound=bounds[1],
        largest_error_estimate=bounds[2],
        smallest_error_estimate=bounds[3],
        converged=converged,
        num_matvecs=found[8].astype(np.int64),
        warnings=tuple(_warnings(largest, found[9])),
        complaints=tuple(_complaints(loss, largest, converged, objective.dtype)),
    )


def _eigenpairs(
    objective: Objective, model: Rewritten, wanted: Wanted, memory_bytes: int | None
) -> tuple[Eigenpairs | None, int, float]:
    """Both ends where the objective stands, `None` if a product is not finite.

    Graphs are those of one point: each cell has an operator of its own. Its rounding is measured
    there too: in units of eps·‖H‖, what a model amplifies within itself grows with the weights, and
    at far cells of a small network's plane was a hundred times the centre's.

    Returns:
        The pairs, products spent, and units of rounding measured (NaN: not to be had).
    """
    units = measure_rounding(
        objective, HessianOperator, model, difference=False, seed=wanted.seed
    ).units
    operator = HessianOperator(objective, model=model, memory_bytes=memory_bytes)
    operator.measured_rounding = units
    pairs: Eigenpairs | None = None
    with suppress(NumericsError):
        pairs = extreme_eigenpairs(operator, wanted)
        pairs = replace(pairs, process=None)  # which holds the graphs
    return pairs, operator.num_matvecs, math.nan if units is None else units


def _serpentine(num_rows: int, num_columns: int) -> Iterator[tuple[int, int]]:
    """All cells (row, column), each beside the one before."""
    for row in range(num_rows):
        columns = range(num_columns)
        for column in columns if row % 2 == 0 else reversed(columns):
            yield row, column


def _warnings(largest: Array, units: Array) -> Iterator[str]:
    if number := np.sum(np.isnan(units) & np.isfinite(largest)):
        yield (
            f"residual bounds at {number} of {units.size} cells of the convexity map allow for the "
            "rounding of outputs only: the model does not run in float64"
        )


def _complaints(loss: Array, largest: Array, converged: Array, dtype: torch.dtype) -> Iterator[str]:
    finite = np.isfinite(loss)
    measured = np.isfinite(largest)
    if not finite.all():
        yield (
            f"the loss is not finite at {np.sum(~finite)} of {loss.size} cells of the convexity map"
        )
    if (finite & ~measured).any():
        yield (
            f"at {np.sum(finite & ~measured)} cells of the convexity map the loss is finite and "
            "products with its Hessian are not"
        )
    if (measured & ~converged).any():
        yield (
            f"at {np.sum(measured & ~converged)} of {loss.size} cells of the convexity map the "
            "eigenvalues did not converge: convexity_ratio_error says how far off they may be"
            + ("; --dtype float64 rounds less" if dtype == torch.float32 else "")
        )
