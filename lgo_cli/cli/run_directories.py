"""What names the runs of commands that look at them and compute nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunDirectory = Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")]
RunDirectories = Annotated[
    list[Path], typer.Argument(help="Run directories.", show_default=False, metavar="RUN")
]
