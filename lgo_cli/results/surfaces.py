"""What `lgo contour` reports."""

from __future__ import annotations

from lgo_cli.config import Normalization, Strict
from lgo_cli.results.base import Accuracy, AnalysisResults, Real


class Marker(Strict):
    """A named point of a plane, in the plane's coordinates."""

    label: str
    x: float
    y: float


class RecomputedCell(Strict):
    """One cell measured a second time, by the naive way.

    Attributes:
        row: i, of y.
        column: j, of x.
        difference: |a − b| / max(|a|, |b|) of its two losses; 0 if both are the same non-finite
            value, infinite if only one is finite.
    """

    row: int
    column: int
    difference: Real


class SelfCheck(Strict):
    """What a surface says of itself."""

    center_difference: Real
    fast_path_difference: Real
    axis_cosine: float
    recomputed_cell: RecomputedCell
    num_nonfinite: int


class FillingCheck(Strict):
    """Filled cells that were measured, drawn at random, after the filling was done.

    Attributes:
        num_cells: How many.
        worst_error: The largest |filled − measured| / max(|measured|, floor); infinite if only one
            of the two is finite.
        worst_ratio: The largest |filled − measured| over the error stated for that cell.
        share_within: Share of them within the tolerance.
        least_share: Share of all filled cells within the tolerance, a lower bound with 95 %
            confidence however many checks came before (Clopper & Pearson 1934).
    """

    num_cells: int
    worst_error: Real
    worst_ratio: Real
    share_within: Real
    least_share: Real


class Filling(Strict):
    """How the cells that were not measured were filled in, to `tolerance`.

    `cost` counts cells on all samples, those on a sixteenth of them as a sixteenth. `share_above`
    is the share of all cells whose estimate is above the tolerance, where a budget ended it before.
    """

    tolerance: float
    floor: Real
    num_small: int
    cost: float
    largest_error_estimate: Real
    largest_relative_estimate: Real
    share_above: float
    check: FillingCheck | None
    num_checks: int
    converged: bool


class TestSurface(Strict):
    """The same plane on the test samples; `measured` says how many they are."""

    loss_at_center: Real
    accuracy_at_center: Accuracy
    loss_min: Real | None
    loss_max: Real | None
    num_measured: int
    self_check: SelfCheck
    filling: Filling | None


class TrajectoryPoint(Marker):
    """A checkpoint on the way, projected.

    `loss` is at its weights, with buffers and batch norm as on the surface: off `surface`, the loss
    at its projection, by its distance from the plane alone. `own_loss` is its loss as itself, with
    all of its own buffers.
    """

    distance: Real
    loss: Real
    own_loss: Real
    surface: Real


class Quadratic(Strict):
    """Second-order model at the centre, (g·d₀, g·d₁) and (d₀ᵀHd₀, d₀ᵀHd₁, d₁ᵀHd₁).

    Errors are relative to the measured loss; `radius` is how far it holds within a tenth.
    """

    gradient: tuple[Real, Real]
    hessian: tuple[Real, Real, Real]
    max_error: Real
    rms_error: Real
    radius: Real
    holds_everywhere: bool


class BandResults(Strict):
    """Order statistics over planes."""

    median: Real
    lower: Real
    upper: Real
    minimum: Real
    maximum: Real


class LineCurvatureResults(Strict):
    """Mean curvature along random lines, beside what the curvature engine expects of it.

    `deviation` is their difference in units of both standard errors together, within 1.96 in 95 %
    of cases.
    """

    num_lines: int
    mean: Real
    standard_error: Real
    expected: Real
    expected_standard_error: Real
    deviation: Real
    num_matvecs: int


class Planes(Strict):
    """Several random planes; the arrays and the other results are of the first.

    `self_checks` and `fillings` are of the others, in order; of the latter there are none if all
    cells were measured.
    """

    num_planes: int
    self_checks: list[SelfCheck]
    fillings: list[Filling]
    converged: bool
    loss_min: BandResults
    loss_max: BandResults
    line_curvature: LineCurvatureResults | None


class ConvexityResults(Strict):
    """Both ends of the spectrum over the plane."""

    num_cells: int
    num_converged: int
    largest_ratio: Real
    largest_ratio_error: Real
    num_matvecs: int


class Movement(Strict):
    """What a random direction does to one parameter.

    Attributes:
        name: The parameter's.
        shape: The parameter's.
        treatment: In words.
        held: Why the direction leaves it where it is; `None` if it moves.
    """

    name: str
    shape: tuple[int, ...]
    treatment: str
    held: str | None


class ContourResults(AnalysisResults):
    """`lgo contour`.

    Attributes:
        cell_plan: Which way cells took.
        is_fast: Whether that is not the model's own pass.
        curve_distance: How far a curve that came with the directions (`plane_path` of the arrays)
            is off the plane at most, in the unit of the coordinates.
    """

    complaints: list[str]
    plane: str
    normalization: Normalization | None
    movements: list[Movement]
    loss_at_center: Real
    loss_min: Real | None
    loss_max: Real | None
    num_cells: int
    num_measured: int
    filling: Filling | None
    cell_plan: str
    is_fast: bool
    axis_cosine: float
    self_check: SelfCheck
    axis_labels: tuple[str, str]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    num_range_evaluations: int
    markers: list[Marker]
    trajectory: list[TrajectoryPoint] | None
    curve_distance: Real | None = None
    explained_variance: tuple[float, float] | None
    quadratic: Quadratic | None
    planes: Planes | None
    convexity: ConvexityResults | None
    test: TestSurface | None
    num_matvecs: int
