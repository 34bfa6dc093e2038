"""Eigenvectors for the steps that go along some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgo_cli.errors import NumericsError
from lgo_cli.runs.eigenvectors import PLANE_VECTOR_RTOL
from lgo_cli.runs.evidence import load_arrays
from lgo_cli.runs.inputs import refuse_changed
from lgo_cli.runs.steps.base import TopEigenpairs

if TYPE_CHECKING:
    from lgo_cli.objective import Objective
    from lgo_cli.runs.steps.base import Context


def top_eigenpairs(context: Context, problem: Objective, top_k: int) -> TopEigenpairs:
    """Read the top eigenpairs from `hessian.npz` if it was planned so, else compute them once.

    What counts as converged allows for the rounding of products, measured as `lgo hessian` does.

    Raises:
        NumericsError: with `--strict`, if they do not converge.
    """
    import torch

    from lgo_cli.curvature.audit import measure_rounding
    from lgo_cli.curvature.eigenpairs import extreme_eigenpairs
    from lgo_cli.curvature.folding import fold
    from lgo_cli.curvature.networks import HessianOperator
    from lgo_cli.curvature.search import Wanted

    if "hessian.npz" in context.plan.files:
        plan, name = context.plan, "hessian.npz"
        arrays = load_arrays(plan.files[name])
        # lgo hessian may run beside this step, and put others in their place.
        refuse_changed({name: plan.request.inputs[name]}, plan.files)
        vectors = torch.from_numpy(arrays["eigenvectors"][:top_k])
        values = torch.from_numpy(arrays["largest"][:top_k])
        return TopEigenpairs(values, vectors.to(problem.device, problem.dtype), 0)
    if top_k in context.eigenpairs:
        return context.eigenpairs[top_k]
    rtol, seed, model = PLANE_VECTOR_RTOL, context.plan.config.seed, fold(problem)
    # Before the operator holds graphs.
    rounding = measure_rounding(problem, HessianOperator, model, difference=False, seed=seed)
    memory_bytes = context.execution.memory_bytes
    operator = HessianOperator(problem, model=model, memory_bytes=memory_bytes)
    operator.measured_rounding = rounding.units
    pairs = extreme_eigenpairs(
        operator,
        Wanted(top_k, rtol=rtol, vector_rtol=rtol, seed=seed),
        progress=context.progress,
    )
    if context.execution.strict and not pairs.converged:
        raise NumericsError("; ".join(pairs.unconverged))
    found = TopEigenpairs(pairs.largest, pairs.eigenvectors, pairs.num_matvecs, pairs.unconverged)
    context.eigenpairs[top_k] = found
    return found
