"""A model of one's own for lgo: any callable that returns an nn.Module.

    lgo train --model examples/custom_model.py:build --model-arg width=32 --dataset digits

`width` comes from --model-arg. `input_shape` and `num_classes` are filled in from the data set,
because the signature names them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class SmallConvNet(nn.Module):
    """Two convolutions and a linear layer, with functional activations."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(x.mean(dim=(2, 3)))


def build(input_shape: tuple[int, ...], num_classes: int, width: int = 16) -> nn.Module:
    return SmallConvNet(input_shape[0], width, num_classes)
