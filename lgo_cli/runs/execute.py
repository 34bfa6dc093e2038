"""Carry out a step: up to date? else compute, and publish all or nothing."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgo_cli.config import ContourConfig, Execution, FigureConfig, StepConfig
from lgo_cli.errors import InputError, LockedError, UsageError
from lgo_cli.factories import ARGUMENTS, role_of
from lgo_cli.files import atomic_write, refuse_non_directory, step_lock
from lgo_cli.manifest import (
    Manifest,
    damaged_outputs,
    file_ref,
)
from lgo_cli.progress import SILENT, Progress
from lgo_cli.provenance import Stopwatch, environment
from lgo_cli.runs.claims import claim, own_files, publish, read_aside, read_ours
from lgo_cli.runs.inputs import refuse_changed, refuse_other
from lgo_cli.runs.names import CAPTIONS, PAYLOADS, drawn, figure_names
from lgo_cli.runs.plan import Plan, plan_step
from lgo_cli.runs.strict import refuse_failed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lgo_cli.manifest import FileRef
    from lgo_cli.results import Results
    from lgo_cli.runs.steps import Context


_ONE_THREAD = threading.RLock()
"""PyTorch's generator, modes and switches are the process's: threads would draw each other's."""


class Status(Enum):
    """How a step ended."""

    COMPUTED = "computed"
    REDRAWN = "figures redrawn"
    UP_TO_DATE = "up to date"
    PLANNED = "would compute"
    REDRAW_PLANNED = "would redraw figures"
    SHARE_DONE = "share measured; others are still to come"


@dataclass(frozen=True)
class Outcome:
    """What `execute` did.

    Attributes:
        status: Computed, redrawn, up to date, only planned, or one share of several.
        path: Where the manifest is, or would be.
        manifest: The step's record; `None` if there is none yet.
        plan: What was resolved.
    """

    status: Status
    path: Path
    manifest: Manifest | None
    plan: Plan


def execute(
    config: StepConfig,
    run: str | Path | None = None,
    *,
    execution: Execution | None = None,
    figure: FigureConfig | None = None,
    inputs: Mapping[str, str] | None = None,
    argv: Sequence[str] | None = None,
    progress: Progress = SILENT,
) -> Outcome:
    """Carry out one step in a run directory, unless it is done already.

    The same function serves the command line and notebooks: same caching, manifests and numbers.
    Of several threads one computes at a time; the others wait.

    Args:
        config: `TrainConfig`, `HessianConfig`, `InterpConfig` or `ContourConfig`.
        run: For an analysis, the run directory or checkpoint; `outputs` by default.
        execution: Where and how to run.
        figure: How to write figures.
        inputs: SHA-256 that an input must have, by its name in the manifest; of all others what is
            found is taken.
        argv: What to record as the command line; the process's own by default.
        progress: Listener.

    Returns:
        The manifest and what was done to get it.

    Raises:
        LgoError: for all that a user can mend. No new manifest is left then, nor half an output;
            the old one is still there if nothing that it lists was touched.
    """
    execution = execution or Execution()
    figure = figure or FigureConfig()
    _refuse_shares(config, execution)
    stopwatch = Stopwatch(list(argv if argv is not None else sys.argv))
    with stopwatch.phase("load"):
        plan = plan_step(config, None if run is None else Path(run), execution)
    _refuse_other_inputs(plan, inputs or {})
    refuse_non_directory(plan.out)
    done, damaged = (None, set()) if execution.force else _finished(plan)
    if done is not None and execution.strict:
        refuse_failed(done.results)
    if done is not None and done.figure == figure and not damaged:
        # The manifest is Make's target: it must be newer than what it was found to agree with.
        with contextlib.suppress(OSError):
            os.utime(plan.manifest_path)
        return Outcome(Status.UP_TO_DATE, plan.manifest_path, done, plan)
    if execution.dry_run:
        # What computing would refuse, as far as it is known before the inputs are loaded.
        names = [*PAYLOADS[plan.command], *figure_names(plan.request, figure)]
        own_files(plan, names, force=execution.force)
        status = Status.PLANNED if done is None else Status.REDRAW_PLANNED
        return Outcome(status, plan.manifest_path, None, plan)
    if done is not None:
        with _ONE_THREAD, step_lock(plan.out, plan.command):
            # Another process may have published another request's numbers before it was had.
            done, _ = _finished(plan)
            if done is not None:
                manifest = _redraw(plan, done, figure)
                return Outcome(Status.REDRAWN, plan.manifest_path, manifest, plan)
    with stopwatch.phase("load"):  # torch itself takes a second
        from lgo_cli.runs.loaded import machine_settings

    with _ONE_THREAD, machine_settings(execution.num_threads, execution.device):
        if execution.share is not None:
            return _measure_share(plan, figure, execution, stopwatch, progress)
        with step_lock(plan.out, plan.command):
            context = _load(plan, execution, stopwatch, progress)
            return _compute(plan, figure, context)


