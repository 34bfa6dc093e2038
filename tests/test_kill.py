"""SIGKILL at random moments: a rerun ends with the bytes of an undisturbed run."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import lgo_cli.runs.steps.train
from lgo_cli.config import ContourConfig, Execution, FigureConfig, StepConfig, TrainConfig
from lgo_cli.files import BOOKKEEPING
from lgo_cli.manifest import Manifest, damaged_outputs, read_manifest
from lgo_cli.runs import Status, execute
from lgo_cli.runs.journal import _records

TRAIN = TrainConfig(
    model_arg={"hidden": [8]}, dataset_arg={"num_train": 512, "num_test": 128}, epochs=12,
    batch_size=32, save_every=20,
)  # fmt: skip
MOMENTS = {
    "train": 8, "train --resume": 8, "contour": 30, "contour --tolerance": 10,
    "contour --convexity": 6,
}  # fmt: skip
FIGURE = FigureConfig(dpi=50)  # or most kills would be amid the drawing

# Children begin as a fork of a server that has imported what a step does and never run it: a new
# interpreter would import it for seconds, and a fork of this one inherits what other tests left in
# it.
SERVER = multiprocessing.get_context("forkserver")
STEPS = ["lgo_cli.runs.loaded", "lgo_cli.runs.steps.train", "lgo_cli.runs.steps.contour"]
FIGURES = ["lgo_cli.figures.catalogue", "lgo_cli.figures.surface"]
SERVER.set_forkserver_preload(["torch", "pytest", *STEPS, *FIGURES])


def _run(config: StepConfig, run: Path | None, execution: Execution) -> None:
    lgo_cli.runs.steps.train.STATE_INTERVAL_S = 0.0
    os.fsync = lambda descriptor: None  # what a killed process wrote is there, synced or not
    execute(config, run, execution=execution, figure=FIGURE)


def _in_child(config: StepConfig, run: Path | None, execution: Execution) -> BaseProcess:
    child = SERVER.Process(target=_run, args=(config, run, execution))
    child.start()
    return child


def _listed(manifest: Manifest | None) -> object:
    assert manifest is not None
    return manifest.request, manifest.outputs


def _assert_no_cell_twice(out: Path) -> None:
    """A finished cell that was measured again would be in the journal twice."""
    for path in (out / BOOKKEEPING / "cells").glob("*.journal"):
        keys = [key for key, _ in _records(path.read_bytes())]
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize("command", list(MOMENTS))
def test_killed_step_ends_with_an_undisturbed_ones_bytes(
    command: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Save the training state after each epoch, so that --resume finds one at most moments.
    monkeypatch.setattr("lgo_cli.runs.steps.train.STATE_INTERVAL_S", 0.0)
    config: StepConfig = TRAIN
    run: Path | None = None
    if command.startswith("contour"):
        tolerance = 0.02 if "--tolerance" in command else None
        config = ContourConfig(resolution="11", analysis_samples=128, tolerance=tolerance)
        if "--convexity" in command:
            config = ContourConfig(resolution="3", analysis_samples=128, convexity=4)
        run = small_run
    undisturbed = execute(
        config, run, execution=Execution(out=tmp_path / "undisturbed"), figure=FIGURE
    )
    start = time.perf_counter()
    # A child, like those that are killed.
    _in_child(config, run, Execution(out=tmp_path / "timed")).join()
    duration = time.perf_counter() - start
    moments = random.Random(0)
    num_killed = num_started = 0
    while num_killed < MOMENTS[command]:
        num_started += 1
        assert num_started < 4 * MOMENTS[command]
        out = tmp_path / str(num_started)
        execution = Execution(out=out, resume=command == "train --resume")
        child = _in_child(config, run, execution)
        moment = moments.uniform(0, duration)
        time.sleep(moment)
        child.kill()
        child.join()
        if child.exitcode != -signal.SIGKILL:
            # A kill after the end proves nothing: the run takes no longer than this.
            assert child.exitcode == 0
            duration = moment
            continue
        num_killed += 1
        path = out / f"{config.command}.json"
        # The manifest comes last: where it stands, all that it lists does too.
        assert not path.exists() or not damaged_outputs(read_manifest(path), out)
        again = execute(config, run, execution=execution, figure=FIGURE)
        assert _listed(again.manifest) == _listed(undisturbed.manifest)
        done = execute(config, run, execution=execution, figure=FIGURE)
        assert done.status is Status.UP_TO_DATE
        leftovers = {path.name for path in out.rglob("*") if path.is_file()}
        assert not any(name.endswith(".lgo-tmp") for name in leftovers)
        _assert_no_cell_twice(out)
