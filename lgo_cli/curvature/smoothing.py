"""A spectral density as a curve; without torch, so that figures can be drawn from files."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as Array


def smooth(nodes: Array, weights: Array, grid: Array, width: float) -> Array:
    """The quadrature convolved with a Gaussian; integrates to one.

    Args:
        nodes: [m].
        weights: [m], sum to one.
        grid: Where to evaluate [g].
        width: Standard deviation.

    Returns:
        Density on the grid [g].
    """
    distances = (grid[:, None] - nodes) / width
    kernels = np.exp(-0.5 * distances**2) / (width * math.sqrt(2 * math.pi))
    density: Array = kernels @ weights
    return density


def default_width(nodes: Array) -> float:
    """A hundredth of the nodes' range, or of their magnitude where all are equal."""
    magnitude = float(np.abs(nodes).max())
    extent = float(np.ptp(nodes))
    # Nodes that differ only by rounding are one node.
    return (extent if extent > 1e-6 * magnitude else magnitude or 1.0) / 100
