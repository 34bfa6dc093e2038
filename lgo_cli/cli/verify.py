"""`lgo verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from lgo_cli.cli.options import RunDirectories
from lgo_cli.cli.root import app

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing: the exit code says it.", metavar="")
]


@app.command()
def verify(runs: RunDirectories, quiet: Quiet = False) -> None:
    """Recompute every digest and every link between steps; exit 3 on the first lie.

    Results are held against the arrays of their step.
    """
    from lgo_cli.cli.output import write
    from lgo_cli.runs.inspect import verify_run

    for run in runs:
        steps = verify_run(run)
        if not quiet:
            write(f"{run}  verified: {', '.join(steps)}")
