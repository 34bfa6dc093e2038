"""Training a curve for `lgo interp --curve`, and going on where that was interrupted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from lgo_cli import checkpoint
from lgo_cli.errors import InputError
from lgo_cli.files import BOOKKEEPING
from lgo_cli.models.registry import recipe_of
from lgo_cli.results import CurveResults
from lgo_cli.runs.steps.train import STATE_INTERVAL_S
from lgo_cli.training.recipe import resolve_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from lgo_cli.config import InterpConfig
    from lgo_cli.landscape.curve_training import CurveTraining, TrainedCurve
    from lgo_cli.objective import Objective
    from lgo_cli.runs.steps.base import Context

CURVE_STATE = f"{BOOKKEEPING}/interp.curve.pth"
"""Where a curve's training was after an epoch; gone when the step is done."""


def trained_curve(
    context: Context, config: InterpConfig, problem: Objective, target: Tensor
) -> TrainedCurve:
    """Train the curve, from where an interrupted step of the same request left it."""
    from lgo_cli.landscape.curve_training import train_curve

    if torch.equal(problem.theta, target):
        raise InputError("the other checkpoint has the run's own weights: no curve leads to it")
    published = recipe_of(str(config.model))
    path = context.path(CURVE_STATE)
    if context.execution.force:
        path.unlink(missing_ok=True)
    state = checkpoint.load(path) if path.exists() else {}
    if state.pop("fingerprint", None) != context.plan.fingerprint:
        state = {}
    last_saved = time.monotonic()

    def save(training: CurveTraining) -> None:
        nonlocal last_saved
        if time.monotonic() - last_saved >= STATE_INTERVAL_S:
            checkpoint.save({"fingerprint": context.plan.fingerprint, **training.state()}, path)
            last_saved = time.monotonic()

    return train_curve(
        problem,
        problem.theta,
        target,
        resolve_recipe(config, published),
        train=context.loaded.samples("train"),
        kind=config.curve or "bezier",
        num_bends=config.num_bends or 1,
        milestones=published.milestones,
        gamma=published.gamma,
        seed=config.seed,
        state=state or None,
        on_epoch=save,
        progress=context.progress,
    )


def curve_results(context: Context, config: InterpConfig, trained: TrainedCurve) -> CurveResults:
    """What is recorded of it."""
    curve = trained.curve
    chord = float(torch.linalg.vector_norm(curve.end.double() - curve.start.double()))
    return CurveResults(
        kind=config.curve or "bezier",
        num_bends=len(curve.bends),
        recipe=resolve_recipe(config, recipe_of(str(config.model))),
        num_steps=trained.num_steps,
        num_train_samples=trained.num_train_samples,
        train_loss=trained.train_loss,
        length=float(curve.arc_length([1.0])[0]) / chord,
    )
