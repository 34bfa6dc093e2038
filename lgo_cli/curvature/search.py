"""Stepping a Krylov space until what is wanted of a spectrum has converged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray as Array

from lgo_cli.curvature.lanczos import RESIDUAL_FLOOR
from lgo_cli.errors import UsageError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from lgo_cli.curvature.lanczos import Lanczos, Ritz
    from lgo_cli.progress import Task

DEFAULT_MAX_MATVECS = 300
"""Products before giving up, unless many pairs are wanted. The ten largest of a trained network
take 20 to 80; the smallest, at the dense end of the spectrum, up to 200."""

CLEARLY = 0.1
"""Share of a tolerance below which an error is clearly within it."""

DEFAULT_BASIS_BYTES = 3 * 2**30
"""Memory that a basis takes before a run restarts. A constant and not a share of the machine's,
since a restart moves bits."""

STALLED = 0.5
"""Share of what it was to which each residual comes down at a step, or a step more is looked at. A
Ritz value can settle at the eigenvalue of the next rank where the start vector hardly sees that of
its own; before that comes up, residuals cease to fall (misconvergence; Parlett, Simon & Stringer
1982). On 800 starts in spectra of five small networks, 8 missed one of six eigenvalues, and 14
without this; it costs one product in three runs."""

STALLED_ALONE = 0.3
"""The same where a single pair is wanted, for half as many steps more as there were, or until its
residual falls again: it converges sooner than one that is hidden comes up. On 600 spectra of twelve
random outliers, 5 runs ended at another eigenvalue, and 22 at two steps in a row; it costs a
product or two there, and none on a ResNet-20 (`tests/benchmarks/bounds.py`). A warm start, which
holds what is wanted, gets one step more."""

APART = 10.0
"""Residuals between two small Ritz values that are told apart: by Cantelli's inequality at most one
percent of a Ritz vector then belongs to eigenvalues as far off as the other."""

WARM_STEPS = 6
"""Least number of steps from a warm start for a single pair. Where two eigenvalues have changed
places since, it holds the second, and converges to that at once; the largest comes up from the
random half of the start."""

WARM_MARGIN = 3.0
"""Residuals of the Ritz value behind that single pair that must not reach up to it: by Cantelli's
inequality a tenth of its Ritz vector at most belongs to eigenvalues up there. On 300 spectra of
random outliers, each from its second eigenvector, 30 runs stayed at that, and 148 without this and
WARM_STEPS (`tests/benchmarks/bounds.py`)."""

PROMPT_STEPS = 30
"""Steps up to which convergence at two steps in a row is believed. After more, it must last for two
and a third of the steps beyond: an eigenvector that the start vector hardly sees (by a hundredth of
the usual) comes up late, and a run that went slowly looks converged for longer before it does. On
200 starts in a uniform spectrum of 200 eigenvalues, 3 missed one without this, and none with."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a spectrum, and what it may cost.

    Attributes:
        top_k: How many of the largest eigenvalues.
        bottom_k: How many of the smallest.
        rtol: Tolerance on the error estimate of each, relative to
            max(|θ|, floor_share·max|θ|).
        vector_rtol: Tolerance on each residual in the same measure, where eigenvectors are meant.
        max_matvecs: Products to spend at most; by default as `matvec_limit` says.
        max_basis: Vectors [P] to hold at most; by default as many as fit into 3 GiB, and no
            fewer than three times what the search needs.
        multiplicity: Whether to search for further copies of repeated eigenvalues.
        warm_start: Vectors [n, P] to begin from, such as the eigenvectors of a step before.
        guess: A vector [P] that is thought to lie in the space of the largest, such as the
            gradient; half of the start, unless there is a warm one. The rest is random.
        recheck: Whether to spend one product on each eigenvalue to see its residual.
        seed: Of the starting vector.
        floor_share: Share of max|θ| below which an eigenvalue's size tightens its tolerance no
            further. At one, all are wanted to the same absolute error.
        scale: Least max|θ| that this is a share of: for a block, that of the whole matrix.

    Raises:
        UsageError: if `top_k` or `bottom_k` is negative.
    """

    top_k: int
    bottom_k: int = 0
    rtol: float = 1e-3
    vector_rtol: float | None = None
    max_matvecs: int | None = None
    max_basis: int | None = None
    multiplicity: bool = False
    warm_start: Tensor | None = None
    guess: Tensor | None = None
    recheck: bool = False
    seed: int = 0
    floor_share: float = RESIDUAL_FLOOR
    scale: float = 0.0

    def __post_init__(self) -> None:
        if min(self.top_k, self.bottom_k) < 0:
            raise UsageError(f"no number of eigenvalues: {min(self.top_k, self.bottom_k)}")

    @property
    def num_pairs(self) -> int:
        """How many are wanted at both ends, k + j."""
        return self.top_k + self.bottom_k

    @property
    def is_given_start(self) -> bool:
        """Whether a run begins elsewhere than at a random vector."""
        return self.warm_start is not None or self.guess is not None


def matvec_limit(dim: int, wanted: Wanted) -> int:
    """Products that `extreme_eigenpairs` may spend, in a single run never more than P.

    By default 300, or 20 for each wanted pair if that is more: wanting more, one goes deeper into
    the spectrum, where eigenvalues lie closer.

    Raises:
        UsageError: if more pairs are wanted than there are, or than products may be spent.
    """
    pairs = wanted.num_pairs
    if pairs > dim:
        bottom_k = min(wanted.bottom_k, dim - min(wanted.top_k, 1))
        top_k = min(wanted.top_k, dim - bottom_k)
        raise UsageError(
            f"{wanted.top_k} largest and {wanted.bottom_k} smallest eigenvalues are more than the "
            f"{dim} there are",
            hint=f"--top-k {top_k} --bottom-k {bottom_k}",
        )
    limit = wanted.max_matvecs
    if limit is None:
        limit = max(DEFAULT_MAX_MATVECS, 20 * pairs)
    if limit < pairs:
        raise UsageError(f"--max-matvecs {limit} is fewer than the {pairs} eigenvalues wanted")
    repeats = wanted.multiplicity or wanted.max_basis is not None
    return limit if repeats else min(dim, limit)


def basis_limit(dim: int, dtype: torch.dtype, wanted: Wanted) -> int:
    """Vectors that the basis may hold before the run restarts.

    Raises:
        UsageError: if they are too few for what is wanted.
    """
    least = 2 * wanted.num_pairs + 4
    if wanted.max_basis is not None:
        if wanted.max_basis < min(least, dim):
            raise UsageError(
                f"--max-basis {wanted.max_basis} is too few to find {wanted.num_pairs} eigenvalues",
                hint=f"at least {min(least, dim)}",
            )
        return wanted.max_basis
    return max(3 * least, DEFAULT_BASIS_BYTES // (dim * dtype.itemsize))


@dataclass(frozen=True)
class Found:
    """The wanted ends of a Ritz decomposition, largest first, then the smallest.

    Attributes:
        ritz: All of it.
        order: Indices of the wanted pairs [k + j].
        errors: Error estimates, each for the eigenvalue of its rank [k + j].
        tolerances: On them [k + j].
        floor: floor_share·max|θ|, absolute.
        settled: Whether nothing is left to be gained: each converged, or down to rounding.
        converged: Whether all is within its tolerance.
        excess: Error over tolerance, the worse of value and vector [k + j].
    """

    ritz: Ritz
    order: NDArray[np.intp]
    errors: Array
    tolerances: Array
    floor: float
    settled: bool
    converged: bool
    excess: Array

    @property
    def values(self) -> Array:
        """Of the wanted pairs [k + j]."""
        return self.ritz.values[self.order]

    @property
    def spreads(self) -> Array:
        """Their residuals without the allowance for rounding [k + j]."""
        return self.ritz.residuals[self.order] - self.ritz.rounding

    def stalled_since(self, before: Found | None, share: float) -> bool:
        """Whether a residual that is above rounding did not fall to a share of what it was."""
        if before is None:
            return False
        return bool(np.any(self.spreads > np.maximum(share * before.spreads, self.ritz.rounding)))


class Search:
    """Steps a process until what is wanted has converged.

    Attributes:
        num_steps: Products spent.
        largest_since: How many of them had been spent when all of the largest were first seen to be
            within their tolerance, from where on they stayed there; `None` if they are not.
    """

    def __init__(
        self, process: Lanczos, wanted: Wanted, limit: int, max_basis: int, task: Task
    ) -> None:
        self.process = process
        self.wanted = wanted
        self.limit = limit
        self.max_basis = max_basis
        self.task = task
        self.num_steps = 0
        self.largest_since: int | None = None

    def run(self, at_least: int = 0) -> Found:
        """Step until all wanted eigenvalues are there, or the limit is reached.

        Args:
            at_least: Total of steps before which nothing is believed.
        """
        passed = settled = None  # the step since which all has converged, or come to its end
        before: Found | None = None
        least = min(self.wanted.num_pairs, self.process.operator.dim)
        if self.wanted.warm_start is not None and self.wanted.num_pairs == 1:
            at_least = max(at_least, WARM_STEPS)
        while True:
            if self.process.size >= self.max_basis and not self.process.is_complete:
                ritz = self.process.ritz()
                extra = (self.max_basis - self.wanted.num_pairs) // 2
                self.process.restart(ritz, kept_at_restart(self.process.size, self.wanted, extra))
            self.process.step()
            self.num_steps += 1
            self.task.advance(1)
            at_end = self.num_steps >= self.limit or self.process.is_complete
            early = self.process.size < least or self.num_steps < at_least
            if not at_end and (early or not self._is_checked()):
                continue
            found = self._look()
            clear = not self.wanted.is_given_start or self._is_clear(found)
            self.task.advance(0, excess=float(found.excess.max()))
            steps = self.num_steps
            largest = bool(np.all(found.excess[: self.wanted.top_k] <= 1))
            self.largest_since = (self.largest_since or steps) if largest else None
            passed = (passed or steps) if found.converged and clear else None
            settled = (settled or steps) if found.settled and clear else None
            shortest, lasting = self._patience(found, before)
            before = found
            # What has converged at this very step, by chance, may be down to rounding for long.
            since = passed if found.converged else settled
            if at_end or (since is not None and steps - since >= lasting):
                complete = self.process.is_complete
                return replace(
                    found,
                    settled=complete or (settled is not None and steps - settled >= shortest),
                    converged=found.converged
                    and (complete or (passed is not None and steps - passed >= shortest)),
                )

    def _patience(self, found: Found, before: Found | None) -> tuple[int, int]:
        """For how many more steps convergence has to last: at the least, and in this case.

        At the least one, or none for a single pair from a warm start that is clearly within its
        tolerance. In this case also a third of the steps beyond `PROMPT_STEPS`; for several pairs,
        of which the last may be of too low a rank, one if the worst is not clearly within its
        tolerance and one if a residual stalled; for a single pair that stalled, half of the steps
        so far, or one from a warm start.
        """
        warm, several = self.wanted.warm_start is not None, self.wanted.num_pairs > 1
        clearly = bool(found.excess.max() <= CLEARLY)
        shortest = int(not warm or several or not clearly)
        lasting = shortest + max(0, self.process.size - PROMPT_STEPS) // 3
        if several:
            lasting += int(not clearly) + int(found.stalled_since(before, STALLED))
        elif found.stalled_since(before, STALLED_ALONE):
            lasting += 1 if warm else self.num_steps // 2
        return shortest, lasting

    def _is_checked(self) -> bool:
        """Whether to solve for Ritz pairs at this size.

        Always at first, then every twentieth part, so that the m³ of a solution stay small beside
        the products; and at the last two steps, so that a run that just makes it is seen to.
        """
        size = self.process.size
        return self.num_steps >= self.limit - 1 or size % max(1, size // 20) == 0

    def _is_clear(self, found: Found) -> bool:
        """Whether the next Ritz values behind the wanted ones are apart from them, or converged.

        After a given start the wanted ones may converge before its random part has shown what else
        there is. The next one's residual must not reach up to them, unless it is down to rounding.
        """
        ritz, wanted, size = found.ritz, self.wanted, self.process.size
        is_warm = wanted.warm_start is not None
        margin = WARM_MARGIN if is_warm and wanted.num_pairs == 1 else 1.0
        low, high = ritz.values - ritz.residuals, ritz.values + ritz.residuals
        top, bottom = size - 1 - wanted.top_k, wanted.bottom_k
        if top < bottom:
            return False
        enough = max(wanted.rtol * found.floor / wanted.floor_share, 2 * ritz.rounding)
        clear = True
        if wanted.top_k:
            reach = ritz.values[top] + margin * ritz.residuals[top]
            clear &= bool(reach < low[top + 1] or ritz.estimates[top] <= enough)
        if wanted.bottom_k and is_warm:  # a guess is one of the top
            reach = ritz.values[bottom] - margin * ritz.residuals[bottom]
            clear &= bool(reach > high[bottom - 1] or ritz.estimates[bottom] <= enough)
        return clear

    def _look(self) -> Found:
        wanted, ritz, size = self.wanted, self.process.ritz(), self.process.size
        top = np.arange(size - 1, size - 1 - wanted.top_k, -1)
        order = np.r_[top, np.arange(wanted.bottom_k)].astype(int)
        values, residuals = ritz.values[order], ritz.residuals[order]
        floor = wanted.floor_share * max(ritz.scale, wanted.scale)
        scales = np.maximum(np.abs(values), floor)
        tiny = np.finfo(float).tiny
        tolerances = wanted.rtol * scales
        errors = ranked_errors(ritz, order, wanted.top_k)
        excess = errors / np.maximum(tolerances, tiny)
        if wanted.vector_rtol is not None:
            excess = np.maximum(excess, residuals / np.maximum(wanted.vector_rtol * scales, tiny))
        if self.process.squared_norm == 0:
            excess[:] = 0.0  # all products are zero, and so is what is wanted
        hopeless = (excess > 1) & (ritz.estimates[order] <= 2 * ritz.rounding)
        if wanted.vector_rtol is not None:
            hopeless &= residuals <= 2 * ritz.rounding
        within = excess <= 1
        return Found(
            ritz=ritz,
            order=order,
            errors=errors,
            tolerances=tolerances,
            floor=floor,
            settled=bool((within | hopeless).all()),
            converged=bool(within.all()),
            excess=excess,
        )


def ranked_errors(ritz: Ritz, order: NDArray[np.intp], top_k: int) -> Array:
    """Error of each wanted Ritz value as that of the eigenvalue of its rank [k + j].

    Its estimate, except where eigenvalues below the floor crowd. There a Ritz vector may mix
    several, with θ their mean and r their standard deviation, and the eigenvalue of its rank may
    lie as far out as the outermost neighbour within `APART` residuals (theory.md, section 18).
    Rounding moves each eigenvalue, and keeps their order.

    Args:
        ritz: All Ritz pairs.
        order: Indices of the wanted [k + j], from the outermost of each end.
        top_k: k.
    """
    values, errors = ritz.values[order], ritz.estimates[order]
    spreads = ritz.residuals[order] - ritz.rounding
    crowded = ritz.crowded[order]
    for end, outward in ((range(top_k), 1), (range(top_k, len(order)), -1)):
        edge = -np.inf
        for i in end:
            near = i > end.start and (
                abs(values[i] - values[i - 1]) <= APART * spreads[i - 1 : i + 1].max()
            )
            edge = max(edge if near else -np.inf, outward * values[i] + spreads[i])
            if crowded[i] and near:
                errors[i] = max(errors[i], edge - outward * values[i] + ritz.rounding)
    return errors


def kept_at_restart(size: int, wanted: Wanted, extra: int) -> Array:
    """Ritz vectors to keep at a restart: the wanted, and some more at the same ends."""
    share = extra * wanted.top_k // wanted.num_pairs
    top = wanted.top_k + share if wanted.top_k else 0
    bottom = wanted.bottom_k + extra - share if wanted.bottom_k else 0
    total = min(top + bottom, size - 1)
    bottom = min(bottom, total)
    top = total - bottom
    kept: Array = np.r_[np.arange(bottom), np.arange(size - top, size)].astype(int)
    return kept
