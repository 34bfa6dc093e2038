"""Directions from files: an array of both, or two state_dicts of differences."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np
import torch

from lgo_cli import checkpoint
from lgo_cli.errors import InputError, UsageError
from lgo_cli.vectors import flatten

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from lgo_cli.vectors import ParameterLayout


def read_directions(paths: Sequence[Path], layout: ParameterLayout) -> Tensor:
    """Read two directions [2, P], on the CPU, as they are in the files.

    Args:
        paths: One `.npz` with `directions` [2, P], as `contour.npz` has; or two files saved with
            torch.save, each a state_dict with an entry for every trainable parameter. Entries of
            other names, such as buffers, are not read.
        layout: The model's, for the order of parameters.

    Raises:
        UsageError: if it is neither one `.npz` nor two others.
        InputError: if a file cannot be read, or a state_dict does not fit. No code in it is run.
    """
    arrays = [path.suffix == ".npz" for path in paths]
    if arrays == [True]:
        return _from_npz(paths[0])
    if arrays == [False, False]:
        return torch.stack([_from_state_dict(path, layout) for path in paths])
    raise UsageError(
        "a plane of directions comes from one .npz with both, or from two state_dicts",
        hint="--directions contour.npz, or --directions A.pth B.pth",
    )


def _from_npz(path: Path) -> Tensor:
    try:
        # A handle of our own: NumPy leaves one open when it cannot read the file.
        with path.open("rb") as handle:
            arrays = np.load(handle, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("it holds a single array, as a .npy file does")
            found = arrays["directions"]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except KeyError as error:
        raise InputError(
            f"{path} has no array called directions",
            hint="np.savez(path, directions=array), of two rows of all trainable parameters",
        ) from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a readable .npz file: {error}") from error
    if found.dtype.kind not in "fiu":
        raise InputError(f"{path}: directions are {found.dtype}, not real numbers")
    return torch.from_numpy(found.astype(np.float64))


def _from_state_dict(path: Path, layout: ParameterLayout) -> Tensor:
    state = checkpoint.load_state_dict(path)
    wrong = [
        f"{name} is missing"
        if name not in state
        else f"{name} has shape {list(state[name].shape)}, the model's has {list(shape)}"
        for name, shape in zip(layout.names, layout.shapes, strict=True)
        if name not in state or state[name].shape != shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise InputError(f"{path} is no direction of the model: {'; '.join(wrong[:3])}{more}")
    return flatten(state[name].double() for name in layout.names)
