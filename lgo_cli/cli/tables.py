"""Results as plain text: what a person reads on stdout."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lgo_cli.cli.path_tables import interval, path_rows
from lgo_cli.cli.talk import laid_out
from lgo_cli.results import (
    AnalysisResults,
    ContourResults,
    HessianResults,
    InterpResults,
    Planes,
    TrainResults,
    batchnorm_statistics,
    counted,
    percent,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgo_cli.manifest import Manifest
    from lgo_cli.results import Eigenvalue, Filling, Trace

Rows = list[tuple[str, str]]


def summary_lines(manifest: Manifest, columns: int | None = None) -> list[str]:
    """A step's results as aligned lines, for a terminal of so many columns if there is one."""
    return laid_out(summary(manifest), columns)


def summary(manifest: Manifest) -> Rows:
    """A step's results as names and values."""
    results, dataset = manifest.results, manifest.called("dataset")
    parameters = counted(results.num_parameters, "parameter")
    rows: Rows = [("model", f"{manifest.called('model')}, {parameters}")]
    if isinstance(results, TrainResults):
        return rows + _train(results, dataset)
    if isinstance(results, AnalysisResults):
        measured = results.measured
        smoothing = (
            f", label smoothing {measured.label_smoothing:g}" if measured.label_smoothing else ""
        )
        rows.append(
            (
                "objective",
                f"mean {measured.loss}{smoothing} on "
                f"{counted(measured.num_samples, f'{measured.split} sample')} of {dataset}, "
                f"{measured.dtype}",
            )
        )
        if measured.batchnorm != "none":
            pairs = isinstance(results, InterpResults) and results.matrix is not None
            words = batchnorm_statistics(measured.model_dump(), pairs=pairs)
            rows.append(("batch norm", f"statistics {words}"))
    if isinstance(results, HessianResults):
        return rows + _hessian(results)
    if isinstance(results, InterpResults):
        return rows + path_rows(results)
    if isinstance(results, ContourResults):
        return rows + _contour(results)
    return rows


def _train(results: TrainResults, dataset: str) -> Rows:
    recipe = results.recipe
    momentum = f", momentum {recipe.momentum:g}" if recipe.momentum else ""
    nesterov = " (Nesterov)" if recipe.nesterov else ""
    return [
        (
            "data",
            f"{dataset}, {results.num_train_samples:,} training and "
            f"{results.num_test_samples:,} test samples",
        ),
        (
            "recipe",
            f"{recipe.optimizer}, lr {recipe.lr:g} {recipe.schedule}{momentum}{nesterov}, "
            f"weight decay {recipe.weight_decay:g}, batches of {recipe.batch_size}",
        ),
        ("epochs", f"{results.epochs} ({counted(results.num_steps, 'step')})"),
        ("train", f"loss {results.train_loss:.4g}, accuracy {results.train_accuracy:.4f}"),
        ("test", f"loss {results.test_loss:.4g}, accuracy {results.test_accuracy:.4f}"),
    ]


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


