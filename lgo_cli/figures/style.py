"""Colours, sizes and words that all figures share; readable in print and in grey."""

from __future__ import annotations

import math
import re
import textwrap
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from numpy import ndarray as Array

from lgo_cli.figures.numbers import round_levels, tick_names, true_minus
from lgo_cli.loss_names import LOSSES
from lgo_cli.results import counted, spelled_out

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Okabe & Ito's palette, which the colour-blind can tell apart; the two differ in grey too.
TRAIN = "#0072B2"
TEST = "#D55E00"
ACCENT = "#CC79A7"
GREEN = "#009E73"
INK = "#222222"
FAINT = "#888888"

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
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
    "legend.fontsize": 7,
    "legend.handlelength": 1.8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.3,
    "svg.hashsalt": "lgo",
    "text.hinting": "no_hinting",  # else words are wider at one resolution than at another
    "pdf.fonttype": 42,
    "hatch.linewidth": 0.6,
}

LOG_RATIO = 5.0
"""Ratio of the largest to the smallest loss from which on an axis is logarithmic."""

CHARACTERS_PER_INCH = 17
"""Of a caption, on average."""

Size = tuple[float, float | None]
"""Width and height in inches; without a height, each kind of figure has its own."""

COLUMN: Size = (3.4, None)
"""As wide as a column of a paper of two."""

PADDING = 0.065
"""Inches between the parts of a figure."""

GAP = 0.03
"""Inches between two numbers on a line."""

NARROW = 5.0
"""Inches: figures that are less wide have their parts below each other."""


@contextmanager
def house_style() -> Iterator[None]:
    """Draw within lgo's settings, whatever the process's own or the user's matplotlibrc are."""
    with rc_context():
        rcdefaults()
        rcParams.update(_RC)
        yield


def new_figure(size: Size, height: float) -> Figure:
    """A figure outside of any global state.

    Args:
        size: What is asked for.
        height: In inches, where no height is asked for.
    """
    figure = Figure(figsize=(size[0], size[1] or height), layout="constrained")
    FigureCanvasAgg(figure)  # or each extent of a word makes one anew to be measured on
    return figure


def legend(over: Axes | Figure, handles: list[Any] | None = None) -> None:
    """Explain over a panel, or over the whole figure, in as few rows as its column's width allows.

    Args:
        over: The panel or figure.
        handles: What is explained; all that has a label in the panel by default.
    """
    if handles is None:
        handles = over.get_legend_handles_labels()[0] if isinstance(over, Axes) else []
    if not handles:
        return
    figure = over if isinstance(over, Figure) else over.get_figure(root=True)
    room = 0.97 * figure.get_figwidth() if figure is not None else math.inf
    if isinstance(over, Axes) and (place := over.get_subplotspec()) is not None:
        room /= place.get_gridspec().ncols
    lengths = [len(str(handle.get_label())) for handle in handles]
    columns = next(n for n in range(len(handles), 0, -1) if n == 1 or _width(lengths, n) <= room)
    how: dict[str, Any] = {
        "handles": handles, "ncols": columns, "borderpad": 0.1, "columnspacing": 1.0,
        "handletextpad": 0.5, "labelspacing": 0.3,
    }  # fmt: skip
    if isinstance(over, Figure):
        over.legend(loc="outside upper right", borderaxespad=0.3, **how)
    else:
        over.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.3, **how)


def _width(lengths: list[int], columns: int) -> float:
    """Inches that labels of so many characters take: 7 pt make 0.05 a character, handles 0.4."""
    return sum(0.4 + 0.05 * float(part.max()) for part in np.array_split(lengths, columns))


def settle(figure: Figure, size: Size) -> None:
    """Make room for legend and caption, and no more, unless the height was asked for.

    The layout is final then: each format and resolution would find another one, with words that are
    cut off.
    """
    write_powers(figure)
    write_minus(figure)
    if size[1] is None:
        _choose_height(figure)
    _lay_out(figure)
    figure.set_layout_engine(None)
    for axes in figure.axes if len(figure.axes) > 1 else ():
        _shrink_label(axes)
    for axes in _all_axes(figure):
        _thin_out(axes)


