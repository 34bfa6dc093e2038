"""Loss on a plane, from above and in perspective."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from lgo_cli.figures.scale import COLOURS, LossScale, center_on
from lgo_cli.figures.style import INK, caption, house_style, new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.contour import ContourSet
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

Array = np.ndarray[Any, Any]

TRAJECTORY = "#E69F00"
FEW_CELLS = 225
"""Up to so many cells, each is marked: what lies between them is interpolated."""

MOST_FACES, FEWEST_FACES = 100, 30
"""Along an axis of the picture in perspective: a finer grid is thinned out there, and the faces of
a coarser one are cut up, so that the colour follows the height."""

_HATCH: dict[str, Any] = {"facecolor": "white", "edgecolor": "#999999", "hatch": "////"}
_LEGEND: dict[str, Any] = {
    "loc": "lower right", "ncols": 4, "borderaxespad": 0.2, "columnspacing": 1.2,
    "handletextpad": 0.5,
}  # fmt: skip


def draw_contour(arrays: Mapping[str, Any], results: Mapping[str, Any]) -> Figure:
    """Filled contours with labelled lines; levels are logarithmic where the loss spans decades.

    Args:
        arrays: Of `contour.npz`.
        results: Of `lgo contour`.
    """
    x, y, loss = arrays["x"], arrays["y"], arrays["loss"]
    num_missing = int(np.sum(~np.isfinite(loss)))
    with house_style():
        ratio = _ratio(x, y)
        shape = ratio or 1.0
        width = min(4.6 / math.sqrt(shape), 6.2, 6.2 / shape)
        figure = new_figure(max(width + 1.75, 5.0), width * shape + 1.15)
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.set_box_aspect(shape)
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(y[0], y[-1])
        axes.set_xlabel(results["axis_labels"][0])
        axes.set_ylabel(results["axis_labels"][1])
        handles: list[Any] = []
        lines, scale = None, None
        if num_missing:
            # The background shows wherever a corner of a square has no finite loss.
            axes.patch.set(**_HATCH)
            handles.append(Patch(label=_missing(num_missing), linewidth=0.5, **_HATCH))
        if num_missing < loss.size:
            scale = LossScale.of(loss, results)
            lines = _draw_levels(figure, axes, x, y, loss, scale)
        if loss.size <= FEW_CELLS:
            columns, rows = np.meshgrid(x, y)
            handles += axes.plot(
                columns.ravel(), rows.ravel(), "o", color="white", markeredgecolor=INK,
                markeredgewidth=0.4, markersize=3, label="cell", clip_on=False, zorder=4,
            )  # fmt: skip
        names = _draw_points(axes, results, handles)
        if handles:
            axes.legend(handles=handles, bbox_to_anchor=(1.0, 1.0), **_LEGEND)
        caption(figure, results, *_remarks(results, to_scale=ratio is not None))
        if lines is not None and scale is not None:
            _label_lines(figure, axes, lines, scale, names)
    return figure


def draw_surface_3d(arrays: Mapping[str, Any], results: Mapping[str, Any]) -> Figure:
    """The same surface in perspective, its colours and its height on the contours' scale.

    Args:
        arrays: Of `contour.npz`.
        results: Of `lgo contour`.
    """
    x, y, loss = arrays["x"], arrays["y"], np.array(arrays["loss"], dtype=float)
    missing = ~np.isfinite(loss)
    loss[missing] = np.nan
    with house_style():
        figure = new_figure(6.4, 5.4)
        # Layout engines do not see the slanted labels; the margins are fixed.
        figure.set_layout_engine("none")
        axes: Any = figure.add_axes((0.0, 0.13, 0.94, 0.83), projection="3d", computed_zorder=False)
        handles: list[Any] = []
        for set_label, text in zip(
            (axes.set_xlabel, axes.set_ylabel), results["axis_labels"], strict=True
        ):
            set_label(",\n".join(text.rsplit(", ", 1)), labelpad=12, fontsize=8)
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(y[0], y[-1])
        # Where both axes end, their labels would meet.
        for axis, prune in ((axes.xaxis, "upper"), (axes.yaxis, "lower")):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], prune=prune))
        if missing.any():
            label = f"hole: {_missing(int(missing.sum()))}"
            handles.append(Patch(label=label, facecolor="none", edgecolor="#999999"))
        if missing.all():
            axes.set_zticks([])
        else:
            scale = LossScale.of(loss, results)
            _draw_faces(axes, x, y, loss, scale)
            _draw_points_3d(axes, x, y, loss, scale, results, handles)
            _scale_height(axes, scale)
        if handles:
            figure.legend(handles=handles, **{**_LEGEND, "loc": "upper right"})
        axes.view_init(elev=32, azim=-58)
        axes.set_box_aspect((1, 1, 0.75), zoom=1.0)
        square = math.isclose(y[-1] - y[0], x[-1] - x[0], rel_tol=0.01)
        caption(figure, results, *_remarks(results, to_scale=square))
    return figure


def _ratio(x: Array, y: Array) -> float | None:
    """Height over width of the plane's picture, to scale; `None` if that would be a strip."""
    ratio = float((y[-1] - y[0]) / (x[-1] - x[0]))
    return ratio if 1 / 3.2 <= ratio <= 3.2 else None


