"""What is in a run, and whether all of it is true."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lgo_cli.config import CONFIGS, Strict
from lgo_cli.errors import InputError
from lgo_cli.files import BOOKKEEPING, is_locked, sha256_file
from lgo_cli.manifest import Manifest, damaged_outputs, read_manifest
from lgo_cli.runs.claims import failure
from lgo_cli.runs.inputs import other_objective
from lgo_cli.runs.names import PAYLOADS, writable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lgo_cli.manifest import FileRef, InputRef


@dataclass(frozen=True)
class StepState:
    """One step of a run as it is on disk.

    Attributes:
        command: Which.
        manifest: Its record, `None` if it was not run.
        problems: Why its results are not to be relied on; empty if they are.
        error: What was raised where there is a manifest that cannot be read.
        aside: Why it is not of the run's final model on the run's own data; `None` if it is.
    """

    command: str
    manifest: Manifest | None
    problems: tuple[str, ...]
    error: InputError | None = None
    aside: str | None = None

    @property
    def reason(self) -> str | None:
        """Why its results are not the run's to be relied on; `None` if they are."""
        return "; ".join(self.problems) or self.aside


def inspect_run(directory: Path) -> list[StepState]:
    """Look at each step in a run directory.

    Raises:
        InputError: if no step was ever run there.
    """
    if not directory.is_dir():
        if directory.exists():
            raise InputError(f"{directory} is a file", hint=f"name its run: {directory.parent}")
        made_by = f"make one: lgo train --out {shlex.quote(str(directory))}"
        raise InputError(f"no such run directory: {directory}", hint=made_by)
    states = []
    for command in CONFIGS:
        path = directory / f"{command}.json"
        if not path.is_file():
            states.append(StepState(command, None, _unfinished(directory, command)))
            continue
        try:
            manifest = read_manifest(path)
        except InputError as error:
            states.append(StepState(command, None, (error.message,), error))
        else:
            states.append(StepState(command, manifest, tuple(problems(manifest, directory))))
    states = [replace(state, aside=_aside(state.manifest, states)) for state in states]
    if not any(state.manifest or state.problems for state in states):
        raise InputError(
            f"{directory} is no run: it has no manifest", hint="name the directory of a run"
        )
    return states


def _unfinished(directory: Path, command: str) -> tuple[str, ...]:
    """What became of a step that began and has no manifest; empty if none began."""
    if not (directory / BOOKKEEPING / f"{command}.claim").is_file():
        return ()
    if is_locked(directory, command):
        return ("running in another process",)
    failed = failure(directory, command)
    return (f"failed: {failed[0]}" if failed else "interrupted: run it again",)


def _aside(manifest: Manifest | None, states: Sequence[StepState]) -> str | None:
    """Why a step is not of what the run's first is of: its training, where it has one."""
    first = next((state.manifest for state in states if state.manifest is not None), None)
    if manifest is None or first is None or manifest is first:
        return None
    asked, run = manifest.request, first.request
    digest = asked.inputs["model.pth"].sha256
    weights: Mapping[str, FileRef | InputRef] = first.outputs
    if run.command != "train":
        weights = {"model.pth": run.inputs["model.pth"]}
    name = next((name for name, ref in weights.items() if ref.sha256 == digest), None)
    if name is None:  # trained again since, or of somebody's from elsewhere
        return f"of other weights than {run.command}"
    if name != "model.pth":
        return f"of {name}, not of the final model.pth"
    other = other_objective(asked, run)
    return other and f"with another {other} than {run.command}"


def problems(manifest: Manifest, directory: Path) -> list[str]:
    """All that is not as a manifest says: itself, its outputs, its inputs and their makers.

    Args:
        manifest: The record of a step.
        directory: Where it stands.
    """
    found = []
    if manifest.is_edited:
        found.append("the fingerprint is not that of the request: the manifest was edited")
    paths = [ref.path for ref in manifest.outputs.values()]
    strangers = set(paths) - writable(manifest.request.command, paths)
    found += [f"it lists {name}, which this step never writes" for name in sorted(strangers)]
    found += damaged_outputs(manifest, directory).values()
    for name, reference in manifest.request.inputs.items():
        path = directory / manifest.locations[name]
        if not path.is_file():
            found.append(f"input {name} is not at {manifest.place(name, directory)}")
        elif sha256_file(path) != reference.sha256:
            found.append(f"stale: input {name} ({os.path.normpath(path)}) has changed since")
        elif reference.produced_by is not None:
            found += _maker_problems(name, path, reference.produced_by)
    return found


