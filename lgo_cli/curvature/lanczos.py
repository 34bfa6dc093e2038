"""Both ends of a spectrum from one Krylov run, each eigenvalue with a bound that holds.

Notation: H the operator [P, P], Q the basis [m, P] with orthonormal rows, T = tridiag(β, α, β) the
projected matrix [m, m], (θ, s) its eigenpairs, y = Qᵀs the Ritz vector of θ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
"""Products before giving up. The ten largest of a trained network take 30 to 80; the smallest, at
the dense end of the spectrum, up to 200."""

ROUNDING_UNITS = 16
"""Allowance for the rounding of products, in units of eps·max|θ|. A product sums over samples in
blocks, with an error of a few eps; the tests compare with float64 and find at most 6."""

_BLOCK_ROWS = 32


class Lanczos:
    """The Lanczos process with full reorthogonalisation, one step at a time.

    Textbook Lanczos (Golub & Van Loan 2013, algorithm 10.1.1) orthogonalises against the last two
    vectors only, and in floating point returns copies of eigenvalues as soon as one has converged.
    Here each new vector is orthogonalised against all, twice ("twice is enough", Parlett 1998,
    section 6.9). What that takes away beside α and β is kept in `defect`, the matrix E of

        H Qᵀ = Qᵀ (T + E) + β_m q_{m+1} e_mᵀ,

    so that the residual of a Ritz pair, (Qᵀ E s, β_m s_m q_{m+1}), is known without a product.

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

    def ritz(self) -> tuple[Array, Array, Array]:
        """Ritz values [m] ascending, eigenvectors of T [m, m] in columns, residual norms [m].

        Residuals are ‖Hy − θy‖ for unit y, with an allowance for the products' rounding.
        """
        T = np.diag(self.alphas)
        off = np.arange(self.size - 1)
        T[off, off + 1] = T[off + 1, off] = self.betas[:-1]
        values, vectors = np.linalg.eigh(T)
        outside = self.betas[-1] * vectors[-1]
        inside = np.linalg.norm(self._defect() @ vectors, axis=0)
        eps = torch.finfo(self.operator.dtype).eps
        rounding = ROUNDING_UNITS * eps * np.abs(values).max()
        return values, vectors, np.hypot(outside, inside) + rounding

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
            vector -= part @ block
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
        largest_residual_bounds: ‖Hv − λv‖ for each [k]: within it of λ lies an eigenvalue of H
            (Parlett 1998, theorem 4.5.1).
        smallest_residual_bounds: The same [j].
        eigenvectors: [k + j, P], largest first; the entry of largest magnitude is positive.
        num_matvecs: Products spent.
        converged: Whether each residual is ≤ rtol·max(|λ|, 0.01·max|θ|).
        residual_floor: rtol·0.01·max|θ|, the least tolerance of any.
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
    two checks in a row, since an early step may look converged by chance. Eigenvalues are ordered
    by value, never by magnitude. Of a repeated eigenvalue one copy is found: a Krylov space holds
    no more (theory.md, Lanczos).

    Args:
        operator: H.
        top_k: k, may be 0.
        bottom_k: j, may be 0.
        rtol: Relative tolerance on residuals.
        max_matvecs: Products to spend at most; 300, or 10 for each wanted pair if that is more.
        seed: Of the starting vector.
        progress: Told of each product, and of the worst residual over its tolerance.

    Raises:
        UsageError: if more pairs are wanted than there are.
        NumericsError: if a product is not finite.
    """
    wanted = top_k + bottom_k
    if wanted > operator.dim:
        raise UsageError(
            f"{top_k} largest and {bottom_k} smallest eigenvalues are more than the "
            f"{operator.dim} there are"
        )
    if wanted == 0:
        none = torch.zeros(0, dtype=torch.float64)
        vectors = torch.zeros(0, operator.dim, dtype=operator.dtype, device=operator.device)
        return Eigenpairs(none, none, none, none, vectors, 0, True, 0.0)
    limit = min(operator.dim, max_matvecs or max(DEFAULT_MAX_MATVECS, 10 * wanted))
    if limit < wanted:
        raise UsageError(f"--max-matvecs {limit} is fewer than the {wanted} eigenvalues wanted")

    start_matvecs = operator.num_matvecs
    start = standard_normal(operator.dim, seed, "hessian", "start")
    process = Lanczos(operator, start, seed)
    passed = 0
    with progress.task("eigenvalues", limit, "products") as task:
        while True:
            process.step()
            task.advance(1)
            last = process.size == limit
            if process.size < wanted or not (last or _is_checked(process.size)):
                continue
            values, coefficients, residuals = process.ritz()
            chosen = np.r_[np.arange(bottom_k), np.arange(process.size - top_k, process.size)]
            largest_magnitude = float(np.abs(values).max())
            tolerances = rtol * np.maximum(np.abs(values), RESIDUAL_FLOOR * largest_magnitude)
            excess = (residuals / np.maximum(tolerances, np.finfo(float).tiny))[chosen]
            task.advance(0, excess=float(excess.max()))
            passed = passed + 1 if (residuals <= tolerances)[chosen].all() else 0
            if passed == 2 or process.is_complete or last:
                break
    converged = bool((residuals <= tolerances)[chosen].all()) and (
        passed == 2 or process.is_complete or process.betas[-1] == 0
    )
    top = np.arange(process.size - 1, process.size - 1 - top_k, -1)
    bottom = np.arange(bottom_k)
    order = np.r_[top, bottom].astype(int)
    vectors = process.combine(coefficients[:, order])
    warnings = () if converged else (_not_converged(process, excess, limit),)
    return Eigenpairs(
        largest=torch.from_numpy(values[top].copy()),
        smallest=torch.from_numpy(values[bottom].copy()),
        largest_residual_bounds=torch.from_numpy(residuals[top].copy()),
        smallest_residual_bounds=torch.from_numpy(residuals[bottom].copy()),
        eigenvectors=torch.stack([fix_sign(vector) for vector in vectors]),
        num_matvecs=operator.num_matvecs - start_matvecs,
        converged=converged,
        residual_floor=rtol * RESIDUAL_FLOOR * largest_magnitude,
        warnings=warnings,
    )


def _is_checked(size: int) -> bool:
    """Whether to solve for Ritz pairs at this size: always at first, then every twentieth part."""
    return size % max(1, size // 20) == 0


def _not_converged(process: Lanczos, excess: Array, limit: int) -> str:
    missed = int((excess > 1).sum())
    what = (
        f"{missed} of {len(excess)} eigenvalues did not converge, the worst by a factor of "
        f"{excess.max():.3g}"
        if missed
        else "the eigenvalues met their tolerance only at the last step"
    )
    return f"{what}: {process.size} products spent; raise --max-matvecs above {limit}, or --rtol"
