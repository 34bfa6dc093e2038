"""Entry point of the `lgo` command and of `python -m lgo_cli`."""

from __future__ import annotations

import codecs
import contextlib
import gc
import io
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, TextIO

from lgo_cli.cli import MODULES, load
from lgo_cli.errors import ExitCode

if TYPE_CHECKING:
    from types import FrameType

    from _typeshed import ReadableBuffer

_INTERRUPTED = "lgo: error: interrupted\nhint: nothing is half-written; run the same again\n"

_END_OF_BAR = b"\r\x1b[2K\x1b[?25h"
"""Clears the line of a bar that is cut off, and shows the cursor, which it hid."""


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but end at once while something is imported.

    What an extension's C or C++ calls as it is imported cannot raise: PyTorch swallows the
    exception or aborts. A kill at any moment is safe, and so is this.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            with contextlib.suppress(OSError):
                if os.isatty(2) and os.environ.get("TERM") != "dumb":
                    os.write(2, _END_OF_BAR)
                os.write(2, _INTERRUPTED.encode())
            os._exit(ExitCode.INTERRUPTED)
        frame = frame.f_back
    signal.default_int_handler(signum, frame)


class _Descriptor(io.FileIO):
    """A standard stream's descriptor, of which some errors are none."""

    def __init__(self, number: int, forgiven: type[OSError]) -> None:
        super().__init__(number, "w", closefd=False)
        self.forgiven = forgiven

    def write(self, data: ReadableBuffer, /) -> int:
        """Write, or drop what can go nowhere; of what is an error the first is raised."""
        try:
            return super().write(data)
        except self.forgiven:
            return memoryview(data).nbytes
        except OSError:
            self.forgiven = OSError  # what is buffered comes again when the process ends
            raise


def _escape(error: UnicodeError) -> tuple[str, int]:
    """What an encoding lacks, as JSON escapes it: what `--json` prints stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _writable(stream: TextIO | None, forgiven: type[OSError]) -> TextIO:
    """A standard stream that takes any text; one that is closed takes it to `os.devnull`."""
    number = os.open(os.devnull, os.O_RDWR) if stream is None else stream.fileno()
    encoding = "utf-8" if stream is None else stream.encoding
    buffer = io.BufferedWriter(_Descriptor(number, forgiven))
    return io.TextIOWrapper(buffer, encoding, _escape.__name__, line_buffering=True)


def _open_streams() -> None:
    """Make the standard streams such that none changes how a command ends, but a full stdout.

    A reader of data who has seen enough (`| head`) is no error, nor is talk that cannot be heard.
    Closed ones are opened in the order of their numbers, each of which is the lowest that is free:
    a file that is opened later would get it, and with it what is printed.
    """
    codecs.register_error(_escape.__name__, _escape)
    if sys.stdin is None:
        sys.stdin = open(os.open(os.devnull, os.O_RDWR))  # noqa: SIM115 - for all of the process
    sys.stdout = _writable(sys.stdout, BrokenPipeError)
    sys.stderr = _writable(sys.stderr, OSError)


def main() -> None:
    """Run the command line.

    A command that comes first is loaded alone, and nothing that start-up makes is garbage: both
    are for `lgo contour --help`, which is waited for. What computes collects again. At the end all
    memory goes at once: the last collection would look at each of PyTorch's objects, for half a
    second.
    """
    _open_streams()
    gc.disable()
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    for number, default in defaults.items():
        if signal.getsignal(number) == default:  # not where it is ignored
            signal.signal(number, _interrupt)
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        load([first] if first in MODULES else MODULES)(prog_name="lgo")
    except KeyboardInterrupt:  # between imports; commands have their own word for it
        sys.stderr.write(_INTERRUPTED)
        sys.exit(ExitCode.INTERRUPTED)
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
