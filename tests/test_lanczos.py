from __future__ import annotations

import numpy as np
import pytest
import torch
from matrices import with_spectrum

from lgo_cli.curvature.eigenpairs import extreme_eigenpairs
from lgo_cli.curvature.lanczos import Lanczos
from lgo_cli.curvature.operators import DenseOperator
from lgo_cli.curvature.search import Wanted
from lgo_cli.errors import NumericsError, UsageError
from lgo_cli.seeding import standard_normal

SPECTRA = {
    "isolated": torch.cat([torch.tensor([50.0, 30.0, 10.0, -4.0]), torch.linspace(-1, 1, 96)]),
    "clustered": torch.cat([torch.tensor([10.0, 9.999, 9.99, -5.0]), torch.linspace(0, 1, 96)]),
    "indefinite": torch.cat([torch.linspace(1, 20, 50), -torch.linspace(1, 40, 50)]),
    "rank-deficient": torch.cat([torch.tensor([7.0, 3.0, 1.0, -2.0]), torch.zeros(96)]),
    "graded": torch.logspace(-12, 0, 100),
    "negative": -torch.linspace(1, 2, 100),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", list(SPECTRA))
def test_both_ends_within_their_bounds(name: str, dtype: torch.dtype, seed: int) -> None:
    matrix = with_spectrum(SPECTRA[name], seed, dtype)
    truth = torch.linalg.eigvalsh(matrix.double())
    pairs = extreme_eigenpairs(
        DenseOperator(matrix), Wanted(top_k=3, bottom_k=2, rtol=1e-3, seed=seed)
    )
    assert pairs.converged
    assert pairs.num_matvecs <= 100
    ends = [
        *zip(pairs.largest, pairs.largest_residual_bounds, truth.flip(0)[:3], strict=True),
        *zip(pairs.smallest, pairs.smallest_residual_bounds, truth[:2], strict=True),
    ]
    scales = pairs.values.abs().clamp(min=0.01 * float(truth.abs().max()))
    # Found in the space, max|θ| is below the truth's by its own error.
    assert (pairs.error_estimates <= 1e-3 * scales * (1 + 1e-3)).all()
    floor = 0.01 * float(truth.abs().max())
    crowded = pairs.values.abs() < floor
    assert (pairs.error_estimates <= pairs.residual_bounds)[~crowded].all()
    # There r finds some eigenvalue, and the estimate reaches as far as the one of its rank.
    errors = (pairs.values - torch.cat([truth.flip(0)[:3], truth[:2]])).abs()
    assert (errors <= pairs.error_estimates)[crowded].all()
    for value, bound, true in ends:
        if name == "graded":
            # Below the floor eigenvalues cluster closer than the tolerance: some one is near.
            assert float((truth - value).abs().min()) <= float(bound)
        else:
            # Rank by rank: none is skipped, and none is ordered by magnitude.
            assert abs(float(value - true)) <= float(bound)
    assert pairs.residual_floor == pytest.approx(1e-3 * floor, rel=1e-3)


@pytest.mark.parametrize("name", ["isolated", "indefinite"])
def test_eigenvectors_have_the_residuals_that_are_printed(name: str) -> None:
    matrix = with_spectrum(SPECTRA[name], 7, torch.float32)
    pairs = extreme_eigenpairs(DenseOperator(matrix), Wanted(top_k=2, bottom_k=2))
    values = torch.cat([pairs.largest, pairs.smallest])
    bounds = torch.cat([pairs.largest_residual_bounds, pairs.smallest_residual_bounds])
    vectors = pairs.eigenvectors.double()
    residuals = torch.linalg.norm(vectors @ matrix.double() - values[:, None] * vectors, dim=1)
    assert (residuals <= bounds).all()
    # Not a bound without meaning either: above the truth by its allowance for rounding, and by
    # what the same rounding does to the truth.
    assert (bounds <= residuals + 2 * pairs.rounding).all()
    assert pairs.rounding < 50 * torch.finfo(torch.float32).eps * float(values.abs().max())
    largest_entry = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    assert (largest_entry > 0).all()
    torch.testing.assert_close(
        vectors @ vectors.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-5
    )


def test_basis_stays_orthonormal_where_textbook_lanczos_loses_it() -> None:
    values = torch.cat([torch.tensor([1e3, 1e2]), torch.linspace(0, 1, 198)])
    process = Lanczos(DenseOperator(with_spectrum(values, 0)), standard_normal(200, 0, "s"))
    for _ in range(120):
        process.step()
    basis = torch.cat(process.basis.rows())
    deviation = (basis @ basis.T - torch.eye(len(basis), dtype=torch.float64)).abs().max()
    assert float(deviation) < 1e-13  # a few hundred ulps
    assert (process.ritz().values > 900).sum() == 1  # no copy of a converged eigenvalue


def test_invariant_subspaces_are_left_and_the_rest_is_searched() -> None:
    # From a start in span(e₁, e₂) a Krylov space never sees the largest eigenvalue.
    matrix = torch.diag(torch.tensor([1.0, 2.0, 9.0, 4.0, 5.0], dtype=torch.float64))
    start = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    process = Lanczos(DenseOperator(matrix), start)
    while not process.is_complete:
        process.step()
    ritz = process.ritz()
    np.testing.assert_allclose(ritz.values, [1, 2, 4, 5, 9], rtol=1e-12)
    assert ritz.residuals.max() < 1e-12


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_all_eigenvalues_of_a_small_matrix(dim: int) -> None:
    matrix = with_spectrum(torch.arange(1.0, dim + 1) - 2.5, 1)
    pairs = extreme_eigenpairs(DenseOperator(matrix), Wanted(top_k=dim, bottom_k=0))
    assert pairs.num_matvecs == dim
    assert pairs.converged
    truth = torch.linalg.eigvalsh(matrix).flip(0)
    torch.testing.assert_close(pairs.largest, truth, rtol=1e-12, atol=1e-12)


def test_repeated_eigenvalues_to_the_whole_space() -> None:
    matrix = torch.eye(6, dtype=torch.float64) * 3
    pairs = extreme_eigenpairs(DenseOperator(matrix), Wanted(top_k=4, bottom_k=2))
    assert pairs.converged
    torch.testing.assert_close(pairs.largest, torch.full((4,), 3.0, dtype=torch.float64))
    assert pairs.process is not None
    assert pairs.process.basis.orthogonality() < 1e-14  # each of whose vectors was random


def test_nothing_asked_nothing_spent() -> None:
    operator = DenseOperator(torch.eye(3))
    pairs = extreme_eigenpairs(operator, Wanted(top_k=0, bottom_k=0))
    assert operator.num_matvecs == pairs.num_matvecs == 0
    assert pairs.eigenvectors.shape == (0, 3)
    assert pairs.converged


def test_one_end_alone() -> None:
    matrix = with_spectrum(SPECTRA["indefinite"], 0)
    truth = torch.linalg.eigvalsh(matrix)
    bottom = extreme_eigenpairs(DenseOperator(matrix), Wanted(top_k=0, bottom_k=2))
    assert len(bottom.largest) == 0
    torch.testing.assert_close(bottom.smallest, truth[:2], rtol=1e-3, atol=0)


def test_seed_decides_the_run() -> None:
    matrix = with_spectrum(SPECTRA["isolated"], 0)
    a, b, c = (
        extreme_eigenpairs(DenseOperator(matrix), Wanted(top_k=2, bottom_k=0, seed=seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(a.eigenvectors, b.eigenvectors)
    assert not torch.equal(a.eigenvectors, c.eigenvectors)


def test_limit_is_kept_and_said() -> None:
    matrix = with_spectrum(SPECTRA["clustered"], 0)
    operator = DenseOperator(matrix)
    pairs = extreme_eigenpairs(operator, Wanted(top_k=3, bottom_k=2, rtol=1e-8, max_matvecs=12))
    assert operator.num_matvecs == pairs.num_matvecs == 12
    assert not pairs.converged
    assert "did not converge" in pairs.warnings[0]
    assert "--max-matvecs raises the limit" in pairs.warnings[0]
    # Not converged, and yet true: the bounds hold at every step.
    truth = torch.linalg.eigvalsh(matrix)
    for value, bound in zip(pairs.largest, pairs.largest_residual_bounds, strict=True):
        assert float((truth - value).abs().min()) <= float(bound)


def test_bad_requests() -> None:
    with pytest.raises(UsageError, match="are more than the 3 there are"):
        extreme_eigenpairs(DenseOperator(torch.eye(3)), Wanted(top_k=3, bottom_k=1))
    with pytest.raises(UsageError, match="fewer than the 2 eigenvalues"):
        extreme_eigenpairs(DenseOperator(torch.eye(3)), Wanted(top_k=2, bottom_k=0, max_matvecs=1))
    broken = DenseOperator(torch.full((3, 3), torch.nan))
    with pytest.raises(NumericsError, match="not finite"):
        extreme_eigenpairs(broken, Wanted(top_k=1, bottom_k=0))
