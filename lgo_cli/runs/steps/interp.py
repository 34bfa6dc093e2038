"""The step of `lgo interp`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lgo_cli import checkpoint
from lgo_cli.config import InterpConfig
from lgo_cli.results import AlignmentResults, InterpResults, RepairResults
from lgo_cli.runs.evidence import direction_norm
from lgo_cli.runs.steps.base import Context, Step, common, save_arrays, typed
from lgo_cli.runs.steps.curve import (
    FROZEN_CURVE,
    curve_arrays,
    curve_results,
    curve_state,
    trained_curve,
)
from lgo_cli.runs.steps.eigenpairs import top_eigenpairs
from lgo_cli.runs.steps.ends import Ends, largest_difference
from lgo_cli.runs.strict import refuse_failed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lgo_cli.landscape.interpolation import LossPath
    from lgo_cli.landscape.repair import Repair


class InterpStep(Step):
    """`lgo interp`."""

    def compute(self, context: Context) -> InterpResults:
        """Losses along a path on both splits, or the barriers between all pairs of checkpoints."""
        config = typed(context.plan, InterpConfig)
        if config.matrix:
            from lgo_cli.runs.steps.matrix import measure_matrix as measure
        elif config.direction is not None:
            measure = _along_direction
        else:
            measure = _to_other
        results, arrays = measure(context, config)
        if context.execution.strict:
            refuse_failed(results)
        save_arrays(context, "interp.npz", arrays)
        return results

    def published(self, context: Context) -> None:
        """Remove the state of a curve's training, which nobody goes on from any more."""
        curve_state(context).unlink(missing_ok=True)


def _along_direction(
    context: Context, config: InterpConfig
) -> tuple[InterpResults, dict[str, Any]]:
    from lgo_cli.curvature.embeddings import false_derivatives
    from lgo_cli.landscape.batchnorm import BatchNorm
    from lgo_cli.landscape.directions import (
        gradient_complaints,
        gradient_direction,
        random_direction,
    )
    from lgo_cli.landscape.grids import alpha_grid
    from lgo_cli.landscape.interpolation import interpolate
    from lgo_cli.runs.loaded import measured, objective

    plan, loaded = context.plan, context.loaded
    alphas = alpha_grid(config.range or (-1.0, 1.0), config.num_points, (0.0,))
    num_matvecs = 0
    warnings: list[str] = []
    with context.stopwatch.phase("compute"), objective(plan, loaded) as problem:
        unconverged = problem.complaints
        test = loaded.samples("test", config.analysis_samples).to(problem.device, problem.dtype)
        policy = BatchNorm(problem, config.batchnorm, num_samples=config.batchnorm_samples)
        description = measured(problem, loaded, len(test), policy)
        if config.direction == "eigen":
            top = top_eigenpairs(context, problem, 1)
            direction = top.vectors[0]
            num_matvecs += top.num_matvecs
            unconverged += top.unconverged
            warnings = [each.warning for each in false_derivatives(problem)]
        elif config.direction == "gradient":
            direction = gradient_direction(problem)
            unconverged += gradient_complaints(problem)
        else:
            direction = random_direction(problem, config.seed, "interp", "direction")
        path = interpolate(
            problem,
            test,
            alphas,
            direction=direction,
            batchnorm=policy,
            memory_bytes=context.execution.memory_bytes,
            progress=context.progress,
        )
    results = InterpResults(
        **common(context, [*warnings, *unconverged, *path.warnings]),
        **path_results(path),
        measured=description,
        along=str(config.direction),
        unconverged=unconverged,
        shape="line",
        num_evaluations=path.num_evaluations,
        num_matvecs=num_matvecs + path.num_matvecs,
    )
    return results, path_arrays(path)


