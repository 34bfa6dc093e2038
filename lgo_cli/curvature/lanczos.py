"""The Lanczos process: one Krylov space, and what it knows of an operator's spectrum.

Notation: H the operator [P, P], Q the basis [m, P] with orthonormal rows, T = QHQᵀ the projected
matrix [m, m], (θ, s) its eigenpairs, y = Qᵀs the Ritz vector of θ.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy import ndarray as Array
from torch import Tensor

from lgo_cli.curvature.basis import Basis
from lgo_cli.errors import NumericsError
from lgo_cli.seeding import standard_normal

if TYPE_CHECKING:
    from lgo_cli.curvature.operators import Operator


RESIDUAL_FLOOR = 0.01
"""Share of max|θ| below which an eigenvalue's own size no longer sets its tolerance: float32
products cannot resolve a small eigenvalue beside a large one."""


_HARDLY = 0.1
"""Share of a vector's norm below which taking it out leaves the rest orthogonal to rounding."""


class Ritz(NamedTuple):
    """What a Krylov space of m steps knows of the spectrum.

    Attributes:
        values: Ritz values θ [m], ascending.
        coefficients: Eigenvectors s of T [m, m], in columns.
        residuals: Bounds on ‖Hy − θy‖/‖y‖ [m], of which `rounding` is a part.
        estimates: min(r, r²/gap) [m]: the error of θ if its neighbours are what they seem; r where
            θ is `crowded`.
        rounding: Allowance for the rounding of products, which no further step lowers.
        crowd: Where most eigenvalues are thought to lie (`Operator`).
    """

    values: Array
    coefficients: Array
    residuals: Array
    estimates: Array
    rounding: float
    crowd: float = 0.0

    @property
    def scale(self) -> float:
        """max|θ|, the norm of the matrix as far as it is seen."""
        return float(np.abs(self.values).max())

    @property
    def crowded(self) -> Array:
        """Which Ritz values lie among so many that those may hide in what looks like a gap [m]."""
        distances = np.abs(self.values - self.crowd)
        result: Array = distances < RESIDUAL_FLOOR * distances.max()
        return result

    def rule(self, weights: Array, *, is_whole: bool) -> Rule:
        """The Ritz values with weights [m]."""
        low, high = self.values[0] - self.residuals[0], self.values[-1] + self.residuals[-1]
        return Rule(self.values, weights, float(low), float(high), is_whole)


class Rule(NamedTuple):
    """Gauss quadrature of the measure Σ (uᵢᵀq)² δ(λᵢ) that a start vector q of unit norm sees.

    Attributes:
        nodes: Ritz values [m], ascending.
        weights: Squared first entries of T's eigenvectors [m]; they sum to one.
        low: Lower bound on the smallest eigenvalue that the run saw, θ₁ − r₁.
        high: Upper bound on the largest, θ_m + r_m.
        is_whole: Whether the run ended in an invariant subspace: the rule is the measure itself.
    """

    nodes: Array
    weights: Array
    low: float
    high: float
    is_whole: bool