def _refuse_shares(config: StepConfig, execution: Execution) -> None:
    if execution.share is None:
        return
    if not isinstance(config, ContourConfig):
        raise UsageError("only a surface is measured in shares")
    if config.tolerance is not None:
        raise UsageError(
            "--shard divides all cells of a surface: it does not go with --tolerance, where each "
            "cell's loss says which comes next",
            hint="a surface filled in to a tolerance needs few cells: leave out --shard",
        )
    if execution.preview:
        raise UsageError(
            "--preview does not go with --shard: a share has too few cells to draw",
            hint="leave out --preview",
        )
    if execution.force:
        raise UsageError(
            "--force does not go with --shard: a share cannot tell which cells of the others were "
            "measured again",
            hint="give all shares an --out where nothing was measured yet, or leave out --shard",
        )


def _load(plan: Plan, execution: Execution, stopwatch: Stopwatch, progress: Progress) -> Context:
    with stopwatch.phase("load"):
        from lgo_cli.runs.loaded import load
        from lgo_cli.runs.steps import Context

        loaded = load(plan, execution.device)
        refuse_changed(plan.request.inputs, plan.files)
        return Context(plan, loaded, execution, progress, stopwatch)


def _measure_share(
    plan: Plan,
    figure: FigureConfig,
    execution: Execution,
    stopwatch: Stopwatch,
    progress: Progress,
) -> Outcome:
    """Measure one of several shares of a surface; the last to come assembles it."""
    assert execution.share is not None
    index, count = execution.share
    with step_lock(plan.out, f"{plan.command}.{index}-of-{count}"):
        context = _load(plan, execution, stopwatch, progress)
        from lgo_cli.runs.steps.contour import ContourStep

        step = ContourStep()
        names = [*step.payload_names(plan, context.loaded), *figure_names(plan.request, figure)]
        # What assembling would refuse is refused before hours of work, unless another process is
        # at it, which has asked. One that meets this lock leaves assembling to this share.
        with contextlib.suppress(LockedError), step_lock(plan.out, plan.command):
            own_files(plan, names, force=False)
        complete = step.measure_share(context, index, count)
    if complete:
        # Of two shares that end together, one assembles the surface.
        with contextlib.suppress(LockedError), step_lock(plan.out, plan.command):
            return _compute(plan, figure, context)
    return Outcome(Status.SHARE_DONE, plan.manifest_path, None, plan)


def _refuse_other_inputs(plan: Plan, wanted: Mapping[str, str]) -> None:
    found = plan.request.inputs
    # What is said beside a manifest may leave no use for some of its inputs.
    used = {
        name: digest
        for name, digest in wanted.items()
        if name in found or role_of(name) in found or role_of(name) in ARGUMENTS
    }
    hint = (
        "put the old one back, or name what to use on the command line: the run, --init, --model, "
        "--model-arg, --dataset, --dataset-arg, --loss, --loss-arg, --to, --directions or "
        "--warm-start"
    )
    refuse_other(found, plan.files, used, "the {name} that the manifest records", hint)


def _finished(plan: Plan) -> tuple[Manifest | None, set[str]]:
    """The step's manifest if its request is this one and its numbers are intact.

    Returns:
        The manifest or `None`, and the names of figures that are missing or damaged, or of the
        manifest itself, where a redraw was killed that had set it aside.

    Raises:
        DamagedError: if the manifest is this lgo's and cannot be read.
        OutputError: if its request was edited.
    """
    manifest = read_ours(plan.manifest_path, force=False) or read_aside(plan)
    if manifest is None or manifest.fingerprint != plan.fingerprint:
        return None, set()
    damaged = set(damaged_outputs(manifest, plan.out))
    figures = set(figure_names(plan.request, manifest.figure))
    if not damaged <= figures:
        return None, set()
    return manifest, damaged if plan.manifest_path.exists() else {*damaged, plan.manifest_path.name}


