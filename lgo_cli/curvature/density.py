"""The spectral density of an operator by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli.curvature.lanczos import Lanczos
from lgo_cli.curvature.smoothing import default_width, smooth
from lgo_cli.errors import UsageError
from lgo_cli.progress import SILENT, Progress
from lgo_cli.seeding import rademacher

if TYPE_CHECKING:
    from lgo_cli.curvature.operators import Operator

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SpectralDensity:
    """Gauss quadrature of the spectral measure, one rule for each probe.

    Attributes:
        nodes: [n, m], ascending in each row; they are Ritz values, not eigenvalues, and their share
            below zero estimates nothing.
        weights: [n, m], each row sums to one; a rule that ended early is padded with weight zero.
        num_matvecs: Products spent.
        mean: First moment, an estimate of tr H / P.
        mean_standard_error: Of it, over probes.
    """

    nodes: Array
    weights: Array
    num_matvecs: int
    mean: float
    mean_standard_error: float

    def smoothed(self, grid: Array, width: float | None = None) -> Array:
        """A view for the eye: the measure convolved with a Gaussian; integrates to one.

        Args:
            grid: Where to evaluate [g].
            width: Standard deviation; by default a hundredth of the nodes' range, or of their
                magnitude where all are equal.
        """
        return smooth(self.nodes, self.weights, grid, width or default_width(self.nodes))


def spectral_density(
    operator: Operator,
    *,
    num_probes: int = 8,
    num_steps: int = 40,
    seed: int = 0,
    progress: Progress = SILENT,
) -> SpectralDensity:
    """Estimate the density of eigenvalues (Ubaru, Chen & Saad 2017; Ghorbani et al. 2019).

    For each random sign vector, m steps of Lanczos give the m-point Gauss rule of the measure that
    the vector sees: nodes are the eigenvalues of T, weights the squared first entries of its
    eigenvectors (Golub & Meurant 2010, theorem 6.2; theory.md, section 13). The
    rule is exact for polynomials of degree 2m − 1.

    Args:
        operator: H.
        num_probes: n. One probe holds the standard error of the distribution function below
            1/√(2 P), far below what a picture shows; 8 are for the standard error of the mean.
        num_steps: m; resolves the spectrum to about its range over m. 40 separate the few large
            eigenvalues from the bulk, as a logarithmic picture needs. The cost is n·m products.
        seed: The user's seed.
        progress: Told of each product.

    Raises:
        UsageError: if there are no probes or no steps.
        NumericsError: if a product is not finite.
    """
    if min(num_probes, num_steps) < 1:
        raise UsageError("a density needs at least one probe and one step")
    num_steps = min(num_steps, operator.dim)
    nodes = np.zeros((num_probes, num_steps))
    weights = np.zeros((num_probes, num_steps))
    before = operator.num_matvecs
    with progress.task("density", num_probes * num_steps, "products") as task:
        for index in range(num_probes):
            probe = rademacher(operator.dim, seed, "hessian", "density", index)
            process = Lanczos(operator, probe, seed)
            while process.size < num_steps:
                process.step()
                task.advance(1)
                if process.betas[-1] == 0:
                    break  # the probe sees no more of the spectrum
            ritz = process.ritz()
            nodes[index, : process.size] = ritz.values
            nodes[index, process.size :] = ritz.values[-1]
            weights[index, : process.size] = ritz.coefficients[0] ** 2
    means = (nodes * weights).sum(axis=1)
    return SpectralDensity(
        nodes,
        weights,
        operator.num_matvecs - before,
        float(means.mean()),
        float(means.std(ddof=1)) / math.sqrt(num_probes) if num_probes > 1 else math.nan,
    )