def _maker_problems(name: str, path: Path, produced_by: str) -> list[str]:
    """Check that the step which made an input is still there and says the same."""
    unreadable = []
    for directory in (path.parent, path.parent.parent):
        for command in ("train", "hessian"):
            candidate = directory / f"{command}.json"
            if not candidate.is_file():
                continue
            try:
                maker = read_manifest(candidate)
            except InputError:
                unreadable.append(candidate.name)
                continue
            listed = [(directory / ref.path).resolve() for ref in maker.outputs.values()]
            if path.resolve() in listed:
                if maker.fingerprint == produced_by and not maker.is_edited:
                    return []
                return [f"stale: input {name} was made by another {command} than now stands there"]
    if unreadable:
        return [f"input {name}: {unreadable[0]} beside it, which may have made it, is damaged"]
    return [f"input {name} says that a step made it, and no manifest beside it does"]


def verify_run(directory: Path) -> list[str]:
    """Recompute every digest and every chain link of a run, and what its results say of its arrays.

    Returns:
        The steps that were verified.

    Raises:
        InputError: on the first thing that is not true.
    """
    verified = []
    for state in inspect_run(directory):
        found = state.problems
        if state.manifest is not None and not found:
            found = (*_lies(state.manifest, directory),)
        if state.error is not None:
            raise state.error
        if found:
            hint = None if state.manifest is None else _remedy(found[0], state.manifest, directory)
            raise InputError(f"{directory}: {state.command}: {found[0]}", hint=hint)
        if state.manifest is not None:
            verified.append(state.command)
    return verified


def _remedy(problem: str, manifest: Manifest, directory: Path) -> str | None:
    """What to do about what is stale, missing or elsewhere; `None` of what was tampered with."""
    command = manifest.request.command
    weights, option = ("init.pth", ["--init"]) if command == "train" else ("model.pth", [])
    place = manifest.place(weights, directory)
    words = ["--config", f"{directory / command}.json", "--out", str(directory)]
    if problem.startswith("stale: ") or problem.endswith(" is missing"):
        named = [] if place is None else [*option, place]  # the weights that are there now
        again = shlex.join(["lgo", command, *named, *words])
        return f"put the old one back, or compute it again: {again}"
    if not problem.startswith("input ") or " is not at " not in problem:
        return None
    if not problem.startswith(f"input {weights} "):
        return "put it back there"
    again = shlex.join(["lgo", command, *option, "RUN", *words, "--force"])
    return f"put it back there, or compute again with the run where it is now: {again}"


_OF_REQUEST = ("results.recipe", "results.curve.")
"""Results that the request determines."""


def _lies(manifest: Manifest, directory: Path) -> list[str]:
    """Where the results are not what the step's payloads, which are intact, say."""
    from lgo_cli.runs.evidence import evidence  # imports NumPy

    source = PAYLOADS[manifest.request.command][-1]
    try:
        said = evidence(directory, manifest)
    except KeyError as error:
        return [f"{source} has no {error.args[0]}"]
    return [
        f"{name} is {claimed}, and "
        f"{'the request' if name.startswith(_OF_REQUEST) else source} says {found}"
        for name, claimed, found in _differences("results", manifest.results, said)
    ]


def _differences(name: str, claimed: Any, found: Any) -> Iterator[tuple[str, Any, Any]]:
    """Values that two nests of results do not agree on; what is not in `found` is not looked at."""
    claimed, found = (x.model_dump() if isinstance(x, Strict) else x for x in (claimed, found))
    if isinstance(claimed, dict) and isinstance(found, dict):
        for key, value in found.items():
            yield from _differences(f"{name}.{key}", claimed[key], value)
    elif isinstance(claimed, list | tuple) and isinstance(found, list | tuple):
        if len(claimed) != len(found):
            yield f"the number of {name}", len(claimed), len(found)
        for index, (one, other) in enumerate(zip(claimed, found, strict=False)):
            yield from _differences(f"{name}[{index}]", one, other)
    elif isinstance(claimed, float) and isinstance(found, float):
        # Sums and products may end in another last bit on another machine.
        both_nan = math.isnan(claimed) and math.isnan(found)
        if not both_nan and not math.isclose(claimed, found, rel_tol=1e-9):
            yield name, claimed, found
    elif claimed != found:
        yield name, claimed, found
