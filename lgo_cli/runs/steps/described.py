"""A measured spectrum as the manifest and the `.npz` hold it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli.results import (
    AuditResults,
    Density,
    Eigenvalue,
    FrobeniusNorm,
    Half,
    Halves,
    Layer,
    Layers,
    Trace,
    TraceEstimate,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lgo_cli.config import HessianConfig
    from lgo_cli.curvature.audit import Audit
    from lgo_cli.curvature.density import SpectralDensity
    from lgo_cli.curvature.eigenpairs import Eigenpairs
    from lgo_cli.curvature.spectrum import Half as MeasuredHalf
    from lgo_cli.curvature.spectrum import LayerCurvature, Spectrum
    from lgo_cli.curvature.spectrum import Trace as MeasuredTrace
    from lgo_cli.vectors import Block


def arrays_of(spectrum: Spectrum) -> dict[str, Any]:
    """The arrays of `hessian.npz`."""
    pairs = spectrum.eigenpairs
    k = pairs.top_k
    arrays: dict[str, Any] = {
        "largest": pairs.largest.numpy(),
        "smallest": pairs.smallest.numpy(),
        "eigenvectors": pairs.eigenvectors.cpu().numpy(),
        "largest_residual_bounds": pairs.largest_residual_bounds.numpy(),
        "smallest_residual_bounds": pairs.smallest_residual_bounds.numpy(),
        "largest_error_estimates": pairs.error_estimates[:k].numpy(),
        "smallest_error_estimates": pairs.error_estimates[k:].numpy(),
    }
    if spectrum.density is not None:
        arrays["density_nodes"] = spectrum.density.nodes
        arrays["density_weights"] = spectrum.density.weights
    if spectrum.layers is not None:
        arrays["layer_names"] = np.array([layer.name for layer in spectrum.layers])
        arrays["layer_largest"] = np.array([layer.largest for layer in spectrum.layers])
        arrays["layer_residual_bounds"] = np.array(
            [layer.residual_bound for layer in spectrum.layers]
        )
        arrays["layer_traces"] = np.array([layer.trace.value for layer in spectrum.layers])
        arrays["layer_trace_standard_errors"] = np.array(
            [layer.trace.standard_error for layer in spectrum.layers]
        )
    return arrays


def describe_spectrum(spectrum: Spectrum, config: HessianConfig) -> dict[str, Any]:
    """All of `HessianResults` that the spectrum itself says."""
    pairs, trace = spectrum.eigenpairs, spectrum.trace
    ends = eigenvalues(pairs)
    return {
        "operator": config.operator,
        "scaling": config.scaling,
        "layers": None if spectrum.block.is_whole else _names(spectrum.block),
        "loss": spectrum.loss,
        "gradient_norm": spectrum.gradient_norm,
        "gradient_share": spectrum.gradient_share,
        "gradient_share_note": spectrum.gradient_share_note,
        **ends,
        "clusters": _clusters(pairs),
        "multiplicity_checked": pairs.checked_multiplicity,
        "num_largest_matvecs": pairs.num_largest_matvecs,
        "num_matvecs": spectrum.num_matvecs,
        "matvecs": spectrum.matvecs,
        "converged": spectrum.converged,
        "unconverged": list(spectrum.unconverged),
        "residual_floor": pairs.residual_floor,
        "rounding_allowance": pairs.rounding,
        "keeps_graph": spectrum.keeps_graph,
        "product_plan": spectrum.plan,
        "rewriting": spectrum.rewriting,
        "trace": None if trace is None else _trace(trace),
        "frobenius_norm": (
            None
            if trace is None
            else FrobeniusNorm(
                value=trace.estimate.frobenius_norm,
                standard_error=trace.estimate.frobenius_standard_error,
                rounding_allowance=trace.estimate.frobenius_rounding,
            )
        ),
        "density": None if spectrum.density is None else _density(spectrum.density),
        "per_layer": (
            None if spectrum.layers is None or trace is None else _layers(spectrum.layers, trace)
        ),
        "halves": None if spectrum.halves is None else _halves(spectrum.halves),
        "audit": None if spectrum.audit is None else _audit(spectrum.audit),
    }


def _names(block: Block) -> list[str]:
    """Its modules, and where a module is not whole the parameters."""
    whole = block.whole(block.full).modules()
    names: list[str] = []
    for module, part in block.modules().items():
        names += [module] if part.members == whole[module].members else part.names
    return names


def eigenvalues(pairs: Eigenpairs) -> dict[str, list[Eigenvalue]]:
    """Both ends as the manifest holds them."""
    rows = [
        Eigenvalue(value=value, residual_bound=bound, error_estimate=estimate)
        for value, bound, estimate in zip(
            pairs.values.tolist(),
            pairs.residual_bounds.tolist(),
            pairs.error_estimates.tolist(),
            strict=True,
        )
    ]
    return {"largest": rows[: pairs.top_k], "smallest": rows[pairs.top_k :]}


def _clusters(pairs: Eigenpairs) -> Mapping[str, list[list[int]]]:
    """Ranks of either end, from 1."""
    ends: dict[str, list[list[int]]] = {"largest": [], "smallest": []}
    for cluster in pairs.clusters:
        if cluster[0] < pairs.top_k:
            ends["largest"].append([index + 1 for index in cluster])
        else:
            ends["smallest"].append([index - pairs.top_k + 1 for index in cluster])
    return ends


def _trace(trace: MeasuredTrace) -> Trace:
    estimate = trace.estimate
    return Trace(
        value=trace.value,
        standard_error=trace.standard_error,
        method="deflated" if trace.exact is None else "exact",
        note=trace.note,
        rounding_allowance=trace.rounding,
        estimate=TraceEstimate.model_validate(estimate, from_attributes=True),
        deviation=trace.deviation,
        num_matvecs=estimate.num_matvecs,
        num_total_matvecs=estimate.num_total_matvecs,
        num_probes=estimate.num_probes,
        converged=trace.converged,
    )


def _density(density: SpectralDensity) -> Density:
    from lgo_cli.curvature.density import CONFIDENCE

    return Density(
        mean=density.mean,
        num_nodes=len(density.nodes),
        wasserstein_bound=density.wasserstein_bound,
        quadrature_bound=density.quadrature_bound,
        sampling_bound=density.sampling_bound,
        confidence=CONFIDENCE,
        num_matvecs=density.num_matvecs,
    )


def _layers(layers: tuple[LayerCurvature, ...], whole: MeasuredTrace) -> Layers:
    """The blocks, and 1 − Σ‖H_bb‖²_F / ‖H‖²_F with the error of both to first order.

    A single block has nothing off it, and no chance of it either.
    """
    blocks = [
        Layer(
            name=layer.name,
            num_parameters=layer.num_parameters,
            largest=Eigenvalue(
                value=layer.largest,
                residual_bound=layer.residual_bound,
                error_estimate=layer.error_estimate,
            ),
            trace=layer.trace.value,
            trace_standard_error=layer.trace.standard_error,
            trace_rounding_allowance=layer.trace.rounding,
            frobenius_norm=layer.trace.estimate.frobenius_norm,
            frobenius_standard_error=layer.trace.estimate.frobenius_standard_error,
            frobenius_rounding_allowance=layer.trace.estimate.frobenius_rounding,
        )
        for layer in layers
    ]
    norm = whole.estimate
    total = norm.frobenius_norm**2
    inside = sum(block.frobenius_norm**2 for block in blocks)
    # The error of a square is 2x times that of x.
    error = math.sqrt(
        sum((2 * b.frobenius_norm * b.frobenius_standard_error) ** 2 for b in blocks)
        + (inside / total * 2 * norm.frobenius_norm * norm.frobenius_standard_error) ** 2
        if total > 0 and len(blocks) > 1
        else 0.0
    )
    return Layers(
        blocks=blocks,
        off_block_share=max(0.0, 1 - inside / total) if total > 0 else 0.0,
        off_block_share_standard_error=error / total if total > 0 else 0.0,
    )


def _halves(halves: tuple[MeasuredHalf, MeasuredHalf]) -> Halves:
    first, second = (
        Half(
            num_samples=half.num_samples,
            **eigenvalues(half.eigenpairs),
            converged=half.eigenpairs.converged,
            trace=None if half.trace is None else _trace(half.trace),
        )
        for half in halves
    )
    largest = [half.largest[0].value for half in (first, second) if half.largest]
    traces = [half.trace.value for half in (first, second) if half.trace is not None]
    return Halves(
        first=first,
        second=second,
        spread_of_largest=_spread(largest),
        spread_of_trace=_spread(traces),
    )


def _spread(values: list[float]) -> float | None:
    """Half the difference of two numbers, relative to their mean."""
    if len(values) != 2 or sum(values) == 0:
        return None
    return abs(values[0] - values[1]) / abs(sum(values))


def _audit(audit: Audit) -> AuditResults:
    return AuditResults(
        clean=not audit.complaints,
        complaints=list(audit.complaints),
        sample_weighting=audit.sample_weighting,
        asymmetry=audit.asymmetry,
        nonlinearity=audit.nonlinearity,
        finite_difference=audit.finite_difference,
        finite_difference_note=audit.finite_difference_note,
        nonsmooth=list(audit.nonsmooth),
        basis_orthogonality=audit.orthogonality,
        num_matvecs=audit.num_matvecs,
    )
