"""Directions from files: an array of both, or two state_dicts of differences."""

from __future__ import annotations

import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from lgo_cli import checkpoint
from lgo_cli.errors import InputError, UsageError
from lgo_cli.landscape.planes import PlaneCurve
from lgo_cli.vectors import ParameterLayout, flatten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

CURVE_ARRAYS = ("plane_path", "plane_coordinates", "plane_distances")
"""What a `.npz` holds of a curve beside its `directions`, in the order of `PlaneCurve`."""


def read_directions(paths: Sequence[Path], model: nn.Module) -> Tensor:
    """Read two directions [2, P], on the CPU, as they are in the files.

    Args:
        paths: One `.npz` with `directions` [2, P], as `contour.npz` has; or two files saved with
            torch.save, each a state_dict with an entry for every trainable parameter. Entries of
            other names, such as buffers, are not read.
        model: For the order of its parameters, and which are one under two names.

    Raises:
        UsageError: if it is neither one `.npz` nor two others.
        InputError: if a file cannot be read, or a state_dict does not fit. No code in it is run.
    """
    arrays = [path.suffix == ".npz" for path in paths]
    if arrays == [True]:
        return _from_npz(paths[0])
    if arrays == [False, False]:
        return torch.stack([_from_state_dict(path, model) for path in paths])
    raise UsageError(
        "a plane of directions comes from one .npz with both, or from two state_dicts",
        hint="--directions contour.npz, or --directions A.pth B.pth",
    )


def read_curve(paths: Sequence[Path]) -> PlaneCurve | None:
    """The curve that comes with directions in a `.npz`, as in that of `lgo interp --curve`.

    Args:
        paths: As of `read_directions`. The curve is `plane_path` [m, 2]; `plane_coordinates`
            [K + 2, 2] and `plane_distances` [K + 2], if they are there, are of its start, bends and
            end. `None` without a curve.

    Raises:
        InputError: if these arrays are not finite points.
    """
    found = _arrays(paths[0], CURVE_ARRAYS) if len(paths) == 1 else {}
    if "plane_path" not in found:
        return None
    for name, wanted in zip(CURVE_ARRAYS, ((2,), (2,), ()), strict=True):
        values = found.get(name, np.zeros((2, *wanted)))
        numbers = values.dtype.kind in "fiu" and bool(np.isfinite(values).all())
        fits = values.ndim == 1 + len(wanted) and values.shape[1:] == wanted and len(values) > 1
        if not numbers or not fits:
            shape = "[n, 2]" if wanted else "[n]"
            raise InputError(f"{paths[0]}: {name} is not {shape} of two or more finite numbers")
    path = found["plane_path"]
    return PlaneCurve(
        path,
        found.get("plane_coordinates", path[[0, -1]]),
        found.get("plane_distances", np.zeros(2)),
    )


def has_bends(paths: Sequence[Path]) -> bool:
    """Whether the file has the weights of a curve's bends, as only what trained the curve knows."""
    if len(paths) != 1:
        return False
    with _npz(paths[0]) as arrays:
        return "bends" in arrays


def _from_npz(path: Path) -> Tensor:
    found = _arrays(path, ["directions"]).get("directions")
    if found is None:
        raise InputError(
            f"{path} has no array called directions",
            hint="np.savez(path, directions=array), of two rows of all trainable parameters",
        )
    if found.dtype.kind not in "fiu":
        raise InputError(f"{path}: directions are {found.dtype}, not real numbers")
    return torch.from_numpy(found.astype(np.float64))


def _arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that a `.npz` has."""
    with _npz(path) as arrays:
        return {name: arrays[name] for name in names if name in arrays}


@contextmanager
def _npz(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Open a `.npz`, of which an array is read when it is asked for."""
    try:
        # A handle of our own: NumPy leaves one open when it cannot read the file.
        with path.open("rb") as handle:
            arrays = np.load(handle, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("it holds a single array, as a .npy file does")
            yield arrays
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a readable .npz file: {error}") from error


def _from_state_dict(path: Path, model: nn.Module) -> Tensor:
    layout = ParameterLayout.of(model)
    state = checkpoint.load_state_dict(path, set(layout.names))
    wrong = [
        f"{name} is missing"
        if name not in state
        else f"{name} has shape {list(state[name].shape)}, the model's has {list(shape)}"
        if state[name].shape != shape
        else f"{name} is complex"
        for name, shape in zip(layout.names, layout.shapes, strict=True)
        if name not in state or state[name].shape != shape or state[name].is_complex()
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise InputError(f"{path} is no direction of the model: {'; '.join(wrong[:3])}{more}")
    checkpoint.refuse_untied(path, state, model)
    return flatten(state[name].double() for name in layout.names)
