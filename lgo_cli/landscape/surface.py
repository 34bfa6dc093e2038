"""Losses on a plane (Li et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli.objective import evaluate_model
from lgo_cli.progress import SILENT, Progress
from lgo_cli.seeding import derive_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgo_cli.landscape.directions import Plane
    from lgo_cli.objective import Objective

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RecomputedCell:
    """One cell measured a second time, by the naive way.

    Attributes:
        row: i, of y.
        column: j, of x.
        difference: |a − b| / max(|a|, |b|) of its two losses; 0 if both are the same non-finite
            value, infinite if only one is finite.
    """

    row: int
    column: int
    difference: float


@dataclass(frozen=True)
class SelfCheck:
    """Evidence that a surface is what it says.

    Attributes:
        center_difference: L at (0, 0) by the way of every cell, less the untouched model's loss.
        axis_cosine: Of the angle between the directions.
        recomputed_cell: A cell off the centre that the seed chooses.
        num_nonfinite: Cells that are NaN or infinite.
    """

    center_difference: float
    axis_cosine: float
    recomputed_cell: RecomputedCell
    num_nonfinite: int


@dataclass(frozen=True)
class Surface:
    """Losses at θ + x[j]·d₀ + y[i]·d₁.

    Attributes:
        x: [nx].
        y: [ny].
        loss: Mean loss [ny, nx]; non-finite cells stay so.
        standard_error: Of it [ny, nx].
        accuracy: Fraction [ny, nx].
        directions: [2, P], the very bits used.
        loss_at_center: The untouched model's loss.
        loss_min: Over finite cells; `None` if there are none.
        loss_max: Likewise.
        num_cells: nx·ny.
        num_measured: How many were measured rather than filled in.
        self_check: See there.
    """

    x: Array
    y: Array
    loss: Array
    standard_error: Array
    accuracy: Array
    directions: Array
    loss_at_center: float
    loss_min: float | None
    loss_max: float | None
    num_cells: int
    num_measured: int
    self_check: SelfCheck


def measure_surface(
    objective: Objective,
    plane: Plane,
    x: Sequence[float],
    y: Sequence[float],
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Surface:
    """Measure every cell of a grid on a plane.

    Each cell's parameters are computed from the centre, never by steps from a neighbour. The cell
    at (0, 0), if there is one, is the untouched model.

    Args:
        objective: Entered.
        plane: Its origin is the objective's centre.
        x: Coordinates along the first direction [nx].
        y: Along the second [ny].
        seed: Which cell is recomputed.
        progress: Told of each cell.

    Cost: a pass over the probe set for each cell, and two for the self-check.
    """
    first, second = plane.directions
    values = np.empty((3, len(y), len(x)))
    with progress.task("surface", len(x) * len(y), "cells") as task:
        for i, y_i in enumerate(y):
            for j, x_j in enumerate(x):
                if x_j == 0 and y_i == 0:
                    cell = objective.center
                else:
                    objective.displace((x_j, first), (y_i, second))
                    cell = objective.evaluate()
                values[:, i, j] = cell.loss, cell.standard_error, cell.accuracy
                task.advance(1, loss=cell.loss)
    objective.displace((0.0, first), (0.0, second))
    center_difference = objective.evaluate().loss - objective.center.loss
    loss = values[0]
    finite = loss[np.isfinite(loss)]
    return Surface(
        x=np.array(x),
        y=np.array(y),
        loss=loss,
        standard_error=values[1],
        accuracy=values[2],
        directions=plane.directions.cpu().numpy(),
        loss_at_center=objective.center.loss,
        loss_min=float(finite.min()) if len(finite) else None,
        loss_max=float(finite.max()) if len(finite) else None,
        num_cells=loss.size,
        num_measured=loss.size,
        self_check=SelfCheck(
            center_difference=center_difference,
            axis_cosine=plane.axis_cosine,
            recomputed_cell=_recompute(objective, plane, x, y, loss, seed),
            num_nonfinite=loss.size - len(finite),
        ),
    )


def _recompute(
    objective: Objective,
    plane: Plane,
    x: Sequence[float],
    y: Sequence[float],
    loss: Array,
    seed: int,
) -> RecomputedCell:
    """Measure one cell on fresh parameters, by plain arithmetic and without the buffer's code."""
    # At the centre there would be nothing to check.
    cells = [(i, j) for i, y_i in enumerate(y) for j, x_j in enumerate(x) if (x_j, y_i) != (0, 0)]
    i, j = cells[derive_seed(seed, "contour", "recompute") % len(cells)]
    views = [parameter.data for parameter in objective.parameters]
    split = objective.layout.split
    centers, firsts, seconds = (split(v) for v in (objective.theta, *plane.directions))
    try:
        for parameter, center, d0, d1 in zip(
            objective.parameters, centers, firsts, seconds, strict=True
        ):
            parameter.data = center + x[j] * d0 + y[i] * d1
        again = evaluate_model(
            objective.model, objective.samples, objective.loss_function, objective.micro_batch_size
        ).loss
    finally:
        for parameter, view in zip(objective.parameters, views, strict=True):
            parameter.data = view
    objective.move(objective.theta)
    return RecomputedCell(i, j, relative_difference(float(loss[i, j]), again))


def relative_difference(a: float, b: float) -> float:
    """|a − b| / max(|a|, |b|); see `RecomputedCell`."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))
