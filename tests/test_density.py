from __future__ import annotations

import numpy as np
import pytest
import torch

from lgo_cli.curvature.density import spectral_density
from lgo_cli.curvature.operators import DenseOperator
from lgo_cli.seeding import rademacher, standard_normal


def _matrix(n: int = 60) -> torch.Tensor:
    matrix = standard_normal(n * n, 1, "matrix").view(n, n)
    return (matrix + matrix.T) / (2 * n) ** 0.5


def test_quadrature_is_exact_for_polynomials() -> None:
    """m nodes integrate zᵀ p(H) z / P exactly up to degree 2m − 1 (Golub & Meurant 2010)."""
    matrix = _matrix()
    density = spectral_density(DenseOperator(matrix), num_probes=2, num_steps=5)
    assert density.num_matvecs == 10
    for index in range(2):
        z = rademacher(60, 0, "hessian", "density", index)
        power = z
        for degree in range(10):
            moment = float(z @ power) / 60
            rule = float((density.weights[index] * density.nodes[index] ** degree).sum())
            assert rule == pytest.approx(moment, rel=1e-9, abs=1e-11), degree
            power = matrix @ power
        assert float(z @ power) / 60 != pytest.approx(
            float((density.weights[index] * density.nodes[index] ** 10).sum()), rel=1e-9
        )


def test_mean_is_the_traces_share() -> None:
    matrix = _matrix() + torch.eye(60, dtype=torch.float64)
    density = spectral_density(DenseOperator(matrix), num_probes=30, num_steps=10)
    np.testing.assert_allclose(density.weights.sum(axis=1), 1, rtol=1e-12)
    error = abs(density.mean - float(matrix.trace()) / 60)
    assert error < 4 * density.mean_standard_error


def test_distribution_function_is_the_spectrums() -> None:
    matrix = _matrix(200)
    truth = torch.linalg.eigvalsh(matrix).numpy()
    density = spectral_density(DenseOperator(matrix), num_probes=16, num_steps=40)
    assert truth[0] - 1e-9 <= density.nodes.min()
    assert density.nodes.max() <= truth[-1] + 1e-9
    for x in np.linspace(-1.5, 1.5, 13):
        found = float(density.weights[density.nodes <= x].sum()) / 16
        # A node's weight (1/40) sits on one side, and 16 probes of 200 entries add 1/√3200.
        assert abs(found - float((truth <= x).mean())) < 1 / 40 + 4 / 3200**0.5


def test_rules_that_end_early_are_padded_with_nothing() -> None:
    matrix = torch.diag(torch.tensor([2.0] * 6 + [5.0] * 4, dtype=torch.float64))
    density = spectral_density(DenseOperator(matrix), num_probes=3, num_steps=8)
    np.testing.assert_allclose(density.weights.sum(axis=1), 1, rtol=1e-12)
    for row, weights in zip(density.nodes, density.weights, strict=True):
        np.testing.assert_allclose(row[weights > 1e-12], [2, 5], rtol=1e-9)
    assert density.num_matvecs < 24


def test_smoothed_density_integrates_to_one() -> None:
    density = spectral_density(DenseOperator(_matrix()), num_probes=4, num_steps=20)
    grid = np.linspace(-4, 4, 4001)
    # The trapezoid rule on Gaussians ten grid steps wide is exact to rounding.
    assert np.trapezoid(density.smoothed(grid), grid) == pytest.approx(1, rel=1e-6)
    assert np.trapezoid(density.smoothed(grid, 0.2), grid) == pytest.approx(1, rel=1e-6)
