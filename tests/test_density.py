from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lgo_cli.curvature.density import quadrature_bound, sampling_bound, spectral_density
from lgo_cli.curvature.lanczos import Lanczos, Rule
from lgo_cli.curvature.operators import DenseOperator
from lgo_cli.seeding import standard_normal


def _matrix(n: int = 60) -> torch.Tensor:
    matrix = standard_normal(n * n, 1, "matrix").view(n, n)
    return (matrix + matrix.T) / (2 * n) ** 0.5


def _distance(
    nodes: np.ndarray, weights: np.ndarray, values: np.ndarray, mass: np.ndarray
) -> float:
    """Wasserstein-1 distance of two measures on the line: the area between their functions."""
    points, jumps = np.r_[values, nodes], np.r_[mass, -weights]
    order = np.argsort(points)
    return float((np.abs(np.cumsum(jumps[order])[:-1]) * np.diff(points[order])).sum())


def test_quadrature_is_exact_for_polynomials() -> None:
    """m nodes integrate zᵀ p(H) z / zᵀz exactly up to degree 2m − 1 (Golub & Meurant 2010)."""
    matrix = _matrix()
    density = spectral_density(DenseOperator(matrix), num_steps=5)
    assert density.num_matvecs == 5
    z = standard_normal(60, 0, "hessian", "density")
    power = z
    for degree in range(10):
        moment = float(z @ power / (z @ z))
        rule = float((density.weights * density.nodes**degree).sum())
        assert rule == pytest.approx(moment, rel=1e-9, abs=1e-11), degree
        power = matrix @ power
    assert float(z @ power / (z @ z)) != pytest.approx(
        float((density.weights * density.nodes**10).sum()), rel=1e-9
    )


@pytest.mark.parametrize("num_steps", [3, 10, 40])
def test_bounds_hold_in_wasserstein_distance(num_steps: int) -> None:
    n = 300
    matrix = _matrix(n)
    values, vectors = np.linalg.eigh(matrix.numpy())
    for seed in range(20):
        start = standard_normal(n, seed, "density")
        process = Lanczos(DenseOperator(matrix), start, seed)
        for _ in range(num_steps):
            process.step()
        rule = process.rule()
        seen = (vectors.T @ start.numpy()) ** 2 / float(start @ start)
        quadrature = _distance(rule.nodes, rule.weights, values, seen)
        assert quadrature <= quadrature_bound(rule)
        # Not a bound without meaning: it falls as 1/m, like the distance itself.
        assert quadrature_bound(rule) <= 3 * np.pi * np.ptp(values) / (4 * num_steps)
        uniform = np.full(n, 1 / n)
        sampling = _distance(values, seen, values, uniform)
        assert sampling <= sampling_bound(n, float(np.ptp(values)))


def test_sampling_bound_is_the_formulas() -> None:
    expected = math.sqrt(math.log(2 * 1000 / 0.01) / 1002)
    assert sampling_bound(1000, 3.0) == pytest.approx(3 * expected)
    assert sampling_bound(1, 3.0) == 3.0  # no distance is larger than the extent


def test_quadrature_bound_by_hand() -> None:
    rule = Rule(np.array([0.0, 1.0, 3.0]), np.array([0.2, 0.5, 0.3]), -1.0, 5.0, is_whole=False)
    assert quadrature_bound(rule) == pytest.approx(1 * 0.5 + 2 * 0.5 + 1 * 0.2 + 2 * 0.3)
    assert quadrature_bound(rule._replace(is_whole=True)) == 2  # the residual of a node


def test_rule_comes_from_a_run_that_is_there() -> None:
    matrix = _matrix()
    operator = DenseOperator(matrix)
    process = Lanczos(operator, standard_normal(60, 0, "start"))
    for _ in range(25):
        process.step()
    density = spectral_density(operator, process=process)
    assert density.num_matvecs == 15
    assert len(density.nodes) == 40
    assert density.weights.sum() == pytest.approx(1, rel=1e-12)


