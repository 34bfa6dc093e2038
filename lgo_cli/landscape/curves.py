"""Curves between two solutions, as combinations of a few points (theory.md, section 27).

θ(t) = Σ c_i(t) w_i for t in [0, 1], w_0 and w_{K+1} being the ends, the K between them the bends.
Shapes: P parameters, K bends, n coordinates. Nothing here looks at a loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy import ndarray as Array

from lgo_cli.errors import InputError, UsageError
from lgo_cli.vectors import dot, norm

if TYPE_CHECKING:
    from torch import Tensor

    from lgo_cli.config import CurveKind

DRAWN = 101
"""Points of a curve that is drawn, which its kinks are put in between."""

_NUM_NODES = 16
_NUM_PANELS = 64


@dataclass(frozen=True)
class Curve(ABC):
    """A curve through two ends, shaped by bends.

    Attributes:
        start: θ(0) [P].
        bends: Control points between the ends, K vectors [P].
        end: θ(1) [P].
    """

    start: Tensor
    bends: tuple[Tensor, ...]
    end: Tensor

    @property
    def points(self) -> tuple[Tensor, ...]:
        """Start, bends and end, K + 2 vectors [P]."""
        return (self.start, *self.bends, self.end)

    @abstractmethod
    def coefficients(self, t: Array) -> Array:
        """c_i(t) [n, K + 2] at coordinates [n] in [0, 1]."""

    @abstractmethod
    def velocity(self, t: Array) -> Array:
        """dc_i/dt [n, K + 2] at coordinates [n]; where there are two, the one from the right."""

    def kinks(self) -> Array:
        """Where the tangent jumps, ascending."""
        return np.array([])

    def point(self, t: float) -> Tensor:
        """θ(t) [P], new; the ends are start and end themselves, to the bit.

        Raises:
            UsageError: if t is not in [0, 1].
        """
        if not 0 <= t <= 1:
            raise UsageError(f"a curve is defined for t from 0 to 1, not at {t:g}")
        if t in (0, 1):
            return (self.end if t else self.start).clone()
        return self._combination(self.coefficients(np.array([t]))[0])

    def _combination(self, coefficients: Array) -> Tensor:
        terms = zip(coefficients.tolist(), self.points, strict=True)
        (first, point), *rest = [(c, w) for c, w in terms if c]
        result: Tensor = point * first
        for c, point in rest:
            result.add_(point, alpha=c)
        return result

    def arc_length(self) -> float:
        """Euclidean length of the curve.

        ∫ ‖dθ/dt‖ by Gauss-Legendre quadrature, the norm from the Gram matrix of the control points
        taken from the start, so that no more than K + 1 vectors are ever formed. Exact to rounding
        for a polygonal chain; a curve that turns back on itself is off by about 1e-6 relative.
        """
        edges = np.union1d(np.linspace(0, 1, _NUM_PANELS + 1), self.kinks())
        nodes, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
        widths = np.diff(edges)
        inner = edges[:-1, None] + widths[:, None] * (nodes + 1) / 2
        speeds = self._speed(inner.reshape(-1)).reshape(inner.shape)
        return float(np.cumsum(widths * (speeds @ weights) / 2)[-1])

    def _speed(self, t: Array) -> Array:
        velocity = self.velocity(t)
        # Σ ċ_i w_i = (Σ ċ_i) w_0 + Σ ċ_i (w_i − w_0): differences do not cancel, their norms do.
        velocity[:, 0] = velocity.sum(axis=1)
        basis = [self.start, *(w.double() - self.start.double() for w in self.points[1:])]
        gram = np.array([[dot(a, b) for b in basis] for a in basis])
        squares = np.einsum("ni,ij,nj->n", velocity, gram, velocity)
        speeds: Array = np.sqrt(np.maximum(squares, 0))
        return speeds


@dataclass(frozen=True)
class Bezier(Curve):
    """Bézier curve: c_i(t) = C(n, i) tⁱ (1 − t)ⁿ⁻ⁱ, n = K + 1 (Garipov et al. 2018, sec. 3.2)."""

    def coefficients(self, t: Array) -> Array:
        """Bernstein polynomials of degree K + 1."""
        return _bernstein(len(self.bends) + 1, t)

    def velocity(self, t: Array) -> Array:
        """Their derivatives, n (B_{i−1, n−1} − B_{i, n−1})."""
        degree = len(self.bends) + 1
        lower = degree * _bernstein(degree - 1, t)
        difference: Array = np.pad(lower, ((0, 0), (1, 0))) - np.pad(lower, ((0, 0), (0, 1)))
        return difference


def _bernstein(degree: int, t: Array) -> Array:
    terms = [math.comb(degree, i) * t**i * (1 - t) ** (degree - i) for i in range(degree + 1)]
    return np.stack(terms, axis=1)


@dataclass(frozen=True)
class PolyChain(Curve):
    """Polygonal chain of K + 1 segments, each over as much of t (Garipov et al. 2018)."""

    def kinks(self) -> Array:
        """Where the bends are, at t = k / (K + 1)."""
        return np.arange(1, len(self.bends) + 1) / (len(self.bends) + 1)

    def coefficients(self, t: Array) -> Array:
        """The two of the segment's ends, 0 elsewhere."""
        segment, along = self._place(t)
        return self._on_segment(segment, 1 - along, along)

    def velocity(self, t: Array) -> Array:
        """Constant on each segment."""
        segment, _ = self._place(t)
        rate = np.full(len(t), float(len(self.bends) + 1))
        return self._on_segment(segment, -rate, rate)

    def _place(self, t: Array) -> tuple[Array, Array]:
        scaled = t * (len(self.bends) + 1)
        # t = k / n times n may round to either side of k, and the kink is at k.
        nearest = np.round(scaled)
        scaled = np.where(nearest / (len(self.bends) + 1) == t, nearest, scaled)
        segment = np.minimum(scaled.astype(int), len(self.bends))
        return segment, scaled - segment

    def _on_segment(self, segment: Array, first: Array, second: Array) -> Array:
        result = np.zeros((len(segment), len(self.bends) + 2))
        rows = np.arange(len(segment))
        result[rows, segment] = first
        result[rows, segment + 1] = second
        return result


