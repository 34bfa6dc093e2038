"""What `lgo interp` reports."""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from lgo_cli.config import CurveKind, Strict
from lgo_cli.results.base import AnalysisResults, Real, Recipe, counted

if TYPE_CHECKING:
    from collections.abc import Iterator


ENDS = {"init": "initialisation", "to": "other checkpoint"}
SHAPES = {
    "line": "straight line",
    "arc": "spherical arc",
    "bezier": "trained Bezier curve",
    "polychain": "trained polygonal chain",
}
DIRECTIONS = {
    "random": "a random direction, filter-normalised",
    "gradient": "the gradient, unit norm",
    "eigen": "the top eigenvector, unit norm",
}


def route(along: str, shape: str, *, is_repaired: bool) -> str:
    """Where a path goes, in words.

    Args:
        along: Field of `InterpResults`.
        shape: Field of `InterpResults`.
        is_repaired: Whether REPAIR rescales layers at each of its points.
    """
    if along in DIRECTIONS:
        return f"along {DIRECTIONS[along]}"
    repaired = ", repaired at each point" if is_repaired else ""
    return f"along the {SHAPES[shape]} to the {ENDS[along]}{repaired}"


class Barrier(Strict):
    """The largest height on a grid, with its paired standard error.

    Attributes:
        value: max over α in [0, 1] of L(α) − [(1−α)L(0) + αL(1)].
        standard_error: Of the height at the α of the maximum, the samples taken as independent
            draws; 0 where that is an end. The choice of the maximum is in the interval alone.
        interval: Holds the barrier that infinitely many samples would give on the same grid, with
            95 % confidence, wherever rounding has put the losses. Not symmetric, and never below 0;
            NaN for one sample, which says nothing of others.
        alpha: Where the maximum is.
    """

    value: Real
    standard_error: Real
    interval: tuple[Real, Real]
    alpha: float


class BarrierMatrix(Strict):
    """Barriers between all pairs of k checkpoints, [k][k], symmetric; each interval on its own.

    `names` are the run's and those of what `locations` of the manifest places, each as short as
    tells them apart; `loss` is of each as it is, and as `--batchnorm` has it where that is another
    policy than `frozen`. Where it is not finite, all of its pairs are NaN.
    """

    names: list[str]
    loss: list[Real]
    barrier: list[list[Real]]
    standard_error: list[list[Real]]
    lower: list[list[Real]]
    upper: list[list[Real]]
    test_barrier: list[list[Real]]
    test_standard_error: list[list[Real]]
    test_lower: list[list[Real]]
    test_upper: list[list[Real]]

    @property
    def complaints(self) -> list[str]:
        """Losses that are not finite, and pairs whose numbers are not."""
        names = list(zip(self.names, self.loss, strict=True))
        found = [f"the loss of {name}" for name, loss in names if not math.isfinite(loss)]
        matrices = [getattr(self, name) for name in type(self).model_fields]
        for (i, (first, loss)), (j, (second, other)) in combinations(enumerate(names), 2):
            pair = [matrix[i][j] for matrix in matrices[2:]]
            if math.isfinite(loss + other) and not all(map(math.isfinite, pair)):
                found.append(f"the barrier between {first} and {second}")
        return found


class AlignmentResults(Strict):
    """How the other end's hidden units were permuted, and the proof that it computes the same.

    Distances are between the parameters of the ends. `output_difference` is the largest over the
    first samples of the probe set, relative to the largest output, and lies below
    `output_tolerance`.
    """

    num_units: int
    num_moved: int
    num_iterations: int
    distance_before: float
    distance_after: float
    output_difference: Real
    output_tolerance: float
    output_dtype: str
    not_permuted: dict[str, str]


class RepairResults(Strict):
    """What REPAIR rescaled at each point: weights, and batch norms' statistics that it recomputed.

    `not_repaired` has the weights of hidden units that it had to leave alone, and why; those that
    it left alone at some points of the path only are in both.
    """

    layers: list[str]
    batch_norms: list[str]
    not_repaired: dict[str, str]


