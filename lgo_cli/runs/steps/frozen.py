"""What stays the run's own under a surface, and what a reader must be told of it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from lgo_cli.runs.steps.curve import FROZEN_CURVE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lgo_cli.runs.steps.surfaces import Work

_DERIVATIVES = {
    "eigen": ("λ and the eigenvectors are", "the quadratic model"),
    "random+eigen": ("λ and the eigenvector are", ""),
    "gradient": ("the gradient is", ""),
}
"""What of the centre's derivatives a plane is laid along, and what of them would be beside it."""


def frozen_warnings(work: Work) -> Iterator[str]:
    """What of a surface is of the run's own statistics, buffers or frozen parameters alone."""
    yield from _derivatives(work)
    yield from _other_checkpoints(work)
    if work.named.trained_curve and work.description.batchnorm == "frozen":
        yield FROZEN_CURVE


def _derivatives(work: Work) -> Iterator[str]:
    """Of gradients and products, where the surface has other statistics."""
    config = work.config
    if config.batchnorm == "frozen":
        return
    what, beside = _DERIVATIVES.get(config.kind, ("", ""))
    if config.kind == "random" and config.num_planes > 1:
        what, beside = "products with the Hessian are", "the mean curvature along random lines"
    if what:
        yield (
            f"{what} of the loss with frozen statistics, not of the one that is drawn (--batchnorm "
            f"{config.batchnorm})" + (f"; {beside} would be too, and is left out" if beside else "")
        )


def _other_checkpoints(work: Work) -> Iterator[str]:
    """Of the checkpoints that the plane was laid through, whose own losses may be others."""
    from lgo_cli import checkpoint
    from lgo_cli.landscape.unmoved import loss_of, unmoved, unmoved_warnings

    markers = zip(work.named.ends, work.named.plane.markers, strict=False)
    for ((x, y), name), marker in islice(markers, 1, None):
        state = checkpoint.load_fitting(work.context.plan.files[name], work.context.loaded.model)
        kinds = unmoved(work.problem, work.evaluator.batchnorm, state)
        if not any(kinds.values()):
            continue
        with work.journal(work.evaluator) as cells:
            loss = cells.measure(work.evaluator, x, y).loss
        own_loss = loss_of(work.problem, state)
        yield from unmoved_warnings(kinds, "over the plane", f"{marker.label}'s", own_loss, loss)
