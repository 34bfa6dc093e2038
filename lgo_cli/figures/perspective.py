"""Loss on a plane, in perspective."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy import ndarray as Array

from lgo_cli.figures.labels import Points, name_points
from lgo_cli.figures.plane import (
    CURVE,
    TRAJECTORY,
    curve_label,
    marked,
    marks,
    missing_label,
    remarks,
    wrapped,
)
from lgo_cli.figures.scale import COLOURS, LossScale, bilinear, center_on
from lgo_cli.figures.style import (
    COLUMN,
    INK,
    LONGEST_NUMBER,
    NARROW,
    PADDING,
    Size,
    caption,
    house_style,
    new_figure,
    number,
    write_minus,
    write_powers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

USUAL_NAME = 4
"""Characters of a tick's name on a horizontal axis, beside which there is room for the label."""

BOX = (1, 1, 0.75)
"""Proportions of the three axes."""

MOST_FACES, FEWEST_FACES = 100, 30
"""Along an axis: a finer grid is thinned out, and the faces of a coarser one are cut up, so that
the colour follows the height."""


def draw_surface_3d(
    arrays: Mapping[str, Any], results: Mapping[str, Any], size: Size = COLUMN
) -> Figure:
    """The surface in perspective, its colours and its height on the contours' scale.

    Args:
        arrays: Of `contour.npz`.
        results: Of `lgo contour`.
        size: Inches.
    """
    x, y, loss = arrays["x"], arrays["y"], np.array(arrays["loss"], dtype=float)
    missing = ~np.isfinite(loss)
    loss[missing] = np.nan
    with house_style():
        figure = new_figure(size, 0.82 * size[0] + 0.25)
        small = size[0] < NARROW
        # Layout engines do not see the slanted labels; the margins are fixed.
        figure.set_layout_engine(None)
        box = (-0.02, 0.15, 0.92, 0.82) if small else (0.0, 0.1, 0.94, 0.86)
        axes: Any = figure.add_axes(box, projection="3d", computed_zorder=False)
        handles: list[Any] = []
        points = Points()
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(y[0], y[-1])
        axes.tick_params(pad=-2 if small else 2)
        write_powers(figure)
        # Where both axes end, their labels would meet.
        for axis, prune, text in zip(
            (axes.xaxis, axes.yaxis), ("upper", "lower"), results["axis_labels"], strict=True
        ):
            axis.set_major_locator(
                MaxNLocator(4 if small else 5, steps=[1, 2, 2.5, 5, 10], prune=prune)
            )
            names = axis.get_major_formatter().format_ticks(axis.get_majorticklocs())
            beyond = max(0, *(len(name) - USUAL_NAME for name in names))
            label = wrapped(text, 1.9 if small else 2.2)
            axis.set_label_text(label, fontsize=7)
            # Lines beyond two reach from the label's middle to the ticks' names.
            lines = max(0, label.count("\n") - 1)
            axis.labelpad = (-1 if small else 8) + 2.0 * beyond + 4.0 * lines
        if missing.any():
            label = f"hole: {missing_label(int(missing.sum()))}"
            handles.append(Patch(label=label, facecolor="none", edgecolor="#999999"))
        if missing.all():
            axes.set_zticks([])
        else:
            scale = LossScale.of(loss, results)
            _draw_faces(axes, x, y, loss, scale)
            _draw_curve(axes, arrays, scale.height(loss), results, handles, points)
            _draw_points(axes, x, y, loss, scale, results, handles, points)
            _scale_height(axes, scale, small=small)
        if handles:
            figure.legend(handles=handles, loc="upper left", borderaxespad=0.2, handletextpad=0.5)
        axes.view_init(elev=32, azim=-58)
        square = math.isclose(y[-1] - y[0], x[-1] - x[0], rel_tol=0.01)
        caption(figure, results, *remarks(results, to_scale=square), *marks(results))
        write_minus(figure)
        for faces in axes.collections:  # they are in no word's way, and slow to project
            faces.set_visible(False)
        _fit_width(figure, axes, zoom=0.94 if small else 1.0)
        _make_room(figure, axes, size)
        _name_points(figure, axes, points)
        for faces in axes.collections:
            faces.set_visible(True)
    return figure


