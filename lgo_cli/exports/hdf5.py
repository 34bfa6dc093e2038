"""The HDF5 files that Li et al.'s scripts plot."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MEASURED = {
    "train_loss": "loss",
    "train_acc": "accuracy",
    "test_loss": "test_loss",
    "test_acc": "test_accuracy",
}
_CONVEXITY = {"max_eig": "convexity_largest", "min_eig": "convexity_smallest"}


def h5_files(
    command: str, arrays: Mapping[str, Any], results: Mapping[str, Any]
) -> dict[str, bytes]:
    """Surfaces and lines in the layout of github.com/tomgoldstein/loss-landscape.

    `xcoordinates`, for a surface `ycoordinates`, then `train_loss`, `train_acc` and, where
    they were measured, `test_loss`, `test_acc`; accuracies in percent. Row i, column j of a surface
    is at `xcoordinates[j]`, `ycoordinates[i]`, as their `plot_2D.py` draws it, also where nx ≠ ny.
    A convexity map is a file of its own with `max_eig` and `min_eig`, as its grid is coarser. Lines
    of a matrix, for which there is no such layout, are rows in the order of `pairs`; beside them
    stand `names`, each checkpoint's `loss` and the `matrix_*` of `interp.npz`.

    Args:
        command: `interp` and `contour` have such files.
        arrays: Of its `.npz`.
        results: Its results.

    Raises:
        MachineError: if h5py is not installed.
    """
    if command == "interp":
        line = {name: arrays[key] for name, key in _MEASURED.items() if key in arrays}
        measured = {k: v for k, v in line.items() if not np.isnan(v).all()}
        lines = {"xcoordinates": arrays["alpha"], **_percent(measured)}
        if "pairs" in arrays:
            lines |= {k: v for k, v in arrays.items() if k == "pairs" or "matrix_" in k}
            lines["loss"] = list(map(float, results["matrix"]["loss"]))
            lines["names"] = results["matrix"]["names"]
        return {"interp.h5": _h5(lines)}
    if command != "contour":
        return {}
    surface = {name: arrays[key] for name, key in _MEASURED.items() if key in arrays}
    coordinates = {"xcoordinates": arrays["x"], "ycoordinates": arrays["y"]}
    files = {"contour.h5": _h5({**coordinates, **_percent(surface)})}
    if "convexity_x" in arrays:
        coarse = {
            "xcoordinates": arrays["convexity_x"],
            "ycoordinates": arrays["convexity_y"],
            **{name: arrays[key] for name, key in _CONVEXITY.items()},
        }
        files["contour_convexity.h5"] = _h5(coarse)
    return files


def _percent(datasets: Mapping[str, Any]) -> dict[str, Any]:
    return {key: 100 * value if key.endswith("acc") else value for key, value in datasets.items()}


def _h5(datasets: Mapping[str, Any]) -> bytes:
    """One file; its bytes depend on the arrays alone, since h5py tracks no times."""
    try:
        import h5py
    except ImportError as error:
        raise MachineError(
            "writing HDF5 needs h5py, which is not installed", hint="pip install 'lgo[h5]'"
        ) from error
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in datasets.items():
            dtype = h5py.string_dtype() if name == "names" else np.float64
            file.create_dataset(name, data=np.asarray(values, dtype=dtype), track_times=False)
    return buffer.getvalue()
