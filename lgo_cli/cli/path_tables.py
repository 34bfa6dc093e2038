"""What `lgo interp` measured, as names and values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lgo_cli.results import SHAPES, alike, counted, route, some

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lgo_cli.cli.talk import Rows
    from lgo_cli.results import BarrierMatrix, InterpResults


def path_rows(results: InterpResults) -> Rows:
    """What `lgo interp` found."""
    if results.matrix is not None:
        return _matrix(results, results.matrix)
    bounds = f"{results.num_points} points on {interval(results.range)}"
    is_repaired = results.repair is not None and bool(results.repair.layers)
    rows: Rows = [
        ("path", f"{route(results.along, results.shape, is_repaired=is_repaired)}, {bounds}"),
        ("loss", f"{results.loss_at_start:.6g} at 0, {results.loss_at_end:.6g} at the end"),
    ]
    if results.alignment is not None:
        found = results.alignment
        rows += [
            (
                "aligned",
                f"{found.num_moved:,} of {found.num_units:,} hidden units moved in "
                f"{counted(found.num_iterations, 'sweep')}; distance "
                f"{found.distance_before:.4g} before, {found.distance_after:.4g} after",
            ),
            ("", f"outputs differ by {found.output_difference:.1e} ({found.output_dtype})"),
        ]
        rows += _left("not permuted", found.not_permuted)
    if results.repair is not None:
        repair = results.repair
        rows.append(
            (
                "repaired",
                f"{counted(len(repair.layers), 'layer')}, "
                f"{counted(len(repair.batch_norms), 'batch norm')}",
            )
        )
        rows += _left("not repaired", repair.not_repaired)
    if results.curve is not None:
        curve = results.curve
        rows.append(
            (
                "curve",
                f"{counted(curve.num_bends, 'bend')}, "
                f"{curve.length:.4g} times as long as the line; {curve.recipe.optimizer}, "
                f"lr {curve.recipe.lr:g}, {counted(curve.recipe.epochs, 'epoch')}",
            )
        )
        if curve.epoch_losses:
            first, last = curve.epoch_losses[0], curve.epoch_losses[-1]
            rows.append(
                ("", f"training loss {first:.4g} in the first epoch, {last:.4g} in the last")
            )
    rows += _barriers(results)
    if results.curvature_at_origin is not None:
        rows.append(("curvature", f"{results.curvature_at_origin:.6g} at 0, d²L/dα²"))
    return rows + _self_check(results)


def _left(title: str, reasons: Mapping[str, str]) -> Rows:
    """What was left alone, by reason; the manifest has all of the names."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    rows: Rows = []
    for reason, group in names.items():
        heading = "" if rows else title
        rows.append((heading, f"{counted(len(group), 'parameter')}: {reason}"))
        rows.append(("", f"  {some(group)}"))
    return rows


def _self_check(results: InterpResults) -> Rows:
    """How far fast paths are off the model's own pass, and why points took that itself."""
    found = [
        f"fast path{whose} equal to {difference:.1e}"
        for difference, whose in (
            (results.fast_path_difference, ""),
            (results.fast_path_difference_beside, " of the paths beside it"),
        )
        if difference is not None
    ]
    rows: Rows = [("self-check", ", ".join(found))] if found else []
    if not results.is_fast:
        rows.append(("points", results.point_plan))
    return rows


def _barriers(results: InterpResults) -> Rows:
    """The path's barrier, then those of the paths beside it."""
    rows: Rows = []
    if results.has_end and results.barrier is None:
        rows.append(("barrier", "none: no point between the two ends was measured"))
    if results.barrier is not None and results.barrier_interval is not None:
        height = _height(results.barrier, results.barrier_interval, " (95 %)")
        text = f"{height} above the straight line between the end losses"
        if not math.isfinite(results.barrier):
            text = f"{height}: a loss at an end or between them is not finite"
        rows.append(("barrier", text))
    if results.test_barrier is not None and results.test_barrier_interval is not None:
        height = _height(results.test_barrier, results.test_barrier_interval)
        rows.append(("", f"{height} on the test samples"))
    for name, on_train, on_test in (
        ("unaligned", results.barrier_unaligned, results.test_barrier_unaligned),
        ("unrepaired", results.barrier_unrepaired, results.test_barrier_unrepaired),
        ("on the line", results.barrier_line, results.test_barrier_line),
    ):
        if on_train is not None:
            height = _height(on_train.value, on_train.interval)
            rows.append((name, f"{height} instead"))
        if on_test is not None:
            height = _height(on_test.value, on_test.interval)
            rows.append(("", f"{height} on the test samples"))
    return rows


def _matrix(results: InterpResults, matrix: BarrierMatrix) -> Rows:
    """Each pair on a line: there is no width to trust that a terminal has."""
    paths = f"{SHAPES[results.shape]}s"
    rows: Rows = [
        (
            "paths",
            f"{paths} between {len(matrix.names)} checkpoints, {results.num_points} points each",
        )
    ]
    rows += [
        (f"  {name}", f"loss {loss:.6g}")
        for name, loss in zip(matrix.names, matrix.loss, strict=True)
    ]
    for first, row in enumerate(matrix.barrier):
        for second in range(first + 1, len(row)):
            interval = (matrix.lower[first][second], matrix.upper[first][second])
            test = (matrix.test_lower[first][second], matrix.test_upper[first][second])
            text = (
                f"barrier {_height(row[second], interval, ' (95 %)')}, on the test samples "
                f"{_height(matrix.test_barrier[first][second], test)}"
            )
            if not math.isfinite(matrix.loss[first] + matrix.loss[second]):
                text = "no barrier: a loss is not finite"
            rows.append((f"  {matrix.names[first]}, {matrix.names[second]}", text))
    return rows + _self_check(results)


def _height(value: float, interval: tuple[float, float], confidence: str = "") -> str:
    if not math.isfinite(value):
        return str(value)
    if not all(map(math.isfinite, interval)):
        return f"{value:.4g} (no interval)"
    height, *ends = alike((value, *interval))
    return f"{height} ({' to '.join(ends)}){confidence}"


def interval(bounds: tuple[float, float]) -> str:
    """Two ends as they are printed."""
    return f"[{', '.join(alike(bounds))}]"
