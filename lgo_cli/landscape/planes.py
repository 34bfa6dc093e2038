"""Planes through a point of parameter space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lgo_cli.errors import InputError, UsageError, dtype_name
from lgo_cli.landscape.directions import (
    DESCRIPTIONS,
    ROUNDING,
    gradient_direction,
    is_line,
    orthogonalize,
    random_direction,
)
from lgo_cli.results import Marker
from lgo_cli.vectors import cosine, dot, norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy import ndarray as Array

    from lgo_cli.config import Normalization, Range
    from lgo_cli.objective import Objective

MARGIN = 0.25
"""Room around the points that a plane was laid through, as a share of their extent."""

UNIT_RANGES: tuple[Range, Range] = ((-1.0, 1.0), (-1.0, 1.0))
"""Of x and y, where nothing of the plane says how far it reaches."""

OBLIQUE = 0.01
"""Cosine between given directions from which on a reader is told that a picture is skewed."""


@dataclass(frozen=True)
class PlaneCurve:
    """A curve that is drawn on a plane, in the plane's coordinates.

    Attributes:
        path: Its points, densely [m, 2].
        points: Its start, the K bends that shape it, which it need not go through, and its end
            [K + 2, 2].
        distances: Of these from the plane [K + 2], in the unit of the coordinates. The curve itself
            is no farther off, its points being means of these.
    """

    path: Array
    points: Array
    distances: Array


@dataclass(frozen=True)
class Plane:
    """The centre and two directions: (x, y) is θ + x·d₀ + y·d₁.

    Attributes:
        kind: `random`, `eigen`, `pca`, `checkpoints`, `gradient`, `random+eigen` or `file`.
        directions: The very bits used [2, P], in the objective's dtype.
        axis_cosine: Of the angle between them.
        x_range: Of the first coordinate, unless the user says otherwise.
        y_range: Of the second.
        axis_labels: What an axis is and in which unit.
        markers: Points worth naming beside the centre.
        trajectory: Coordinates of a trajectory's checkpoints projected on the plane, in order.
        trajectory_labels: What each is called.
        trajectory_distances: Of each from the plane, ‖θ_t − its projection‖.
        curve: A curve to be drawn on it.
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
    trajectory_distances: tuple[float, ...] = ()
    curve: PlaneCurve | None = None
    explained_variance: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()


def random_plane(
    objective: Objective, seed: int, *, normalization: Normalization = "filter", index: int = 0
) -> Plane:
    """Two random directions, normalised first and then orthogonalised.

    The other order would undo itself: scaling filters turns a vector.

    Args:
        objective: Entered.
        seed: The user's seed.
        normalization: Of both directions.
        index: Which of the seed's planes; plane 3 is the same whether 4 or 40 are drawn.

    Raises:
        UsageError: if the model's filters allow one direction only.
    """
    first = _drawn(objective, seed, normalization, 2 * index)
    second = _orthogonal(objective, first, seed, normalization, index)
    unit = DESCRIPTIONS[normalization]
    return build_plane("random", first, second, (f"x: {unit}", f"y: {unit}"))


def gradient_plane(
    objective: Objective,
    seed: int,
    *,
    normalization: Normalization = "filter",
    index: int = 0,
    function: str = "",
) -> Plane:
    """The gradient's direction and a random one, both of unit norm.

    x points uphill. The random direction is normalised, orthogonalised, and then scaled as a whole,
    so that both axes have one unit and the picture shows true distances.

    Args:
        objective: Entered.
        seed: The user's seed.
        normalization: Of the random direction.
        index: Which of the seed's planes.
        function: Of which function the gradient is, where it is not the one that is drawn.

    Raises:
        NumericsError: if the gradient is zero or not finite.
        UsageError: if the model's filters allow no second direction.
    """
    first = gradient_direction(objective)
    second = _beside(objective, first, seed, normalization, index)
    labels = (
        f"x: gradient (uphill{function}), unit norm",
        f"y: {DESCRIPTIONS[normalization]}, unit norm",
    )
    return build_plane("gradient", first, second, labels)


def random_eigen_plane(
    objective: Objective,
    eigenvalue: float,
    eigenvector: Tensor,
    seed: int,
    *,
    normalization: Normalization = "filter",
    index: int = 0,
    function: str = "",
) -> Plane:
    """The sharpest direction and a random one, both of unit norm: how much steeper the one is.

    The eigenvector is not rescaled; the random direction is normalised, orthogonalised, and then
    scaled as a whole to the eigenvector's norm.

    Args:
        objective: Entered.
        eigenvalue: λ₁.
        eigenvector: Its eigenvector [P], of unit norm.
        seed: The user's seed.
        normalization: Of the random direction.
        index: Which of the seed's planes.
        function: Of which function the eigenvalue is, where it is not the one that is drawn.

    Raises:
        UsageError: if the model's filters allow no second direction.
    """
    first = eigenvector.to(objective.theta)
    second = _beside(objective, first, seed, normalization, index)
    labels = (
        f"x: eigenvector 1 (λ = {eigenvalue:.4g}{function}), unit norm",
        f"y: {DESCRIPTIONS[normalization]}, unit norm",
    )
    return build_plane("random+eigen", first, second, labels)