def _to_other(context: Context, config: InterpConfig) -> tuple[InterpResults, dict[str, Any]]:
    from lgo_cli.landscape.unmoved import loss_of, unmoved, unmoved_warnings
    from lgo_cli.runs.loaded import objective

    plan, loaded = context.plan, context.loaded
    warnings: list[str] = []
    beside: dict[str, LossPath] = {}
    loss_of_other = alignment = repair = trained = None
    with context.stopwatch.phase("compute"):
        other = checkpoint.load_fitting(plan.files["to"], loaded.model)
        if config.align:
            from lgo_cli.landscape.alignment import align  # imports PyTorch's compiler

            inputs = loaded.samples("train", config.analysis_samples).inputs
            own = loaded.model.state_dict()
            alignment = align(
                loaded.model, own, other, inputs, seed=config.seed, progress=context.progress
            )
            warnings += alignment.warnings
        with objective(plan, loaded) as problem:
            complaints = problem.complaints
            ends = Ends(context, config, problem)
            if alignment is not None:
                beside["unaligned"] = ends.path(other)
                other = alignment.state
            path = ends.path(other)
            if config.curve is not None:
                beside["line"] = path
                trained = trained_curve(context, config, problem, ends.weights(other))
                path = ends.path(other, curve=trained.curve)
            if config.repair:
                repair = ends.repair(other)
                if repair.ends:  # the statistics of batch norm alone are recomputed in any case
                    beside["unrepaired"] = path
                    path = ends.path(other, repair=repair)
            description = ends.measured(other)
            kinds = unmoved(problem, ends.policy(other), other)
            if kinds:
                loss_of_other = loss_of(problem, other)
    paths = (path, *beside.values())
    warnings += dict.fromkeys(text for each in paths for text in each.warnings)
    if loss_of_other is not None:
        warnings += unmoved_warnings(
            kinds, "along the path", "the other end's", loss_of_other, path.loss_at_end
        )
    if trained is not None and trained.uses_batch_statistics and description.batchnorm == "frozen":
        warnings.append(FROZEN_CURVE)
    arrays = path_arrays(path)
    for name, each in beside.items():
        arrays |= path_arrays(each, f"{name}_")
    if trained is not None:
        arrays |= curve_arrays(trained)
    results = InterpResults(
        **common(context, [*complaints, *warnings]),
        **path_results(path, beside),
        measured=description,
        unconverged=complaints,
        along=str(plan.request.config["to"][0]),  # type: ignore[index]
        shape=config.curve or ("arc" if config.spherical else "line"),
        loss_of_other=loss_of_other,
        alignment=(
            AlignmentResults.model_validate(alignment, from_attributes=True) if alignment else None
        ),
        repair=_repair_results(repair) if repair else None,
        curve=curve_results(context, config, trained) if trained else None,
        num_evaluations=sum(each.num_evaluations for each in paths),
        num_matvecs=sum(each.num_matvecs for each in paths),
    )
    return results, arrays


def _repair_results(repair: Repair) -> RepairResults:
    """What REPAIR rescales and what it cannot."""
    return RepairResults(
        layers=list(repair.ends),
        batch_norms=list(repair.batch_norms),
        not_repaired=repair.not_repaired,
    )


def path_arrays(path: LossPath, prefix: str = "") -> dict[str, Any]:
    """What `interp.npz` holds of a path; of one beside the first, what differs, after a prefix."""
    arrays = {**path.train.arrays(prefix), **path.test.arrays(f"{prefix}test_")}
    return arrays if prefix else {"alpha": path.alpha, **arrays, "direction": path.direction}


def path_results(path: LossPath, beside: Mapping[str, LossPath] | None = None) -> dict[str, Any]:
    """The fields of `InterpResults` that a path and those beside it settle."""
    fields: dict[str, Any] = {}
    paths = [path, *(beside or {}).values()]
    for name, other in (beside or {}).items():
        for prefix, found in (("", other.train.barrier), ("test_", other.test.barrier)):
            fields[f"{prefix}barrier_{name}"] = found
    for prefix, found in (("", path.train.barrier), ("test_", path.test.barrier)):
        fields |= {
            f"{prefix}barrier": found and found.value,
            f"{prefix}barrier_standard_error": found and found.standard_error,
            f"{prefix}barrier_interval": found and found.interval,
            f"{prefix}barrier_alpha": found and found.alpha,
        }
    return fields | {
        "curvature_at_origin": path.curvature_at_origin,
        "loss_at_start": path.loss_at_start,
        "loss_at_end": path.loss_at_end,
        "direction_norm": direction_norm(path.direction),
        "range": (float(path.alpha[0]), float(path.alpha[-1])),
        "num_points": len(path.alpha),
        "point_plan": path.plan,
        "is_fast": path.is_fast,
        "fast_path_difference": path.fast_path_difference,
        "fast_path_difference_beside": largest_difference(paths[1:]),
        "num_nonfinite": sum(each.train.num_nonfinite for each in paths),
        "test_num_nonfinite": sum(each.test.num_nonfinite for each in paths),
    }
