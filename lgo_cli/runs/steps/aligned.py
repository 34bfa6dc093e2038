"""Matching the other end's hidden units to the run's, and REPAIR, for `lgo interp --align`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgo_cli.results import AlignmentResults, RepairResults

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lgo_cli.config import InterpConfig
    from lgo_cli.landscape.alignment import Alignment
    from lgo_cli.landscape.repair import Repair
    from lgo_cli.runs.steps.base import Context


def aligned(context: Context, config: InterpConfig, other: Mapping[str, Tensor]) -> Alignment:
    """Match the other end's hidden units to the run's."""
    from lgo_cli.landscape.alignment import align

    loaded = context.loaded
    inputs = loaded.samples("train", config.analysis_samples).inputs
    state = loaded.model.state_dict()
    progress = context.progress
    return align(loaded.model, state, other, inputs, seed=config.seed, progress=progress)


def alignment_results(alignment: Alignment) -> AlignmentResults:
    """What is recorded of it."""
    return AlignmentResults.model_validate(alignment, from_attributes=True)


def repair_results(repair: Repair) -> RepairResults:
    """What REPAIR rescales and what it cannot."""
    return RepairResults(
        layers=list(repair.ends),
        batch_norms=list(repair.batch_norms),
        not_repaired=repair.not_repaired,
    )