def _missing(num_missing: int) -> str:
    return f"not finite ({num_missing:,} cell{'s' if num_missing > 1 else ''})"


def _remarks(results: Mapping[str, Any], *, to_scale: bool) -> list[str]:
    remarks = [f"{results['num_measured']:,} cells measured"]
    return remarks if to_scale else [*remarks, "x and y not to one scale"]


def _draw_levels(
    figure: Figure, axes: Axes, x: Array, y: Array, loss: Array, scale: LossScale
) -> ContourSet | None:
    """Bands, lines and the colour bar; returns the lines, if there are any."""
    masked = np.ma.masked_invalid(loss)
    bands = axes.contourf(x, y, masked, levels=scale.band_edges, norm=scale.norm, cmap=COLOURS)
    bands.set_edgecolor("face")
    bar = figure.colorbar(bands, cax=axes.inset_axes((1.03, 0, 0.045, 1)), spacing="proportional")
    bar.set_ticks(scale.levels.tolist(), labels=scale.names)
    bar.minorticks_off()
    bar.set_label(scale.label)
    crossed = (scale.levels > masked.min()) & (scale.levels < masked.max())
    if not crossed.any():
        return None
    levels = scale.levels[crossed].tolist()
    inks = [scale.ink_on(level) for level in levels]
    lines = axes.contour(x, y, masked, levels=levels, colors=inks, linewidths=0.7)
    bar.add_lines(lines, erase=False)
    return lines


def _label_lines(
    figure: Figure, axes: Axes, lines: ContourSet, scale: LossScale, taken: Sequence[Any]
) -> None:
    """Write levels on their lines, but none over another, over a point or across the border."""
    figure.draw_without_rendering()  # settles the layout, on which the labels' slant depends
    names = dict(zip(scale.levels.tolist(), scale.names, strict=True))
    texts = axes.clabel(lines, fmt=names, fontsize=7, inline=False)
    figure.draw_without_rendering()
    inside = axes.get_window_extent()
    kept = [_extent(artist) for artist in taken]
    # Levels far apart in rank first, so that what is left out lies between two that are written.
    ranks = {name: rank for rank, name in enumerate(scale.names)}
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
        level = float(scale.levels[ranks[text.get_text()]])
        halo = colormaps[COLOURS](scale.norm(level))
        text.set_path_effects([withStroke(linewidth=2.5, foreground=halo)])


def _extent(artist: Any) -> Bbox:
    """An artist's box on the screen, with a little air."""
    box: Bbox = artist.get_window_extent()
    return box.padded(2)


def _draw_points(axes: Axes, results: Mapping[str, Any], handles: list[Any]) -> list[Any]:
    """Draw the trajectory, the run and the other points; returns what labels must keep clear of."""
    names: list[Any] = []
    trajectory = results["trajectory"]
    if trajectory:
        handles += axes.plot(
            [p["x"] for p in trajectory], [p["y"] for p in trajectory], "-o", color=TRAJECTORY,
            markeredgecolor=INK, markeredgewidth=0.4, markersize=3.5, linewidth=1.2,
            label="trajectory, projected",
        )  # fmt: skip
        names += _annotate(axes, trajectory[:1])
    x_range, y_range = axes.get_xlim(), axes.get_ylim()
    if x_range[0] <= 0 <= x_range[1] and y_range[0] <= 0 <= y_range[1]:
        star = axes.plot(
            0, 0, "*", color="white", markeredgecolor=INK, markersize=12, label="run",
            linestyle="", clip_on=False,
        )  # fmt: skip
        handles += star
        names += star
    others = [marker for marker in results["markers"] if marker["label"] != "run"]
    for marker in others:
        names += axes.plot(
            marker["x"], marker["y"], "D", color="white", markeredgecolor=INK, markersize=6
        )
    return names + _annotate(axes, others)


