"""Where and how a result was made: versions, device, threads, git, time."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lgo_cli import __version__
from lgo_cli.manifest import Environment, Provenance

try:
    import resource
except ImportError:  # pragma: no cover - Windows keeps no such account
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Stopwatch:
    """Time of a step, by phases that do not overlap.

    Attributes:
        argv: The command line, or what stands for it in a notebook.
        phases_s: Seconds spent in each phase.
    """

    argv: list[str]
    phases_s: dict[str, float] = field(default_factory=dict)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _start: float = field(default_factory=time.perf_counter)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block as phase `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.phases_s[name] = self.phases_s.get(name, 0.0) + spent

    def provenance(self) -> Provenance:
        """Close the record."""
        commit, dirty = git_state(Path.cwd())
        return Provenance(
            argv=self.argv,
            started_at=self.started_at.isoformat(timespec="seconds"),
            duration_s=time.perf_counter() - self._start,
            phases_s=self.phases_s,
            peak_memory_bytes=peak_memory_bytes(),
            git_commit=commit,
            git_dirty=dirty,
        )


def peak_memory_bytes() -> int | None:
    """Largest resident set of this process so far; `None` where the system does not tell."""
    if resource is None:  # pragma: no cover
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def git_state(directory: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout around `directory` and whether it is modified.

    Both are `None` outside one; there is no commit before the first.
    """
    try:
        lines = subprocess.run(
            ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None, None
    oid = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), "")
    commit = oid if re.fullmatch("[0-9a-f]+", oid) else None  # git calls it "(initial)"
    return commit, any(not line.startswith("#") for line in lines)


def environment(device: str) -> Environment:
    """Versions and settings that may move the last bits of a result."""
    import numpy as np
    import torch

    return Environment(
        lgo=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        device=device,
        num_threads=torch.get_num_threads(),
        deterministic=torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled(),
    )
