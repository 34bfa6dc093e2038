"""What each command computes, writes and draws; `execute` does the rest."""

from __future__ import annotations

import csv
import io
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lgo_cli import checkpoint
from lgo_cli.config import ContourConfig, HessianConfig, InterpConfig, TrainConfig
from lgo_cli.errors import InputError, NumericsError
from lgo_cli.files import atomic_write
from lgo_cli.manifest import (
    ContourResults,
    Density,
    Eigenvalue,
    HessianResults,
    InterpResults,
    Marker,
    Results,
    SelfCheck,
    Trace,
    TrainResults,
)
from lgo_cli.models.registry import recipe_of
from lgo_cli.runs.names import PAYLOADS, checkpoint_name, checkpoint_step
from lgo_cli.training.recipe import resolve_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure
    from torch import Tensor

    from lgo_cli.config import Execution
    from lgo_cli.curvature.lanczos import Eigenpairs
    from lgo_cli.landscape.directions import Plane
    from lgo_cli.objective import Objective
    from lgo_cli.progress import Progress
    from lgo_cli.provenance import Stopwatch
    from lgo_cli.runs.loaded import Loaded
    from lgo_cli.runs.plan import Plan

C = TypeVar("C")

STATE_INTERVAL_S = 2.0
"""Seconds between saves of the training state, so that short epochs do not wait for the disk."""


@dataclass(frozen=True)
class Context:
    """What a step needs beside its plan."""

    plan: Plan
    loaded: Loaded
    execution: Execution
    progress: Progress
    stopwatch: Stopwatch

    def path(self, name: str) -> Path:
        """Where an output goes."""
        return self.plan.out / name


class Step(ABC):
    """One command's work: names of its outputs, computation, figures."""

    def payload_names(self, plan: Plan, loaded: Loaded) -> list[str]:
        """File names of all that holds numbers."""
        del loaded
        return list(PAYLOADS[plan.command])

    @abstractmethod
    def compute(self, context: Context) -> Results:
        """Compute, write the payloads and return the results."""

    @abstractmethod
    def draw(self, out: Path, results: Mapping[str, Any]) -> dict[str, Figure]:
        """Draw each of `figures` from what `compute` wrote."""


