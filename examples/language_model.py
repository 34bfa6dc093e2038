"""A small language model of characters, and any text as its data.

    lgo train --model examples/language_model.py:gpt --dataset examples/language_model.py:text \
        --dataset-arg path=theory.md --optimizer adamw --lr 0.003 --batch-size 32 --epochs 5

Each sample is `length` characters [T], and its labels are those that follow [T]: the model puts
out logits for each place [T, C], and the loss is the mean over all of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


def text(path: str, length: int = 32, most: int = 60_000) -> dict[str, torch.Tensor | int]:
    """Pieces of a text: nine of ten, from its beginning, to train on, and the last to test."""
    characters = Path(path).read_text(encoding="utf-8")[:most]
    known = sorted(set(characters))
    number = {character: index for index, character in enumerate(known)}
    tokens = torch.tensor([number[character] for character in characters])
    pieces = (len(tokens) - 1) // length
    x = tokens[: pieces * length].view(pieces, length)
    y = tokens[1 : pieces * length + 1].view(pieces, length)
    cut = pieces * 9 // 10
    return {
        "x_train": x[:cut], "y_train": y[:cut], "x_test": x[cut:], "y_test": y[cut:],
        "num_classes": len(known),
    }  # fmt: skip


class Block(nn.Module):
    """Causal attention and a dense layer, each beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Its last layer is its embedding."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.05)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.blocks(self.embed(tokens) + self.places))
        return x @ self.embed.weight.T


def gpt(
    input_shape: tuple[int, ...],
    num_classes: int,
    width: int = 32,
    heads: int = 4,
    depth: int = 2,
) -> nn.Module:
    return GPT(num_classes, input_shape[0], width, heads, depth)
