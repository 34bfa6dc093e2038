"""The curvature along random lines, whose mean is known from a trace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy import ndarray as Array

from lgo_cli.curvature.lanczos import Lanczos
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.curvature.operators import ScaledOperator
from lgo_cli.curvature.trace import estimate_trace
from lgo_cli.landscape.directions import random_direction
from lgo_cli.progress import SILENT, Progress
from lgo_cli.seeding import standard_normal
from lgo_cli.vectors import dot, root_mean_square

if TYPE_CHECKING:
    from lgo_cli.config import Normalization
    from lgo_cli.objective import Objective


@dataclass(frozen=True)
class LineCurvature:
    """Curvature at the centre along random lines, per unit of squared length, beside its mean.

    Attributes:
        values: dᵀHd/‖d‖² of each line [n].
        mean: Mean of the values.
        standard_error: Of the mean, by the variance that a line's has at most.
        expected: What the mean estimates, tr(SHS)/tr S² from the curvature engine; tr H / P for
            isotropic lines.
        expected_standard_error: Standard error of `expected`.
        deviation: mean − expected in units of both standard errors together, within 1.96 in 95 % of
            cases.
        num_matvecs: Products spent.
    """

    values: Array
    mean: float
    standard_error: float
    expected: float
    expected_standard_error: float
    deviation: float
    num_matvecs: int

    @property
    def num_lines(self) -> int:
        """n, two of each plane."""
        return len(self.values)


def line_curvature(
    objective: Objective,
    seed: int,
    num_planes: int,
    *,
    normalization: Normalization = "filter",
    memory_bytes: int | None = None,
    progress: Progress = SILENT,
) -> LineCurvature:
    """Measure the curvature along the lines of K random planes, and check its mean.

    The lines are both draws of each plane, before the second is made orthogonal: 2K independent
    directions d with E ddᵀ = S², ‖d‖² = tr S² and S the diagonal of `root_mean_square`, whence
    E dᵀHd/‖d‖² = tr(SHS)/tr S² (theory.md, section 24). The curvature engine estimates that trace
    from other random numbers. Both use products at the centre, not differences of the surface, so
    that kinks have no part in either.

    Args:
        objective: Entered.
        seed: Of the planes.
        num_planes: K.
        normalization: Of the planes.
        memory_bytes: Of the products' graphs, as `HessianOperator` has it.
        progress: Told of each product.

    Raises:
        NumericsError: if a product is not finite.
        UsageError: if the model has no filters.

    Cost: 2K matvecs for the lines, 50 or more for the trace.
    """
    operator = HessianOperator(objective, memory_bytes=memory_bytes)
    values = np.empty(2 * num_planes)
    with progress.task("lines", 2 * num_planes, "products") as task:
        for number in range(2 * num_planes):
            d = random_direction(
                objective, seed, "contour", "direction", number, normalization=normalization
            )
            values[number] = dot(d, operator.matvec(d)) / dot(d, d)
            task.advance(1)
    scale = root_mean_square(objective.theta, objective.layout, normalization)
    square = dot(scale, scale)
    start = standard_normal(operator.dim, seed, "contour", "trace").to(objective.theta)
    weighted = ScaledOperator(operator, scale / math.sqrt(square))
    trace = estimate_trace(
        Lanczos(weighted, weighted.scale * start, seed), seed=seed, progress=progress
    )
    mean = float(values.mean())
    num_moved = int(torch.count_nonzero(scale))
    variance = line_variance(trace.value, trace.frobenius_norm, num_moved)
    error = math.sqrt(variance / len(values))
    together = math.hypot(error, trace.standard_error)
    return LineCurvature(
        values=values,
        mean=mean,
        standard_error=error,
        expected=trace.value,
        expected_standard_error=trace.standard_error,
        deviation=(mean - trace.value) / together if together > 0 else 0.0,
        num_matvecs=operator.num_matvecs,
    )


def line_variance(trace: float, norm: float, num_moved: int) -> float:
    """Variance at most of zᵀCz, z of independent parts, each uniform on a sphere and E zzᵀ = I.

    It is 2(‖C‖² − tr² C/m), and nearly that for a single part. The spread of a few values would not
    do in its place: where C is of low rank they are skewed, and vary little where they are all too
    low (theory.md, section 24).

    Args:
        trace: tr C.
        norm: ‖C‖_F.
        num_moved: m, the entries of z.
    """
    return 2 * max(norm**2 - trace**2 / num_moved, 0.0)