class TrainStep(Step):
    """`lgo train`."""

    def payload_names(self, plan: Plan, loaded: Loaded) -> list[str]:
        """The fixed names, and the checkpoints that `--save-every` will keep."""
        return [*PAYLOADS[plan.command], *self._checkpoints(plan, loaded)]

    def _checkpoints(self, plan: Plan, loaded: Loaded) -> list[str]:
        from lgo_cli.training.loop import num_batches

        config = _typed(plan, TrainConfig)
        if config.save_every is None:
            return []
        recipe = resolve_recipe(config, recipe_of(config.model))
        total = recipe.epochs * num_batches(len(loaded.dataset.y_train), recipe.batch_size)
        steps = range(config.save_every, total + 1, config.save_every)
        return [checkpoint_name(step) for step in steps]

    def compute(self, context: Context) -> TrainResults:
        """Train, or go on training where a saved state allows it."""
        from lgo_cli.training.loop import COLUMNS, DivergenceError, Training, snapshot

        plan, loaded = context.plan, context.loaded
        config = _typed(plan, TrainConfig)
        published = recipe_of(config.model)
        recipe = resolve_recipe(config, published)
        with context.stopwatch.phase("compute"):
            training = Training(
                loaded.model,
                loaded.samples("train"),
                loaded.samples("test"),
                recipe,
                milestones=published.milestones,
                gamma=published.gamma,
                seed=config.seed,
            )
            checkpoint.save(snapshot(loaded.model), context.path("init.pth"))
            self._resume(context, training)
            last_saved = time.monotonic()

            def save_state(training: Training) -> None:
                nonlocal last_saved
                if time.monotonic() - last_saved >= STATE_INTERVAL_S:
                    self._save_state(context, training)
                    last_saved = time.monotonic()

            try:
                training.run(
                    progress=context.progress,
                    save_every=config.save_every,
                    on_checkpoint=lambda step, state: checkpoint.save(
                        state, context.path(checkpoint_name(step))
                    ),
                    on_epoch=save_state,
                )
            except DivergenceError as error:
                checkpoint.save(error.state, context.path("model.pth"))
                raise
        with context.stopwatch.phase("write"):
            checkpoint.save(snapshot(loaded.model), context.path("model.pth"))
            self._save_state(context, training)
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(asdict(row).values() for row in training.rows)
            with atomic_write(context.path("train.csv")) as handle:
                handle.write(text.getvalue().encode())
        last = training.rows[-1]
        return TrainResults(
            **_common(context),
            train_loss=last.train_loss,
            test_loss=last.test_loss,
            train_accuracy=last.train_accuracy,
            test_accuracy=last.test_accuracy,
            epochs=training.epoch,
            num_steps=training.step,
            num_train_samples=len(training.train),
            num_test_samples=len(training.test),
            final_lr=training.final_lr,
            recipe=recipe,
            normalization=loaded.dataset.normalization,
            checkpoints=self._checkpoints(plan, loaded),
        )

    def _save_state(self, context: Context, training: Any) -> None:
        state = {"fingerprint": context.plan.fingerprint, **training.state()}
        checkpoint.save(state, context.path("state.pth"))

    def _resume(self, context: Context, training: Any) -> None:
        """Load the saved state; without `--resume`, remove it so that none is taken for ours."""
        path = context.path("state.pth")
        if not context.execution.resume:
            path.unlink(missing_ok=True)
            return
        if not path.exists():
            return
        state = checkpoint.load(path)
        if state.get("fingerprint") != context.plan.fingerprint:
            raise InputError(
                f"{path} is the state of another training, with other options or data",
                hint="give the options of that training, or leave --resume out to start over",
            )
        training.load_state(state)

    def draw(self, out: Path, results: Mapping[str, Any]) -> dict[str, Figure]:
        """Loss and accuracy by epoch."""
        from lgo_cli.figures.training import draw_training

        with (out / "train.csv").open(newline="") as handle:
            rows = list(csv.DictReader(handle))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
        return {"train": draw_training(columns, results)}


