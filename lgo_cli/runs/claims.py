"""Which files of a directory are a step's own, and what it says before it writes others."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

from lgo_cli.errors import InputError, OutputError
from lgo_cli.files import BOOKKEEPING, atomic_write, canonical_json, temporary_path, write_error
from lgo_cli.manifest import (
    Manifest,
    OtherVersion,
    damaged_outputs,
    other_version,
    read_manifest,
)
from lgo_cli.runs.names import writable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lgo_cli.runs.plan import Plan


def read_ours(path: Path) -> Manifest | None:
    """A step's manifest; `None` if there is none, or a file of that name that is no manifest."""
    if not path.is_file():
        return None
    try:
        return read_manifest(path)
    except InputError:
        return None


def own_files(
    plan: Plan, names: list[str], *, force: bool
) -> tuple[Manifest | OtherVersion | None, set[str]]:
    """What the step left there before: its manifest, and the files that are its own to replace.

    Raises:
        OutputError: if a file of one of the new names is neither in the old manifest nor in an old
            claim, or the old manifest is of a later version.
    """
    old = _read_other(plan.manifest_path, force=force) or read_ours(plan.manifest_path)
    listed = [plan.manifest_path.name, *(ref.path for ref in old.outputs.values())] if old else []
    ours = writable(plan.command, [*listed, *_claimed(_bookkeeping(plan, "claim"))])
    for name in [plan.manifest_path.name, *names]:
        if (plan.out / name).exists() and name not in ours and not force:
            raise OutputError(
                f"{plan.out / name} was not written by lgo {plan.command}; it is left as it is",
                hint="choose another --out, or --force to replace it",
            )
    return old, ours


@contextlib.contextmanager
def claim(plan: Plan, names: list[str], *, force: bool) -> Iterator[None]:
    """Say which files this step is about to write, and set the old manifest aside.

    Until the new manifest stands, the claim is what tells our files from somebody else's; it is
    written before anything is taken away, and lists the old files too. Those that the new request
    does not write again go when it is done.

    Raises:
        OutputError: as `own_files`.
    """
    path, aside = _bookkeeping(plan, "claim"), _bookkeeping(plan, "old.json")
    old, ours = own_files(plan, names, force=force)
    everything = sorted({*names, *ours})
    with atomic_write(path) as handle:
        handle.write(canonical_json({"fingerprint": plan.fingerprint, "names": everything}))
    try:
        if old:
            os.replace(plan.manifest_path, aside)
        else:
            plan.manifest_path.unlink(missing_ok=True)
        for name in everything:
            temporary_path(plan.out / name).unlink(missing_ok=True)
    except OSError as error:
        raise write_error(plan.out, error) from error
    try:
        yield
    except BaseException:
        # A refusal that came before the first output changes nothing: the old results still stand.
        if old and not damaged_outputs(old, plan.out):
            os.replace(aside, plan.manifest_path)
            path.unlink(missing_ok=True)
        elif not any((plan.out / name).exists() for name in everything):
            path.unlink(missing_ok=True)
        raise
    for name in everything:
        if name not in names and name != plan.manifest_path.name:
            (plan.out / name).unlink(missing_ok=True)
    aside.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


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
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return []


def _bookkeeping(plan: Plan, suffix: str) -> Path:
    return plan.out / BOOKKEEPING / f"{plan.command}.{suffix}"
