"""Whether the eigenvectors of an earlier `lgo hessian` serve another analysis; without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgo_cli.config import OBJECTIVE_FIELDS, HessianConfig
from lgo_cli.manifest import ALGORITHM_VERSIONS
from lgo_cli.parsing import parse_config
from lgo_cli.results import HessianResults

if TYPE_CHECKING:
    from lgo_cli.manifest import Manifest, Request

PLANE_VECTOR_RTOL = 1e-3
"""Residual of an eigenvector that is good enough to go along, relative to max(|λ|, 0.01·max|θ|)."""


def serves(found: Manifest, request: Request, num_vectors: int) -> bool:
    """Whether another step's eigenvectors are those of this objective, and precise enough."""
    results = found.results
    if not isinstance(results, HessianResults) or not results.converged:
        return False
    asked = parse_config(HessianConfig, found.request.config)
    plain = asked.operator == "hessian" and asked.scaling == "none"
    if not plain or asked.layers or asked.include_weight_decay:
        return False
    floor = results.residual_floor / asked.rtol
    same = (*OBJECTIVE_FIELDS, "analysis_samples", "dtype")
    beside = ("state.pth", "warm_start.npz")
    return (
        len(results.largest) >= num_vectors
        and all(
            pair.residual_bound <= PLANE_VECTOR_RTOL * max(abs(pair.value), floor)
            for pair in results.largest[:num_vectors]
        )
        and found.request.algorithm_version == ALGORITHM_VERSIONS["hessian"]
        and all(found.request.config[key] == request.config[key] for key in same)
        and all(
            request.inputs.get(name) == ref
            for name, ref in found.request.inputs.items()
            if name not in beside
        )
        and all(name in found.request.inputs for name in request.inputs if name.endswith(".py"))
    )
