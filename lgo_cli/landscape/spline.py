"""Polyharmonic splines through scattered cells of a grid, with an error for every other cell.

Shapes: n measured cells, q monomials, m cells of the grid. theory.md, section 28.

Matrices are PyTorch's: NumPy's BLAS keeps threads of its own spinning on the cores that measure the
next cells, which then take twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray as Array
from torch import Tensor

ORDERS = (1, 3, 5)
"""Powers of r to choose from: continuous, C² and C⁴ in the plane. On measured surfaces the highest
wins while cells are far apart, and r³ where kinks of ReLU networks begin to show."""

NUM_NEIGHBORS = 12
"""Measured cells whose residuals make the scale of the error at a place: those around it."""

BLOCK = 256
"""Cells at a time where n numbers of each make one: three such matrices [n, m] are kept, and no
further one of them is needed at once."""


@dataclass(frozen=True)
class Spline:
    """A spline s(x) = Σ c_i φ(|x − x_i|) + polynomial, on a grid.

    Attributes:
        order: β of φ(r) = ±r^β.
        values: s [m].
        deviation: Standard deviation of its error [m]; 0 at measured cells.
        residuals: What each measured value differs from the spline through all others [n].
    """

    order: int
    values: Array
    deviation: Array
    residuals: Array
    _scale: Array
    _variance: Array
    _weights: Tensor
    _rest: Tensor
    _kernels: Tensor
    _grid: Array

    def rank(self, limit: Array, num_cells: int) -> list[int]:
        """Cells to measure next, each where the error would be largest if those before were known.

        Knowing a cell takes C(x, cell)² / C(cell, cell) off the variance at x, whatever its value,
        so that a batch spreads out (the P-greedy points of De Marchi, Schaback & Wendland 2005,
        with the local scale as weight).

        Args:
            limit: What the deviation may be [m]; infinite where nothing is wanted.
            num_cells: At most so many.

        Returns:
            Their numbers; none once no deviation is above its limit.
        """
        cells = np.flatnonzero(self.deviation > limit)
        weight = self._scale[cells] / limit[cells]
        variance = self._variance[cells]
        grid = self._grid[cells]
        kernels, weights, rest = (a[:, cells] for a in (self._kernels, self._weights, self._rest))
        known = torch.empty((num_cells, len(cells)), dtype=torch.float64)
        chosen: list[int] = []
        while len(chosen) < min(num_cells, len(cells)):
            excess = weight * np.sqrt(np.maximum(variance, 0.0))
            excess[chosen] = 0.0
            # Symmetric cells tie up to rounding, and rounding must not choose between them.
            best = int(np.argmax(np.round(np.log(np.maximum(excess, 1e-300)), 6)))
            if excess[best] <= 1:
                break
            before = known[: len(chosen)]
            covariance = torch.from_numpy(_kernel(grid, grid[best : best + 1], self.order)[:, 0])
            covariance -= weights[:, best] @ kernels + rest[:, best] @ weights
            covariance -= before[:, best] @ before
            known[len(chosen)] = covariance / np.sqrt(variance[best])
            variance -= known[len(chosen)].numpy() ** 2
            chosen.append(best)
        return [int(cell) for cell in cells[chosen]]


def fit(
    points: Array, values: Array, grid: Array, tolerance: float, order: int | None = None
) -> Spline:
    """Lay a polyharmonic spline through measured cells (Duchon 1977).

    With the bordered matrix A = [[φ(x_i − x_j), p], [pᵀ, 0]], the residual of the spline that
    leaves point i out is c_i / (A⁻¹)_ii, for all i from one inverse (Rippa 1999). As kriging with
    the generalised covariance φ (Matheron 1973), the spline is the best linear predictor, and the
    variance of its error is σ²(φ(0) − b(x)ᵀA⁻¹b(x)) with b(x) the kernels and monomials at x. Each
    left-out residual is one draw of variance σ²/(A⁻¹)_ii, from which σ² is estimated around each
    cell.

    Args:
        points: Coordinates [n, 2], distinct, of order one.
        values: [n]; where one is not finite, no deviation is.
        grid: Coordinates of all cells [m, 2].
        tolerance: Residuals far below are all alike good in the choice of the order.
        order: β; `None` takes the one with the least geometric mean of the left-out residuals.

    Cost: O(n³) for each order tried, and O(n²m).
    """
    orders = [order] if order else [beta for beta in ORDERS if _determined(points, beta)]
    systems = [_System(points, beta) for beta in orders]
    left_out = [system.left_out(values) for system in systems]
    scores = [float(np.mean(np.log(np.abs(found) + tolerance / 10))) for found in left_out]
    best = int(np.argmin(scores))
    system, residuals = systems[best], left_out[best]
    kernels = torch.from_numpy(_kernel(points, grid, system.order))
    weights = system.weights(kernels, grid)
    # wᵀKw − 2wᵀk: an error of the weights enters squared, and next to measured cells the variances
    # are far below the rounding of any formula that is of first order in them.
    rest = system.kernel @ weights
    torch.sub(kernels, rest, out=rest)
    columns = [slice(start, start + BLOCK) for start in range(0, len(grid), BLOCK)]
    sums = [(weights[:, c] * (kernels[:, c] + rest[:, c])).sum(0) for c in columns]
    variance = np.maximum(-torch.cat(sums).numpy(), 0.0)
    scale = _local_scale(grid, points, residuals**2 * system.inverse.diagonal().numpy())
    return Spline(
        order=system.order,
        values=(torch.from_numpy(values) @ weights).numpy(),
        deviation=scale * np.sqrt(variance),
        residuals=residuals,
        _scale=scale,
        _variance=variance,
        _weights=weights,
        _rest=rest,
        _kernels=kernels,
        _grid=grid,
    )


class GrowingSpline:
    """The spline through measured cells, while they become more.

    Args:
        grid: Coordinates of all cells [m, 2].
        tolerance: As `fit` has it.
        growth: It is laid anew once there are so many times the cells, and one more at least.
    """

    def __init__(self, grid: Array, tolerance: float, growth: float = 1.0) -> None:
        self.grid, self.tolerance, self.growth = grid, tolerance, growth
        self.last: Spline | None = None
        self.order: int | None = None
        self.num_at_choice = 0

    def through(self, data: Array, values: Array) -> Spline:
        """The spline through the cells where `data` is true, of values [m]: or still the last."""
        n = int(data.sum())
        if self.last is not None:
            num_laid = len(self.last.residuals)  # as many are the same ones
            if n < max(num_laid + 1, self.growth * num_laid):
                return self.last
            self.last = None  # its memory is the next one's
        if n >= 1.5 * self.num_at_choice:  # the order is chosen again
            self.order, self.num_at_choice = None, n
        self.last = fit(self.grid[data], values[data], self.grid, self.tolerance, self.order)
        self.order = self.last.order
        return self.last


class _System:
    """The interpolation conditions, solved on the complement of the polynomials.

    With Q an orthonormal basis of the monomials' values and Π = I − QQᵀ, ΠKΠ is positive definite
    on the complement and hundreds of times better conditioned than the bordered matrix; its inverse
    there is the leading block of the bordered inverse.
    """

    def __init__(self, points: Array, order: int) -> None:
        self.order = order
        self.kernel = torch.from_numpy(_kernel(points, points, order))
        q, self.triangle = torch.linalg.qr(torch.from_numpy(_monomials(points, order)))
        along = self.kernel @ q
        projected = self.kernel - q @ along.T - along @ q.T + q @ (q.T @ along) @ q.T
        size = projected.trace() / len(points)
        # Any positive number in the polynomials' place makes the matrix invertible.
        self.inverse = torch.linalg.inv(projected + size * (q @ q.T)) - (q @ q.T) / size
        self.polynomial = q - self.inverse @ along

    def left_out(self, values: Array) -> Array:
        """Residuals [n] of the splines that each leave out one point."""
        residuals = self.inverse @ torch.from_numpy(values) / self.inverse.diagonal()
        return np.asarray(residuals)

    def weights(self, kernels: Tensor, grid: Array) -> Tensor:
        """Of each measured value at each cell [n, m]."""
        monomials = torch.from_numpy(_monomials(grid, self.order)).T
        triangular = torch.linalg.solve_triangular(self.triangle.T, monomials, upper=False)
        weights: Tensor = self.inverse @ kernels
        weights += self.polynomial @ triangular
        return weights


def _local_scale(grid: Array, points: Array, squares: Array) -> Array:
    """σ around each cell [m], from the σ² that each measured cell suggests [n].

    No less than the median: a dozen residuals may all be small by chance.
    """
    count = min(NUM_NEIGHBORS, len(points))
    squares = np.maximum(squares, 0.0)
    local: Array = np.empty(len(grid))
    for start in range(0, len(grid), BLOCK):
        block = slice(start, start + BLOCK)
        distances = _squared_distance(grid[block], points)
        nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
        local[block] = np.sqrt(squares[nearest].mean(axis=1))
    local = np.maximum(local, np.median(local))
    return local


def _determined(points: Array, order: int) -> bool:
    """Whether the points determine the polynomial part, with one to spare to leave out."""
    monomials = _monomials(points, order)
    n, q = monomials.shape
    return n > q and bool(torch.linalg.matrix_rank(torch.from_numpy(monomials)) == q)


def _squared_distance(a: Array, b: Array) -> Array:
    squared: Array = np.subtract.outer(a[:, 0], b[:, 0])
    other: Array = np.subtract.outer(a[:, 1], b[:, 1])
    squared *= squared  # in place, which from Python 3.14 on NumPy does no longer find by itself
    other *= other
    squared += other
    return squared


def _kernel(a: Array, b: Array, order: int) -> Array:
    """φ = (−1)^⌈β/2⌉ r^β, conditionally positive definite of order ⌈β/2⌉ (Wendland 2005, ch. 8)."""
    squared = _squared_distance(a, b)
    kernel: Array = np.sqrt(squared)
    for _ in range(order // 2):
        kernel *= squared
    return np.negative(kernel, out=kernel) if (order + 1) // 2 % 2 else kernel


def _monomials(points: Array, order: int) -> Array:
    """Of degree below ⌈β/2⌉ [n, q]."""
    degree = (order - 1) // 2
    x, y = points.T
    return np.stack([x**i * y**j for i in range(degree + 1) for j in range(degree + 1 - i)], axis=1)
