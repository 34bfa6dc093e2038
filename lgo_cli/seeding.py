"""One seed, many independent random streams."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable


def derive_seed(seed: int, *labels: str | int) -> int:
    """Derive the seed of one consumer from the user's seed and the consumer's labels.

    The first eight bytes of SHA-256 over the seed and the labels: streams of different labels are
    independent, and probe 7 is the same whether 8 or 80 are drawn.

    Args:
        seed: The user's `--seed`.
        labels: Who draws, from the general to the particular: `("contour", "direction", 0)`.

    Returns:
        An integer in [0, 2**63).
    """
    text = "\x1f".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: str | int) -> torch.Generator:
    """CPU generator of the stream that `labels` name; draw on the CPU in float64, then cast."""
    return torch.Generator().manual_seed(derive_seed(seed, *labels))


def seed_default(seed: int, devices: Iterable[torch.device] = ()) -> None:
    """Seed PyTorch's own generators, of the CPU and of some GPUs, for code that takes no other.

    `torch.manual_seed` seeds those of all GPUs, also where the caller puts back a few or none.
    """
    torch.default_generator.manual_seed(seed)
    for device in devices:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def standard_normal(size: int, seed: int, *labels: str | int) -> torch.Tensor:
    """Standard Gaussian vector [size], float64, on the CPU, of the stream that `labels` name."""
    draw = generator(seed, *labels)
    return torch.randn(size, generator=draw, dtype=torch.float64, device="cpu")


def rademacher(size: int, seed: int, *labels: str | int) -> torch.Tensor:
    """Vector [size] of independent signs ±1, float64, on the CPU, of the stream of `labels`."""
    bits = torch.randint(0, 2, (size,), generator=generator(seed, *labels), device="cpu")
    return bits.double().mul_(2).sub_(1)
