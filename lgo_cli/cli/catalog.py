"""`lgo models` and `lgo datasets`: what can be named, with its arguments."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from lgo_cli.cli.root import app

if TYPE_CHECKING:
    from pydantic import BaseModel

Json = Annotated[bool, typer.Option("--json", help="Print them as one JSON object.", metavar="")]


@app.command()
def models(json: Json = False) -> None:
    """List the models, with their arguments and parameter counts."""
    from lgo_cli.models.building import parameter_counts
    from lgo_cli.models.registry import MODELS

    counts = parameter_counts()
    if json:
        _write_json(
            {
                name: {
                    "summary": spec.summary,
                    "num_parameters": counts[name][0],
                    "counted_for": counts[name][1],
                    "arguments": _schema(spec.args),
                }
                for name, spec in MODELS.items()
            }
        )
        return
    for name, spec in MODELS.items():
        number, shape = counts[name]
        _write_named(name, spec.summary, f"{number:,} parameters for {shape}")
        _write_arguments(spec.args)
    _write("file.py:factory, package.module:factory  any callable that returns an nn.Module")


@app.command()
def datasets(json: Json = False) -> None:
    """List the data sets, with their arguments."""
    from lgo_cli.data.registry import DATASETS

    if json:
        _write_json(
            {
                name: {"summary": spec.summary, "arguments": _schema(spec.args)}
                for name, spec in DATASETS.items()
            }
        )
        return
    for name, spec in DATASETS.items():
        _write_named(name, *spec.summary.split("; "))
        _write_arguments(spec.args)
    _write("file.npz  x_train, y_train, x_test, y_test, used exactly as given")
    _write("file.py:factory  any callable that returns these four")


def _schema(args: type[BaseModel]) -> dict[str, dict[str, object]]:
    return {
        name: {"default": field.get_default(), "description": field.description}
        for name, field in args.model_fields.items()
    }


def _write_named(name: str, summary: str, *more: str) -> None:
    """A name and what it is, more of that on lines of its own: 80 columns have room for it."""
    _write(f"{name}  {summary}")
    for text in more:
        _write(f"    {text}")


def _write_arguments(args: type[BaseModel]) -> None:
    from lgo_cli.arguments import shown

    for name, field in args.model_fields.items():
        _write(f"    {name}={shown(field.default)}  {field.description}")


def _write(line: str) -> None:
    from lgo_cli.cli.output import write

    write(line)


def _write_json(value: object) -> None:
    _write(json_module.dumps(value, indent=2))