class HessianStep(Step):
    """`lgo hessian`."""

    def compute(self, context: Context) -> HessianResults:
        """Both ends of the spectrum, and trace and density where asked."""
        from lgo_cli.curvature.spectrum import (
            analyze_spectrum,
            sharpness_ratio,
            stability_threshold,
        )
        from lgo_cli.runs.loaded import measured, objective

        config = _typed(context.plan, HessianConfig)
        with (
            context.stopwatch.phase("compute"),
            objective(context.plan, context.loaded) as problem,
        ):
            spectrum = analyze_spectrum(problem, config, context.progress)
            description = measured(problem)
        pairs = spectrum.eigenpairs
        if context.execution.strict and not pairs.converged:
            raise NumericsError(
                f"the eigenvalues did not converge within {spectrum.num_matvecs} products",
                hint="raise --max-matvecs or --rtol",
            )
        arrays = {
            "largest": pairs.largest.numpy(),
            "smallest": pairs.smallest.numpy(),
            "eigenvectors": pairs.eigenvectors.cpu().numpy(),
            "largest_residual_bounds": pairs.largest_residual_bounds.numpy(),
            "smallest_residual_bounds": pairs.smallest_residual_bounds.numpy(),
        }
        if spectrum.density is not None:
            arrays["density_nodes"] = spectrum.density.nodes
            arrays["density_weights"] = spectrum.density.weights
        _save_arrays(context, "hessian.npz", arrays)

        recipe = context.plan.trained.recipe if context.plan.trained else None
        threshold, note = (
            stability_threshold(
                recipe.optimizer,
                context.plan.trained.final_lr if context.plan.trained else None,
                recipe.momentum,
                recipe.nesterov,
            )
            if recipe
            else (None, "the run's optimiser is not known")
        )
        warnings = list(spectrum.warnings)
        num_train = len(context.loaded.dataset.y_train)
        if description.num_samples < num_train:
            warnings.append(
                f"curvature on {description.num_samples} of {num_train} training samples: "
                "a subset overstates the largest eigenvalue"
            )
        if threshold is not None and recipe and recipe.batch_size < num_train:
            note = (
                f"full-batch threshold; the run used mini-batches of {recipe.batch_size}, "
                "for which the stable curvature is lower"
            )
        return HessianResults(
            **_common(context, warnings),
            measured=description,
            loss=spectrum.loss,
            gradient_norm=spectrum.gradient_norm,
            largest=_eigenvalues(pairs.largest, pairs.largest_residual_bounds),
            smallest=_eigenvalues(pairs.smallest, pairs.smallest_residual_bounds),
            num_matvecs=spectrum.num_matvecs,
            converged=pairs.converged,
            residual_floor=pairs.residual_floor,
            keeps_graph=spectrum.keeps_graph,
            stability_threshold=threshold,
            stability_threshold_note=note,
            sharpness_ratio=(
                sharpness_ratio(
                    float(pairs.largest[0]),
                    threshold,
                    recipe.weight_decay if recipe else 0.0,
                    coupled=recipe is not None and recipe.optimizer != "adamw",
                )
                if len(pairs.largest)
                else None
            ),
            trace=Trace(**asdict(spectrum.trace)) if spectrum.trace else None,
            density=(
                Density(
                    mean=spectrum.density.mean,
                    mean_standard_error=spectrum.density.mean_standard_error,
                    num_probes=spectrum.density.nodes.shape[0],
                    num_steps=spectrum.density.nodes.shape[1],
                    num_matvecs=spectrum.density.num_matvecs,
                )
                if spectrum.density
                else None
            ),
        )

    def draw(self, out: Path, results: Mapping[str, Any]) -> dict[str, Figure]:
        """Eigenvalues at both ends with their bounds, and the density."""
        from lgo_cli.figures.spectrum import draw_spectrum

        return {"hessian": draw_spectrum(_load_arrays(out / "hessian.npz"), results)}


class InterpStep(Step):
    """`lgo interp`."""

    def compute(self, context: Context) -> InterpResults:
        """Losses along a line on both splits."""
        from lgo_cli.landscape.interpolation import alpha_grid, interpolate
        from lgo_cli.runs.loaded import flat_weights, measured, objective

        plan, loaded = context.plan, context.loaded
        config = _typed(plan, InterpConfig)
        bounds = config.range or ((-1.0, 1.0) if config.direction else (-0.5, 1.5))
        required = (0.0,) if config.direction else (0.0, 1.0)
        alphas = alpha_grid(bounds, config.num_points, required)
        warnings: list[str] = []
        num_matvecs = 1
        with context.stopwatch.phase("compute"), objective(plan, loaded) as problem:
            test = loaded.samples("test", config.analysis_samples).to(problem.device, problem.dtype)
            description = measured(problem, len(test))
            target = direction = loss_of_other = None
            if config.direction is None:
                target = flat_weights(loaded, plan.files["to"], problem.dtype)
            else:
                direction, spent = _line_direction(context, problem, config.direction)
                num_matvecs += spent
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
        _save_arrays(context, "interp.npz", arrays)
        return InterpResults(
            **_common(context, warnings),
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

        return {"interp_1d": draw_interpolation(_load_arrays(out / "interp.npz"), results)}


class ContourStep(Step):
    """`lgo contour`."""

    def compute(self, context: Context) -> ContourResults:
        """Losses on a plane."""
        from lgo_cli.config import linspace
        from lgo_cli.landscape.surface import measure_surface
        from lgo_cli.runs.loaded import measured, objective

        config = _typed(context.plan, ContourConfig)
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
            description = measured(problem)
        arrays = {
            key: getattr(surface, key)
            for key in ("x", "y", "loss", "standard_error", "accuracy", "directions")
        }
        _save_arrays(context, "contour.npz", arrays)
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
            **_common(context, warnings),
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

        arrays = _load_arrays(out / "contour.npz")
        return {
            "contour_2d": draw_contour(arrays, results),
            "contour_3d": draw_surface_3d(arrays, results),
        }


STEPS: dict[str, Step] = {
    "train": TrainStep(),
    "hessian": HessianStep(),
    "interp": InterpStep(),
    "contour": ContourStep(),
}


def _typed(plan: Plan, cls: type[C]) -> C:
    if not isinstance(plan.config, cls):
        raise TypeError(f"this step takes a {cls.__name__}")
    return plan.config


def _common(context: Context, warnings: list[str] | None = None) -> dict[str, Any]:
    """What every command's results begin with; names as in the request, which hold no path."""
    config = context.plan.request.config
    parameters = context.loaded.model.parameters()
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "num_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "warnings": [*context.loaded.warnings, *(warnings or [])],
    }


