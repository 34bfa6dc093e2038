"""Directions and planes through a point of parameter space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lgo_cli.errors import InputError, NumericsError, UsageError
from lgo_cli.seeding import standard_normal
from lgo_cli.vectors import cosine, dot, filter_normalize, norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgo_cli.config import Range
    from lgo_cli.objective import Objective

MARGIN = 0.25
"""Room around the points that a plane was laid through, as a share of their extent."""


@dataclass(frozen=True)
class Marker:
    """A named point of a plane, in the plane's coordinates."""

    label: str
    x: float
    y: float


@dataclass(frozen=True)
class Plane:
    """The centre and two directions: (x, y) is θ + x·d₀ + y·d₁.

    Attributes:
        kind: `random`, `eigen`, `pca` or `checkpoints`.
        directions: The very bits used [2, P], in the objective's dtype.
        axis_cosine: Of the angle between them.
        x_range: Of the first coordinate, unless the user says otherwise.
        y_range: Of the second.
        axis_labels: What an axis is and in which unit.
        markers: Points worth naming beside the centre.
        trajectory: Coordinates of a trajectory's checkpoints projected on the plane, in order.
        trajectory_labels: What each is called.
        explained_variance: Share of the trajectory's squared displacements along each axis.
        warnings: What a reader must know.
    """

    kind: str
    directions: Tensor
    axis_cosine: float
    x_range: Range
    y_range: Range
    axis_labels: tuple[str, str]
    markers: tuple[Marker, ...] = ()
    trajectory: tuple[tuple[float, float], ...] | None = None
    trajectory_labels: tuple[str, ...] = ()
    explained_variance: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()


def random_direction(objective: Objective, seed: int, *labels: str | int) -> Tensor:
    """A Gaussian direction [P], filter-normalised against the centre (Li et al. 2018, section 4).

    Args:
        objective: Entered.
        seed: The user's seed.
        labels: Who asks, for the stream of random numbers.

    Raises:
        UsageError: if the model has no filters, or all of them are zero.
    """
    drawn = standard_normal(objective.dim, seed, *labels)
    drawn = drawn.to(objective.device, objective.dtype)
    direction = filter_normalize(drawn, objective.theta, objective.layout)
    if not bool(direction.any()):
        raise UsageError(
            "the model has no weight to filter-normalise a direction with",
            hint="take another direction: eigen or gradient",
        )
    return direction


def gradient_direction(objective: Objective) -> Tensor:
    """The gradient at the centre [P], scaled to unit norm.

    Raises:
        NumericsError: if the gradient is zero.
    """
    _, gradient = objective.loss_and_gradient()
    length = norm(gradient)
    if length == 0:
        raise NumericsError("the gradient is zero: it has no direction")
    return gradient / length


def orthogonalize(first: Tensor, second: Tensor) -> Tensor:
    """What is left of `second` without its part along `first`, computed in float64."""
    a, b = first.double(), second.double()
    return (b - (torch.dot(a, b) / torch.dot(a, a)) * a).to(second.dtype)


def random_plane(objective: Objective, seed: int) -> Plane:
    """Two random directions, filter-normalised first and then orthogonalised.

    The other order would undo itself: scaling filters turns a vector.
    """
    first, second = (
        random_direction(objective, seed, "contour", "direction", index) for index in (0, 1)
    )
    second = orthogonalize(first, second)
    unit = "random direction, filter-normalised"
    return _plane("random", first, second, (-1.0, 1.0), (-1.0, 1.0), (f"x: {unit}", f"y: {unit}"))


def eigen_plane(objective: Objective, eigenvalues: Tensor, eigenvectors: Tensor) -> Plane:
    """The two sharpest directions, of unit norm and never rescaled.

    Args:
        objective: Entered.
        eigenvalues: λ₁ ≥ λ₂, at least [2].
        eigenvectors: Their eigenvectors, at least [2, P].
    """
    first, second = (vector.to(objective.device, objective.dtype) for vector in eigenvectors[:2])
    labels = tuple(
        f"{axis}: eigenvector {rank} (λ = {value:.4g}), unit norm"
        for axis, rank, value in zip("xy", (1, 2), eigenvalues[:2].tolist(), strict=True)
    )
    return _plane("eigen", first, second, (-1.0, 1.0), (-1.0, 1.0), (labels[0], labels[1]))