def _fit_width(figure: Figure, axes: Any, zoom: float) -> None:
    """Shift the surface until its words are inside, and shrink it where they have no room."""
    width, margin = figure.bbox.width, PADDING / 4 * figure.dpi
    for _ in range(10):
        axes.set_box_aspect(BOX, zoom=zoom)
        figure.draw_without_rendering()
        words = []
        for axis in axes._axis_map.values():
            low, high = axis.get_view_interval()
            seen = [tick.label1 for tick in axis.majorTicks if low <= tick.get_loc() <= high]
            words += [text.get_window_extent() for text in (axis.label, *seen)]
        left = min(word.x0 for word in words) - margin
        right = max(word.x1 for word in words) + margin
        if left >= 0 and right <= width:
            return
        zoom *= min(1.0, width / (right - left))
        x0, *rest = axes.get_position(original=True).bounds
        axes.set_position((x0 + (width - left - right) / 2 / width, *rest))


def _make_room(figure: Figure, axes: Any, size: Size) -> None:
    """Lift the surface until its labels stand over the caption: the figure grows, if it may."""
    figure.draw_without_rendering()
    labels = [axis.label.get_window_extent().y0 for axis in (axes.xaxis, axes.yaxis)]
    top = figure._supxlabel.get_window_extent().y1  # type: ignore[attr-defined]
    extra = (top - min(labels)) / figure.dpi + PADDING
    if extra <= 0:
        return
    x0, y0, width, height = axes.get_position().bounds
    before = figure.get_figheight()
    after = before + extra if size[1] is None else before
    top = (y0 + height) * before + after - before
    bottom = y0 * before + extra
    figure.set_figheight(after)
    axes.set_position((x0, bottom / after, width, (top - bottom) / after))


def _name_points(figure: Figure, axes: Any, points: Points) -> None:
    """Write names where the points are on the picture, clear of the axes and their words."""
    figure.draw_without_rendering()  # projects what is drawn
    words = [text for legend in figure.legends for text in legend.get_texts()]
    paths = [*points.paths]
    for axis in axes._axis_map.values():
        words += [axis.label, *axis.get_ticklabels()]
        paths.append(axis.line)
    name_points(axes, replace(points, paths=paths), figure.bbox, words)


def _draw_faces(axes: Any, x: Array, y: Array, loss: Array, scale: LossScale) -> None:
    """The surface itself: a face has the colour of the mean height of its corners."""
    height = scale.height(loss)
    xs, ys = _face_edges(x), _face_edges(y)
    X, Y = np.meshgrid(xs, ys)
    Z = bilinear(x, y, height, X, Y)
    middle = (Z[:-1, :-1] + Z[:-1, 1:] + Z[1:, :-1] + Z[1:, 1:]) / 4
    low, high = float(scale.height(scale.low)), float(scale.height(scale.high))
    colours = colormaps[COLOURS](np.ma.masked_invalid((middle - low) / (high - low)))
    axes.plot_surface(
        X, Y, Z, facecolors=colours, rstride=1, cstride=1, linewidth=0.1,
        edgecolor=(0, 0, 0, 0.25), antialiased=True, shade=False, zorder=1,
        rasterized=True,  # as thousands of polygons, viewers show white seams between them
    )  # fmt: skip


def _face_edges(coordinates: Array) -> Array:
    """Coordinates of the cells, thinned out or with more between them."""
    n = len(coordinates)
    if n - 1 > MOST_FACES:
        ranks = np.linspace(0, n - 1, MOST_FACES + 1).round()
    else:
        parts = math.ceil(FEWEST_FACES / (n - 1))
        ranks = np.arange((n - 1) * parts + 1) / parts
    edges: Array = np.interp(ranks, np.arange(n), coordinates)
    return edges


