"""Cells of a surface that outlive the process that measured them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import struct
import zlib
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from lgo_cli.factories import role_of
from lgo_cli.files import BOOKKEEPING, atomic_write, canonical_json, sha256_bytes, write_error
from lgo_cli.landscape import evaluator as evaluators
from lgo_cli.landscape.cells import Cells
from lgo_cli.landscape.convexity import NUM_VALUES, Finished
from lgo_cli.samples import Evaluation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from lgo_cli.landscape.cells import Key
    from lgo_cli.landscape.evaluator import Evaluator
    from lgo_cli.manifest import Request
    from lgo_cli.objective import Objective
    from lgo_cli.runs.plan import Plan

_RECORD = struct.Struct("<ddqddd")
_CHECKSUM = struct.Struct("<I")
_SIZE = _RECORD.size + _CHECKSUM.size


class Journal(Cells):
    """Cells in an append-only file, one record each with a checksum of its own.

    A cache: it saves measuring a cell again, and never decides which cells are asked for. A killed
    run goes on after its last record; one that was cut short, and all after it, are dropped.
    Several processes may fill one surface: each reads all files of a key and writes one.

    Args:
        out: The run's directory; files lie in its `.lgo/cells/`.
        key: Of everything that a cell's bits depend on (`key_of`).
        share: Name of the own file beside the key, such as `0-of-4`; empty for the undivided run.
        anew: Forget what the own file holds.
        alone: Take in what the own file holds, and not what others hold.

    Raises:
        OutputError: if the place cannot be written.
        MachineError: if the disk is full.
    """

    def __init__(
        self, out: Path, key: str, share: str = "", *, anew: bool = False, alone: bool = False
    ) -> None:
        super().__init__()
        self.directory = out / BOOKKEEPING / "cells"
        self.key = key
        self.path = self.directory / f"{key}{'.' if share else ''}{share}.journal"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._handle = self.path.open("ab", buffering=0)
            if anew:
                self._handle.truncate(0)
            # What was cut short or damaged goes, so that what follows can be read.
            sound = list(_records(self.path.read_bytes()))
            self._handle.truncate(len(sound) * _SIZE)
        except OSError as error:
            raise write_error(self.path, error) from error
        if alone:
            self.known.update(sound)
        else:
            self.read_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.close()

    def read_all(self) -> None:
        """Take in what every file of the key holds by now."""
        for path in sorted(self.directory.glob(f"{self.key}*.journal")):
            # What cannot be read, or is gone by now, is measured again.
            with contextlib.suppress(OSError):
                self.known.update(_records(path.read_bytes()))

    def add(self, key: Key, evaluation: Evaluation) -> None:
        """Keep an evaluation, here and in the file."""
        super().add(key, evaluation)
        record = _RECORD.pack(*key, evaluation.loss, evaluation.standard_error, evaluation.accuracy)
        rest = record + _CHECKSUM.pack(zlib.crc32(record))
        try:
            while rest:  # a disk that has room for a part of it says why at the next call
                rest = rest[self._handle.write(rest) :]
        except OSError as error:
            raise write_error(self.path, error) from error


def _records(data: bytes) -> Iterator[tuple[Key, Evaluation]]:
    """The sound records at the beginning of a file's content."""
    for start in range(0, len(data) - _SIZE + 1, _SIZE):
        record = data[start : start + _RECORD.size]
        (checksum,) = _CHECKSUM.unpack_from(data, start + _RECORD.size)
        if checksum != zlib.crc32(record):
            return
        x, y, num_samples, loss, standard_error, accuracy = _RECORD.unpack(record)
        yield (x, y, num_samples), Evaluation(loss, standard_error, accuracy, num_samples)


