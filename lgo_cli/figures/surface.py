"""Loss on a plane, from above."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.lines import Line2D
from numpy import ndarray as Array

from lgo_cli.figures.labels import label_lines, name_points
from lgo_cli.figures.plane import (
    add_bar,
    draw_cells,
    draw_points,
    hatch_missing,
    marks,
    new_plane,
    remarks,
)
from lgo_cli.figures.scale import COLOURS, LossScale
from lgo_cli.figures.style import COLUMN, INK, Size, caption, house_style, legend, number, settle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.contour import ContourSet
    from matplotlib.figure import Figure

FEW_CELLS = 225
"""Up to so many cells, each is marked: what lies between them is interpolated."""


def draw_contour(
    arrays: Mapping[str, Any],
    results: Mapping[str, Any],
    size: Size = COLUMN,
    *,
    show_cells: bool = False,
) -> Figure:
    """Filled contours with labelled lines; levels are logarithmic where the loss spans decades.

    Over them the trajectory, the quadratic model of an eigen plane in dashes and, if asked for,
    the cells that were measured.

    Args:
        arrays: Of `contour.npz`.
        results: Of `lgo contour`.
        size: Inches.
        show_cells: Whether each measured cell is dotted, also where there are many.
    """
    x, y, loss = arrays["x"], arrays["y"], arrays["loss"]
    with house_style():
        figure, axes, to_scale = new_plane(x, y, results, size)
        handles: list[Any] = []
        lines, scale = None, None
        more = remarks(results, to_scale=to_scale) + marks(results)
        hatch_missing(axes, loss, handles)
        if np.isfinite(loss).any():
            scale = LossScale.of(loss, results)
            lines = _draw_levels(figure, axes, x, y, loss, scale)
            more += _draw_quadratic(axes, x, y, scale, results, handles)
        if show_cells or loss.size <= FEW_CELLS:
            draw_cells(axes, x, y, arrays["measured"], handles)
        points = draw_points(axes, arrays, results, handles)
        legend(figure, handles)
        caption(figure, results, *more)
        settle(figure, size)
        taken = name_points(axes, points, axes.get_window_extent())
        if lines is not None and scale is not None:
            names = dict(zip(scale.levels.tolist(), scale.names, strict=True))
            colour, norm = colormaps[COLOURS], scale.norm
            label_lines(figure, axes, lines, names, taken, lambda level: colour(norm(level)))
    return figure


def draw_test_contour(
    arrays: Mapping[str, Any],
    results: Mapping[str, Any],
    size: Size = COLUMN,
    *,
    show_cells: bool = False,
) -> Figure:
    """The same picture on the test samples, without the model and losses that are not of them.

    Args:
        arrays: Of `contour.npz`, with `test_loss`.
        results: Of `lgo contour`.
        size: Inches.
        show_cells: As of `draw_contour`.
    """
    test, measured = results["test"], results["measured"]
    samples = {"split": "test", "num_samples": measured["num_test_samples"]}
    found = {
        **results,
        "measured": {**measured, **samples},
        "loss_at_center": test["loss_at_center"],
        "num_measured": test["num_measured"],
        "quadratic": None,
    }
    surface = {"loss": arrays["test_loss"], "measured": arrays["test_measured"]}
    return draw_contour({**arrays, **surface}, found, size, show_cells=show_cells)


def _draw_levels(
    figure: Figure, axes: Axes, x: Array, y: Array, loss: Array, scale: LossScale
) -> ContourSet | None:
    """Bands, lines and the colour bar; returns the lines, if there are any."""
    masked = np.ma.masked_invalid(loss)
    bands = axes.contourf(x, y, masked, levels=scale.band_edges, norm=scale.norm, cmap=COLOURS)
    bands.set_edgecolor("face")
    bar = add_bar(figure, axes, bands, scale.label)
    bar.set_ticks(scale.levels.tolist(), labels=scale.names)
    crossed = (scale.levels > masked.min()) & (scale.levels < masked.max())
    if not crossed.any():
        return None
    levels = scale.levels[crossed].tolist()
    inks = [scale.ink_on(level) for level in levels]
    lines = axes.contour(x, y, masked, levels=levels, colors=inks, linewidths=0.6)
    bar.add_lines(lines, erase=False)
    return lines


def _draw_quadratic(
    axes: Axes, x: Array, y: Array, scale: LossScale, results: Mapping[str, Any],
    handles: list[Any],
) -> list[str]:  # fmt: skip
    """Dash the levels of L(0) + g·d + ½ d·H d, if there is such a model; returns its remark."""
    model = results.get("quadratic")
    if model is None:
        return []
    X, Y = np.meshgrid(x, y)
    g0, g1 = map(number, model["gradient"])
    h00, h01, h11 = map(number, model["hessian"])
    values = number(results["loss_at_center"]) + g0 * X + g1 * Y
    values = values + (h00 * X**2 + 2 * h01 * X * Y + h11 * Y**2) / 2
    crossed = scale.levels[(scale.levels > values.min()) & (scale.levels < values.max())].tolist()
    if crossed:
        axes.contour(
            x, y, values, levels=crossed, colors=[scale.ink_on(level) for level in crossed],
            linewidths=0.9, linestyles="--",
        )  # fmt: skip
    handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle="--", label="quadratic"))
    return [f"quadratic model off by up to {100 * number(model['max_error']):.3g} %"]
