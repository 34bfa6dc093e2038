"""What `lgo hessian` reports."""

from __future__ import annotations

from typing import Literal

from lgo_cli.config import Scaling, Strict
from lgo_cli.results.base import AnalysisResults, Real


class Eigenvalue(Strict):
    """An eigenvalue; some eigenvalue of the operator lies within the bound of it.

    The estimate is smaller: the error if the neighbouring eigenvalues are what they seem.
    """

    value: Real
    residual_bound: Real
    error_estimate: Real


class TraceEstimate(Strict):
    """A stochastic trace; `exact_part` of it is known from the basis."""

    value: Real
    standard_error: Real
    exact_part: Real


class Trace(Strict):
    """A trace: exact, with no standard error, where the network's graph allows it.

    A standard error is no less than the allowance for rounding, and zero where nothing was drawn.
    `note` says why it is exact or why it had to be estimated. The estimate is always there, and
    `deviation` of its standard errors away from an exact trace; products are the estimate's,
    `num_total_matvecs` counts the basis too.
    """

    value: Real
    standard_error: Real
    method: Literal["exact", "deflated"]
    note: str
    rounding_allowance: Real
    estimate: TraceEstimate
    deviation: Real | None
    num_matvecs: int
    num_total_matvecs: int
    num_probes: int
    converged: bool


class FrobeniusNorm(Strict):
    """‖H‖_F, by the products of the trace."""

    value: Real
    standard_error: Real
    rounding_allowance: Real


class Density(Strict):
    """A stochastic spectral density; its nodes and weights are in the `.npz`.

    The bounds are on Wasserstein-1 distances, of the rule to the measure that its vector sees, and
    of that to the density of eigenvalues with the confidence given. Where all eigenvalues are
    known, they are the nodes, and nothing is sampled.
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
    trace_rounding_allowance: Real
    frobenius_norm: Real
    frobenius_standard_error: Real
    frobenius_rounding_allowance: Real


class Layers(Strict):
    """All blocks, and the share of ‖H‖²_F that lies off them, with its standard error.

    Where an estimated share comes out below zero, it is zero.
    """

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
    sample_weighting: Real | None
    asymmetry: Real
    nonlinearity: Real
    finite_difference: Real | None
    finite_difference_note: str | None
    nonsmooth: list[str]
    basis_orthogonality: Real | None
    num_matvecs: int


class HessianResults(AnalysisResults):
    """`lgo hessian`.

    Attributes:
        gradient_share: `None` if the gradient is less than ten times its rounding in float32, or if
            bounds do not tell the next eigenvalue from the last of the largest.
        gradient_share_note: Which of the two.
        clusters: Ranks, from 1, of eigenvalues that their bounds do not tell apart.
        num_largest_matvecs: After how many of the eigenvalues' products all of the largest had
            converged, where the smallest were wanted too.
        unconverged: Those of the warnings that are of eigenvalues that did not converge.
        preconditioned: Largest eigenvalue of D⁻¹(H + ωI), D of the run's own Adam.
        preconditioned_weight_decay: ω, the coupled decay in the gradient that Adam preconditions;
            AdamW has none there.
    """

    operator: str
    scaling: Scaling
    layers: list[str] | None
    weight_decay: float | None
    loss: Real
    gradient_norm: Real
    gradient_share: Real | None
    gradient_share_note: str | None = None
    largest: list[Eigenvalue]
    smallest: list[Eigenvalue]
    clusters: dict[Literal["largest", "smallest"], list[list[int]]]
    multiplicity_checked: bool
    num_matvecs: int
    matvecs: dict[str, int]
    num_largest_matvecs: int | None = None
    converged: bool
    unconverged: list[str]
    residual_floor: Real
    rounding_allowance: Real
    keeps_graph: bool
    product_plan: str
    rewriting: str
    stability_threshold: float | None
    stability_threshold_note: str | None
    sharpness_ratio: Real | None
    preconditioned: Eigenvalue | None
    preconditioned_weight_decay: float | None
    trace: Trace | None
    frobenius_norm: FrobeniusNorm | None
    density: Density | None
    per_layer: Layers | None
    halves: Halves | None
    audit: AuditResults | None
