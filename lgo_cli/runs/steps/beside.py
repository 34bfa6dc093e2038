"""Beside a surface: trajectory, quadratic model, further planes, convexity map, test samples."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli.landscape.grids import linspace
from lgo_cli.results import (
    ConvexityResults,
    Filling,
    LineCurvatureResults,
    Planes,
    Quadratic,
    SelfCheck,
    TestSurface,
    TrajectoryPoint,
)
from lgo_cli.runs.evidence import convexity_results, plane_extremes
from lgo_cli.runs.steps.surfaces import ARRAYS, grids_in_memory

if TYPE_CHECKING:
    from lgo_cli.config import ContourConfig
    from lgo_cli.landscape.adaptive import Filled
    from lgo_cli.landscape.convexity import Convexity
    from lgo_cli.landscape.surface import Surface
    from lgo_cli.runs.steps.surfaces import Work


def trajectory_points(work: Work) -> list[TrajectoryPoint] | None:
    """Checkpoints on the way, each with its losses beside the plane's at its projection."""
    from lgo_cli.landscape.trajectory import trajectory_heights

    plane = work.named.plane
    if plane.trajectory is None:
        return None
    with work.journal(work.evaluator) as cells:
        heights = trajectory_heights(
            work.problem,
            plane,
            work.named.checkpoints,
            lambda x, y: cells.measure(work.evaluator, x, y).loss,
            work.evaluator.batchnorm,
        )
    return [
        TrajectoryPoint(
            label=label, x=x, y=y, distance=distance, loss=loss, own_loss=own_loss, surface=height
        )
        for label, (x, y), distance, loss, own_loss, height in zip(
            plane.trajectory_labels,
            plane.trajectory,
            plane.trajectory_distances,
            heights.loss,
            heights.own_loss,
            heights.surface,
            strict=True,
        )
    ]


def quadratic_of(work: Work, surface: Surface) -> tuple[Quadratic | None, int]:
    """The quadratic model over a plane of eigenvectors, and the products it took."""
    from lgo_cli.landscape.batchnorm import is_frozen
    from lgo_cli.landscape.quadratic import quadratic_error, quadratic_model

    if work.named.plane.kind != "eigen" or not is_frozen(work.evaluator.batchnorm):
        return None, 0
    memory_bytes = work.context.execution.memory_bytes
    model = quadratic_model(work.problem, work.named.plane.directions, memory_bytes=memory_bytes)
    error = quadratic_error(model, surface.x, surface.y, surface.loss, surface.measured)
    return (
        Quadratic(gradient=model.gradient, hessian=model.hessian, **asdict(error)),
        model.num_matvecs,
    )


def further_planes(work: Work, arrays: dict[str, Any]) -> tuple[Planes | None, int]:
    """Surfaces on further random planes, and their statistics."""
    from lgo_cli.landscape.line_curvature import line_curvature
    from lgo_cli.landscape.statistics import plane_statistics
    from lgo_cli.vectors import cosine

    config = work.config
    if config.num_planes == 1:
        return None, 0
    fillings: list[Filling] = []
    self_checks: list[SelfCheck] = []
    with grids_in_memory(config):
        losses = np.empty((config.num_planes, *arrays["loss"].shape))
        losses[0] = arrays["loss"]
        for index, evaluator in enumerate(islice(work.planes(), 1, None), start=1):
            surface = work.measure(evaluator)
            filling = filling_results(surface.filled, config)
            fillings += [] if filling is None else [filling]
            self_checks.append(self_check_results(surface, cosine(*evaluator.directions)))
            losses[index] = surface.loss
        center = surface.loss_at_center
        statistics = plane_statistics(arrays["x"], arrays["y"], losses, center)
    arrays["planes_loss"] = losses
    arrays["profile_radius"] = statistics.radii
    arrays["profile_median"] = statistics.profile.median
    arrays["profile_low"] = statistics.profile.minimum
    arrays["profile_high"] = statistics.profile.maximum
    lines = None
    if config.kind == "random" and config.batchnorm == "frozen":
        lines = line_curvature(
            work.problem,
            config.seed,
            config.num_planes,
            normalization=config.normalization,
            memory_bytes=work.context.execution.memory_bytes,
            progress=work.context.progress,
        )
    found = Planes(
        **plane_extremes(statistics),
        self_checks=self_checks,
        fillings=fillings,
        converged=all(filling.converged for filling in fillings),
        line_curvature=(
            None
            if lines is None
            else LineCurvatureResults.model_validate(lines, from_attributes=True)
        ),
    )
    return found, 0 if lines is None else lines.num_matvecs


