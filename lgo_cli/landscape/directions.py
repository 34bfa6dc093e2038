"""Directions and planes through a point of parameter space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lgo_cli.errors import InputError, NumericsError, UsageError
from lgo_cli.seeding import standard_normal
from lgo_cli.vectors import cosine, dot, filter_normalize, fix_sign, norm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lgo_cli.config import Range
    from lgo_cli.objective import Objective

MARGIN = 0.25
"""Room around the points that a plane was laid through, as a share of their extent."""

ROUNDING = torch.finfo(torch.float32).eps
"""Relative error of stored weights. A difference of two points below it is no direction, also in
float64: weights are trained and kept in float32."""

BLOCK = 2**20
"""Parameters that are held in float64 at a time."""


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


def orthogonalize(first: Tensor, second: Tensor) -> Tensor:
    """What is left of `second` without its part along `first`, computed in float64."""
    a, b = first.double(), second.double()
    return (b - (torch.dot(a, b) / torch.dot(a, a)) * a).to(second.dtype)


def random_plane(objective: Objective, seed: int) -> Plane:
    """Two random directions, filter-normalised first and then orthogonalised.

    The other order would undo itself: scaling filters turns a vector.

    Raises:
        UsageError: if the model's filters allow one direction only.
    """
    first, drawn = (
        random_direction(objective, seed, "contour", "direction", index) for index in (0, 1)
    )
    second = orthogonalize(first, drawn)
    if norm(second) <= ROUNDING * norm(drawn):
        raise UsageError(
            "the model's weights span no plane of filter-normalised directions",
            hint="take a line instead: lgo interp --direction random",
        )
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
    their mean, so that the plane holds the centre: eigenvectors of the Gram matrix of the
    displacements, in float64. Axes have unit norm and are never rescaled; their signs put the first
    checkpoint at negative coordinates.

    Args:
        objective: Entered; its centre is the trajectory's end.
        checkpoints: Parameters [P] on the way, the first first.
        labels: Name of each.

    Raises:
        InputError: if the checkpoints span no plane, as fewer than three distinct ones do.
    """
    num_points = len(checkpoints)
    if num_points < 2:
        raise _no_plane(num_points)
    gram = torch.zeros(num_points, num_points, dtype=torch.float64, device=objective.device)
    for block in _displacements(objective.theta, checkpoints):
        gram += block @ block.T
    squares, vectors = torch.linalg.eigh(gram)
    values, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    lengths = values.sqrt().tolist()
    # How far rounding of the weights alone moves the points off a line.
    noise = ROUNDING * math.sqrt(num_points) * (norm(objective.theta) + lengths[0])
    if lengths[1] <= noise:
        raise _no_plane(num_points)
    signs = [fix_sign(vectors[:, index]) for index in (0, 1)]
    weights = torch.stack([-v if float(v[0]) > 0 else v for v in signs])
    pieces = []
    coordinates = torch.zeros(num_points, 2, dtype=torch.float64, device=objective.device)
    for block in _displacements(objective.theta, checkpoints):
        pieces.append(weights @ block)
        coordinates += block @ pieces[-1].T
    axes = torch.cat(pieces, dim=1)
    scale = torch.linalg.vector_norm(axes, dim=1)
    first, second = (axes / scale[:, None]).to(objective.dtype)
    # The end is the centre itself.
    points = [*((x, y) for x, y in (coordinates / scale).tolist()), (0.0, 0.0)]
    share = (values[:2] / values.sum()).tolist()
    return _plane(
        "pca",
        first,
        second,
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
        InputError: if the three lie on one line, as far as the rounding of weights can tell.
    """
    first = a.to(objective.theta) - objective.theta
    towards_b = b.to(objective.theta) - objective.theta
    length, reach = norm(first), norm(towards_b)
    # How far rounding of the weights alone moves a point off a line, carried on from A to B.
    noise = ROUNDING * (norm(objective.theta) + length + reach)
    if length <= noise:
        raise InputError("checkpoint A is the run itself: the three points span no plane")
    second = orthogonalize(first, towards_b)
    height = norm(second)
    if height <= noise * max(1.0, reach / length):
        raise InputError(
            "the three checkpoints lie on one line and span no plane",
            hint="a line is measured by lgo interp --to OTHER",
        )
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


def _no_plane(num_points: int) -> InputError:
    return InputError(
        "the trajectory's checkpoints span no plane: "
        f"{num_points} on the way, on one line with the end",
        hint="train with --save-every N, for more checkpoints on the way",
    )


def _displacements(theta: Tensor, points: Sequence[Tensor]) -> Iterator[Tensor]:
    """Displacements of points from θ in float64, a block [n, BLOCK] of parameters at a time."""
    for start in range(0, len(theta), BLOCK):
        block = slice(start, start + BLOCK)
        center = theta[block].double()
        yield torch.stack([point[block].to(center) for point in points]) - center


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
