"""Networks with hidden units that may change places, and what is to be found in each."""

from __future__ import annotations

import random
import runpy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from small_networks import NETWORKS as SMALL
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

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


class Attention(nn.Module):
    """As users write it: channels seen as heads, of keys and values perhaps as fewer."""

    def __init__(self, heads: int = 3, fewer: int | None = None, size: int = 4) -> None:
        super().__init__()
        self.heads, self.fewer, self.size = heads, fewer or heads, size
        self.embed, self.head = nn.Linear(4, 10), nn.Linear(10, 3)
        self.q, self.out = nn.Linear(10, heads * size), nn.Linear(heads * size, 10)
        self.k, self.v = (nn.Linear(10, self.fewer * size) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.view(-1, 3, 4))
        seen = self.attend(*self.project(x)).transpose(1, 2).flatten(2)
        return self.head((x + self.out(seen)).mean(1))

    def project(self, x: Tensor) -> Iterable[Tensor]:
        """Queries, keys and values [N, heads, T, size]."""
        for layer in (self.q, self.k, self.v):
            yield layer(x).view(len(x), 3, -1, self.size).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-2, -1) / self.size**0.5, -1) @ v


class FusedAttention(Attention):
    """One layer for all three, last within each head, or first and without a bias of the keys."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last
        self.q = nn.Linear(10, 36)
        del self.k, self.v

    def project(self, x: Tensor) -> Iterable[Tensor]:
        n = len(x)
        if self.last:
            return self.q(x).view(n, 3, 3, 12).transpose(1, 2).chunk(3, dim=-1)
        bias = self.q.bias.clone()
        bias[12:24].zero_()
        q, k, v = F.linear(x, self.q.weight, bias).reshape(n, 3, 3, 3, 4).permute(2, 0, 3, 1, 4)
        return q, k, v


class GroupedAttention(Attention):
    """Two heads of queries for each of keys and values, in each of the ways to say so."""

    def __init__(self, how: str) -> None:
        super().__init__(6, 3, 2)
        self.how = how

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.how == "enable_gqa":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        if self.how == "expand":
            k, v = (
                t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(len(t), 6, 3, 2) for t in (k, v)
            )
        else:
            k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        return super().attend(q, k, v)


class CyclicGroups(Attention):
    """Heads of keys and values one after the other, and from the beginning again."""

    def __init__(self) -> None:
        super().__init__(6, 3, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(q, k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1))


class RotaryAttention(Attention):
    """Pairs of channels turn with the place: of two halves, neighbours, or as complex numbers."""

    def __init__(self, pairs: str) -> None:
        super().__init__()
        self.pairs = pairs

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        angles = torch.arange(3).to(q)[:, None] * torch.tensor([1.0, 0.1]).to(q)
        return super().attend(self.turned(q, angles), self.turned(k, angles), v)

    def turned(self, x: Tensor, angles: Tensor) -> Tensor:
        cos, sin = angles.cos(), angles.sin()
        if self.pairs == "halves":
            a, b = x.chunk(2, dim=-1)
            return x * cos.repeat(1, 2) + torch.cat((-b, a), dim=-1) * sin.repeat(1, 2)
        if self.pairs == "neighbours":
            a, b = x[..., ::2], x[..., 1::2]
            return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        turn = torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (2, 2))) * turn).flatten(-2)


class BiasedAttention(Attention):
    """What each head adds to its scores, or multiplies them with."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        distance = torch.arange(3)[:, None] - torch.arange(3)
        self.register_buffer("index", distance + 2)
        self.register_buffer("slopes", torch.tensor([0.5, 0.25, 0.125]), persistent=False)
        self.table = nn.Parameter(torch.randn(5, 3))
        self.scale = nn.Parameter(torch.rand(3, 1, 1))
        self.norm = nn.RMSNorm(4)
        self.mix = nn.Conv2d(3, 3, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kind == "scale":
            q, k = F.normalize(q, dim=-1) * self.scale.exp(), F.normalize(k, dim=-1)
        if self.kind == "norm":
            q, k = self.norm(q), self.norm(k)
        scores = torch.einsum("bhid,bhjd->bhij", q, k)
        if self.kind == "table":
            scores = scores + self.table[self.index.flatten()].view(3, 3, 3).permute(2, 0, 1)
        if self.kind == "buckets":
            scores = scores + F.embedding(self.index, self.table).permute(2, 0, 1)
        if self.kind == "slopes":
            scores = scores - self.slopes[:, None, None] * (self.index - 2).abs()
        if self.kind == "mixed":
            scores = self.mix(scores)
        mask = torch.ones(3, 3, dtype=torch.bool, device=q.device).triu(1)
        return torch.softmax(scores.masked_fill(mask, -torch.inf), -1) @ v


class HeadsOnAnAxis(nn.Module):
    """Weights that have heads on an axis and the channels in them on another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(6, 3, 4)) for _ in range(3))
        self.out = nn.Parameter(torch.randn(3, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.view(-1, 3, 4))
        q, k, v = (torch.einsum("bne,ehd->bnhd", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        seen = torch.einsum("bhnm,bmhd->bnhd", weights, v)
        return self.head((x + torch.einsum("bnhd,hde->bne", seen, self.out)).mean(1))


class Torchs(nn.Module):
    """PyTorch's own layers, which view the channels of all samples at once."""

    def __init__(self, layer: Callable[[], nn.Module], *, twice: bool = False) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(4, 8), layer(), nn.Linear(8, 3)
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.view(-1, 3, 4))
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.head((x + self.layer(x, x.tanh(), 2 * x)[0]).mean(1))
        return self.head((self.layer(x, x.tanh()) if self.twice else self.layer(x)).mean(1))


