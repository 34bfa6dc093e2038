"""The quadratic model of the loss on a plane, and how far it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray as Array

from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.vectors import dot

if TYPE_CHECKING:
    from torch import Tensor

    from lgo_cli.objective import Objective

RTOL = 0.1
"""Relative error of the model that counts as holding."""


@dataclass(frozen=True)
class QuadraticModel:
    """L₀ + gᵀδ + ½δᵀHδ on a plane, in the plane's coordinates.

    Attributes:
        loss: L₀, at the centre.
        gradient: (g·d₀, g·d₁).
        hessian: (d₀ᵀHd₀, d₀ᵀHd₁, d₁ᵀHd₁); on a plane of eigenvectors (λ₁, 0, λ₂) within their
            residuals.
        num_matvecs: Products spent.
    """

    loss: float
    gradient: tuple[float, float]
    hessian: tuple[float, float, float]
    num_matvecs: int

    def at(self, x: Array, y: Array) -> Array:
        """The model [ny, nx] on the grid of x [nx] and y [ny]."""
        g0, g1 = self.gradient
        h00, h01, h11 = self.hessian
        columns, rows = np.asarray(x)[None, :], np.asarray(y)[:, None]
        second = h00 * columns**2 + 2 * h01 * columns * rows + h11 * rows**2
        return np.asarray(self.loss + g0 * columns + g1 * rows + second / 2)


@dataclass(frozen=True)
class QuadraticError:
    """How far the quadratic model is off the measured surface, relative to the surface.

    The error of a cell is (model − L)/L, infinite where L is not finite or is zero and the model is
    not.

    Attributes:
        max_error: Largest |error| over measured cells where L is finite; NaN if there are none.
        rms_error: Root of the mean of its square over the same cells.
        radius: Largest distance from the centre, in the plane's coordinates, up to which every
            measured cell is within 10 %; 0 if the nearest is not. On a plane of orthonormal
            directions a distance in parameter space.
        holds_everywhere: Whether every measured cell is.
    """

    max_error: float
    rms_error: float
    radius: float
    holds_everywhere: bool


def quadratic_model(
    objective: Objective, directions: Tensor, *, memory_bytes: int | None = None
) -> QuadraticModel:
    """The second-order Taylor polynomial on a plane, at the objective's centre.

    Args:
        objective: Entered.
        directions: [2, P].
        memory_bytes: Of the products' graphs, as `HessianOperator` has it.

    Cost: two matvecs and a gradient.
    """
    first, second = directions.to(objective.theta)
    operator = HessianOperator(objective, memory_bytes=memory_bytes)
    product, other = operator.matvec(first), operator.matvec(second)
    _, gradient = objective.loss_and_gradient()
    return QuadraticModel(
        loss=objective.center.loss,
        gradient=(dot(gradient, first), dot(gradient, second)),
        # Equal but for rounding; the mean is the symmetric part.
        hessian=(
            dot(first, product),
            (dot(second, product) + dot(first, other)) / 2,
            dot(second, other),
        ),
        num_matvecs=operator.num_matvecs,
    )


def quadratic_error(
    model: QuadraticModel, x: Array, y: Array, loss: Array, measured: Array | None = None
) -> QuadraticError:
    """Compare a quadratic model with the surface that was measured.

    Args:
        model: The quadratic model.
        x: Coordinates [nx].
        y: Coordinates [ny].
        loss: The surface [ny, nx].
        measured: Which cells count [ny, nx]; all if not given.
    """
    counted = np.ones(loss.shape, bool) if measured is None else np.asarray(measured, bool)
    finite = counted & np.isfinite(loss)
    difference = np.where(finite, model.at(x, y), np.inf) - np.where(finite, loss, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = difference / np.where(finite, loss, 1.0)
    # A loss of zero that the model meets is met.
    error = np.where(counted, np.where(difference == 0, 0.0, error), np.nan)
    seen = error[finite]
    distance = np.hypot(np.asarray(x)[None, :], np.asarray(y)[:, None])
    off = counted & ~(np.abs(error) <= RTOL)
    nearest = float(distance[off].min()) if off.any() else np.inf
    within = counted & (distance < nearest)
    return QuadraticError(
        max_error=float(np.abs(seen).max()) if seen.size else np.nan,
        rms_error=float(np.sqrt(np.mean(np.square(seen)))) if seen.size else np.nan,
        radius=float(distance[within].max()) if within.any() else 0.0,
        holds_everywhere=not off.any(),
    )