def _eigenvalues(values: Tensor, bounds: Tensor) -> list[Eigenvalue]:
    return [
        Eigenvalue(value=value, residual_bound=bound)
        for value, bound in zip(values.tolist(), bounds.tolist(), strict=True)
    ]


def _save_arrays(context: Context, name: str, arrays: Mapping[str, Any]) -> None:
    with context.stopwatch.phase("write"), atomic_write(context.path(name)) as handle:
        np.savez(handle, **arrays)


def _load_arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _loss_of(context: Context, path: Path) -> float:
    """Loss of another checkpoint on the probe set, its own buffers included."""
    from lgo_cli.runs.loaded import objective

    model = context.loaded.model
    own = model.state_dict()
    own = {name: tensor.clone() for name, tensor in own.items()}
    model.load_state_dict(checkpoint.load_fitting(path, model))
    try:
        with objective(context.plan, context.loaded) as problem:
            return problem.center.loss
    finally:
        model.load_state_dict(own)


def _eigenpairs(context: Context, problem: Objective, top_k: int) -> tuple[Tensor, Tensor, int]:
    """The top eigenvalues [k] and eigenvectors [k, P], read if planned so, else computed.

    Returns:
        Values, vectors, and the matvecs spent here.
    """
    import torch

    from lgo_cli.curvature.lanczos import extreme_eigenpairs
    from lgo_cli.curvature.operators import HessianOperator

    if "hessian.npz" in context.plan.files:
        arrays = _load_arrays(context.plan.files["hessian.npz"])
        vectors = torch.from_numpy(arrays["eigenvectors"][:top_k])
        values = torch.from_numpy(arrays["largest"][:top_k])
        return values, vectors.to(problem.device, problem.dtype), 0
    operator = HessianOperator(problem)
    pairs: Eigenpairs = extreme_eigenpairs(
        operator,
        top_k=top_k,
        bottom_k=0,
        rtol=HessianConfig().rtol,
        seed=context.plan.config.seed,
        progress=context.progress,
    )
    return pairs.largest, pairs.eigenvectors[:top_k], pairs.num_matvecs


def _line_direction(context: Context, problem: Objective, kind: str) -> tuple[Tensor, int]:
    """A direction by name, and the matvecs it cost."""
    from lgo_cli.landscape.directions import gradient_direction, random_direction

    if kind == "random":
        return random_direction(problem, context.plan.config.seed, "interp", "direction"), 0
    if kind == "gradient":
        return gradient_direction(problem), 0
    _, vectors, spent = _eigenpairs(context, problem, 1)
    return vectors[0], spent


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
        values, vectors, spent = _eigenpairs(context, problem, 2)
        return eigen_plane(problem, values, vectors), spent
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
