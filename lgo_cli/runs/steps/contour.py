"""The step of `lgo contour`."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from lgo_cli.results import ContourResults, percent
from lgo_cli.runs.directions import CURVE_ARRAYS
from lgo_cli.runs.steps.base import Context, Step, common, save_arrays
from lgo_cli.runs.steps.beside import (
    convexity_of,
    filling_results,
    further_planes,
    on_test_samples,
    quadratic_of,
    self_check_results,
    trajectory_points,
)
from lgo_cli.runs.steps.frozen import frozen_warnings
from lgo_cli.runs.steps.surfaces import ARRAYS, open_work
from lgo_cli.runs.strict import refuse_failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lgo_cli.landscape.surface import SelfCheck, Surface
    from lgo_cli.results import Filling, Planes, TestSurface
    from lgo_cli.results import SelfCheck as SelfCheckResults


class ContourStep(Step):
    """`lgo contour`."""

    def compute(self, context: Context) -> ContourResults:
        """Losses on a plane, and what else is asked about it."""
        from lgo_cli.curvature.embeddings import false_derivatives
        from lgo_cli.vectors import movements

        with context.stopwatch.phase("compute"), open_work(context) as work:
            surface = work.measure(work.evaluator)
            arrays: dict[str, Any] = {key: getattr(surface, key) for key in ("x", "y", *ARRAYS)}
            plane, config = work.named.plane, work.config
            arrays["directions"] = plane.directions.cpu().numpy()
            curve = plane.curve
            if curve is not None:
                arrays |= zip(CURVE_ARRAYS, astuple(curve), strict=True)
            trajectory = trajectory_points(work)
            quadratic, quadratic_matvecs = quadratic_of(work, surface)
            planes, plane_matvecs = further_planes(work, arrays)
            convexity, convexity_matvecs = convexity_of(work, arrays)
            test = on_test_samples(work, arrays)
            warnings = [*plane.warnings, *frozen_warnings(work), *work.warnings]
            num_matvecs = work.named.num_matvecs + quadratic_matvecs
            num_matvecs += plane_matvecs + convexity_matvecs
            if num_matvecs:
                warnings += [each.warning for each in false_derivatives(work.problem)]
            if work.test is not None:
                samples = {"num_test_samples": len(work.test.samples)}
                work.description = work.description.model_copy(update=samples)
        filling = filling_results(surface.filled, config)
        complaints = [*work.complaints, *_complaints(surface, filling, planes, test)]
        results = ContourResults(
            **common(context, [*warnings, *complaints]),
            complaints=complaints,
            measured=work.description,
            plane=plane.kind,
            normalization=config.normalization if work.named.draw is not None else None,
            movements=(
                movements(work.problem.layout, config.normalization)
                if work.named.draw is not None
                else []
            ),
            loss_at_center=surface.loss_at_center,
            loss_min=surface.loss_min,
            loss_max=surface.loss_max,
            num_cells=surface.num_cells,
            num_measured=surface.num_measured,
            filling=filling,
            cell_plan=surface.plan,
            is_fast=surface.is_fast,
            axis_cosine=plane.axis_cosine,
            self_check=self_check_results(surface, plane.axis_cosine),
            axis_labels=plane.axis_labels,
            x_range=work.x_range,
            y_range=work.y_range,
            num_range_evaluations=work.num_range_evaluations,
            markers=list(plane.markers),
            trajectory=trajectory,
            curve_distance=float(curve.distances.max()) if curve else None,
            explained_variance=plane.explained_variance,
            quadratic=quadratic,
            planes=planes,
            convexity=convexity,
            test=test,
            num_matvecs=num_matvecs,
        )
        if context.execution.strict:
            refuse_failed(results)
        save_arrays(context, "contour.npz", arrays)
        return results

    def published(self, context: Context) -> None:
        """Forget how the shares were measured: another set of them may follow."""
        from lgo_cli.runs.journal import forget_shares

        forget_shares(context.plan)

    def measure_share(self, context: Context, index: int, count: int) -> bool:
        """Measure one share of the cells, of each plane, into its journal.

        Returns:
            Whether nothing is left to measure; looked at when all of the share is done.
        """
        from lgo_cli.landscape.surface import is_complete, measure_share
        from lgo_cli.runs.journal import Journal, announce_share

        share = f"{index}-of-{count}"
        with context.stopwatch.phase("compute"), open_work(context, share) as work:
            for warning in announce_share(context.plan, work.problem, index, count):
                context.progress.note(f"warning: {warning}")
            # Not the evaluators themselves, each of which may hold a GiB.
            measured = []
            for evaluator in work.evaluators():
                work.verify(evaluator)
                measured.append((work.key(evaluator), len(evaluator.samples)))
                with work.journal(evaluator) as cells:
                    measure_share(
                        evaluator,
                        work.x,
                        work.y,
                        cells,
                        index=index,
                        count=count,
                        progress=context.progress,
                    )
            for key, num_samples in measured:
                with Journal(context.plan.out, key, share) as cells:
                    if not is_complete(work.x, work.y, num_samples, cells):
                        return False
            return True


def _complaints(
    surface: Surface,
    filling: Filling | None,
    planes: Planes | None,
    test: TestSurface | None,
) -> Iterator[str]:
    """What `--strict` does not let pass of the surfaces."""
    yield from _doubts(surface, surface.num_cells, "")
    if filling is not None:
        yield from _shortfall("the surface", [filling])
    if test is not None:
        yield from _doubts(test, surface.num_cells, " on the test samples")
    if test is not None and test.filling is not None:
        yield from _shortfall("the surface on the test samples", [test.filling])
    if planes is not None:
        yield from _shortfall("further planes", planes.fillings)
        yield from _doubts_of_further(planes.self_checks, surface)


def _doubts_of_further(checks: Sequence[SelfCheckResults], surface: Surface) -> Iterator[str]:
    """What the self-checks of further planes found; planes are numbered from 1, the surface's."""
    if number := sum(check.num_nonfinite for check in checks):
        num_cells = len(checks) * surface.num_cells
        yield f"{number:,} of {num_cells:,} cells of further planes are not finite"
    for index, check in enumerate(checks, start=2):
        yield from _differences(check, surface.loss_at_center, f" on plane {index}")


