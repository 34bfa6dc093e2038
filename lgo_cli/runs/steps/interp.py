"""The step of `lgo interp`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli import checkpoint
from lgo_cli.config import InterpConfig
from lgo_cli.results import InterpResults
from lgo_cli.runs.steps.base import Context, Step, common, load_arrays, save_arrays, typed
from lgo_cli.runs.steps.hessian import top_eigenpairs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure


class InterpStep(Step):
    """`lgo interp`."""

    def compute(self, context: Context) -> InterpResults:
        """Losses along a line on both splits."""
        from lgo_cli.landscape.directions import gradient_direction, random_direction
        from lgo_cli.landscape.interpolation import alpha_grid, interpolate
        from lgo_cli.runs.loaded import flat_weights, measured, objective

        plan, loaded = context.plan, context.loaded
        config = typed(plan, InterpConfig)
        bounds = config.range or ((-1.0, 1.0) if config.direction else (-0.5, 1.5))
        required = (0.0,) if config.direction else (0.0, 1.0)
        alphas = alpha_grid(bounds, config.num_points, required)
        warnings: list[str] = []
        num_matvecs = 1
        with context.stopwatch.phase("compute"), objective(plan, loaded) as problem:
            test = loaded.samples("test", config.analysis_samples).to(problem.device, problem.dtype)
            description = measured(problem, loaded, len(test))
            target = direction = loss_of_other = None
            if config.direction is None:
                target = flat_weights(loaded, plan.files["to"], problem.dtype)
            elif config.direction == "eigen":
                top = top_eigenpairs(context, problem, 1)
                direction = top.vectors[0]
                num_matvecs += top.num_matvecs
                warnings += top.warnings
            elif config.direction == "gradient":
                direction = gradient_direction(problem)
            else:
                direction = random_direction(problem, config.seed, "interp", "direction")
            path = interpolate(
                problem,
                test,
                alphas,
                target=target,
                direction=direction,
                progress=context.progress,
            )
            warnings += path.warnings
        if config.direction is None and description.batchnorm == "frozen":
            with context.stopwatch.phase("compute"):
                loss_of_other = _loss_of(context, plan.files["to"])
            if abs(loss_of_other - path.loss_at_end) > 1e-5 * abs(loss_of_other):
                warnings.append(
                    "batch-norm statistics are the run's own all along the path: with its own, "
                    f"the other end's loss is {loss_of_other:.4g}, not {path.loss_at_end:.4g}"
                )
        arrays = {
            key: getattr(path, key)
            for key in (
                "alpha", "loss", "standard_error", "accuracy", "test_loss",
                "test_standard_error", "test_accuracy", "direction",
            )
        }  # fmt: skip
        save_arrays(context, "interp.npz", arrays)
        return InterpResults(
            **common(context, warnings),
            measured=description,
            along=str(config.direction or plan.request.config["to"]),
            barrier=path.barrier,
            curvature_at_origin=path.curvature_at_origin,
            loss_at_start=path.loss_at_start,
            loss_at_end=path.loss_at_end,
            loss_of_other=loss_of_other,
            direction_norm=float(np.linalg.norm(path.direction.astype(np.float64))),
            range=(alphas[0], alphas[-1]),
            num_points=len(alphas),
            num_evaluations=path.num_evaluations,
            num_matvecs=num_matvecs,
        )

    def draw(self, out: Path, results: Mapping[str, Any]) -> dict[str, Figure]:
        """Loss and accuracy along the line."""
        from lgo_cli.figures.interpolation import draw_interpolation

        return {"interp_1d": draw_interpolation(load_arrays(out / "interp.npz"), results)}


def _loss_of(context: Context, path: Path) -> float:
    """Loss of another checkpoint on the probe set, its own buffers included."""
    from lgo_cli.runs.loaded import objective
    from lgo_cli.training.loop import snapshot

    model = context.loaded.model
    own = snapshot(model)
    model.load_state_dict(checkpoint.load_fitting(path, model))
    try:
        with objective(context.plan, context.loaded) as problem:
            return problem.center.loss
    finally:
        model.load_state_dict(own)
