"""Write a run's arrays for other programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from lgo_cli.errors import InputError, OutputError
from lgo_cli.files import BOOKKEEPING, atomic_write, canonical_json, sha256_bytes, step_lock
from lgo_cli.manifest import results_mapping
from lgo_cli.runs.inspect import StepState, inspect_run
from lgo_cli.runs.names import PAYLOADS

if TYPE_CHECKING:
    from pathlib import Path

STEPS = ("hessian", "interp", "contour")
"""Those that have arrays."""

_RECORD = f"{BOOKKEEPING}/exports.json"


def export(
    run: Path, form: str, *, step: str | None = None, out: Path | None = None, force: bool = False
) -> list[Path]:
    """Export what a run's analyses measured.

    Args:
        run: Its directory.
        form: `csv`, `vtk` or `h5`.
        step: Only of this one; of all that are there by default.
        out: Where to; the run's directory by default.
        force: Replace files that an export did not write.

    Returns:
        The files, in the order of the steps.

    Raises:
        InputError: if the arrays are not what their manifest says, or there is nothing to export.
        OutputError: if a file of that name is somebody else's.
        MachineError: if a library is missing.
    """
    from lgo_cli.exports.hdf5 import h5_files
    from lgo_cli.exports.tables import csv_files
    from lgo_cli.exports.vtk import vti_files

    make = {"csv": csv_files, "vtk": vti_files, "h5": h5_files}[form]
    contents: dict[str, bytes] = {}
    for state in _chosen(run, step):
        if state.manifest is None:
            continue
        with np.load(run / PAYLOADS[state.command][-1], allow_pickle=False) as arrays:
            contents |= make(state.command, dict(arrays), results_mapping(state.manifest))
    if not contents:
        what = f"lgo {step}" if step else " or ".join(f"lgo {name}" for name in STEPS)
        raise InputError(
            f"{run} has no arrays for {form} of {what}", hint=f"lgo contour {run}, for a surface"
        )
    directory = out or run
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"{directory} is a file, not a directory", hint="choose another --out")
    with step_lock(directory, "export"):
        _write(directory, contents, force=force)
    return [directory / name for name in contents]


def _chosen(run: Path, step: str | None) -> list[StepState]:
    """The states of the steps to export, each as its manifest says.

    Raises:
        InputError: if one is not.
    """
    states = [s for s in inspect_run(run) if s.command in STEPS and step in (None, s.command)]
    for state in states:
        if state.problems:
            raise InputError(
                f"{run}: {state.command}: {state.problems[0]}",
                hint=f"lgo show {run}; --step chooses another step",
            )
    return states


def _write(directory: Path, contents: dict[str, bytes], *, force: bool) -> None:
    """Write all files, unless one of these names is somebody else's.

    A file is ours if it has the bytes that an export recorded, or the very bytes to write.
    """
    record = directory / _RECORD
    ours = _recorded(record)
    for name, data in contents.items():
        path = directory / name
        if path.is_dir():
            raise OutputError(f"{path} is a directory", hint="choose another --out")
        known = {ours.get(name), sha256_bytes(data)}
        if path.exists() and not force and sha256_bytes(path.read_bytes()) not in known:
            raise OutputError(
                f"{path} was not written by lgo export; it is left as it is",
                hint="choose another --out, or --force to replace it",
            )
    for name, data in contents.items():
        with atomic_write(directory / name) as handle:
            handle.write(data)
        ours[name] = sha256_bytes(data)
    with atomic_write(record) as handle:
        handle.write(canonical_json(ours))


def _recorded(record: Path) -> dict[str, str]:
    """Digests by name; none if no export was made here, or the record is unreadable."""
    try:
        found = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
