"""Both ends of a spectrum from one Krylov run, each eigenvalue with a bound that holds.

Notation: H the operator [P, P], Q the basis [m, P] with orthonormal rows, T = tridiag(β, α, β) the
projected matrix [m, m], (θ, s) its eigenpairs, y = Qᵀs the Ritz vector of θ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lgo_cli.errors import NumericsError, UsageError
from lgo_cli.progress import SILENT, Progress
from lgo_cli.seeding import standard_normal
from lgo_cli.vectors import fix_sign

if TYPE_CHECKING:
    from lgo_cli.curvature.operators import Operator

Array = np.ndarray[Any, Any]

RESIDUAL_FLOOR = 0.01
"""Share of max|θ| below which an eigenvalue's own size no longer sets its tolerance: float32
products cannot resolve a small eigenvalue beside a large one."""

DEFAULT_MAX_MATVECS = 300
"""Products before giving up, unless many pairs are wanted. The ten largest of a trained network
take 20 to 80; the smallest, at the dense end of the spectrum, up to 200. The basis keeps one vector
[P] for each product spent."""

_BLOCK_ROWS = 32


class Ritz(NamedTuple):
    """What a Krylov space of m steps knows of the spectrum.

    Attributes:
        values: Ritz values θ [m], ascending.
        coefficients: Eigenvectors s of T [m, m], in columns.
        residuals: Bounds on ‖Hy − θy‖/‖y‖ [m], of which `rounding` is a part.
        rounding: Allowance for the rounding of products, which no further step lowers.
    """

    values: Array
    coefficients: Array
    residuals: Array
    rounding: float


class Lanczos:
    """The Lanczos process with full reorthogonalisation, one step at a time.

    Textbook Lanczos (Golub & Van Loan 2013, algorithm 10.1.1) orthogonalises against the last two
    vectors only, and in floating point returns copies of eigenvalues as soon as one has converged.
    Here each new vector is orthogonalised against all, twice ("twice is enough", Parlett 1998,
    section 6.9). What that takes away beside α and β is kept as the defect E of

        H Qᵀ = Qᵀ (T + E) + R,

    where column m of R is β_m q_{m+1}, and column j < m is zero unless the run broke down at j.
    The residual of a Ritz pair, QᵀEs + Rs, is thus known without a product.

    Args:
        operator: H.
        start: Vector [P], not zero; normalised here.
        seed: For the vector with which a run goes on after an invariant subspace.

    Attributes:
        size: m, steps done.
    """

    def __init__(self, operator: Operator, start: Tensor, seed: int = 0) -> None:
        self.operator = operator
        self.seed = seed
        self.size = 0
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self._columns: list[Array] = []
        self._remainders: list[float] = []
        self._blocks: list[Tensor] = []
        self._num_rows = 0
        self._append(start.to(operator.device, operator.dtype))

    @property
    def is_complete(self) -> bool:
        """Whether the basis spans the whole space, so that T is H in another basis."""
        return self.size == self.operator.dim

    def step(self) -> None:
        """Spend one product and extend the basis by one vector.

        Raises:
            NumericsError: if the product is not finite.
        """
        newest = self._blocks[-1][(self._num_rows - 1) % _BLOCK_ROWS]
        product = self.operator.matvec(newest)
        first = self._project_out(product)
        second = self._project_out(product)
        # One synchronisation a step: all numbers that decide come over together.
        norm = torch.linalg.vector_norm(product, dtype=torch.float64)
        numbers = torch.cat([first + second, norm[None]]).cpu().numpy()
        column, beta = numbers[:-1], float(numbers[-1])
        if not np.isfinite(numbers).all():
            raise NumericsError("a Hessian-vector product is not finite")
        self.alphas.append(float(column[-1]))
        self._columns.append(column)
        self._remainders.append(beta)
        self.size += 1
        if self.is_complete:
            self.betas.append(0.0)
            return
        if beta <= 8 * torch.finfo(self.operator.dtype).eps * self._scale():
            # An invariant subspace: T falls apart into blocks, and the run goes on in what is left.
            self.betas.append(0.0)
            self._append_random()
            return
        self.betas.append(beta)
        self._append(product)

    def ritz(self) -> Ritz:
        """Ritz pairs, each with a bound on its residual against the exact operator.

        Three parts: what leaves the space at its last vector, |β_m s_m|, and at breakdowns; what
        orthogonalisation removed and T does not hold, ‖Es‖; and the rounding of products. Of that,
        E shows the part that makes them asymmetric, in so far as it lies in the basis: the largest
        column is allowed once more for the part outside, and `operator.rounding` for a symmetric
        part, which no step can see. Rounding of the recurrence is a few eps·‖H‖, within the same.
        """
        T = np.diag(self.alphas)
        off = np.arange(self.size - 1)
        T[off, off + 1] = T[off + 1, off] = self.betas[:-1]
        values, coefficients = np.linalg.eigh(T)
        left = np.where(np.array(self.betas) == 0, self._remainders, 0.0)
        left[-1] = self._remainders[-1]
        outside = left @ np.abs(coefficients)
        defect = self._defect()
        inside = np.linalg.norm(defect @ coefficients, axis=0)
        eps = torch.finfo(self.operator.dtype).eps
        rounding = self._rounding_units * eps * np.abs(values).max()
        rounding += np.linalg.norm(defect, axis=0).max()
        return Ritz(values, coefficients, np.hypot(outside, inside) + rounding, float(rounding))

    @cached_property
    def _rounding_units(self) -> float:
        """Asked once, since the answer may need a synchronisation."""
        return self.operator.rounding

    def combine(self, coefficients: Array) -> Tensor:
        """Ritz vectors [k, P], unit norm, from columns of coefficients [m, k]."""
        weights = torch.from_numpy(coefficients.T.copy()).to(
            self.operator.device, self.operator.dtype
        )
        total = torch.zeros(
            weights.shape[0],
            self.operator.dim,
            dtype=self.operator.dtype,
            device=self.operator.device,
        )
        for index, block in enumerate(self._blocks):
            rows = weights[:, index * _BLOCK_ROWS : (index + 1) * _BLOCK_ROWS]
            total += rows @ block[: rows.shape[1]]
        return torch.nn.functional.normalize(total, dim=1)

    def _defect(self) -> Array:
        """E [m, m]: what orthogonalisation removed that T does not hold."""
        E = np.zeros((self.size, self.size))
        for j, column in enumerate(self._columns):
            E[: j + 1, j] = column
            E[j, j] -= self.alphas[j]
            if j > 0:
                E[j - 1, j] -= self.betas[j - 1]
        return E

    def _scale(self) -> float:
        return max(*map(abs, self.alphas), *self.betas, 0.0)

    def _rows(self) -> list[Tensor]:
        full, rest = divmod(self._num_rows, _BLOCK_ROWS)
        return [*self._blocks[:full], *([self._blocks[full][:rest]] if rest else [])]

    def _project_out(self, vector: Tensor) -> Tensor:
        """Subtract from `vector`, in place, its part in the basis; return the coefficients [m]."""
        rows = self._rows()
        coefficients = torch.cat([block @ vector for block in rows])
        for block, part in zip(rows, coefficients.split([len(b) for b in rows]), strict=True):  # type: ignore[no-untyped-call]
            vector.addmv_(block.T, part, alpha=-1)
        return coefficients.double()

    def _append(self, vector: Tensor) -> None:
        row = self._num_rows % _BLOCK_ROWS
        if row == 0:
            rows = min(_BLOCK_ROWS, self.operator.dim - self._num_rows)
            self._blocks.append(vector.new_empty(rows, self.operator.dim))
        norm = torch.linalg.vector_norm(vector, dtype=torch.float64)
        self._blocks[-1][row] = (vector / norm).to(vector.dtype)
        self._num_rows += 1

    def _append_random(self) -> None:
        vector = standard_normal(self.operator.dim, self.seed, "lanczos", "continue", self.size)
        vector = vector.to(self.operator.device, self.operator.dtype)
        for _ in range(3):  # in a nearly full basis little is left, and more of it is rounding
            self._project_out(vector)
            vector /= torch.linalg.vector_norm(vector)
        self._append(vector)


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues at both ends of a spectrum, with the evidence for each.

    Attributes:
        largest: The algebraically largest [k], descending, float64.
        smallest: The algebraically smallest [j], ascending, float64.
        largest_residual_bounds: Bounds on ‖Hv − λv‖ for each [k], v of unit norm and H exact:
            within it of λ lies an eigenvalue of H (Parlett 1998, theorem 4.5.1; theory.md,
            section 11).
        smallest_residual_bounds: The same [j].
        eigenvectors: [k + j, P], largest first; the entry of largest magnitude is positive.
        num_matvecs: Products spent.
        converged: Whether each residual is ≤ rtol·max(|λ|, 0.01·max|θ|).
        residual_floor: rtol·0.01·max|θ|, the least tolerance of any.
        rounding: The part of each bound that allows for the rounding of products.
        warnings: What a reader must know.
    """

    largest: Tensor
    smallest: Tensor
    largest_residual_bounds: Tensor
    smallest_residual_bounds: Tensor
    eigenvectors: Tensor
    num_matvecs: int
    converged: bool
    residual_floor: float
    rounding: float = 0.0
    warnings: tuple[str, ...] = ()


