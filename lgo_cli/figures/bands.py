"""Many random planes: one of them is one sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli.figures.plane import wrapped
from lgo_cli.figures.style import (
    COLUMN,
    TRAIN,
    Size,
    caption,
    house_style,
    legend,
    log_axis_if_wide,
    loss_label,
    new_figure,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure


def draw_bands(
    arrays: Mapping[str, Any], results: Mapping[str, Any], size: Size = COLUMN
) -> Figure:
    """Loss over the distance from the run: median and range over planes.

    Args:
        arrays: Of `contour.npz`, with `planes_loss` [K, ny, nx] and `profile_radius`,
            `profile_median`, `profile_low`, `profile_high` [m].
        results: Of `lgo contour`.
        size: Inches.
    """
    radius, median = arrays["profile_radius"], arrays["profile_median"]
    low, high = arrays["profile_low"], arrays["profile_high"]
    num_planes = len(arrays["planes_loss"])
    finite = np.isfinite(low) & np.isfinite(high)
    with house_style():
        figure = new_figure(size, 0.6 * size[0])
        axes = figure.subplots()
        axes.fill_between(
            radius, low, high, where=finite.tolist(), color=TRAIN, alpha=0.25, linewidth=0,
            label=f"range of {num_planes} planes",
        )  # fmt: skip
        axes.plot(radius, low, color=TRAIN, linewidth=0.6)
        axes.plot(radius, high, color=TRAIN, linewidth=0.6)
        axes.plot(radius, median, color=TRAIN, linewidth=1.6, label="median")
        logarithmic = log_axis_if_wide(axes, low, median, high)
        axes.set_xlim(radius[0], radius[-1])
        axes.set_xlabel("distance from the run, in the plane's units")
        label = loss_label(results, logarithmic=logarithmic)
        axes.set_ylabel(wrapped(label, figure.get_figheight() - 0.6))
        legend(axes)
        caption(figure, results)
        settle(figure, size)
    return figure
