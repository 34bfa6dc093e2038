"""How far a picture has to reach: to where the loss is a multiple of the centre's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_UP, Context
from typing import TYPE_CHECKING

from lgo_cli.errors import NumericsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lgo_cli.config import Range

MAX_DOUBLINGS = 6
"""Steps of doubling from 1 outwards: a side that does not get there within 64 ends there."""

MAX_HALVINGS = 30
"""Steps of halving from 1 inwards, to 1e-9: below, weights in float32 do not move at all."""

NUM_BISECTIONS = 4
"""The bound is at most 1/16 of itself further out than the crossing, which no eye sees."""

_SIDES = (("+x", 1, 0), ("-x", -1, 0), ("+y", 0, 1), ("-y", 0, -1))


@dataclass(frozen=True)
class AutoRange:
    """Ranges of a picture, found from the loss.

    Attributes:
        x_range: Of the first coordinate; three significant digits, rounded outwards.
        y_range: Of the second.
        num_evaluations: Losses measured.
        warnings: Which sides never got there.
    """

    x_range: Range
    y_range: Range
    num_evaluations: int
    warnings: tuple[str, ...] = ()


def auto_range(loss: Callable[[float, float], float], center: float, ratio: float) -> AutoRange:
    """Find on each side of both axes where the loss reaches `ratio` times the centre's.

    Doubling or halving brackets a crossing between two powers of two, bisection narrows it down.
    Each side starts at the power where the side before it ended. A loss that is not finite counts
    as above. What is asked for depends on the losses alone, so that a journal can answer it again.
    The loss need not be monotonic: any crossing may be found, and a dip or bump within a doubling
    is missed.

    Args:
        loss: At coordinates (x, y).
        center: At (0, 0).
        ratio: Above 1.

    Raises:
        UsageError: if the ratio is not above 1.
        NumericsError: if the centre's loss has no multiples, if no side gets there, or if the loss
            jumps next to the centre.

    Cost: commonly 6 to 8 evaluations a side; at most 42.
    """
    if not (math.isfinite(ratio) and ratio > 1):
        raise UsageError(
            f"--auto-range {ratio:g}: the loss grows from the centre's, so the ratio is above 1",
            hint="--auto-range 10",
        )
    target = ratio * center
    if not (math.isfinite(target) and center > 0):
        raise NumericsError(
            f"the loss at the centre is {center:g}: --auto-range has nothing to multiply",
            hint="give the ranges themselves: --x-range, --y-range",
        )
    search = _Search(loss, target)
    bounds = [search.bound(sign_x, sign_y, name) for name, sign_x, sign_y in _SIDES]
    missed = [name for (name, *_), bound in zip(_SIDES, bounds, strict=True) if bound is None]
    limit = 2.0**MAX_DOUBLINGS
    if len(missed) == len(_SIDES):
        raise NumericsError(
            f"the loss never reaches {target:.4g}, {ratio:g} times the centre's, within {limit:g}",
            hint="a smaller --auto-range, or the ranges themselves: --x-range, --y-range",
        )
    right, left, up, down = (limit if bound is None else _outwards(bound) for bound in bounds)
    return AutoRange(
        x_range=(-left, right),
        y_range=(-down, up),
        num_evaluations=search.num_evaluations,
        warnings=tuple(
            f"along {name} the loss stays below {ratio:g} times the centre's: "
            f"the range ends at {limit:g}"
            for name in missed
        ),
    )


class _Search:
    """Crossings of one loss; remembers at which power of two the last one lay."""

    def __init__(self, loss: Callable[[float, float], float], target: float) -> None:
        self.loss = loss
        self.target = target
        self.exponent = 0
        self.num_evaluations = 0

    def bound(self, sign_x: int, sign_y: int, name: str) -> float | None:
        """Where the loss is above the target, a little outside of a crossing; `None` if nowhere."""

        def above(distance: float) -> bool:
            self.num_evaluations += 1
            value = self.loss(sign_x * distance, sign_y * distance)
            return not math.isfinite(value) or value >= self.target

        exponent = self.exponent
        if above(2.0**exponent):
            while above(2.0 ** (exponent - 1)):
                exponent -= 1
                if exponent <= -MAX_HALVINGS:
                    raise NumericsError(
                        f"along {name} the loss is above {self.target:.4g} as near as "
                        f"{2.0**exponent:.1g} to the centre",
                        hint="give the ranges themselves: --x-range, --y-range",
                    )
        else:
            exponent += 1
            while exponent <= MAX_DOUBLINGS and not above(2.0**exponent):
                exponent += 1
            if exponent > MAX_DOUBLINGS:
                return None
        self.exponent = exponent
        inside, outside = 2.0 ** (exponent - 1), 2.0**exponent
        for _ in range(NUM_BISECTIONS):
            middle = (inside + outside) / 2
            if above(middle):
                outside = middle
            else:
                inside = middle
        return outside


def _outwards(value: float) -> float:
    """The next number of three significant digits that is not below."""
    return float(Context(prec=3, rounding=ROUND_UP).create_decimal(value))
