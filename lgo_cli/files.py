"""Files: canonical JSON, digests, atomic writes and the lock of a step."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from lgo_cli.errors import InputError, LockedError, MachineError, OutputError, no_room

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

LOOK = 0.05
"""Seconds after which who only looks at a lock (`is_locked`) has let go of it."""

BOOKKEEPING = ".lgo"
"""Directory inside a run for locks, claims and journals; never an output."""


def canonical_json(value: Any) -> bytes:
    """Serialise to the one JSON text that equal values share.

    Keys sorted, no white space, UTF-8, shortest float representation.

    Raises:
        ValueError: if a number is not finite; a request holds none.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def hashable_json(value: T) -> T:
    """The value itself, if `canonical_json` takes it.

    Raises:
        ValueError: if not.
    """
    canonical_json(value)
    return value


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content as 64 hexadecimal digits.

    Raises:
        InputError: if the file cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def portable_path(path: Path, directory: Path) -> str:
    """Where `path` is, seen from `directory`, so that both can move together.

    Between two drives of Windows there is no way from one to the other: the path is absolute.
    """
    path, directory = path.resolve(), directory.resolve()
    try:
        return Path(os.path.relpath(path, directory)).as_posix()
    except ValueError:
        return path.as_posix()


def temporary_path(path: Path) -> Path:
    """Where `atomic_write` builds `path`: beside it, hidden, one name per target."""
    return path.with_name(f".{path.name}.lgo-tmp")


class _NewFile(io.FileIO):
    """A file to write that keeps what went wrong: writers hide it behind errors of their own.

    `torch.save` makes a RuntimeError of a full disk, matplotlib and zlib what the half-written
    object then lacks.
    """

    def __init__(self, path: Path, failures: list[OSError]) -> None:
        super().__init__(path, "w")
        self.failures = failures

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failures.append(error)
            raise


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` if the block ends well.

    The file is synced before it replaces `path`, and the directory after, so that after a crash
    either the old content stands or all of the new. The temporary name is the same each time: the
    next writer (there is one per step at a time, see `step_lock`) overwrites what a killed one
    left.

    Raises:
        MachineError: if the disk is full, or files may not be as large.
        OutputError: if the place cannot be written.
    """
    temporary = temporary_path(path)
    failures: list[OSError] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with io.BufferedWriter(_NewFile(temporary, failures)) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        if failures:  # and the writer went on
            raise failures[0]
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        first = [*failures, error][0]
        if isinstance(first, OSError):
            raise write_error(path, first) from error
        raise


def _sync_directory(directory: Path) -> None:
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except PermissionError:  # Windows opens no directory, nor does one that may not be listed
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_non_directory(out: Path) -> None:
    """Raise `OutputError` if `out` is there and no directory, or cannot be."""
    try:
        is_other = out.exists() and not out.is_dir()
    except OSError as error:  # such as a name that is too long
        raise write_error(out, error) from error
    if is_other:
        raise OutputError(f"{out} is a file, not a directory", hint="choose another --out")


def write_error(path: Path, error: OSError) -> MachineError | OutputError:
    """Say what an `OSError` on the way to `path` means for the user."""
    return no_room(error, f"to write {path}") or OutputError(
        f"cannot write {path}: {error.strerror or error}",
        hint="choose another directory with --out",
    )


@contextmanager
def step_lock(directory: Path, step: str) -> Iterator[None]:
    """Hold the lock of `step` in `directory`; other steps may run there meanwhile.

    Where the block fails, neither lock nor directory is left that was not there before, but for
    one that something was written into.

    Raises:
        LockedError: if another process holds it.
        OutputError: if the place cannot be written.
        MachineError: if its file system has no locks.
    """
    lock = directory / BOOKKEEPING / f"{step}.lock"
    is_new = not os.path.exists(lock)
    new = [path for path in lock.parents if not os.path.exists(path)]
    try:
        with _locked(lock, directory, step):
            try:
                yield
            except BaseException:
                with suppress(OSError):  # while it is held: who waits for it would hold no file
                    if is_new:
                        lock.unlink()
                raise
    except LockedError:  # by its owner
        raise
    except BaseException:
        with suppress(OSError):
            for path in new:
                path.rmdir()
        raise


@contextmanager
def _locked(lock: Path, directory: Path, step: str) -> Iterator[None]:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a+b")
    except OSError as error:
        raise write_error(directory, error) from error
    with handle:
        if fcntl is not None:
            try:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(LOOK)
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle.fileno()).st_nlink == 0:  # its last owner failed just now
                    raise BlockingIOError
            except BlockingIOError as error:
                raise LockedError(
                    f"another lgo {step} is writing to {directory}",
                    hint="wait for it to end, or choose another directory with --out",
                ) from error
            except OSError as error:
                raise MachineError(
                    f"{directory} lies on a file system that locks no files: {error.strerror}",
                    hint="choose a directory on another disk with --out",
                ) from error
        yield


def is_locked(directory: Path, step: str) -> bool:
    """Whether another process holds the lock of `step`; where that cannot be told, none does.

    Writes nothing, and several may look at once.
    """
    if fcntl is None:
        return False
    try:
        with (directory / BOOKKEEPING / f"{step}.lock").open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False
