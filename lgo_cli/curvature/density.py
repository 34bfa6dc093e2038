"""The spectral density of an operator by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray as Array

from lgo_cli.curvature.lanczos import Lanczos, Rule
from lgo_cli.curvature.smoothing import default_width, smooth
from lgo_cli.progress import SILENT, Progress
from lgo_cli.seeding import standard_normal

if TYPE_CHECKING:
    from lgo_cli.curvature.basis import Basis
    from lgo_cli.curvature.operators import Operator

NUM_STEPS = 40
"""Nodes of the rule. They resolve the spectrum to about its range over 40, which separates the few
large eigenvalues from the bulk, as a logarithmic picture needs."""

CONFIDENCE = 0.99
"""With which the bound holds, over start vectors."""


@dataclass(frozen=True)
class SpectralDensity:
    """Gauss quadrature of the spectral measure, as one random vector sees it.

    Of a basis that spans the whole space it is the density itself: all eigenvalues, of one weight.

    Attributes:
        nodes: [m], ascending; they are Ritz values, not eigenvalues, and their share below zero
            estimates nothing.
        weights: [m], sum to one.
        mean: First moment, within the bound of tr H / P.
        quadrature_bound: Wasserstein-1 distance at most between the rule and the measure that the
            vector sees; rounding alone where the run saw all of it.
        sampling_bound: The same between that measure and the density, with 99 % confidence.
        extent: Of the spectrum, as far as the run saw; no distance is larger.
        num_matvecs: Products spent here, beside those of a run that was there.
    """

    nodes: Array
    weights: Array
    mean: float
    quadrature_bound: float
    sampling_bound: float
    extent: float
    num_matvecs: int

    @property
    def wasserstein_bound(self) -> float:
        """Of the rule to the density of the eigenvalues, with 99 % confidence."""
        return min(self.quadrature_bound + self.sampling_bound, self.extent)

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
    process: Lanczos | None = None,
    basis: Basis | None = None,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
    progress: Progress = SILENT,
) -> SpectralDensity:
    """Estimate the density of eigenvalues (Ghorbani et al. 2019; Chen, Trogdon & Ubaru 2021).

    m steps of Lanczos from a Gaussian vector give the m-point Gauss rule of the measure that it
    sees: nodes are the eigenvalues of T, weights the squared first entries of its eigenvectors
    (Golub & Meurant 2010, theorem 6.2). That measure is the density but for an error of about
    1/√P, so one vector does. Both errors are bounded in the Wasserstein-1 distance, the first from
    the rule itself (theory.md, section 21).

    Args:
        operator: H.
        process: A run that began at a Gaussian vector, to take the rule from; it is extended to
            `num_steps`, unless it has restarted before: then a run of its own is made. One whose
            basis spans the whole space may have begun anywhere.
        basis: Empty, where the basis of such a run goes.
        num_steps: m.
        seed: The user's seed.
        progress: Told of each product.

    Raises:
        NumericsError: if a product is not finite.
    """
    before = operator.num_matvecs
    if process is None or not _is_enough(process, num_steps):
        start = standard_normal(operator.dim, seed, "hessian", "density")
        process = Lanczos(operator, start, seed, basis)
    missing = max(0, min(num_steps, operator.dim) - process.size)
    if not process.has_rule and missing:
        with progress.task("density", missing, "products") as task:
            while process.size < num_steps and not process.is_complete and not process.has_rule:
                process.step()
                task.advance(1)
    rule = process.rule()
    if process.is_complete:  # all eigenvalues, whatever a single vector sees of them
        dim = operator.dim
        rule = process.ritz().rule(np.full(dim, 1 / dim), is_whole=True)
    extent = rule.high - rule.low
    return SpectralDensity(
        nodes=rule.nodes,
        weights=rule.weights,
        mean=float(rule.nodes @ rule.weights),
        quadrature_bound=quadrature_bound(rule),
        sampling_bound=0.0 if process.is_complete else sampling_bound(operator.dim, extent),
        extent=extent,
        num_matvecs=operator.num_matvecs - before,
    )


def _is_enough(process: Lanczos, num_steps: int) -> bool:
    """Whether a run's rule has as many nodes as are wanted, or there are, or can have."""
    if process.is_complete or not process.has_rule:
        return True
    rule = process.rule()
    return rule.is_whole or len(rule.nodes) >= num_steps


def quadrature_bound(rule: Rule) -> float:
    """Wasserstein-1 distance at most between a Gauss rule and its measure.

    Between two nodes the distribution function differs from the rule's by no more than the larger
    of their weights, and outside by the outer node's (Chebyshev, Markov and Stieltjes; Szegő 1975,
    theorem 3.41.1); the distance is the area between the two functions. A rule that is the measure
    has its nodes off by their residuals.
    """
    nodes, weights = rule.nodes, rule.weights
    if rule.is_whole:
        return float(max(nodes[0] - rule.low, rule.high - nodes[-1]))
    inner = np.diff(nodes) @ np.maximum(weights[1:], weights[:-1])
    outer = (nodes[0] - rule.low) * weights[0] + (rule.high - nodes[-1]) * weights[-1]
    return float(inner + outer)


def sampling_bound(dim: int, extent: float) -> float:
    """Wasserstein-1 distance at most between one vector's measure and the density.

    With a uniform direction in P dimensions the mass on any i eigenvectors is Beta distributed and
    sub-Gaussian with variance 1/(2(P + 2)) (Marchal & Arbel 2017); a union over the P steps of the
    distribution function gives √(ln(2P/p)/(P + 2)) in its largest difference, p being the chance of
    failure (Chen, Trogdon & Ubaru 2021, section 3), and that times the spectrum's extent in area.
    """
    failure = 1 - CONFIDENCE
    return extent * min(1.0, math.sqrt(math.log(2 * dim / failure) / (dim + 2)))
