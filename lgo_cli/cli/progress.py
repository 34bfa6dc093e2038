"""Progress on stderr: Rich's bar on a terminal, a plain line every half minute elsewhere.

A terminal that cannot move its cursor (`TERM=dumb`) gets lines too.
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lgo_cli.cli.talk import fitted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID

    from lgo_cli.progress import Task

LINE_INTERVAL_S = 30.0

ROOM_FOR_ECHO = 4
"""Columns at the end of a bar's line for the terminal's ^C, which would begin another line: Rich
would clear that one, and the bar would stay."""


class RichProgress:
    """The terminal's listener."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def note(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        self.console.print(fitted(text, self.console))

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        """Show one task until the block ends."""
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            yield _Lines(self.console, description, total, unit)
            return
        from rich.constrain import Constrain
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        console = self.console

        class Bar(Progress):
            def get_renderable(self) -> RenderableType:
                return Constrain(super().get_renderable(), console.width - ROOM_FOR_ECHO)

        def text(template: str) -> TextColumn:
            return TextColumn(template, markup=False, table_column=Column(no_wrap=True))

        columns = (
            text("{task.description}"),
            # The bar takes what is left of the line: in 80 columns not much.
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6, max_width=40)),
            text("{task.percentage:>3.0f}%"),
            text("{task.fields[rate]}"),
            text("{task.fields[stats]}"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            text("left"),
        )
        bar = Bar(*columns, console=console, transient=True, expand=True)
        try:
            with _undisturbed():
                bar.start()
            identity = bar.add_task(description, total=total, rate="", stats="")
            yield _Bar(bar, identity, unit)
        finally:
            with _undisturbed():
                bar.stop()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block has ended.

    Amid Rich's start or stop they leave the cursor hidden, or a bar that cannot be stopped. They
    are caught, not blocked: a signal that one thread blocks is delivered to another, such as one of
    PyTorch's, and Python's handler runs all the same.
    """
    waiting: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # no other has handlers
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    caught = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in caught:
            signal.signal(number, lambda number, _: waiting.append(number))
        yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)
    if waiting:
        signal.raise_signal(waiting[0])


class _Bar:
    def __init__(self, bar: RichBar, identity: TaskID, unit: str) -> None:
        self.bar = bar
        self.identity = identity
        self.unit = unit
        self.stats: dict[str, float | str] = {}

    def advance(self, amount: int = 1, **stats: float | str) -> None:
        self.stats |= stats
        speed = self.bar.tasks[self.identity].speed
        self.bar.update(
            self.identity,
            advance=amount,
            rate=f"{format_count(speed)} {self.unit}/s" if speed else "",
            stats=format_stats(self.stats),
        )


class _Lines:
    def __init__(self, console: Console, description: str, total: int | None, unit: str) -> None:
        self.console = console
        self.description = description
        self.total = total
        self.unit = unit
        self.done = 0
        self.stats: dict[str, float | str] = {}
        self.start = self.last = time.monotonic()

    def advance(self, amount: int = 1, **stats: float | str) -> None:
        self.done += amount
        self.stats |= stats
        now = time.monotonic()
        if now - self.last < LINE_INTERVAL_S:
            return
        self.last = now
        rate = self.done / (now - self.start)
        parts = [f"{self.description}: {self.done}"]
        if self.total:
            parts[0] += f"/{self.total}"
            parts.append(f"{max(self.total - self.done, 0) / rate:.0f} s left" if rate else "")
        parts[0] += f" {self.unit}"
        parts.insert(1, f"{format_count(rate)} {self.unit}/s")
        parts.append(format_stats(self.stats))
        self.console.print(fitted(", ".join(part for part in parts if part), self.console))


def format_count(value: float) -> str:
    """A rate as a short number: 3.4, 340, 3.4k."""
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    if value >= 1000:
        return f"{value / 1000:.1f}k"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def format_stats(stats: dict[str, float | str]) -> str:
    """Figures beside a bar."""
    return "  ".join(
        f"{name.replace('_', ' ')} {value if isinstance(value, str) else f'{value:.4g}'}"
        for name, value in stats.items()
    )
