"""Heat maps: how far a surface may be off, how convex it is, barriers between checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from numpy import ndarray as Array

from lgo_cli.figures.labels import label_lines, name_points
from lgo_cli.figures.numbers import round_levels, tick_names
from lgo_cli.figures.plane import (
    HATCH,
    add_bar,
    cell_edges,
    draw_cells,
    draw_points,
    hatch_missing,
    marks,
    new_plane,
    remarks,
)
from lgo_cli.figures.scale import LossScale
from lgo_cli.figures.style import (
    COLUMN,
    INK,
    Size,
    caption,
    cut_names,
    house_style,
    ink_on,
    legend,
    loss_label,
    new_figure,
    number,
    settle,
)
from lgo_cli.results import alike

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = "YlOrBr"
"""From light to dark, steadily: more ink is more."""

RATIO_ERROR = 0.05
"""Error of |λmin / λmax| above which a cell says nothing."""

SMALLEST = 4.5
"""Points: below that, numbers are not read."""

LONGEST_NAME = 16
"""Characters of a name beside a cell of a matrix."""

_WHITE = ListedColormap(["white"])


def draw_error_map(
    arrays: Mapping[str, Any], results: Mapping[str, Any], size: Size = COLUMN
) -> Figure:
    """How far each filled cell may be off, as a share of its loss, and which were measured.

    Cells that were filled with nothing, between others that are not finite, are hatched as these.

    Args:
        arrays: Of `contour.npz`, with `measured` and `error_estimate`, both [ny, nx]; the latter
            in units of the loss.
        results: Of `lgo contour`.
        size: Inches.
    """
    x, y, measured = arrays["x"], arrays["y"], arrays["measured"]
    share = error_share(arrays, results)
    with house_style():
        figure, axes, to_scale = new_plane(x, y, results, size)
        handles: list[Any] = []
        positive = share[np.isfinite(share) & (share > 0)]
        if len(positive):
            # Below a thousandth of the largest, one error is as good as another.
            high = float(positive.max())
            low = max(float(positive.min()), high / 1000)
            norm = LogNorm(low, high * 1.001)  # also where all are equal
            _draw_heat(figure, axes, x, y, np.maximum(share, low), norm,
                       "error estimate / loss")  # fmt: skip
        known = np.where(measured & np.isfinite(arrays["loss"]), 0.0, np.nan)
        axes.pcolormesh(
            cell_edges(x), cell_edges(y), np.ma.masked_invalid(known), cmap=_WHITE, zorder=0.5
        )
        hatch_missing(axes, arrays["loss"], handles)
        draw_cells(axes, x, y, measured, handles)
        legend(figure, handles)
        largest = f"largest estimate {np.nanmax(share):.2g}" if len(positive) else "nothing filled"
        caption(figure, results, *remarks(results, to_scale=to_scale), largest)
        settle(figure, size)
    return figure


def error_share(arrays: Mapping[str, Any], results: Mapping[str, Any]) -> Array:
    """Error estimates [ny, nx] over max(|loss|, floor), as the tolerance counts them.

    NaN where a cell was measured or filled with nothing.
    """
    loss = np.asarray(arrays["loss"], dtype=float)
    filled = ~arrays["measured"] & np.isfinite(loss)
    floor = number(results["filling"]["floor"])
    share: Array = np.full(loss.shape, np.nan)
    share[filled] = arrays["error_estimate"][filled] / np.maximum(np.abs(loss[filled]), floor)
    return share


def draw_convexity(
    arrays: Mapping[str, Any], results: Mapping[str, Any], size: Size = COLUMN
) -> Figure:
    """|λmin / λmax| of the Hessian on a coarse grid, under the loss's contour lines.

    Near zero the loss is almost convex, whatever the plane shows (Li et al. 2018, section 6).
    Cells where it is not known to 0.05 are hatched: there products round too much.

    Args:
        arrays: Of `contour.npz`, with `convexity_x` [cx], `convexity_y` [cy], `convexity_ratio` and
            `convexity_ratio_error` [cy, cx].
        results: Of `lgo contour`.
        size: Inches.
    """
    x, y, loss = arrays["x"], arrays["y"], arrays["loss"]
    is_known = arrays["convexity_ratio_error"] <= RATIO_ERROR
    ratio = np.where(is_known, arrays["convexity_ratio"], np.nan)
    with house_style():
        figure, axes, to_scale = new_plane(x, y, results, size)
        handles: list[Any] = []
        missing = int(np.sum(~is_known))
        if missing:
            axes.patch.set(**HATCH)
            handles.append(
                Patch(label=f"not known to {RATIO_ERROR} ({missing})", linewidth=0.5, **HATCH)
            )
        if missing < ratio.size:
            high = float(np.nanmax(ratio)) or 1.0
            _draw_heat(
                figure, axes, arrays["convexity_x"], arrays["convexity_y"], ratio,
                Normalize(0, high), "|λmin / λmax| of the Hessian",
            )  # fmt: skip
        points = draw_points(axes, arrays, results, handles)
        legend(figure, handles)
        caption(
            figure, results, f"{ratio.size} cells, lines: {loss_label(results)}",
            *remarks(results, to_scale=to_scale)[1:], *marks(results),
        )  # fmt: skip
        settle(figure, size)
        taken = name_points(axes, points, axes.get_window_extent())
        if np.isfinite(loss).any():
            _draw_lines(figure, axes, x, y, loss, LossScale.of(loss, results), taken)
    return figure


def _draw_heat(
    figure: Figure, axes: Axes, x: Array, y: Array, values: Array, norm: Normalize, label: str
) -> None:
    """Cells [ny, nx] as patches of colour around their coordinates, with a bar."""
    mesh = axes.pcolormesh(
        cell_edges(x), cell_edges(y), np.ma.masked_invalid(values), norm=norm, cmap=SHADES,
        edgecolors="face", linewidth=0.2,
    )  # fmt: skip
    bar = add_bar(figure, axes, mesh, label)
    if isinstance(norm, LogNorm):
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        ticks = np.array([low])
        if high > 1.001 * low:  # else they are one value on the bar
            ticks = round_levels(low, high, logarithmic=True, about=6)
        bar.set_ticks(ticks.tolist(), labels=tick_names(ticks))


def _draw_lines(
    figure: Figure, axes: Axes, x: Array, y: Array, loss: Array, scale: LossScale,
    taken: list[Any],
) -> None:  # fmt: skip
    finite = loss[np.isfinite(loss)]
    crossed = (scale.levels > finite.min()) & (scale.levels < finite.max())
    if not crossed.any():
        return
    lines = axes.contour(
        x, y, np.ma.masked_invalid(loss), levels=scale.levels[crossed].tolist(), colors=INK,
        linewidths=0.6,
    )  # fmt: skip
    names = dict(zip(scale.levels.tolist(), scale.names, strict=True))
    label_lines(figure, axes, lines, names, taken, lambda level: "white")


def draw_matrix(
    arrays: Mapping[str, Any], results: Mapping[str, Any], size: Size = COLUMN
) -> Figure:
    """Barriers between each two of k checkpoints, written out with their 95 % intervals.

    Where cells are too small to read these they are left out, and then the barriers too: colours
    and their bar tell.

    Args:
        arrays: Of `interp.npz`, with `matrix_barrier`, `matrix_lower` and `matrix_upper`, [k, k].
        results: Of `lgo interp`, with the checkpoints' names in `matrix`.
        size: Inches.
    """
    k = len(results["matrix"]["names"])
    full = {(i, j): _barrier(arrays, i, j) for i, j in np.ndindex(k, k) if i != j}
    alone = {pair: text.split("\n")[0] for pair, text in full.items()}
    is_hatched = not all(np.isfinite(arrays["matrix_barrier"][pair]) for pair in full)
    has_intervals = any("[" in text for text in full.values())
    for texts, said in (
        (full, ["in brackets: 95 % intervals"] if has_intervals else []),
        (alone, []),
        ({}, ["hatched: not finite"] if is_hatched else []),
    ):
        figure = _draw_matrix(arrays, results, size, texts, said)
        if all(float(text.get_fontsize()) >= SMALLEST for text in figure.axes[0].texts):
            break
    return figure


def _draw_matrix(
    arrays: Mapping[str, Any], results: Mapping[str, Any], size: Size,
    texts: Mapping[tuple[int, int], str], said: Sequence[str],
) -> Figure:  # fmt: skip
    """The matrix with these words in its cells, in the largest letters up to 7 pt that fit."""
    barriers = np.array(arrays["matrix_barrier"], dtype=float)
    names = cut_names(results["matrix"]["names"], LONGEST_NAME)
    k = len(names)
    np.fill_diagonal(barriers, 0.0)
    finite = barriers[np.isfinite(barriers)]
    with house_style():
        figure = new_figure(size, size[0] - 0.3)
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.set_box_aspect(1)
        high = float(finite.max(initial=0.0)) or 1.0
        norm, colours = Normalize(0, high), colormaps[SHADES]
        axes.patch.set(**HATCH)
        mesh = axes.pcolormesh(
            np.arange(k + 1) - 0.5, np.arange(k + 1) - 0.5, np.ma.masked_invalid(barriers),
            norm=norm, cmap=SHADES, edgecolors="white", linewidth=1,
        )  # fmt: skip
        longest = max(map(len, names))
        for rank in range(k):
            # A checkpoint has no barrier to itself.
            axes.add_patch(Rectangle((rank - 0.5, rank - 0.5), 1, 1, facecolor="white"))
        for (i, j), text in texts.items():
            known = np.isfinite(barriers[i, j])
            colour = colours(norm(min(float(barriers[i, j]), high)))
            axes.text(
                j, i, text, ha="center", va="center", in_layout=False,
                color=ink_on(*colour) if known else INK,
                path_effects=None if known else [withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
        axes.set_xticks(range(k), names, rotation=0 if longest * k <= 32 else 40,
                        ha="center" if longest * k <= 32 else "right",
                        rotation_mode="anchor" if longest * k > 32 else None)  # fmt: skip
        axes.set_yticks(range(k), names)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        add_bar(figure, axes, mesh, loss_label(results, "barrier"))
        caption(figure, results, *said)
        settle(figure, size)
        lines = [text.split("\n") for text in texts.values()]
        most = max(map(len, lines), default=1)
        widest = max((len(line) for cell in lines for line in cell), default=1)
        room = 72 * axes.get_window_extent().width / figure.dpi / k
        for words in axes.texts:
            words.set_fontsize(min(7.0, room / max(4 / 3 * most, 0.65 * widest)))
    return figure


SHORT_INTERVAL = 6
"""Characters of an interval that takes one line of a cell."""


def _barrier(arrays: Mapping[str, Any], i: int, j: int) -> str:
    """A barrier over the ends of its interval, on lines that a narrow cell has room for."""
    keys = ("barrier", "lower", "upper")
    value, low, high = (float(arrays[f"matrix_{key}"][i, j]) for key in keys)
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "∞"
    if not np.isfinite(low + high):
        return f"{value:.3g}"  # over one sample
    height, *ends = alike((value, low, high), 3)
    interval = f"[{', '.join(ends)}]"
    if len(interval) > SHORT_INTERVAL:
        interval = interval.replace(" ", "\n")
    return f"{height}\n{interval}"
