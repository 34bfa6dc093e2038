"""All that `lgo hessian` measures at one point, from as few products as it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from lgo_cli.curvature.audit import (
    Rounding,
    audit,
    refuse_lost_parameters,
    takes_differences,
)
from lgo_cli.curvature.basis import Basis
from lgo_cli.curvature.density import NUM_STEPS, SpectralDensity, spectral_density
from lgo_cli.curvature.eigenpairs import Eigenpairs, extreme_eigenpairs
from lgo_cli.curvature.embeddings import false_derivatives
from lgo_cli.curvature.exact_trace import ExactTrace, exact_trace
from lgo_cli.curvature.kinks import nonsmooth_operations
from lgo_cli.curvature.lanczos import Lanczos
from lgo_cli.curvature.layers import curvature_of_layers
from lgo_cli.curvature.networks import OPERATORS, NetworkOperator
from lgo_cli.curvature.operators import scaled_gradient
from lgo_cli.curvature.requested import Requested
from lgo_cli.curvature.search import Wanted, basis_limit, matvec_limit
from lgo_cli.curvature.spectrum import Half, LayerCurvature, Setting, Spectrum, Trace
from lgo_cli.curvature.trace import MIN_PROBES, completes, estimate_trace
from lgo_cli.errors import UsageError
from lgo_cli.progress import SILENT, Progress
from lgo_cli.samples import Samples
from lgo_cli.seeding import standard_normal
from lgo_cli.vectors import Block, dot, norm

if TYPE_CHECKING:
    from torch import Tensor

    from lgo_cli.config import HessianConfig
    from lgo_cli.curvature.operators import Operator
    from lgo_cli.curvature.trace import TraceEstimate
    from lgo_cli.objective import Objective


CLEAR_OF_ROUNDING = 10.0
"""Times its rounding, on some samples, from which on a gradient is said to have a direction. At a
minimum it has none in float32."""


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
        InputError: if the model has no second derivative that PyTorch can take.
        NumericsError: if a product is not finite.
    """
    setting = setting or Setting()
    refuse_lost_parameters(objective)
    return _Analysis(objective, config, setting, progress, Requested(config, setting)).run()


