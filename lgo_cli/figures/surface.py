"""Loss on a plane, from above and in perspective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

from lgo_cli.figures.style import (
    INK,
    caption,
    house_style,
    loss_label,
    new_figure,
    round_levels,
    spans_decades,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

NUM_BANDS = 24
NUM_LINES = 10
COLOURS = "viridis"
TRAJECTORY = "#E69F00"
_ISOMETRIC = ("eigen", "pca", "checkpoints")


def draw_contour(arrays: Mapping[str, Any], results: Mapping[str, Any]) -> Figure:
    """Filled contours with labelled lines; levels are logarithmic where the loss spans decades.

    Args:
        arrays: Of `contour.npz`.
        results: Of `lgo contour`.
    """
    x, y = arrays["x"], arrays["y"]
    loss = np.ma.masked_invalid(arrays["loss"])
    with house_style():
        figure = new_figure(6.4, 5.4)
        axes = figure.subplots()
        axes.grid(visible=False)
        if loss.count():
            _draw_levels(figure, axes, x, y, loss, results)
        if loss.mask.any():
            _hatch_missing(axes, int(np.ma.getmaskarray(loss).sum()))
        _draw_points(axes, results)
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(y[0], y[-1])
        axes.set_xlabel(results["axis_labels"][0])
        axes.set_ylabel(results["axis_labels"][1])
        stretch = (y[-1] - y[0]) / (x[-1] - x[0])
        if results["plane"] not in _ISOMETRIC:
            axes.set_box_aspect(1)
        elif 1 / 3 <= stretch <= 3:
            axes.set_aspect("equal")
        axes.legend(loc="upper right", framealpha=0.85, frameon=True, edgecolor="none")
        caption(figure, results, *_cells(results))
    return figure


def draw_surface_3d(arrays: Mapping[str, Any], results: Mapping[str, Any]) -> Figure:
    """The same surface in perspective, its height logarithmic where the contours' levels are.

    Args:
        arrays: Of `contour.npz`.
        results: Of `lgo contour`.
    """
    loss = np.array(arrays["loss"], dtype=float)
    logarithmic = spans_decades(loss)
    loss[~np.isfinite(loss)] = np.nan
    height = np.log10(loss) if logarithmic else loss
    X, Y = np.meshgrid(arrays["x"], arrays["y"])
    with house_style():
        figure = new_figure(6.4, 5.4)
        axes: Any = figure.add_subplot(projection="3d", computed_zorder=False)
        if np.isfinite(height).any():
            low, high = float(np.nanmin(height)), float(np.nanmax(height))
            norm = Normalize(low, high if high > low else low + 1)
            colours = colormaps[COLOURS](norm(np.ma.masked_invalid(height)))
            axes.plot_surface(
                X, Y, height, facecolors=colours, rstride=1, cstride=1, linewidth=0.15,
                edgecolor=(0, 0, 0, 0.25), antialiased=True, shade=False, zorder=1,
            )  # fmt: skip
            center = float(np.log10(results["loss_at_center"])) if logarithmic else None
            axes.plot(
                [0], [0], [results["loss_at_center"] if center is None else center], "o",
                color="white", markeredgecolor=INK, markersize=6, zorder=3, label="run",
            )  # fmt: skip
            axes.legend(loc="upper left")
        axes.set_xlabel(_short(results["axis_labels"][0]), labelpad=6)
        axes.set_ylabel(_short(results["axis_labels"][1]), labelpad=6)
        axes.set_zlabel(loss_label(results), labelpad=8)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_major_locator(MaxNLocator(5))
        if logarithmic and np.isfinite(height).any():
            ticks = round_levels(10**low, 10**high, logarithmic=True, about=6)
            axes.set_zticks(np.log10(ticks), labels=[_three_digits(tick) for tick in ticks])
        axes.view_init(elev=32, azim=-58)
        axes.set_box_aspect((1, 1, 0.75), zoom=0.92)
        caption(figure, results, *_cells(results), *(["height logarithmic"] * logarithmic))
    return figure


def _draw_levels(
    figure: Figure, axes: Axes, x: Array, y: Array, loss: Any, results: Mapping[str, Any]
) -> None:
    low, high = float(loss.min()), float(loss.max())
    if not high > low:
        high = low + max(abs(low), 1.0) * 1e-6
    logarithmic = spans_decades(loss.compressed())
    spaced = np.geomspace if logarithmic else np.linspace
    norm = LogNorm(low, high) if logarithmic else Normalize(low, high)
    edges = spaced(low, high, NUM_BANDS + 1)
    # geomspace may round its ends inwards, and the extreme cells would fall outside.
    edges[0], edges[-1] = low, np.nextafter(high, np.inf)
    bands = axes.contourf(x, y, loss, levels=edges, norm=norm, cmap=COLOURS)
    bands.set_edgecolor("face")
    levels = round_levels(low, high, logarithmic=logarithmic, about=NUM_LINES)
    lines = axes.contour(
        x, y, loss, levels=levels.tolist(), colors="white", linewidths=0.7, alpha=0.9
    )
    axes.clabel(lines, levels[::2], fmt=_three_digits, fontsize=7, inline_spacing=3)
    bar = figure.colorbar(bands, ax=axes, shrink=0.86, pad=0.02)
    bar.add_lines(lines, erase=False)
    bar.set_ticks(levels.tolist(), labels=[_three_digits(level) for level in levels])
    bar.minorticks_off()
    bar.set_label(loss_label(results) + (", logarithmic" if logarithmic else ""))


def _three_digits(value: float) -> str:
    return f"{value:.3g}"


def _hatch_missing(axes: Axes, num_missing: int) -> None:
    """Hatch the background, which shows wherever a corner of a square has no finite loss."""
    hatch: dict[str, Any] = {"facecolor": "white", "edgecolor": "#999999", "hatch": "////"}
    axes.patch.set(**hatch)
    cells = "cell" if num_missing == 1 else "cells"
    label = f"not finite ({num_missing} {cells})"
    axes.fill_between([], [], [], label=label, linewidth=0.5, **hatch)


def _draw_points(axes: Axes, results: Mapping[str, Any]) -> None:
    trajectory = results["trajectory"]
    if trajectory:
        xs, ys = [p["x"] for p in trajectory], [p["y"] for p in trajectory]
        axes.plot(
            xs, ys, "-o", color=TRAJECTORY, markeredgecolor=INK, markeredgewidth=0.4,
            markersize=3.5, linewidth=1.2, label="trajectory, projected",
        )  # fmt: skip
        _annotate(axes, trajectory[:1])
    axes.plot(
        0, 0, "*", color="white", markeredgecolor=INK, markersize=12, label="run", linestyle=""
    )
    others = [marker for marker in results["markers"] if marker["label"] != "run"]
    for marker in others:
        axes.plot(marker["x"], marker["y"], "D", color="white", markeredgecolor=INK, markersize=6)
    _annotate(axes, others)


def _annotate(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    for point in points:
        axes.annotate(
            point["label"], (point["x"], point["y"]), xytext=(6, 6), textcoords="offset points",
            fontsize=8, bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none",
                              "alpha": 0.8},
        )  # fmt: skip


def _cells(results: Mapping[str, Any]) -> list[str]:
    return [f"{results['num_measured']:,} cells measured"]


def _short(label: str) -> str:
    """An axis label without its unit, for the slanted axes."""
    return label.partition(",")[0]