def on_test_samples(work: Work, arrays: dict[str, Any]) -> TestSurface | None:
    """The plane's surface on the test samples: measured, or filled in to the same tolerance."""
    if work.test is None:
        return None
    surface = work.measure(work.test)
    arrays.update({f"test_{name}": getattr(surface, name) for name in ARRAYS})
    return TestSurface(
        loss_at_center=surface.loss_at_center,
        accuracy_at_center=surface.accuracy_at_center,
        loss_min=surface.loss_min,
        loss_max=surface.loss_max,
        num_measured=surface.num_measured,
        self_check=self_check_results(surface, work.named.plane.axis_cosine),
        filling=filling_results(surface.filled, work.config),
    )


def self_check_results(surface: Surface, axis_cosine: float) -> SelfCheck:
    """What is reported of how a surface checked itself."""
    return SelfCheck(axis_cosine=axis_cosine, **asdict(surface.self_check))


def filling_results(filled: Filled | None, config: ContourConfig) -> Filling | None:
    """What is reported of how a surface was filled in; `None` if all of it was measured."""
    if filled is None or config.tolerance is None:
        return None
    estimates = np.where(np.isfinite(filled.error_estimate), filled.error_estimate, 0.0)
    scale = np.maximum(np.abs(np.where(np.isfinite(filled.loss), filled.loss, 1.0)), filled.floor)
    return Filling(
        tolerance=config.tolerance,
        floor=filled.floor,
        num_small=filled.num_small,
        cost=filled.cost,
        largest_error_estimate=float(estimates.max()),
        largest_relative_estimate=float((estimates / scale).max()),
        share_above=float(np.mean(estimates > config.tolerance * scale)),
        check=filled.check,
        num_checks=filled.num_checks,
        converged=filled.converged,
    )


def convexity_of(work: Work, arrays: dict[str, Any]) -> tuple[ConvexityResults | None, int]:
    """Both ends of the spectrum over the plane."""
    from lgo_cli.landscape.convexity import convexity_map
    from lgo_cli.runs.journal import ConvexityFile

    number = work.config.convexity
    if number is None:
        return None, 0
    x, y, seed = linspace(work.x_range, number), linspace(work.y_range, number), work.config.seed
    kept = ConvexityFile(work.context.plan.out, work.key(work.evaluator), x, y, seed)
    found: Convexity = convexity_map(
        work.problem,
        work.named.plane.directions,
        x,
        y,
        seed=seed,
        batchnorm=work.evaluator.batchnorm,
        memory_bytes=work.context.execution.memory_bytes,
        finished=None if work.context.execution.force else kept.read(),
        keep=kept.write,
        progress=work.context.progress,
    )
    work.warnings = (*work.warnings, *found.warnings)
    work.complaints = (*work.complaints, *found.complaints)
    arrays["convexity_x"], arrays["convexity_y"] = found.x, found.y
    for name in (
        "largest", "smallest", "largest_residual_bound", "smallest_residual_bound",
        "largest_error_estimate", "smallest_error_estimate", "ratio", "ratio_error", "converged",
        "num_matvecs",
    ):  # fmt: skip
        arrays[f"convexity_{name}"] = getattr(found, name)
    results = convexity_results(arrays)
    return results, results.num_matvecs
