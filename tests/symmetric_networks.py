"""Networks with hidden units that may change places, and what is to be found in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from small_networks import NETWORKS as SMALL
from torch import Tensor, nn

from lgo_cli.checkpoint import snapshot
from lgo_cli.data.loading import load_dataset
from lgo_cli.models.mlp import mlp
from lgo_cli.models.resnet import ResNet
from lgo_cli.samples import Samples

State = dict[str, Tensor]


class FunctionalResNet(nn.Module):
    """As a user writes it: functional activations, in place, shortcuts by a 1×1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 10, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(10)
        self.down = nn.Conv2d(6, 10, 1, stride=2, bias=False)
        self.bn3 = nn.BatchNorm2d(10)
        self.weight = nn.Parameter(torch.randn(4, 40))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.bn3(self.down(x))
        return F.linear(torch.flatten(F.max_pool2d(F.relu_(out), 2), 1), self.weight)


class LayerNormResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 7)
        self.norm = nn.LayerNorm(7)
        self.up = nn.Linear(7, 9)
        self.down = nn.Linear(9, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


class QuadraticResidual(nn.Module):
    """A residual stream into itself: one group on both axes of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 8)
        self.block = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + torch.tanh(self.block(x)))


class FlattenedResidual(nn.Module):
    """The same of flattened channels: units of four entries each, on both axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 7)
        self.block = nn.Linear(20, 20)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(1)
        return self.head(x + torch.tanh(self.block(x)))


class TiedWeights(nn.Module):
    """A weight and its transpose, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(12, 6)
        self.again = nn.Linear(6, 6)
        self.same = self.again
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.same(torch.tanh(self.again(torch.tanh(self.encode(x))))))
        return self.head(hidden @ self.encode.weight)


class Dense(nn.Module):
    """Concatenation, and a gate on one half of the channels by the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(12, 5)
        self.b = nn.Linear(5, 6)
        self.gated = nn.Linear(11, 8)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        value, gate = self.gated(torch.cat([a, torch.relu(self.b(a))], dim=1)).chunk(2, dim=1)
        return self.head(value * torch.sigmoid(gate))


class ChannelsLast(nn.Module):
    """Flattened with channels last: a channel's weights stand apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(5 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1))


class Reshaped(nn.Module):
    """Channels flattened and unflattened, as rows and as columns, and taken apart in between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.mix = nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.relu(self.conv(x)).flatten(1).unflatten(1, (5, 9))
        columns = self.mix(rows.transpose(1, 2)).flatten(1).unflatten(1, (9, 6))
        first, *others = columns.unbind(1)
        offset = torch.zeros(1, 6).expand(len(x), 6) + columns[:, 3]
        return self.head(torch.relu(first + offset + torch.stack(others, 2).amax(2)))


class CoarseAndFine(nn.Module):
    """Six channels times two added to four times three: no unit is a whole one of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(3, 4, 1)
        self.twice = nn.Conv2d(6, 12, 3, groups=6)
        self.thrice = nn.Conv2d(4, 12, 3, groups=4)
        self.up = nn.ConvTranspose2d(12, 4, 2, groups=2)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.twice(self.a(x)) + self.thrice(self.b(x)))
        return self.head(torch.relu(self.up(hidden))).mean((2, 3))


class OuterProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(12, 3)
        self.b = nn.Linear(12, 4)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.a(x)[:, :, None] * self.b(x)[:, None, :]).flatten(1))


class Recurrent(nn.Module):
    """Two layers in both directions: each direction of each layer has units of its own."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layers = kind(4, 3, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x.view(-1, 3, 4))[0][:, -1])


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    groups: list[int]
    """Sizes, in the order of the parameters: what a lost symmetry would change."""
    shape: tuple[int, ...] = (12,)


def _convolutions(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


IMAGES = (3, 8, 8)
CASES = {
    "mlp": Case(lambda: mlp((12,), 3, (9, 7)), [9, 7]),
    "mlp, batch norm": Case(lambda: mlp((12,), 3, (9, 7), "tanh", batch_norm=True), [9, 7]),
    "lgo's resnet": Case(lambda: ResNet(3, 4, depth=8, width=0.25), [4, 4, 8, 4, 16, 8], IMAGES),
    "lgo's resnet without shortcuts": Case(
        lambda: ResNet(3, 4, depth=8, width=0.25, shortcuts=False), [4, 4, 4, 8, 8, 16, 16], IMAGES
    ),
    "a user's resnet": Case(FunctionalResNet, [10, 6, 8], IMAGES),
    "layer norm, residual": Case(LayerNormResidual, [7, 9]),
    "stream into itself": Case(QuadraticResidual, [8]),
    "flattened stream into itself": Case(FlattenedResidual, [5], IMAGES),
    "tied weights": Case(TiedWeights, [6]),
    "concatenation and a gate": Case(Dense, [5, 6, 4]),
    "channels last": Case(ChannelsLast, [5], IMAGES),
    "convolution, flattened": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(5 * 36, 3)
        ),
        [5],
        IMAGES,
    ),
    "depthwise, two to a channel": Case(
        lambda: _convolutions(nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 3, 1)),
        [6],
        IMAGES,
    ),
    # The inputs of a grouped convolution stay, its outputs move within their groups.
    "grouped convolution": Case(
        lambda: _convolutions(nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 3, 1)),
        [4, 4],
        IMAGES,
    ),
    "group norm": Case(
        lambda: _convolutions(nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 3, 1)), [3, 3], IMAGES
    ),
    "instance norm, prelu": Case(
        lambda: _convolutions(nn.GroupNorm(6, 6), nn.PReLU(6), nn.Conv2d(6, 3, 1)), [6], IMAGES
    ),
    "transposed convolution": Case(
        lambda: _convolutions(nn.ConvTranspose2d(6, 5, 2, 2), nn.ELU(), nn.Conv2d(5, 3, 1)),
        [6, 5],
        IMAGES,
    ),
    "weight norm": Case(
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(12, 6)), nn.ReLU(), nn.Linear(6, 3)
        ),
        [6],
    ),
    "reshaped": Case(Reshaped, [5, 6], (3, 5, 5)),
    "outer product": Case(OuterProduct, [3]),
    "LSTM": Case(lambda: Recurrent(nn.LSTM), [3, 3, 3, 3]),
    "GRU": Case(lambda: Recurrent(nn.GRU), [3, 3, 3, 3]),
    "RNN": Case(lambda: Recurrent(nn.RNN), [3, 3, 3, 3]),
    "one head of attention": Case(SMALL["attention and layer norm"].build, [4, 4]),
    "embedding": Case(SMALL["embedding with padding"].build, [2, 3]),
}


def perturbed(case: Case) -> tuple[nn.Module, Tensor]:
    """A network no two of whose units are alike, with running statistics that are not initial."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = case.build()
        inputs = torch.randn(6, *case.shape)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            model(2 * inputs + 1)
    return model.eval(), inputs


def trained_on_digits(
    hidden: tuple[int, ...], seeds: tuple[int, int]
) -> tuple[nn.Module, Samples, list[State]]:
    data = load_dataset("digits", {}, Path("nowhere"))
    samples = Samples(data.x_train, data.y_train).head(600)
    states = []
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = mlp(data.input_shape, 10, hidden)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(samples.inputs), samples.labels).backward()
            optimizer.step()
        states.append(snapshot(model))
    model.load_state_dict(states[0])
    return model, samples, states