def _hessian(results: HessianResults) -> Rows:
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
    rows: Rows = [("  per layer", f"{'largest':>12}   {'trace':>10}")]
    for block in layers.blocks:
        error = _error(results, block.trace_standard_error, block.trace_rounding_allowance, ".1e")
        rows.append(
            (
                f"  {block.name}",
                f"{block.largest.value:>12.6g} ± {block.largest.residual_bound:.1e}   "
                f"{block.trace:>10.5g} {error:<16}   "
                f"({counted(block.num_parameters, 'parameter')})",
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
    shown = "" if ratio is None else f", sharpness ratio {ratio:.4g}"
    rows: Rows = []
    if results.preconditioned is not None:
        pair, decay = results.preconditioned, results.preconditioned_weight_decay
        of = f"D^-1·(H + {decay:g}·I): Adam's weight decay is in" if decay else "D^-1·H"
        rows.append(
            ("preconditioned", f"{pair.value:.6g} ± {pair.residual_bound:.1e}, largest of {of}")
        )
    rows.append(("stability", f"threshold {results.stability_threshold:.4g}{shown}"))
    if results.stability_threshold_note:
        rows.append(("", results.stability_threshold_note))
    return rows


def _contour(results: ContourResults) -> Rows:
    check = results.self_check
    rows: Rows = [
        (
            "plane",
            f"{results.plane}, x in {interval(results.x_range)}, y in {interval(results.y_range)}",
        ),
        ("axes", f"{results.axis_labels[0]} | {results.axis_labels[1]}"),
        ("loss", f"{results.loss_at_center:.6g} at the centre"),
    ]
    if results.loss_min is not None and results.loss_max is not None:
        rows.append(("range", f"{results.loss_min:.6g} to {results.loss_max:.6g}"))
    if results.explained_variance is not None:
        first, second = results.explained_variance
        rows.append(
            (
                "share",
                f"{percent(first)} and {percent(second)} of the trajectory's squared displacements",
            )
        )
    rows += _cells(results)
    if results.quadratic is not None:
        rows.append(
            (
                "quadratic",
                f"within a tenth of the loss up to radius {results.quadratic.radius:.3g}, "
                f"off by {results.quadratic.max_error:.2g} of it at most at the measured cells",
            )
        )
    test = results.test
    if test is not None:
        samples = counted(results.measured.num_test_samples or 0, "sample")
        cells = f"{test.num_measured:,} of {results.num_cells:,} measured"
        if test.filling is not None and not test.filling.converged:
            cells += f"; the rest {_filled(test.filling)}"
        rows.append(
            (
                "test",
                f"{test.loss_at_center:.6g} at the centre, accuracy {test.accuracy_at_center:.4f}, "
                f"{samples}; {cells}",
            )
        )
        if test.loss_min is not None and test.loss_max is not None:
            rows.append(("", f"{test.loss_min:.6g} to {test.loss_max:.6g}"))
    if results.planes is not None:
        rows += _planes(results.planes)
    if results.convexity is not None:
        convexity = results.convexity
        largest = f"up to {convexity.largest_ratio:.3g} ± {convexity.largest_ratio_error:.1g}"
        if math.isnan(convexity.largest_ratio):
            largest = "finite at no cell"
        rows.append(
            (
                "convexity",
                f"|λmin/λmax| {largest}, {convexity.num_converged} of {convexity.num_cells} "
                f"cells converged, {convexity.num_matvecs:,} products",
            )
        )
    cell = check.recomputed_cell
    fast = f"fast path equal to {check.fast_path_difference:.1e}, " if results.is_fast else ""
    rows.append(
        (
            "self-check",
            f"centre off by {check.center_difference:.1e}, axes' cosine {check.axis_cosine:.1e}, "
            f"{fast}cell ({cell.row}, {cell.column}) recomputed to {cell.difference:.1e}, "
            f"{check.num_nonfinite} not finite",
        )
    )
    if not results.is_fast:
        rows.append(("", f"cells took {results.cell_plan}"))
    return rows


def _cells(results: ContourResults) -> Rows:
    """How many cells were measured, and how far the others may be off."""
    filling = results.filling
    cells = f"{results.num_measured:,} of {results.num_cells:,} measured"
    if filling is None:
        return [("cells", cells)]
    if results.num_measured == results.num_cells:
        saves = f"filling in to {filling.tolerance:.3g} saves nothing"
        return [("cells", f"{cells}, worth {filling.cost:.0f}: {saves}")]
    rest = _filled(filling)
    text = f"stated up to {filling.largest_relative_estimate:.1e} of the loss"
    check = filling.check
    if check is not None and check.worst_error == filling.largest_error_estimate == 0:
        rest = "lie among cells that are not finite"
        text = f"nothing was filled in; {check.num_cells} of the rest, measured, are not finite"
    elif check is not None:
        text += (
            f"; {check.num_cells} cells measured after all were off by "
            f"{check.worst_error:.1e} at most"
        )
    return [("cells", f"{cells}, worth {filling.cost:.0f}; the rest {rest}"), ("error", text)]


def _filled(filling: Filling) -> str:
    """To what the cells that were not measured were filled in."""
    if filling.converged:
        return f"filled in to {filling.tolerance:.3g}"
    return (
        f"NOT filled in to {filling.tolerance:.3g}, short of it at {percent(filling.share_above)}"
    )


def _planes(planes: Planes) -> Rows:
    low, high = planes.loss_min, planes.loss_max
    ended = [filling for filling in planes.fillings if not filling.converged]
    short = f"; {len(ended)} NOT filled in to {ended[0].tolerance:.3g}" if ended else ""
    rows = [
        (
            "planes",
            f"{planes.num_planes}; largest loss {high.median:.4g} in the median "
            f"({high.minimum:.4g} to {high.maximum:.4g}), smallest {low.median:.4g}{short}",
        )
    ]
    lines = planes.line_curvature
    if lines is not None:
        rows.append(
            (
                "curvature",
                f"{lines.mean:.4g} ± {lines.standard_error:.1g} along {lines.num_lines} random "
                f"lines, {lines.expected:.4g} ± {lines.expected_standard_error:.1g} by the trace: "
                f"{abs(lines.deviation):.2g} standard errors apart (95 % are within 1.96)",
            )
        )
    return rows
