"""Round numbers at axes, and how numbers are written."""

from __future__ import annotations

import math
import re

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy import ndarray as Array


def round_levels(low: float, high: float, *, logarithmic: bool, about: int) -> Array:
    """Round numbers inside [low, high], for lines and ticks.

    At equal steps; on a logarithmic scale at some digits, such as 1, 2 and 5, times powers of ten,
    unless fewer than two of these are inside.

    Args:
        low: Positive if logarithmic.
        high: Above `low`.
        logarithmic: Whether they are on a logarithmic scale.
        about: How many are wanted, more or less.
    """
    if not logarithmic:
        locator = MaxNLocator(round(1.3 * about), steps=[1, 2, 2.5, 5, 10])
        return _within(np.asarray(locator.tick_values(low, high)), low, high)
    decades = np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = _within((10.0 ** decades[:, None] * np.array(digits)).ravel(), low, high)
        if len(ticks) <= 1.5 * about:
            break
    else:
        ticks = ticks[:: math.ceil(len(ticks) / about)]
    return ticks if len(ticks) > 1 else round_levels(low, high, logarithmic=False, about=about)


def _within(values: Array, low: float, high: float) -> Array:
    inside: Array = values[(values >= low) & (values <= high)]
    return inside


def tick_names(values: Array) -> list[str]:
    """Ascending values in the fewest digits, at least three, that tell them apart; in one notation.

    What is written is off by at most a thousandth of the way to the next value, or to zero. Where
    that takes more than six digits, the first is written in full and the others as their excess
    over it. If one needs a power of ten, all have one.
    """
    powers = _take_powers(values)
    gaps = np.abs(np.diff(values, prepend=0.0, append=np.inf))
    room = np.minimum(gaps[:-1], gaps[1:]) / 1000
    for digits in range(3, 7):
        named = np.array([float(f"{value:.{digits - 1}e}") for value in values])
        if np.all(np.abs(named - values) <= room):
            return [_name(float(value), digits, power=powers) for value in values]
    first, beyond = float(values[0]), values[1:] - values[0]
    return [
        _name(first, 12, power="e" in f"{first:.12g}"),
        *(f"+{_name(float(value), 3, power=_take_powers(beyond))}" for value in beyond),
    ]


def _take_powers(values: Array) -> bool:
    return any(value and not 1e-4 <= abs(value) < 1e5 for value in values)


def true_minus(text: str) -> str:
    """Text whose negative numbers have a minus sign, not a hyphen as names have."""
    return re.sub(r"(?<![^\s\[(])-(?=[\d.∞])", "−", text)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _name(value: float, digits: int, *, power: bool) -> str:
    """So many digits, without zeros at the end."""
    if value and power:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        raised = "10" + str(int(exponent)).translate(_RAISED)
        return true_minus({"1": raised, "-1": f"-{raised}"}.get(mantissa, f"{mantissa}×{raised}"))
    return true_minus(np.format_float_positional(value, digits, fractional=False, trim="-"))
