from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lgo_cli import checkpoint
from lgo_cli.errors import InputError, LockedError, MachineError, OutputError
from lgo_cli.figures.files import save_figure
from lgo_cli.files import (
    atomic_write,
    canonical_json,
    is_locked,
    portable_path,
    refuse_non_directory,
    sha256_bytes,
    sha256_file,
    step_lock,
    temporary_path,
)


def test_canonical_json_is_one_text_for_equal_values() -> None:
    assert (
        canonical_json({"b": 1.0, "a": [True, None, "é"]})
        == '{"a":[true,null,"é"],"b":1.0}'.encode()
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-4, example of one block.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(path) == sha256_bytes(b"abc") == known
    with pytest.raises(InputError, match="No such file"):
        sha256_file(tmp_path / "absent")


def test_files_are_written_where_directories_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Path, *args: int) -> int:  # as Windows does
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args)

    monkeypatch.setattr(os, "open", refuse)
    with atomic_write(tmp_path / "file") as handle:
        handle.write(b"all")
    assert (tmp_path / "file").read_bytes() == b"all"


def test_places_on_two_drives_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert portable_path(tmp_path / "a" / "model.pth", tmp_path / "b") == "../a/model.pth"

    def refuse(path: Path, start: Path) -> str:
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr(os.path, "relpath", refuse)
    path = tmp_path / "a" / "model.pth"
    assert portable_path(path, tmp_path / "b") == path.resolve().as_posix()


def test_atomic_write_replaces_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with atomic_write(path) as handle:
        handle.write(b"old")
    with contextlib.suppress(KeyboardInterrupt), atomic_write(path) as handle:
        handle.write(b"half of the new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_atomic_write_reuses_what_a_killed_writer_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    temporary_path(path).write_bytes(b"left by a killed process, longer than the new content")
    with atomic_write(path) as handle:
        handle.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_syncs_the_file_before_it_is_there_and_then_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    synced = []

    def sync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", sync)
    with atomic_write(path) as handle:
        handle.write(b"new")
        assert synced == []
    assert synced == [(path.stat().st_ino, b"old"), (tmp_path.stat().st_ino, b"new")]


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, MachineError),
        (errno.EDQUOT, MachineError),
        (errno.EFBIG, MachineError),
        (errno.EACCES, OutputError),
    ],
)
def test_atomic_write_says_what_the_disk_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error), atomic_write(path) as handle:
        handle.write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def _save(kind: str, path: Path) -> None:
    if kind == "pth":
        checkpoint.save({"weight": torch.zeros(20_000)}, path)
        return
    with atomic_write(path) as handle:
        if kind == "npz":
            np.savez(handle, loss=np.zeros(20_000))
        elif kind == "swallowed":
            with contextlib.suppress(OSError):
                handle.write(bytes(20_000))
                handle.flush()
        else:
            figure = Figure()
            figure.subplots().plot(np.sin(np.arange(3_000.0) ** 2))
            save_figure(figure, handle, kind, 300)


@pytest.mark.parametrize("kind", ["pth", "npz", "png", "pdf", "svg", "swallowed"])
@pytest.mark.parametrize("room", [0, 9_000])
def test_whoever_writes_the_disk_has_the_word(tmp_path: Path, kind: str, room: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(MachineError, match=r"size of files leaves no room to write .*file"):
            _save(kind, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def _hold(directory: Path, ready: object, release: object) -> None:
    with step_lock(directory, "hessian"):
        ready.set()  # type: ignore[attr-defined]
        release.wait(30)  # type: ignore[attr-defined]


def test_step_lock_excludes_the_same_step_in_another_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, release))
    process.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(OutputError, match="another lgo hessian"),
            step_lock(tmp_path, "hessian"),
        ):
            pass
        with step_lock(tmp_path, "contour"):
            pass
    finally:
        release.set()
        process.join(30)
    with step_lock(tmp_path, "hessian"):
        pass


def test_a_look_at_a_lock_writes_nothing_and_does_not_keep_a_step_from_it(tmp_path: Path) -> None:
    assert not is_locked(tmp_path, "hessian")
    assert list(tmp_path.iterdir()) == []
    with step_lock(tmp_path, "hessian"):
        assert is_locked(tmp_path, "hessian")
        assert not is_locked(tmp_path, "contour")
    assert not is_locked(tmp_path, "hessian")
    with (tmp_path / ".lgo" / "hessian.lock").open("rb") as look:
        fcntl.flock(look, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not is_locked(tmp_path, "hessian")  # others may look too
        ended = threading.Timer(0.01, fcntl.flock, (look, fcntl.LOCK_UN))
        ended.start()
        with step_lock(tmp_path, "hessian"):
            pass
        ended.join()


@pytest.mark.parametrize("error", [InputError("bad data"), KeyboardInterrupt()])
def test_a_step_that_fails_leaves_no_lock_where_none_was(
    tmp_path: Path, error: BaseException
) -> None:
    def fail(*written: str) -> None:
        with contextlib.suppress(type(error)), step_lock(tmp_path / "new" / "run", "train"):
            for name in written:
                (tmp_path / "new" / "run" / name).touch()
            raise error

    fail()
    assert list(tmp_path.iterdir()) == []
    fail("init.pth", ".lgo/train.claim")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"new/run/init.pth", "new/run/.lgo/train.claim"}
    with step_lock(tmp_path / "new" / "run", "train"):
        pass
    fail()
    assert (tmp_path / "new" / "run" / ".lgo" / "train.lock").exists()


def test_a_lock_is_removed_while_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who takes it in between holds a lock that others do not find."""
    original, seen = Path.unlink, []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        seen.append(is_locked(tmp_path, "train"))
        original(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(InputError), step_lock(tmp_path, "train"):
        raise InputError("bad data")
    assert seen == [True]
    assert list(tmp_path.iterdir()) == []


def test_who_is_refused_a_lock_leaves_it_to_its_owner(tmp_path: Path) -> None:
    with step_lock(tmp_path, "train"):
        with pytest.raises(LockedError), step_lock(tmp_path, "train"):
            pass
        assert is_locked(tmp_path, "train")


def test_a_lock_that_was_removed_while_one_waited_for_it_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third process may hold the lock that took its name."""

    def fail(wait: float) -> None:  # in the time of the wait
        with contextlib.suppress(InputError):
            owner.throw(InputError("bad data"))

    owner = step_lock(tmp_path, "train").gen
    next(owner)
    monkeypatch.setattr("time.sleep", fail)
    with pytest.raises(LockedError), step_lock(tmp_path, "train"):
        pass
    assert list(tmp_path.iterdir()) == []
    with step_lock(tmp_path, "train"):
        pass


def test_step_lock_on_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("somebody's")
    with pytest.raises(OutputError, match="cannot write"), step_lock(place, "train"):
        pass
    assert place.read_text() == "somebody's"
    os.mkfifo(tmp_path / "pipe")
    for other in (place, tmp_path / "pipe"):
        with pytest.raises(OutputError, match="not a directory"):
            refuse_non_directory(other)


def test_a_disk_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(MachineError, match="locks no files"), step_lock(tmp_path, "contour"):
        pass
