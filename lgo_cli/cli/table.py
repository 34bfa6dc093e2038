"""`lgo table`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lgo_cli.cli.root import app
from lgo_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgo_cli.runs.inspect import Row

Runs = Annotated[list[Path], typer.Argument(help="Run directories.", show_default=False)]
TableFormat = Annotated[
    Literal["table", "csv", "jsonl"],
    typer.Option(help="Aligned text without empty columns, or all columns for a program."),
]


@app.command()
def table(runs: Runs, format: TableFormat = "table") -> None:
    """Put the results of many runs side by side, one row a run."""
    from lgo_cli.cli.output import Output
    from lgo_cli.runs.inspect import COLUMNS, inspect_run, run_row

    output = Output(json=False, quiet=False, verbose=False)
    rows, unreadable = [], []
    for run in runs:
        try:
            states = inspect_run(run)
            rows.append(run_row(run, states))
            unreadable += [state.error for state in states if state.error is not None]
        except InputError as error:
            unreadable.append(error)
            rows.append({"run": str(run), **dict.fromkeys(COLUMNS), "problems": error.message})
    for row in rows:
        if row["problems"]:
            output.say(f"warning: {row['run']}: {row['problems']}")
    if format == "jsonl":
        for row in rows:
            output.write(json.dumps({key: _finite(value) for key, value in row.items()}))
    elif format == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, ["run", *COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        output.write(text.getvalue().rstrip("\n"))
    else:
        for line in aligned(rows):
            output.write(line)
    if unreadable:
        raise unreadable[0]


def _finite(value: Any) -> Any:
    """JSON has no NaN: it is written as manifests write it, as a string."""
    if isinstance(value, float) and not abs(value) < float("inf"):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return value


def aligned(rows: Sequence[Row]) -> list[str]:
    """Rows as columns of text; a column that no run fills is left out."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    numeric = [all(not isinstance(row[name], str) for row in rows) for name in names]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
