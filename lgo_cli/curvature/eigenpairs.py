"""Both ends of a spectrum from one Krylov run, each eigenvalue with a bound that holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy import ndarray as Array
from torch import Tensor

from lgo_cli.curvature.lanczos import Lanczos
from lgo_cli.curvature.operators import WRONG_DERIVATIVE, most_asymmetry
from lgo_cli.curvature.search import (
    Found,
    Search,
    Wanted,
    basis_limit,
    kept_at_restart,
    matvec_limit,
)
from lgo_cli.errors import dtype_name
from lgo_cli.progress import SILENT, Progress
from lgo_cli.seeding import standard_normal
from lgo_cli.vectors import fix_sign_

if TYPE_CHECKING:
    from lgo_cli.curvature.basis import Basis
    from lgo_cli.curvature.lanczos import Ritz
    from lgo_cli.curvature.operators import Operator

NOISE = 1.0
"""Norm of the random vector that is mixed into a start that is given, whose own is 1. Two steps
tell the two apart whatever the share (errors after each step were the same from 0.1 to 1.0), and
more of it sees more of what is new."""


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues at both ends of a spectrum, with the evidence for each.

    All [k + j] come largest first, descending, then the smallest, ascending.

    Attributes:
        top_k: k.
        values: Eigenvalues, float64.
        residual_bounds: Bounds on ‖Hv − λv‖, v of unit norm and H exact: within it of λ lies an
            eigenvalue of H (Parlett 1998, theorem 4.5.1; theory.md, section 11).
        error_estimates: min(r, r²/gap), the error of λ if its neighbours are what they seem; where
            small eigenvalues crowd, the distance to the outer end of the crowd.
        eigenvectors: [k + j, P]; the entry of largest magnitude is positive.
        clusters: Ranks, from 0 in the order above, of eigenvalues that their residuals do not tell
            apart: the space that they span means something, a single vector of it does not.
        has_top_space: Whether the next Ritz value is told apart from the last of the largest: if
            not, which of the two belongs to them is not known, and neither is the space they span.
        num_matvecs: Products spent on finding them.
        num_multiplicity_matvecs: Of these, on the search for further copies.
        num_largest_matvecs: After how many of them all of the largest had converged, for good;
            `None` if they have not, or if the largest or the smallest are all that was wanted.
        num_recheck_matvecs: Products spent on looking at residuals, beside.
        checked_multiplicity: Whether further copies were searched for.
        residual_floor: rtol·floor_share·max|θ|, the least tolerance of any.
        rounding: The part of each bound that allows for the rounding of products.
        unconverged: Which error estimates, and residuals where vectors are meant, are not within
            their tolerances, and what would help.
        warnings: What a reader must know, that among it.
        process: The Krylov space, `None` if nothing was wanted.
    """

    top_k: int
    values: Tensor
    residual_bounds: Tensor
    error_estimates: Tensor
    eigenvectors: Tensor
    clusters: tuple[tuple[int, ...], ...]
    has_top_space: bool
    num_matvecs: int
    num_multiplicity_matvecs: int
    num_recheck_matvecs: int
    checked_multiplicity: bool
    residual_floor: float
    rounding: float = 0.0
    num_largest_matvecs: int | None = None
    unconverged: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    process: Lanczos | None = field(default=None, repr=False, compare=False)

    @property
    def converged(self) -> bool:
        """Whether everything is within its tolerance."""
        return not self.unconverged

    @property
    def largest(self) -> Tensor:
        """The algebraically largest [k], descending."""
        return self.values[: self.top_k]

    @property
    def smallest(self) -> Tensor:
        """The algebraically smallest [j], ascending."""
        return self.values[self.top_k :]

    @property
    def largest_residual_bounds(self) -> Tensor:
        """Of the largest [k]."""
        return self.residual_bounds[: self.top_k]

    @property
    def smallest_residual_bounds(self) -> Tensor:
        """Of the smallest [j]."""
        return self.residual_bounds[self.top_k :]