class Lanczos:
    """The Lanczos process with full reorthogonalisation, one step at a time.

    Textbook Lanczos (Golub & Van Loan 2013, algorithm 10.1.1) orthogonalises against the last two
    vectors only, and in floating point returns copies of eigenvalues as soon as one has converged.
    Here each new vector is then orthogonalised against all ("twice is enough", Parlett 1998,
    section 6.9), and T is what was measured on the way. What a product was found to hold in
    disagreement with a symmetric T is kept as the defect E of

        H Qᵀ = Qᵀ (T + E) + q pᵀ + R,

    where q is the vector of the next step and p what couples to it (β at the last step alone,
    before a restart), and R what was left behind where a run broke down or began anew. The
    residual of a Ritz pair is thus known without a product.

    Args:
        operator: H.
        start: Vector [P], not zero; normalised here.
        seed: For the vector with which a run goes on after an invariant subspace.
        basis: Empty, where Q goes; by default in the operator's memory.

    Attributes:
        size: m, vectors that are held and have been multiplied.
        num_steps: Steps done, those before a restart included.
        basis: Q, and the vector of the next step behind it.
    """

    def __init__(
        self, operator: Operator, start: Tensor, seed: int = 0, basis: Basis | None = None
    ) -> None:
        self.operator = operator
        self.seed = seed
        self.size = 0
        # Not `basis or`: an empty basis is false.
        if basis is None:
            basis = Basis(operator.dim, operator.dtype, operator.device)
        self.basis = basis
        self._matrix = np.zeros((0, 0))
        self._defect = np.zeros((0, 0))
        self._pending = np.zeros(0)
        self._lost = np.zeros(0)
        self._carried = 0.0
        self._rule: Rule | None = None
        self._num_random = 0
        self.num_steps = 0
        self.basis.append(start.to(self.basis.device, operator.dtype))

    @property
    def is_complete(self) -> bool:
        """Whether the basis spans the whole space, so that T is H in another basis."""
        return self.size == self.operator.dim

    @property
    def projected(self) -> Array:
        """T [m, m]."""
        return self._matrix

    @property
    def squared_norm(self) -> float:
        """‖HQᵀ‖²_F, with what was left behind at its bound."""
        outside = np.square(self._pending).sum() + np.square(self._lost).sum()
        return float(np.square(self._matrix).sum() + outside)

    @property
    def has_rule(self) -> bool:
        """Whether the space has stopped to be the start vector's own: `rule` is final."""
        return self._rule is not None

    def project_out(self, vector: Tensor) -> None:
        """Take from a vector [P], in place, its part in the span of the m vectors."""
        self.basis.project_out(vector, self.size)

    def step(self) -> None:
        """Spend one product and extend the basis by one vector.

        Raises:
            NumericsError: if the product is not finite.
        """
        self.num_steps += 1
        newest = self.basis.newest.to(self.operator.device)
        product = self.operator.matvec(newest).to(self.basis.device)
        column, beta = self._orthogonalize(product)
        self._extend(column, beta)
        if self.is_complete:
            self._lose_pending()
        elif beta <= 8 * torch.finfo(self.operator.dtype).eps * np.abs(self._matrix).max():
            # An invariant subspace: T falls apart into blocks, and the run goes on in what is left.
            self._close_rule(is_whole=True)
            self._lose_pending()
            self._append_random()
        else:
            self.basis.append(product)

    def ritz(self) -> Ritz:
        """Ritz pairs, each with a bound on its residual against the exact operator.

        Four parts: what leaves the space, |pᵀs|; what was left behind, in R; what products held
        and T does not, ‖Es‖; and the rounding of products. Of that, E shows the part that makes
        them asymmetric, in so far as it lies in the basis: the largest column is allowed once more
        for the part outside, and `rounding_units` for a symmetric part, which no step can see.
        Rounding of the recurrence is a few eps·‖H‖, within the same.
        """
        # Not numpy's, whose threads and torch's wait for each other: 16 ms in place of 0.2.
        pairs = torch.linalg.eigh(torch.from_numpy(self._matrix))
        values, coefficients = (part.numpy() for part in pairs)
        residuals = np.hypot(np.abs(self._pending @ coefficients), self._inside(coefficients))
        residuals += self._lost @ np.abs(coefficients)
        eps = torch.finfo(self.operator.dtype).eps
        rounding = self._rounding_units * eps * np.abs(values).max()
        rounding = max(rounding, self.operator.rounding_floor)
        rounding += self.asymmetry
        residuals += rounding
        estimates = improved_by_gaps(values, residuals, rounding)
        crowd = self.operator.crowd
        ritz = Ritz(values, coefficients, residuals, estimates, float(rounding), crowd)
        estimates[ritz.crowded] = residuals[ritz.crowded]
        return ritz

    @property
    def asymmetry(self) -> float:
        """How far products were seen to be asymmetric, absolute: a part of `Ritz.rounding`."""
        return float(np.linalg.norm(self._defect, axis=0).max()) + self._carried

    @property
    def restart_rounding(self) -> float:
        """What restarts have added to `Ritz.rounding`, absolute."""
        return self._carried

    def rule(self) -> Rule:
        """Gauss quadrature of the start vector's measure, by the steps before any restart."""
        return self._rule or self._current_rule(is_whole=self.is_complete)

    def vectors(self, coefficients: Array) -> Tensor:
        """Ritz vectors [k, P], unit norm, from columns of coefficients [m, k]."""
        combined = self.basis.combine(coefficients.T)
        # In place: fresh memory for k vectors costs more than their arithmetic.
        # Norms in float64: of ten million entries in float32 they are off by 4e-4.
        norms = torch.linalg.vector_norm(combined, dim=1, keepdim=True, dtype=torch.float64)
        return combined.div_(norms.to(combined.dtype))

    def restart(self, ritz: Ritz, keep: Array) -> None:
        """Keep some Ritz vectors and go on from there (thick restart, Wu & Simon 2000).

        The kept vectors all couple to the vector of the next step, by p; T becomes diagonal with
        that one full row. What E and the rounding of the combination add to their residuals is
        carried on, as one number: kept vectors turn into each other at the next restart. They are
        roundings of their own each time, and add in squares.

        Args:
            ritz: Of this moment.
            keep: Indices of the Ritz vectors to keep, fewer than m.
        """
        self._close_rule()
        coefficients = ritz.coefficients[:, keep]
        eps = torch.finfo(self.operator.dtype).eps
        defect = float(np.linalg.norm(self._defect @ coefficients))
        self._carried = math.hypot(self._carried, defect + 4 * eps * ritz.scale)
        self._lost = self._lost @ np.abs(coefficients)
        self._pending = self._pending @ coefficients
        self._matrix = np.diag(ritz.values[keep])
        self._defect = np.zeros_like(self._matrix)
        self.size = len(keep)
        weights = np.zeros((len(keep) + 1, len(ritz.values) + 1))
        weights[:-1, :-1] = coefficients.T
        weights[-1, -1] = 1  # the vector of the next step
        self.basis.replace(weights)

    def begin_anew(self) -> None:
        """Go on with a random vector: a space sees one copy of a repeated eigenvalue only."""
        self._close_rule()
        self._lose_pending()
        self.basis.drop_newest()
        self._append_random()

    @cached_property
    def _rounding_units(self) -> float:
        """Asked once, since the answer may need a synchronisation."""
        return self.operator.rounding_units

    def _orthogonalize(self, product: Tensor) -> tuple[Array, float]:
        """Take from a product [P], in place, its part in the basis; that [m], and the rest's norm.

        Once against the two vectors of the recurrence, and once against all; against all again only
        if that took out more than rounding, as after a restart (Daniel et al. 1976).

        Raises:
            NumericsError: if the product is not finite.
        """
        near = self.basis.project_out(product, last=2)
        column = torch.nn.functional.pad(near, (len(self.basis) - len(near), 0))
        for _ in range(2):
            removed = self.basis.project_out(product)
            column += removed
            norms = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in (removed, product)]
            # One synchronisation a step: all numbers that decide come over together.
            numbers = torch.cat([column, torch.stack(norms)]).cpu().numpy()
            if not np.isfinite(numbers).all():
                raise NumericsError("a product with the curvature matrix is not finite")
            if numbers[-2] <= _HARDLY * numbers[-1]:
                break
        return numbers[:-2], float(numbers[-1])

    def _extend(self, column: Array, beta: float) -> None:
        m = self.size
        before = self._matrix, self._defect
        self._matrix, self._defect = np.zeros((2, m + 1, m + 1))
        self._matrix[:m, :m], self._defect[:m, :m] = before
        self._matrix[:, m] = self._matrix[m, :] = column
        # H is symmetric: what earlier products held of this vector must be what this one holds of
        # theirs. Where something was left behind, how much of it is here is not known, nor needed.
        self._defect[m, :m] = np.where(self._lost > 0, 0.0, self._pending - column[:m])
        # What couples to this vector was not lost.
        self._lost = np.append(self._find_again(column[:m] - self._pending), 0.0)
        self._pending = np.zeros(m + 1)
        self._pending[m] = beta
        self.size = m + 1

    def _find_again(self, held: Array) -> Array:
        """Bounds on what was left behind [m], less what a new vector holds of it [m].

        All, if that vector is the last there is; else what is certain beside a product's rounding.
        """
        if self.size + 1 == self.operator.dim or not self._lost.any():
            return np.zeros(self.size)
        eps = torch.finfo(self.operator.dtype).eps
        rounding = self._rounding_units * eps * float(np.linalg.norm(self._matrix))
        found = np.maximum(np.abs(held) - max(rounding, self.operator.rounding_floor), 0.0)
        rest: Array = np.sqrt(np.maximum(np.square(self._lost) - np.square(found), 0.0))
        return rest

    def _inside(self, coefficients: Array) -> Array:
        """Norms [k] of what products held in the space and T does not; restarts are in rounding."""
        defects: Array = np.linalg.norm(self._defect @ coefficients, axis=0)
        return defects

    def _lose_pending(self) -> None:
        self._lost = self._lost + np.abs(self._pending)
        self._pending = np.zeros(self.size)

    def _close_rule(self, *, is_whole: bool = False) -> None:
        """Keep the quadrature before the space is no longer the start vector's."""
        if self._rule is None:
            self._rule = self._current_rule(is_whole=is_whole)

    def _current_rule(self, *, is_whole: bool) -> Rule:
        ritz = self.ritz()
        return ritz.rule(ritz.coefficients[0] ** 2, is_whole=is_whole)

    def _append_random(self) -> None:
        labels = ("lanczos", "continue", self._num_random)
        self._num_random += 1
        vector = standard_normal(self.operator.dim, self.seed, *labels)
        vector = vector.to(self.basis.device, self.operator.dtype)
        for _ in range(3):  # in a nearly full basis little is left, and more of it is rounding
            self.basis.project_out(vector)
            vector /= torch.linalg.vector_norm(vector, dtype=torch.float64)
        self.basis.append(vector)


