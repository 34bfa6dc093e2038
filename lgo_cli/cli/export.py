"""`lgo export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lgo_cli.cli.options import RunDirectory
from lgo_cli.cli.root import app
from lgo_cli.config import DEFAULT_RUN

To = Annotated[
    Literal["csv", "vtk", "h5"],
    typer.Option(
        help="csv: tidy tables; vtk: image data for ParaView; h5: the layout of Li et al.'s "
        "scripts (extra h5).",
        metavar="FORMAT",
        show_default=False,
    ),
]
StepName = Annotated[
    Literal["hessian", "interp", "contour"] | None,
    typer.Option(help="Only this step's arrays. (default: all)", metavar="STEP"),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Where to. (default: the run)", metavar="DIR")
]
Force = Annotated[bool, typer.Option("--force", help="Replace files of others.", metavar="")]


@app.command()
def export(
    to: To,
    run: RunDirectory = DEFAULT_RUN,
    step: StepName = None,
    out: Out = None,
    force: Force = False,
) -> None:
    """Write what was measured for other programs; prints the files' paths.

    The arrays are checked against their manifests first: exit 3 if they are not what was written.
    """
    from lgo_cli.cli.output import write_path
    from lgo_cli.runs.exporting import export as export_run

    for path in export_run(run, to, step=step, out=out, force=force):
        write_path(path)
