"""Weights apart from their model: plain state_dicts, read without running code from the file."""

from __future__ import annotations

import errno
import json
import pickle
import re
import shlex
import struct
import warnings
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lgo_cli.errors import InputError, a_kind, dtype_name, first_sentence
from lgo_cli.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Set
    from pathlib import Path


_ACCIDENTS = (
    EOFError, KeyError, ValueError, AttributeError, IndexError, TypeError, AssertionError,
    struct.error,
)  # fmt: skip
"""What any bytes raise that are read as a pickle; their texts say nothing to a user."""

_REFUSED = re.compile(r"GLOBAL (\w+(?:\.\w+)+) was not an allowed global")
"""How PyTorch names a class that it does not make of a file's bytes."""

_SAVE = "torch.save(model.state_dict(), path)"


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy of a model's state_dict, a plain dict of tensors on the CPU."""
    return {
        name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()
    }


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
        with path.open("rb") as handle, warnings.catch_warnings():
            # That a pickle of another protocol may not be read, which is an error where it is so.
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(handle, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        what = f" ({refused[1]})" if refused else ", or is no checkpoint"
        raise InputError(
            f"{path} holds more than tensors and plain values{what}; it was not run",
            hint=f"save the weights alone: {_SAVE}",
        ) from error
    except (OSError, RuntimeError, *_ACCIDENTS) as error:
        # EINVAL: an archive that was cut short seeks to a place before its beginning.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        reason = "torch.save wrote no such bytes"
        if isinstance(error, RuntimeError):  # PyTorch's own words, of which the first sentence does
            reason = first_sentence(error)
        raise InputError(
            f"{path} is not a readable checkpoint: {reason}",
            hint=f"take another copy of it, or save it again: {_SAVE}",
        ) from error
    if not isinstance(state, dict):
        raise InputError(
            f"{path} holds {a_kind(state)}, not a state_dict", hint=f"save the weights: {_SAVE}"
        )
    return state


def _rewritten(path: Path, names: Collection[str], own: Set[str], key: str | None = None) -> str:
    """The command that writes a plain state_dict of what a file holds.

    Args:
        path: The file; what is written stands beside it.
        names: Of the state_dict in it.
        own: Of the model that it is for: what a wrapper put before these goes.
        key: Of that state_dict in the file, if it is not all of it.
    """
    weights = "state"
    prefix, all_begin = _wrapper(names, own)
    if prefix:
        quoted = json.dumps(prefix)
        chosen = "" if all_begin else f" if name.startswith({quoted})"
        weights = f"{{name.removeprefix({quoted}): state[name] for name in state{chosen}}}"
    new = json.dumps(str(path.with_name(f"{path.stem}_weights.pth")), ensure_ascii=False)
    old = json.dumps(str(path), ensure_ascii=False)
    read = f'torch.load({old}, map_location="cpu", weights_only=True)'
    packages = "torch"
    if path.suffix == ".safetensors":
        read, packages = f"safetensors.torch.load_file({old})", "torch, safetensors.torch"
    if key is not None:
        read += f"[{json.dumps(key)}]"
    script = f"import {packages}; state = {read}; torch.save({weights}, {new})"
    return f"python -c {shlex.quote(script)}"


def load_state_dict(path: Path, own: Set[str]) -> dict[str, Tensor]:
    """Read a plain state_dict.

    Args:
        path: Of the file.
        own: Names of the model that it is for, which advice on another file heeds.

    Raises:
        InputError: as `load`; also if a value is no tensor of plain numbers, or a weight is NaN or
            infinite.
    """
    if path.suffix == ".safetensors":
        raise InputError(
            f"{path} is a file of safetensors, not of torch.save",
            hint=_rewritten(path, _names_of_safetensors(path), own),
        )
    state = load(path)
    nested = [
        name
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, dict) and _names_tensors(value)
    ]
    if nested:
        held = "one as" if len(nested) == 1 else "several:"
        fitting = (n for n in nested if own <= set(state[n]) or _wrapper(state[n], own)[0])
        key = next(fitting, nested[0])
        raise InputError(
            f"{path} is not a plain state_dict, but holds {held} {', '.join(map(repr, nested))}",
            hint=_rewritten(path, state[key], own, key),
        )
    others = [str(key) for key, value in state.items() if not _names_tensors({key: value})]
    if others or not state:
        found = f"it also holds {', '.join(others[:4])}" if others else "it is empty"
        raise InputError(
            f"{path} is not a plain state_dict: {found}",
            hint=f"save the weights alone: {_SAVE}",
        )
    for name, tensor in state.items():
        if (kind := _other_kind(tensor)) is not None:
            raise InputError(
                f"{path}: {name} is {kind}, not plain numbers",
                hint="save the weights as dense tensors in float32, or the model's own type",
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{path}: {name} has values that are not finite",
                hint="take weights from before the training diverged",
            )
    return state


