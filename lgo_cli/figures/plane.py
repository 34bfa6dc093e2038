"""The frame of every picture of a plane from above, and what is drawn over it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from lgo_cli.figures.style import INK, NARROW, Size, new_figure, number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.contour import ContourSet
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

Array = np.ndarray[Any, Any]

TRAJECTORY = "#E69F00"
CURVE: dict[str, Any] = {
    "color": TRAJECTORY, "linewidth": 1.6, "zorder": 3,
    "path_effects": [withStroke(linewidth=2.6, foreground=INK)],
}  # fmt: skip
ON_PLANE = 1e-3
"""Distance from the plane, in the unit of its coordinates, that no picture shows."""
HATCH: dict[str, Any] = {"facecolor": "white", "edgecolor": "#999999", "hatch": "/////"}
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
    return "\n".join(textwrap.wrap(label, most, break_long_words=False))


def missing_label(num_missing: int) -> str:
    """What a legend calls cells without a finite loss."""
    return f"not finite ({num_missing:,} cell{'s' if num_missing > 1 else ''})"


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


def draw_cells(axes: Axes, x: Array, y: Array, measured: Array | None, handles: list[Any]) -> None:
    """Dot the cells that were measured: all, unless a mask [ny, nx] says otherwise."""
    rows, columns = np.nonzero(np.ones((len(y), len(x)), bool) if measured is None else measured)
    handles += axes.plot(
        x[columns], y[rows], ".", color="white", markeredgecolor=INK, markeredgewidth=0.3,
        markersize=2.6, label="measured", clip_on=False, zorder=4,
    )  # fmt: skip


def draw_points(
    axes: Axes, arrays: Mapping[str, Any], results: Mapping[str, Any], handles: list[Any]
) -> list[Any]:
    """Draw trajectory, curve, run and other points; returns what labels must keep clear of."""
    names: list[Any] = []
    if "plane_path" in arrays:
        handles += axes.plot(*arrays["plane_path"].T, label=curve_label(results), **CURVE)
    if results["trajectory"]:
        names += _draw_trajectory(axes, results["trajectory"], handles)
    x_range, y_range = axes.get_xlim(), axes.get_ylim()
    if x_range[0] <= 0 <= x_range[1] and y_range[0] <= 0 <= y_range[1]:
        star = axes.plot(
            0, 0, "*", color="white", markeredgecolor=INK, markeredgewidth=0.7, markersize=9,
            label="run", linestyle="", clip_on=False, zorder=5,
        )  # fmt: skip
        handles += star
        names += star
    others = [marker for marker in results["markers"] if marker["label"] != "run"]
    for marker in others:
        names += axes.plot(
            marker["x"], marker["y"], "D", color="white", markeredgecolor=INK,
            markeredgewidth=0.7, markersize=4.5, zorder=5,
        )  # fmt: skip
    if "plane_path" in arrays:
        # Names stand on the side where the curve is not.
        middle = np.mean(arrays["plane_path"][:, 1])
        return names + [_name(axes, point, below=bool(point["y"] < middle)) for point in others]
    middle = np.mean(axes.get_ylim())
    return names + [_name(axes, point, below=bool(point["y"] > middle)) for point in others]


def curve_label(results: Mapping[str, Any]) -> str:
    """What a legend calls a curve that came with the directions."""
    distance = number(results.get("curve_distance") or 0.0)
    return "curve" if distance < ON_PLANE else f"curve, projected (off by ≤ {distance:.2g})"


def _draw_trajectory(
    axes: Axes, points: Sequence[Mapping[str, Any]], handles: list[Any]
) -> list[Any]:
    """The checkpoints' projections, each in a circle as wide as it is far from the plane."""
    xs, ys = ([point[key] for point in points] for key in "xy")
    line = axes.plot(
        xs, ys, "-o", color=TRAJECTORY, markeredgecolor=INK, markeredgewidth=0.4, markersize=2.5,
        linewidth=1.1, label="trajectory, projected", zorder=3,
        path_effects=[withStroke(linewidth=1.9, foreground=INK)],
    )  # fmt: skip
    handles += line
    distances = np.array([number(point["distance"]) for point in points])
    farthest = float(np.nanmax(distances, initial=0.0))
    diameters = FARTHEST * np.nan_to_num(distances / (farthest or 1.0))
    style: dict[str, Any] = {
        "marker": "o", "linestyle": "", "color": "none", "markeredgecolor": TRAJECTORY,
        "markeredgewidth": 0.9, "zorder": 3,
    }  # fmt: skip
    # Each by itself, so that labels keep clear of it and not of all that lies between.
    circles = [
        axes.plot(x, y, markersize=diameter, **style)[0]
        for x, y, diameter in zip(xs, ys, diameters, strict=True)
    ]
    if farthest > 0:
        label = f"off the plane by ≤ {farthest:.3g}"
        handles.append(Line2D([], [], markersize=0.7 * FARTHEST, label=label, **style))
    # The first name stands where the line does not go on.
    goes_up = len(points) > 1 and points[1]["y"] > points[0]["y"]
    return [*circles, _name(axes, points[0], below=goes_up)]