class ConvexityFile:
    """The finished cells of a convexity map, in one file that is replaced after each of them.

    With them the last cell's eigenvectors, 2·P numbers from which the next one begins, until the
    map is done. The memory budget moves no bit, and is no part of the key.

    Args:
        out: The run's directory.
        key: `key_of` the plane's evaluator.
        x: Coordinates of the columns; with `y` they are the order of the cells.
        y: Coordinates of the rows.
        seed: Of the starting vectors.
    """

    def __init__(
        self, out: Path, key: str, x: Sequence[float], y: Sequence[float], seed: int
    ) -> None:
        digest = sha256_bytes(canonical_json([key, NUM_VALUES, list(x), list(y), seed]))[:32]
        self.path = out / BOOKKEEPING / "cells" / f"{digest}.convexity"

    def read(self) -> Finished | None:
        """What is finished; `None` if there is no file, or it is damaged and of no use."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return None
        checksum, content = data[:32], data[32:]
        if checksum != hashlib.sha256(content).digest():
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            vectors = torch.from_numpy(arrays["warm_start"])
            return Finished(arrays["cells"], vectors if len(vectors) else None)

    def write(self, finished: Finished) -> None:
        """Replace the file.

        Raises:
            OutputError: if the place cannot be written.
            MachineError: if the disk is full.
        """
        vectors = finished.warm_start
        content = io.BytesIO()
        np.savez(
            content,
            cells=finished.cells,
            warm_start=np.empty(0) if vectors is None else vectors.cpu().numpy(),
        )
        with atomic_write(self.path) as handle:
            handle.write(hashlib.sha256(content.getbuffer()).digest())
            handle.write(content.getbuffer())


def key_of(evaluator: Evaluator, request: Request) -> str:
    """A digest of all that the bits of an evaluator's cells depend on, beside their coordinates.

    Args:
        evaluator: Verified, since that may give its fast path up.
        request: Of the step: which code, arguments and named files model and loss are made of.
    """
    objective, batchnorm = evaluator.objective, evaluator.batchnorm
    model, loss = objective.model, objective.loss_function
    parts = {
        "evaluator": evaluators.VERSION,
        "algorithm_version": request.algorithm_version,
        "code": [
            ref.sha256
            for name, ref in request.inputs.items()
            # What model and loss make of a file that an argument names changes with it.
            if name.endswith(".py") or role_of(name) in ("model_arg", "loss_arg")
        ],
        "model": [request.config[name] for name in ("model", "model_arg")],
        "plan": evaluator.plan,
        "center": _digest(objective.theta),
        "frozen": [_digest(p) for p in model.parameters() if not p.requires_grad],
        "buffers": [_digest(buffer) for buffer in model.buffers()],
        "directions": _digest(evaluator.directions),
        "samples": [_digest(evaluator.samples.inputs), _digest(evaluator.samples.labels)],
        "loss": [loss.name, loss.label_smoothing, request.config["loss_arg"]],
        "batchnorm": None if batchnorm is None else [batchnorm.policy, batchnorm.num_samples],
        "ends": [] if batchnorm is None else [_digest(tensor) for tensor in batchnorm.ends],
        **_arithmetic(objective),
    }
    return sha256_bytes(canonical_json(parts))[:32]


def _arithmetic(objective: Objective) -> dict[str, Any]:
    """What moves the bits of a loss, and not what it is the loss of."""
    return {
        "dtype": str(objective.dtype),
        "micro_batch_size": objective.micro_batch_size,
        "device": str(objective.device),
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def announce_share(plan: Plan, objective: Objective, index: int, count: int) -> Iterator[str]:
    """Write down how a share is measured, for the others; say which of them are otherwise.

    Their cells have other keys and never make one surface with this share's.

    Raises:
        OutputError: if the place cannot be written.
        MachineError: if the disk is full.
    """
    own, request = _arithmetic(objective), plan.request
    asked = {key: value for key, value in request.config.items() if key not in own}
    asked = {**request.model_dump(mode="json"), "config": asked}
    digest = sha256_bytes(canonical_json(asked))[:32]
    directory = plan.out / BOOKKEEPING / "cells"
    # Written before others are read: of two that begin together one sees the other.
    with atomic_write(directory / f"{digest}.{index}-of-{count}.share") as handle:
        handle.write(canonical_json(own))
    for path in sorted(directory.glob(f"{digest}.*-of-{count}.share")):
        try:
            other = json.loads(path.read_bytes())
        except (OSError, ValueError):  # gone or damaged: nothing is known of it
            continue
        if differing := [name for name in own if other.get(name) != own[name]]:
            share = path.name.split(".")[1].replace("-of-", "/")
            theirs, ours = (
                ", ".join(f"{name} {which.get(name)}" for name in differing)
                for which in (other, own)
            )
            yield (
                f"share {share} was measured with {theirs}, this one with {ours}: their cells do "
                "not make one surface; measure all shares with the same, as by "
                "--num-threads, --device, --dtype and --micro-batch-size"
            )


def forget_shares(plan: Plan) -> None:
    """Remove what shares wrote down, once there is a surface: another set may be measured anew."""
    for path in (plan.out / BOOKKEEPING / "cells").glob("*.share"):
        path.unlink(missing_ok=True)


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return sha256_bytes(flat.view(torch.uint8).numpy().tobytes())
