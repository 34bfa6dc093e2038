"""What can go wrong that a user can mend, and the exit code each kind ends with."""

from __future__ import annotations

import errno
import re
import site
import sysconfig
import traceback
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """Process exit codes of the `lgo` command; part of the public contract."""

    OK = 0
    BUG = 1
    USAGE = 2
    INPUT = 3
    NUMERICS = 4
    MACHINE = 5
    INTERRUPTED = 130


class LgoError(Exception):
    """Base of all errors that a user can mend.

    Args:
        message: What is wrong, in one sentence without a trailing full stop.
        hint: What to do about it, or `None`.
    """

    exit_code = ExitCode.BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LgoError):
    """The request itself is wrong: an unknown name, a bad value, options that exclude another."""

    exit_code = ExitCode.USAGE


class InputError(LgoError):
    """An input is missing, corrupt or not what its manifest says."""

    exit_code = ExitCode.INPUT


class DamagedError(InputError):
    """A manifest that this very lgo wrote was damaged or edited since."""


class NoManifestError(InputError):
    """A file of a manifest's name is no manifest: somebody else's, or damaged beyond knowing."""


class OutputError(LgoError):
    """An output cannot be written: it is somebody else's, locked, or no directory."""

    exit_code = ExitCode.INPUT


class LockedError(OutputError):
    """Another process is writing what this one would write."""


class NumericsError(LgoError):
    """The numbers failed: a non-finite loss, a non-deterministic objective, no convergence."""

    exit_code = ExitCode.NUMERICS


class MachineError(LgoError):
    """The machine lacks something: a device, memory, disk space."""

    exit_code = ExitCode.MACHINE


def no_room(error: OSError, where: str) -> MachineError | None:
    """A full disk or quota, or a limit on the size of files, for the user; `None` of other errors.

    Args:
        error: Of writing.
        where: What was written, as the end of a sentence.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(f"no space left {where}", hint="free some space and run the same again")
    if error.errno == errno.EFBIG:
        return MachineError(
            f"the limit on the size of files leaves no room {where}",
            hint="raise the limit on the size of files (ulimit -f) and run the same again",
        )
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is a lack of memory: NumPy's, a GPU's or a CPU's.

    PyTorch has a subclass of RuntimeError for a GPU's alone; a CPU's is a bare one.
    """
    texts = ("out of memory", "can't allocate memory") if isinstance(error, RuntimeError) else ()
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def first_sentence(error: Exception) -> str:
    """What a stranger's error says first, without the advice behind it.

    A sentence ends before a capital, and not behind an abbreviation such as `e.g.`. Of an error
    that says nothing, or only a word as of a missing key, its class tells.
    """
    line = re.sub(r":\s*\n\s*", ": ", str(error).strip()).partition("\n")[0]
    sentence = re.split(r"(?<=[^.\s]{2}[.!?])\s+(?=[A-Z])", line)[0].rstrip(".")
    name = type(error).__name__
    return sentence if " " in sentence else f"{name}: {sentence}" if sentence else name


def raised_at(error: Exception) -> str:
    """File and line that raised a stranger's error: of his own code, if it came by any."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next(filter(_is_strangers, reversed(frames)), frames[-1])
    return f"{frame.filename}:{frame.lineno}"


def is_strangers(error: Exception) -> bool:
    """Whether a line of a stranger's own code raised an error, and not lgo's or a library's."""
    return _is_strangers(traceback.extract_tb(error.__traceback__)[-1])


def _is_strangers(frame: traceback.FrameSummary) -> bool:
    installed = (*sysconfig.get_paths().values(), site.getusersitepackages())
    return not frame.filename.startswith((*installed, str(Path(__file__).parent)))


def dtype_name(dtype: object) -> str:
    """A dtype's name without PyTorch's: `float32`."""
    return str(dtype).removeprefix("torch.")


def a_kind(value: object) -> str:
    """What a value is, in an error: `an int`, `a list`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
