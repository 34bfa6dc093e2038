"""What a step's own payloads say, by which `lgo verify` judges its results; without torch."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli.config import InterpConfig, TrainConfig
from lgo_cli.landscape.heights import highest
from lgo_cli.landscape.statistics import plane_statistics
from lgo_cli.results import BandResults, ContourResults, ConvexityResults, absent_if_nan
from lgo_cli.training.recipe import resolve_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lgo_cli.landscape.statistics import Band, PlaneStatistics
    from lgo_cli.manifest import Manifest

MATRIX_FIELDS = ("barrier", "standard_error", "lower", "upper")
"""Of `BarrierMatrix`, on either split."""

_BESIDE = ("unaligned", "line", "unrepaired")
"""Paths that may stand beside the first."""


def evidence(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """Results as the step's own payloads have them: fields by name, nested as in the results.

    What no payload says is left out.

    Args:
        directory: Where the payloads are, intact.
        manifest: Which says what they are of.

    Raises:
        KeyError: if a payload lacks an array, which is named.
    """
    of = {
        "train": _train_evidence,
        "hessian": _hessian_evidence,
        "interp": _interp_evidence,
        "contour": _contour_evidence,
    }
    return of[manifest.request.command](directory, manifest)


def load_arrays(path: Path) -> dict[str, Any]:
    """Read the `.npz` of a step."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _train_evidence(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """The last line of the log, and the recipe, which the request determines."""
    with (directory / "train.csv").open(newline="") as handle:
        last = list(csv.DictReader(handle))[-1]
    losses, accuracies = ("train_loss", "test_loss"), ("train_accuracy", "test_accuracy")
    step = int(last["step"])
    config = TrainConfig.model_validate(manifest.request.config)
    return {
        **{name: float(last[name]) for name in losses},
        **{name: absent_if_nan(float(last[name])) for name in accuracies},
        "epochs": int(last["epoch"]),
        "num_steps": step,
        "final_lr": float(last["learning_rate"]) if step else None,
        "recipe": resolve_recipe(config),
    }


def _hessian_evidence(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """Eigenvalues with their bounds, the density's nodes and the blocks' numbers."""
    arrays = load_arrays(directory / "hessian.npz")
    found: dict[str, Any] = {"density": None, "per_layer": None}
    for end in ("largest", "smallest"):
        found[end] = _rows(
            value=arrays[end],
            residual_bound=arrays[f"{end}_residual_bounds"],
            error_estimate=arrays[f"{end}_error_estimates"],
        )
    if "density_nodes" in arrays:
        nodes, weights = arrays["density_nodes"], arrays["density_weights"]
        found["density"] = {"num_nodes": len(nodes), "mean": float(nodes @ weights)}
    if "layer_names" in arrays:
        blocks = _rows(
            name=arrays["layer_names"],
            trace=arrays["layer_traces"],
            trace_standard_error=arrays["layer_trace_standard_errors"],
        )
        largest = _rows(
            value=arrays["layer_largest"], residual_bound=arrays["layer_residual_bounds"]
        )
        pairs = zip(blocks, largest, strict=True)
        found["per_layer"] = {"blocks": [{**block, "largest": top} for block, top in pairs]}
    return found


def _rows(**columns: Any) -> list[dict[str, Any]]:
    """Arrays of one length as one mapping for each entry."""
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def _interp_evidence(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """Ends and barriers, recomputed from the losses, or the matrices; what a curve was to be."""
    arrays, config = load_arrays(directory / "interp.npz"), manifest.request.config
    if config["matrix"]:
        return {"num_points": len(arrays["alpha"]), "matrix": _matrix_evidence(arrays)}
    found = _path_evidence(arrays, has_end=config["direction"] is None)
    return {**found, "curve": _curve_evidence(InterpConfig.model_validate(config))}


def _curve_evidence(config: InterpConfig) -> dict[str, Any] | None:
    """The fields of `CurveResults` that the request determines."""
    if config.curve is None:
        return None
    recipe = resolve_recipe(config)
    return {"kind": config.curve, "num_bends": config.num_bends or 1, "recipe": recipe}


def _path_evidence(arrays: Mapping[str, Any], *, has_end: bool) -> dict[str, Any]:
    """What `path_arrays` has of `path_results`, of a path and of those beside it.

    Barriers only where a point between the ends was measured.
    """
    alpha, loss = arrays["alpha"], arrays["loss"]
    found: dict[str, Any] = {
        "range": (float(alpha[0]), float(alpha[-1])),
        "num_points": len(alpha),
        "loss_at_start": loss[alpha == 0.0].item(),
        "loss_at_end": loss[alpha == 1.0 if has_end else [-1]].item(),
        "direction_norm": direction_norm(arrays["direction"]),
    }
    for split in ("", "test_"):
        losses = [arrays.get(f"{name}{split}loss") for name in ("", *(f"{b}_" for b in _BESIDE))]
        found[f"{split}num_nonfinite"] = sum(
            int(np.sum(~np.isfinite(each))) for each in losses if each is not None
        )
    if has_end and np.sum((alpha >= 0) & (alpha <= 1)) == 2:
        return found
    for split in ("", "test_"):
        names = (f"{split}barrier", f"{split}barrier_standard_error", f"{split}barrier_alpha")
        barrier = _barrier_evidence(arrays, split).values() if has_end else (None, None, None)
        found |= zip(names, barrier, strict=True)
        for name in _BESIDE:
            is_beside = f"{name}_loss" in arrays
            beside = _barrier_evidence(arrays, f"{name}_{split}") if is_beside else None
            found[f"{split}barrier_{name}"] = beside
    return found


def _barrier_evidence(arrays: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The fields of `Barrier` that the arrays of a path have; its interval is of single samples."""
    alpha, loss = arrays["alpha"], arrays[f"{prefix}loss"]
    top, value = highest(alpha, loss)
    within = (alpha >= 0) & (alpha <= 1)
    error = arrays[f"{prefix}barrier_standard_error"][top]
    error = error if np.isfinite(loss[within]).all() else math.nan
    return {"value": value, "standard_error": float(error), "alpha": float(alpha[top])}