class CurveResults(Strict):
    """How a curve was trained.

    `epoch_losses` are means over each epoch's samples, each batch at its own point of the curve, in
    training mode and before its step; `train_loss` is the last. `length` is in units of the
    distance between the ends.
    """

    kind: CurveKind
    num_bends: int
    recipe: Recipe
    num_steps: int
    num_train_samples: int
    train_loss: Real
    epoch_losses: tuple[Real, ...] = ()
    length: float


class InterpResults(AnalysisResults):
    """`lgo interp`. What a path of its kind does not have is `None`.

    Attributes:
        barrier: With the three behind it the fields of `Barrier`; `None` along a direction, and
            where no point between the ends was measured.
        barrier_line: Of the straight line beside a trained curve.
        barrier_unaligned: Of the path to the other end as it was before it was aligned.
        barrier_unrepaired: Of the path without REPAIR, if that has a layer to rescale.
        unconverged: Why the direction is not to be relied on (an eigenvector that did not converge,
            a gradient lost in rounding), or the loss is no mean (samples that see each other).
        point_plan: Which way the path's points took.
        is_fast: Whether none but the ends took the model's own pass.
        fast_path_difference: Largest relative difference of a fast path from the model's own pass,
            on the path or on any of a matrix.
        fast_path_difference_beside: The same on the paths beside it.
        num_nonfinite: Points whose loss is not finite, of the path and of those beside it; `None`
            of a matrix, which has NaN for such pairs.
    """

    along: str
    shape: Literal["line", "arc", "bezier", "polychain"]
    barrier: Real | None = None
    barrier_standard_error: Real | None = None
    barrier_interval: tuple[Real, Real] | None = None
    barrier_alpha: float | None = None
    test_barrier: Real | None = None
    test_barrier_standard_error: Real | None = None
    test_barrier_interval: tuple[Real, Real] | None = None
    test_barrier_alpha: float | None = None
    barrier_line: Barrier | None = None
    test_barrier_line: Barrier | None = None
    barrier_unaligned: Barrier | None = None
    test_barrier_unaligned: Barrier | None = None
    barrier_unrepaired: Barrier | None = None
    test_barrier_unrepaired: Barrier | None = None
    curvature_at_origin: Real | None = None
    loss_at_start: Real
    loss_at_end: Real | None = None
    loss_of_other: Real | None = None
    direction_norm: float | None = None
    unconverged: tuple[str, ...] = ()
    matrix: BarrierMatrix | None = None
    alignment: AlignmentResults | None = None
    repair: RepairResults | None = None
    curve: CurveResults | None = None
    range: tuple[float, float]
    num_points: int
    point_plan: str
    is_fast: bool
    fast_path_difference: Real | None
    fast_path_difference_beside: Real | None = None
    num_nonfinite: int | None
    test_num_nonfinite: int | None
    num_evaluations: int
    num_matvecs: int

    @property
    def has_end(self) -> bool:
        """Whether it is one path to other weights, and no direction or matrix."""
        return self.along in ENDS

    @property
    def complaints(self) -> list[str]:
        """What `--strict` does not let pass: what is not finite, and an end without a barrier."""
        found = self.matrix.complaints if self.matrix is not None else []
        for name, value in self.model_dump(exclude={"matrix", "curve"}).items():
            if not all(map(math.isfinite, _numbers(value))):
                found.append(name)
        for number, where in (
            (self.num_nonfinite, ""),
            (self.test_num_nonfinite, " on the test samples"),
        ):
            if number:
                found.append(f"the loss at {counted(number, 'point')}{where}")
        complaints = [f"not finite: {', '.join(found)}"] if found else []
        if self.has_end and self.barrier is None:
            complaints.append(
                "no barrier: no point between the two ends was measured; see --num-points, --range"
            )
        return [*complaints, *self.unconverged]


def _numbers(value: object) -> Iterator[float]:
    """All numbers in a nest of results."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        yield from _numbers(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