def _all_axes(figure: Figure) -> list[Any]:
    """Axes, each with its colour bar."""
    return [one for axes in figure.axes for one in (axes, *axes.child_axes)]


def _shrink_label(axes: Any) -> None:
    """Write what stands beside a panel smaller where it is longer than that, down to 5 pt.

    It would run into the next panel's, or be cut off.
    """
    label, room = axes.yaxis.label, axes.get_window_extent().height + GAP * axes.figure.dpi
    length = label.get_window_extent().height
    if length > room:
        label.set_fontsize(max(5.0, label.get_fontsize() * room / length))


def _thin_out(axes: Any) -> None:
    """Leave out names that would run into the one below, and of numbers in a row every other."""
    boxes = [(name, name.get_window_extent()) for name in axes.yaxis.get_ticklabels()]
    top = -math.inf
    for name, box in sorted(boxes, key=lambda found: found[1].y0):
        name.set_visible(box.y0 >= top)
        top = box.y1 if box.y0 >= top else top
    if isinstance(axes.xaxis.get_major_formatter(), ScalarFormatter):
        low, high = axes.get_window_extent().intervalx
        row = [(name, name.get_window_extent()) for name in axes.xaxis.get_ticklabels()]
        row = [(name, box) for name, box in row if box.x1 > low and box.x0 < high]  # of those seen
        gap = GAP * axes.get_figure(root=True).dpi
        step = next(
            n
            for n in range(1, len(row) + 2)
            if all(left.x1 + gap <= right.x0 for (_, left), (_, right) in pairwise(row[::n]))
        )
        for rank, (name, _) in enumerate(row):
            name.set_visible(rank % step == 0)


def _choose_height(figure: Figure) -> None:
    _execute(figure)
    parts = [*figure.legends, figure._supxlabel]  # type: ignore[attr-defined]
    heights = [part.get_window_extent().height for part in parts if part is not None]
    figure.set_figheight(figure.get_figheight() + sum(heights) / figure.dpi)
    if any(axes.get_box_aspect() is not None for axes in figure.axes):
        # A picture of a given shape may be kept low by the words at its sides.
        _lay_out(figure)
        boxes = [axes.get_tightbbox() for axes in figure.axes]
        heights += [max(box.height for box in boxes if box is not None)]
        height = sum(heights) / figure.dpi + PADDING * (len(heights) + 1)
        figure.set_figheight(min(figure.get_figheight(), height))


def _lay_out(figure: Figure) -> None:
    """Until all is inside and nothing moves, or thrice: words move axes, and axes words."""
    after = _places(figure)
    for count in range(1, 11):
        before = after
        _execute(figure)
        after = _places(figure)
        if (count >= 3 or after == before) and _is_inside(figure):
            return


def _places(figure: Figure) -> list[Any]:
    return [axes.get_position(original=True).bounds for axes in figure.axes]


def _execute(figure: Figure) -> None:
    """One pass of the layout alone: that of a drawing costs as much again for all the rest."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)


def _is_inside(figure: Figure) -> bool:
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return bool(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height)


def cut_names(names: list[str], longest: int) -> list[str]:
    """Names of so many characters at most, both ends of longer ones, cut so as to tell them apart.

    Where no cut does, they are numbered.
    """
    heads = sorted(range(longest), key=lambda head: abs(head - longest // 2 + 1))
    for head in heads:
        short = [_cut(name, head, longest) for name in names]
        if len(set(short)) == len(names):
            return short
    return [f"{rank}: {_cut(name, heads[0], longest)}" for rank, name in enumerate(names, start=1)]


def _cut(name: str, head: int, longest: int) -> str:
    """So many characters of a long name's head, and of its tail what there is room for."""
    tail = longest - 1 - head
    return name if len(name) <= longest else f"{name[:head]}…{name[len(name) - tail :]}"