def extreme_eigenpairs(
    operator: Operator,
    *,
    top_k: int,
    bottom_k: int,
    rtol: float = 1e-3,
    max_matvecs: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Eigenpairs:
    """Find the k largest and j smallest eigenvalues by Lanczos with full reorthogonalisation.

    Costs one product a step; stops when every wanted residual is ≤ rtol·max(|λ|, 0.01·max|θ|) at
    two checks in a row, since an early step may look converged by chance, or when those that are
    not have come down to the rounding of products, which no step lowers. Eigenvalues are ordered
    by value, never by magnitude. Of a repeated eigenvalue one copy is found: a Krylov space holds
    no more (theory.md, section 11).

    Args:
        operator: H.
        top_k: k, may be 0.
        bottom_k: j, may be 0.
        rtol: Relative tolerance on residuals.
        max_matvecs: Products to spend at most; by default as `matvec_limit` says.
        seed: Of the starting vector.
        progress: Told of each product, and of the worst residual over its tolerance.

    Raises:
        UsageError: if more pairs are wanted than there are, or than products may be spent.
        NumericsError: if a product is not finite.
    """
    limit = matvec_limit(operator.dim, top_k, bottom_k, max_matvecs)
    wanted = top_k + bottom_k
    if wanted == 0:
        none = torch.zeros(0, dtype=torch.float64)
        vectors = torch.zeros(0, operator.dim, dtype=operator.dtype, device=operator.device)
        return Eigenpairs(none, none, none, none, vectors, 0, True, 0.0)

    start_matvecs = operator.num_matvecs
    process = Lanczos(operator, standard_normal(operator.dim, seed, "hessian", "start"), seed)
    passed = settled = 0
    with progress.task("eigenvalues", limit, "products") as task:
        while True:
            process.step()
            task.advance(1)
            if process.size < wanted or not _is_checked(process.size, limit):
                continue
            ritz = process.ritz()
            top = np.arange(process.size - 1, process.size - 1 - top_k, -1)
            order = np.r_[top, np.arange(bottom_k)].astype(int)
            values, residuals = ritz.values[order], ritz.residuals[order]
            floor = RESIDUAL_FLOOR * float(np.abs(ritz.values).max())
            tolerances = rtol * np.maximum(np.abs(values), floor)
            excess = residuals / np.maximum(tolerances, np.finfo(float).tiny)
            task.advance(0, excess=float(excess.max()))
            within = residuals <= tolerances
            hopeless = (ritz.rounding > tolerances) & (residuals <= 2 * ritz.rounding)
            passed = passed + 1 if within.all() else 0
            settled = settled + 1 if (within | hopeless).all() else 0
            if settled == 2 or process.size == limit:
                break
    converged = bool(within.all()) and (passed >= 2 or process.is_complete)
    warnings = () if converged else (_not_converged(process, ritz, excess, tolerances, top_k),)
    vectors = process.combine(ritz.coefficients[:, order])
    found, bounds = torch.from_numpy(values), torch.from_numpy(residuals)
    return Eigenpairs(
        largest=found[:top_k],
        smallest=found[top_k:],
        largest_residual_bounds=bounds[:top_k],
        smallest_residual_bounds=bounds[top_k:],
        eigenvectors=torch.stack([fix_sign(vector) for vector in vectors]),
        num_matvecs=operator.num_matvecs - start_matvecs,
        converged=converged,
        residual_floor=rtol * floor,
        rounding=ritz.rounding,
        warnings=warnings,
    )


def matvec_limit(dim: int, top_k: int, bottom_k: int, max_matvecs: int | None) -> int:
    """Products that `extreme_eigenpairs` may spend, never more than P.

    Args:
        dim: P.
        top_k: k.
        bottom_k: j.
        max_matvecs: What the user allows; `None` is 300, or 20 for each wanted pair if that is
            more: wanting more, one goes deeper into the spectrum, where eigenvalues lie closer.

    Raises:
        UsageError: if more pairs are wanted than there are, or than products may be spent.
    """
    wanted = top_k + bottom_k
    if wanted > dim:
        raise UsageError(
            f"{top_k} largest and {bottom_k} smallest eigenvalues are more than the {dim} there are"
        )
    if max_matvecs is None:
        max_matvecs = max(DEFAULT_MAX_MATVECS, 20 * wanted)
    if max_matvecs < wanted:
        raise UsageError(
            f"--max-matvecs {max_matvecs} is fewer than the {wanted} eigenvalues wanted"
        )
    return min(dim, max_matvecs)


def _is_checked(size: int, limit: int) -> bool:
    """Whether to solve for Ritz pairs at this size.

    Always at first, then every twentieth part, so that the m³ of a solution stay small beside the
    products; and at the last two steps, so that a run that just makes it is seen to.
    """
    return size >= limit - 1 or size % max(1, size // 20) == 0


def _not_converged(
    process: Lanczos, ritz: Ritz, excess: Array, tolerances: Array, top_k: int
) -> str:
    """Which eigenvalues miss their tolerance by how much, and what would help."""
    missed = [int(index) for index in np.argsort(-excess, kind="stable") if excess[index] > 1]
    if not missed:
        return (
            "the eigenvalues did not converge for certain: they met their tolerance only at the "
            f"last of {process.size} products; --max-matvecs raises the limit"
        )
    names = [
        f"largest {index + 1}" if index < top_k else f"smallest {index - top_k + 1}"
        for index in missed
    ]
    worst = [f"{name} ×{excess[i]:.2g}" for name, i in zip(names[:5], missed[:5], strict=True)]
    dots = ", …" if len(missed) > 5 else ""
    what = (
        f"{len(missed)} of {len(excess)} eigenvalues did not converge in {process.size} products "
        f"(residual over tolerance: {', '.join(worst)}{dots})"
    )
    if ritz.rounding > tolerances[missed].min():
        dtype = str(process.operator.dtype).removeprefix("torch.")
        remedy = "a larger --rtol" + (", or --dtype float64" if dtype == "float32" else "")
        return (
            f"{what}; the rounding of {dtype} products alone allows {ritz.rounding:.2g}, above a "
            f"tolerance of {tolerances[missed].min():.2g}: it takes {remedy}"
        )
    return f"{what}; --max-matvecs raises the limit"
