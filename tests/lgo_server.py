"""A process that has imported PyTorch, and forks for each `lgo` that a script or Makefile calls.

The import takes two seconds of CPU, most of what a small step takes, and it is not what scripts are
tested for. Commands have their caller's directory, environment, arguments and streams.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import sys
import traceback
from typing import Any

import lgo_cli.__main__ as entry
import lgo_cli.figures.catalogue
import lgo_cli.runs.loaded
import lgo_cli.runs.steps.contour
import lgo_cli.runs.steps.hessian
import lgo_cli.runs.steps.interp
import lgo_cli.runs.steps.train  # noqa: F401 - all of these for the forks

CLIENT = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([os.getcwd(), dict(os.environ), sys.argv[1:]]).encode()
    socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(asked)
    sys.exit(int(server.recv(9) or 1))
"""


def _answer(caller: socket.socket) -> None:
    """Run what the caller asks for, and tell the exit code."""
    length, streams, _, _ = socket.recv_fds(caller, 4, 3)
    with caller.makefile("rb") as asked:
        place, environment, arguments = json.loads(asked.read(int.from_bytes(length, "big")))
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [entry.__file__, *arguments]
    code: Any = 1
    try:
        entry.main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    caller.sendall(str(code or 0).encode())
    os._exit(0)


def main() -> None:
    gc.freeze()  # or a fork's collections would copy all pages
    tests = os.getppid()
    with socket.socket(fileno=int(sys.argv[1])) as server:
        server.settimeout(2)
        while os.getppid() == tests:  # they may be killed
            with contextlib.suppress(TimeoutError):
                caller, _ = server.accept()
                if not os.fork():
                    _answer(caller)
                caller.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:  # of those before
                    pass


if __name__ == "__main__":
    main()
