"""Eigenvectors of an earlier `lgo hessian`, for another analysis; without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgo_cli.config import OBJECTIVE_FIELDS, HessianConfig
from lgo_cli.errors import InputError
from lgo_cli.manifest import ALGORITHM_VERSIONS, InputRef, damaged_outputs, read_manifest
from lgo_cli.parsing import parse_config
from lgo_cli.results import HessianResults

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lgo_cli.manifest import Manifest, Request

PLANE_VECTOR_RTOL = 1e-3
"""Residual of an eigenvector that is good enough to go along, relative to max(|λ|, 0.01·max|θ|)."""


def saved_eigenvectors(
    places: Iterable[Path], request: Request, num_vectors: int
) -> tuple[Path, InputRef] | None:
    """The first `hessian.npz` in some directories that serves a request, if there is any."""
    for directory in places:
        path = directory / "hessian.json"
        if not path.is_file():
            continue
        try:
            found = read_manifest(path)
        except InputError:  # nobody asked for it
            continue
        if _serves(found, request, num_vectors) and not damaged_outputs(found, directory):
            sha256 = found.outputs["hessian.npz"].sha256
            reference = InputRef(sha256=sha256, produced_by=found.fingerprint)
            return directory / "hessian.npz", reference
    return None


def _serves(found: Manifest, request: Request, num_vectors: int) -> bool:
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
