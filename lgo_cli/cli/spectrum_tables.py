"""What `lgo hessian` measured, as names and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgo_cli.results import counted, in_thousands, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgo_cli.cli.talk import Rows
    from lgo_cli.results import Eigenvalue, HessianResults, Trace

_OPERATORS = {
    "hessian": "Hessian",
    "ggn": "generalised Gauss-Newton matrix",
    "fisher": "Fisher matrix (equal to the Gauss-Newton matrix for this loss)",
    "empirical-fisher": "empirical Fisher matrix",
}
_SCALINGS = {
    "none": "",
    "elementwise": ", scaled as |w|·H·|w|",
    "adam": ", preconditioned as D^-1/2·H·D^-1/2",
}


def spectrum_rows(results: HessianResults) -> Rows:
    """Eigenvalues with their bounds, and what else was measured of the matrix."""
    measured = results.measured
    subset: Rows = [
        (
            "",
            f"the first of {measured.num_available:,}: a subset tends to overstate the largest",
        )
    ]
    share = results.gradient_share
    decay = "" if results.weight_decay is None else f", weight decay {results.weight_decay:g} in"
    rows: Rows = [
        *(subset if measured.num_samples < measured.num_available else []),
        ("operator", f"{_OPERATORS[results.operator]}{_SCALINGS[results.scaling]}{decay}"),
        *([("layers", ", ".join(results.layers))] if results.layers else []),
        ("loss", f"{results.loss:.6g}, gradient norm {results.gradient_norm:.4g}"),
        *_eigenvalues("largest", results.largest, results.clusters["largest"]),
        *_eigenvalues("smallest", results.smallest, results.clusters["smallest"]),
    ]
    has_all = len(results.largest) + len(results.smallest) == results.num_parameters
    if not results.multiplicity_checked and results.largest and not has_all:
        rows.append(
            ("", "one copy of a repeated eigenvalue is listed: --multiplicity looks for more")
        )
    number = "" if len(results.largest) == 1 else f"{len(results.largest)} "
    span = f"of its square in the span of the {number}largest"
    if share is not None:
        rows.append(("gradient", f"{percent(share)} {span}"))
    elif results.largest and results.gradient_norm > 0:
        why = results.gradient_share_note or "lost in rounding: --dtype float64"
        rows.append(("gradient", f"the share {span} is {why}"))
    rows += _moments(results)
    rows += _layers(results)
    rows += _halves(results)
    rows += _stability(results)
    state = "converged" if results.converged else "NOT CONVERGED"
    parts = ", ".join(f"{name} {number}" for name, number in results.matvecs.items() if number)
    rows.append(("cost", f"{counted(results.num_matvecs, 'product')} ({parts}), {state}"))
    early = results.num_largest_matvecs
    if early is not None and 2 * early < results.matvecs["eigenvalues"]:
        rows.append(("", f"the largest had converged after {early}: --bottom-k 0 ends about there"))
    return rows


def _eigenvalues(name: str, values: Sequence[Eigenvalue], clusters: list[list[int]]) -> Rows:
    """Value, the bound that holds, and the smaller error that is likely."""
    of = {rank: number for number, ranks in enumerate(clusters, start=1) for rank in ranks}
    rows: Rows = []
    for rank, pair in enumerate(values, start=1):
        mark = f"  cluster {of[rank]}" if rank in of else ""
        heading = "  (bound; estimated error)" if rank == 1 else ""
        rows.append(
            (
                f"{name} {rank}",
                f"{pair.value:>12.6g} ± {pair.residual_bound:.1e}  ~{pair.error_estimate:.1e}"
                f"{mark}{heading}",
            )
        )
    return rows


def _moments(results: HessianResults) -> Rows:
    rows: Rows = []
    trace, density = results.trace, results.density
    if trace is not None:
        rows += _trace(results, trace)
    if results.frobenius_norm is not None:
        norm = results.frobenius_norm
        error = _error(results, norm.standard_error, norm.rounding_allowance)
        rows.append(("norm", f"{norm.value:.6g} {error} (Frobenius)"))
    if density is not None:
        chance = f"{percent(density.confidence, 0)} confidence"
        rows.append(
            (
                "density",
                f"{density.num_nodes} nodes, mean eigenvalue {density.mean:.4g}; within "
                f"{density.wasserstein_bound:.2g} in Wasserstein distance "
                f"({chance if density.sampling_bound else 'all eigenvalues'})",
            )
        )
    return rows


def _exact(results: HessianResults, rounding: float) -> str:
    """What a number without chance is called: exact, unless the audit found something wrong."""
    if results.audit is not None and not results.audit.clean:
        return "DOUBTFUL"
    return f"exact to {rounding:.1e}" if rounding else "exact"


def _error(
    results: HessianResults, standard_error: float, rounding: float, form: str = ".2g"
) -> str:
    """What stands behind a number: chance, where there is more of it than of rounding."""
    if standard_error > rounding:
        return f"± {standard_error:{form}}"
    return _exact(results, rounding)


def _trace(results: HessianResults, trace: Trace) -> Rows:
    """Exact or estimated, and what the other way to it says."""
    estimate, exact = trace.estimate, _exact(results, trace.rounding_allowance)
    probes = f"{estimate.value:.6g} ± {estimate.standard_error:.2g}"
    if trace.method == "exact":
        basis = f"the basis says {estimate.value:.6g}"
        says = f"{trace.num_probes} probes say {probes}" if trace.num_probes else basis
        return [("trace", f"{trace.value:.6g} {exact} ({trace.note}); {says}")]
    if not trace.num_probes:
        return [("trace", f"{trace.value:.6g} {exact} (the basis spans the whole space)")]
    error = _error(results, trace.standard_error, trace.rounding_allowance)
    name = "standard error, " if error != exact else ""
    text = f"{name}{trace.num_probes} probes; {estimate.exact_part:.4g} of it {exact}"
    return [("trace", f"{trace.value:.6g} {error} ({text})"), ("", f"estimated: {trace.note}")]


def _layers(results: HessianResults) -> Rows:
    if results.per_layer is None:
        return []
    layers = results.per_layer
    rows: Rows = [("  per layer", f"{'largest':>11}{'trace':>21}{'parameters':>27}")]
    for block in layers.blocks:
        error = _error(results, block.trace_standard_error, block.trace_rounding_allowance, ".1e")
        rows.append(
            (
                f"  {block.name}",
                f"{block.largest.value:>11.6g} ± {block.largest.residual_bound:.1e}  "
                f"{block.trace:>9.5g} {error:<16} {block.num_parameters:>9,}",
            )
        )
    rows.append(
        (
            "off blocks",
            f"{percent(layers.off_block_share)} ± "
            f"{percent(layers.off_block_share_standard_error)} of the squared Frobenius norm",
        )
    )
    return rows


def _halves(results: HessianResults) -> Rows:
    if results.halves is None:
        return []
    halves = results.halves
    rows: Rows = []
    pairs = list(zip(halves.first.largest, halves.second.largest, strict=True))
    for rank, (first, second) in enumerate(pairs[:3], start=1):
        rows.append(
            (
                f"halves {rank}",
                f"{first.value:.6g} and {second.value:.6g} on {halves.first.num_samples:,} and "
                f"{halves.second.num_samples:,} samples",
            )
        )
    if halves.spread_of_largest is not None:
        rows.append(("", f"spread of the largest {percent(halves.spread_of_largest)}"))
    if halves.first.trace is not None and halves.second.trace is not None:
        rows.append(
            ("", f"traces {halves.first.trace.value:.5g} and {halves.second.trace.value:.5g}")
        )
    return rows


def _stability(results: HessianResults) -> Rows:
    if results.stability_threshold is None:
        return [("stability", f"no threshold: {results.stability_threshold_note}")]
    ratio = results.sharpness_ratio
    other = " of the curvature that the run's steps see, which was not measured"
    shown = other if ratio is None else f", sharpness ratio {ratio:.4g}"
    rows: Rows = []
    if results.preconditioned is not None:
        pair, decay = results.preconditioned, results.preconditioned_weight_decay
        of = f"D^-1·(H + {decay:g}·I): Adam's weight decay is in" if decay else "D^-1·H"
        rows.append(
            ("preconditioned", f"{pair.value:.6g} ± {pair.residual_bound:.1e}, largest of {of}")
        )
    rows.append(("stability", f"threshold {in_thousands(results.stability_threshold)}{shown}"))
    if results.stability_threshold_note:
        rows.append(("", results.stability_threshold_note))
    return rows
