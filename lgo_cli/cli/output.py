"""Where text goes: data to stdout, talk to stderr."""

from __future__ import annotations

import os
import shutil
import sys
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

from lgo_cli.cli.progress import RichProgress
from lgo_cli.cli.tables import summary_lines
from lgo_cli.cli.talk import fitted, open_console
from lgo_cli.errors import UsageError
from lgo_cli.manifest import manifest_json
from lgo_cli.progress import SILENT, Progress
from lgo_cli.results import ContourResults, HessianResults, InterpResults
from lgo_cli.runs import Outcome, Status

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from lgo_cli.results import Results


class Mode(Enum):
    """What stdout gets."""

    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"


def write(text: str) -> None:
    """Write a line of data."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_path(path: Path) -> None:
    """Write a path as the system has it, in whatever encoding stdout is."""
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.flush()


class Output:
    """The two streams of one command.

    stdout never goes through Rich, which wraps paths and reads `[seed=0]` as markup.

    Raises:
        UsageError: if `--quiet` is given with `--json` or `--verbose`.
    """

    def __init__(self, *, json: bool, quiet: bool, verbose: bool) -> None:
        for flag, given in {"--json": json, "--verbose": verbose}.items():
            if given and quiet:
                raise UsageError(f"{flag} and --quiet exclude each other")
        self.mode = Mode.JSON if json else Mode.QUIET if quiet else Mode.HUMAN
        self.verbose = verbose

    @cached_property
    def console(self) -> Console:
        """Where talk goes."""
        return open_console()

    @cached_property
    def progress(self) -> Progress:
        """A bar on a terminal, a line now and then elsewhere, nothing when quiet."""
        return SILENT if self.mode is Mode.QUIET else RichProgress(self.console)

    @property
    def width(self) -> int | None:
        """Columns of the terminal that data go to; `None` if they go elsewhere."""
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else None

    def say(self, text: str) -> None:
        """Talk, unless quiet."""
        if self.mode is not Mode.QUIET:
            self.console.print(fitted(text, self.console))

    def detail(self, text: str) -> None:
        """Talk, if asked to say more."""
        if self.verbose:
            self.say(text)

    def outcome(self, outcome: Outcome, *, one_line: bool = False) -> None:
        """Print what a step ended with.

        Args:
            outcome: What `execute` returned.
            one_line: Whether `--json` prints the manifest, or the request, on one line.
        """
        plan = outcome.plan
        if outcome.status is Status.SHARE_DONE:
            self.say(f"{plan.command}: {outcome.status.value}")
            return
        if outcome.manifest is None:
            self._planned(outcome, one_line=one_line)
            return
        manifest = outcome.manifest
        if outcome.status is not Status.COMPUTED:
            self.say(f"{plan.command}: {outcome.status.value}")
        for warning in manifest.results.warnings:
            self.say(f"warning: {warning}")
        if outcome.status is Status.COMPUTED:
            self._audited(manifest.results)
        phases = manifest.provenance.phases_s
        times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in phases.items())
        self.detail(f"fingerprint {manifest.fingerprint}")
        self.detail(f"device {manifest.environment.device}, {times}")
        if isinstance(manifest.results, HessianResults):
            self.detail(manifest.results.product_plan)
            self.detail(f"model graph: {manifest.results.rewriting}")
        if isinstance(manifest.results, InterpResults):
            self.detail(manifest.results.point_plan)
        if isinstance(manifest.results, ContourResults):
            self.detail(manifest.results.cell_plan)
            for each in manifest.results.movements:
                self.detail(f"{each.name} {list(each.shape)}: {each.treatment}")
        if self.mode is Mode.JSON:
            write(manifest_json(manifest, indent=None if one_line else 2))
            return
        if self.mode is Mode.HUMAN:
            for line in summary_lines(manifest, outcome.path.parent, self.width):
                write(line)
        write_path(outcome.path)

    def _audited(self, results: Results) -> None:
        """One line if the self-audit was clean; what it complains of are warnings already."""
        audit = results.audit if isinstance(results, HessianResults) else None
        if audit is None or not audit.clean:
            return
        checks = [
            f"symmetric to {audit.asymmetry:.0e}",
            f"linear to {audit.nonlinearity:.0e}",
        ]
        if audit.sample_weighting is not None:
            checks.append(f"a mean over samples to {audit.sample_weighting:.0e}")
        if audit.finite_difference is not None:
            checks.append(f"finite differences agree to {audit.finite_difference:.0e}")
        if audit.basis_orthogonality is not None:
            checks.append(f"basis orthogonal to {audit.basis_orthogonality:.0e}")
        kinks = f"; kinks of {', '.join(audit.nonsmooth)} ignored" if audit.nonsmooth else ""
        self.say(f"audit: clean ({', '.join(checks)}{kinks})")

    def _planned(self, outcome: Outcome, *, one_line: bool) -> None:
        plan = outcome.plan
        self.say(f"{plan.command}: {outcome.status.value} (nothing done: --dry-run)")
        if self.mode is Mode.JSON:
            write(plan.request.model_dump_json(indent=None if one_line else 2))
            return
        if self.mode is Mode.HUMAN:
            write(f"fingerprint  {plan.fingerprint}")
            for name, path in plan.files.items():
                write(f"input        {name}  {path}")
        write_path(outcome.path)
