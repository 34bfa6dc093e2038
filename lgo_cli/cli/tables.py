"""Results as plain text: what a person reads on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgo_cli.manifest import (
    AnalysisResults,
    ContourResults,
    HessianResults,
    InterpResults,
    TrainResults,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgo_cli.manifest import Eigenvalue, Manifest, Results

Rows = list[tuple[str, str]]


def summary_lines(manifest: Manifest) -> list[str]:
    """A step's results as aligned lines of name and value."""
    rows = summary(manifest.results)
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def summary(results: Results) -> Rows:
    """A step's results as names and values."""
    rows: Rows = [("model", f"{results.model}, {results.num_parameters:,} parameters")]
    if isinstance(results, TrainResults):
        return rows + _train(results)
    if isinstance(results, AnalysisResults):
        measured = results.measured
        smoothing = (
            f", label smoothing {measured.label_smoothing:g}" if measured.label_smoothing else ""
        )
        rows.append(
            (
                "objective",
                f"mean {measured.loss}{smoothing} on {measured.num_samples:,} {measured.split} "
                f"samples of {results.dataset}, {measured.dtype}",
            )
        )
        if measured.batchnorm == "frozen":
            rows.append(("batch norm", "frozen at the run's running statistics"))
    if isinstance(results, HessianResults):
        return rows + _hessian(results)
    if isinstance(results, InterpResults):
        return rows + _interp(results)
    if isinstance(results, ContourResults):
        return rows + _contour(results)
    return rows


def _train(results: TrainResults) -> Rows:
    recipe = results.recipe
    momentum = f", momentum {recipe.momentum:g}" if recipe.momentum else ""
    nesterov = " (Nesterov)" if recipe.nesterov else ""
    return [
        (
            "data",
            f"{results.dataset}, {results.num_train_samples:,} training and "
            f"{results.num_test_samples:,} test samples",
        ),
        (
            "recipe",
            f"{recipe.optimizer}, lr {recipe.lr:g} {recipe.schedule}{momentum}{nesterov}, "
            f"weight decay {recipe.weight_decay:g}, batches of {recipe.batch_size}",
        ),
        ("epochs", f"{results.epochs} ({results.num_steps:,} steps)"),
        ("train", f"loss {results.train_loss:.4g}, accuracy {results.train_accuracy:.4f}"),
        ("test", f"loss {results.test_loss:.4g}, accuracy {results.test_accuracy:.4f}"),
    ]


def _hessian(results: HessianResults) -> Rows:
    measured = results.measured
    subset: Rows = [
        (
            "",
            f"the first of {measured.num_available:,}: a subset tends to overstate the largest",
        )
    ]
    rows: Rows = [
        *(subset if measured.num_samples < measured.num_available else []),
        ("loss", f"{results.loss:.6g}, gradient norm {results.gradient_norm:.4g}"),
        *_eigenvalues("largest", results.largest),
        *_eigenvalues("smallest", results.smallest),
    ]
    if results.trace is not None:
        trace = results.trace
        rows.append(
            (
                "trace",
                f"{trace.value:.6g} ± {trace.standard_error:.2g} (standard error, "
                f"{trace.num_matvecs} probes)",
            )
        )
    if results.density is not None:
        density = results.density
        rows.append(
            (
                "density",
                f"mean eigenvalue {density.mean:.4g} ± {density.mean_standard_error:.2g} "
                f"({density.num_probes} probes of {density.num_steps} steps)",
            )
        )
    if results.stability_threshold is None:
        rows.append(("stability", f"no threshold: {results.stability_threshold_note}"))
    else:
        ratio = results.sharpness_ratio
        shown = "" if ratio is None else f", sharpness ratio {ratio:.4g}"
        rows.append(("stability", f"threshold {results.stability_threshold:.4g}{shown}"))
        if results.stability_threshold_note:
            rows.append(("", results.stability_threshold_note))
    state = "converged" if results.converged else "NOT CONVERGED"
    rows.append(("cost", f"{results.num_matvecs} Hessian-vector products, {state}"))
    return rows


def _eigenvalues(name: str, values: Sequence[Eigenvalue]) -> Rows:
    return [
        (f"{name} {rank}", f"{pair.value:>12.6g} ± {pair.residual_bound:.1e}")
        for rank, pair in enumerate(values, start=1)
    ]


def _interp(results: InterpResults) -> Rows:
    names = {"init": "to its initialisation", "to": "to the other checkpoint"}
    along = names.get(results.along, f"along the {results.along} direction")
    rows: Rows = [
        ("path", f"{along}, {results.num_points} points on {_interval(results.range)}"),
        ("loss", f"{results.loss_at_start:.6g} at 0, {results.loss_at_end:.6g} at the end"),
    ]
    if results.barrier is not None:
        rows.append(("barrier", f"{results.barrier:.6g} above the straight line between the ends"))
    rows.append(("curvature", f"{results.curvature_at_origin:.6g} at 0, d²L/dα²"))
    return rows


def _contour(results: ContourResults) -> Rows:
    check = results.self_check
    rows: Rows = [
        (
            "plane",
            f"{results.plane}, x in {_interval(results.x_range)}, "
            f"y in {_interval(results.y_range)}",
        ),
        ("axes", f"{results.axis_labels[0]} | {results.axis_labels[1]}"),
        ("loss", f"{results.loss_at_center:.6g} at the centre"),
    ]
    if results.loss_min is not None and results.loss_max is not None:
        rows.append(("range", f"{results.loss_min:.6g} to {results.loss_max:.6g}"))
    if results.explained_variance is not None:
        first, second = results.explained_variance
        rows.append(("variance", f"{first:.1%} and {second:.1%} of the trajectory's"))
    rows.append(("cells", f"{results.num_measured:,} of {results.num_cells:,} measured"))
    cell = check.recomputed_cell
    rows.append(
        (
            "self-check",
            f"centre off by {check.center_difference:.1e}, axes' cosine {check.axis_cosine:.1e}, "
            f"cell ({cell.row}, {cell.column}) recomputed to {cell.difference:.1e}, "
            f"{check.num_nonfinite} not finite",
        )
    )
    return rows


def _interval(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:.4g}, {bounds[1]:.4g}]"
