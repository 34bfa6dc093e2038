"""What no path and no plane moves: a run's buffers and frozen parameters.

At the weights of another checkpoint they are still the run's own, and the loss there is not that of
the other checkpoint, which has buffers of its own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lgo_cli.checkpoint import snapshot
from lgo_cli.landscape.batchnorm import is_frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lgo_cli.landscape.batchnorm import BatchNorm
    from lgo_cli.objective import Objective


def unmoved(
    objective: Objective, batchnorm: BatchNorm | None, state: Mapping[str, Tensor]
) -> dict[str, bool]:
    """What of the run stands at every point: whether a checkpoint has another.

    Counters of batches, which no forward pass in eval mode reads, are left out.

    Args:
        objective: Entered, of the run.
        batchnorm: The policy at every point; without one, its statistics are buffers like others.
        state: A checkpoint's tensors.
    """
    model = objective.model
    own = model.state_dict()
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    buffers = {name for name, _ in model.named_buffers() if name in state}
    counters = {name for name in buffers if name.endswith("num_batches_tracked")}
    statistics = set(batchnorm.buffers) if batchnorm else set()
    kinds = {
        "batch-norm statistics": statistics if is_frozen(batchnorm) else set(),
        "buffers": buffers - counters - statistics,
        "frozen parameters": fixed,
    }
    return {
        kind: not all(torch.equal(own[n], state[n].to(own[n])) for n in names)
        for kind, names in kinds.items()
        if names
    }


def loss_of(objective: Objective, state: Mapping[str, Tensor]) -> float:
    """L of a checkpoint on the probe set, its own buffers and frozen parameters included.

    It may be NaN or infinite. The model is put back where it stood.
    """
    model = objective.model
    here = snapshot(model)
    try:
        model.load_state_dict(state)
        return objective.evaluate().loss
    finally:
        model.load_state_dict(here)


def unmoved_warnings(
    kinds: Mapping[str, bool], where: str, whose: str, own_loss: float, loss: float
) -> list[str]:
    """What to say of a checkpoint whose loss as itself is not the one that is measured at it.

    Args:
        kinds: As `unmoved` has them.
        where: All along or over what the run's own stand.
        whose: The checkpoint's, as a possessive.
        own_loss: As `loss_of` has it.
        loss: Measured at the checkpoint's weights.
    """
    differing = [kind for kind, differs in kinds.items() if differs]
    if not differing or math.isclose(own_loss, loss, rel_tol=1e-5):
        return []
    digits = 4 if f"{own_loss:.4g}" != f"{loss:.4g}" else 6  # which show any change that is said
    return [
        f"{' and '.join(differing)} are the run's own all {where}: with its own, {whose} loss is "
        f"{own_loss:.{digits}g}, not {loss:.{digits}g}"
    ]
