"""Single directions through a point of parameter space, and projections on two of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lgo_cli.curvature.analysis import CLEAR_OF_ROUNDING
from lgo_cli.errors import InputError, NumericsError, UsageError
from lgo_cli.seeding import standard_normal
from lgo_cli.vectors import norm, normalize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lgo_cli.config import Normalization
    from lgo_cli.objective import Objective

ROUNDING = torch.finfo(torch.float32).eps
"""Relative error of stored weights. A difference of two points below it is no direction, also in
float64: weights are trained and kept in float32."""

BLOCK = 2**20
"""Parameters that are held in float64 at a time."""

DESCRIPTIONS: dict[Normalization, str] = {
    "filter": "random direction, filter-normalised",
    "layer": "random direction, layer-normalised",
    "none": "random direction, isotropic",
}
"""What a random direction is called on an axis."""


def random_direction(
    objective: Objective,
    seed: int,
    *labels: str | int,
    normalization: Normalization = "filter",
) -> Tensor:
    """A Gaussian direction [P], normalised against the centre (Li et al. 2018, section 4).

    Args:
        objective: Entered.
        seed: The user's seed.
        labels: Who asks, for the stream of random numbers.
        normalization: To which scale; see `lgo_cli.vectors.normalize`.

    Raises:
        UsageError: if the model has no filters, or all of them are zero.
    """
    drawn = standard_normal(objective.dim, seed, *labels)
    drawn = drawn.to(objective.device, objective.dtype)
    direction = normalize(drawn, objective.theta, objective.layout, normalization)
    if not bool(direction.any()):
        raise UsageError(
            f"the model has no weight to {normalization}-normalise a direction with"
            if normalization != "none"
            else "all parameters are zero and give a direction no scale",
            hint="take an eigenvector, which needs no scale: --direction eigen, or --plane eigen",
        )
    return direction


def gradient_direction(objective: Objective) -> Tensor:
    """The gradient at the centre [P], scaled to unit Euclidean norm.

    It points uphill: α = −η‖∇L‖ is a step of gradient descent with rate η.

    Raises:
        NumericsError: if the gradient is zero or not finite.
    """
    _, gradient = objective.loss_and_gradient()
    length = norm(gradient)
    if length == 0 or not math.isfinite(length):
        raise NumericsError(f"the gradient's norm is {length:g}: it has no direction")
    return gradient / length


def gradient_complaints(objective: Objective) -> tuple[str, ...]:
    """What is wrong with the gradient's direction where float32 has none, as at a minimum.

    The gradient is compared with that in float64, on all samples: about five forward passes more. A
    model that runs in float32 only has no other to be compared with.

    Args:
        objective: Entered.
    """
    if objective.dtype != torch.float32:
        return ()
    _, gradient = objective.loss_and_gradient()
    try:
        with objective.replaced(dtype=torch.float64) as twin:
            _, exact = twin.loss_and_gradient()
    except (InputError, NumericsError):
        return ()
    off = norm(gradient.double() - exact) / norm(gradient)
    if off * CLEAR_OF_ROUNDING <= 1:
        return ()
    return (
        f"the gradient's direction is lost in rounding: in float32 it is off by {off:.2g} of its "
        "norm; --dtype float64",
    )


def orthogonalize(first: Tensor, second: Tensor) -> Tensor:
    """What is left of `second` without its part along `first`, computed in float64."""
    a, b = first.double(), second.double()
    return (b - (torch.dot(a, b) / torch.dot(a, a)) * a).to(second.dtype)


def is_line(first: Tensor, rest: Tensor, second: Tensor) -> bool:
    """Whether what is left of `second` beside `first` is no more than rounding."""
    return norm(first) == 0 or norm(rest) <= ROUNDING * norm(second)


def project(theta: Tensor, directions: Tensor, point: Tensor) -> tuple[tuple[float, float], float]:
    """The point of the plane θ + x·d₀ + y·d₁ that is nearest to another.

    Least squares over displacements in float64, with the directions as they are: they need be
    neither orthogonal nor of unit norm.

    Args:
        theta: The plane's origin [P].
        directions: [2, P], independent.
        point: [P].

    Returns:
        (x, y), and the Euclidean distance of the point from the plane.
    """
    gram = torch.zeros(2, 2, dtype=torch.float64, device=theta.device)
    overlap = torch.zeros(2, dtype=torch.float64, device=theta.device)
    for block, (delta,) in displacements(theta, [point]):
        axes = directions[:, block].double()
        gram += axes @ axes.T
        overlap += axes @ delta
    coordinates = torch.linalg.solve(gram, overlap)
    square = torch.zeros((), dtype=torch.float64, device=theta.device)
    # From the difference itself: that of the squares would lose half the digits.
    for block, (delta,) in displacements(theta, [point]):
        square += (delta - coordinates @ directions[:, block].double()).square().sum()
    x, y = coordinates.tolist()
    return (x, y), math.sqrt(float(square))


def displacements(theta: Tensor, points: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Displacements of points from θ in float64, a block [n, BLOCK] of parameters at a time."""
    for start in range(0, len(theta), BLOCK):
        block = slice(start, start + BLOCK)
        center = theta[block].double()
        yield block, torch.stack([point[block].to(center) for point in points]) - center