@dataclass(frozen=True)
class Arc(Curve):
    """Spherical interpolation of flat vectors (Shoemake 1985), the norm growing linearly.

    The direction follows the great circle between the ends' directions at constant speed, so that
    θ(t) is never shorter than the shorter end, as the middle of a line is. With ends of equal norm
    it is the usual formula. All parameters are turned as one vector, not tensor by tensor.

    Use `between`. Within an angle of √(8ε), ε being the rounding unit of their dtype, arc and line
    are the same to rounding, and the line is taken (`is_straight`).

    Attributes:
        angle: Between the ends, in radians.
        is_straight: Whether it is too small to matter.
    """

    angle: float
    is_straight: bool

    @classmethod
    def between(cls, start: Tensor, end: Tensor) -> Arc:
        """The shorter arc from `start` to `end`, vectors [P].

        Raises:
            InputError: if an end is zero, or the ends point in opposite directions to within √ε, so
                that rounding alone would decide which way the circle goes.
        """
        end = end.to(start)
        norm_a, norm_b = norm(start), norm(end)
        if norm_a == 0 or norm_b == 0:
            raise InputError("an end of a spherical interpolation is zero and has no direction")
        a, b = start.double() / norm_a, end.double() / norm_b
        # Kahan's formula: accurate for small angles and for those near π, where arccos is not.
        apart, together = norm(a - b), norm(a + b)
        rounding = torch.finfo(start.dtype).eps
        if together < math.sqrt(rounding):
            raise InputError(
                "the ends of a spherical interpolation point in opposite directions, and every "
                "great circle joins them",
                hint="take the straight line, or a trained curve: --curve bezier",
            )
        angle = 2 * math.atan2(apart, together)
        return cls(start, (), end, angle, angle * angle <= 8 * rounding)

    def coefficients(self, t: Array) -> Array:
        """ρ(t) sin((1 − t)Ω) / (sin Ω ‖a‖) and ρ(t) sin(tΩ) / (sin Ω ‖b‖)."""
        if self.is_straight:
            return np.stack([1 - t, t], axis=1)
        norms, rho = self._norms(t)
        sines = np.stack([np.sin((1 - t) * self.angle), np.sin(t * self.angle)], axis=1)
        coefficients: Array = rho * sines / (math.sin(self.angle) * norms)
        return coefficients

    def velocity(self, t: Array) -> Array:
        """Their derivatives."""
        if self.is_straight:
            return np.stack([-np.ones_like(t), np.ones_like(t)], axis=1)
        norms, rho = self._norms(t)
        sines = np.stack([np.sin((1 - t) * self.angle), np.sin(t * self.angle)], axis=1)
        cosines = np.stack([-np.cos((1 - t) * self.angle), np.cos(t * self.angle)], axis=1)
        change: Array = (norms[1] - norms[0]) * sines + rho * self.angle * cosines
        return change / (math.sin(self.angle) * norms)

    def _combination(self, coefficients: Array) -> Tensor:
        # Towards opposite ends the two terms are long and all but cancel: rounded once, at the end.
        a, b = coefficients.tolist()
        point: Tensor = self.start.double() * a
        return point.add_(self.end.double(), alpha=b).to(self.start)

    def _norms(self, t: Array) -> tuple[Array, Array]:
        norms = np.array([norm(self.start), norm(self.end)])
        return norms, ((1 - t) * norms[0] + t * norms[1])[:, None]


