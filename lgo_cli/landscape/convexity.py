"""How convex a surface is where it looks so: both ends of the Hessian's spectrum at each cell.

Li et al. 2018, section 6: a plane shows two curvatures of P, and a random one their mean, so that a
bowl may be a picture of a saddle (theory.md, section 30).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lgo_cli.curvature.eigenpairs import Eigenpairs, extreme_eigenpairs
from lgo_cli.curvature.folding import Rewritten, fold
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.curvature.search import Wanted
from lgo_cli.errors import NumericsError
from lgo_cli.landscape.batchnorm import statistics_at
from lgo_cli.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from lgo_cli.landscape.batchnorm import BatchNorm
    from lgo_cli.objective import Objective

Array = np.ndarray[Any, Any]


SHARE = 0.1
"""Share of the tolerance to which error estimates must come down. They do not know of an eigenvalue
at the dense end that no step has shown yet, which a loose tolerance believes too early after a warm
start: with the whole of it 5 ratios in 130 were off by more than the tolerance of 0.01, by up to
0.03. With a tenth of it, for about a half more products, one in 180 was off by 0.005 and the others
by less than 0.0002."""


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
        largest_residual_bound: An eigenvalue of the Hessian lies within it of `largest` [ny, nx].
        smallest_residual_bound: Likewise of `smallest`.
        largest_error_estimate: The error of `largest` if its neighbours are what they seem.
        smallest_error_estimate: Likewise of `smallest`.
        converged: Whether both error estimates are within a tenth of rtol·max |λ| [ny, nx].
        num_matvecs: Products spent on each cell [ny, nx].
        rtol: The tolerance.
        warnings: What a reader must know.
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
    rtol: float
    warnings: tuple[str, ...] = ()

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


def convexity_map(
    objective: Objective,
    directions: Tensor,
    x: Sequence[float],
    y: Sequence[float],
    *,
    seed: int = 0,
    rtol: float = 1e-2,
    batchnorm: BatchNorm | None = None,
    max_matvecs: int | None = None,
    memory_bytes: int | None = None,
    progress: Progress = SILENT,
) -> Convexity:
    """Find λmin and λmax of the Hessian at each cell of a grid.

    Cells are visited in serpentine order, so that each is a neighbour of the one before, and begin
    from its eigenvectors. The tolerance is relative to the cell's max |λ| for both ends, which is
    what the ratio asks for: λmin sits where eigenvalues crowd, and where it is small a share of
    itself would cost many more products.

    Args:
        objective: Entered; left at its centre.
        directions: d₀ and d₁ [2, P].
        x: Coordinates of the columns.
        y: Coordinates of the rows.
        seed: Of the starting vectors.
        rtol: Error of either eigenvalue that is fine, relative to max |λ|; see `SHARE`.
        batchnorm: Whose statistics; the objective's own by default. Those of `batch` are functions
            of θ and part of the Hessian, those of the other policies constants.
        max_matvecs: Products to spend on a cell at most.
        memory_bytes: Of a cell's graphs, as `HessianOperator` has it.
        progress: Told of each cell.

    Raises:
        UsageError: if the model has one parameter.
    """
    ny, nx = len(y), len(x)
    loss = np.full((ny, nx), math.nan)
    found = np.full((3, 2, ny, nx), math.nan)  # values, bounds and estimates of both ends
    converged = np.zeros((ny, nx), dtype=bool)
    num_matvecs = np.zeros((ny, nx), dtype=np.int64)
    wanted = Wanted(1, 1, rtol=SHARE * rtol, floor=1.0, seed=seed, max_matvecs=max_matvecs)
    objective.move(objective.theta)
    with statistics_at(batchnorm, 0.0, 0.0):
        model = fold(objective)  # the same function of any parameters
    with progress.task("convexity", nx * ny, "cells") as task:
        for cell in _serpentine(ny, nx):
            x_i, y_i = x[cell[1]], y[cell[0]]
            objective.displace((x_i, directions[0]), (y_i, directions[1]))
            with statistics_at(batchnorm, x_i, y_i):
                loss[cell] = objective.evaluate().loss
                if math.isfinite(loss[cell]):
                    pairs, num_matvecs[cell] = _eigenpairs(objective, model, wanted, memory_bytes)
                    if pairs is not None:
                        evidence = (pairs.values, pairs.residual_bounds, pairs.error_estimates)
                        found[:, :, *cell] = torch.stack(evidence).numpy()
                        converged[cell] = pairs.converged
                        wanted = replace(wanted, warm_start=pairs.eigenvectors)
            task.advance(1, loss=float(loss[cell]))
    objective.move(objective.theta)
    values, bounds, estimates = found
    return Convexity(
        x=np.array(x),
        y=np.array(y),
        loss=loss,
        largest=values[0],
        smallest=values[1],
        largest_residual_bound=bounds[0],
        smallest_residual_bound=bounds[1],
        largest_error_estimate=estimates[0],
        smallest_error_estimate=estimates[1],
        converged=converged,
        num_matvecs=num_matvecs,
        rtol=rtol,
        warnings=tuple(_warnings(loss, values[0], converged)),
    )


def _eigenpairs(
    objective: Objective, model: Rewritten, wanted: Wanted, memory_bytes: int | None
) -> tuple[Eigenpairs | None, int]:
    """Both ends where the objective stands, `None` if a product is not finite; and products spent.

    Graphs are those of one point: each cell has an operator of its own.
    """
    operator = HessianOperator(objective, model=model, memory_bytes=memory_bytes)
    try:
        pairs = extreme_eigenpairs(operator, wanted)
    except NumericsError:
        return None, operator.num_matvecs
    return replace(pairs, process=None), operator.num_matvecs  # the process holds the graphs


def _serpentine(num_rows: int, num_columns: int) -> Iterator[tuple[int, int]]:
    """All cells (row, column), each beside the one before."""
    for row in range(num_rows):
        columns = range(num_columns)
        for column in columns if row % 2 == 0 else reversed(columns):
            yield row, column


def _warnings(loss: Array, largest: Array, converged: Array) -> Iterator[str]:
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
            "eigenvalues did not converge"
        )
