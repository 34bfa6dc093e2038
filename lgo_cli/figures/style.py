"""Colours, sizes and words that all figures share; readable in print and in grey."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]

# Okabe & Ito's palette, which the colour-blind can tell apart; the two differ in grey too.
TRAIN = "#0072B2"
TEST = "#D55E00"
ACCENT = "#CC79A7"
INK = "#222222"
FAINT = "#888888"

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.6,
    "savefig.dpi": 200,
    "svg.hashsalt": "lgo",
    "pdf.fonttype": 42,
    "hatch.linewidth": 0.6,
}

LOSS_UNITS = {"cross_entropy": "nats", "squared_error": "½ squared distance"}
LOG_RATIO = 5.0
"""Ratio of the largest to the smallest loss from which on an axis is logarithmic."""

CHARACTERS_PER_INCH = 15
"""Of a caption, on average."""


@contextmanager
def house_style() -> Iterator[None]:
    """Draw within lgo's settings, whatever the process's own or the user's matplotlibrc are."""
    with rc_context():
        rcdefaults()
        rcParams.update(_RC)
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches, outside of any global state."""
    return Figure(figsize=(width, height), layout="constrained")


def loss_label(results: Mapping[str, Any], word: str = "mean loss") -> str:
    """Name and unit of the loss."""
    name = results["measured"]["loss"] if "measured" in results else results["recipe"]["loss"]
    return f"{word} ({LOSS_UNITS[name]})"


def caption(figure: Figure, results: Mapping[str, Any], *more: str) -> None:
    """State under a figure what was measured, in as many lines as its width asks for."""
    parts = [f"{results['model']} on {results['dataset']}"]
    if "measured" in results:
        measured = results["measured"]
        parts.append(
            f"{measured['loss'].replace('_', ' ')}, {measured['num_samples']:,} "
            f"{measured['split']} samples"
        )
        if measured["batchnorm"] != "none":
            parts.append(f"batch norm {measured['batchnorm']}")
        if measured["dtype"] != "float32":
            parts.append(measured["dtype"])
    lines = [""]
    for part in [*parts, *more]:
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        if len(joined) <= CHARACTERS_PER_INCH * figure.get_figwidth() or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(part)
    figure.supxlabel("\n".join(lines), fontsize=7.5, color=FAINT)


def spans_decades(values: Array) -> bool:
    """Whether finite values are positive and spread so far that a logarithm shows them better."""
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > LOG_RATIO * finite.min())


def round_levels(low: float, high: float, *, logarithmic: bool, about: int) -> Array:
    """Round numbers inside [low, high], for lines and ticks.

    Equal steps, or where they are factors, 1, 2 and 5 times powers of ten, or more or fewer.

    Args:
        low: Positive if logarithmic.
        high: Above `low`.
        logarithmic: Whether steps are factors.
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
    return ticks


def _within(values: Array, low: float, high: float) -> Array:
    inside: Array = values[(values >= low) & (values <= high)]
    return inside


def tick_names(values: Array) -> list[str]:
    """The fewest digits, three or more, that tell ascending values apart.

    Where that takes more than six, the first is written in full and the others as what they exceed
    it by.
    """
    for digits in range(3, 7):
        names = [_plain(float(value), digits) for value in values]
        if len(set(names)) == len(names):
            return names
    return [f"{values[0]:.12g}", *(f"+{value - values[0]:.3g}" for value in values[1:])]


def _plain(value: float, digits: int) -> str:
    """So many digits, with a power of ten only where there would be many zeros."""
    if value and not 1e-4 <= abs(value) < 1e5:
        return f"{value:.{digits}g}"
    return np.format_float_positional(value, digits, fractional=False, trim="-")


def log_axis_if_wide(axes: Axes, *values: Array) -> bool:
    """Make the y axis logarithmic, with round numbers on it, where the values span decades.

    Returns:
        Whether it did.
    """
    together = np.concatenate([np.ravel(value) for value in values])
    if not spans_decades(together):
        return False
    finite = together[np.isfinite(together)]
    room = (finite.max() / finite.min()) ** 0.06
    low, high = float(finite.min() / room), float(finite.max() * room)
    ticks = round_levels(low, high, logarithmic=True, about=6)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks.tolist(), labels=tick_names(ticks))
    return True


def number(value: Any) -> float:
    """A result as a float: manifests write non-finite ones as strings, and `null` is NaN here."""
    return math.nan if value is None else float(value)
