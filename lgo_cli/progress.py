"""How library code tells that work goes on, without knowing who listens."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, amount: int = 1, **stats: float | str) -> None:
        """Report `amount` more units done, and figures worth showing beside the bar."""


class Progress(Protocol):
    """A listener: the terminal's bar, a log's lines, or nobody."""

    def task(self, description: str, total: int | None, unit: str) -> AbstractContextManager[Task]:
        """Open a task of `total` units (`None` if unknown)."""

    def note(self, text: str) -> None:
        """Say something that is worth knowing while the work goes on."""


class _SilentTask:
    def advance(self, amount: int = 1, **stats: float | str) -> None:
        del amount, stats


class _Silent:
    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        del description, total, unit
        yield _SilentTask()

    def note(self, text: str) -> None:
        del text


SILENT: Progress = _Silent()
