"""The step of `lgo contour`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lgo_cli.config import ContourConfig, linspace
from lgo_cli.results import ContourResults, Marker, SelfCheck
from lgo_cli.runs.names import checkpoint_step
from lgo_cli.runs.steps.base import Context, Step, common, load_arrays, save_arrays, typed
from lgo_cli.runs.steps.hessian import top_eigenpairs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure

    from lgo_cli.landscape.directions import Plane
    from lgo_cli.objective import Objective


class ContourStep(Step):
    """`lgo contour`."""

    def compute(self, context: Context) -> ContourResults:
        """Losses on a plane."""
        from lgo_cli.landscape.surface import measure_surface
        from lgo_cli.runs.loaded import measured, objective

        config = typed(context.plan, ContourConfig)
        nx, ny = config.shape
        with (
            context.stopwatch.phase("compute"),
            objective(context.plan, context.loaded) as problem,
        ):
            plane, num_matvecs = _plane(context, problem, config)
            x_range = config.x_range or plane.x_range
            y_range = config.y_range or plane.y_range
            surface = measure_surface(
                problem,
                plane,
                linspace(x_range, nx),
                linspace(y_range, ny),
                seed=config.seed,
                progress=context.progress,
            )
            description = measured(problem, context.loaded)
        arrays = {
            key: getattr(surface, key)
            for key in ("x", "y", "loss", "standard_error", "accuracy", "directions")
        }
        save_arrays(context, "contour.npz", arrays)
        trajectory = None
        if plane.trajectory is not None:
            labels = plane.trajectory_labels
            trajectory = [
                Marker(label=label, x=x, y=y)
                for label, (x, y) in zip(labels, plane.trajectory, strict=True)
            ]
        warnings = list(plane.warnings)
        if surface.self_check.num_nonfinite:
            warnings.append(
                f"{surface.self_check.num_nonfinite} of {surface.num_cells} cells are not finite"
            )
        return ContourResults(
            **common(context, warnings),
            measured=description,
            plane=plane.kind,
            loss_at_center=surface.loss_at_center,
            loss_min=surface.loss_min,
            loss_max=surface.loss_max,
            num_cells=surface.num_cells,
            num_measured=surface.num_measured,
            axis_cosine=plane.axis_cosine,
            self_check=SelfCheck(**asdict(surface.self_check)),
            axis_labels=plane.axis_labels,
            x_range=x_range,
            y_range=y_range,
            markers=[Marker(**asdict(marker)) for marker in plane.markers],
            trajectory=trajectory,
            explained_variance=plane.explained_variance,
            num_matvecs=num_matvecs,
        )

    def draw(self, out: Path, results: Mapping[str, Any]) -> dict[str, Figure]:
        """The plane from above and in perspective."""
        from lgo_cli.figures.surface import draw_contour, draw_surface_3d

        arrays = load_arrays(out / "contour.npz")
        return {
            "contour_2d": draw_contour(arrays, results),
            "contour_3d": draw_surface_3d(arrays, results),
        }


def _plane(context: Context, problem: Objective, config: ContourConfig) -> tuple[Plane, int]:
    """The plane that the config names, and the matvecs it cost."""
    from lgo_cli.landscape.directions import (
        checkpoints_plane,
        eigen_plane,
        pca_plane,
        random_plane,
    )
    from lgo_cli.runs.loaded import flat_weights

    files = context.plan.files
    if config.plane == "eigen":
        top = top_eigenpairs(context, problem, 2)
        plane = eigen_plane(problem, top.values, top.vectors)
        return replace(plane, warnings=(*plane.warnings, *top.warnings)), top.num_matvecs
    if config.plane == "pca":
        results = context.plan.trained
        kept = results.checkpoints if results else []
        labels = ["init", *(str(checkpoint_step(name)) for name in kept)]
        weights = [
            flat_weights(context.loaded, files[name], problem.dtype) for name in ["init.pth", *kept]
        ]
        return pca_plane(problem, weights, labels), 0
    if config.plane == "checkpoints":
        a, b = (
            flat_weights(context.loaded, files[name], problem.dtype) for name in ("to_0", "to_1")
        )
        return checkpoints_plane(problem, a, b), 0
    return random_plane(problem, config.seed), 0
