"""What the four commands that compute have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgo_cli.cli.allocator import keep_memory
from lgo_cli.cli.output import Output
from lgo_cli.cli.request import Asked
from lgo_cli.runs import execute

if TYPE_CHECKING:
    from pathlib import Path

    import typer

    from lgo_cli.config import StepConfig


def open_output(ctx: typer.Context) -> Output:
    """The streams that the command's `--json`, `--quiet` and `--verbose` ask for."""
    params = ctx.params
    return Output(json=params["json"], quiet=params["quiet"], verbose=params["verbose"])


def run_step(ctx: typer.Context, cls: type[StepConfig], run: Path | None = None) -> None:
    """Carry out one step as the command line asks."""
    output = open_output(ctx)
    asked = Asked(ctx, cls, run, ctx.params["config"])
    keep_memory()
    outcome = execute(
        asked.config,
        asked.run,
        execution=asked.execution,
        figure=asked.figure,
        progress=output.progress,
    )
    output.outcome(outcome)
