"""Which weights a RUN argument means, and whether they are what their manifest says."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lgo_cli.arguments import did_you_mean
from lgo_cli.config import CONFIGS, DEFAULT_RUN
from lgo_cli.errors import InputError, NoManifestError, UsageError
from lgo_cli.files import BOOKKEEPING, is_locked, sha256_file
from lgo_cli.manifest import Manifest, read_manifest
from lgo_cli.results import TrainResults
from lgo_cli.runs.claims import failure
from lgo_cli.runs.names import holds_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgo_cli.manifest import FileRef


@dataclass(frozen=True)
class Checkpoint:
    """Weights on disk, and the training run they belong to if there is one.

    Attributes:
        path: The state_dict.
        sha256: Of its file.
        directory: Where analyses of it go by default.
        trained: The manifest of the run that made it, and that run's directory.
    """

    path: Path
    sha256: str
    directory: Path
    trained: tuple[Manifest, Path] | None = None

    @property
    def produced_by(self) -> str | None:
        """Fingerprint of the training that made these weights."""
        return self.trained[0].fingerprint if self.trained else None

    @property
    def training(self) -> TrainResults | None:
        """Results of the training that made these weights."""
        results = self.trained[0].results if self.trained else None
        assert isinstance(results, TrainResults | None)
        return results


def find_checkpoint(named: Path) -> Checkpoint:
    """Find the weights that a RUN argument means, and check them against their manifest.

    Args:
        named: A run directory, a checkpoint that a run's manifest lists, or any state_dict.

    Raises:
        InputError: if there is nothing, or the weights are not what the manifest says.
    """
    if named.is_dir():
        manifest_path = named / "train.json"
        if not manifest_path.is_file():
            raise InputError(
                f"{named} is no finished run: it has no train.json", hint=_what_instead(named)
            )
        return listed_checkpoint(named / "model.pth", read_manifest(manifest_path), named)
    if not named.exists():
        # A sweep's other runs, or the run's other checkpoints.
        beside = [
            *named.parent.glob("*.pth"),
            *(p.parent for p in named.parent.glob("*/train.json")),
        ]
        guess = did_you_mean(named.name, sorted(path.name for path in beside))
        raise InputError(f"no such run or checkpoint: {named}{guess}", hint=_what_instead(named))
    if named.suffix == ".json":
        run, again = shlex.quote(str(named.parent)), ""
        if named.stem in CONFIGS:
            line = f"lgo {named.stem} --config {shlex.quote(str(named))} --out {run}"
            again = f", or run that manifest again: {line}"
        raise InputError(f"{named} holds no weights", hint=f"name {run}{again}")
    real = named.resolve()  # it may be a link to a run's
    for directory in (named.parent, named.parent.parent, real.parent, real.parent.parent):
        manifest_path = directory / "train.json"
        if manifest_path.is_file():
            try:
                manifest = read_manifest(manifest_path)
            except NoManifestError:
                if (directory / BOOKKEEPING / "train.written").is_file():  # lgo's own, cut short
                    raise
                continue
            paths = {(directory / ref.path).resolve() for ref in manifest.outputs.values()}
            if real in paths:
                return listed_checkpoint(named, manifest, directory)
    return Checkpoint(named, sha256_file(named), named.parent)


def default_run(command: str, out: Path | None) -> Path:
    """The run that is meant where none is named.

    Raises:
        InputError: if there is none, but one where the outputs were to go: that may be meant.
    """
    if out is not None and not DEFAULT_RUN.exists() and (out / "train.json").is_file():
        raise InputError(
            f"no such run or checkpoint: {DEFAULT_RUN}; --out says where the outputs go",
            hint="name the run that is there, and the same options: "
            f"lgo {command} {shlex.quote(str(out))}",
        )
    return DEFAULT_RUN


def _what_instead(named: Path) -> str:
    """What to do where a path was to be a run or a checkpoint, and is none."""
    place = shlex.quote(str(named))
    # `lgo train` without the options of that training would be the default one, over its weights.
    again = "lgo train with the options of that training and"
    if (named / BOOKKEEPING / "train.claim").is_file():
        if is_locked(named, "train"):
            return "its training runs in another process: wait for it to end"
        if failed := failure(named, "train"):
            again = f"its training failed ({failed[0]}): {failed[1] or 'train with other options'}"
        else:
            again = f"its training did not end: {again} --resume --out {place}"
        return again
    checkpoints = sorted(path for path in named.glob("*.pth") if path.name != "state.pth")
    newest = shlex.quote(str(checkpoints[-1])) if checkpoints else None
    if (named / BOOKKEEPING / "train.written").is_file():  # its manifest was removed
        instead = f"; or name {newest}, with --model, --dataset and --out" if newest else ""
        return f"{again} --out {place} makes it again{instead}"
    if newest:
        return f"name a checkpoint in it: {newest}"
    # `data.json` is no name for a run; `sweep/0.1` is one.
    if named.exists() or named.suffix[1:].isalpha():
        return "name the directory of a run, or a checkpoint"
    return f"train one first: lgo train --out {place}"


def listed_checkpoint(path: Path, manifest: Manifest, directory: Path) -> Checkpoint:
    """A checkpoint that a training manifest lists, by its path in the run.

    Args:
        path: The checkpoint, or a link to it.
        manifest: Of the run.
        directory: The run, where its `train.json` stands.

    Raises:
        InputError: if it does not, or if the file is not the one it lists.
    """
    manifest_path = directory / "train.json"
    if manifest.request.command != "train":
        raise InputError(f"{manifest_path} is the manifest of lgo {manifest.request.command}")
    if manifest.is_edited:
        raise InputError(
            f"{manifest_path} was edited since lgo wrote it: its fingerprint is not that of its "
            "request",
            hint=f"undo the edit, or train as it says now: {train_again(directory)}",
        )
    # The file may be a link to one elsewhere: what counts is its name in the run.
    listed = (ref.path for ref in manifest.outputs.values())
    name = next((n for n in listed if (directory / n).resolve() == path.resolve()), path.name)
    ref = manifest.outputs.get(name)
    if not holds_weights(name):
        raise InputError(
            f"{path} holds no weights alone", hint=f"name {directory} or its model.pth"
        )
    if ref is None:
        raise InputError(f"{manifest_path} lists no {name}")
    refuse_unrecorded(path, ref, directory)
    listed_path = directory / name
    return Checkpoint(listed_path, ref.sha256, listed_path.parent, (manifest, directory))


def refuse_unrecorded(path: Path, ref: FileRef, directory: Path) -> None:
    """Raise `InputError` if a file of a training is gone, or not what the run's manifest records.

    Args:
        path: Of the file.
        ref: What the manifest says of it.
        directory: The run.
    """
    if not path.exists() or sha256_file(path) != ref.sha256:
        is_not = "is not" if path.exists() else "is gone: it was"
        raise InputError(
            f"{path} {is_not} the file that {directory / 'train.json'} records",
            hint=f"put the old one back, or train the same again: {train_again(directory)}",
        )


def train_again(directory: Path) -> str:
    """The command that trains a run again as its manifest says."""
    manifest, out = shlex.quote(str(directory / "train.json")), shlex.quote(str(directory))
    return f"lgo train --config {manifest} --force --out {out}"


def own_output(checkpoint: Checkpoint, name: str, hint: str) -> Checkpoint:
    """Other weights of the run that a checkpoint belongs to, such as its `init.pth`.

    Raises:
        UsageError: if it belongs to none, with the hint.
        InputError: if they are not what the run's manifest says.
    """
    if checkpoint.trained is None:
        raise UsageError(f"{checkpoint.path} belongs to no run that has an {name}", hint=hint)
    manifest, directory = checkpoint.trained
    return listed_checkpoint(directory / manifest.outputs[name].path, manifest, directory)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """What to call checkpoints: the fewest last parts of each path that no other ends with.

    A run's checkpoint is called by its run too, its `model.pth` by its run alone. Where one path is
    named again, a number follows.
    """
    full = [Path(os.path.abspath(path)) for path in paths]
    parts = [(path.parent if path.name == "model.pth" else path).parts for path in full]
    least = [_parts_of_its_run(path) for path in full]
    names: list[str] = []
    before: Counter[tuple[str, ...]] = Counter()
    for own, fewest in zip(parts, least, strict=True):
        others = [other for other in parts if other != own]
        length = next(
            n
            for n in range(fewest, len(own) + 1)
            if all(other[-n:] != own[-n:] for other in others)
        )
        before[own] += 1
        again = f" ({before[own]})" if before[own] > 1 else ""
        names.append(f"{Path(*own[-length:]).as_posix()}{again}")
    return names


def _parts_of_its_run(path: Path) -> int:
    """How many last parts of a checkpoint's path say of which run it is; 1 if it is of none."""
    for depth, run in enumerate(path.parents[:2]):
        if holds_weights(path.relative_to(run).as_posix()):
            return depth + 1 if path.name == "model.pth" else depth + 2
    return 1
