"""Text on a terminal ends its lines between words; elsewhere lines are as they are."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

Rows = list[tuple[str, str]]
"""Names and values; a value under another has an empty name."""


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


def laid_out(rows: Sequence[tuple[str, str]], columns: int | None) -> list[str]:
    """Names and values as aligned lines, on a terminal as many as they need.

    Args:
        rows: Of name and value. Indented names, as of layers, may be long: they are aligned by
            themselves.
        columns: Of the terminal; `None` if there is none.
    """
    widths = [
        max((len(name) for name, _ in rows if name.startswith("  ") == indented), default=0)
        for indented in (False, True)
    ]
    lines = []
    for name, value in rows:
        head = f"{name:<{widths[name.startswith('  ')]}}  "
        line = head + value
        if columns is None or len(line) <= columns:
            lines.append(line)
            continue
        # Deeper than the value, under which the next row may stand.
        below = len(head) + 2 if columns >= len(head) + 40 else 4
        lines += textwrap.wrap(
            line, max(columns, 1), subsequent_indent=" " * below,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return lines