def _compute(plan: Plan, figure: FigureConfig, context: Context) -> Outcome:
    """Compute a step's results and publish them; its lock is held."""
    from lgo_cli.runs.exporting import remove_outdated
    from lgo_cli.runs.steps import STEPS

    step, stopwatch = STEPS[plan.command], context.stopwatch
    payloads = step.payload_names(plan, context.loaded)
    names = [*payloads, *figure_names(plan.request, figure)]
    with claim(plan, names, force=context.execution.force) as old:
        if isinstance(old, Manifest):
            _note_other_checkpoint(context, old)
        results = step.compute(context)
        with stopwatch.phase("figures"):
            drawn_names = _write_figures(plan, figure, results)
        manifest = Manifest(
            fingerprint=plan.fingerprint,
            request=plan.request,
            figure=figure,
            locations=plan.locations,
            outputs=_refs(plan.out, [*payloads, *drawn_names]),
            results=results,
            environment=environment(str(context.loaded.device)),
            provenance=stopwatch.provenance(),
        )
        try:
            remove_outdated(plan.out, plan.command)
        except InputError as error:  # no reason to lose the results
            hint = f"\nhint: {error.hint}" if error.hint else ""
            context.progress.note(f"warning: {error.message}{hint}")
        publish(plan, manifest)
        step.published(context)
    return Outcome(Status.COMPUTED, plan.manifest_path, manifest, plan)


def _note_other_checkpoint(context: Context, old: Manifest) -> None:
    """Say that a step takes the place of what it found on weights that lie elsewhere."""
    plan, key = context.plan, "model.pth"
    was, now = old.locations.get(key), plan.locations.get(key)
    if was != now and old.request.inputs.get(key) != plan.request.inputs.get(key):
        context.progress.note(
            f"warning: {plan.manifest_path} was of {was} and will be of {now}: --out DIR keeps both"
        )


def _redraw(plan: Plan, done: Manifest, figure: FigureConfig) -> Manifest:
    """Draw the figures of a finished step again; its numbers stay."""
    import lgo_cli.figures.catalogue  # noqa: F401 - before the claim: Ctrl-C ends imports at once

    old = figure_names(plan.request, done.figure)
    payloads = [name for name in done.outputs if name not in old]
    names = figure_names(plan.request, figure)
    with claim(plan, [*payloads, *names], force=False):
        written = _write_figures(plan, figure, done.results)
        manifest = done.model_copy(
            update={"figure": figure, "outputs": _refs(plan.out, [*payloads, *written])}
        )
        publish(plan, manifest)
    return manifest


def _write_figures(plan: Plan, figure: FigureConfig, found: Results) -> list[str]:
    from lgo_cli.figures.captions import describe
    from lgo_cli.figures.catalogue import draw
    from lgo_cli.figures.files import save_figure

    command, results = plan.command, found.model_dump(mode="json")
    arrays = _drawn_arrays(plan.out / PAYLOADS[command][-1])
    drawings = draw(drawn(plan.request, figure), arrays, results, figure)
    names = []
    for stem, drawing in drawings.items():
        names.append(f"{stem}.{figure.format}")
        with atomic_write(plan.out / names[-1]) as handle:
            save_figure(drawing, handle, figure.format, figure.dpi)
    if command in CAPTIONS:
        names.append(CAPTIONS[command])
        text = describe(command, drawings, arrays, results, plan.request.config)
        with atomic_write(plan.out / names[-1]) as handle:
            handle.write(text.encode())
    return names


def _drawn_arrays(path: Path) -> dict[str, Any]:
    """What figures are drawn from: a `.npz`, or `train.csv` by column."""
    import csv

    import numpy as np

    from lgo_cli.runs.evidence import load_arrays

    if path.suffix == ".npz":
        return load_arrays(path)
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def _refs(out: Path, names: Iterable[str]) -> dict[str, FileRef]:
    return {name: file_ref(out / name, out) for name in names}
