"""How high a path rises above the straight line between its end losses, and how sure that is.

Shapes: n coordinates, N samples (theory.md, section 25).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy import ndarray as Array

from lgo_cli.landscape.heights import heights_of, highest
from lgo_cli.loss import RoundingScale
from lgo_cli.results import Barrier
from lgo_cli.seeding import standard_normal

CONFIDENCE = 0.95
"""Of the interval, for all coordinates at once."""

NUM_DRAWS = 10_000
"""Of the band's largest deviation: its 95 % quantile is then known to about 1 %."""

BLOCK = 1024
"""Coordinates whose deviations are held at a time, for all draws."""

PLAIN = RoundingScale()
"""Of losses of class labels."""

ROUNDING = 4.0
"""Of a mean loss L, in units of eps·(1 + L). Measured on trained and untrained networks it is below
1.5, save where the loss is in the thousands. The 1 is there since a small loss is the logarithm of
a sum close to 1, or a difference of numbers of order 1: its rounding is absolute. Real-valued
targets have a unit, and t√(2L) + 2L takes the place of 1 + L (theory.md, section 25)."""


def height_errors(alpha: Array, losses: Array) -> Array:
    """Paired standard error of the height at each coordinate.

    The losses of one sample at three coordinates are far from independent, so the variance is that
    of d_n(α) = ℓ_n(α) − (1−α)ℓ_n(0) − αℓ_n(1), never a sum of three variances.

    Args:
        alpha: Coordinates [n] with 0 and 1 among them.
        losses: Of each sample [n, N].

    Returns:
        Standard errors [n], of the samples as independent draws: 0 at the ends, NaN where a loss is
        not finite or there is one sample only.
    """
    _, errors = _differences(alpha, losses)
    return errors


def _differences(alpha: Array, losses: Array) -> tuple[Array, Array]:
    """Centred d_n(α) [n, N] and the standard errors [n] of their means."""
    start, end = losses[alpha == 0.0], losses[alpha == 1.0]
    num_samples = losses.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):  # infinities have no difference: NaN
        # In place: with many coordinates each copy is large.
        d = (1 - alpha)[:, None] * start
        d += alpha[:, None] * end
        centred = np.subtract(losses, d, out=d)
        centred[(alpha == 0.0) | (alpha == 1.0)] = 0.0
        centred -= centred.mean(axis=1, keepdims=True)
        squares = np.einsum("ij,ij->i", centred, centred)
    if num_samples < 2:
        return centred, np.full(len(alpha), math.nan)
    return centred, np.sqrt(squares / (num_samples - 1) / num_samples)


def rounding_allowance(
    loss: Array,
    dtype: torch.dtype,
    fast_path_difference: float,
    scale: RoundingScale = PLAIN,
) -> float:
    """By how much rounding may move the heights between the ends.

    A height is a loss less a mean of two others: twice the rounding of the largest loss, and
    once what the points' fast path is off the model's own pass, in which the ends are measured.

    Args:
        loss: Mean losses [n] on [0, 1].
        dtype: Of the arithmetic that gave the losses.
        fast_path_difference: Measured, relative to the loss; 0 for points of the model's own pass.
        scale: Of the loss (`LossFunction.rounding_scale`).
    """
    largest = float(np.max(np.abs(loss)))
    rounded = 2 * ROUNDING * torch.finfo(dtype).eps * scale.of(largest)
    return rounded + fast_path_difference * largest