def direction_norm(direction: np.ndarray) -> float:
    """Length of a direction [P], in float64 whatever its own type."""
    return float(np.linalg.norm(direction.astype(np.float64)))


def _matrix_evidence(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `BarrierMatrix` that `interp.npz` has."""
    return {
        f"{prefix}{name}": arrays[f"{prefix}matrix_{name}"].tolist()
        for prefix in ("", "test_")
        for name in MATRIX_FIELDS
    }


def _contour_evidence(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """What the grids say: extent, size, centre and extremes, on the test samples too."""
    arrays = load_arrays(directory / "contour.npz")
    planes = arrays.get("planes_loss")
    found = {
        **_grid_evidence(arrays),
        "num_cells": arrays["loss"].size,
        "x_range": (float(arrays["x"][0]), float(arrays["x"][-1])),
        "y_range": (float(arrays["y"][0]), float(arrays["y"][-1])),
        "test": _grid_evidence(arrays, "test_") if "test_loss" in arrays else None,
        "planes": None,
        "convexity": None,
    }
    if planes is not None:
        assert isinstance(manifest.results, ContourResults)
        center = manifest.results.loss_at_center
        found["planes"] = {
            **plane_extremes(plane_statistics(arrays["x"], arrays["y"], planes, center)),
            "self_checks": [
                {"num_nonfinite": int(np.sum(~np.isfinite(loss)))} for loss in planes[1:]
            ],
        }
    if "convexity_ratio" in arrays:
        found["convexity"] = convexity_results(arrays)
    if "plane_distances" in arrays:
        found["curve_distance"] = float(arrays["plane_distances"].max())
    return found


def _grid_evidence(arrays: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What the grids of one set of samples say; of the centre, where it is a cell."""
    loss, measured = arrays[f"{prefix}loss"], arrays[f"{prefix}measured"]
    finite = loss[np.isfinite(loss)]
    found = {
        "loss_min": float(finite.min()) if len(finite) else None,
        "loss_max": float(finite.max()) if len(finite) else None,
        "num_measured": int(measured.sum()),
        "self_check": {"num_nonfinite": loss.size - len(finite)},
    }
    center = np.ix_(arrays["y"] == 0, arrays["x"] == 0)
    if measured[center].any():
        found["loss_at_center"] = loss[center].item()
        if prefix:
            accuracy = arrays[f"{prefix}accuracy"][center].item()
            found["accuracy_at_center"] = absent_if_nan(accuracy)
    return found


def plane_extremes(statistics: PlaneStatistics) -> dict[str, Any]:
    """The fields of `Planes` that the surfaces alone settle."""
    return {
        "num_planes": statistics.num_planes,
        "loss_min": _band(statistics.loss_min),
        "loss_max": _band(statistics.loss_max),
    }


def _band(band: Band) -> BandResults:
    return BandResults(
        median=float(band.median),
        lower=float(band.lower),
        upper=float(band.upper),
        minimum=float(band.minimum),
        maximum=float(band.maximum),
    )


def convexity_results(arrays: Mapping[str, Any]) -> ConvexityResults:
    """What is reported of a convexity map, from its arrays."""
    ratio, error = arrays["convexity_ratio"], arrays["convexity_ratio_error"]
    surely = np.nan_to_num(ratio - error, nan=-np.inf)
    worst = np.unravel_index(int(np.argmax(surely)), surely.shape)
    return ConvexityResults(
        num_cells=surely.size,
        num_converged=int(arrays["convexity_converged"].sum()),
        largest_ratio=float(ratio[worst]),
        largest_ratio_error=float(error[worst]),
        num_matvecs=int(arrays["convexity_num_matvecs"].sum()),
    )
