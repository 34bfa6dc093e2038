"""`lgo show`."""

from __future__ import annotations

from typing import Annotated

import typer

from lgo_cli.cli.options import RunDirectory
from lgo_cli.cli.root import app
from lgo_cli.config import DEFAULT_RUN

Json = Annotated[bool, typer.Option("--json", help="Print the manifests, one a line.", metavar="")]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print the paths of those manifests alone that can be relied on.",
        metavar="",
    ),
]


@app.command()
def show(
    run: RunDirectory = DEFAULT_RUN,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what is in a run: its results, and what is stale or missing."""
    from lgo_cli.cli.output import Mode, Output, write, write_path
    from lgo_cli.cli.tables import summary_lines
    from lgo_cli.manifest import manifest_json
    from lgo_cli.runs.inspect import inspect_run

    output = Output(json=json, quiet=quiet, verbose=False)
    states = inspect_run(run)
    for state in states:
        path = run / f"{state.command}.json"
        if output.mode is Mode.QUIET:
            if state.manifest is not None and not state.problems:
                write_path(path)
            continue
        for problem in state.problems if state.error is None else ():
            output.say(f"warning: {state.command}: {problem}")
        if output.mode is Mode.JSON:
            if state.manifest is not None:
                write(manifest_json(state.manifest, indent=None))
            continue
        status = "not run" if state.manifest is None else "ok"
        write(f"{state.command}  {state.reason or status}")
        if state.manifest is not None:
            for line in summary_lines(state.manifest, run, output.width and output.width - 2):
                write(f"  {line}")
    for state in states:
        if state.error is not None:
            raise state.error
