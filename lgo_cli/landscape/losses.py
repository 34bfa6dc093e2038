"""The loss of each sample beside the mean of all, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgo_cli.loss import Recording
from lgo_cli.samples import evaluate_model

if TYPE_CHECKING:
    from torch import Tensor

    from lgo_cli.objective import Objective
    from lgo_cli.samples import Evaluation, Samples


def sample_losses(
    objective: Objective, samples: Samples | None = None
) -> tuple[Evaluation, Tensor]:
    """What `Objective.evaluate` measures, to the bit, and the loss of each sample in one pass.

    Args:
        objective: Entered; measured where it stands.
        samples: Other samples than its own.

    Returns:
        The evaluation, and losses [N], float64, on the device.
    """
    samples = objective.samples if samples is None else samples
    recording = Recording(objective.loss_function)
    evaluation = evaluate_model(objective.model, samples, recording, objective.micro_batch_size)
    return evaluation, recording.losses
