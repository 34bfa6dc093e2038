"""Arrays as tidy tables: a row is one measurement, a column one variable (Wickham 2014)."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

Columns = dict[str, Any]

CONVEXITY = {
    "ratio": "convexity_ratio",
    "ratio_error": "convexity_ratio_error",
    "lambda_max": "convexity_largest",
    "lambda_min": "convexity_smallest",
}
"""Columns of a convexity map, and the arrays that they are."""


def csv_files(
    command: str, arrays: Mapping[str, Any], results: Mapping[str, Any]
) -> dict[str, bytes]:
    """The tables of a step as CSV, by file name.

    Numbers have the shortest text that reads back as the same float; what is not finite is `nan`,
    `inf` or `-inf`. Vectors in parameter space stay in the `.npz`.

    Args:
        command: `hessian`, `interp` or `contour`.
        arrays: Of its `.npz`.
        results: Its results, as plain JSON values.
    """
    tables = {"hessian": _hessian, "interp": _interp, "contour": _contour}[command](arrays, results)
    return {f"{stem}.csv": _csv(columns) for stem, columns in tables.items()}


def _csv(columns: Columns) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    values = [np.asarray(column).tolist() for column in columns.values()]
    writer.writerows(zip(*values, strict=True))
    return text.getvalue().encode()


def _contour(arrays: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Columns]:
    del results
    names = ("loss", "standard_error", "accuracy", "measured", "error_estimate")
    cells = (*names, *(f"test_{name}" for name in names))
    measured = {name: arrays[name] for name in cells if name in arrays}
    tables = {"contour": _grid(arrays["x"], arrays["y"], measured)}
    if "convexity_x" in arrays:
        tables["contour_convexity"] = _grid(
            arrays["convexity_x"],
            arrays["convexity_y"],
            {name: arrays[key] for name, key in CONVEXITY.items()},
        )
    if "planes_loss" in arrays:
        loss = arrays["planes_loss"]
        each = [_grid(arrays["x"], arrays["y"], {"loss": plane}) for plane in loss]
        tables["contour_planes"] = {
            "plane": np.repeat(np.arange(len(loss)), loss[0].size),
            **{name: np.concatenate([grid[name] for grid in each]) for name in ("x", "y", "loss")},
        }
    if "profile_radius" in arrays:
        columns = ("radius", "median", "low", "high")
        tables["contour_profile"] = {name: arrays[f"profile_{name}"] for name in columns}
    return tables


def _grid(x: Any, y: Any, values: Mapping[str, Any]) -> Columns:
    """A row for each cell, x running fastest as in the arrays [ny, nx]."""
    X, Y = np.meshgrid(x, y)
    return {"x": X.ravel(), "y": Y.ravel(), **{key: array.ravel() for key, array in values.items()}}


def _interp(arrays: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Columns]:
    measured = {
        key: array
        for key, array in arrays.items()
        if key.endswith(("loss", "standard_error", "accuracy")) and "matrix_" not in key
    }
    if "pairs" not in arrays:
        tables: dict[str, Columns] = {"interp": {"alpha": arrays["alpha"], **measured}}
        if results.get("curve"):
            losses = list(map(float, results["curve"]["epoch_losses"]))
            tables["interp_curve"] = {"epoch": range(1, len(losses) + 1), "train_loss": losses}
        return tables
    matrix = results["matrix"]
    alpha, pairs, names = arrays["alpha"], arrays["pairs"], np.array(matrix["names"])
    ends = {"from": names[pairs[:, 0]], "to": names[pairs[:, 1]]}
    return {
        "interp": {
            **{key: np.repeat(array, len(alpha)) for key, array in ends.items()},
            "alpha": np.tile(alpha, len(pairs)),
            **{key: array.ravel() for key, array in measured.items()},
        },
        "interp_matrix": {
            **ends,
            **{
                key.replace("matrix_", ""): array[pairs[:, 0], pairs[:, 1]]
                for key, array in arrays.items()
                if "matrix_" in key
            },
        },
        "interp_checkpoints": {"name": names, "loss": list(map(float, matrix["loss"]))},
    }


def _hessian(arrays: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Columns]:
    del results
    ends = ("largest", "smallest")
    counts = [len(arrays[end]) for end in ends]
    tables: dict[str, Columns] = {
        "hessian": {
            "end": [end for end, count in zip(ends, counts, strict=True) for _ in range(count)],
            "rank": [rank + 1 for count in counts for rank in range(count)],
            "eigenvalue": np.concatenate([arrays[end] for end in ends]),
            "residual_bound": np.concatenate([arrays[f"{end}_residual_bounds"] for end in ends]),
        }
    }
    if "density_nodes" in arrays:
        tables["hessian_density"] = {
            "eigenvalue": arrays["density_nodes"],
            "weight": arrays["density_weights"],
        }
    if "layer_names" in arrays:
        tables["hessian_layers"] = {
            "layer": arrays["layer_names"],
            "largest": arrays["layer_largest"],
            "residual_bound": arrays["layer_residual_bounds"],
            "trace": arrays["layer_traces"],
            "trace_standard_error": arrays["layer_trace_standard_errors"],
        }
    return tables