def _name(axes: Axes, point: Mapping[str, Any], *, below: bool) -> Any:
    """Write a point's name beside it, towards the middle of the picture."""
    right = point["x"] <= np.mean(axes.get_xlim())
    return axes.annotate(
        point["label"], (point["x"], point["y"]), textcoords="offset points", fontsize=7,
        xytext=(4 if right else -4, -4 if below else 4), ha="left" if right else "right",
        va="top" if below else "bottom", annotation_clip=True, zorder=6,
        bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
    )  # fmt: skip


def label_lines(
    figure: Figure,
    axes: Axes,
    lines: ContourSet,
    names: Mapping[float, str],
    taken: Sequence[Any],
    halo: Callable[[float], Any],
) -> None:
    """Write levels on their lines, but none over another, over a point or across the border.

    Args:
        figure: Complete but for these labels.
        axes: The picture.
        lines: Contour lines, each with at most as many labels as it has pieces.
        names: What is written at each level, ascending.
        taken: Artists that no label may cover.
        halo: The colour behind a level's label.
    """
    figure.draw_without_rendering()  # settles the layout, on which the labels' slant depends
    levels = {name: level for level, name in names.items()}
    ranks = {name: rank for rank, name in enumerate(levels)}
    texts = axes.clabel(lines, fmt=dict(names), fontsize=6.5, inline=False, zorder=4)
    figure.draw_without_rendering()
    inside = axes.get_window_extent()
    kept = [_extent(artist) for artist in taken]
    # Levels far apart in rank first, so that what is left out lies between two that are written.
    for text in sorted(
        texts, key=lambda text: (ranks[text.get_text()] % 2, -text.get_position()[1])
    ):
        box = _extent(text)
        whole = inside.x0 <= box.x0 and box.x1 <= inside.x1
        whole = whole and inside.y0 <= box.y0 and box.y1 <= inside.y1
        if not whole or box.count_overlaps(kept):
            text.remove()
            continue
        kept.append(box)
        text.set_path_effects([withStroke(linewidth=2.2, foreground=halo(levels[text.get_text()]))])


def _extent(artist: Any) -> Bbox:
    """An artist's box on the screen, with a little air."""
    box: Bbox = artist.get_window_extent()
    return box.padded(2)


def cell_edges(coordinates: Array) -> Array:
    """Borders of the cells around ascending coordinates: half way between, and as far outside."""
    middles = (coordinates[:-1] + coordinates[1:]) / 2
    first, last = 2 * coordinates[0] - middles[0], 2 * coordinates[-1] - middles[-1]
    edges: Array = np.array([first, *middles, last])
    return edges