def _doubts(surface: Surface | TestSurface, num_cells: int, where: str) -> Iterator[str]:
    """What the self-check of a surface found."""
    check = surface.self_check
    if check.num_nonfinite:
        yield f"{check.num_nonfinite:,} of {num_cells:,} cells are not finite{where}"
    if not math.isfinite(surface.loss_at_center):
        yield f"the loss at the centre is not finite{where}"
    yield from _differences(check, surface.loss_at_center, where)


def _differences(
    check: SelfCheck | SelfCheckResults, loss_at_center: float, where: str
) -> Iterator[str]:
    """Cells that came out otherwise by another way; a centre that is not finite has no other."""
    from lgo_cli.landscape.evaluator import TOLERANCE

    center = 0.0
    if math.isfinite(loss_at_center):
        center = abs(check.center_difference) / max(abs(loss_at_center), 1e-300)
    for what, difference in (
        ("the centre, measured as any cell,", center),
        ("a cell that was measured again by plain arithmetic", check.recomputed_cell.difference),
    ):
        if not difference <= TOLERANCE:
            yield f"{what} is off by {difference:.1e} of the loss{where}"


def _shortfall(what: str, fillings: Sequence[Filling]) -> Iterator[str]:
    """How far surfaces that a budget ended are from their tolerance, the worst of them."""
    ended = [filling for filling in fillings if not filling.converged]
    if ended:
        estimate = max(filling.largest_relative_estimate for filling in ended)
        share = max(filling.share_above for filling in ended)
        off = max(filling.check.worst_error for filling in ended if filling.check is not None)
        yield (
            f"--max-cells ended {what} short of the tolerance of {ended[0].tolerance:g}: errors "
            f"are estimated at up to {estimate:.2g} of the loss, above the tolerance at "
            f"{percent(share)} of the cells, and cells that were checked were off by up to "
            f"{off:.2g}"
        )
