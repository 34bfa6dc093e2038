"""Models that use einops are traced, functions and layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lgo_cli.curvature.exact_trace import ExactTrace, exact_trace
from lgo_cli.curvature.folding import fold
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples
from lgo_cli.vectors import Block

einops = pytest.importorskip("einops")
layers = pytest.importorskip("einops.layers.torch")
rearrange = einops.rearrange


class Rearranged(nn.Module):
    """A function by its own name, one of the package, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.pool, self.head = layers.Reduce("n c t -> n c", "mean"), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(torch.tanh(self.norm(self.conv(x))), "n c h w -> n (h w) c")
        return self.head(self.pool(einops.repeat(x, "n t c -> n c t")))


def test_einops_are_traced() -> None:
    """They refuse what is no tensor, a proxy too."""
    with torch.random.fork_rng():
        model = Rearranged()
        samples = Samples(torch.randn(12, 2, 8, 8), torch.arange(12) % 3)
    with Objective(model, samples) as objective:
        assert fold(objective).note.startswith("1 batch norm folded into 1 convolution")
        found = exact_trace(objective, "ggn", Block.whole(objective.layout))
        assert isinstance(found, ExactTrace)
