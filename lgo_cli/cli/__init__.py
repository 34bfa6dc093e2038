"""The command line."""

from lgo_cli.cli import catalog, contour, hessian, interp, run, show, table, train, verify
from lgo_cli.cli.app import app

__all__ = [
    "app", "catalog", "contour", "hessian", "interp", "run", "show", "table", "train", "verify",
]  # fmt: skip