def _names_of_safetensors(path: Path) -> list[str]:
    """The names in the header of such a file: JSON, behind its length in eight bytes.

    Raises:
        InputError: if there is no such header.
    """
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            text = handle.read(min(length, path.stat().st_size))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise InputError(
            f"{path} is not a readable file of safetensors", hint="take another copy of it"
        )
    return [name for name in header if name != "__metadata__"]


def _other_kind(tensor: Tensor) -> str | None:
    """What a tensor is whose numbers cannot be taken as they stand; `None` if they can."""
    if tensor.is_meta:
        return "a tensor without numbers (on PyTorch's meta device)"
    if tensor.layout is not torch.strided:
        return "sparse"
    # Numbers of eight bits are those of a scale that is elsewhere.
    if tensor.is_quantized or (tensor.is_floating_point() and tensor.itemsize < 2):
        return "quantised"
    return None


def _names_tensors(state: dict[Any, Any]) -> bool:
    return bool(state) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )


def load_fitting(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Read a state_dict that must fit a model exactly; the model is not written.

    Args:
        path: A plain state_dict.
        model: What it must fit.

    Raises:
        InputError: as `load_state_dict`; or naming what is missing, left over, or of another shape
            or kind of number, or what differs and is one tensor of the model.
    """
    own = model.state_dict()
    state = load_state_dict(path, own.keys())
    prefix, all_begin = _wrapper(state, own.keys())
    if prefix:
        whose = "its names" if all_begin else "the model's names in it"
        raise InputError(
            f"{path} does not fit the model: {whose} begin with {prefix}, as of a wrapped module",
            hint=_rewritten(path, state, own.keys()),
        )
    missing = [f"{name} is missing" for name in own if name not in state]
    unknown = [f"{name} is unknown to the model" for name in state if name not in own]
    shapes = [
        f"{name} has shape {tuple(state[name].shape)}, the model wants {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    # Copied into floats, complex numbers would lose a part; integers are weights cut off.
    numbers = [
        f"{name} holds {dtype_name(state[name].dtype)}, "
        f"the model wants {dtype_name(own[name].dtype)}"
        for name in own
        if name in state and own[name].is_floating_point() and not state[name].is_floating_point()
    ]
    # One of each kind before the second of any: together they say what is wrong.
    ranks = zip_longest(missing, unknown, shapes, numbers)
    complaints = [complaint for rank in ranks for complaint in rank if complaint is not None]
    if complaints:
        hint = (
            "give the model and data set it was made with: --model, --model-arg, --dataset; "
            "checkpoints that are compared are of one model"
        )
        buffers = dict(model.named_buffers())
        if complaints == shapes and all(
            name in buffers for name in own if state[name].shape != own[name].shape
        ):
            hint = (
                "are these buffers resized by a call, as in quantisation-aware training? Call the "
                "model once in its factory, and keep its ranges in eval mode: disable_observer"
            )
        more = f" (and {len(complaints) - 3} more)" if len(complaints) > 3 else ""
        raise InputError(
            f"{path} does not fit the model: {'; '.join(complaints[:3])}{more}",
            hint=hint,
        )
    refuse_untied(path, state, model)
    return state


def refuse_untied(path: Path, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse a state_dict in which two names of one tensor of the model do not have one value.

    Raises:
        InputError: naming them: which of the two is meant only somebody else knows.
    """
    first_names: dict[int, str] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        first = first_names.setdefault(id(tensor), name)
        if first == name or first not in state or name not in state:
            continue
        one, other = state[first], state[name]
        if one.shape != other.shape or bool((one != other).any()):
            raise InputError(
                f"{first} and {name} are one parameter of the model, but differ in {path}",
                hint="give the model that it was made with, in which they are two",
            )


def _wrapper(names: Collection[str], own: Set[str]) -> tuple[str, bool]:
    """What wrapping a module (`DataParallel`, Lightning, `torch.compile`) put before its names.

    All names are the model's behind it, or all of the model's are there, beside a metric's, say.
    Names that the model has itself need none: what else is there is a copy's, such as an average's.

    Returns:
        The prefix, empty if there is none, and whether all names begin with it.
    """
    if own <= set(names):
        return "", False
    parts = [name.split(".") for name in names]
    prefixes = {".".join(each[:n]) + ".": None for each in parts for n in range(1, len(each))}
    for prefix in prefixes:
        inner = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        all_begin = len(inner) == len(names)
        if inner >= own or (all_begin and inner <= own):
            return prefix, all_begin
    return "", False
