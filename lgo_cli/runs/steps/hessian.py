"""The step of `lgo hessian`, and eigenvectors for the steps that need some."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lgo_cli.config import HessianConfig
from lgo_cli.errors import ConvergenceError
from lgo_cli.manifest import Density, Eigenvalue, HessianResults, Trace
from lgo_cli.models.registry import recipe_of
from lgo_cli.runs.steps.base import Context, Step, common, load_arrays, save_arrays, typed
from lgo_cli.training.recipe import learning_rate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure
    from torch import Tensor

    from lgo_cli.objective import Objective
    from lgo_cli.runs.plan import Plan


class HessianStep(Step):
    """`lgo hessian`."""

    def compute(self, context: Context) -> HessianResults:
        """Both ends of the spectrum, and trace and density where asked."""
        from lgo_cli.curvature.spectrum import analyze_spectrum, sharpness_ratio
        from lgo_cli.runs.loaded import measured, objective

        config = typed(context.plan, HessianConfig)
        with (
            context.stopwatch.phase("compute"),
            objective(context.plan, context.loaded) as problem,
        ):
            spectrum = analyze_spectrum(problem, config, context.progress)
            description = measured(problem, context.loaded)
        pairs = spectrum.eigenpairs
        if context.execution.strict and not pairs.converged:
            raise ConvergenceError(spectrum.num_matvecs)
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
        save_arrays(context, "hessian.npz", arrays)

        recipe = context.plan.trained.recipe if context.plan.trained else None
        threshold, note = _stability(context.plan, description.num_available)
        return HessianResults(
            **common(context, spectrum.warnings),
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

        return {"hessian": draw_spectrum(load_arrays(out / "hessian.npz"), results)}


def _stability(plan: Plan, num_available: int) -> tuple[float | None, str | None]:
    """Stability threshold of the optimiser at the checkpoint, and what a reader must know of it.

    The rate is that of the last step before the checkpoint, which for one on the way is not the
    run's last.
    """
    from lgo_cli.curvature.spectrum import stability_threshold

    if plan.trained is None or plan.step is None:
        return None, "the run's optimiser is not known"
    recipe = plan.trained.recipe
    if plan.step == 0:
        return None, "the initialisation has no step behind it, and so no learning rate"
    published = recipe_of(str(plan.config.model))
    rate = learning_rate(
        recipe,
        plan.step - 1,
        plan.trained.num_steps // recipe.epochs,
        published.milestones,
        published.gamma,
    )
    threshold, note = stability_threshold(recipe.optimizer, rate, recipe.momentum, recipe.nesterov)
    if threshold is not None and recipe.batch_size < num_available:
        note = (
            f"full-batch threshold; the run used mini-batches of {recipe.batch_size}, "
            "for which the stable curvature is lower"
        )
    return threshold, note


def _eigenvalues(values: Tensor, bounds: Tensor) -> list[Eigenvalue]:
    return [
        Eigenvalue(value=value, residual_bound=bound)
        for value, bound in zip(values.tolist(), bounds.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class TopEigenpairs:
    """The top of the spectrum, for a step that goes along it.

    Attributes:
        values: The largest eigenvalues [k].
        vectors: Their eigenvectors [k, P], unit norm.
        num_matvecs: Products spent here; 0 if they were read.
        warnings: What a reader must know.
    """

    values: Tensor
    vectors: Tensor
    num_matvecs: int
    warnings: tuple[str, ...] = ()


def top_eigenpairs(context: Context, problem: Objective, top_k: int) -> TopEigenpairs:
    """Read the top eigenpairs from `hessian.npz` if it was planned so, else compute them.

    Raises:
        ConvergenceError: with `--strict`, if they do not converge.
    """
    import torch

    from lgo_cli.curvature.lanczos import extreme_eigenpairs
    from lgo_cli.curvature.operators import HessianOperator

    if "hessian.npz" in context.plan.files:
        arrays = load_arrays(context.plan.files["hessian.npz"])
        vectors = torch.from_numpy(arrays["eigenvectors"][:top_k])
        values = torch.from_numpy(arrays["largest"][:top_k])
        return TopEigenpairs(values, vectors.to(problem.device, problem.dtype), 0)
    pairs = extreme_eigenpairs(
        HessianOperator(problem),
        top_k=top_k,
        bottom_k=0,
        rtol=HessianConfig().rtol,
        seed=context.plan.config.seed,
        progress=context.progress,
    )
    if context.execution.strict and not pairs.converged:
        raise ConvergenceError(pairs.num_matvecs)
    return TopEigenpairs(pairs.largest, pairs.eigenvectors, pairs.num_matvecs, pairs.warnings)