def extreme_eigenpairs(
    operator: Operator,
    wanted: Wanted,
    *,
    basis: Basis | None = None,
    progress: Progress = SILENT,
) -> Eigenpairs:
    """Find the k largest and j smallest eigenvalues by Lanczos with full reorthogonalisation.

    Eigenvalues are ordered by value, never by magnitude. A step costs one product. It stops when
    each error estimate is within rtol·max(|λ|, floor_share·max|θ|), or down to the rounding of
    products, at two steps in a row or more, since one may look converged by chance (for how many:
    `Search`).

    A Krylov space holds one copy of a repeated eigenvalue. `multiplicity` finds others: it starts
    again from a random vector orthogonal to those found, for as many steps as the first run took,
    and as long as that changes the ends (theory.md, section 11).

    Args:
        operator: H.
        wanted: What is asked.
        basis: Empty, where the basis goes; by default in the operator's memory.
        progress: Told of each product, and of the worst error over its tolerance.

    Raises:
        UsageError: if more pairs are wanted than there are, or than products or vectors allow.
        NumericsError: if a product is not finite.
    """
    limit = matvec_limit(operator.dim, wanted)
    if wanted.num_pairs == 0:
        none = torch.zeros(0, dtype=torch.float64)
        vectors = torch.zeros(0, operator.dim, dtype=operator.dtype, device=operator.device)
        return Eigenpairs(0, none, none, none, vectors, (), True, 0, 0, 0, wanted.multiplicity, 0.0)
    process = Lanczos(operator, _start(operator, wanted), wanted.seed, basis)
    with progress.task("eigenvalues", limit, "products") as task:
        max_basis = basis_limit(operator.dim, operator.dtype, wanted)
        search = Search(process, wanted, limit, max_basis, task)
        found = search.run()
        spent = search.num_steps
        while wanted.multiplicity and found.settled and not process.is_complete:
            if search.num_steps >= limit:
                found = replace(found, settled=False, converged=False)
                break
            previous, (state, values) = found, (found.ritz, found.values)
            process.restart(state, kept_at_restart(process.size, wanted, 2 * wanted.num_pairs))
            process.begin_anew()
            found = search.run(at_least=search.num_steps + spent)
            if not np.any(np.abs(found.values - values) > previous.tolerances):
                break
    pairs = _collect(process, found, wanted)
    pairs = replace(
        pairs,
        num_matvecs=search.num_steps,
        num_multiplicity_matvecs=search.num_steps - spent,
        num_largest_matvecs=search.largest_since if wanted.top_k and wanted.bottom_k else None,
    )
    return _rechecked(operator, pairs, wanted, found.tolerances) if wanted.recheck else pairs


def _start(operator: Operator, wanted: Wanted) -> Tensor:
    """A Gaussian vector; with a warm start or a guess, as much of it as of these.

    Without it the start could stay in a space that misses the largest eigenvalue, and return
    another with a small residual.
    """
    noise = standard_normal(operator.dim, wanted.seed, "hessian", "start")
    given = wanted.guess if wanted.warm_start is None else wanted.warm_start
    if given is None or operator.dim == 1:  # where the two are parallel, and may be opposite
        return noise
    normalize = torch.nn.functional.normalize
    directions = normalize(given.double().cpu().reshape(-1, operator.dim), dim=1)
    start: Tensor = normalize(directions.sum(dim=0), dim=0)
    start += noise * (NOISE / torch.linalg.vector_norm(noise))
    return start


def _collect(process: Lanczos, found: Found, wanted: Wanted) -> Eigenpairs:
    ritz, order = found.ritz, found.order
    unconverged = () if found.converged else (_not_converged(process, found, wanted),)
    vectors = process.vectors(ritz.coefficients[:, order]).to(process.operator.device)
    return Eigenpairs(
        top_k=wanted.top_k,
        values=torch.from_numpy(found.values),
        residual_bounds=torch.from_numpy(ritz.residuals[order]),
        error_estimates=torch.from_numpy(found.errors),
        eigenvectors=fix_sign_(vectors),
        clusters=_clusters(found.values, ritz.residuals[order], wanted.top_k),
        has_top_space=_has_top_space(ritz, wanted.top_k, process.operator.dim),
        num_matvecs=0,
        num_multiplicity_matvecs=0,
        num_recheck_matvecs=0,
        checked_multiplicity=wanted.multiplicity,
        residual_floor=wanted.rtol * found.floor,
        rounding=ritz.rounding,
        unconverged=unconverged,
        warnings=unconverged,
        process=process,
    )


def _clusters(values: Array, residuals: Array, top_k: int) -> tuple[tuple[int, ...], ...]:
    """Runs of neighbours whose intervals overlap, at each end."""
    clusters: list[list[int]] = []
    for end in (range(top_k), range(top_k, len(values))):
        run: list[int] = []
        for index in end:
            if (
                run
                and abs(values[index] - values[index - 1]) > residuals[index - 1 : index + 1].sum()
            ):
                clusters.append(run)
                run = []
            run.append(index)
        clusters.append(run)
    return tuple(tuple(run) for run in clusters if len(run) > 1)