def given_plane(objective: Objective, directions: Tensor, curve: PlaneCurve | None = None) -> Plane:
    """A plane of a user's own directions, exactly as they are: never rescaled or turned.

    Args:
        objective: Entered.
        directions: [2, P], in vector order.
        curve: What is to be drawn on it, and settles how far it reaches.

    Raises:
        InputError: if they do not fit the model, are not finite, or lie on one line, or if the
            curve is a point.
    """
    wanted = (2, objective.dim)
    if tuple(directions.shape) != wanted or not directions.is_floating_point():
        kind = dtype_name(directions.dtype)
        raise InputError(
            f"the directions are {kind} {list(directions.shape)}, the model wants two of its "
            f"{objective.dim} trainable parameters each: floats {list(wanted)}",
            hint="as `directions` in contour.npz: parameters in the order of named_parameters()",
        )
    first, second = directions.to(objective.theta)
    for name, vector in (("first", first), ("second", second)):
        if not bool(torch.isfinite(vector).all()):
            raise InputError(f"the {name} direction has values that are not finite")
        if not bool(vector.any()):
            raise InputError(f"the {name} direction is zero")
    if is_line(first, orthogonalize(first, second), second):
        raise InputError(
            "the two directions lie on one line and span no plane",
            hint="a line is measured by lgo interp",
        )
    lengths = f"{norm(first):.4g}", f"{norm(second):.4g}"
    angle = cosine(first, second)
    warnings = (
        f"the directions are not orthogonal (cosine {angle:.3f}): the picture's distances and "
        "angles are not those of parameter space",
    )
    ranges = UNIT_RANGES
    markers: list[Marker] = []
    if curve is not None:
        _, *bends, end = curve.points.tolist()
        names = ["bend"] if len(bends) == 1 else [f"bend {k + 1}" for k in range(len(bends))]
        markers = [
            Marker(label=name, x=x, y=y)
            for name, (x, y) in zip([*names, "other end"], [*bends, end], strict=True)
        ]
        ranges = range_around([(0.0, 0.0), *curve.path.tolist(), *curve.points.tolist()])
    return build_plane(
        "file",
        first,
        second,
        (f"x: given direction 1, norm {lengths[0]}", f"y: given direction 2, norm {lengths[1]}"),
        ranges,
        curve=curve,
        markers=tuple(markers),
        warnings=warnings if abs(angle) > OBLIQUE else (),
    )


def eigen_plane(
    objective: Objective, eigenvalues: Tensor, eigenvectors: Tensor, *, function: str = ""
) -> Plane:
    """The two sharpest directions, of unit norm and never rescaled.

    Args:
        objective: Entered.
        eigenvalues: λ₁ ≥ λ₂, at least [2].
        eigenvectors: Their eigenvectors, at least [2, P].
        function: Of which function the eigenvalues are, where it is not the one that is drawn.
    """
    first, second = (vector.to(objective.device, objective.dtype) for vector in eigenvectors[:2])
    labels = tuple(
        f"{axis}: eigenvector {rank} (λ = {value:.4g}{function}), unit norm"
        for axis, rank, value in zip("xy", (1, 2), eigenvalues[:2].tolist(), strict=True)
    )
    return build_plane("eigen", first, second, (labels[0], labels[1]))


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
    return build_plane(
        "checkpoints",
        first,
        second,
        (f"x: towards A, {unit}", "y: orthogonal, towards B, same unit"),
        range_around([(0.0, 0.0), (1.0, 0.0), (x_of_b, y_of_b)]),
        markers=(
            Marker(label="run", x=0.0, y=0.0),
            Marker(label="A", x=1.0, y=0.0),
            Marker(label="B", x=x_of_b, y=y_of_b),
        ),
    )


def build_plane(
    kind: str,
    first: Tensor,
    second: Tensor,
    axis_labels: tuple[str, str],
    ranges: tuple[Range, Range] = UNIT_RANGES,
    **extra: object,
) -> Plane:
    """A plane of two directions as they are, with their cosine."""
    return Plane(
        kind=kind,
        directions=torch.stack([first, second]),
        axis_cosine=cosine(first, second),
        x_range=ranges[0],
        y_range=ranges[1],
        axis_labels=axis_labels,
        **extra,  # type: ignore[arg-type]
    )


def _drawn(objective: Objective, seed: int, normalization: Normalization, number: int) -> Tensor:
    return random_direction(
        objective, seed, "contour", "direction", number, normalization=normalization
    )


def _orthogonal(
    objective: Objective, first: Tensor, seed: int, normalization: Normalization, index: int
) -> Tensor:
    """What is left of a random direction without its part along `first`.

    Raises:
        UsageError: if that is nothing.
    """
    drawn = _drawn(objective, seed, normalization, 2 * index + 1)
    second = orthogonalize(first, drawn)
    if is_line(first, second, drawn):
        what = "directions" if normalization == "none" else f"{normalization}-normalised directions"
        raise UsageError(
            f"the model's weights span no plane of {what}",
            hint="take a line instead: lgo interp --direction random",
        )
    return second


def _beside(
    objective: Objective, first: Tensor, seed: int, normalization: Normalization, index: int
) -> Tensor:
    """A random direction orthogonal to `first` and as long."""
    second = _orthogonal(objective, first, seed, normalization, index)
    return second * (norm(first) / norm(second))


def range_around(points: Sequence[tuple[float, float]]) -> tuple[Range, Range]:
    """Ranges of x and y with all points inside, and one margin all around.

    Bounds are rounded to three digits of the larger extent, so that they read well.

    Raises:
        InputError: if the points are one, or too far apart for numbers, as a file's may be.
    """
    extent = max(max(values) - min(values) for values in zip(*points, strict=True))
    if not 0 < extent < math.inf:
        raise InputError(
            f"the points on the plane span {extent:g} of its coordinates: no range fits them",
            hint="plane_path of the directions' file is a curve that leaves the run at (0, 0); "
            "without that array the plane needs none",
        )
    margin = MARGIN * extent
    digits = 2 - math.floor(math.log10(extent))
    x_range, y_range = (
        (round(min(values) - margin, digits), round(max(values) + margin, digits))
        for values in zip(*points, strict=True)
    )
    return x_range, y_range