CURVES: dict[CurveKind, type[Bezier] | type[PolyChain]] = {"bezier": Bezier, "polychain": PolyChain}
"""What can be trained, by name."""


def straight(kind: CurveKind, start: Tensor, end: Tensor, num_bends: int = 1) -> Bezier | PolyChain:
    """The curve that is the straight line, its bends equidistant: where training begins.

    Raises:
        UsageError: if there is no bend.
    """
    if num_bends < 1:
        raise UsageError(f"a curve needs at least one bend, not {num_bends}")
    end = end.to(start)
    fractions = (k / (num_bends + 1) for k in range(1, num_bends + 1))
    return CURVES[kind](start, tuple(torch.lerp(start, end, f) for f in fractions), end)


@dataclass(frozen=True)
class CurvePlane:
    """The plane of a curve's ends and bends, its origin at the start (Garipov et al. 2018, fig. 1).

    Attributes:
        directions: Orthonormal [2, P]: from start to end, and the bend's side of that line.
        coordinates: Of start, bends and end [K + 2, 2], in Euclidean distances. Since Bézier and
            chain are affine, the curve is `coefficients(t) @ coordinates`.
        distances: Of the same points to the plane [K + 2]; rounding alone with one bend.
    """

    directions: Tensor
    coordinates: Array
    distances: Array

    def path(self, curve: Curve) -> Array:
        """The curve itself in the same coordinates, at points dense enough to be drawn [m, 2]."""
        t = np.union1d(np.linspace(0, 1, DRAWN), curve.kinks())
        path: Array = curve.coefficients(t) @ self.coordinates
        return path


def bend_plane(curve: Bezier | PolyChain) -> CurvePlane | None:
    """The plane to draw a curve in; `None` if the curve is a straight line, as an untrained one is.

    With one bend the plane holds the whole curve. With several it goes through both ends and along
    the first principal axis of the bends' distances from their line, and `distances` says what is
    left out.

    Raises:
        InputError: if its ends are equal.
    """
    start = curve.start.double()
    offsets = [point.double() - start for point in curve.points[1:]]
    *bends, chord = offsets
    length = norm(chord)
    if not length:
        raise InputError("the ends of the curve are one point: it spans no plane")
    first = chord / length
    sides = torch.stack([bend - first * torch.dot(first, bend) for bend in bends])
    largest = max(norm(side) for side in sides)
    # Control points are stored with a relative error ε: a smaller distance is rounding.
    rounding = torch.finfo(curve.start.dtype).eps * max(map(norm, curve.points))
    if largest <= rounding:
        return None
    principal = torch.linalg.eigh(sides @ sides.T).eigenvectors[:, -1]
    second = principal @ sides
    # The bend that is farthest off lies on the positive side.
    second = second * torch.sign(principal[principal.abs().argmax()])
    second = second - first * torch.dot(first, second)
    second = second / norm(second)
    coordinates = np.array(
        [[0.0, 0.0]] + [[dot(first, offset), dot(second, offset)] for offset in offsets]
    )
    distances = np.array(
        [0.0]
        + [
            norm(offset - x * first - y * second)
            for offset, (x, y) in zip(offsets, coordinates[1:], strict=True)
        ]
    )
    directions = torch.stack([first, second]).to(curve.start.dtype)
    return CurvePlane(directions, coordinates, distances)
