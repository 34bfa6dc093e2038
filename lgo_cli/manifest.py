"""The record of a step: what was asked, what came out, and what may have moved the bits.

A manifest is written last and atomically, so it is the mark that its step is done. Only `request`
determines the fingerprint.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import SerializeAsAny, ValidationError, model_validator

from lgo_cli import __version__
from lgo_cli.config import CONFIGS, Arguments, Command, FigureConfig, Strict
from lgo_cli.errors import DamagedError, InputError, NoManifestError
from lgo_cli.files import atomic_write, canonical_json, sha256_bytes, sha256_file
from lgo_cli.parsing import describe
from lgo_cli.results import (
    STAND_INS,
    ContourResults,
    HessianResults,
    InterpResults,
    Results,
    TrainResults,
)


class InputRef(Strict):
    """An input by content: its digest, and the fingerprint of the step that made it."""

    sha256: str
    produced_by: str | None = None


class FileRef(Strict):
    """An output: where it lies relative to the manifest, and its content."""

    path: str
    sha256: str
    num_bytes: int


class Request(Strict):
    """What determines the numbers, and nothing else: no path, device, thread count or time."""

    command: Command
    algorithm_version: int
    config: Arguments
    inputs: dict[str, InputRef]


class Environment(Strict):
    """What may move the last bits."""

    lgo: str
    python: str
    torch: str
    numpy: str
    device: str
    num_threads: int
    deterministic: bool


class Provenance(Strict):
    """What is never compared."""

    argv: list[str]
    started_at: str
    duration_s: float
    phases_s: dict[str, float]
    peak_memory_bytes: int | None
    git_commit: str | None
    git_dirty: bool | None


SCHEMA_VERSION: Literal[1] = 1
"""Raised when an lgo from before cannot read a manifest."""

ALGORITHM_VERSIONS = {"train": 8, "hessian": 20, "interp": 20, "contour": 19}
"""Raised when a command's results can change for an equal config, or its config gets other fields:
an lgo of the same versions reads what it wrote."""


class Manifest(Strict):
    """A step's record, `<step>.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    fingerprint: str
    request: Request
    figure: FigureConfig
    locations: dict[str, str]
    outputs: dict[str, FileRef]
    results: SerializeAsAny[Results]
    environment: Environment
    provenance: Provenance

    def called(self, key: Literal["model", "dataset", "loss"]) -> str:
        """What a person calls the model, data set or loss: a file of one's own by that file's name.

        Request and results call it by what it is for (`model.py:build`), figures and captions by
        what that is (`build (a user's model)`), so that their bytes do not depend on its name.
        """
        recorded = str(self.request.config[key])
        role, separator, factory = recorded.partition(":")
        if role not in STAND_INS:
            return recorded
        return f"{PurePosixPath(self.locations.get(role, role)).name}{separator}{factory}"

    def place(self, name: str, directory: Path) -> str | None:
        """Where an input is to be, as seen from the current directory; `None` if there is none.

        Args:
            name: Of the input.
            directory: Where this manifest stands.
        """
        if name not in self.locations:
            return None
        path = directory / self.locations[name]
        short = os.path.normpath(path)
        # Behind a link to a directory `..` is another one.
        return short if os.path.realpath(short) == os.path.realpath(path) else str(path)

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        """Refuse what other steps would stumble over later."""
        command = self.request.command
        lost = [name for name in self.request.inputs if name not in self.locations]
        lost += [name for name in _NEEDED[command] if name not in self.outputs]
        lost += [name for name in CONFIGS[command].model_fields if name not in self.request.config]
        if lost:
            raise ValueError(f"it says nothing of {lost[0]}")
        return self

    @property
    def is_edited(self) -> bool:
        """Whether the request is another one than was hashed when it was written."""
        return fingerprint(self.request) != self.fingerprint


_NEEDED: dict[str, tuple[str, ...]] = {
    "train": ("model.pth", "init.pth"),
    "hessian": ("hessian.npz",),
    "interp": ("interp.npz",),
    "contour": ("contour.npz",),
}
"""Outputs that other steps, or a redrawn figure, read."""


class _TrainManifest(Manifest):
    results: TrainResults


class _HessianManifest(Manifest):
    results: HessianResults


class _InterpManifest(Manifest):
    results: InterpResults


class _ContourManifest(Manifest):
    results: ContourResults


class _Command(Strict, extra="ignore"):
    command: Command


class _Head(Strict, extra="ignore"):
    request: _Command


class _Versioned(_Command, extra="ignore"):
    algorithm_version: int


class _Version(Strict, extra="ignore"):
    lgo: str


