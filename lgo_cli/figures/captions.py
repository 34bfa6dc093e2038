"""What was measured, in sentences that can go under a figure of a paper."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from lgo_cli.figures.maps import RATIO_ERROR
from lgo_cli.figures.numbers import true_minus
from lgo_cli.figures.plane import ON_PLANE, marked
from lgo_cli.figures.style import interval_of, number, spans_decades
from lgo_cli.loss_names import LOSSES
from lgo_cli.results import (
    DIRECTIONS,
    SHAPES,
    alike,
    batchnorm_statistics,
    counted,
    percent,
    route,
    some,
    spelled_out,
    with_accuracy,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_BESIDE = {
    "line": "the straight line instead of the curve",
    "unrepaired": "the same path without REPAIR",
    "unaligned": "the path before units were permuted",
}


def describe(
    command: str,
    stems: Iterable[str],
    arrays: Mapping[str, Any],
    results: Mapping[str, Any],
    config: Mapping[str, Any],
) -> str:
    """The text of a step's caption file: a paragraph on what was measured, then one per figure.

    Args:
        command: `interp` or `contour`.
        stems: Of the figures that were drawn.
        arrays: Of the step's `.npz`.
        results: Of the step, as plain JSON values.
        config: What was asked for, as the manifest has it.
    """
    of = _contour if command == "contour" else _interp
    paragraphs = [[*_objective(results, config), *of(arrays, results, config)]]
    figures = _contour_figures if command == "contour" else _interp_figures
    sentences = figures(arrays, results)
    paragraphs += [[f"{stem}:", *sentences[stem]] for stem in stems]
    return true_minus("\n\n".join(" ".join(paragraph) for paragraph in paragraphs) + "\n")


def _objective(results: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Model, loss, samples, precision, batch norm and seed."""
    measured = results["measured"]
    loss, samples = measured["loss"], f"{measured['split']} sample"
    called = spelled_out(loss)
    if loss in LOSSES:
        called = f"{loss.replace('_', ' ')} ({LOSSES[loss]})"
    smoothing = measured["label_smoothing"]
    smoothed = f" with label smoothing {smoothing:g}" if smoothing else ""
    several = measured.get("labels_per_sample", 1)
    labels = f" and the {several} labels of each" if several > 1 else ""
    ignored = measured.get("num_ignored_labels", 0)
    labels += f", of which {ignored:,} in all are ignored" if ignored else ""
    policy = "The model has no batch norm."
    if measured["batchnorm"] != "none":
        whose = batchnorm_statistics(measured, pairs=bool(results.get("matrix")))
        policy = f"Batch-norm statistics are {whose}."
    return [
        f"Model: {spelled_out(results['model'])} with "
        f"{counted(results['num_parameters'], 'parameter')}, on "
        f"{spelled_out(results['dataset'])}.",
        f"Loss: mean {called}{smoothed}, without weight decay, over the first "
        f"{measured['num_samples']:,} of {counted(measured['num_available'], samples)}{labels}, "
        f"in evaluation mode and {measured['dtype']} arithmetic.",
        policy,
        f"Seed: {config['seed']}.",
    ]


def _contour(
    arrays: Mapping[str, Any], results: Mapping[str, Any], config: Mapping[str, Any]
) -> list[str]:
    x_label, y_label = (label.partition(": ")[2] or label for label in results["axis_labels"])
    (x0, x1), (y0, y1) = alike(results["x_range"], 6), alike(results["y_range"], 6)
    text = [
        f"Plane: {results['plane']}; x: {x_label}, from {x0} to {x1}; y: {y_label}, from "
        f"{y0} to {y1}; the run is at (0, 0), where the loss is "
        f"{number(results['loss_at_center']):.6g}.",
    ]
    if results["normalization"] is not None:
        held = sorted({move["held"] for move in results["movements"] if move["held"]})
        kept = f"; parameters that do not move: {', '.join(held)}" if held else ""
        text.append(f"Normalisation of directions: {results['normalization']}{kept}.")
    text += _cells(arrays, results)
    missing = int(np.sum(~np.isfinite(arrays["loss"])))
    if missing:
        text.append(f"The loss of {counted(missing, 'cell')} is not finite; none is imputed.")
    if missing < arrays["loss"].size:
        low, high = number(results["loss_min"]), number(results["loss_max"])
        text.append(f"Finite losses range from {low:.6g} to {high:.6g}.")
    test = results.get("test")
    if test:
        text.append(
            f"Test: {counted(results['measured']['num_test_samples'], 'sample')} of the test "
            f"split, on which {test['num_measured']:,} cells were measured; the run's loss is "
            f"{number(test['loss_at_center']):.6g}{with_accuracy(test['accuracy_at_center'])}."
        )
    if results.get("explained_variance"):
        first, second = (percent(number(share)) for share in results["explained_variance"])
        text.append(
            f"The axes hold {first} and {second} of the squared displacements of the "
            "trajectory's checkpoints from the run."
        )
    return text


