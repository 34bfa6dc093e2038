"""The command line: `app` with all its commands, loaded when it is first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

MODULES = {
    "train": "train",
    "hessian": "hessian",
    "interp": "interp",
    "contour": "contour",
    "run": "run",
    "show": "show",
    "verify": "verify",
    "table": "table",
    "export": "export",
    "models": "catalog",
    "datasets": "catalog",
}
"""The module of each command, in the order in which one uses them."""


def load(commands: Iterable[str]) -> Any:
    """The Typer app with these commands registered."""
    for command in commands:
        importlib.import_module(f"lgo_cli.cli.{MODULES[command]}")
    return importlib.import_module("lgo_cli.cli.root").app


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load(MODULES)
