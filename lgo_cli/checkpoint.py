"""Weights on disk: plain state_dicts, read without ever running code from the file."""

from __future__ import annotations

import pickle
import struct
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lgo_cli.errors import InputError, a_kind
from lgo_cli.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


_ACCIDENTS = (
    EOFError, KeyError, ValueError, AttributeError, IndexError, TypeError, AssertionError,
    struct.error,
)  # fmt: skip
"""What any bytes raise that are read as a pickle; their texts say nothing to a user."""


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write a state_dict, or any nest of tensors and numbers, atomically.

    `torch.save` gets an open handle, since with a path it puts the file's name into the archive and
    equal states would not have equal bytes.
    """
    with atomic_write(path) as handle:
        torch.save(state, handle)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, on the CPU.

    Raises:
        InputError: if the file is missing, truncated, corrupt, or holds anything but tensors and
            plain values; no code in it is run.
    """
    try:
        with path.open("rb") as handle:
            state = torch.load(handle, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors and plain values, or is no checkpoint; it was not run",
            hint="save the weights alone: torch.save(model.state_dict(), path)",
        ) from error
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is not a readable checkpoint: {reason}") from error
    except _ACCIDENTS as error:
        raise InputError(
            f"{path} is not a readable checkpoint: torch.save wrote no such bytes",
            hint="take another copy of it, or save it again: torch.save(model.state_dict(), path)",
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds {a_kind(state)}, not a state_dict")
    return state


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a plain state_dict.

    Raises:
        InputError: as `load`; also if a value is no tensor, or a weight is NaN or infinite.
    """
    state = load(path)
    others = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        found = f"it also holds {', '.join(others[:4])}" if others else "it is empty"
        raise InputError(
            f"{path} is not a plain state_dict: {found}",
            hint="save the weights alone: torch.save(model.state_dict(), path)",
        )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path}: {name} has values that are not finite")
    return state


def load_fitting(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Read a state_dict that must fit a model exactly; the model is not written.

    Args:
        path: A plain state_dict.
        model: What it must fit.

    Raises:
        InputError: as `load_state_dict`; or naming what is missing, left over or of another shape.
    """
    state = load_state_dict(path)
    own = model.state_dict()
    complaints = [f"{name} is missing" for name in own if name not in state]
    complaints += [f"{name} is unknown to the model" for name in state if name not in own]
    complaints += [
        f"{name} has shape {tuple(state[name].shape)}, the model wants {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if complaints:
        more = f" (and {len(complaints) - 3} more)" if len(complaints) > 3 else ""
        raise InputError(
            f"{path} does not fit the model: {'; '.join(complaints[:3])}{more}",
            hint="give the model and data set it was made with: --model, --model-arg, --dataset",
        )
    return state
