"""What the largest eigenvector may be like, from a sixteenth of the samples.

A product on these costs a sixteenth, and a few of them give a start for all samples that is nearer
than the gradient: on trained networks λmax took 4 to 6 products where it took 6 to 9 (theory.md,
section 11). It is a guess and no evidence: half of the start is random as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lgo_cli.curvature.eigenpairs import mixed_start
from lgo_cli.curvature.lanczos import Lanczos
from lgo_cli.seeding import standard_normal

if TYPE_CHECKING:
    from torch import Tensor

    from lgo_cli.curvature.operators import Operator

SHARE = 16
"""Samples over those of a sketch."""

LEAST_SAMPLES = 32
"""Of a sketch: fewer say little of all, and come from a set whose products cost next to nothing."""

NUM_STEPS = 5
"""Products of a sketch. More make its eigenvectors its own."""

NUM_VECTORS = 3
"""Ritz vectors that are taken in equal parts: on few samples the first may be all samples' second,
and a space changes less than its vectors do."""


def leading_vectors(operator: Operator, gradient: Tensor, seed: int) -> Tensor:
    """Ritz vectors of the largest Ritz values after a few steps, [n ≤ 3, P].

    Args:
        operator: Of some of the samples.
        gradient: On the same samples [P], half of the start.
        seed: The user's seed.

    Raises:
        NumericsError: if a product is not finite.
    """
    noise = standard_normal(operator.dim, seed, "hessian", "sketch")
    process = Lanczos(operator, mixed_start(noise, gradient), seed)
    while process.num_steps < NUM_STEPS and not process.is_complete:
        process.step()
    return process.vectors(np.ascontiguousarray(process.ritz().coefficients[:, -NUM_VECTORS:]))
