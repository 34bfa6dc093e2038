"""The results of a run as one row of a table, so that many runs stand side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lgo_cli.results import (
    AnalysisResults,
    ContourResults,
    HessianResults,
    InterpResults,
    TrainResults,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lgo_cli.manifest import Manifest, Request
    from lgo_cli.runs.inspect import StepState

Row = dict[str, Any]


def run_row(directory: Path, states: Sequence[StepState]) -> Row:
    """The results of one run in one row: what was trained and what each analysis found.

    Values that no step has measured are `None`, also where one measured other weights than the
    run's final ones, such as those before it was trained again, or on other data; such steps, and
    those whose inputs or outputs have changed since, are named in `problems`, each with its reason.
    """
    row: Row = {"run": str(directory), **dict.fromkeys(COLUMNS)}
    for state in states:
        if state.manifest is not None and not state.aside:
            row |= _columns(state.manifest, directory)
    reasons = [f"{state.command}: {state.reason}" for state in states if state.reason]
    row["problems"] = "; ".join(reasons) or None
    return row


COLUMNS = (
    "model", "dataset", "loss", "num_train_samples", "num_test_samples", "seed", "epochs",
    "optimizer", "lr", "batch_size", "weight_decay", "init", "train_loss", "test_loss",
    "train_accuracy", "test_accuracy", "hessian_num_samples", "hessian_loss", "operator",
    "lambda_max", "lambda_max_bound", "lambda_min", "trace", "trace_standard_error",
    "gradient_share", "preconditioned", "stability_threshold", "sharpness_ratio",
    "interp_num_samples", "barrier", "barrier_lower", "barrier_upper", "barrier_path",
    "contour_num_samples", "contour_loss_min", "contour_loss_max", "problems",
)  # fmt: skip


def _columns(manifest: Manifest, directory: Path) -> Row:
    results = manifest.results
    named = {
        "model": manifest.called("model"),
        "dataset": manifest.called("dataset"),
        "loss": manifest.called("loss"),
    }
    if isinstance(results, TrainResults):
        return {
            **named,
            "num_train_samples": results.num_train_samples,
            "num_test_samples": results.num_test_samples,
            "seed": manifest.request.config["seed"],
            "epochs": results.epochs,
            "optimizer": results.recipe.optimizer,
            "lr": results.recipe.lr,
            "batch_size": results.recipe.batch_size,
            "weight_decay": results.recipe.weight_decay,
            "init": manifest.place("init.pth", directory),
            "train_loss": results.train_loss,
            "test_loss": results.test_loss,
            "train_accuracy": results.train_accuracy,
            "test_accuracy": results.test_accuracy,
        }
    row: Row = dict(named)
    if isinstance(results, AnalysisResults):
        row[f"{manifest.request.command}_num_samples"] = results.measured.num_samples
    if isinstance(results, HessianResults):
        row["hessian_loss"] = results.loss
        row["operator"] = _operator_of(results, manifest.request)
        if results.largest:
            row["lambda_max"] = results.largest[0].value
            row["lambda_max_bound"] = results.largest[0].residual_bound
        if results.smallest:
            row["lambda_min"] = results.smallest[0].value
        if results.trace is not None:
            row["trace"] = results.trace.value
            row["trace_standard_error"] = results.trace.standard_error
        row["gradient_share"] = results.gradient_share
        if results.preconditioned is not None:
            row["preconditioned"] = results.preconditioned.value
        row["stability_threshold"] = results.stability_threshold
        row["sharpness_ratio"] = results.sharpness_ratio
    if isinstance(results, InterpResults) and results.barrier_interval is not None:
        row["barrier"] = results.barrier
        row["barrier_lower"], row["barrier_upper"] = results.barrier_interval
        row["barrier_path"] = _path_of(results)
    if isinstance(results, ContourResults):
        row["contour_loss_min"] = results.loss_min
        row["contour_loss_max"] = results.loss_max
    return row


def _operator_of(results: HessianResults, request: Request) -> str:
    """Of what matrix the eigenvalues and the trace are: those of different ones do not compare."""
    parts = [results.operator]
    parts += [results.scaling] if results.scaling != "none" else []
    parts += ["with weight decay"] if results.weight_decay is not None else []
    layers = request.config["layers"]  # as they were asked for, not each that matched
    parts += [f"of {', '.join(map(str, layers))}"] if isinstance(layers, list) and layers else []
    return " ".join(parts)


def _path_of(results: InterpResults) -> str:
    """What a barrier is of: barriers of different paths do not compare."""
    parts: list[str] = [results.shape]
    parts += ["aligned"] if results.alignment is not None else []
    is_repaired = results.repair is not None and bool(results.repair.layers)
    parts += ["repaired"] if is_repaired else []
    if results.measured.batchnorm != "none" and not is_repaired:
        parts.append(f"batch norm {results.measured.batchnorm}")
    end = "init" if results.along == "init" else "other"
    return f"{' '.join(parts)} to {end}"
