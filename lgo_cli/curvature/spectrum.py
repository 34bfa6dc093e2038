"""All that `lgo hessian` measures at one point, from as few products as it takes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from lgo_cli.curvature.audit import (
    Audit,
    audit,
    measure_rounding,
    nonsmooth_operations,
    takes_differences,
)
from lgo_cli.curvature.basis import Basis
from lgo_cli.curvature.density import SpectralDensity, spectral_density
from lgo_cli.curvature.eigenpairs import Eigenpairs, extreme_eigenpairs
from lgo_cli.curvature.lanczos import Lanczos
from lgo_cli.curvature.layers import LayerCurvature, curvature_of_layers
from lgo_cli.curvature.networks import OPERATORS, HessianOperator, NetworkOperator
from lgo_cli.curvature.operators import Operator, ScaledOperator, ShiftedOperator
from lgo_cli.curvature.search import Wanted, basis_limit, matvec_limit
from lgo_cli.curvature.trace import TraceEstimate, estimate_trace
from lgo_cli.objective import Objective, Samples
from lgo_cli.progress import SILENT, Progress
from lgo_cli.seeding import standard_normal
from lgo_cli.vectors import Block, dot, norm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from lgo_cli.config import HessianConfig


@dataclass(frozen=True)
class Setting:
    """What an analysis knows beside its objective.

    Attributes:
        weight_decay: Of the run's own coupled term.
        preconditioner: Diagonal by which the run's optimiser divides its steps [P].
        warm_start: Eigenvectors of an earlier step [n, P].
        memory_bytes: What graphs may take; `None` is half of the total.
        basis_device: Where the basis goes: `auto` is the operator's.
        basis_directory: Where its file goes, on `disk`.
    """

    weight_decay: float = 0.0
    preconditioner: Tensor | None = None
    warm_start: Tensor | None = None
    memory_bytes: int | None = None
    basis_device: str = "auto"
    basis_directory: Path | None = None


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
    trace: TraceEstimate | None


@dataclass(frozen=True)
class Spectrum:
    """All that `lgo hessian` measures.

    Attributes:
        loss: L at the centre.
        gradient_norm: ‖∇L‖ there, of the parameters that are measured.
        gradient_share: Share of ‖∇L‖² in the space of the k largest eigenvectors.
        eigenpairs: Both ends of the spectrum; vectors over all P parameters.
        preconditioned: The largest eigenvalue after Adam's preconditioning, if that is known.
        trace: With the Frobenius norm, if asked.
        density: The spectral density, if asked.
        layers: Each module's block, if asked.
        halves: The two halves of the samples, if asked.
        audit: What was checked, if it was.
        matvecs: Products that each answer cost.
        plan: Which path products took.
        rewriting: What was done to the model's graph.
        keeps_graph: Whether graphs were kept between products.
        block: The parameters that were measured.
        warnings: What a reader must know.
    """

    loss: float
    gradient_norm: float
    gradient_share: float | None
    eigenpairs: Eigenpairs
    preconditioned: Eigenpairs | None
    trace: TraceEstimate | None
    density: SpectralDensity | None
    layers: tuple[LayerCurvature, ...] | None
    halves: tuple[Half, Half] | None
    audit: Audit | None
    matvecs: dict[str, int]
    plan: str
    rewriting: str
    keeps_graph: bool
    block: Block
    warnings: tuple[str, ...]

    @property
    def num_matvecs(self) -> int:
        """Every product spent."""
        return sum(self.matvecs.values())

    @property
    def converged(self) -> bool:
        """Whether every number that has a tolerance is within it."""
        halves = self.halves or ()
        others = [half.eigenpairs for half in halves]
        others += [self.preconditioned] if self.preconditioned else []
        return (
            self.eigenpairs.converged
            and all(pairs.converged for pairs in others)
            and (self.trace is None or self.trace.converged)
        )


def analyze_spectrum(
    objective: Objective,
    config: HessianConfig,
    setting: Setting | None = None,
    progress: Progress = SILENT,
) -> Spectrum:
    """Measure the curvature at an objective's centre.

    Args:
        objective: Entered.
        config: What to measure.
        setting: What else is known.
        progress: Listener.

    Raises:
        UsageError: if more is wanted than there is, or than products or vectors allow.
        NumericsError: if a product is not finite.
    """
    return _Analysis(objective, config, setting or Setting(), progress).run()


@dataclass
class _Analysis:
    objective: Objective
    config: HessianConfig
    setting: Setting
    progress: Progress
    matvecs: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def run(self) -> Spectrum:
        objective, config = self.objective, self.config
        block = Block.whole(objective.layout)
        if config.layers:
            block = Block.matching(objective.layout, config.layers)
        wanted = self._wanted(block)
        matvec_limit(block.dim, wanted)  # refused before anything is computed
        network, found = self._network(block)
        operator = self._composed(network)
        max_basis = basis_limit(operator, wanted)
        checked = None
        if found is not None and config.audit:
            rounding, nonsmooth = found
            checked = audit(objective, operator, rounding, nonsmooth, config.seed)
            self.matvecs["audit"] = checked.num_matvecs
            self.warnings += [f"the audit found: {what}" for what in checked.complaints]
        pairs = extreme_eigenpairs(
            operator, wanted, basis=self._basis(operator), progress=self.progress
        )
        self._count_eigenpairs(pairs)
        gradient = self._gradient(network)
        share = _share(gradient, pairs, operator)
        trace, density = self._from_basis(operator, pairs, max_basis)
        layers = self._layers(network) if config.per_layer else None
        preconditioned = self._preconditioned(network)
        spectrum = Spectrum(
            loss=objective.center.loss,
            gradient_norm=norm(gradient),
            gradient_share=share,
            eigenpairs=replace(pairs, eigenvectors=block.embed(pairs.eigenvectors), process=None),
            preconditioned=preconditioned,
            trace=trace,
            density=density,
            layers=layers,
            halves=None,
            audit=checked,
            matvecs=self.matvecs,
            plan=network.plan,
            rewriting=network.model.note,
            keeps_graph=network.keeps_graph,
            block=block,
            warnings=(),
        )
        if checked is not None and pairs.process is not None:
            orthogonality = pairs.process.basis.orthogonality()
            spectrum = replace(spectrum, audit=replace(checked, orthogonality=orthogonality))
        network.release()
        if config.halves:
            spectrum = replace(spectrum, halves=self._halves(block))
        return replace(spectrum, warnings=tuple(self.warnings))

    def _wanted(self, block: Block) -> Wanted:
        config = self.config
        warm = self.setting.warm_start
        return Wanted(
            top_k=config.top_k,
            bottom_k=config.bottom_k,
            rtol=config.rtol,
            vector_rtol=config.vector_rtol,
            max_matvecs=config.max_matvecs,
            max_basis=config.max_basis,
            multiplicity=config.multiplicity,
            warm_start=None if warm is None else block.extract(warm),
            recheck=config.recheck,
            seed=config.seed,
        )

    def _network(
        self, block: Block
    ) -> tuple[NetworkOperator[Any], tuple[Any, tuple[str, ...]] | None]:
        """The bare operator, and what was seen of its rounding and of the model's kinks."""
        kind = OPERATORS[self.config.operator]
        nonsmooth = nonsmooth_operations(self.objective) if self.config.audit else ()
        rounding = None
        if self.config.audit or self.objective.dtype == torch.float32:
            rounding = measure_rounding(
                self.objective,
                kind,
                difference=self.config.audit and takes_differences(kind, nonsmooth),
                seed=self.config.seed,
            )
        network = kind(self.objective, block=block, memory_bytes=self.setting.memory_bytes)
        if rounding is None:
            return network, None
        network.measured_rounding = rounding.units or 0.0
        return network, (rounding, nonsmooth)

    def _composed(self, network: NetworkOperator[Any], scaling: str | None = None) -> Operator:
        """The operator that is asked for: with weight decay, and scaled."""
        operator: Operator = network
        if self.config.include_weight_decay:
            operator = ShiftedOperator(operator, self.setting.weight_decay)
        scaling = scaling or self.config.scaling
        if scaling == "elementwise":
            theta = self.objective.theta.abs()
            return ScaledOperator(operator, network.block.extract(theta))
        if scaling == "adam" and self.setting.preconditioner is not None:
            diagonal = network.block.extract(self.setting.preconditioner)
            return ScaledOperator(operator, diagonal.double().rsqrt())
        return operator

    def _basis(self, operator: Operator) -> Basis | None:
        where = self.setting.basis_device
        if where == "auto":
            return None
        directory = self.setting.basis_directory if where == "disk" else None
        return Basis(operator.dim, operator.dtype, torch.device("cpu"), directory)

    def _count_eigenpairs(self, pairs: Eigenpairs) -> None:
        self.matvecs["eigenvalues"] = pairs.num_matvecs - pairs.num_multiplicity_matvecs
        if self.config.multiplicity:
            self.matvecs["multiplicity"] = pairs.num_multiplicity_matvecs
        if self.config.recheck:
            self.matvecs["recheck"] = pairs.num_recheck_matvecs
        self.warnings += pairs.warnings

    def _gradient(self, network: NetworkOperator[Any]) -> Tensor:
        if isinstance(network, HessianOperator):
            return network.gradient()
        return network.block.extract(self.objective.loss_and_gradient()[1])

    def _from_basis(
        self, operator: Operator, pairs: Eigenpairs, max_basis: int
    ) -> tuple[TraceEstimate | None, SpectralDensity | None]:
        """Density and trace, from the space that the eigenvalues left."""
        config = self.config
        density = trace = None
        process = pairs.process
        if process is None and (config.wants_trace or config.density):
            start = standard_normal(operator.dim, config.seed, "hessian", "start")
            process = Lanczos(operator, start, config.seed, self._basis(operator))
        if config.density:
            plain = process if self.setting.warm_start is None else None
            density = spectral_density(
                operator, process=plain, seed=config.seed, progress=self.progress
            )
            self.matvecs["density"] = density.num_matvecs
        if config.wants_trace and process is not None:
            trace = estimate_trace(
                process,
                rtol=config.trace_rtol,
                num_total=config.trace_matvecs,
                max_basis=max_basis,
                seed=config.seed,
                progress=self.progress,
            )
            self.matvecs["trace"] = trace.num_matvecs
            if not trace.converged:
                self.warnings.append(
                    f"the trace's standard error is above --trace-rtol {config.trace_rtol:g} of it "
                    f"after {trace.num_probes} probes"
                )
        return trace, density

    def _layers(self, network: NetworkOperator[Any]) -> tuple[LayerCurvature, ...]:
        layers, spent = curvature_of_layers(
            network,
            self._composed,
            rtol=self.config.rtol,
            seed=self.config.seed,
            progress=self.progress,
        )
        self.matvecs["layers"] = spent
        self.warnings += [f"{layer.name}: {layer.warning}" for layer in layers if layer.warning]
        return layers

    def _preconditioned(self, network: NetworkOperator[Any]) -> Eigenpairs | None:
        """The largest curvature that Adam's steps see, where the main operator is another."""
        config = self.config
        if (
            self.setting.preconditioner is None
            or config.scaling != "none"
            or config.operator != "hessian"
            or not network.block.is_whole
            or not config.top_k
        ):
            return None
        operator = self._composed(network, "adam")
        wanted = Wanted(1, rtol=config.rtol, max_matvecs=config.max_matvecs, seed=config.seed)
        pairs = extreme_eigenpairs(operator, wanted, progress=self.progress)
        self.matvecs["preconditioned"] = pairs.num_matvecs
        self.warnings += [f"preconditioned: {warning}" for warning in pairs.warnings]
        return replace(pairs, process=None)

    def _halves(self, block: Block) -> tuple[Half, Half]:
        samples, middle = self.objective.samples, len(self.objective.samples) // 2
        first = samples.head(middle)
        second = Samples(samples.inputs[middle:], samples.labels[middle:])
        halves = (self._half(first, block), self._half(second, block))
        self.matvecs["halves"] = sum(
            half.eigenpairs.num_matvecs + (half.trace.num_matvecs if half.trace else 0)
            for half in halves
        )
        return halves

    def _half(self, samples: Samples, block: Block) -> Half:
        config = self.config
        with self._on(samples) as objective:
            kind = OPERATORS[config.operator]
            network = kind(objective, block=block, memory_bytes=self.setting.memory_bytes)
            operator = self._composed(network)
            wanted = replace(self._wanted(block), multiplicity=False, recheck=False)
            pairs = extreme_eigenpairs(operator, wanted, progress=self.progress)
            trace = None
            if config.wants_trace and pairs.process is not None:
                trace = estimate_trace(
                    pairs.process,
                    rtol=config.trace_rtol,
                    num_total=config.trace_matvecs,
                    max_basis=basis_limit(operator, wanted),
                    seed=config.seed,
                    progress=self.progress,
                )
            self.warnings += [f"half of the samples: {warning}" for warning in pairs.warnings]
            return Half(len(samples), replace(pairs, process=None), trace)

    @contextmanager
    def _on(self, samples: Samples) -> Iterator[Objective]:
        """The same objective on other samples."""
        objective = self.objective
        with Objective(
            objective.model,
            samples,
            objective.loss_function,
            micro_batch_size=objective.micro_batch_size,
            dtype=objective.dtype,
        ) as other:
            yield other


def _share(gradient: Tensor, pairs: Eigenpairs, operator: Operator) -> float | None:
    """Share of the gradient's square in the space of the k largest eigenvectors.

    In the coordinates that the operator's scaling makes, where it has one.
    """
    if isinstance(operator, ScaledOperator):
        gradient = operator.scale * gradient
    square = norm(gradient) ** 2
    if not pairs.top_k or square == 0:
        return None
    return sum(dot(vector, gradient) ** 2 for vector in pairs.eigenvectors[: pairs.top_k]) / square
