"""What a random sample of filled cells says about all of them."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as Array

from lgo_cli.results import FillingCheck

CONFIDENCE = 0.95
"""Of all checks of a surface together. One that failed is refined and checked again, and each try
may pass by luck: what is said after the k-th has a chance of 5 %/2^k to be wrong."""


def compare(
    filled: Array, stated: Array, measured: Array, floor: float, tolerance: float, number: int
) -> FillingCheck:
    """Compare filled cells with what was measured there.

    Args:
        filled: Losses of a random sample of the filled cells [n].
        stated: Their error estimates [n]; positive, or NaN where the loss is.
        measured: What was measured there then [n].
        floor: Errors are relative to max(|measured|, floor).
        tolerance: Of the relative error.
        number: Which check of the surface this is, from 1.
    """
    both = np.isfinite(filled) & np.isfinite(measured)
    error = np.where(np.isfinite(filled) == np.isfinite(measured), 0.0, np.inf)
    error[both] = np.abs(filled[both] - measured[both])
    relative, ratio = error.copy(), error.copy()
    relative[both] /= np.maximum(np.abs(measured[both]), floor)
    ratio[both] /= stated[both]
    num_within = int(np.sum(relative <= tolerance))
    return FillingCheck(
        num_cells=len(filled),
        worst_error=float(relative.max()),
        worst_ratio=float(ratio.max()),
        share_within=num_within / len(filled),
        least_share=_least_share(num_within, len(filled), (1 - CONFIDENCE) / 2**number),
    )


def _least_share(num_within: int, num_cells: int, chance: float) -> float:
    """The share of which `num_within` or more of `num_cells` have that chance."""
    low, high = 0.0, num_within / num_cells
    for _ in range(60):
        p = (low + high) / 2
        tail = sum(
            math.comb(num_cells, k) * p**k * (1 - p) ** (num_cells - k)
            for k in range(num_within, num_cells + 1)
        )
        low, high = (p, high) if tail < chance else (low, p)
    return low
