"""Losses along a straight line (Goodfellow et al. 2015) or a curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray as Array

from lgo_cli.curvature.embeddings import false_derivatives
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.landscape.barriers import estimate_barrier, height_errors
from lgo_cli.landscape.batchnorm import is_frozen, statistics_at
from lgo_cli.landscape.evaluator import Evaluator
from lgo_cli.progress import SILENT, Progress
from lgo_cli.vectors import dot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from lgo_cli.landscape.batchnorm import BatchNorm
    from lgo_cli.landscape.curves import Curve
    from lgo_cli.objective import Objective
    from lgo_cli.results import Barrier
    from lgo_cli.samples import Evaluation, Samples

OWN_PASS = "the model's own pass: the path is no straight line between parameters"
CHANGED = "the model's own pass: each point is changed by itself, as by REPAIR"


@dataclass(frozen=True)
class Series:
    """What was measured on one set of samples at each of n coordinates; NaN if there was no set.

    Attributes:
        loss: Mean loss [n]; non-finite where it is so.
        standard_error: Standard error of the mean loss [n].
        accuracy: Fraction [n].
        barrier_standard_error: Of the height above the straight line between the ends [n], paired;
            NaN along a direction.
        barrier: The largest such height over [0, 1]; `None` along a direction, without samples, or
            without a point between the ends.
        num_nonfinite: Points that were measured and whose loss is not finite.
    """

    loss: Array
    standard_error: Array
    accuracy: Array
    barrier_standard_error: Array
    barrier: Barrier | None
    num_nonfinite: int = 0

    def arrays(self, prefix: str = "") -> dict[str, Array]:
        """The arrays under their names, each after the prefix."""
        names = ("loss", "standard_error", "accuracy", "barrier_standard_error")
        return {f"{prefix}{name}": getattr(self, name) for name in names}


@dataclass(frozen=True)
class LossPath:
    """Losses along θ(α): a line θ + α·d, or a curve.

    Attributes:
        alpha: Coordinates [n], ascending.
        train: On the probe set.
        test: On the test samples.
        direction: d [P], the very bits used; of a curve, its end less its start.
        curvature_at_origin: d²L/dα² at 0, one product; `None` unless the path is a straight line
            whose points differ by their parameters alone, and by such as autograd differentiates by
            (`false_derivatives`; a warning says so otherwise).
        loss_at_start: L(0).
        loss_at_end: L(1), or along a direction L at the last α.
        num_evaluations: Points measured on the probe set and on the test samples together.
        num_matvecs: Products.
        plan: Which way the points between the ends took (`Evaluator.plan`), and why.
        is_fast: Whether that is no model's own pass, on either set.
        fast_path_difference: Largest relative difference of a fast path that was taken from the
            model's own pass, at 0 and both ends of the grid, on a few samples of either set;
            `None` where none was.
        warnings: What a reader must know, such as points that are not finite.
    """

    alpha: Array
    train: Series
    test: Series
    direction: Array
    curvature_at_origin: float | None
    loss_at_start: float
    loss_at_end: float
    num_evaluations: int
    num_matvecs: int
    plan: str
    is_fast: bool
    fast_path_difference: float | None
    warnings: tuple[str, ...] = ()


def interpolate(
    objective: Objective,
    test: Samples | None,
    alphas: Sequence[float],
    *,
    target: Tensor | None = None,
    direction: Tensor | None = None,
    curve: Curve | None = None,
    batchnorm: BatchNorm | None = None,
    around: Callable[[float], AbstractContextManager[None]] | None = None,
    seed: int = 0,
    memory_bytes: int | None = None,
    progress: Progress = SILENT,
) -> LossPath:
    """Measure loss and accuracy along a path, on the probe set and on test samples.

    Exactly one of `target`, `direction` and `curve` says where it goes. The centre and the target
    are measured by the model itself, the points of a straight line by an `Evaluator`.

    Args:
        objective: Entered; α = 0 is its centre, measured before any parameter moved.
        test: On the objective's device and in its dtype; `None` leaves their losses NaN.
        alphas: Coordinates, ascending, with 0 and, towards an end, 1 among them.
        target: The end of a straight line [P]; α = 1 is the target itself, to the bit.
        direction: d [P].
        curve: From the centre to another end, over coordinates in [0, 1] alone.
        batchnorm: What batch norm does at α; its running statistics by default. With any other
            policy than `frozen` the centre is measured anew, as the policy has it.
        around: What is to be in force at α beside the parameters, such as `Repair.at`, in place of
            a policy; entered after they were moved, at the centre too.
        seed: Of the draws behind the barrier's interval.
        memory_bytes: Of the product's graphs, as `HessianOperator` has it.
        progress: Told of each point.

    Cost: for each point a pass over the probe set and one over the test samples, which on a
    straight line are fast ones; one pass more for the losses of single samples at the centre, and
    on a straight line one matvec and the comparison of the fast path.

    Raises:
        TypeError: if not exactly one says where the path goes.
        ValueError: if coordinates do not ascend, or lack 0 or 1: a barrier would be of other ends.
    """
    if (target is None) + (direction is None) + (curve is None) != 2:
        raise TypeError("a path is given by its target, by its direction or by a curve")
    alphas = [float(alpha) for alpha in alphas]
    exact = {0.0} if direction is not None else {0.0, 1.0}  # measured by the model itself
    if alphas != sorted({*alphas}) or not exact.issubset(alphas):
        raise ValueError("alphas must ascend, with 0 and, towards an end, 1 among them")
    if curve is not None:
        target = curve.end
    end = None if target is None else target.to(objective.theta)
    d = direction.to(objective.theta) if direction is not None else end - objective.theta  # type: ignore[operator]
    untouched = around is None and is_frozen(batchnorm)
    straight = curve is None and untouched
    moved = [each for each in false_derivatives(objective) if straight and each.is_moved_by(d)]
    curvature = None
    if straight and not moved:
        curvature = dot(d, HessianOperator(objective, memory_bytes=memory_bytes).matvec(d))
    evaluators: list[Evaluator] = []
    if curve is None and around is None:
        evaluators = [Evaluator(objective, d[None], batchnorm=batchnorm)]
        evaluators += [evaluators[0].on(test)] if test is not None else []
        for evaluator in evaluators:
            evaluator.verify([(0.0,), (alphas[0],), (alphas[-1],)])  # at 0 the loss is finite
    train = _Points(objective, objective.samples, *evaluators[:1])
    held_out = _Points(objective, test, *evaluators[1:])
    with progress.task("line" if curve is None else "path", len(alphas), "points") as task:
        for alpha in alphas:
            if end is not None and alpha == 1.0:
                objective.move(end)
            elif curve is not None:
                objective.move(curve.point(alpha))
            else:
                objective.displace((alpha, d))
            with around(alpha) if around else statistics_at(batchnorm, alpha):
                for points in (train, held_out):
                    points.measure(alpha, exact=alpha in exact)
                if alpha == 0.0 and untouched:
                    train.evaluations[-1] = objective.center
            task.advance(1, loss=train.evaluations[-1].loss)
        objective.move(objective.theta)
    has_end = end is not None
    on_train = train.series(alphas, seed, "train", has_end=has_end)
    on_test = held_out.series(alphas, seed, "test", has_end=has_end)
    return LossPath(
        alpha=np.array(alphas),
        train=on_train,
        test=on_test,
        direction=d.cpu().numpy(),
        curvature_at_origin=curvature,
        loss_at_start=train.evaluations[alphas.index(0.0)].loss,
        loss_at_end=train.evaluations[alphas.index(1.0) if has_end else -1].loss,
        num_evaluations=len(alphas) * (1 if test is None else 2),
        num_matvecs=int(curvature is not None),
        plan="; on the test samples, ".join({each.plan: None for each in evaluators})
        or (CHANGED if around else OWN_PASS),
        is_fast=bool(evaluators) and all(each.is_fast for each in evaluators),
        fast_path_difference=max((e.difference for e in evaluators if e.is_fast), default=None),
        warnings=(
            *(f"no curvature at 0: {each.reason}, and the path moves it" for each in moved),
            *_warnings(on_train, on_test, (objective.samples, test), has_end=has_end),
        ),
    )


def _warnings(
    train: Series, test: Series, splits: Iterable[Samples | None], *, has_end: bool
) -> Iterator[str]:
    """What a reader of a path must know."""
    for series, where in ((train, ""), (test, "on the test samples, ")):
        if series.num_nonfinite:
            points = f"{series.num_nonfinite} of {len(series.loss)} points"
            yield f"{where}the loss is not finite at {points}"
    if has_end and train.barrier is None:
        yield (
            "no point between the two ends was measured, so there is no barrier: take a larger "
            "--num-points, or a --range that reaches into (0, 1)"
        )
    elif has_end and any(samples is not None and len(samples) == 1 for samples in splits):
        yield "the barrier over one sample has no interval: raise --analysis-samples"


class _Points:
    """What was measured on one set of samples so far, if there is a set."""

    def __init__(
        self, objective: Objective, samples: Samples | None, evaluator: Evaluator | None = None
    ) -> None:
        self.objective = objective
        self.samples = samples
        self.evaluator = evaluator
        self.evaluations: list[Evaluation] = []
        self.losses: list[Array] = []

    def measure(self, alpha: float, *, exact: bool) -> None:
        """Measure where the objective stands, which is at α; by the model itself if exact."""
        if self.samples is None:
            return
        if exact or self.evaluator is None:
            evaluation, losses = self.objective.sample_losses(self.samples)
        else:
            evaluation, losses = self.evaluator.here(alpha)
        self.evaluations.append(evaluation)
        self.losses.append(losses.cpu().numpy())

    def series(self, alphas: Sequence[float], seed: int, label: str, *, has_end: bool) -> Series:
        """All of it; with a barrier if the path has an end."""
        alpha = np.array(alphas)
        missing = np.full(len(alpha), math.nan)
        if self.samples is None:
            return Series(missing, missing, missing, missing, None)
        loss, errors, accuracy = np.array(
            [(point.loss, point.standard_error, point.accuracy) for point in self.evaluations]
        ).T
        num_nonfinite = int(np.sum(~np.isfinite(loss)))
        if not has_end:
            return Series(loss, errors, accuracy, missing, None, num_nonfinite)
        losses = np.stack(self.losses)
        self.losses.clear()  # twice the memory otherwise
        evaluator = self.evaluator
        barrier = estimate_barrier(
            alpha,
            loss,
            losses,
            seed=seed,
            label=label,
            dtype=self.objective.dtype,
            fast_path_difference=evaluator.difference if evaluator and evaluator.is_fast else 0.0,
            scale=self.objective.loss_function.rounding_scale(
                self.samples.labels, self.objective.sensitivity
            ),
        )
        heights = height_errors(alpha, losses)
        return Series(loss, errors, accuracy, heights, barrier, num_nonfinite)