class Characters(nn.Module):
    """The GPT of the examples, of numbers from 0 to 6."""

    def __init__(self) -> None:
        super().__init__()
        example = Path(__file__).parents[1] / "examples" / "language_model.py"
        self.gpt = runpy.run_path(str(example))["gpt"]((12,), 7, width=12, heads=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.gpt((2 * x).long().clamp(-3, 3) + 3)


class RandomViews(nn.Module):
    """Units seen as axes of random lengths, which are permuted, cut, joined, copied and summed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.layers = nn.ModuleList()
        self(torch.zeros(1, 6))

    def layer(self, x: Tensor, size: int) -> Tensor:
        """The next, made if it is not there yet."""
        self.number += 1
        if self.number > len(self.layers):
            self.layers.append(nn.Linear(x.shape[-1], size))
        return self.layers[self.number - 1](x)

    def forward(self, x: Tensor) -> Tensor:
        draw, self.number = random.Random(self.seed), 0
        h = self.layer(x, draw.choice([12, 24, 36]))
        for _ in range(draw.randint(3, 9)):
            h = self.changed(h, x, draw)
            h = h.flatten(1)[:, :150] if h[0].numel() > 150 else h
        return self.layer(h.flatten(1), 3)

    def changed(self, h: Tensor, x: Tensor, draw: random.Random) -> Tensor:
        n, size, dim = len(h), h[0].numel(), draw.randrange(1, h.ndim)
        kind = draw.randrange(10)
        if kind < 2:
            rows = draw.choice([rows for rows in range(1, size + 1) if size % rows == 0])
            rest = size // rows
            inner = draw.choice([inner for inner in range(1, rest + 1) if rest % inner == 0])
            h = h.reshape(n, rows, rest // inner, inner)
        elif kind == 2:
            h = h.permute(0, *draw.sample(range(1, h.ndim), h.ndim - 1))
        elif kind == 3:
            h = torch.tanh(self.layer(h, draw.choice([6, 8, 12])))
        elif kind == 4:
            start = draw.randrange(h.shape[dim])
            h = h.narrow(dim, start, draw.randint(1, h.shape[dim] - start))
        elif kind == 5:
            h = torch.cat([h.flatten(1), self.layer(x, 4), h.flatten(1)[:, :3]], 1)
        elif kind == 6:
            h = h + self.layer(x, size).view(h.shape)
        elif kind == 7:
            h = h.flatten(1)[:, :, None] * self.layer(x, draw.choice([2, 3]))[:, None]
        elif kind == 8:
            h = h.repeat([2 if place == dim else 1 for place in range(h.ndim)])
        elif h.ndim == 4:
            h = torch.softmax(h @ h.transpose(-1, -2), -1) @ h
        elif h.ndim == 3:
            h = h.select(dim, draw.randrange(h.shape[dim]))
        return h


class Shuffled(nn.Module):
    """ShuffleNet's step: channels as rows, and as columns again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)
        self.third = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)
        return self.third(torch.relu(self.second(x))).mean((2, 3))


