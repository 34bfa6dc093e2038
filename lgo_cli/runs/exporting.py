"""Write a run's arrays for other programs."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from lgo_cli.config import CONFIGS, Strict
from lgo_cli.errors import InputError, LockedError, OutputError
from lgo_cli.files import (
    BOOKKEEPING,
    atomic_write,
    canonical_json,
    portable_path,
    refuse_non_directory,
    sha256_bytes,
    sha256_file,
    step_lock,
)
from lgo_cli.runs.evidence import load_arrays
from lgo_cli.runs.inspect import StepState, inspect_run
from lgo_cli.runs.names import PAYLOADS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STEPS = ("hessian", "interp", "contour")
"""Those that have arrays."""

_RECORD = f"{BOOKKEEPING}/exports.json"


class Exported(Strict):
    """What is recorded of an exported file.

    Attributes:
        sha256: Of its content.
        run: Where the run is, from the file's directory on.
        step: Whose arrays it holds.
        arrays: SHA-256 of their `.npz`.
    """

    sha256: str
    run: str
    step: str
    arrays: str


_RECORDS = TypeAdapter(dict[str, Exported])

_NAME = re.compile(r"(hessian|interp|contour)(_[a-z]+)*\.(csv|vti|h5)")
"""Of what an export writes. A record is only a file: what else it lists is not ours to remove."""


def export(
    run: Path, form: str, *, step: str | None = None, out: Path | None = None, force: bool = False
) -> list[Path]:
    """Export what a run's analyses measured.

    What an earlier export wrote of arrays that the run no longer has goes, whatever its format.

    Args:
        run: Its directory.
        form: `csv`, `vtk` or `h5`.
        step: Only of this one; of all that are there by default.
        out: Where to; the run's directory by default.
        force: Replace files that an export did not write, or wrote of another run, and begin a new
            record where the old one cannot be read.

    Returns:
        The files, in the order of the steps.

    Raises:
        InputError: if the arrays are not what their manifest says, or change meanwhile, or there
            is nothing to export, or the record of earlier exports cannot be read.
        OutputError: if a file of that name is somebody else's or another run's.
        MachineError: if a library is missing.
    """
    from lgo_cli.exports.hdf5 import h5_files
    from lgo_cli.exports.tables import csv_files
    from lgo_cli.exports.vtk import vti_files

    make = {"csv": csv_files, "vtk": vti_files, "h5": h5_files}[form]
    directory = out or run
    source = portable_path(run, directory)
    contents: dict[str, bytes] = {}
    records: dict[str, Exported] = {}
    for state in _chosen(run, step):
        if state.manifest is None:
            continue
        payload = PAYLOADS[state.command][-1]
        arrays = load_arrays(run / payload)
        results = state.manifest.results.model_dump(mode="json")
        files = make(state.command, arrays, results)
        contents |= files
        digest = state.manifest.outputs[payload].sha256
        for name, data in files.items():
            records[name] = Exported(
                sha256=sha256_bytes(data), run=source, step=state.command, arrays=digest
            )
    if not contents:
        what = f"lgo {step}" if step else " or ".join(f"lgo {name}" for name in STEPS)
        raise InputError(
            f"{run} has no arrays for {form} of {what}", hint=f"lgo contour {run}, for a surface"
        )
    assert all(map(_NAME.fullmatch, contents))
    _refuse_others_directory(directory, source, force=force)
    with step_lock(directory, "export"):
        known = _refuse_others_files(directory, records, force=force)
        _refuse_changed(run, records)
        for name, data in contents.items():
            with atomic_write(directory / name) as handle:
                handle.write(data)
        present = {name: _digest(run / PAYLOADS[name][-1]) for name in STEPS}
        _keep_current(directory, known | records, source, present)
        _refuse_changed(run, records)
    return [directory / name for name in contents]


def _refuse_changed(run: Path, records: Mapping[str, Exported]) -> None:
    """Raise if a step has written other arrays since its files were made."""
    for record in records.values():
        if _digest(run / PAYLOADS[record.step][-1]) != record.arrays:
            raise InputError(
                f"{run}: lgo {record.step} wrote other arrays while they were exported",
                hint="export them again when it is done",
            )


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


def _refuse_others_directory(directory: Path, source: str, *, force: bool) -> None:
    refuse_non_directory(directory)
    manifests = [directory / f"{name}.json" for name in CONFIGS]
    if source != "." and not force and any(path.is_file() for path in manifests):
        raise OutputError(
            f"{directory} is a run of its own, whose results the exported files would seem to be",
            hint="choose another --out, or --force to write there",
        )


def _refuse_others_files(
    directory: Path, records: Mapping[str, Exported], *, force: bool
) -> dict[str, Exported]:
    """What was exported to a directory, unless one of the new names is somebody else's.

    A file is ours if it has the bytes that an export of the same run recorded, or the very bytes to
    write.
    """
    known = _recorded(directory, force=force)
    for name, record in records.items():
        path = directory / name
        if path.is_dir():
            raise OutputError(f"{path} is a directory", hint="choose another --out")
        found = _digest(path)
        if force or found in (None, record.sha256):
            continue
        old = known.get(name)
        if old is None or found != old.sha256:
            raise OutputError(
                f"{path} was not written by lgo export; it is left as it is",
                hint="choose another --out, or --force to replace it",
            )
        if old.run != record.run:
            other = os.path.normpath(directory / old.run)
            raise OutputError(
                f"{path} was exported from another run, {other}; it is left as it is",
                hint="choose another --out, or --force to replace it",
            )
    return known


def remove_outdated(run: Path, step: str) -> None:
    """Remove from a run what was exported of a step before its arrays changed.

    While an export is under way there, everything is left to it.

    Raises:
        InputError: if the record, or a file that it lists, cannot be read. What cannot be told is
            left then, and so is the record, at which the next export stops.
    """
    if not (run / _RECORD).exists():
        return
    with contextlib.suppress(LockedError), step_lock(run, "export"):
        present = {step: _digest(run / PAYLOADS[step][-1])}
        _keep_current(run, _recorded(run), ".", present)


def _keep_current(
    directory: Path,
    records: Mapping[str, Exported],
    source: str,
    present: Mapping[str, str | None],
) -> None:
    """Record what was exported, less what is of arrays that a run no longer has, which goes.

    A file that was changed since is its user's: it is left, and no longer recorded.
    """
    current = {}
    for name, record in records.items():
        if record.run != source or present.get(record.step, record.arrays) == record.arrays:
            current[name] = record
        elif _digest(directory / name) == record.sha256:
            (directory / name).unlink()
    with atomic_write(directory / _RECORD) as handle:
        handle.write(canonical_json({name: r.model_dump() for name, r in current.items()}))


def _digest(path: Path) -> str | None:
    return sha256_file(path) if path.is_file() else None


def _recorded(directory: Path, *, force: bool = False) -> dict[str, Exported]:
    """Files by name; none if no export was made here or, with `force`, the record is unreadable.

    Raises:
        InputError: if it is, without `force`.
    """
    path = directory / _RECORD
    try:
        records = _RECORDS.validate_json(path.read_bytes())
        if strangers := [name for name in records if not _NAME.fullmatch(name)]:
            raise ValueError(f"it lists {strangers[0]}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        if force:
            return {}
        raise InputError(
            f"{path} is damaged: what lgo export wrote beside it, of which arrays, is not known",
            hint="remove the exported files that are out of date, and lgo export --force begins a "
            "new record",
        ) from error
    return records
