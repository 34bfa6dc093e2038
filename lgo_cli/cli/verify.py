"""`lgo verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lgo_cli.cli import options
from lgo_cli.cli.root import app

Runs = Annotated[list[Path], typer.Argument(help="Run directories.", show_default=False)]


@app.command()
def verify(runs: Runs, quiet: options.Quiet = False) -> None:
    """Recompute every digest and every link between steps; exit 3 on the first lie.

    Results are held against the arrays of their step.
    """
    from lgo_cli.cli.output import Mode, Output
    from lgo_cli.runs.inspect import verify_run

    output = Output(json=False, quiet=quiet, verbose=False)
    for run in runs:
        steps = verify_run(run)
        if output.mode is Mode.HUMAN:
            output.write(f"{run}  verified: {', '.join(steps)}")
