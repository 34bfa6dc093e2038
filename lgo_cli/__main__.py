"""Entry point of the `lgo` command and of `python -m lgo_cli`."""

import gc
import os
import signal
import sys
from types import FrameType

from lgo_cli.cli import MODULES, load
from lgo_cli.errors import ExitCode

_INTERRUPTED = "lgo: error: interrupted\nhint: nothing is half-written; run the same again\n"


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but end at once while something is imported.

    What an extension's C or C++ calls as it is imported cannot raise: PyTorch swallows the
    exception or aborts. A kill at any moment is safe, and so is this.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, _INTERRUPTED.encode())
            os._exit(ExitCode.INTERRUPTED)
        frame = frame.f_back
    signal.default_int_handler(signum, frame)


def main() -> None:
    """Run the command line.

    A command that comes first is loaded alone, and nothing that start-up makes is garbage: both
    are for `lgo contour --help`, which is waited for. What computes collects again. At the end all
    memory goes at once: the last collection would look at each of PyTorch's objects, for half a
    second.
    """
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, _interrupt)
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