class OtherVersion(Strict, extra="ignore"):
    """What every version's manifests say, of one that this lgo does not read.

    Attributes:
        schema_version: Of its form.
        fingerprint: Which proves that an lgo wrote it.
        request: Its command and algorithm version.
        outputs: What its step wrote.
        environment: The version of lgo.
    """

    schema_version: int
    fingerprint: str
    request: _Versioned
    outputs: dict[str, FileRef]
    environment: _Version

    @property
    def is_later(self) -> bool:
        """Whether its form, its command's algorithm or its lgo is newer than this one's."""
        return (
            self.schema_version > SCHEMA_VERSION
            or self.request.algorithm_version > ALGORITHM_VERSIONS[self.request.command]
            or _release(self.environment.lgo) > _release(__version__)
        )

    @property
    def is_this(self) -> bool:
        """Whether this very lgo wrote it: it reads what it wrote, so it was changed since."""
        request = self.request
        ours = (SCHEMA_VERSION, ALGORITHM_VERSIONS[request.command], __version__)
        return (self.schema_version, request.algorithm_version, self.environment.lgo) == ours

    @property
    def author(self) -> str:
        """Who wrote it, in words."""
        request = self.request
        return (
            f"{'a later' if self.is_later else 'another'} version of lgo "
            f"({self.environment.lgo}, {request.command} at algorithm version "
            f"{request.algorithm_version})"
        )


def _release(version: str) -> tuple[int, ...]:
    """The release number of a version; `()` if it has none."""
    found = re.match(r"[0-9]{1,9}(\.[0-9]{1,9})*", version)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


_MANIFESTS: dict[str, type[Manifest]] = {
    "train": _TrainManifest,
    "hessian": _HessianManifest,
    "interp": _InterpManifest,
    "contour": _ContourManifest,
}


def fingerprint(request: Request) -> str:
    """SHA-256 of the canonical JSON of the request."""
    return sha256_bytes(canonical_json(request.model_dump(mode="json")))


def manifest_json(manifest: Manifest, *, indent: int | None = 2) -> str:
    """The text of a manifest, as it stands in its file and as `--json` prints it."""
    return manifest.model_dump_json(indent=indent)


def parse_manifest(text: str | bytes, where: Path) -> Manifest:
    """Validate the text of a manifest.

    Args:
        text: JSON.
        where: What to call it in an error.

    Raises:
        DamagedError: if this lgo wrote it, and it was damaged or edited since.
        InputError: if it is a manifest of another version, which it names.
        NoManifestError: if it is none.
    """
    try:
        command = _Head.model_validate_json(text).request.command
        return _MANIFESTS[command].model_validate_json(text)
    except ValidationError as error:
        found = _recognise(text)
        if found is not None and found.is_this:
            raise DamagedError(
                f"{where} was damaged or edited since this lgo wrote it: {describe(error)[0]}",
                hint=f"lgo {found.request.command} again with --force replaces it",
            ) from error
        if found is not None:
            command = found.request.command
            raise InputError(
                f"{where} was written by {found.author}, which this one does not read: "
                f"{describe(error)[0]}",
                hint="use that lgo" if found.is_later else f"lgo {command} again replaces it",
            ) from error
        raise NoManifestError(
            f"{where} is not a manifest that this lgo reads: {describe(error)[0]}",
            hint="if lgo wrote it, its step again with --force replaces it; if not, keep it and "
            "choose another directory with --out",
        ) from error


def other_version(text: str | bytes) -> OtherVersion | None:
    """Recognise a manifest of another version; `None` if it is not an lgo's, or was edited."""
    found = _recognise(text)
    return None if found is None or found.is_this else found


def _recognise(text: str | bytes) -> OtherVersion | None:
    """What an unreadable manifest says, if its request is as some lgo wrote it."""
    try:
        found = OtherVersion.model_validate_json(text)
        request = json.loads(text)["request"]
        return found if found.fingerprint == sha256_bytes(canonical_json(request)) else None
    except ValueError:  # not JSON, or not of this form
        return None


def read_manifest(path: str | Path) -> Manifest:
    """Read and validate `<step>.json`.

    Raises:
        InputError: if it is missing, unreadable or not a manifest.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return parse_manifest(text, path)


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write `<step>.json` atomically."""
    with atomic_write(path) as handle:
        handle.write(manifest_json(manifest).encode() + b"\n")


def file_ref(path: Path, relative_to: Path) -> FileRef:
    """Describe an output that was just written."""
    return FileRef(
        path=path.relative_to(relative_to).as_posix(),
        sha256=sha256_file(path),
        num_bytes=path.stat().st_size,
    )


def damaged_outputs(manifest: Manifest | OtherVersion, directory: Path) -> dict[str, str]:
    """What is wrong with the outputs of a step, by name; empty if all are intact."""
    complaints = {}
    for name, ref in manifest.outputs.items():
        path = directory / ref.path
        if not path.is_file():
            complaints[name] = f"{path} is missing"
        elif path.stat().st_size != ref.num_bytes or sha256_file(path) != ref.sha256:
            complaints[name] = f"{path} is not what lgo {manifest.request.command} wrote"
    return complaints