def _has_top_space(ritz: Ritz, top_k: int, dim: int) -> bool:
    """Whether the intervals of the last of the largest and of the next do not overlap."""
    if top_k in (0, dim):
        return True
    last = len(ritz.values) - top_k
    neighbours = slice(last - 1, last + 1)
    gap, residuals = np.diff(ritz.values[neighbours]), ritz.residuals[neighbours]
    return bool(np.all(gap > residuals.sum())) if last else False


def _rechecked(
    operator: Operator, pairs: Eigenpairs, wanted: Wanted, tolerances: Array
) -> Eigenpairs:
    """Look at each residual by a product with the very vector that is returned."""
    seen = []
    for value, vector in zip(pairs.values.tolist(), pairs.eigenvectors, strict=True):
        remainder = operator.matvec(vector).double() - value * vector.double()
        seen.append(torch.linalg.vector_norm(remainder))
    bounds = torch.stack(seen).cpu() + pairs.rounding
    worse = bounds > pairs.residual_bounds + pairs.rounding
    missed = worse & (bounds > torch.from_numpy(tolerances))
    estimates = pairs.error_estimates
    improved = torch.minimum(torch.where(worse, bounds, estimates), bounds)
    crowded = estimates > pairs.residual_bounds  # the extent of a crowd, which no residual lowers
    warnings, unconverged = pairs.warnings, pairs.unconverged
    if bool(worse.any()):
        ratio = float((bounds / pairs.residual_bounds).max())
        found = f"--recheck found a residual {ratio:.2g} times its bound"
        if bool(missed.any()):
            found += "; that eigenvalue did not converge"
            unconverged += (found,)
        warnings += (found,)
    return replace(
        pairs,
        residual_bounds=bounds,
        error_estimates=torch.where(crowded, torch.maximum(estimates, bounds), improved),
        num_recheck_matvecs=wanted.num_pairs,
        unconverged=unconverged,
        warnings=warnings,
    )


def _not_converged(process: Lanczos, found: Found, wanted: Wanted) -> str:
    """Which eigenvalues miss their tolerance by how much, and what would help."""
    if process.asymmetry > most_asymmetry(process.operator) * found.ritz.scale:
        return (
            "the eigenvalues did not converge: products are not symmetric, by "
            f"{process.asymmetry:.2g}; {WRONG_DERIVATIVE}"
        )
    excess = found.excess
    missed = [int(index) for index in np.argsort(-excess, kind="stable") if excess[index] > 1]
    spent = process.num_steps
    if not missed:
        return (
            "the eigenvalues did not converge for certain: they met their tolerance only at the "
            f"last of {spent} products; --max-matvecs raises the limit"
        )
    names = [
        f"largest {index + 1}" if index < wanted.top_k else f"smallest {index - wanted.top_k + 1}"
        for index in missed
    ]
    worst = [f"{name} ×{excess[i]:.2g}" for name, i in zip(names[:5], missed[:5], strict=True)]
    dots = ", …" if len(missed) > 5 else ""
    what = (
        f"{len(missed)} of {len(excess)} eigenvalues did not converge in {spent} products "
        f"(error over tolerance: {', '.join(worst)}{dots})"
    )
    tightest = min(wanted.rtol, wanted.vector_rtol or wanted.rtol)
    least = found.tolerances[missed].min() * tightest / wanted.rtol
    rounding = found.ritz.rounding
    if process.is_complete:  # all that a residual then holds, disagreements of products too
        rounding = float(found.ritz.residuals[found.order[missed]].max())
    if found.settled or rounding > least:
        dtype = dtype_name(process.operator.dtype)
        remedy = "a larger --rtol" + (", or --dtype float64" if dtype == "float32" else "")
        of_what = f"the rounding of {dtype} products alone"
        if process.restart_rounding > rounding / 2:
            of_what, remedy = "the rounding of restarts", "a larger --max-basis"
        why = f"{of_what} allows {rounding:.2g}, for a tolerance of {least:.2g}: it takes {remedy}"
        if found.settled and not process.is_complete:
            why += "; a run ends there, and the eigenvalue of a rank may be another than was found"
        return f"{what}; {why}"
    return f"{what}; --max-matvecs raises the limit"
