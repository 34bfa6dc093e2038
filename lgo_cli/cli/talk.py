"""Talk on stderr: whole words on a terminal, and the lines as they are elsewhere."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def open_console() -> Console:
    """Where talk goes."""
    from rich.console import Console

    # FORCE_COLOR makes no terminal of a log file, in which a bar is a line of escape codes.
    terminal = None if sys.stderr.isatty() else False
    return Console(
        stderr=True, force_terminal=terminal, markup=False, highlight=False, soft_wrap=True
    )


def fitted(text: str, console: Console) -> str:
    """Text whose lines end between words on a terminal, which would end them anywhere.

    Rich is told not to (`soft_wrap`), as it cuts words that are longer than a line: paths.
    """
    if not console.is_terminal:
        return text
    return "\n".join(
        textwrap.fill(
            line, console.width, subsequent_indent="  ",
            break_long_words=False, break_on_hyphens=False,
        )
        for line in text.split("\n")
    )  # fmt: skip
