"""Loss and accuracy along a line or a curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy import ndarray as Array

from lgo_cli.figures.plane import wrapped
from lgo_cli.figures.style import (
    ACCENT,
    COLUMN,
    FAINT,
    GREEN,
    INK,
    NARROW,
    TEST,
    TRAIN,
    Size,
    caption,
    house_style,
    interval_of,
    legend,
    log_axis_if_wide,
    loss_label,
    new_figure,
    number,
    settle,
)
from lgo_cli.results import DIRECTIONS, ENDS, alike

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_POINTS = 15
"""Up to so many, each is marked: what lies between them is not measured."""


def draw_interpolation(
    arrays: Mapping[str, Any], results: Mapping[str, Any], size: Size = COLUMN
) -> Figure:
    """Loss above, accuracy below, over α; train and test with one standard error on each side.

    Of real-valued targets, the loss alone.

    Beside them, where measured, each with its barrier: the straight line beside a trained curve,
    the path before REPAIR, and the path before the permutations were matched.

    Args:
        arrays: Of `interp.npz`.
        results: Of `lgo interp`.
        size: Inches.
    """
    with house_style():
        num_panels = 1 if np.isnan(arrays["accuracy"]).all() else 2
        figure = new_figure(size, (0.2 + 0.2 * num_panels) * size[0] + 1.25)
        heights = [3, 2][:num_panels]
        panels = figure.subplots(num_panels, 1, sharex=True, squeeze=False, height_ratios=heights)
        above, below = panels[0, 0], panels[-1, 0]
        alpha = arrays["alpha"]
        # What was done to the path, the last first.
        done = {
            "curve": results.get("curve"),
            "repaired": (results.get("repair") or {}).get("layers"),
            "aligned": results.get("alignment"),
        }
        what = next((f", {name}" for name, was in done.items() if was), "")
        # Beside a curve to an aligned end there are two straight lines.
        two = "line_loss" in arrays and "unaligned_loss" in arrays
        series = [
            ("", f"train{what}", TRAIN, "-"),
            ("test_", f"test{what}", TEST, "--"),
            ("line_", f"train, {'aligned line' if two else 'line'}", INK, "-."),
            ("unrepaired_", "train, unrepaired", GREEN, (0, (4, 1, 1, 1))),
            (
                "unaligned_",
                f"train, {'unaligned line' if two else 'unaligned'}",
                FAINT,
                (0, (1, 1)),
            ),
        ]
        drawn = []
        for prefix, name, colour, style in series:
            if f"{prefix}loss" not in arrays or not np.isfinite(arrays[f"{prefix}loss"]).any():
                continue  # not measured, or nothing to be drawn
            loss, error = arrays[f"{prefix}loss"], arrays[f"{prefix}standard_error"]
            drawn.append(loss)
            _draw_band(above, alpha, loss, error, colour)
            marker = "." if len(alpha) <= FEW_POINTS else ""
            beside = results.get(f"barrier_{prefix.rstrip('_')}")
            height = f": {_barrier(beside['value'], beside['interval'])}" if beside else ""
            how: dict[str, Any] = {"linestyle": style, "color": colour, "marker": marker}
            above.plot(alpha, loss, label=f"{name}{height}", **how)
            if num_panels == 2 and f"{prefix}accuracy" in arrays:
                below.plot(alpha, arrays[f"{prefix}accuracy"], label=name, **how)
        logarithmic = log_axis_if_wide(above, *drawn) if drawn else False
        for axes in () if drawn else panels.flat:
            axes.set_yticks([])  # they would be of no number
        _hatch_missing(above, alpha, arrays["loss"])
        _mark_ends([*panels.flat], results)
        if results["barrier"] is not None:
            _mark_barrier(above, arrays, results)
        above.set_ylabel(loss_label(results, logarithmic=logarithmic, space="\n"))
        if num_panels == 2:
            below.set_ylabel("accuracy\n(fraction)")
            below.set_ylim(-0.03, 1.03)
        below.set_xlabel(_axis_label(arrays, results, size[0] - 0.5))
        # Steps of which the ends, 0 and 1, are multiples.
        few = MaxNLocator(5 if size[0] < NARROW else 9, steps=[1, 2, 2.5, 5, 10])
        below.xaxis.set_major_locator(few)
        legend(figure, above.get_legend_handles_labels()[0])
        is_drawn = interval_of(results.get("barrier_interval")) and number(results["barrier"]) > 0
        whisker = ["whisker: 95 % interval"] if is_drawn else []
        caption(figure, results, "bands: ±1 standard error", *whisker)
        settle(figure, size)
    return figure


def _draw_band(axes: Axes, alpha: Array, loss: Array, error: Array, colour: str) -> None:
    """One standard error on each side, down to nothing where a mean is less than its error."""
    finite = np.isfinite(loss) & np.isfinite(error)
    # No logarithm shows what is not positive.
    lowest = np.where(loss > error, loss - error, np.minimum(loss, 1e-300))
    axes.fill_between(
        alpha, lowest, loss + error, where=finite.tolist(), color=colour, alpha=0.2, linewidth=0
    )


def _axis_label(arrays: Mapping[str, Any], results: Mapping[str, Any], inches: float) -> str:
    along = results["along"]
    length = f"‖d‖ = {results['direction_norm']:.4g}"
    if along in ENDS:
        ends = f"(0: run, 1: {ENDS[along]}; {length})"
        if "line_loss" in arrays:
            return f"α on the line, t on the curve\n{wrapped(ends, inches)}"
        return wrapped(f"α {ends}", inches)
    return wrapped(f"α along {DIRECTIONS[along]} ({length})", inches)


def _hatch_missing(axes: Axes, alpha: Array, loss: Array) -> None:
    """Hatch where the loss on the probe set is not finite, up to half way to the neighbours."""
    missing = np.flatnonzero(~np.isfinite(loss))
    middles = (alpha[:-1] + alpha[1:]) / 2
    edges = np.array([alpha[0], *middles, alpha[-1]])
    points = "point" if len(missing) == 1 else "points"
    for rank, index in enumerate(missing):
        axes.axvspan(
            edges[index], edges[index + 1], facecolor="white", edgecolor="#999999", hatch="/////",
            linewidth=0, label=None if rank else f"not finite ({len(missing)} {points})",
        )  # fmt: skip


def _mark_ends(panels: Sequence[Axes], results: Mapping[str, Any]) -> None:
    points = {"run": 0.0}
    if results["along"] in ENDS:
        points[ENDS[results["along"]]] = 1.0
    for axes in panels:
        for at in points.values():
            axes.axvline(at, color=INK, linewidth=0.7, linestyle=":")
    low, high = panels[0].get_xlim()
    for name, at in points.items():
        # Near a border a name goes inwards, so that it takes no room from the picture.
        share = (at - low) / (high - low)
        side = "left" if share < 0.15 else "right" if share > 0.85 else "center"
        panels[0].annotate(
            name, (at, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha=side, va="bottom", fontsize=7,
        )  # fmt: skip


def _mark_barrier(axes: Axes, arrays: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Draw the chord between the ends and, where there is one, the barrier above it.

    A whisker at its top is the barrier's interval, as high above the chord as its ends.
    """
    barrier = number(results["barrier"])
    alpha, loss = arrays["alpha"], arrays["loss"]
    within = (alpha >= 0) & (alpha <= 1)
    a, losses = alpha[within], loss[within]
    if not np.isfinite(losses[[0, -1]]).all():
        return
    chord = (1 - a) * losses[0] + a * losses[-1]
    fine = np.linspace(0, 1, 200)  # on a logarithmic axis the chord is a curve
    axes.plot(
        fine, (1 - fine) * losses[0] + fine * losses[-1], color=INK, linewidth=0.6, label="chord"
    )
    bounds = interval_of(results.get("barrier_interval"))
    label = _barrier(barrier, results.get("barrier_interval"))
    if not 0 < barrier < np.inf:
        axes.plot([], [], color=ACCENT, linewidth=2, label=label)
        return
    top = int(np.argmax(losses - chord))
    if bounds is not None:
        low, high = bounds
        axes.errorbar(
            [a[top]], [losses[top]], yerr=[[barrier - low], [high - barrier]], color=INK,
            capsize=2.5, linewidth=0.9, zorder=5,
        )  # fmt: skip
    axes.plot(
        [a[top], a[top]], [chord[top], losses[top]], color=ACCENT, linewidth=2,
        solid_capstyle="butt", label=label,
    )  # fmt: skip


def _barrier(value: Any, recorded: Any) -> str:
    """A barrier as legends have it, with its interval if there is one."""
    bounds = interval_of(recorded)
    if bounds is None:
        return f"barrier {number(value):.3g}"
    height, *interval = alike((number(value), *bounds), 3)
    return f"barrier {height} [{', '.join(interval)}]"
