from __future__ import annotations

import pytest
import torch

from lgo_cli.curvature.operators import DenseOperator
from lgo_cli.curvature.trace import estimate_trace
from lgo_cli.errors import NumericsError
from lgo_cli.seeding import rademacher, standard_normal


def _matrix(n: int = 30) -> torch.Tensor:
    matrix = standard_normal(n * n, 0, "matrix").view(n, n)
    return matrix + matrix.T


def test_intervals_hold_the_trace() -> None:
    matrix = _matrix()
    estimates = [estimate_trace(DenseOperator(matrix), num_probes=40, seed=s) for s in range(200)]
    z = torch.tensor([(e.value - float(matrix.trace())) / e.standard_error for e in estimates])
    # Student's t with 39 degrees of freedom: 94.8 % lie within 2; 200 draws have a standard
    # deviation of 1.6 %, and the bounds are 4 of them away.
    within = float((z.abs() <= 2).double().mean())
    assert 0.885 <= within <= 1.0
    assert abs(float(z.mean())) < 4 / 200**0.5 * 1.03


def test_standard_error_is_the_formulas() -> None:
    matrix = _matrix()
    off = matrix - torch.diag(matrix.diag())
    estimate = estimate_trace(DenseOperator(matrix), num_probes=2000)
    expected = float((2 * off.square().sum() / 2000).sqrt())
    # The sample deviation of 2,000 probes is known to about 1/√4000 = 1.6 %; 5 of them.
    assert estimate.standard_error == pytest.approx(expected, rel=0.08)


def test_diagonal_matrix_has_no_error() -> None:
    matrix = torch.diag(torch.arange(5.0, dtype=torch.float64))
    estimate = estimate_trace(DenseOperator(matrix), num_probes=3)
    assert (estimate.value, estimate.standard_error, estimate.num_matvecs) == (10.0, 0.0, 3)


def test_probe_is_the_same_however_many_are_drawn() -> None:
    seen: list[torch.Tensor] = []

    class Recorder(DenseOperator):
        def _product(self, vector: torch.Tensor) -> torch.Tensor:
            seen.append(vector)
            return super()._product(vector)

    for num_probes in (4, 8):
        estimate_trace(Recorder(_matrix()), num_probes=num_probes, seed=3)
    assert all(torch.equal(seen[i], seen[4 + i]) for i in range(4))
    assert torch.equal(seen[2], rademacher(30, 3, "hessian", "trace", 2))


def test_product_that_is_not_finite() -> None:
    with pytest.raises(NumericsError):
        estimate_trace(DenseOperator(torch.full((3, 3), torch.inf)), num_probes=2)
