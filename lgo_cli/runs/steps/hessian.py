"""The step of `lgo hessian`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli.config import HessianConfig
from lgo_cli.errors import InputError
from lgo_cli.files import BOOKKEEPING
from lgo_cli.results import HessianResults, counted
from lgo_cli.runs.evidence import load_arrays
from lgo_cli.runs.steps.base import Context, Step, common, save_arrays, typed
from lgo_cli.runs.steps.described import arrays_of, describe_spectrum, eigenvalues
from lgo_cli.runs.strict import refuse_failed
from lgo_cli.training.recipe import learning_rate

if TYPE_CHECKING:
    from lgo_cli.curvature.spectrum import Setting, Spectrum
    from lgo_cli.curvature.stability import Preconditioner
    from lgo_cli.objective import Objective
    from lgo_cli.runs.plan import Plan


class HessianStep(Step):
    """`lgo hessian`."""

    def compute(self, context: Context) -> HessianResults:
        """Both ends of the spectrum, and what else was asked."""
        from lgo_cli.curvature.analysis import analyze_spectrum
        from lgo_cli.runs.loaded import measured, objective

        config = typed(context.plan, HessianConfig)
        with (
            context.stopwatch.phase("compute"),
            objective(context.plan, context.loaded) as problem,
        ):
            preconditioner = _preconditioner(context, problem)
            setting = _setting(context, problem, preconditioner)
            spectrum = analyze_spectrum(problem, config, setting, context.progress)
            description = measured(problem, context.loaded)
        available = description.num_available
        if description.num_samples < available / 10 and not config.halves:
            spectrum = replace(
                spectrum,
                warnings=(
                    *spectrum.warnings,
                    f"{description.num_samples:,} of {available:,} training samples are measured: "
                    "a small subset overstates the largest eigenvalue; --halves shows the spread",
                ),
            )
        stability = _stability(context.plan, available, spectrum, preconditioner)
        results = HessianResults(
            **common(context, spectrum.warnings),
            measured=description,
            weight_decay=setting.weight_decay if config.include_weight_decay else None,
            **describe_spectrum(spectrum, config),
            **stability,
        )
        if context.execution.strict:
            refuse_failed(results)
        save_arrays(context, "hessian.npz", arrays_of(spectrum))
        return results


def _preconditioner(context: Context, problem: Objective) -> Preconditioner | None:
    """Adam's, where the plan has the optimiser's state."""
    from lgo_cli import checkpoint
    from lgo_cli.curvature.stability import Preconditioner

    if "state.pth" not in context.plan.files:
        return None
    state = checkpoint.load(context.plan.files["state.pth"])
    return Preconditioner.of(state.get("optimizer", {}), problem.layout)


def _setting(
    context: Context, problem: Objective, preconditioner: Preconditioner | None
) -> Setting:
    import torch

    from lgo_cli.curvature.spectrum import Setting

    plan = context.plan
    warm = None
    if "warm_start.npz" in plan.files:
        path = plan.files["warm_start.npz"]
        config = typed(plan, HessianConfig)
        arrays = load_arrays(path)
        vectors, top = arrays["eigenvectors"], len(arrays["largest"])
        if vectors.shape[1] != problem.dim:
            raise InputError(
                f"{path} has eigenvectors of {vectors.shape[1]:,} entries, "
                f"this model has {counted(problem.dim, 'parameter')}"
            )
        chosen = [*vectors[: min(config.top_k, top)], *vectors[top : top + config.bottom_k]]
        warm = torch.from_numpy(np.array(chosen)) if chosen else None
    return Setting(
        weight_decay=plan.trained.recipe.weight_decay if plan.trained else 0.0,
        is_decay_coupled=plan.trained is not None and plan.trained.recipe.optimizer != "adamw",
        preconditioner=None if preconditioner is None else preconditioner.diagonal,
        warm_start=warm,
        memory_bytes=context.execution.memory_bytes,
        basis_device=context.execution.basis_device,
        basis_directory=plan.out / BOOKKEEPING,
    )


def _stability(
    plan: Plan,
    num_available: int,
    spectrum: Spectrum,
    preconditioner: Preconditioner | None,
) -> dict[str, Any]:
    """Stability threshold of the optimiser at the checkpoint, and the curvature it is held against.

    The rate is that of the last step before the checkpoint, which for one on the way is not the
    run's last. For Adam the curvature is that of the preconditioned Hessian.
    """
    from lgo_cli.curvature.stability import sharpness_ratio, stability_threshold

    def nothing(why: str) -> dict[str, Any]:
        return {
            "stability_threshold": None,
            "stability_threshold_note": why,
            "sharpness_ratio": None,
            "preconditioned": None,
            "preconditioned_weight_decay": None,
        }

    if plan.trained is None or plan.step is None:
        return nothing("the run's optimiser is not known")
    recipe = plan.trained.recipe
    if plan.step == 0:
        return nothing("the initialisation has no step behind it, and so no learning rate")
    adaptive = recipe.is_adaptive
    if adaptive and preconditioner is None:
        return nothing(
            f"{recipe.optimizer} preconditions its steps, and its second moments were not saved "
            "with these weights"
        )
    rate = learning_rate(recipe, plan.step - 1, plan.trained.num_steps // recipe.epochs)
    threshold, note = stability_threshold(
        recipe.optimizer,
        rate,
        recipe.momentum,
        recipe.nesterov,
        preconditioner.first_moment_decay if preconditioner else 0.9,
        recipe.weight_decay,
    )
    if threshold is not None and recipe.batch_size < num_available:
        note = (
            f"full-batch threshold; the run used mini-batches of {recipe.batch_size}, "
            "for which the stable curvature is lower"
        )
    config = typed(plan, HessianConfig)
    sharpest = _sharpest(spectrum, config, adaptive=adaptive) if plan.is_of_training else None
    # Decoupled decay is no curvature, and what the operator holds already is not added again, as
    # Adam's coupled decay is held by the preconditioned one.
    coupled = recipe.optimizer == "sgd" and not config.include_weight_decay
    preconditioned = spectrum.preconditioned
    decay = recipe.weight_decay if recipe.optimizer == "adam" else 0.0
    return {
        "stability_threshold": threshold,
        "stability_threshold_note": note,
        "sharpness_ratio": sharpness_ratio(
            sharpest, threshold, recipe.weight_decay, coupled=coupled
        ),
        "preconditioned": preconditioned and eigenvalues(preconditioned)["largest"][0],
        "preconditioned_weight_decay": preconditioned and decay,
    }


def _sharpest(spectrum: Spectrum, config: HessianConfig, *, adaptive: bool) -> float | None:
    """λmax as the run's own steps see it, if that was measured."""
    if config.operator != "hessian" or not spectrum.block.is_whole or not config.top_k:
        return None
    if adaptive and spectrum.preconditioned is not None:
        return float(spectrum.preconditioned.values[0])
    if config.scaling == ("adam" if adaptive else "none"):
        return float(spectrum.eigenpairs.largest[0])
    return None
