"""Eigenvalues with their bounds, and the density of the spectrum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from lgo_cli.curvature.smoothing import default_width, smooth
from lgo_cli.figures.plane import wrapped
from lgo_cli.figures.style import (
    ACCENT,
    COLUMN,
    FAINT,
    INK,
    TEST,
    TRAIN,
    Size,
    caption,
    cut_names,
    house_style,
    legend,
    log_axis,
    new_figure,
    settle,
)
from lgo_cli.results import counted, in_thousands

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTER = 0.055
"""Inches of a letter of 7 pt, on average."""
NAMES_SHARE = 0.35
"""Of the figure's width, for the names of layers at its side."""
ROW = 0.14
"""Inches from a layer to the next: of letters of 7 pt, and some air."""


def draw_spectrum(
    arrays: Mapping[str, Any], results: Mapping[str, Any], size: Size = COLUMN
) -> Figure:
    """Eigenvalues at both ends by rank, and below them density and layers if they were measured.

    Args:
        arrays: Of `hessian.npz`.
        results: Of `lgo hessian`.
        size: Inches; the height is a least one where there are several panels.
    """
    has_density, has_layers = "density_nodes" in arrays, "layer_names" in arrays
    heights = [2.5]
    heights += [2.2] if has_density else []
    heights += [max(1.6, 0.9 + ROW * len(arrays["layer_names"]))] if has_layers else []
    with house_style():
        # Lower than this, panels cover each other.
        least = 1.4 * len(heights) + 0.6
        size = (size[0], size[1] and max(size[1], least))
        figure = new_figure(size, sum(heights))
        rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        _draw_eigenvalues(figure.add_subplot(rows[0]), arrays, results)
        if has_density:
            _draw_density(figure.add_subplot(rows[1]), arrays, results)
        if has_layers:
            columns = rows[-1].subgridspec(1, 2)
            left, right = (figure.add_subplot(columns[i]) for i in (0, 1))
            _draw_layers(left, right, arrays)
        state = "converged" if results["converged"] else "NOT CONVERGED"
        products = f"{results['num_matvecs']:,} products, {state}"
        caption(figure, results, products, "bars: residual bounds")
        settle(figure, size)
    return figure