class PickedPixels(nn.Module):
    """By indices of axes beside each other, and apart, where the picked places go ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        beside = x[:, :, torch.tensor([0, 2]), torch.tensor([1, 3])].mean(-1)
        apart = x[torch.arange(len(x)), :, 2].amax(-1)
        return self.head(beside * apart)


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
    "outer product": Case(OuterProduct, [3, 4]),
    "picked pixels": Case(PickedPixels, [5], IMAGES),
    "channel shuffle": Case(Shuffled, [2, 3, 6], IMAGES),
    "LSTM": Case(lambda: Recurrent(nn.LSTM), [3, 3, 3, 3]),
    "GRU": Case(lambda: Recurrent(nn.GRU), [3, 3, 3, 3]),
    "RNN": Case(lambda: Recurrent(nn.RNN), [3, 3, 3, 3]),
    # The stream, heads, and channels within them, of queries and of values: alike in all heads.
    "attention": Case(Attention, [10, 3, 4, 4]),
    "fused attention": Case(lambda: FusedAttention(last=False), [10, 3, 4]),
    "fused attention, heads first": Case(lambda: FusedAttention(last=True), [10, 3, 4, 4]),
    **{
        f"grouped attention, {how}": Case(lambda how=how: GroupedAttention(how), [10, 3, 2, 2, 2])  # type: ignore[misc]
        for how in ("enable_gqa", "expand", "repeat_interleave")
    },
    "grouped attention, repeat": Case(CyclicGroups, [10, 2, 3, 2, 2]),
    "attention to one head": Case(lambda: Attention(3, 1), [10, 3, 4, 4]),
    # Both halves of the channels in one order; pairs of neighbours keep theirs.
    "rotary, halves": Case(lambda: RotaryAttention("halves"), [10, 3, 4]),
    "rotary, neighbours": Case(lambda: RotaryAttention("neighbours"), [10, 3, 4]),
    "rotary, complex": Case(lambda: RotaryAttention("complex"), [10, 3, 4]),
    "scaled heads": Case(lambda: BiasedAttention("scale"), [3, 10, 4, 4]),
    "normed heads": Case(lambda: BiasedAttention("norm"), [10, 3, 4, 4]),
    "biased heads": Case(lambda: BiasedAttention("table"), [3, 10, 4, 4]),
    "biased heads, embedding": Case(lambda: BiasedAttention("buckets"), [3, 10, 4, 4]),
    # Slopes that nobody permutes hold the heads.
    "sloped heads": Case(lambda: BiasedAttention("slopes"), [10, 4, 4]),
    "mixed heads": Case(lambda: BiasedAttention("mixed"), [10, 3, 4, 3, 4]),
    "heads on an axis": Case(HeadsOnAnAxis, [6, 3, 4, 4]),
    "torch's attention": Case(
        lambda: Torchs(lambda: nn.MultiheadAttention(8, 2, batch_first=True)), [8, 2, 4, 4]
    ),
    "torch's attention, own bias": Case(
        lambda: Torchs(
            lambda: nn.MultiheadAttention(
                8, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True, kdim=8, vdim=8
            )
        ),
        [8, 2, 4, 4],
    ),
    "torch's encoder": Case(
        lambda: Torchs(lambda: nn.TransformerEncoderLayer(8, 2, 6, batch_first=True)), [8, 2, 4, 6]
    ),
    "torch's transformer": Case(
        lambda: Torchs(lambda: nn.Transformer(8, 2, 1, 1, 6, batch_first=True), twice=True),
        [8, 2, 4, 6, 2, 4, 2, 4, 6],
    ),
    "ViT": Case(
        lambda: VisionTransformer(8, 4, 2, 2, 8, 16, num_classes=3), [8, 2, 4, 16, 2, 4, 16], IMAGES
    ),
    "Swin": Case(
        lambda: SwinTransformer([2, 2], 8, [2, 2], [2, 4], [2, 2], num_classes=3),
        [8, 2, 4, 32, 2, 4, 32, 16, 4, 4, 64, 4, 4, 64],
        (3, 16, 16),
    ),
    "GPT": Case(Characters, [12, 3, 4, 48, 3, 4, 48]),
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
