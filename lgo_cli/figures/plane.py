"""The frame of every picture of a plane from above, and what is drawn over it."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy import ndarray as Array

from lgo_cli.figures.labels import Points
from lgo_cli.figures.style import INK, NARROW, Size, new_figure, number
from lgo_cli.results import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

TRAJECTORY = "#E69F00"
CURVE: dict[str, Any] = {
    "color": TRAJECTORY, "linewidth": 1.6, "zorder": 3,
    "path_effects": [withStroke(linewidth=2.6, foreground=INK)],
}  # fmt: skip
ON_PLANE = 1e-3
"""Distance from the plane, in the unit of its coordinates, that no picture shows."""
HATCH: dict[str, Any] = {"facecolor": "white", "edgecolor": "#999999", "hatch": "/////"}
MOST_MARKS = 50
"""Checkpoints of a trajectory that are all marked; of more, those are that stand apart."""
APART = 0.06
"""Share of a plane's sides that marks are apart: more than a mark covers in a column of a paper."""
FARTHEST = 11.0
"""Points: diameter of the circle around the checkpoint that is farthest from the plane."""


def new_plane(
    x: Array, y: Array, results: Mapping[str, Any], size: Size
) -> tuple[Figure, Axes, bool]:
    """An empty picture of the plane, to scale where that would not be a strip.

    Returns:
        The figure, its axes, and whether both axes have one scale.
    """
    ratio = float((y[-1] - y[0]) / (x[-1] - x[0]))
    width = size[0]
    widest = 1.8 if width < NARROW else 3.2
    to_scale = 1 / widest <= ratio <= widest
    shape = ratio if to_scale else 0.75
    figure = new_figure(size, (width - 1.3) * shape + 0.6)
    axes = figure.subplots()
    axes.grid(visible=False)
    if size[1] is None or to_scale:
        axes.set_box_aspect(shape)
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])
    room = max(width - 1.2, 1.0), _height(figure)
    for axis, label, inches in zip(
        (axes.xaxis, axes.yaxis), results["axis_labels"], room, strict=True
    ):
        axis.set_label_text(wrapped(label, inches))
        axis.set_major_locator(MaxNLocator(5 if width < NARROW else 9, steps=[1, 2, 2.5, 5, 10]))
    return figure, axes, to_scale


def _height(figure: Figure) -> float:
    """Inches of the vertical axis, before legend and caption have their room."""
    return max(figure.get_figheight() - 0.6, 1.0)


def add_bar(figure: Figure, axes: Axes, colours: ScalarMappable, label: str) -> Colorbar:
    """Put a colour bar at the right of a plane, as high as it."""
    bar = figure.colorbar(colours, cax=axes.inset_axes((1.04, 0, 0.05, 1)), spacing="proportional")
    bar.minorticks_off()
    if bar.solids is not None:  # between its bands, viewers of PDF and SVG show white seams
        bar.solids.set(edgecolor="face", linewidth=0.2)  # a wider one moves the bands
    bar.set_label(wrapped(label, _height(figure)))
    return bar


def wrapped(label: str, inches: float) -> str:
    """An axis label of 8 pt on as many lines as its length asks for, cut after a comma if it can.

    Args:
        label: The words.
        inches: Of the axis.
    """
    most = int(16 * inches)
    if len(label) <= most:
        return label
    head, comma, tail = label.rpartition(", ")
    if comma and max(len(head), len(tail)) < most:
        return f"{head},\n{tail}"
    whole = re.sub(" (?=[=%])|(?<==) ", "\N{NO-BREAK SPACE}", label)
    lines = textwrap.wrap(whole, most, break_long_words=False)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def missing_label(num_missing: int) -> str:
    """What a legend calls cells without a finite loss."""
    return f"not finite ({counted(num_missing, 'cell')})"


def hatch_missing(axes: Axes, values: Array, handles: list[Any]) -> None:
    """Hatch the background, which shows wherever a corner of a square has no finite value."""
    num_missing = int(np.sum(~np.isfinite(values)))
    if num_missing:
        axes.patch.set(**HATCH)
        handles.append(Patch(label=missing_label(num_missing), linewidth=0.5, **HATCH))


def remarks(results: Mapping[str, Any], *, to_scale: bool) -> list[str]:
    """What the caption of every picture of a plane ends with."""
    measured, cells = results["num_measured"], results["num_cells"]
    of = f" of {cells:,}" if measured != cells else ""
    count = [f"{measured:,}{of} cells measured"]
    return count if to_scale else [*count, "x and y not to one scale"]


def draw_cells(axes: Axes, x: Array, y: Array, measured: Array, handles: list[Any]) -> None:
    """Dot the cells that were measured, of a mask [ny, nx]."""
    rows, columns = np.nonzero(measured)
    handles += axes.plot(
        x[columns], y[rows], ".", color="white", markeredgecolor=INK, markeredgewidth=0.3,
        markersize=2.6, label="measured", clip_on=False, zorder=4,
    )  # fmt: skip