def _draw_eigenvalues(axes: Axes, arrays: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    every = (("largest", TRAIN, "o"), ("smallest", TEST, "s"))
    ends = [end for end in every if len(arrays[end[0]])]
    width, height = _inches(axes)
    count = sum(len(arrays[name]) for name, _, _ in ends)
    longest = max((len(str(len(arrays[name]))) for name, _, _ in ends), default=1)
    share = min(0.5, (0.08 + LETTER * longest) / width)
    apart = math.ceil(count * share / (1 - share)) or 1  # with as much between the two ends
    start = 0
    ticks: list[int] = []
    names: list[str] = []
    for name, colour, marker in ends:
        order = slice(None, None, 1 if name == "largest" else -1)  # from left to right
        values, bounds = arrays[name][order], arrays[f"{name}_residual_bounds"][order]
        positions = np.arange(start, start + len(values))
        axes.errorbar(
            positions, values, yerr=bounds, fmt=marker, color=colour, ecolor=INK, capsize=2,
            markersize=3.5, linewidth=0.9,
            label=name if len(values) == 1 else f"{len(values)} {name}",
        )  # fmt: skip
        ranks = _named_ranks(len(values), apart)
        ticks += [int(positions[order][rank - 1]) for rank in ranks]
        names += map(str, ranks)
        start += len(values) + max(1, apart - 1)
    if not ticks:
        axes.text(0.5, 0.6, "no eigenvalue was asked for", ha="center", transform=axes.transAxes)
        axes.set_yticks([])
    axes.set_xticks(ticks, names)
    axes.set_xlabel("rank, from either end" if len(ends) == 2 else "rank")
    axes.set_ylabel(wrapped(_eigenvalue_of(results), height))
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.grid(visible=False, axis="x")
    _draw_threshold(axes, arrays, results)
    legend(axes)


def _named_ranks(count: int, apart: int) -> list[int]:
    """Ranks that an axis names: the first and the last, and round ones between them.

    Args:
        count: Of the ranks, one at least.
        apart: How many ranks two names need between them; round ones are twice as far apart.
    """
    steps = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    step = 1 if apart == 1 else next(step for step in steps if step >= 2 * apart)
    between = [rank for rank in range(step, count, step) if apart < rank <= count - apart]
    return [1, *between, *([count] if count > apart else [])]


def _draw_threshold(axes: Axes, arrays: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Mark where the optimiser becomes unstable, if these are the curvatures that it sees.

    A ratio is stated of no other operator, scaling or layers; of Adam's it is one of the
    preconditioned Hessian, which is not what is drawn where that was measured beside it.
    """
    threshold = results["stability_threshold"]
    is_drawn = results["sharpness_ratio"] is not None and results["preconditioned"] is None
    if threshold is None or not is_drawn or not len(arrays["largest"]):
        return
    label = f"stability threshold {in_thousands(threshold)}"
    if threshold <= 3 * arrays["largest"][0]:
        axes.axhline(threshold, color=ACCENT, linestyle="--", linewidth=1.2, label=label)
    else:
        axes.plot([], [], color=ACCENT, linestyle="--", label=f"{label} (above the picture)")


def _inches(axes: Axes) -> tuple[float, float]:
    """About how wide and high a panel is, before the layout is settled."""
    figure, place = axes.get_figure(root=True), axes.get_position()
    width, height = (0.0, 0.0) if figure is None else figure.get_size_inches()
    return place.width * width, place.height * height


def _eigenvalue_of(results: Mapping[str, Any]) -> str:
    names = {
        "hessian": "the Hessian",
        "ggn": "the GGN",
        "fisher": "the Fisher matrix",
        "empirical-fisher": "the empirical Fisher",
    }
    scaled = {"none": "", "elementwise": ", times |w||w|", "adam": ", preconditioned"}
    return f"eigenvalue of {names[results['operator']]}{scaled[results['scaling']]}"


def _draw_density(axes: Axes, arrays: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """The smoothed rule in a log scale, and each node at the height of its own peak."""
    nodes, weights = arrays["density_nodes"], arrays["density_weights"]
    low, high = float(nodes.min()), float(nodes.max())
    width = default_width(nodes)
    room = 5 * width
    grid = np.linspace(low - room, high + room, 2000)
    density = smooth(nodes, weights, grid, width)
    top = float(density.max())
    # Each node's own peak; what lies below the least of them is only tails.
    peaks = weights / (width * np.sqrt(2 * np.pi))
    floor = max(float(peaks.min()) / 3, top * 1e-12)
    axes.fill_between(grid, floor, np.maximum(density, floor), color=TRAIN, alpha=0.25, linewidth=0)
    axes.plot(grid, np.maximum(density, floor), color=TRAIN)
    peak = "their peaks" if len(nodes) > 1 else "its peak"
    axes.plot(
        nodes, np.maximum(peaks, floor), linestyle="none", marker="o", markersize=2.5, color=INK,
        label=f"{counted(len(nodes), 'quadrature node')} at {peak}, w/(σ√(2π))",
    )  # fmt: skip
    log_axis(axes, floor, top * 4)
    axes.set_xlim(grid[0], grid[-1])
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(wrapped(_eigenvalue_of(results), _inches(axes)[0]))
    axes.set_ylabel(f"density (smoothed,\nσ = {width:.2g})")
    axes.axvline(0, color=FAINT, linewidth=0.8)
    legend(axes)


def _draw_layers(left: Axes, right: Axes, arrays: Mapping[str, Any]) -> None:
    """Each module's largest eigenvalue, and beside it its trace, from the input downwards."""
    names = [str(name) for name in arrays["layer_names"]]
    rows = np.arange(len(names))
    figure = left.get_figure(root=True)
    assert figure is not None
    longest = int(NAMES_SHARE * figure.get_figwidth() / LETTER)
    series: tuple[tuple[Axes, str, str, dict[str, Any], list[str], str], ...] = (
        (left, "largest", "residual_bounds", {"color": TRAIN}, cut_names(names, longest),
         "largest eigenvalue\nof the module's block"),
        (right, "traces", "trace_standard_errors", {"color": "white", "hatch": "//////"},
         [""] * len(names), "trace of the block,\n± standard error"),
    )  # fmt: skip
    for axes, key, error, how, ticks, label in series:
        axes.barh(
            rows, arrays[f"layer_{key}"], height=0.7, xerr=arrays[f"layer_{error}"],
            edgecolor=INK, linewidth=0.6, error_kw={"linewidth": 0.9, "ecolor": INK}, **how,
        )  # fmt: skip
        axes.set_yticks(rows, ticks)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel(label)