def _annotate(axes: Axes, points: Sequence[Mapping[str, Any]]) -> list[Any]:
    box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8}
    return [
        axes.annotate(
            point["label"], (point["x"], point["y"]), xytext=(6, 6), textcoords="offset points",
            fontsize=8, bbox=box, annotation_clip=True,
        )
        for point in points
    ]  # fmt: skip


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
        X, Y, Z, facecolors=colours, rstride=1, cstride=1, linewidth=0.15,
        edgecolor=(0, 0, 0, 0.25), antialiased=True, shade=False, zorder=1,
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


def _draw_points_3d(
    axes: Any, x: Array, y: Array, loss: Array, scale: LossScale, results: Mapping[str, Any],
    handles: list[Any],
) -> None:  # fmt: skip
    """The run at its loss; trajectory and other points on the surface under them."""
    height = scale.height(loss)
    trajectory = results["trajectory"] or []
    if trajectory:
        xs, ys = (np.array([point[key] for point in trajectory]) for key in "xy")
        handles += axes.plot(
            xs, ys, bilinear(x, y, height, xs, ys), "-o", color=TRAJECTORY, markeredgecolor=INK,
            markeredgewidth=0.3, markersize=3, linewidth=1.2, zorder=2,
            label="trajectory, projected",
        )  # fmt: skip
    for marker in results["markers"]:
        at = np.array([marker["x"]]), np.array([marker["y"]])
        level = bilinear(x, y, height, *at)
        if marker["label"] == "run" or not np.isfinite(level[0]):
            continue
        axes.plot(*at, level, "D", color="white", markeredgecolor=INK, markersize=5, zorder=3)
        axes.text(
            at[0][0], at[1][0], level[0], f"  {marker['label']}", fontsize=8, zorder=4,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
    center = center_on(results, x, y)
    if center is not None and not (scale.logarithmic and center <= 0):
        handles += axes.plot(
            [0], [0], [scale.height(center)], "*", color="white", markeredgecolor=INK,
            markersize=11, zorder=5, label="run", linestyle="",
        )  # fmt: skip


def _scale_height(axes: Any, scale: LossScale) -> None:
    """Ticks at every level, or at as many as have room."""
    step = -(-len(scale.levels) // 7)
    names = scale.names[::step]
    axes.set_zlim(scale.height(scale.low), scale.height(scale.high))
    axes.set_zticks(scale.height(scale.levels[::step]).tolist(), labels=names)
    for tick in axes.zaxis.get_major_ticks():
        tick.label1.set_horizontalalignment("left")
    axes.set_zlabel(scale.label, labelpad=2 + 2.4 * max(map(len, names)))


def bilinear(x: Array, y: Array, values: Array, at_x: Array, at_y: Array) -> Array:
    """Interpolate a grid's values [ny, nx] at points of any shape; NaN outside of the grid.

    A value that is not finite spoils the squares that it is a corner of, and no others.
    """
    j = np.clip(np.searchsorted(x, at_x) - 1, 0, len(x) - 2)
    i = np.clip(np.searchsorted(y, at_y) - 1, 0, len(y) - 2)
    s, t = (at_x - x[j]) / (x[j + 1] - x[j]), (at_y - y[i]) / (y[i + 1] - y[i])
    low = _mix(values[i, j], values[i, j + 1], s)
    high = _mix(values[i + 1, j], values[i + 1, j + 1], s)
    inside = (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
    values_at: Array = np.where(inside, _mix(low, high, t), np.nan)
    return values_at


def _mix(a: Array, b: Array, share: Array) -> Array:
    """(1 − share)·a + share·b, where a share of nothing takes nothing, not even a NaN."""
    mixed: Array = np.where(share == 0, a, np.where(share == 1, b, (1 - share) * a + share * b))
    return mixed
