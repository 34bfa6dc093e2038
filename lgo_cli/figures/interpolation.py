"""Loss and accuracy along a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli.figures.style import (
    ACCENT,
    INK,
    TEST,
    TRAIN,
    caption,
    house_style,
    log_axis_if_wide,
    loss_label,
    new_figure,
    number,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

FEW_POINTS = 15
"""Up to so many, each is marked: what lies between them is not measured."""

_ENDS = {"init": "initialisation", "to": "other checkpoint"}
_DIRECTIONS = {
    "random": "a random direction, filter-normalised",
    "gradient": "the gradient, unit norm",
    "eigen": "the top eigenvector, unit norm",
}


def draw_interpolation(arrays: Mapping[str, Any], results: Mapping[str, Any]) -> Figure:
    """Loss above, accuracy below, over α; train and test with one standard error on each side.

    Args:
        arrays: Of `interp.npz`.
        results: Of `lgo interp`.
    """
    with house_style():
        figure = new_figure(6.4, 4.6)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        alpha = arrays["alpha"]
        for prefix, name, colour, style in (
            ("", "train", TRAIN, "-"),
            ("test_", "test", TEST, "--"),
        ):
            loss, error = arrays[f"{prefix}loss"], arrays[f"{prefix}standard_error"]
            if np.isnan(loss).all():
                continue  # not measured
            finite = np.isfinite(loss) & np.isfinite(error)
            # A mean may be less than its standard error, which no logarithm shows.
            lowest = np.where(loss > error, loss - error, np.minimum(loss, 1e-300))
            above.fill_between(
                alpha, lowest, loss + error, where=finite.tolist(), color=colour, alpha=0.2,
                linewidth=0,
            )  # fmt: skip
            marker = "." if len(alpha) <= FEW_POINTS else ""
            above.plot(alpha, loss, style, color=colour, label=name, marker=marker)
            below.plot(
                alpha, arrays[f"{prefix}accuracy"], style, color=colour, label=name, marker=marker
            )
        log_axis_if_wide(above, arrays["loss"], arrays["test_loss"])
        _hatch_missing(above, alpha, arrays["loss"])
        _mark_ends(above, below, results)
        if results["barrier"] is not None:
            _mark_barrier(above, arrays, number(results["barrier"]))
        above.set_ylabel(loss_label(results))
        below.set_ylabel("accuracy (fraction)")
        below.set_ylim(-0.03, 1.03)
        below.set_xlabel(_axis_label(results))
        if above.get_legend_handles_labels()[0]:
            above.legend(
                loc="lower right", bbox_to_anchor=(1.0, 1.07), ncols=5, borderaxespad=0,
                columnspacing=1.2, handletextpad=0.5,
            )  # fmt: skip
        caption(figure, results, "band: ±1 standard error")
    return figure


def _axis_label(results: Mapping[str, Any]) -> str:
    along = results["along"]
    length = f"‖d‖ = {results['direction_norm']:.4g}"
    if along in _ENDS:
        return f"α (0: run, 1: {_ENDS[along]}; {length})"
    return f"α along {_DIRECTIONS[along]} ({length})"


def _hatch_missing(axes: Axes, alpha: Array, loss: Array) -> None:
    """Hatch where the loss on the probe set is not finite, up to half way to the neighbours."""
    missing = np.flatnonzero(~np.isfinite(loss))
    middles = (alpha[:-1] + alpha[1:]) / 2
    edges = np.array([alpha[0], *middles, alpha[-1]])
    points = "point" if len(missing) == 1 else "points"
    for rank, index in enumerate(missing):
        axes.axvspan(
            edges[index], edges[index + 1], facecolor="white", edgecolor="#999999", hatch="////",
            linewidth=0, label=None if rank else f"not finite ({len(missing)} {points})",
        )  # fmt: skip


def _mark_ends(above: Axes, below: Axes, results: Mapping[str, Any]) -> None:
    points = {"run": 0.0}
    if results["along"] in _ENDS:
        points[_ENDS[results["along"]]] = 1.0
    for axes in (above, below):
        for at in points.values():
            axes.axvline(at, color=INK, linewidth=0.8, linestyle=":")
    for name, at in points.items():
        above.annotate(
            name, (at, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha="center", va="bottom", fontsize=8,
        )  # fmt: skip


def _mark_barrier(axes: Axes, arrays: Mapping[str, Any], barrier: float) -> None:
    """Draw the straight line between the ends and, where there is one, the barrier above it."""
    alpha, loss = arrays["alpha"], arrays["loss"]
    within = (alpha >= 0) & (alpha <= 1)
    a, losses = alpha[within], loss[within]
    if not np.isfinite(losses[[0, -1]]).all():
        return
    chord = (1 - a) * losses[0] + a * losses[-1]
    fine = np.linspace(0, 1, 200)  # on a logarithmic axis the straight line is a curve
    axes.plot(
        fine, (1 - fine) * losses[0] + fine * losses[-1], color=INK, linewidth=0.8,
        label="straight line",
    )  # fmt: skip
    if not np.isfinite(barrier):
        axes.plot([], [], color=ACCENT, linewidth=2, label=f"barrier {barrier:g}")
        return
    if barrier <= 0:
        return
    top = int(np.argmax(losses - chord))
    axes.plot(
        [a[top], a[top]], [chord[top], losses[top]], color=ACCENT, linewidth=2,
        solid_capstyle="butt", label=f"barrier {barrier:.3g}",
    )  # fmt: skip
