"""Which files of a directory are a step's own, and what it says before it writes others."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from lgo_cli.config import Strict
from lgo_cli.errors import DamagedError, InputError, NumericsError, OutputError
from lgo_cli.files import (
    BOOKKEEPING,
    atomic_write,
    canonical_json,
    sha256_file,
    temporary_path,
    write_error,
)
from lgo_cli.manifest import (
    Manifest,
    OtherVersion,
    damaged_outputs,
    other_version,
    read_manifest,
    write_manifest,
)
from lgo_cli.runs.names import figure_names, writable

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator
    from pathlib import Path

    from lgo_cli.runs.plan import Plan

_RECORD = TypeAdapter(dict[str, str])
"""SHA-256 of each file that a step wrote, by its name."""


class _Failed(Strict, extra="ignore"):
    failed: tuple[str, str | None]


def read_ours(path: Path, *, force: bool) -> Manifest | None:
    """A step's manifest; `None` if there is none, or a file of that name that is no manifest.

    Raises:
        DamagedError: if it cannot be read since it was damaged or edited, unless forced.
        OutputError: if its request was edited, unless forced.
    """
    if not path.is_file():
        return None
    try:
        manifest = read_manifest(path)
    except DamagedError:
        if not force:
            raise
        return None
    except InputError:
        return None
    if manifest.is_edited and not force:
        raise OutputError(
            f"{path} was edited since lgo wrote it: its fingerprint is not that of its request; it "
            "is left as it is",
            hint="undo the edit, choose another --out, or --force to replace it",
        )
    return manifest


def read_aside(plan: Plan) -> Manifest | None:
    """The manifest that a killed step had set aside, if all numbers that it lists still stand.

    So a kill costs no more than what was under way: of a redraw, the figures. `None` where there is
    a manifest, and where the step had begun to write other numbers.
    """
    if plan.manifest_path.exists():
        return None
    try:
        manifest = read_manifest(_bookkeeping(plan, "old.json"))
    except InputError:
        return None
    figures = figure_names(manifest.request, manifest.figure)
    stands = damaged_outputs(manifest, plan.out).keys() <= set(figures)
    return manifest if stands and not manifest.is_edited else None


def own_files(
    plan: Plan, names: list[str], *, force: bool
) -> tuple[Manifest | OtherVersion | None, set[str]]:
    """What the step left there before: its manifest, and the files that are its own to replace.

    The manifest may be the one that a killed step had set aside.

    Raises:
        OutputError: if a file of one of the new names is in neither the old manifest, an old claim
            nor the step's record; if the old manifest is of a later version, or was edited.
        DamagedError: if the old manifest is this lgo's and cannot be read.
    """
    path = plan.manifest_path
    old = _read_other(path, force=force) or read_ours(path, force=force) or read_aside(plan)
    listed = [path.name, *(ref.path for ref in old.outputs.values())] if old else []
    listed += _claimed(_bookkeeping(plan, "claim"))
    ours = writable(plan.command, listed)
    ours |= _written(plan, known=ours)
    for name in [plan.manifest_path.name, *names]:
        if (plan.out / name).exists() and name not in ours and not force:
            raise OutputError(
                f"{plan.out / name} was not written by lgo {plan.command}; it is left as it is",
                hint="choose another --out, or --force to replace it",
            )
    return old, ours


@contextlib.contextmanager
def claim(plan: Plan, names: list[str], *, force: bool) -> Iterator[Manifest | OtherVersion | None]:
    """Say which files this step is about to write, and set the old manifest aside.

    The claim tells our files from somebody else's until the new manifest stands: it is written
    before anything is removed, and lists the old files too. When the step is done, those that it
    did not write again are removed.

    Yields:
        The old manifest, if there is one.

    Raises:
        OutputError: as `own_files`.
    """
    path, aside = _bookkeeping(plan, "claim"), _bookkeeping(plan, "old.json")
    old, ours = own_files(plan, names, force=force)
    everything = sorted({*names, *ours})
    kept = {ref.path for ref in old.outputs.values()} if old else set()
    # What an interrupted step left is as new as what this one will write.
    left = ours.intersection(_claimed(path))
    new = [
        name for name in {*names, *left} - kept if name in left or not (plan.out / name).exists()
    ]
    said = {"fingerprint": plan.fingerprint, "names": everything}
    with atomic_write(path) as handle:
        handle.write(canonical_json(said))
    try:
        if old and plan.manifest_path.exists():  # not where a killed step had set it aside
            os.replace(plan.manifest_path, aside)
        else:
            plan.manifest_path.unlink(missing_ok=True)
        for name in everything:
            temporary_path(plan.out / name).unlink(missing_ok=True)
    except OSError as error:
        raise write_error(plan.out, error) from error
    try:
        yield old
    except BaseException as error:
        # A refusal that came before the first output changes nothing: the old results still stand.
        if old and not damaged_outputs(old, plan.out):
            # Without the claim, what was written by now would pass for somebody else's.
            _remove(plan.out, new)
            os.replace(aside, plan.manifest_path)
            path.unlink(missing_ok=True)
        elif {name for name in everything if (plan.out / name).exists()} <= _written(plan):
            path.unlink(missing_ok=True)
        elif isinstance(error, NumericsError):  # the same again would fail again
            with atomic_write(path) as handle:
                handle.write(canonical_json({**said, "failed": [error.message, error.hint]}))
        raise
    _remove(plan.out, {*everything} - {*names, plan.manifest_path.name})
    aside.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _remove(out: Path, names: Iterable[str]) -> None:
    """Remove files of a step, and the folders of `out` that they leave empty."""
    paths = [out / name for name in names]
    for path in paths:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths} - {out}:
        with contextlib.suppress(OSError):  # it holds others
            folder.rmdir()


def publish(plan: Plan, manifest: Manifest) -> None:
    """Write the manifest, which commits the step; its claim is held.

    The record of what was written comes before: a manifest may be deleted, as any target of Make,
    and the step's files are still told from somebody else's.
    """
    digests = {ref.path: ref.sha256 for ref in manifest.outputs.values()}
    with atomic_write(_bookkeeping(plan, "written")) as handle:
        handle.write(canonical_json(digests))
    write_manifest(manifest, plan.manifest_path)


def _read_other(path: Path, *, force: bool) -> OtherVersion | None:
    """What another version of lgo recorded of the step; its files are as much ours as any.

    Raises:
        OutputError: if it was a later one, whose results an earlier shall not replace unasked.
    """
    other = other_version(path.read_bytes()) if path.is_file() else None
    if other is not None and other.is_later and not force:
        raise OutputError(
            f"{path} was written by {other.author}; it is left as it is",
            hint="use that lgo, choose another --out, or --force to replace it",
        )
    return other


def _claimed(path: Path) -> list[str]:
    """Names in a claim that an interrupted step left; none if it is unreadable."""
    try:
        return [str(name) for name in json.loads(path.read_bytes())["names"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def failure(directory: Path, command: str) -> tuple[str, str | None] | None:
    """Why a step's numbers failed when it was last run, and what to do; `None` if they did not."""
    try:
        claim = _Failed.model_validate_json(
            (directory / BOOKKEEPING / f"{command}.claim").read_bytes()
        )
    except (OSError, ValidationError):
        return None
    return claim.failed


def _written(plan: Plan, known: Container[str] = ()) -> set[str]:
    """Files that still are what the step wrote when it was last done, as its record says.

    Args:
        plan: Of the step.
        known: Names that need not be looked at.
    """
    path = _bookkeeping(plan, "written")
    try:
        digests = _RECORD.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return set()
    return {
        name
        for name in writable(plan.command, digests)
        if name not in known
        and (plan.out / name).is_file()
        and sha256_file(plan.out / name) == digests[name]
    }


def _bookkeeping(plan: Plan, suffix: str) -> Path:
    return plan.out / BOOKKEEPING / f"{plan.command}.{suffix}"
