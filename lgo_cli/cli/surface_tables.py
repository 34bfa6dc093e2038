"""What `lgo contour` measured, as names and values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lgo_cli.cli.path_tables import interval
from lgo_cli.results import counted, percent, with_accuracy

if TYPE_CHECKING:
    from lgo_cli.cli.talk import Rows
    from lgo_cli.results import ContourResults, Filling, Planes


def surface_rows(results: ContourResults) -> Rows:
    """The plane, what was measured on it, and what was checked."""
    check = results.self_check
    rows: Rows = [
        (
            "plane",
            f"{results.plane}, x in {interval(results.x_range)}, y in {interval(results.y_range)}",
        ),
        ("axes", f"{results.axis_labels[0]} | {results.axis_labels[1]}"),
        ("loss", f"{results.loss_at_center:.6g} at the centre"),
    ]
    if results.loss_min is not None and results.loss_max is not None:
        rows.append(("range", f"{results.loss_min:.6g} to {results.loss_max:.6g}"))
    if results.explained_variance is not None:
        first, second = results.explained_variance
        rows.append(
            (
                "share",
                f"{percent(first)} and {percent(second)} of the trajectory's squared displacements",
            )
        )
    rows += _cells(results)
    if results.quadratic is not None:
        radius = results.quadratic.radius
        reach = f"up to radius {radius:.3g}" if radius else "at the centre alone"
        rows.append(
            (
                "quadratic",
                f"within a tenth of the loss {reach}, "
                f"off by {results.quadratic.max_error:.2g} of it at most at the measured cells",
            )
        )
    test = results.test
    if test is not None:
        samples = counted(results.measured.num_test_samples or 0, "sample")
        cells = f"{test.num_measured:,} of {results.num_cells:,} measured"
        if test.filling is not None and not test.filling.converged:
            cells += f"; the rest {_filled(test.filling)}"
        rows.append(
            (
                "test",
                f"{test.loss_at_center:.6g} at the centre"
                f"{with_accuracy(test.accuracy_at_center)}, {samples}; {cells}",
            )
        )
        if test.loss_min is not None and test.loss_max is not None:
            rows.append(("", f"{test.loss_min:.6g} to {test.loss_max:.6g}"))
    if results.planes is not None:
        rows += _planes(results.planes)
    if results.convexity is not None:
        convexity = results.convexity
        largest = f"up to {convexity.largest_ratio:.3g} ± {convexity.largest_ratio_error:.1g}"
        if math.isnan(convexity.largest_ratio):
            largest = "finite at no cell"
        rows.append(
            (
                "convexity",
                f"|λmin/λmax| {largest}, {convexity.num_converged} of {convexity.num_cells} "
                f"cells converged, {convexity.num_matvecs:,} products",
            )
        )
    cell = check.recomputed_cell
    fast = f"fast path equal to {check.fast_path_difference:.1e}, " if results.is_fast else ""
    rows.append(
        (
            "self-check",
            f"centre off by {check.center_difference:.1e}, axes' cosine {check.axis_cosine:.1e}, "
            f"{fast}cell ({cell.row}, {cell.column}) recomputed to {cell.difference:.1e}, "
            f"{check.num_nonfinite} not finite",
        )
    )
    if not results.is_fast:
        rows.append(("", f"cells took {results.cell_plan}"))
    return rows


def _cells(results: ContourResults) -> Rows:
    """How many cells were measured, and how far the others may be off."""
    filling = results.filling
    cells = f"{results.num_measured:,} of {results.num_cells:,} measured"
    if filling is None:
        return [("cells", cells)]
    if results.num_measured == results.num_cells:
        saves = f"filling in to {filling.tolerance:.3g} saves nothing"
        return [("cells", f"{cells}, worth {filling.cost:.0f}: {saves}")]
    rest = _filled(filling)
    text = f"stated up to {filling.largest_relative_estimate:.1e} of the loss"
    check = filling.check
    if check is not None and check.worst_error == filling.largest_error_estimate == 0:
        rest = "lie among cells that are not finite"
        text = f"nothing was filled in; {check.num_cells} of the rest, measured, are not finite"
    elif check is not None:
        text += (
            f"; {check.num_cells} cells measured after all were off by "
            f"{check.worst_error:.1e} at most"
        )
    return [("cells", f"{cells}, worth {filling.cost:.0f}; the rest {rest}"), ("error", text)]


def _filled(filling: Filling) -> str:
    """To what the cells that were not measured were filled in."""
    if filling.converged:
        return f"filled in to {filling.tolerance:.3g}"
    return (
        f"NOT filled in to {filling.tolerance:.3g}, short of it at {percent(filling.share_above)}"
    )


def _planes(planes: Planes) -> Rows:
    low, high = planes.loss_min, planes.loss_max
    ended = [filling for filling in planes.fillings if not filling.converged]
    short = f"; {len(ended)} NOT filled in to {ended[0].tolerance:.3g}" if ended else ""
    rows = [
        (
            "planes",
            f"{planes.num_planes}; largest loss {high.median:.4g} in the median "
            f"({high.minimum:.4g} to {high.maximum:.4g}), smallest {low.median:.4g}{short}",
        )
    ]
    lines = planes.line_curvature
    if lines is not None:
        rows.append(
            (
                "curvature",
                f"{lines.mean:.4g} ± {lines.standard_error:.1g} along {lines.num_lines} random "
                f"lines, {lines.expected:.4g} ± {lines.expected_standard_error:.1g} by the trace: "
                f"{abs(lines.deviation):.2g} standard errors apart (95 % are within 1.96)",
            )
        )
    return rows
