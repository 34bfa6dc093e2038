"""What one analysis of the curvature at a point is told, and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lgo_cli.curvature.trace import MIN_PROBES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lgo_cli.curvature.audit import Audit
    from lgo_cli.curvature.density import SpectralDensity
    from lgo_cli.curvature.eigenpairs import Eigenpairs
    from lgo_cli.curvature.trace import TraceEstimate
    from lgo_cli.vectors import Block


MAX_DEVIATION = 5.0
"""Standard errors between an exact trace and 20 probes or more beyond which one of them is wrong.
Over 400 seeds on each of two networks, new and trained, chance alone went up to 3.5."""


@dataclass(frozen=True)
class Setting:
    """What an analysis knows beside its objective.

    Attributes:
        weight_decay: Of the run.
        is_decay_coupled: Whether it is a term of the loss, as for SGD and Adam.
        preconditioner: Diagonal by which the run's optimiser divides its steps [P].
        warm_start: Eigenvectors of an earlier step [n, P].
        memory_bytes: What graphs may take; `None` is half of the total.
        basis_device: Where the basis goes: `auto` is the operator's.
        basis_directory: Where its file goes, on `disk`.
    """

    weight_decay: float = 0.0
    is_decay_coupled: bool = True
    preconditioner: Tensor | None = None
    warm_start: Tensor | None = None
    memory_bytes: int | None = None
    basis_device: str = "auto"
    basis_directory: Path | None = None


@dataclass(frozen=True)
class Trace:
    """The trace that is reported, and its evidence.

    Attributes:
        estimate: By deflation and probes, with the Frobenius norm.
        exact: Without chance, where that is proved.
        rounding: Allowance for the rounding of the value, absolute.
        estimate_rounding: The same for what the estimate knows from its basis, at its worst.
        note: Why it is exact, or why it has to be estimated.
    """

    estimate: TraceEstimate
    exact: float | None
    rounding: float
    estimate_rounding: float
    note: str

    @property
    def value(self) -> float:
        """The exact trace if there is one."""
        return self.estimate.value if self.exact is None else self.exact

    @property
    def standard_error(self) -> float:
        """Of the value; an exact one has none."""
        return self.estimate.standard_error if self.exact is None else 0.0

    @property
    def converged(self) -> bool:
        """Whether the value is as good as was asked, and an exact one not contradicted."""
        if self.exact is None:
            return self.estimate.converged
        return self.deviation is None or self.deviation <= MAX_DEVIATION

    @property
    def deviation(self) -> float | None:
        """How far the estimate is from the exact trace, in its standard errors and beyond rounding.

        `None` without an exact one, or of too few probes to tell.
        """
        estimate = self.estimate
        if self.exact is None or 0 < estimate.num_probes < MIN_PROBES:
            return None
        rounding = self.rounding + self.estimate_rounding
        beyond = abs(estimate.value - self.exact) - rounding
        if beyond <= 0:
            return 0.0
        return beyond / estimate.standard_error if estimate.standard_error > 0 else math.inf


@dataclass(frozen=True)
class LayerCurvature:
    """The diagonal block of one module's own parameters.

    Attributes:
        name: The module's.
        num_parameters: Entries of the block.
        largest: Its largest eigenvalue.
        residual_bound: Of the largest eigenvalue.
        error_estimate: Of the largest eigenvalue.
        trace: Of the block, exact or estimated, with its Frobenius norm.
        unconverged: What did not converge of the eigenvalue.
    """

    name: str
    num_parameters: int
    largest: float
    residual_bound: float
    error_estimate: float
    trace: Trace
    unconverged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Half:
    """The same numbers on one half of the samples.

    Attributes:
        num_samples: In it.
        eigenpairs: Both ends.
        trace: If asked.
    """

    num_samples: int
    eigenpairs: Eigenpairs
    trace: Trace | None


@dataclass(frozen=True)
class Spectrum:
    """All that `lgo hessian` measures.

    Attributes:
        loss: L at the centre.
        gradient_norm: ‖∇L‖ there, of the parameters that are measured and with weight decay if the
            operator has it.
        gradient_share: Share of ‖∇L‖² in the space of the k largest eigenvectors, where ∇L is clear
            of its rounding, and the k-th eigenvalue of the next.
        gradient_share_note: Why there is none, if it is one of these.
        eigenpairs: Both ends of the spectrum; vectors over all P parameters.
        preconditioned: The largest eigenvalue after Adam's preconditioning, if that is known.
        trace: With the Frobenius norm, if asked.
        density: The spectral density, if asked.
        layers: Each module's block, if asked.
        halves: The two halves of the samples, if asked.
        audit: What was checked, if it was.
        matvecs: Products that each answer cost; not those that measure rounding, on a few samples.
        plan: Which path products took.
        rewriting: What was done to the model's graph.
        keeps_graph: Whether graphs were kept between products.
        block: The parameters that were measured.
        unconverged: What did not converge of all eigenvalues: of the whole, of halves and layers,
            preconditioned.
        warnings: What a reader must know, that among it.
    """

    loss: float
    gradient_norm: float
    gradient_share: float | None
    gradient_share_note: str | None
    eigenpairs: Eigenpairs
    preconditioned: Eigenpairs | None
    trace: Trace | None
    density: SpectralDensity | None
    layers: tuple[LayerCurvature, ...] | None
    halves: tuple[Half, Half] | None
    audit: Audit | None
    matvecs: dict[str, int]
    plan: str
    rewriting: str
    keeps_graph: bool
    block: Block
    unconverged: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def num_matvecs(self) -> int:
        """Every product spent."""
        return sum(self.matvecs.values())

    @property
    def converged(self) -> bool:
        """Whether every number that has a tolerance is within it."""
        traces = (self.trace, *(half.trace for half in self.halves or ()))
        return not self.unconverged and all(each is None or each.converged for each in traces)