def _draw_curve(
    axes: Any, arrays: Mapping[str, Any], height: Array, results: Mapping[str, Any],
    handles: list[Any], points: Points,
) -> None:  # fmt: skip
    """A curve that came with the directions, on the surface above it."""
    if "plane_path" not in arrays:
        return
    xs, ys = arrays["plane_path"].T
    heights = bilinear(arrays["x"], arrays["y"], height, xs, ys)
    curve = axes.plot(xs, ys, heights, label=curve_label(results), **{**CURVE, "zorder": 2})
    handles += curve
    points.paths.extend(curve)


def _draw_points(
    axes: Any, x: Array, y: Array, loss: Array, scale: LossScale, results: Mapping[str, Any],
    handles: list[Any], points: Points,
) -> None:  # fmt: skip
    """The run at its loss; trajectory and other points on the surface under them.

    Stems go from the trajectory's projection to the loss at each checkpoint's weights, which are
    off the plane.
    """
    height = scale.height(loss)
    trajectory = results["trajectory"] or []
    if trajectory:
        xs, ys = (np.array([point[key] for point in trajectory]) for key in "xy")
        heights = bilinear(x, y, height, xs, ys)
        shown = marked(results)
        handles += axes.plot(
            xs, ys, heights, "-o", color=TRAJECTORY, markeredgecolor=INK,
            markeredgewidth=0.3, markersize=2.5, linewidth=1.1, zorder=2, markevery=shown,
            label="trajectory, projected",
        )  # fmt: skip
        _draw_stems(axes, [trajectory[rank] for rank in shown], heights[shown], scale, handles)
    for marker in results["markers"]:
        at = np.array([marker["x"]]), np.array([marker["y"]])
        level = bilinear(x, y, height, *at)
        if marker["label"] == "run" or not np.isfinite(level[0]):
            continue
        diamond = axes.plot(
            *at, level, "D", color="white", markeredgecolor=INK, markeredgewidth=0.7,
            markersize=4, zorder=5,
        )  # fmt: skip
        points.markers.extend(diamond)
        points.names.append((marker["label"], *diamond))
    center = center_on(results, x, y)
    if center is not None and not (scale.logarithmic and center <= 0):
        star = axes.plot(
            [0], [0], [scale.height(center)], "*", color="white", markeredgecolor=INK,
            markeredgewidth=0.7, markersize=8, zorder=5, label="run", linestyle="",
        )  # fmt: skip
        handles += star
        points.markers.extend(star)


def _draw_stems(
    axes: Any, trajectory: Any, heights: Array, scale: LossScale, handles: list[Any]
) -> None:
    points = []
    for point, foot in zip(trajectory, heights, strict=True):
        loss = number(point.get("loss"))
        if not (np.isfinite(foot) and scale.low <= loss <= scale.high):
            continue
        points.append((point["x"], point["y"], scale.height(loss)))
        ends = [foot, scale.height(loss)]
        axes.plot([point["x"]] * 2, [point["y"]] * 2, ends, color=INK, linewidth=0.6, zorder=2.5)
    if points:
        handles += axes.plot(
            *zip(*points, strict=True), linestyle="", marker="_", color=INK, markersize=4,
            zorder=2.5, label="loss at checkpoint's weights",
        )  # fmt: skip


def _scale_height(axes: Any, scale: LossScale, *, small: bool) -> None:
    """Ticks at every level, or at as many as have room."""
    step = -(-len(scale.levels) // (5 if small else 7))
    names = scale.names[::step]
    axes.set_zlim(scale.height(scale.low), scale.height(scale.high))
    axes.set_zticks(scale.height(scale.levels[::step]).tolist(), labels=names)
    for tick in axes.zaxis.get_major_ticks():
        tick.label1.set_horizontalalignment("left")
    # On two lines it keeps clear of the label of y.
    label = wrapped(scale.label, 1.2) if small else scale.label
    longest = max(map(len, names))
    beyond = max(0, longest - LONGEST_NUMBER)
    axes.set_zlabel(label, labelpad=(-2 if small else 0) + 2.0 * longest + 2.0 * beyond)
