"""What the four commands that compute have in common."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from typing import TYPE_CHECKING

# What runs a command is imported when one is run: `lgo --help` and its like shall not wait for it.

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import typer

    from lgo_cli.cli.output import Output
    from lgo_cli.config import Execution, FigureConfig, StepConfig
    from lgo_cli.runs import Outcome


def open_output(ctx: typer.Context) -> Output:
    """The streams that the command's `--json`, `--quiet` and `--verbose` ask for."""
    from lgo_cli.cli.output import Output

    params = ctx.params
    return Output(json=params["json"], quiet=params["quiet"], verbose=params["verbose"])


def run_step(ctx: typer.Context, cls: type[StepConfig], run: Path | None = None) -> None:
    """Carry out one step as the command line asks."""
    from lgo_cli.cli.request import asked

    output = open_output(ctx)
    output.outcome(carry_out(output, *asked(ctx, cls, run, ctx.params["config"])))


def carry_out(
    output: Output,
    config: StepConfig,
    run: Path | None,
    execution: Execution,
    figure: FigureConfig,
    inputs: Mapping[str, str] | None = None,
) -> Outcome:
    """Execute a step in the command line's own process.

    What a user's model or data prints is talk: stdout is kept for the result.
    """
    from lgo_cli import runs
    from lgo_cli.cli.allocator import keep_memory
    from lgo_cli.cli.output import Mode

    if output.mode is Mode.QUIET:  # it speaks of its cache where no home can be written
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
    gc.enable()
    keep_memory()
    with contextlib.redirect_stdout(sys.stderr):
        return runs.execute(
            config,
            run,
            execution=execution,
            figure=figure,
            inputs=inputs,
            progress=output.progress,
        )