def _cells(arrays: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """How many cells there are, how many were measured, and how far the others may be off."""
    ny, nx = arrays["loss"].shape
    filling = results["filling"]
    if filling is None:
        return [f"All {nx} × {ny} = {nx * ny:,} cells were measured."]
    percent = {
        key: f"{100 * number(filling[key]):.2g} %"
        for key in ("tolerance", "largest_relative_estimate")
    }
    tolerance = f"a tolerance of {percent['tolerance']} of each cell's loss"
    if arrays["measured"].all():
        return [
            f"All {nx} × {ny} = {nx * ny:,} cells were measured: filling in to {tolerance} would "
            "have saved nothing."
        ]
    others = (
        "are filled by a spline of the logarithm of the loss, and the largest error estimate is "
        f"{percent['largest_relative_estimate']}"
    )
    if not _filled(arrays).any():
        others = "lie among cells that are not finite"
    text = [
        f"Of {nx} × {ny} = {nx * ny:,} cells {int(arrays['measured'].sum()):,} were measured, at "
        f"{tolerance}; the others {others}."
    ]
    if not filling["converged"]:
        text.append(
            "A limit on the cells ended it before: estimates are above the tolerance at "
            f"{100 * number(filling['share_above']):.2g} % of the cells."
        )
    check = filling["check"]
    if check is not None:
        worst = number(check["worst_error"])
        cells, found = "filled cells", f"the largest error was {100 * worst:.2g} %"
        if np.isinf(worst):
            found = "not all are finite that were predicted to be, or the reverse"
        elif worst == 0 and not _filled(arrays).any():
            cells, found = "cells that were predicted not to be finite", "none is"
        text.append(
            f"{check['num_cells']:,} {cells}, drawn at random, were measured as a check: {found}."
        )
    return text


def _filled(arrays: Mapping[str, Any]) -> Any:
    """Cells [ny, nx] whose loss was filled in; those with a hole around them have none."""
    return ~arrays["measured"] & np.isfinite(arrays["loss"])


def _contour_figures(arrays: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, list[str]]:
    loss = arrays["loss"]
    scale = "logarithmic" if spans_decades(loss) else "linear"
    apart: list[str] = []
    flat = [f"Loss on the plane from above; levels are {scale}; the star is the run."]
    if not np.isfinite(loss).all():
        flat.append("Hatched cells are not finite.")
    if results.get("trajectory"):
        points = counted(len(results["trajectory"]), "checkpoint")
        count = len(marked(results))
        if count < len(results["trajectory"]):
            apart = [f"Marked are {count:,} of them, which stand apart."]
        flat.append(f"The line is the training trajectory, {points} projected onto the plane.")
        farthest = max(number(point["distance"]) for point in results["trajectory"])
        flat.append(f"Circles show how far checkpoints are off the plane, {farthest:.3g} at most.")
        flat += apart
    if "plane_path" in arrays:
        num_bends = len(arrays["plane_coordinates"]) - 2
        bends = f", by {counted(num_bends, 'bend')} as control points" if num_bends else ""
        flat.append(
            f"The line is the curve that came with the directions, to the other end{bends}."
        )
        distance = number(results["curve_distance"])
        if distance >= ON_PLANE:
            flat.append(f"It is projected: it leaves the plane by {distance:.2g} at most.")
    if results.get("quadratic"):
        error = 100 * number(results["quadratic"]["max_error"])
        flat.append(
            "Dashed: the same levels of the quadratic model by gradient and Hessian at the run, "
            f"which is off by {error:.3g} % of the loss at most at the measured cells."
        )
    what = "Error estimate of each filled cell as a share of its loss"
    what = what if _filled(arrays).any() else "No cell was filled in"
    figures = {
        "contour_2d": flat,
        "contour_3d": [
            f"The same surface in perspective; its height is {scale}.",
            *_stems(results.get("trajectory") or []),
            *apart,
        ],
        "contour_error": [f"{what}; dots were measured."],
    }
    if "test_loss" in arrays:
        test_scale = "logarithmic" if spans_decades(arrays["test_loss"]) else "linear"
        figures["contour_test"] = [
            f"Loss on the same plane over the test samples; levels are {test_scale}."
        ]
    if "convexity_ratio" in arrays:
        cy, cx = arrays["convexity_ratio"].shape
        figures["contour_convexity"] = [
            f"|λmin / λmax| of the Hessian on {cx} × {cy} points of the plane, under the loss's "
            "contour lines; near 0 the loss is almost convex there."
        ]
        unknown = int(np.sum(~(arrays["convexity_ratio_error"] <= RATIO_ERROR)))
        if unknown:
            figures["contour_convexity"].append(
                f"Hatched: it is not known to {RATIO_ERROR} at {counted(unknown, 'point')}."
            )
    if "planes_loss" in arrays:
        figures["contour_bands"] = [
            f"Mean loss over circles around the run on {len(arrays['planes_loss'])} planes: their "
            "median and their range, interpolated between cells."
        ]
    return figures


def _stems(trajectory: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which loss the stems of a trajectory end at, and how far it is from the checkpoints' own."""
    if not trajectory:
        return []
    text = "Stems lead from each checkpoint's projection to the loss at its weights"
    pairs = [[number(point.get(key)) for key in ("loss", "own_loss")] for point in trajectory]
    largest = max((gap for loss, own in pairs if (gap := abs(own - loss)) > 0), default=0.0)
    if not largest:
        return [f"{text}."]
    return [
        f"{text}, with buffers and batch norm as on the surface.",
        f"With all of its own buffers a checkpoint's loss is another, by {largest:.3g} at most.",
    ]


def _interp(
    arrays: Mapping[str, Any], results: Mapping[str, Any], config: Mapping[str, Any]
) -> list[str]:
    measured = results["measured"]
    text = []
    if measured.get("num_test_samples"):
        text.append(f"Test: {counted(measured['num_test_samples'], 'sample')} of the test split.")
    if "matrix_barrier" in arrays:
        names = results["matrix"]["names"]
        lines = f"{SHAPES[results['shape']]}s".capitalize()
        return [
            *text,
            f"{lines} between each two of {len(names)} checkpoints, {results['num_points']} points "
            f"each: {', '.join(names)}.",
            *_extreme_barriers(arrays, names),
        ]
    along = results["along"]
    low, high = alike(results["range"], 6)
    repaired = bool((results.get("repair") or {}).get("layers"))
    text.append(
        f"Path: {route(along, results.get('shape', 'line'), is_repaired=repaired)}, "
        f"{results['num_points']} points on "
        f"[{low}, {high}], where the run is at 0"
        f"{'' if along in DIRECTIONS else ' and the other end at 1'}."
    )
    on_train, on_test = (results.get(f"{split}num_nonfinite") for split in ("", "test_"))
    if on_train or on_test:
        text.append(
            "Points whose loss is not finite, which the figure leaves out: "
            f"{on_train or 'none'}; on the test samples {on_test or 'none'}."
        )
    text += _changed(results)
    if results["barrier"] is not None:
        within = _interval(
            results.get("barrier_interval"), " (95 % interval {}, from paired differences)"
        )
        if not np.isfinite(number(results["barrier"])):
            within = ", as a loss at an end or between them is not finite"
        text.append(
            f"Barrier: {number(results['barrier']):.4g}{within}, the most by which the loss "
            "exceeds the straight line between the losses at the ends."
        )
    elif along not in DIRECTIONS:
        text.append("Barrier: none, as no point between the two ends was measured.")
    for name, of in _BESIDE.items():
        beside = results.get(f"barrier_{name}")
        if beside is not None:
            within = _interval(beside["interval"], " ({})")
            text.append(f"Barrier of {of}: {number(beside['value']):.4g}{within}.")
    return text


def _extreme_barriers(arrays: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The largest and the smallest barrier of a matrix, each with its pair and its interval."""
    barriers = np.array(arrays["matrix_barrier"], dtype=float)
    pairs = list(combinations(range(len(names)), 2))
    known = [pair for pair in pairs if not np.isnan(barriers[pair])]
    text = []
    for word, find in (("Largest", max), ("Smallest", min)):
        if known:
            pair = find(known, key=barriers.__getitem__)
            interval = [float(arrays[f"matrix_{key}"][pair]) for key in ("lower", "upper")]
            within = _interval(interval, " (95 % interval {}, from paired differences)")
            text.append(
                f"{word} barrier: {barriers[pair]:.4g}{within}, between {names[pair[0]]} and "
                f"{names[pair[1]]}."
            )
    if len(known) < len(pairs):
        text.append(f"Pairs without one, as a loss is not finite: {len(pairs) - len(known)}.")
    return text


def _interval(recorded: Any, how: str) -> str:
    """An interval of a barrier; nothing if there is none, or no finite one."""
    interval = interval_of(recorded)
    return how.format("from {} to {}".format(*alike(interval))) if interval else ""


def _changed(results: Mapping[str, Any]) -> list[str]:
    """What was done to the other end, or to the points between: align, REPAIR, curve."""
    text = []
    if results.get("alignment"):
        found = results["alignment"]
        text.append(
            "The other checkpoint's hidden units were permuted to match the run's by weight "
            f"matching (Ainsworth et al. 2022): {found['num_moved']:,} of {found['num_units']:,} "
            f"moved, and the distance fell from {found['distance_before']:.4g} to "
            f"{found['distance_after']:.4g}."
        )
    if results.get("repair"):
        found = results["repair"]
        left = found["not_repaired"]
        parts = [
            counted(len(found[key]), noun)
            for key, noun in (("layers", "layer"), ("batch_norms", "batch norm"))
            if found[key]
        ]
        text.append(
            f"REPAIR (Jordan et al. 2023): of {' and '.join(parts) or 'no layer'}"
            + (f", not of {some(left)} ({counted(len(left), 'parameter')})" if left else "")
            + (
                "; each layer's weights are rescaled at every point to restore the mean and spread "
                "of its units' activations"
                if found["layers"]
                else "; no layer is left to rescale"
            )
            + (
                "; the statistics of batch norm are recomputed on all paths here"
                if found["batch_norms"]
                else ""
            )
            + "."
        )
    if results.get("curve"):
        found = results["curve"]
        recipe = found["recipe"]
        text.append(
            f"The curve (Garipov et al. 2018) has {counted(found['num_bends'], 'bend')}, trained "
            f"on {found['num_train_samples']:,} samples for "
            f"{counted(recipe['epochs'], 'epoch')} by {recipe['optimizer']} at learning rate "
            f"{recipe['lr']:g}; it is "
            f"{found['length']:.4g} times as long as the line."
        )
    return text


def _interp_figures(arrays: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, list[str]]:
    what = "Loss" if np.isnan(arrays.get("accuracy", 0)).all() else "Loss and accuracy"
    line = [f"{what} along the path; bands are one standard error on each side."]
    if "line_loss" in arrays:
        aligned = ", the other aligned" if "unaligned_loss" in arrays else ""
        line.append(
            f"Dash-dotted: the straight line in parameter space between the same ends{aligned}."
        )
    if "unrepaired_loss" in arrays:
        line.append("Dash-dotted: the same path without REPAIR.")
    if "unaligned_loss" in arrays:
        what = "straight line" if "line_loss" in arrays else "path"
        line.append(f"Dotted: the {what} to the other checkpoint before its units were permuted.")
    if results["barrier"] is not None:
        line.append("Thin: the straight line between the end losses, from which barriers count.")
    return {
        "interp_1d": line,
        "interp_matrix": [
            "Barrier between each two checkpoints, the most by which the loss exceeds the straight "
            "line between the losses at the ends; where cells have room, its number and, in "
            "brackets, its 95 % interval are written out."
        ],
    }
