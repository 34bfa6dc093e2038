"""Coordinates at which a line or a plane is measured."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgo_cli.config import Range


def linspace(bounds: Range, num_points: int) -> list[float]:
    """Coordinates lo + (hi - lo) i / (n - 1), each rounded once.

    The bounds are taken as the decimals that their shortest representation shows and the fraction
    is exact until the end, so that grids which share points share their bits and an odd grid
    over [-a, a] holds 0.0 itself.

    Args:
        bounds: lo < hi.
        num_points: n >= 2.
    """
    low, high = (Fraction(Decimal(repr(bound))) for bound in bounds)
    return [
        float((low * (num_points - 1 - i) + high * i) / (num_points - 1)) for i in range(num_points)
    ]


def alpha_grid(bounds: Range, num_points: int, required: Sequence[float]) -> list[float]:
    """Equidistant coordinates, with the required ones put in where they are missing.

    Args:
        bounds: First and last of the equidistant ones.
        num_points: Of the equidistant ones.
        required: Must be on the grid, also outside the bounds.
    """
    return sorted({*linspace(bounds, num_points), *required})
