"""A loss of one's own for lgo: any function of outputs and labels that returns each sample's loss.

    lgo train --loss examples/focal_loss.py:focal --loss-arg gamma=1.5
    lgo hessian --loss examples/focal_loss.py:focal --loss-arg gamma=1.5

`gamma` comes from --loss-arg. lgo takes the mean over the samples, and all derivatives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def focal(outputs: torch.Tensor, labels: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """Cross entropy times (1 - p)^gamma, of logits [n, classes], labels [n] (Lin et al. 2017)."""
    log_p = F.log_softmax(outputs, dim=1).gather(1, labels[:, None])[:, 0]
    return -((1 - log_p.exp()) ** gamma) * log_p
