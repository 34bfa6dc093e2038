"""Where words stand in a picture: names beside points, levels on lines, none over another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from lgo_cli.figures.style import INK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.contour import ContourSet
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Bbox, BboxBase

SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
"""Of a point, where its name may stand: right and up first."""
GAPS = (5.5, 9.0, 14.0, 20.0, 28.0, 40.0)
"""Points between a point and its name: the first, if there is room."""
AIR = 2.0
"""Pixels around words and markers that stay free."""
LEADER: dict[str, Any] = {
    "arrowstyle": "-", "linewidth": 0.6, "color": INK, "shrinkA": 0, "shrinkB": 2,
    "path_effects": [withStroke(linewidth=1.6, foreground="white")],
}  # fmt: skip
"""The line from a name to its point."""


@dataclass(frozen=True)
class Points:
    """What is drawn at points, for words to keep clear of.

    Attributes:
        markers: Each of one point.
        paths: Lines that go through points.
        names: What is written beside some of the markers.
    """

    markers: list[Line2D] = field(default_factory=list)
    paths: list[Line2D] = field(default_factory=list)
    names: list[tuple[str, Line2D]] = field(default_factory=list)


def name_points(
    axes: Axes, points: Points, inside: BboxBase, taken: Iterable[Any] = ()
) -> list[Any]:
    """Write names beside their points, none over another, over a marker or across the border.

    Of the places around a point it takes the one of least overlap, of these the one where words and
    leader cross the fewest others, of these the nearest.

    Args:
        axes: Of a figure whose layout is settled and drawn.
        points: What is named, and what is in the way.
        inside: Box on the screen that names stand in; of points outside, none is written.
        taken: Artists that no name may cover either.

    Returns:
        What other words must keep clear of: markers and names.
    """
    kept: list[Any] = [*points.markers]
    boxes = [_extent(artist) for artist in (*kept, *taken)]
    paths = [path.get_transform().transform_path(path.get_path()) for path in points.paths]
    for rank, (text, marker) in enumerate(points.names):
        point: Any = np.ravel(marker.get_xydata())
        at = axes.transData.transform(point)
        if not inside.padded(1).contains(*at):
            continue
        # Under the markers, and with its leader under the names before.
        words: Any = {
            "text": text, "xy": point, "textcoords": "offset points", "fontsize": 7,
            "zorder": 4.9 - 0.01 * rank, "annotation_clip": False, "in_layout": False,
            "bbox": {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
        }  # fmt: skip
        name = axes.annotate(xytext=(0, 0), **words)  # its leader would be cut to each place
        tried = []
        for gap, (right, up) in ((gap, side) for gap in GAPS for side in SIDES):
            place = {
                "position": (gap * right, gap * up),
                "ha": ("center", "left", "right")[right],
                "va": ("center", "bottom", "top")[up],
            }
            name.set(**place)
            box = name.get_window_extent().padded(AIR)
            leader = Path(np.array([at, box.get_points().mean(axis=0)]))
            over = box.width * box.height - _shared(box, inside)
            over += sum(_shared(box, other) for other in boxes)
            crossed = sum(path.intersects_bbox(box, filled=False) for path in paths)
            crossed += sum(leader.intersects_bbox(other, filled=False) for other in boxes)
            tried.append(((over, crossed), place, box, leader))
        _, place, box, leader = min(tried, key=lambda one: one[0])
        name.remove()
        name = axes.annotate(xytext=(0, 0), arrowprops=LEADER, **words)
        name.set(**place)
        boxes.append(box)
        paths.append(leader)
        kept.append(name)
    return kept


def _shared(one: BboxBase, other: BboxBase) -> float:
    """Area that is in both boxes."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(width * height) if min(width, height) > 0 else 0.0


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
        figure: Settled, and complete but for these labels.
        axes: The picture.
        lines: Contour lines, each with at most as many labels as it has pieces.
        names: What is written at each level, ascending.
        taken: Artists that no label may cover.
        halo: The colour behind a level's label.
    """
    levels = {name: level for level, name in names.items()}
    ranks = {name: rank for rank, name in enumerate(levels)}
    texts = axes.clabel(lines, fmt=dict(names), fontsize=6.5, inline=False, zorder=4)
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
    return box.padded(AIR)
