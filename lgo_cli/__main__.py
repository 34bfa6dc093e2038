"""Entry point of the `lgo` command and of `python -m lgo_cli`."""

import gc
import sys

from lgo_cli.cli import MODULES, load
from lgo_cli.errors import ExitCode


def main() -> None:
    """Run the command line.

    A command that comes first is loaded alone, and nothing that start-up makes is garbage: both
    are for `lgo contour --help`, which is waited for. What computes collects again. At the end all
    memory goes at once: the last collection would look at each of PyTorch's objects, for half a
    second.
    """
    gc.disable()
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        load([first] if first in MODULES else MODULES)(prog_name="lgo")
    except KeyboardInterrupt:  # while modules are loaded; commands have their own word for it
        sys.stderr.write("lgo: error: interrupted\nhint: nothing was done; run the same again\n")
        sys.exit(ExitCode.INTERRUPTED)
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