def draw_points(
    axes: Axes, arrays: Mapping[str, Any], results: Mapping[str, Any], handles: list[Any]
) -> Points:
    """Draw trajectory, curve, run and other points; their names wait for the layout."""
    points = Points()
    if "plane_path" in arrays:
        curve = axes.plot(*arrays["plane_path"].T, label=curve_label(results), **CURVE)
        handles += curve
        points.paths.extend(curve)
    if results["trajectory"]:
        _draw_trajectory(axes, results, handles, points)
    # Markers may reach over the border, but none stands beyond it.
    x_range, y_range = axes.get_xlim(), axes.get_ylim()
    shown: dict[str, Any] = {
        "color": "white", "markeredgecolor": INK, "markeredgewidth": 0.7, "linestyle": "",
        "clip_on": False, "zorder": 5,
    }  # fmt: skip
    others = [marker for marker in results["markers"] if marker["label"] != "run"]
    for marker in [{"label": "run", "x": 0.0, "y": 0.0}, *others]:
        x, y = marker["x"], marker["y"]
        if not (x_range[0] <= x <= x_range[1] and y_range[0] <= y <= y_range[1]):
            continue
        if marker["label"] == "run":
            star = axes.plot(x, y, "*", markersize=9, label="run", **shown)
            handles += star
            points.markers.extend(star)
        else:
            diamond = axes.plot(x, y, "D", markersize=4.5, **shown)
            points.markers.extend(diamond)
            points.names.append((marker["label"], *diamond))
    return points


def curve_label(results: Mapping[str, Any]) -> str:
    """What a legend calls a curve that came with the directions."""
    distance = number(results.get("curve_distance") or 0.0)
    return "curve" if distance < ON_PLANE else f"curve, projected (off by ≤ {distance:.2g})"


def marked(results: Mapping[str, Any]) -> list[int]:
    """Which checkpoints of a trajectory are marked: all of a few, of many those that stand apart.

    The run, which is the last, and the first have their mark whatever is near.
    """
    points = [(point["x"], point["y"]) for point in results["trajectory"] or []]
    if len(points) <= MOST_MARKS:
        return [*range(len(points))]
    lengths = [high - low for low, high in (results["x_range"], results["y_range"])]
    places, kept = np.array(points) / lengths, [len(points) - 1]
    for rank in reversed(range(1, len(points) - 1)):
        if np.linalg.norm(places[kept] - places[rank], axis=1).min() >= APART:
            kept.append(rank)
    return [0, *reversed(kept)]


def marks(results: Mapping[str, Any]) -> list[str]:
    """What a caption says of a trajectory of which not all checkpoints are marked."""
    number, count = len(results["trajectory"] or []), len(marked(results))
    return [f"{count:,} of {number:,} checkpoints marked"] if count < number else []


def _draw_trajectory(
    axes: Axes, results: Mapping[str, Any], handles: list[Any], points: Points
) -> None:
    """The checkpoints' projections, each in a circle as wide as it is far from the plane."""
    trajectory, shown = results["trajectory"], marked(results)
    xs, ys = ([point[key] for point in trajectory] for key in "xy")
    line = axes.plot(
        xs, ys, "-o", color=TRAJECTORY, markeredgecolor=INK, markeredgewidth=0.4, markersize=2.5,
        linewidth=1.1, label="trajectory, projected", zorder=3, markevery=shown,
        path_effects=[withStroke(linewidth=1.9, foreground=INK)],
    )  # fmt: skip
    handles += line
    points.paths.extend(line)
    distances = np.array([number(point["distance"]) for point in trajectory])
    farthest = float(np.nanmax(distances, initial=0.0))
    diameters = FARTHEST * np.nan_to_num(distances / (farthest or 1.0))
    style: dict[str, Any] = {
        "marker": "o", "linestyle": "", "color": "none", "markeredgecolor": TRAJECTORY,
        "markeredgewidth": 0.9, "zorder": 3,
    }  # fmt: skip
    # Each by itself, so that words keep clear of it and not of all that lies between.
    circles = [
        axes.plot(xs[rank], ys[rank], markersize=diameters[rank], **style)[0] for rank in shown
    ]
    points.markers.extend(circles)
    points.names.append((trajectory[0]["label"], circles[0]))
    if farthest > 0:
        label = f"off the plane by ≤ {farthest:.3g}"
        handles.append(Line2D([], [], markersize=0.7 * FARTHEST, label=label, **style))


def cell_edges(coordinates: Array) -> Array:
    """Borders of the cells around ascending coordinates: half way between, and as far outside."""
    middles = (coordinates[:-1] + coordinates[1:]) / 2
    first, last = 2 * coordinates[0] - middles[0], 2 * coordinates[-1] - middles[-1]
    edges: Array = np.array([first, *middles, last])
    return edges
