"""What each command reports: typed, frozen, with the evidence inside."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lgo_cli.config import Strict

Real = Annotated[float, Field(strict=False)]
"""A float that may be non-finite, written as the string "NaN" or "Infinity"."""


class Results(Strict):
    """What every command reports."""

    model: str
    dataset: str
    num_parameters: int
    warnings: list[str]


class Recipe(Strict):
    """How a run was trained, every automatic value resolved."""

    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adam", "adamw"]
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: Literal["constant", "cosine", "step"]
    warmup_epochs: int
    augment: Literal["none", "crop-flip"]
    loss: Literal["cross_entropy", "squared_error"]
    label_smoothing: float


class TrainResults(Results):
    """`lgo train`: the final model on the whole of both splits, in eval mode."""

    train_loss: Real
    test_loss: Real
    train_accuracy: float
    test_accuracy: float
    epochs: int
    num_steps: int
    num_train_samples: int
    num_test_samples: int
    final_lr: float | None
    recipe: Recipe
    normalization: dict[str, list[float]] | None
    checkpoints: list[str]


class Measured(Strict):
    """What the objective was."""

    loss: str
    label_smoothing: float
    reduction: Literal["mean"] = "mean"
    includes_weight_decay: Literal[False] = False
    mode: Literal["eval"] = "eval"
    batchnorm: Literal["frozen", "none"]
    dtype: str
    split: Literal["train"] = "train"
    num_samples: int
    num_available: int
    num_test_samples: int | None = None
    micro_batch_size: int


class AnalysisResults(Results):
    """What every analysis reports."""

    measured: Measured


class Eigenvalue(Strict):
    """An eigenvalue; some eigenvalue of the operator lies within the bound of it.

    The estimate is smaller: the error if the neighbouring eigenvalues are what they seem.
    """

    value: Real
    residual_bound: Real
    error_estimate: Real


class Trace(Strict):
    """A stochastic trace with its standard error; `num_total_matvecs` counts the basis too."""

    value: Real
    standard_error: Real
    num_matvecs: int
    num_total_matvecs: int
    num_probes: int
    exact_part: Real
    converged: bool


class FrobeniusNorm(Strict):
    """‖H‖_F, by the products of the trace."""

    value: Real
    standard_error: Real


class Density(Strict):
    """A stochastic spectral density; its nodes and weights are in the `.npz`.

    The bounds are on Wasserstein-1 distances, of the rule to the measure that its vector sees, and
    of that to the density of eigenvalues with the confidence given.
    """

    mean: Real
    num_nodes: int
    wasserstein_bound: Real
    quadrature_bound: Real
    sampling_bound: Real
    confidence: float
    num_matvecs: int


class Layer(Strict):
    """The diagonal block of one module's own parameters."""

    name: str
    num_parameters: int
    largest: Eigenvalue
    trace: Real
    trace_standard_error: Real
    frobenius_norm: Real
    frobenius_standard_error: Real


class Layers(Strict):
    """All blocks, and the share of ‖H‖²_F that lies off them, with its standard error."""

    blocks: list[Layer]
    off_block_share: Real
    off_block_share_standard_error: Real


class Half(Strict):
    """The same numbers on one half of the samples."""

    num_samples: int
    largest: list[Eigenvalue]
    smallest: list[Eigenvalue]
    converged: bool
    trace: Trace | None


class Halves(Strict):
    """Two disjoint halves of the samples, and how far apart they are.

    A spread is half the difference of the two, relative to their mean.
    """

    first: Half
    second: Half
    spread_of_largest: Real | None
    spread_of_trace: Real | None


class AuditResults(Strict):
    """What was checked before the numbers; relative differences, zero in exact arithmetic."""

    clean: bool
    complaints: list[str]
    repeated_evaluation: Real
    sample_weighting: Real
    asymmetry: Real
    nonlinearity: Real
    finite_difference: Real | None
    finite_difference_note: str | None
    nonsmooth: list[str]
    basis_orthogonality: Real | None
    num_matvecs: int


class HessianResults(AnalysisResults):
    """`lgo hessian`.

    Ranks in `clusters` count from 1; eigenvalues of a cluster are not told apart by their bounds.
    """

    operator: str
    scaling: Literal["none", "elementwise", "adam"]
    layers: list[str] | None
    weight_decay: float | None
    loss: Real
    gradient_norm: Real
    gradient_share: Real | None
    largest: list[Eigenvalue]
    smallest: list[Eigenvalue]
    clusters: dict[Literal["largest", "smallest"], list[list[int]]]
    multiplicity_checked: bool
    num_matvecs: int
    matvecs: dict[str, int]
    converged: bool
    residual_floor: Real
    rounding_allowance: Real
    keeps_graph: bool
    product_plan: str
    rewriting: str
    stability_threshold: float | None
    stability_threshold_note: str | None
    sharpness_ratio: Real | None
    preconditioned: Eigenvalue | None
    trace: Trace | None
    frobenius_norm: FrobeniusNorm | None
    density: Density | None
    per_layer: Layers | None
    halves: Halves | None
    audit: AuditResults | None


class InterpResults(AnalysisResults):
    """`lgo interp`."""

    along: str
    barrier: Real | None
    curvature_at_origin: Real
    loss_at_start: Real
    loss_at_end: Real
    loss_of_other: Real | None
    direction_norm: float
    range: tuple[float, float]
    num_points: int
    num_evaluations: int
    num_matvecs: int


class Marker(Strict):
    """A named point on a plane."""

    label: str
    x: float
    y: float


class RecomputedCell(Strict):
    """One cell computed a second time by the naive way."""

    row: int
    column: int
    difference: Real


class SelfCheck(Strict):
    """What a surface says of itself."""

    center_difference: Real
    axis_cosine: float
    recomputed_cell: RecomputedCell
    num_nonfinite: int


class ContourResults(AnalysisResults):
    """`lgo contour`."""

    plane: str
    loss_at_center: Real
    loss_min: Real | None
    loss_max: Real | None
    num_cells: int
    num_measured: int
    axis_cosine: float
    self_check: SelfCheck
    axis_labels: tuple[str, str]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    markers: list[Marker]
    trajectory: list[Marker] | None
    explained_variance: tuple[float, float] | None
    num_matvecs: int


RESULTS: dict[str, type[Results]] = {
    "train": TrainResults,
    "hessian": HessianResults,
    "interp": InterpResults,
    "contour": ContourResults,
}
