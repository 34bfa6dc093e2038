"""Trace and Frobenius norm of an operator: exact on a Krylov basis, estimated beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lgo_cli.errors import NumericsError, UsageError
from lgo_cli.progress import SILENT, Progress
from lgo_cli.seeding import rademacher

if TYPE_CHECKING:
    from lgo_cli.curvature.lanczos import Lanczos

MIN_PROBES = 20
"""Probes before a standard error is believed: its own error is 1/√(2(n − 1)), 16 % at 20."""

MAX_PROBES = 500
"""Probes before giving up: beyond, each halving of the error costs thousands."""

LEAST_BASIS = 30
"""Steps of Lanczos on which a trace rests. On networks of 10⁵ parameters the error at a given total
hardly depends on how it is shared out between 20 and 50 steps."""


@dataclass(frozen=True)
class TraceEstimate:
    """A stochastic trace, and the norm that the same products give.

    Attributes:
        value: tr H.
        standard_error: Of the trace, no less than its rounding; 0 if the basis is the whole space.
        exact_part: tr T, the part of the basis.
        frobenius_norm: ‖H‖_F.
        frobenius_standard_error: Of the norm, no less than its rounding.
        num_probes: n.
        num_matvecs: Products spent here: probes, and steps by which the basis was extended.
        num_total_matvecs: The same with the steps that the basis already had.
        converged: Whether the standard error came down to what was asked.
        rounding: Allowance for the rounding of the value, absolute.
        frobenius_rounding: The same for the norm.
    """

    value: float
    standard_error: float
    exact_part: float
    frobenius_norm: float
    frobenius_standard_error: float
    num_probes: int
    num_matvecs: int
    num_total_matvecs: int
    converged: bool
    rounding: float = 0.0
    frobenius_rounding: float = 0.0


def estimate_trace(
    process: Lanczos,
    *,
    rtol: float = 0.01,
    num_total: int | None = None,
    least_basis: int | None = None,
    max_basis: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> TraceEstimate:
    """Estimate tr H and ‖H‖_F by deflation (Chen & Hallman 2022; Meyer et al. 2021).

    tr H = tr QHQᵀ + tr (I − QᵀQ) H (I − QᵀQ). The first is known from the steps that were done; the
    second is the mean of yᵀHy, y being a random sign vector less its part in the basis (Hutchinson
    1990), with variance 2‖(I − QᵀQ)H(I − QᵀQ)‖²_F at most (theory.md, section 20). ‖H‖²_F likewise
    is Σ‖Hq‖² plus the mean of ‖Hy‖². Probe i does not depend on how many are drawn. If the products
    left suffice to complete the basis, that is done instead, and nothing is estimated.

    Args:
        process: A Krylov space of H, which is extended.
        rtol: Stop at 20 probes or more when the standard error is below this share of the value.
        num_total: Products to spend in all at most instead, those of the basis included.
        least_basis: Vectors to extend the basis to; by default 30, or half of `num_total`.
        max_basis: Vectors that the basis may hold.
        seed: The user's seed.
        progress: Told of each product.

    Raises:
        UsageError: if `num_total` leaves no room for two probes beside the basis.
        NumericsError: if a product is not finite.
    """
    operator = process.operator
    before = operator.num_matvecs
    spent = process.num_steps
    if least_basis is None:
        least_basis = LEAST_BASIS if num_total is None else num_total // 2
    steps = min(least_basis, max_basis or least_basis, operator.dim)
    added = max(0, steps - process.size)
    budget = added + MIN_PROBES if num_total is None else num_total - spent
    if completes(process, budget, max_basis):
        added = budget = operator.dim - process.size
    elif budget < 2:
        raise UsageError(
            f"--trace-matvecs {num_total} leaves no room for probes: the basis took {spent}",
            hint=f"--trace-matvecs {spent + 20}, or more",
        )
    elif num_total is not None:
        added = min(added, budget - 2)
    limit = MAX_PROBES if num_total is None else budget - added
    with progress.task("trace", None if num_total is None else budget, "products") as task:
        for _ in range(added):
            process.step()
            task.advance(1)
        exact = float(np.trace(process.projected))
        probes = _Probes(process, seed)
        error = math.inf if not process.is_complete else 0.0
        while not process.is_complete and len(probes.values) < limit:
            probes.draw()
            values = probes.values
            error = probes.standard_error(stopped=num_total is None)
            estimate = abs(exact + float(np.mean(values)))
            task.advance(1, relative_error=error / estimate if estimate else math.inf)
            if num_total is not None or len(values) < MIN_PROBES:
                continue
            if _is_within(error, rtol, estimate):
                break
            needed = len(values) * (error / max(rtol * estimate, math.ulp(0.0))) ** 2
            if completes(process, min(needed, limit) - len(values), max_basis):
                while not process.is_complete:
                    process.step()
                    task.advance(1)
                probes, error = _Probes(process, seed), 0.0
    exact = float(np.trace(process.projected))
    values, norms = probes.values, probes.squares
    squares = process.squared_norm
    value = exact + (float(np.mean(values)) if values else 0.0)
    square = squares + (float(np.mean(norms)) if norms else 0.0)
    norm = math.sqrt(square)
    # One eigenvalue may be off by all that is allowed, whatever the others take from the sum.
    allowed = process.ritz().rounding
    units = operator.rounding_units * torch.finfo(operator.dtype).eps
    rounding = max(units * abs(value), allowed)
    norm_rounding = math.sqrt(process.size) * allowed  # of each column of T
    norm_error = probes.squares_error() / (2 * norm) if norms and norm > 0 else 0.0
    return TraceEstimate(
        value=value,
        standard_error=max(error, rounding) if values else 0.0,
        exact_part=exact,
        frobenius_norm=norm,
        frobenius_standard_error=max(norm_error, norm_rounding) if values else 0.0,
        num_probes=len(values),
        num_matvecs=operator.num_matvecs - before,
        num_total_matvecs=process.num_steps + len(values),
        converged=math.isfinite(error)
        and (num_total is not None or _is_within(error, rtol, abs(value))),
        rounding=rounding,
        frobenius_rounding=norm_rounding,
    )


def completes(process: Lanczos, num_matvecs: float, max_basis: int | None) -> bool:
    """Whether so many products at most complete the basis, and it may hold as many vectors."""
    dim = process.operator.dim
    missing = dim - process.size
    return not missing or (missing <= num_matvecs and dim <= (max_basis or dim))


def _is_within(error: float, rtol: float, size: float) -> bool:
    """Whether an error is within its tolerance; any is within an infinite one, of zero too."""
    return math.isinf(rtol) or error <= rtol * size


@dataclass
class _Probes:
    """What random sign vectors z, y the part of each beside the basis, have seen of H.

    Attributes:
        process: Of the basis.
        seed: The user's.
        values: yᵀHy of each.
        squares: ‖Hy‖² of each.
    """

    process: Lanczos
    seed: int
    values: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    _total: Tensor | None = None  # Σd over probes, d = z ∘ Cz [P], whose entries sum to yᵀHy
    _squares: float = 0.0  # Σ‖d‖²
    _square: float = 0.0  # ‖Σd‖²

    def draw(self) -> None:
        """Spend a product on one more."""
        operator, device = self.process.operator, self.process.basis.device
        signs = rademacher(operator.dim, self.seed, "hessian", "trace", len(self.values))
        signs = signs.to(device, operator.dtype)
        probe = signs.clone()
        for _ in range(2):
            self.process.project_out(probe)
        probe = probe.to(operator.device)
        product = operator.matvec(probe)
        whole = product.double()
        numbers = [torch.dot(probe.double(), whole), torch.dot(whole, whole)]
        beside = product.to(device)
        self.process.project_out(beside)
        parts = beside.double() * signs
        self._total = parts if self._total is None else self._total.add_(parts)
        numbers += [torch.dot(x, x).to(operator.device) for x in (parts, self._total)]
        # One synchronisation a probe, as a step has.
        value, square, inner, self._square = torch.stack(numbers).tolist()
        if not math.isfinite(value):
            raise NumericsError("a product with the curvature matrix is not finite")
        self.values.append(value)
        self.squares.append(square)
        self._squares += inner

    def standard_error(self, *, stopped: bool) -> float:
        """Of the mean of the values; see `_standard_error`."""
        return max(_standard_error(self.values, stopped=stopped), self._least_error())

    def squares_error(self) -> float:
        """Of the mean of the squares.

        Where few directions are left, values and squares rise and fall together. That part of their
        spread, by least squares, is widened as the values' is.
        """
        error, of_values = _standard_error(self.squares), _standard_error(self.values)
        widening = math.sqrt(max(0.0, self._least_error() ** 2 - of_values**2))
        if not 0 < widening < math.inf or not of_values:
            return error
        covariance = np.cov(self.values, self.squares)
        return math.hypot(error, covariance[0, 1] / covariance[0, 0] * widening)

    def _least_error(self) -> float:
        """What the vectors d say of the standard error of the values' mean.

        The variance of yᵀHy is twice the sum of those of the d_i (theory.md, section 20). Where few
        directions are left, a low mean comes with a small s, and not with as small an error by d.
        """
        n = len(self.values)
        if n < 2:
            return math.inf
        return math.sqrt(2 * max(0.0, self._squares - self._square / n) / (n * (n - 1)))


def _standard_error(samples: list[float], *, stopped: bool = False) -> float:
    """Of the mean of n samples, a little wider than s/√n where they are few.

    So that twice it holds as often as two standard deviations do, 95.4 %: Student's quantile there
    is 2 + (2³ + 2)/(4(n − 1)) to first order (Fisher & Cornish 1960). A rule that stops on it stops
    early where s happens to be small, and finds s² too small by 2/n in the mean: once more 1/n
    (Woodroofe 1977; theory.md, section 20).

    Args:
        samples: What was drawn [n].
        stopped: Whether n was chosen by looking at this error.
    """
    n = len(samples)
    if n < 2:
        return math.inf
    widening = (2.25 if stopped else 1.25) / (n - 1)
    return float(np.std(samples, ddof=1)) / math.sqrt(n) * (1 + widening)