@dataclass
class _Analysis:
    objective: Objective
    config: HessianConfig
    setting: Setting
    progress: Progress
    requested: Requested
    matvecs: dict[str, int] = field(default_factory=dict)
    unconverged: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def run(self) -> Spectrum:
        objective, config = self.objective, self.config
        block = Block.whole(objective.layout)
        if config.layers:
            block = Block.matching(objective.layout, config.layers)
        wanted = self._wanted(block)
        # What cannot be is refused before anything is computed.
        if config.halves and len(objective.samples) < 2:
            raise UsageError("--halves needs two samples at least")
        matvec_limit(block.dim, wanted)
        # Blocks need the basis of one eigenvalue, even where none of the whole is wanted.
        most = wanted if wanted.num_pairs or not config.per_layer else self._largest()
        max_basis = basis_limit(block.dim, objective.dtype, most)
        self.warnings += [each.warning for each in false_derivatives(objective)]
        kinks = nonsmooth_operations(objective) if config.audit else ()
        difference = config.audit and takes_differences(OPERATORS[config.operator], kinks)
        requested = self.requested
        model = requested.rewritten(objective)
        beside = None  # of what Adam's steps see, where that is another matrix
        if requested.has_preconditioned(block):  # measured before an operator holds graphs
            beside = requested.rounding(objective, block, model, requested.preconditioned)
        network, operator, rounding = requested.measured(
            objective, block, model, difference=difference
        )
        if rounding.units is None:
            self.warnings.append(f"bounds allow for the rounding of outputs only: {rounding.note}")
        checked = None
        if config.audit:
            checked = audit(objective, operator, rounding, kinks, config.seed)
            self.matvecs["audit"] = checked.num_matvecs
            self.warnings += [f"the audit found: {what}" for what in checked.complaints]
        gradient = requested.gradient(network)
        scaled = scaled_gradient(gradient, operator)
        # A density's quadrature is of a random vector.
        guess = scaled if config.top_k and not config.density else None
        pairs = self._with_process(operator, replace(wanted, guess=guess))
        self._count_eigenpairs(pairs)
        is_clear = norm(scaled) >= CLEAR_OF_ROUNDING * (rounding.gradient or 0.0)
        exact = self._exact_trace(objective, block)
        trace = self._trace(operator, block, pairs, exact, max_basis)
        if trace is not None:
            self.matvecs["trace"] = trace.estimate.num_matvecs
        density = self._density(operator, pairs, max_basis)
        layers = self._layers(network, pairs, trace, exact)
        preconditioned = self._preconditioned(network, beside)
        if checked is not None and pairs.process is not None:
            checked = replace(checked, orthogonality=pairs.process.basis.orthogonality())
        # Without its basis and the graphs, before the halves build theirs.
        pairs = replace(pairs, process=None)
        plan, keeps_graph = network.plan, network.keeps_graph
        network.release()
        halves = self._halves(block, wanted) if config.halves else None
        why_no_share = _why_no_share(pairs, is_clear=is_clear)
        return Spectrum(
            loss=objective.center.loss,
            gradient_norm=norm(gradient),
            gradient_share=_share(scaled, pairs) if why_no_share is None else None,
            gradient_share_note=why_no_share,
            eigenpairs=replace(pairs, eigenvectors=block.embed(pairs.eigenvectors)),
            preconditioned=preconditioned,
            trace=trace,
            density=density,
            layers=layers,
            halves=halves,
            audit=checked,
            matvecs=self.matvecs,
            plan=plan,
            rewriting=network.model.note,
            keeps_graph=keeps_graph,
            block=block,
            unconverged=tuple(self.unconverged),
            warnings=tuple(self.warnings),
        )

    def _wanted(self, block: Block) -> Wanted:
        config = self.config
        warm = self.setting.warm_start
        if warm is not None:
            warm = block.extract(warm)
            warm = warm[torch.linalg.vector_norm(warm, dim=1) > 0]
            if not len(warm):
                warm = None
                self.warnings.append("--warm-start has nothing in these layers: a cold start")
        return Wanted(
            top_k=config.top_k,
            bottom_k=config.bottom_k,
            rtol=config.rtol,
            vector_rtol=config.vector_rtol,
            max_matvecs=config.max_matvecs,
            max_basis=config.max_basis,
            multiplicity=config.multiplicity,
            warm_start=warm,
            recheck=config.recheck,
            seed=config.seed,
        )

    def _largest(self) -> Wanted:
        """The largest eigenvalue alone, of a matrix beside the main one."""
        config = self.config
        return Wanted(
            1,
            rtol=config.rtol,
            max_matvecs=config.max_matvecs,
            max_basis=config.max_basis,
            seed=config.seed,
        )

    def _with_process(self, operator: Operator, wanted: Wanted) -> Eigenpairs:
        """Eigenpairs and the space that they leave, empty if none are wanted."""
        basis = self._basis(operator)
        pairs = extreme_eigenpairs(operator, wanted, basis=basis, progress=self.progress)
        if pairs.process is None and (self.config.wants_trace or self.config.density):
            start = standard_normal(operator.dim, self.config.seed, "hessian", "start")
            process = Lanczos(operator, start, self.config.seed, self._basis(operator))
            return replace(pairs, process=process)
        return pairs

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
        self.unconverged += pairs.unconverged
        self.warnings += pairs.warnings

    def _exact_trace(self, objective: Objective, block: Block) -> ExactTrace | str:
        """The trace by each parameter where no probe is needed, or why it has to be estimated."""
        if not self.config.wants_trace:
            return "not asked"
        if self.config.scaling != "none":
            return "the matrix is scaled"
        return exact_trace(objective, self.config.operator, block, self.progress)

    @property
    def _decay(self) -> float:
        """ω where the operator has it."""
        return self.setting.weight_decay if self.config.include_weight_decay else 0.0

    def _trace(
        self,
        operator: Operator,
        block: Block,
        pairs: Eigenpairs,
        exact: ExactTrace | str,
        max_basis: int,
    ) -> Trace | None:
        """Trace and norm, from the space that the eigenvalues left.

        An exact trace leaves 20 probes to do: for the norm, and to be checked by.
        """
        config, process = self.config, pairs.process
        if process is None or not config.wants_trace:
            return None
        total, spent = config.trace_matvecs, process.num_steps
        left = math.inf if total is None else total - spent
        if left < 2 and not completes(process, left, max_basis):
            total = spent + MIN_PROBES
        estimate = estimate_trace(
            process,
            rtol=config.trace_rtol if isinstance(exact, str) else math.inf,
            num_total=total,
            max_basis=max_basis,
            seed=config.seed,
            progress=self.progress,
        )
        if total != config.trace_matvecs:
            self.warnings.append(
                f"the eigenvalues took {spent} products, all of --trace-matvecs "
                f"{config.trace_matvecs}: the trace took {estimate.num_matvecs} beside"
            )
        trace = self._reported(estimate, process, exact, block)
        if not trace.converged and trace.exact is None:
            self.warnings.append(
                f"the trace's standard error is above --trace-rtol {config.trace_rtol:g} of it "
                f"after {estimate.num_probes} probes"
            )
        elif not trace.converged:
            off = (
                f"{trace.deviation:.1f} standard errors from what {estimate.num_probes} probes say"
            )
            if not estimate.num_probes:
                off = "beyond rounding from what the whole basis says"
            self.warnings.append(
                f"the exact trace {trace.value:.9g} is {off}, {estimate.value:.9g}: "
                "one of them is wrong"
            )
        return trace

    def _reported(
        self, estimate: TraceEstimate, process: Lanczos, exact: ExactTrace | str, block: Block
    ) -> Trace:
        """An estimate from a space, or what is known exactly in its place."""
        operator = process.operator
        units = operator.rounding_units * torch.finfo(operator.dtype).eps
        known, rounding = None, estimate.rounding
        if isinstance(exact, str):
            note = exact
        else:
            decay = self._decay * block.dim
            known, rounding = exact.of(block) + decay, units * (exact.size_of(block) + decay)
            note = exact.reason + ("; + ωP by weight decay" if decay else "")
        return Trace(
            estimate=estimate,
            exact=known,
            rounding=rounding,
            estimate_rounding=units * process.size * estimate.frobenius_norm,
            note=note,
        )

    def _density(
        self, operator: Operator, pairs: Eigenpairs, max_basis: int
    ) -> SpectralDensity | None:
        if not self.config.density:
            return None
        process = pairs.process
        if self.setting.warm_start is not None and process is not None and not process.is_complete:
            process = None  # it did not begin at a Gaussian vector
        density = spectral_density(
            operator,
            process=process,
            basis=self._basis(operator),
            num_steps=min(NUM_STEPS, max_basis),
            seed=self.config.seed,
            progress=self.progress,
        )
        self.matvecs["density"] = density.num_matvecs
        return density

    def _layers(
        self,
        network: NetworkOperator[Any],
        pairs: Eigenpairs,
        trace: Trace | None,
        exact: ExactTrace | str,
    ) -> tuple[LayerCurvature, ...] | None:
        if not self.config.per_layer or trace is None:
            return None
        whole = None if pairs.process is None else pairs.process.ritz()
        floor, scale = (0.0, 0.0) if whole is None else (whole.rounding, whole.scale)

        def compose(part: NetworkOperator[Any]) -> Operator:
            operator = self.requested.composed(part)
            operator.rounding_floor = floor
            return operator

        layers, spent = curvature_of_layers(
            network,
            compose,
            replace(self._largest(), scale=scale),
            trace,
            basis=self._basis,
            report=lambda estimate, process, block: self._reported(estimate, process, exact, block),
            progress=self.progress,
        )
        self.matvecs["layers"] = spent
        missed = [f"{layer.name}: {text}" for layer in layers for text in layer.unconverged]
        self.unconverged += missed
        self.warnings += missed
        return layers

    def _preconditioned(
        self, network: NetworkOperator[Any], rounding: Rounding | None
    ) -> Eigenpairs | None:
        """The largest curvature that Adam's steps see, where the main operator is another."""
        if rounding is None:
            return None
        operator = self.requested.preconditioned(network)
        operator.measured_rounding = rounding.units
        basis = self._basis(operator)
        pairs = extreme_eigenpairs(operator, self._largest(), basis=basis, progress=self.progress)
        self.matvecs["preconditioned"] = pairs.num_matvecs
        missed = [f"preconditioned: {text}" for text in pairs.unconverged]
        self.unconverged += missed
        self.warnings += missed
        return replace(pairs, process=None)

    def _halves(self, block: Block, wanted: Wanted) -> tuple[Half, Half]:
        samples, middle = self.objective.samples, len(self.objective.samples) // 2
        first = samples.head(middle)
        second = Samples(samples.inputs[middle:], samples.labels[middle:])
        wanted = replace(wanted, multiplicity=False, recheck=False)
        halves = (self._half(first, block, wanted), self._half(second, block, wanted))
        self.matvecs["halves"] = sum(
            half.eigenpairs.num_matvecs + (half.trace.estimate.num_matvecs if half.trace else 0)
            for half in halves
        )
        return halves

    def _half(self, samples: Samples, block: Block, wanted: Wanted) -> Half:
        with self.objective.replaced(samples=samples) as objective:
            model = self.requested.rewritten(objective)
            network, operator, _ = self.requested.measured(objective, block, model)
            gradient = self.requested.gradient(network)
            guess = scaled_gradient(gradient, operator) if wanted.top_k else None
            said = len(self.warnings)
            pairs = self._with_process(operator, replace(wanted, guess=guess))
            self.warnings += pairs.warnings
            exact = self._exact_trace(objective, block)
            max_basis = basis_limit(operator.dim, operator.dtype, wanted)
            trace = self._trace(operator, block, pairs, exact, max_basis)
            of = "half of the samples: "
            self.unconverged += [of + text for text in pairs.unconverged]
            self.warnings[said:] = [of + text for text in self.warnings[said:]]
            return Half(len(samples), replace(pairs, process=None), trace)


def _share(gradient: Tensor, pairs: Eigenpairs) -> float | None:
    """Share of the gradient's square in the space of the k largest eigenvectors."""
    square = norm(gradient) ** 2
    if not pairs.top_k or square == 0:
        return None
    return sum(dot(vector, gradient) ** 2 for vector in pairs.eigenvectors[: pairs.top_k]) / square


def _why_no_share(pairs: Eigenpairs, *, is_clear: bool) -> str | None:
    if not is_clear:
        return "lost in rounding: --dtype float64"
    if not pairs.has_top_space:
        return "not known, as the next eigenvalue is not told apart from theirs: another --top-k"
    return None
