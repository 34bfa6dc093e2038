"""The trace of an operator from products with random signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lgo_cli.errors import NumericsError, UsageError
from lgo_cli.progress import SILENT, Progress
from lgo_cli.seeding import rademacher

if TYPE_CHECKING:
    from lgo_cli.curvature.operators import Operator


@dataclass(frozen=True)
class TraceEstimate:
    """A stochastic trace.

    Attributes:
        value: The estimate.
        standard_error: Sample standard deviation of the probes over √n.
        num_matvecs: n, one product a probe.
    """

    value: float
    standard_error: float
    num_matvecs: int


def estimate_trace(
    operator: Operator, *, num_probes: int = 100, seed: int = 0, progress: Progress = SILENT
) -> TraceEstimate:
    """Estimate tr H as the mean of zᵀHz over random sign vectors z (Hutchinson 1990).

    Unbiased; the variance of a probe is 2‖H − diag H‖²_F, the least of all isotropic probes with
    independent entries (theory.md, section 12). Probe i has a stream of its own, and is the
    same however many are drawn.

    Args:
        operator: H.
        num_probes: n ≥ 2.
        seed: The user's seed.
        progress: Told of each probe.

    Raises:
        UsageError: if fewer than two probes are asked for: one has no standard error.
        NumericsError: if a product is not finite.
    """
    if num_probes < 2:
        raise UsageError(f"a trace with a standard error needs at least 2 probes, not {num_probes}")
    values = []
    before = operator.num_matvecs
    with progress.task("trace", num_probes, "products") as task:
        for index in range(num_probes):
            probe = rademacher(operator.dim, seed, "hessian", "trace", index)
            probe = probe.to(operator.device, operator.dtype)
            values.append(torch.dot(probe.double(), operator.matvec(probe).double()))
            task.advance(1)
    samples = torch.stack(values).cpu()  # the only synchronisation
    if not bool(torch.isfinite(samples).all()):
        raise NumericsError("a Hessian-vector product is not finite")
    return TraceEstimate(
        value=float(samples.mean()),
        standard_error=float(samples.std(correction=1)) / math.sqrt(num_probes),
        num_matvecs=operator.num_matvecs - before,
    )
