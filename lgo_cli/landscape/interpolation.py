"""Losses along a straight line (Goodfellow et al. 2015)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli.config import linspace
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.objective import Evaluation
from lgo_cli.progress import SILENT, Progress
from lgo_cli.vectors import dot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lgo_cli.config import Range
    from lgo_cli.objective import Objective, Samples

Array = np.ndarray[Any, Any]

_NOT_MEASURED = Evaluation(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Path:
    """Losses along θ + α·d.

    Attributes:
        alpha: Coordinates [n], ascending.
        loss: Mean loss on the probe set [n]; non-finite where it is so.
        standard_error: Of it [n].
        accuracy: Fraction [n].
        test_loss: The same three on the test samples [n]; NaN if there are none.
        test_standard_error: Likewise.
        test_accuracy: Likewise.
        direction: d [P], the very bits used.
        barrier: max over α in [0, 1] of L(α) − [(1−α)L(0) + αL(1)]; `None` along a direction. As
            `barrier` does, it says so if a loss is not finite.
        curvature_at_origin: d²L/dα² at 0, one product.
        loss_at_start: L(0).
        loss_at_end: L(1), or along a direction L at the last α.
        num_evaluations: Points measured on the probe set and on the test samples together.
        warnings: What a reader must know, such as points that are not finite.
    """

    alpha: Array
    loss: Array
    standard_error: Array
    accuracy: Array
    test_loss: Array
    test_standard_error: Array
    test_accuracy: Array
    direction: Array
    barrier: float | None
    curvature_at_origin: float
    loss_at_start: float
    loss_at_end: float
    num_evaluations: int
    warnings: tuple[str, ...] = ()


def alpha_grid(bounds: Range, num_points: int, required: Sequence[float]) -> list[float]:
    """Equidistant coordinates, with the required ones put in where they are missing.

    Args:
        bounds: First and last of the equidistant ones.
        num_points: Of the equidistant ones.
        required: Must be on the grid, also outside the bounds.
    """
    return sorted({*linspace(bounds, num_points), *required})


def interpolate(
    objective: Objective,
    test: Samples | None,
    alphas: Sequence[float],
    *,
    target: Tensor | None = None,
    direction: Tensor | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Measure loss and accuracy along a line, on the probe set and on test samples.

    Args:
        objective: Entered; α = 0 is its centre, measured before any parameter moved.
        test: On the objective's device and in its dtype; `None` leaves their losses NaN.
        alphas: Coordinates, ascending, with 0 and, towards a target, 1 among them.
        target: The other end [P]; α = 1 is the target itself, to the bit.
        direction: Instead of a target, d [P].
        progress: Told of each point.

    Cost: one matvec, and for each point a pass over the probe set and one over the test samples.
    """
    if target is not None and direction is None:
        target = target.to(objective.theta)
        d = target - objective.theta
    elif direction is not None and target is None:
        d = direction.to(objective.theta)
    else:
        raise TypeError("a line is given by its target or by its direction")
    curvature = dot(d, HessianOperator(objective).matvec(d))
    train: list[Evaluation] = []
    held_out: list[Evaluation] = []
    with progress.task("line", len(alphas), "points") as task:
        for alpha in alphas:
            if target is not None and alpha == 1.0:
                objective.move(target)
            else:
                objective.displace((alpha, d))
            train.append(objective.center if alpha == 0.0 else objective.evaluate())
            # Without samples of its own, `evaluate` would measure the probe set again.
            held_out.append(_NOT_MEASURED if test is None else objective.evaluate(test))
            task.advance(1, loss=train[-1].loss)
        objective.move(objective.theta)
    coordinates = np.array(alphas)
    loss = np.array([point.loss for point in train])
    end = alphas.index(1.0) if target is not None else -1
    num_nonfinite = int(np.sum(~np.isfinite(loss)))
    return Path(
        alpha=coordinates,
        loss=loss,
        standard_error=np.array([point.standard_error for point in train]),
        accuracy=np.array([point.accuracy for point in train]),
        test_loss=np.array([point.loss for point in held_out]),
        test_standard_error=np.array([point.standard_error for point in held_out]),
        test_accuracy=np.array([point.accuracy for point in held_out]),
        direction=d.cpu().numpy(),
        barrier=barrier(coordinates, loss) if target is not None else None,
        curvature_at_origin=curvature,
        loss_at_start=objective.center.loss,
        loss_at_end=float(loss[end]),
        num_evaluations=len(alphas) * (1 if test is None else 2),
        warnings=(
            (f"the loss is not finite at {num_nonfinite} of {len(alphas)} points",)
            if num_nonfinite
            else ()
        ),
    )


def barrier(alpha: Array, loss: Array) -> float:
    """Height of the path above the straight line between its ends (Frankle et al. 2020).

    Args:
        alpha: Coordinates [n] with 0 and 1 among them.
        loss: Losses there [n].

    Returns:
        max over [0, 1] of L(α) − [(1−α)L(0) + αL(1)], at least 0. Infinite if a loss between the
        ends is; NaN if one is NaN, or if an end is not finite and there is no line to measure from.
    """
    within = (alpha >= 0) & (alpha <= 1)
    a, losses = alpha[within], loss[within]
    if not np.isfinite(losses[[0, -1]]).all():
        return math.nan
    # The ends lie on the line by definition, whatever rounding says.
    height = losses - ((1 - a) * losses[0] + a * losses[-1])
    height[[0, -1]] = 0.0
    return float(np.max(height))
