"""Matrices whose eigenvalues are known."""

from __future__ import annotations

import torch
from torch import Tensor

from lgo_cli.seeding import standard_normal


def with_spectrum(values: Tensor, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A symmetric matrix [P, P] of these eigenvalues [P] in a random basis."""
    n = len(values)
    q, _ = torch.linalg.qr(standard_normal(n * n, seed, "basis").view(n, n))
    matrix = q @ torch.diag(values.double()) @ q.T
    return ((matrix + matrix.T) / 2).to(dtype)
