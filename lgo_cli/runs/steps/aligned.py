"""Matching the other end's hidden units to the run's, and REPAIR, for `lgo interp --align`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from lgo_cli.results import AlignmentResults, RepairResults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from lgo_cli.config import InterpConfig
    from lgo_cli.landscape.alignment import Alignment
    from lgo_cli.objective import Objective
    from lgo_cli.results import Measured
    from lgo_cli.runs.steps.base import Context


def aligned(context: Context, config: InterpConfig, other: Mapping[str, Tensor]) -> Alignment:
    """Match the other end's hidden units to the run's."""
    from lgo_cli.landscape.alignment import align

    loaded = context.loaded
    inputs = loaded.samples("train", config.analysis_samples).inputs
    return align(loaded.model, loaded.model.state_dict(), other, inputs, seed=config.seed)


def alignment_results(alignment: Alignment) -> AlignmentResults:
    """What is recorded of it."""
    return AlignmentResults(
        **{
            name: getattr(alignment, name)
            for name in AlignmentResults.model_fields
            if name != "not_permuted"
        },
        not_permuted=dict(alignment.not_permuted),
    )


class Repairs:
    """REPAIR at every point of a path, as something to be in force around its passes.

    Args:
        problem: Entered.
        own: State_dict of the run.
        other: Of the other end, its units in the run's order.
    """

    def __init__(
        self, problem: Objective, own: Mapping[str, Tensor], other: Mapping[str, Tensor]
    ) -> None:
        from lgo_cli.landscape.repair import layer_statistics

        self.problem = problem
        self.inputs = problem.samples.inputs
        self.own = layer_statistics(problem.model, own, self.inputs)
        self.other = layer_statistics(problem.model, other, self.inputs)
        self.layers: tuple[str, ...] = ()
        self.batch_norms: tuple[str, ...] = ()

    @contextmanager
    def at(self, alpha: float) -> Iterator[None]:
        """Rescale the units of the network where it stands; buffers are put back afterwards."""
        from lgo_cli.landscape.repair import repair

        model = self.problem.model
        repaired = repair(model, model.state_dict(), self.own, self.other, alpha, self.inputs)
        self.layers, self.batch_norms = repaired.layers, repaired.batch_norms
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        model.load_state_dict(repaired.state)
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)

    def described(self, measured: Measured) -> Measured:
        """What was measured: with batch norm, statistics that were recomputed at each point."""
        if not self.batch_norms:
            return measured
        return measured.model_copy(
            update={"batchnorm": "recompute", "batchnorm_samples": len(self.inputs)}
        )

    def results(self) -> RepairResults:
        """What was rescaled and what could not be."""
        return RepairResults(
            layers=list(self.layers),
            batch_norms=list(self.batch_norms),
            not_repaired=dict(self.own.not_repaired),
        )