def test_a_run_that_restarted_early_is_not_used() -> None:
    operator = DenseOperator(_matrix())
    process = Lanczos(operator, standard_normal(60, 0, "start"))
    for _ in range(20):
        process.step()
    process.restart(process.ritz(), np.arange(15, 20))
    for _ in range(20):
        process.step()
    density = spectral_density(operator, process=process)
    assert density.num_matvecs == 40
    again = spectral_density(operator)
    np.testing.assert_array_equal(density.nodes, again.nodes)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_long_run_that_restarted_late_gives_its_first_rule(restarts: bool) -> None:
    operator = DenseOperator(_matrix())
    process = Lanczos(operator, standard_normal(60, 0, "start"))
    for _ in range(45):
        process.step()
    before = process.rule()
    if restarts:
        process.restart(process.ritz(), np.arange(30, 45))
    else:
        process.begin_anew()
    process.step()
    density = spectral_density(operator, process=process)
    assert density.num_matvecs == 0
    np.testing.assert_array_equal(density.nodes, before.nodes)


def test_a_run_that_broke_down_has_a_final_rule() -> None:
    """It was taken for one that had restarted, and made again."""
    values = torch.tensor([2.0] * 36 + [5.0] * 24, dtype=torch.float64)
    operator, start = DenseOperator(torch.diag(values)), standard_normal(60, 0, "start")
    process = Lanczos(operator, start)
    for _ in range(45):
        process.step()
    density = spectral_density(operator, process=process)
    assert density.num_matvecs == 0
    np.testing.assert_allclose(density.nodes, [2, 5], rtol=1e-12)
    seen = start.numpy() ** 2 / float(start @ start)
    distance = _distance(density.nodes, density.weights, values.numpy(), seen)
    # Rounding of the weights beside that of the nodes; both are a few hundred ulps.
    assert distance <= density.quadrature_bound + 1e-13
    assert density.quadrature_bound < 1e-13
    assert density.wasserstein_bound == density.quadrature_bound + density.sampling_bound


@pytest.mark.parametrize("restarts", [False, True])
def test_all_eigenvalues_are_the_density(restarts: bool) -> None:
    operator = DenseOperator(_matrix(20))
    process = Lanczos(operator, standard_normal(20, 0, "start"))
    for step in range(25 if restarts else 20):
        if step == 10 and restarts:
            process.restart(process.ritz(), np.arange(5, 10))
        process.step()
    density = spectral_density(operator, process=process)
    assert density.num_matvecs == 0
    values = np.linalg.eigvalsh(_matrix(20).numpy())
    np.testing.assert_allclose(density.nodes, values, atol=1e-13)
    np.testing.assert_array_equal(density.weights, 1 / 20)
    assert density.mean == pytest.approx(float(_matrix(20).trace()) / 20)
    assert density.sampling_bound == 0
    assert 0 < density.wasserstein_bound < 1e-13


def test_no_distance_is_larger_than_the_extent() -> None:
    density = spectral_density(DenseOperator(_matrix(20)), num_steps=2)
    assert density.quadrature_bound + density.sampling_bound > density.extent
    assert density.wasserstein_bound == density.extent


def test_rules_that_end_early() -> None:
    matrix = torch.diag(torch.tensor([2.0] * 6 + [5.0] * 4, dtype=torch.float64))
    density = spectral_density(DenseOperator(matrix), num_steps=8)
    np.testing.assert_allclose(density.nodes, [2, 5], rtol=1e-9)
    assert density.num_matvecs == 2
    assert density.weights.sum() == pytest.approx(1)


def test_smoothed_density_integrates_to_one() -> None:
    density = spectral_density(DenseOperator(_matrix()), num_steps=20)
    grid = np.linspace(-4, 4, 4001)
    # The trapezoid rule on Gaussians ten grid steps wide is exact to rounding.
    assert np.trapezoid(density.smoothed(grid), grid) == pytest.approx(1, rel=1e-6)
    assert np.trapezoid(density.smoothed(grid, 0.2), grid) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -3e-8])
def test_density_of_a_constant_spectrum(value: float) -> None:
    operator = DenseOperator(value * torch.eye(30, dtype=torch.float64))
    density = spectral_density(operator)
    width = abs(value) or 1.0
    grid = np.linspace(value - width, value + width, 2001)
    assert np.trapezoid(density.smoothed(grid), grid) == pytest.approx(1, rel=1e-9)