def loss_label(
    results: Mapping[str, Any],
    word: str = "mean loss",
    *,
    logarithmic: bool = False,
    space: str = " ",
) -> str:
    """Name of the loss, its unit, and whether its axis is logarithmic, `space` before that.

    A loss of one's own has no unit that is known; its name stands there.
    """
    name = results["measured"]["loss"] if "measured" in results else results["recipe"]["loss"]
    unit = LOSSES.get(name) or name.rpartition(":")[2]
    return f"{word} ({unit})" + (f",{space}logarithmic" if logarithmic else "")


def caption(figure: Figure, results: Mapping[str, Any], *more: str) -> None:
    """State under a figure what was measured, in as many lines as its width asks for."""
    parts = [f"{spelled_out(results['model'])} on {spelled_out(results['dataset'])}"]
    if "measured" in results:
        measured = results["measured"]
        parts.append(
            f"{spelled_out(measured['loss']).replace('_', ' ')}, "
            + counted(measured["num_samples"], f"{measured['split']} sample")
        )
        if measured["batchnorm"] != "none":
            parts.append(f"batch norm {measured['batchnorm']}")
        if measured["dtype"] != "float32":
            parts.append(measured["dtype"])
    most = int(CHARACTERS_PER_INCH * figure.get_figwidth())
    lines = [""]
    for part in [*parts, *more]:
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        if len(joined) <= most:
            lines[-1] = joined
        else:
            lines += textwrap.wrap(_breakable(part, most), most, break_on_hyphens=False)
    figure.supxlabel("\n".join(filter(None, lines)), fontsize=6.5, color=FAINT)


def _breakable(text: str, most: int) -> str:
    """The same text with spaces in words longer than a line, behind a sign where one has any."""
    return re.sub(rf"(?=\S{{{most + 1}}})(\S{{0,{most - 1}}}[_./-]|\S{{{most}}})", r"\1 ", text)


def ink_on(red: float, green: float, blue: float, _alpha: float = 1.0) -> str:
    """A colour that is readable on another: white on dark, ink on light."""
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK


def spans_decades(values: Array) -> bool:
    """Whether finite values are positive and spread so far that a logarithm shows them better."""
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > LOG_RATIO * finite.min())


LONGEST_NUMBER = 8
"""Characters of a number at a tick, of which a handful fit along an axis."""


class _Powers(ScalarFormatter):
    """Where values have a power of ten in common, each has it, and none stands at the axis's end.

    There it would lie on the axis's label, or on the legend. Where they are long, far from zero,
    all but the first that is seen are what they exceed it by.
    """

    def format_ticks(self, values: Any) -> list[str]:
        names: list[str] = super().format_ticks(values)
        if super().get_offset() or max(map(len, names), default=0) > LONGEST_NUMBER:
            assert self.axis is not None
            low, high = sorted(self.axis.get_view_interval())
            room = 1e-3 * (high - low)
            seen = [i for i, value in enumerate(values) if low - room <= value <= high + room]
            names = [""] * len(names)
            for i, name in zip(seen, tick_names(np.asarray(values)[seen]), strict=True):
                names[i] = self.fix_minus(name)
        return names

    def get_offset(self) -> str:
        return ""


def write_minus(figure: Figure) -> None:
    """Write minus signs in all words; ticks have theirs."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(true_minus(text.get_text()))


def write_powers(figure: Figure) -> None:
    """Write powers of ten at the ticks of all axes and colour bars that choose their own names."""
    for axes in _all_axes(figure):
        for axis in axes._axis_map.values():
            if type(axis.get_major_formatter()) is ScalarFormatter:
                axis.set_major_formatter(_Powers(useOffset=False))


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
    log_axis(axes, float(finite.min() / room), float(finite.max() * room))
    return True


def log_axis(axes: Axes, low: float, high: float) -> None:
    """Make the y axis logarithmic from low to high, both positive, with round numbers on it."""
    ticks = round_levels(low, high, logarithmic=True, about=6)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks.tolist(), labels=tick_names(ticks))


def number(value: Any) -> float:
    """A result as a float: manifests write non-finite ones as strings, and `null` is NaN here."""
    return math.nan if value is None else float(value)


def interval_of(recorded: Any) -> tuple[float, float] | None:
    """An interval of results as numbers; `None` if there is none, or no finite one."""
    low, high = map(number, recorded or (None, None))
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