_MAX_GROUP = 4


def improved_by_gaps(values: Array, residuals: Array, rounding: float = 0.0) -> Array:
    """Errors of Ritz values, min(r, Σr²/gap) (Temple 1928, Kato 1949; theory.md, section 18).

    The sum runs over a group of one to four neighbours; the gap is the distance from the group to
    the next Ritz values less their residuals. One alone gives Kato and Temple's r²/gap, more give
    Mathias's (1998) bound for a Rayleigh-Ritz block. Where r is a bound, this is an estimate: the
    next Ritz value stands for the next eigenvalue. The rounding of products is added.

    Args:
        values: Ritz values [m], ascending.
        residuals: Of each [m].
        rounding: The part of them that rounding is.

    Returns:
        Errors [m], at most the residuals.
    """
    errors = residuals.copy()
    # Distances from each value down and up to the outer edge of its neighbour's interval.
    down = np.r_[np.inf, np.diff(values) - residuals[:-1]]
    up = np.r_[np.diff(values) - residuals[1:], np.inf]
    for size in range(1, min(_MAX_GROUP, len(values)) + 1):
        first = np.arange(len(values) - size + 1)
        gaps = np.minimum(down[first], up[first + size - 1])
        squares = np.add.reduce([residuals[first + offset] ** 2 for offset in range(size)])
        # A group of all there is has no neighbour, and nothing to be told apart from.
        separate = (gaps > np.sqrt(squares)) & np.isfinite(gaps)
        group = np.full(len(first), np.inf)
        group[separate] = squares[separate] / gaps[separate] + rounding
        for offset in range(size):
            errors[first + offset] = np.minimum(errors[first + offset], group)
    return errors
