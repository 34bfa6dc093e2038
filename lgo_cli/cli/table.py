"""`lgo table`."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lgo_cli.cli.options import RunDirectories
from lgo_cli.cli.root import app
from lgo_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgo_cli.runs.rows import Row

TableFormat = Annotated[
    Literal["table", "csv", "jsonl"],
    typer.Option(
        help="Aligned text without empty columns, on a terminal as many as fit; or all columns "
        "for a program."
    ),
]


@app.command()
def table(runs: RunDirectories, format: TableFormat = "table") -> None:
    """Put the results of many runs side by side, one row a run."""
    from lgo_cli.cli.output import Output, write
    from lgo_cli.runs.inspect import inspect_run
    from lgo_cli.runs.rows import COLUMNS, run_row

    output = Output(json=False, quiet=False, verbose=False)
    rows, concerned, unreadable = [], [], []
    for run in runs:
        try:
            states = inspect_run(run)
            rows.append(run_row(run, states))
            concerned.append(", ".join(state.command for state in states if state.reason) or None)
            unreadable += [state.error for state in states if state.error is not None]
        except InputError as error:
            unreadable.append(error)
            rows.append({"run": str(run), **dict.fromkeys(COLUMNS), "problems": error.message})
            concerned.append("unreadable")
    # The first of those that cannot be read is the error at the end.
    last = unreadable[0].message if unreadable else None
    for row in rows:
        if row["problems"] and row["problems"] != last:
            output.say(f"warning: {row['run']}: {row['problems']}")
    if format == "jsonl":
        for row in rows:
            write(json.dumps({key: _finite(value) for key, value in row.items()}))
    elif format == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, ["run", *COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write(text.getvalue().rstrip("\n"))
    else:
        if output.width is not None:  # reasons are long, and each was said above
            rows = [row | {"problems": steps} for row, steps in zip(rows, concerned, strict=True)]
        names, said = fitting(rows, output.width)
        for line in aligned(rows, names):
            write(line)
        for remark in said:
            output.say(remark)
    if unreadable:
        raise unreadable[0]


def _finite(value: Any) -> Any:
    """JSON has no NaN: it is written as manifests write it, as a string."""
    if isinstance(value, float) and not abs(value) < float("inf"):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return value


RECIPE = (
    "model", "dataset", "loss", "seed", "epochs", "optimizer", "lr", "batch_size", "weight_decay",
)  # fmt: skip
SAMPLES = (
    "num_train_samples", "num_test_samples", "hessian_num_samples", "interp_num_samples",
    "contour_num_samples",
)  # fmt: skip
SETTINGS = (*RECIPE, *SAMPLES, "operator", "barrier_path")
"""Columns that say what was asked for."""

PREFERRED = (
    "run", "problems", "test_accuracy", "lambda_max", "barrier", "operator", *RECIPE, "init",
    "barrier_path", *SAMPLES, "trace", "test_loss", "sharpness_ratio", "train_loss", "lambda_min",
    "barrier_lower", "barrier_upper", "lambda_max_bound", "trace_standard_error", "train_accuracy",
    "stability_threshold", "preconditioned", "gradient_share", "hessian_loss",
)  # fmt: skip
"""Columns that have room first, those that answer before those that were asked for; the others come
after them as they stand."""


def fitting(rows: Sequence[Row], width: int | None) -> tuple[list[str], list[str]]:
    """Columns that a terminal has room for, and what is to be said of those left out.

    A column that no run fills is left out without a word. Where the others do not fit, settings
    that all runs share are left out, and then whole columns: no line is longer than the terminal,
    but where the runs' own names are.

    Args:
        rows: One for each run, all with the same keys.
        width: Characters of a line, `None` if there is no limit.
    """
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    widths = {name: len(max(_column(rows, name), key=len)) + 2 for name in names}
    if width is None or sum(widths.values()) - 2 <= width:
        return names, []
    # Runs of which nothing was measured have no say in what others were measured with.
    values = {name: {row[name] for row in rows if row[name] is not None} for name in names}
    same = [name for name in names if name in SETTINGS and len(values[name]) == 1]
    kept: set[str] = set()
    room = width + 2
    for name in sorted(names, key=[*PREFERRED, *names].index):
        if name == "run" or (name not in same and widths[name] <= room):
            kept.add(name)
            room -= widths[name]
    lost = [name for name in names if name not in same and name not in kept]
    said = []
    if same:
        shared = ", ".join(f"{name} {_cell(*values[name])}" for name in same)
        said.append(f"the same in all runs: {shared}")
    if lost:
        said.append(f"no room on {width} columns for: {', '.join(lost)}; --format csv has them all")
    return [name for name in names if name in kept], said


def aligned(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """These columns as text, words at the left and numbers at the right."""
    columns = []
    for name in names:
        cells = _column(rows, name)
        width = max(map(len, cells))
        is_text = any(isinstance(row[name], str) for row in rows)
        columns.append([cell.ljust(width) if is_text else cell.rjust(width) for cell in cells])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def _column(rows: Sequence[Row], name: str) -> list[str]:
    return [name, *(_cell(row[name]) for row in rows)]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