def estimate_barrier(
    alpha: Array,
    loss: Array,
    losses: Array,
    *,
    seed: int,
    label: str = "train",
    dtype: torch.dtype = torch.float64,
    fast_path_difference: float = 0.0,
    scale: RoundingScale = PLAIN,
) -> Barrier | None:
    """The barrier with a standard error and an interval, from the losses of each sample.

    A band h(α) ± c·s(α) holds all true heights at once with 95 % confidence, so that the interval
    may be read off wherever the maximum is: from max(h − c·s − r) to max(h + c·s + r), r being the
    allowance for rounding. c is the quantile of the largest |deviation|/s under a Gaussian
    multiplier bootstrap (Chernozhukov, Chetverikov & Kato 2013), with N − 1 degrees of freedom
    since s is an estimate. Given the samples, the deviations Σ ξ_n (d_n(α) − h(α)) / √(N(N − 1))
    are exactly Gaussian with the d_n's sample covariance, and are drawn from it directly, in
    min(n, N) dimensions.

    Args:
        alpha: Coordinates [n], ascending, with 0 and 1 among them.
        loss: Mean losses [n].
        losses: Of each sample [n, N].
        seed: Of the draws.
        label: Names the stream of the draws.
        dtype: Of the arithmetic that gave the losses.
        fast_path_difference: As `rounding_allowance` has it.
        scale: Likewise.

    Returns:
        The barrier; where it is not finite, so are error and interval (NaN). `None` if no
        coordinate lies between 0 and 1: nothing was measured that could be high.
    """
    within = (alpha >= 0) & (alpha <= 1)
    a, loss = alpha[within], loss[within]
    if len(a) == 2:
        return None
    heights = heights_of(a, loss)
    top, value = highest(a, loss)
    if not np.isfinite(heights).all():
        return Barrier(
            value=value, standard_error=math.nan, interval=(math.nan, math.nan), alpha=float(a[top])
        )
    centred, errors = _differences(a, losses[within])
    half_width = _quantile(centred, errors, seed, label) * errors
    half_width[1:-1] += rounding_allowance(loss, dtype, fast_path_difference, scale)
    # The ends have height 0 and no error, so that neither bound is negative.
    lower, upper = (float(np.max(heights + side * half_width)) for side in (-1, 1))
    return Barrier(
        value=value,
        standard_error=float(errors[top]),
        interval=(lower, upper),
        alpha=float(a[top]),
    )


def _quantile(centred: Array, errors: Array, seed: int, label: str) -> float:
    """c: 95 % of the draws have no |deviation| above c standard errors; NaN for one sample."""
    if np.isnan(errors).any():
        return math.nan
    varies = errors > 0
    if not varies.any():
        return 0.0
    d = centred[varies]
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    factor = _factor(d)
    rank = factor.shape[1]
    draws = standard_normal(NUM_DRAWS * rank, seed, "interp", "barrier", label).numpy()
    draws = draws.reshape(NUM_DRAWS, rank)
    largest = np.zeros(NUM_DRAWS)
    for start in range(0, len(d), BLOCK):
        deviations = draws @ factor[start : start + BLOCK].T
        np.maximum(largest, np.abs(deviations, out=deviations).max(axis=1), out=largest)
    return _studentised_quantile(torch.from_numpy(largest), centred.shape[1] - 1)


def _factor(d: Array) -> Array:
    """F [n, min(n, N)] with FFᵀ = ddᵀ [n, n], so that Fz has these covariances for normal z.

    With more coordinates than samples d itself is one, and the multipliers of the bootstrap are
    drawn: a matrix [n, n] would be large, and its rank is below N.
    """
    n, num_samples = d.shape
    if n > num_samples:
        return d
    eigenvalues, vectors = np.linalg.eigh(d @ d.T)
    # Neighbours are nearly the same variable: what rounding makes of the small ones is cut off.
    # The symmetric root does not depend on the eigenvectors' signs.
    root: Array = (vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))) @ vectors.T
    return root


def _studentised_quantile(largest: torch.Tensor, freedom: float) -> float:
    """The 95 % quantile of M/S from draws of M [n], with S² ~ χ²_ν/ν independent of it.

    P(M/S ≤ c) is the mean over the draws of P(χ²_ν ≥ ν(M/c)²), which is known: no S is drawn. NaN
    if a draw is not finite: no c could be doubled to.
    """
    if not largest.isfinite().all():
        return math.nan
    half = torch.tensor(freedom / 2, dtype=torch.float64)

    def share_within(c: float) -> float:
        return float(torch.special.gammaincc(half, half * (largest / c) ** 2).mean())

    low, high = 0.0, 1.0
    while share_within(high) < CONFIDENCE:
        low, high = high, 2 * high
    for _ in range(20):  # to 1e-6, far below what the draws leave open
        middle = (low + high) / 2
        low, high = (low, middle) if share_within(middle) >= CONFIDENCE else (middle, high)
    return high
