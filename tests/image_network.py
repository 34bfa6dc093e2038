"""One tiny convolutional network and its samples, for tests of directions and planes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lgo_cli.samples import Samples


def images(n: int = 40) -> Samples:
    """Images [n, 2, 6, 6] of three classes."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 2, 6, 6, generator=draw)
    return Samples(inputs, torch.randint(0, 3, (n,), generator=draw))


def network() -> nn.Sequential:
    """A convolution, batch norm and a head."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )


def unit(dim: int, seed: int) -> Tensor:
    """A direction [P] of norm one, float64."""
    vector = torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector / vector.norm()
