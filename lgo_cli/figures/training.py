"""The course of a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy import ndarray as Array

from lgo_cli.figures.style import (
    COLUMN,
    FAINT,
    NARROW,
    TEST,
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

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECADE = 10.0
"""Ratio of the largest to the smallest rate from which on equal factors look equal."""


def draw_training(
    columns: Mapping[str, Any], results: Mapping[str, Any], size: Size = COLUMN
) -> Figure:
    """Loss and accuracy by epoch, on both splits; of real-valued targets, the loss alone.

    Args:
        columns: `train.csv` as arrays, one entry an epoch.
        results: Of `lgo train`.
        size: Inches.
    """
    with house_style():
        narrow = size[0] < NARROW
        num_panels = 1 if np.isnan(columns["train_accuracy"]).all() else 2
        stacked = narrow and num_panels == 2
        figure = new_figure(size, 4.0 if stacked else 2.7)
        shape = (num_panels, 1) if stacked else (1, num_panels)
        panels = figure.subplots(*shape, squeeze=False).flat
        left, right = panels[0], panels[-1]
        epochs = columns["epoch"]
        marker = "o" if len(epochs) <= 12 else ""
        for split, colour, style in (("train", TRAIN, "-"), ("test", TEST, "--")):
            kwargs: dict[str, Any] = {
                "color": colour, "linestyle": style, "marker": marker, "markersize": 3,
            }  # fmt: skip
            final = f"{split}, last {columns[f'{split}_loss'][-1]:.4g}"
            left.plot(epochs, columns[f"{split}_loss"], label=final, **kwargs)
            if num_panels == 2:
                final = f"{split}, last {columns[f'{split}_accuracy'][-1]:.4f}"
                right.plot(epochs, columns[f"{split}_accuracy"], label=final, **kwargs)
        logarithmic = log_axis_if_wide(left, columns["train_loss"], columns["test_loss"])
        left.set_ylabel(loss_label(results, logarithmic=logarithmic, space="\n"))
        if num_panels == 2:
            right.set_ylabel("accuracy (fraction)")
        for axes in panels:
            axes.set_xlabel("epoch")
            round_epochs = MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
            axes.xaxis.set_major_locator(round_epochs)
            room = 0.03 * float(np.ptp(epochs)) or 1.0  # no epoch beyond the last has a tick
            axes.set_xlim(epochs[0] - room, epochs[-1] + room)
            legend(axes)
        recipe = results["recipe"]
        if np.ptp(columns["learning_rate"]):
            _draw_rate(right, epochs, columns["learning_rate"], recipe)
        caption(
            figure,
            results,
            f"{recipe['optimizer']}, lr {recipe['lr']:g}, batches of {recipe['batch_size']}",
        )
        settle(figure, size)
    return figure


def _draw_rate(axes: Axes, epochs: Array, rate: Array, recipe: Mapping[str, Any]) -> None:
    """The rate of each epoch's last step, at that epoch's end, on an axis at the right.

    Schedule `step` holds its rate and drops: the line has steps but for the warm-up. Its rates are
    factors of each other, so that they have a logarithmic axis where they span a decade. A cosine
    goes to zero, which only a linear axis shows.
    """
    rates = axes.twinx()
    drops = recipe["schedule"] == "step"
    ramp = recipe["warmup_epochs"] if drops else epochs[-1]
    for part, style in ((epochs <= ramp, "default"), (epochs >= ramp, "steps-pre")):
        rates.plot(
            epochs[part], rate[part], drawstyle=style, color=FAINT, linewidth=0.9, linestyle=":"
        )
    if drops and rate.max() >= DECADE * rate.min():
        log_axis_if_wide(rates, rate)
    rates.set_ylabel("learning rate (dotted)", color=FAINT)
    rates.tick_params(axis="y", colors=FAINT)
    rates.grid(visible=False)
    rates.spines["right"].set_visible(True)
    rates.spines["right"].set_color(FAINT)