def pca_plane(objective: Objective, checkpoints: Sequence[Tensor], labels: Sequence[str]) -> Plane:
    """The plane in which a training trajectory moves most (Li et al. 2018, section 7.2).

    Principal axes of the displacements θ_t − θ of the checkpoints from the centre, not centred on
    their mean, so that the plane holds the centre. From the Gram matrix of the displacements, in
    float64. Axes have unit norm and are never rescaled; their signs put the first checkpoint at
    negative coordinates.

    Args:
        objective: Entered; its centre is the trajectory's end.
        checkpoints: Parameters [P] on the way, the first first.
        labels: Name of each.

    Raises:
        InputError: if the checkpoints span no plane.
    """
    displacements = torch.stack(
        [(point.to(objective.theta) - objective.theta).double() for point in checkpoints]
    )
    gram = displacements @ displacements.T
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    # The third-largest eigenvalue of a planar trajectory is rounding of float32 displacements.
    resolution = len(checkpoints) * torch.finfo(objective.dtype).eps * float(values[0])
    if len(checkpoints) < 2 or float(values[1]) <= resolution:
        raise InputError(
            "the trajectory's checkpoints span no plane: "
            f"{len(checkpoints)} on the way, on one line with the end",
            hint="train with --save-every N, for more checkpoints on the way",
        )
    axes = []
    for index in (0, 1):
        axis = vectors[:, index] @ displacements
        axis = axis / torch.linalg.vector_norm(axis)
        start = float(torch.dot(displacements[0], axis))
        axes.append((-axis if start > 0 else axis).to(objective.dtype))
    basis = torch.stack(axes).double()
    # The end is the centre itself.
    points = [*((x, y) for x, y in (displacements @ basis.T).tolist()), (0.0, 0.0)]
    share = (values[:2] / values.sum()).tolist()
    return _plane(
        "pca",
        axes[0],
        axes[1],
        *_around(points),
        (
            f"x: principal axis 1 ({share[0]:.1%} of the trajectory), unit norm",
            f"y: principal axis 2 ({share[1]:.1%}), unit norm",
        ),
        trajectory=tuple(points),
        trajectory_labels=(*labels, "end"),
        explained_variance=(share[0], share[1]),
    )


def checkpoints_plane(objective: Objective, a: Tensor, b: Tensor) -> Plane:
    """The plane through the centre and two other points (Garipov et al. 2018, appendix A.4).

    The first axis is a − θ, so that a lies at (1, 0). The second is what is left of b − θ without
    its part along the first, scaled to the length of the first, so that distances on the picture
    are distances in parameter space, in units of ‖a − θ‖.

    Args:
        objective: Entered.
        a: Parameters [P].
        b: Parameters [P].

    Raises:
        InputError: if the three lie on one line.
    """
    first = a.to(objective.theta) - objective.theta
    towards_b = b.to(objective.theta) - objective.theta
    second = orthogonalize(first, towards_b) if bool(first.any()) else torch.zeros_like(first)
    length, height = norm(first), norm(second)
    if height <= 1e-6 * max(norm(towards_b), length):
        raise InputError("the three checkpoints lie on one line and span no plane")
    second = second * (length / height)
    x_of_b = dot(first, towards_b) / length**2
    y_of_b = height / length
    unit = f"in units of ‖A − run‖ = {length:.4g}"
    return _plane(
        "checkpoints",
        first,
        second,
        *_around([(0.0, 0.0), (1.0, 0.0), (x_of_b, y_of_b)]),
        (f"x: towards A, {unit}", "y: orthogonal, towards B, same unit"),
        markers=(
            Marker("run", 0.0, 0.0),
            Marker("A", 1.0, 0.0),
            Marker("B", x_of_b, y_of_b),
        ),
    )


def _plane(
    kind: str,
    first: Tensor,
    second: Tensor,
    x_range: Range,
    y_range: Range,
    axis_labels: tuple[str, str],
    **extra: object,
) -> Plane:
    return Plane(
        kind=kind,
        directions=torch.stack([first, second]),
        axis_cosine=cosine(first, second),
        x_range=x_range,
        y_range=y_range,
        axis_labels=axis_labels,
        **extra,  # type: ignore[arg-type]
    )


def _around(points: Sequence[tuple[float, float]]) -> tuple[Range, Range]:
    """Ranges of x and y with all points inside, and one margin all around.

    Bounds are rounded to three digits of the larger extent, so that they read well.
    """
    extent = max(max(values) - min(values) for values in zip(*points, strict=True))
    margin = MARGIN * extent
    digits = 2 - math.floor(math.log10(extent))
    x_range, y_range = (
        (round(min(values) - margin, digits), round(max(values) + margin, digits))
        for values in zip(*points, strict=True)
    )
    return x_range, y_range
