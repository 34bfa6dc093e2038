"""Training a curve for `lgo interp --curve`, and going on where that was interrupted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from lgo_cli import checkpoint
from lgo_cli.errors import InputError
from lgo_cli.files import BOOKKEEPING
from lgo_cli.results import CurveResults
from lgo_cli.runs.steps.train import STATE_INTERVAL_S, saved_state
from lgo_cli.training.recipe import resolve_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lgo_cli.config import InterpConfig
    from lgo_cli.landscape.curve_training import CurveTraining, TrainedCurve
    from lgo_cli.objective import Objective
    from lgo_cli.runs.steps.base import Context

FROZEN_CURVE = (
    "the curve was trained with each batch's own statistics, and the run's are of no point inside "
    "it: measure it with --batchnorm recompute"
)
"""Said of a curve of a network with batch norm where the policy is `frozen`."""


def curve_state(context: Context) -> Path:
    """Where this request's training of a curve was after an epoch; gone when the step is done.

    That of a request which nobody repeats stays: it may hold hours of work, and that other requests
    were done since does not say that it was given up.
    """
    return context.path(f"{BOOKKEEPING}/interp.curve.{context.plan.fingerprint[:16]}.pth")


def trained_curve(
    context: Context, config: InterpConfig, problem: Objective, target: Tensor
) -> TrainedCurve:
    """Train the curve, from where an interrupted step of the same request left it.

    Raises:
        InputError: if what it left is damaged, or the ends are one point.
        DivergenceError: as `train_curve`.
    """
    from lgo_cli.landscape.curve_training import train_curve

    if torch.equal(problem.theta, target):
        raise InputError("the other checkpoint has the run's own weights: no curve leads to it")
    path, fingerprint = curve_state(context), context.plan.fingerprint
    if context.execution.force:
        path.unlink(missing_ok=True)
    state = saved_state(path, fingerprint, "--force starts over") if path.exists() else None
    last_saved = time.monotonic()

    def save(training: CurveTraining) -> None:
        nonlocal last_saved
        if time.monotonic() - last_saved >= STATE_INTERVAL_S:
            checkpoint.save({"fingerprint": fingerprint, **training.state()}, path)
            last_saved = time.monotonic()

    return train_curve(
        problem,
        problem.theta,
        target,
        resolve_recipe(config),
        train=context.loaded.samples("train"),
        kind=config.curve or "bezier",
        num_bends=config.num_bends or 1,
        seed=config.seed,
        state=state,
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
        recipe=resolve_recipe(config),
        num_steps=trained.num_steps,
        num_train_samples=trained.num_train_samples,
        train_loss=trained.train_loss,
        epoch_losses=tuple(row.train_loss for row in trained.history),
        length=curve.arc_length() / chord,
    )


def curve_arrays(trained: TrainedCurve) -> dict[str, Any]:
    """What `interp.npz` holds of it: its bends, and the plane to look at it in (`bend_plane`).

    `bends` [K, P]. `directions` [2, P] are those of the plane, as long as the distance between the
    ends, so that `lgo contour --directions` has the run at (0, 0) and the other end at (1, 0);
    `plane_path` [m, 2] is the curve there, which it draws; `plane_coordinates` [K + 2, 2] are of
    start, bends and end, and `plane_distances` [K + 2] from the plane in the same unit. A curve
    that is a straight line has no plane.
    """
    from lgo_cli.landscape.curves import bend_plane

    arrays: dict[str, Any] = {"bends": torch.stack(list(trained.curve.bends)).cpu().numpy()}
    plane = bend_plane(trained.curve)
    if plane is not None:
        length = plane.coordinates[-1, 0]
        arrays["directions"] = (plane.directions.double() * length).to(trained.curve.start)
        arrays["directions"] = arrays["directions"].cpu().numpy()
        arrays["plane_path"] = plane.path(trained.curve) / length
        arrays["plane_coordinates"] = plane.coordinates / length
        arrays["plane_distances"] = plane.distances / length
    return arrays
