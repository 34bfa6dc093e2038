from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lgo_cli.curvature.lanczos import Lanczos
from lgo_cli.curvature.operators import ROUNDING_UNITS, DenseOperator
from lgo_cli.curvature.trace import LEAST_BASIS, MIN_PROBES, TraceEstimate, estimate_trace
from lgo_cli.errors import NumericsError, UsageError
from lgo_cli.seeding import standard_normal


def _matrix(n: int = 120) -> torch.Tensor:
    """A few large eigenvalues and a bulk around zero, as of a network."""
    noise = standard_normal(n * n, 0, "matrix").view(n, n)
    bulk = (noise + noise.T) / (2 * n) ** 0.5
    spikes = standard_normal(n * 5, 1, "spikes").view(n, 5) / n**0.5
    return bulk + spikes @ torch.diag(torch.tensor([40.0, 20, 10, 5, 3]).double()) @ spikes.T


def _process(matrix: torch.Tensor, seed: int, num_steps: int = 12) -> Lanczos:
    operator = DenseOperator(matrix)
    process = Lanczos(operator, standard_normal(operator.dim, seed, "start"), seed)
    for _ in range(num_steps):
        process.step()
    return process


def _estimate(matrix: torch.Tensor, seed: int, total: int) -> TraceEstimate:
    return estimate_trace(_process(matrix, seed), num_total=total, seed=seed)


def test_intervals_hold_the_trace_and_the_norm() -> None:
    matrix = _matrix()
    estimates = [_estimate(matrix, seed, 60) for seed in range(200)]
    for truth, pairs in (
        (float(matrix.trace()), [(e.value, e.standard_error) for e in estimates]),
        (
            float(torch.linalg.matrix_norm(matrix)),
            [(e.frobenius_norm, e.frobenius_standard_error) for e in estimates],
        ),
    ):
        z = np.array([(value - truth) / error for value, error in pairs])
        # 95.4 % should; 200 draws have a standard deviation of 1.5 %, and the bound is 3 of them
        # away.
        assert (np.abs(z) <= 2).mean() >= 0.954 - 3 * 0.015
        assert abs(z.mean()) < 4 / 200**0.5 * 1.03
        # And no wider than that: s is widened by 4 %, and its own deviation over draws is 5 %.
        assert z.std() == pytest.approx(0.96, abs=4 * 0.05)


def test_standard_error_is_the_formulas() -> None:
    """Var yᵀHy = 2(‖C‖² − Σ c_ii²) for signs, C the part of H beside the basis."""
    matrix = _matrix()
    process = _process(matrix, 0, LEAST_BASIS)
    basis = torch.cat(process.basis.rows(process.size))
    beside = torch.eye(len(matrix), dtype=torch.float64) - basis.T @ basis
    remainder = beside @ matrix @ beside
    variance = 2 * float(remainder.square().sum() - remainder.diag().square().sum())
    estimate = estimate_trace(process, num_total=LEAST_BASIS + 1000, max_basis=LEAST_BASIS)
    assert estimate.num_probes == 1000
    # The sample deviation of 1,000 probes is known to about 1/√2000 = 2.2 %; 5 of them.
    assert estimate.standard_error == pytest.approx(math.sqrt(variance / 1000), rel=0.11)
    assert estimate.exact_part == pytest.approx(float((basis @ matrix @ basis.T).trace()))


@pytest.mark.parametrize("diagonal", [0.0, 3.0])
def test_an_error_is_no_less_than_its_vectors_say(diagonal: float) -> None:
    """Of few probes too it is that of the formula, in which the diagonal is not."""
    matrix = _matrix() + diagonal * torch.diag(standard_normal(120, 2, "diagonal"))
    process = _process(matrix, 0, LEAST_BASIS)
    basis = torch.cat(process.basis.rows(process.size))
    beside = torch.eye(len(matrix), dtype=torch.float64) - basis.T @ basis
    remainder = beside @ matrix @ beside
    variance = 2 * float(remainder.square().sum() - remainder.diag().square().sum())
    errors = [
        estimate_trace(process, num_total=LEAST_BASIS + 20, max_basis=LEAST_BASIS, seed=seed)
        for seed in range(40)
    ]
    ratios = np.array([found.standard_error for found in errors]) / math.sqrt(variance / 20)
    # By s alone, whose deviation is 16 %, the least of 40 would be about 0.65; of twenty vectors of
    # 120 entries the sum of variances has one of 4 %.
    assert ratios.min() > 0.85
    # The mean of the larger of the two, s widened by 7 %, is 1.10 by the normal distribution.
    assert ratios.mean() < 1.15


@pytest.mark.parametrize("rank", [1, 2])
def test_intervals_hold_where_few_directions_are_left(rank: int) -> None:
    vectors, _ = torch.linalg.qr(standard_normal(100 * rank, 0, "few").view(100, rank))
    process = _process(3 * vectors @ vectors.T, 0, 1)
    found = [estimate_trace(process, num_total=11, least_basis=1, seed=seed) for seed in range(400)]
    trace = np.array([(each.value - 3 * rank) / each.standard_error for each in found])
    norm = np.array(
        [(each.frobenius_norm - 3 * rank**0.5) / each.frobenius_standard_error for each in found]
    )
    # Three deviations of a share in 400 below 95.4 %; by s alone it was 88 to 91.5 %.
    for z in (trace, norm):
        assert (np.abs(z) <= 2).mean() >= 0.954 - 3 * math.sqrt(0.954 * 0.046 / 400)


def test_deflation_beats_plain_probes_at_equal_cost() -> None:
    matrix = _matrix()
    truth = float(matrix.trace())
    deflated = [_estimate(matrix, seed, 60).value - truth for seed in range(40)]
    off = float(matrix.square().sum() - matrix.diag().square().sum())
    plain = math.sqrt(2 * off / 60)
    # Without the five spikes the variance falls by far more than the probes spent on the basis.
    assert np.sqrt(np.mean(np.square(deflated))) < 0.6 * plain


def test_total_counts_the_basis() -> None:
    matrix = _matrix()
    process = _process(matrix, 0)
    estimate = estimate_trace(process, num_total=60)
    assert process.operator.num_matvecs == estimate.num_total_matvecs == 60
    assert estimate.num_matvecs == 60 - 12
    assert process.size == 30
    with pytest.raises(UsageError, match="leaves no room for probes: the basis took 30"):
        estimate_trace(process, num_total=31)


def test_stops_at_the_tolerance() -> None:
    matrix = _matrix()
    for rtol in (0.05, 0.02):
        estimate = estimate_trace(_process(matrix, 3), rtol=rtol, seed=3)
        assert estimate.converged
        assert estimate.num_probes >= MIN_PROBES
        assert estimate.standard_error <= rtol * abs(estimate.value)
    assert not estimate_trace(_process(matrix, 3), rtol=1e-6, max_basis=60).converged


def test_stopping_on_the_error_asks_for_a_wider_one() -> None:
    """Normal probes of deviation one: the share of intervals that hold, with and without."""
    size, num_draws = 120, 40_000
    draws = np.random.default_rng(0).standard_normal((num_draws, size))
    n = np.arange(MIN_PROBES, size + 1)
    means = draws.cumsum(axis=1)[:, MIN_PROBES - 1 :] / n
    squares = np.square(draws).cumsum(axis=1)[:, MIN_PROBES - 1 :]
    plain = np.sqrt((squares - n * means**2) / (n - 1) / n)
    share = {}
    for constant in (1.25, 2.25):
        errors = plain * (1 + constant / (n - 1))
        stops = np.argmax(errors <= 1 / 30**0.5, axis=1)[:, None]
        mean, error = (np.take_along_axis(array, stops, 1) for array in (means, errors))
        share[constant] = float((np.abs(mean) <= 2 * error).mean())
    # Three deviations of a binomial share, and a next order of 1/n².
    tolerance = 3 * math.sqrt(0.954 * 0.046 / num_draws) + 1 / 30**2
    assert share[2.25] == pytest.approx(0.9545, abs=tolerance)
    assert share[1.25] < 0.95


def test_an_error_that_stopped_the_run_is_the_wider() -> None:
    matrix, seed = _matrix(), 1  # one whose s is above what else the probes say of it
    stopped = estimate_trace(_process(matrix, seed), rtol=0.02, seed=seed)
    total = estimate_trace(
        _process(matrix, seed, LEAST_BASIS),
        num_total=stopped.num_total_matvecs,
        max_basis=LEAST_BASIS,
        seed=seed,
    )
    assert total.value == stopped.value
    rest = stopped.num_probes - 1
    wider = (1 + 2.25 / rest) / (1 + 1.25 / rest)
    assert stopped.standard_error == pytest.approx(wider * total.standard_error)


def test_the_whole_space_has_no_error() -> None:
    matrix = torch.diag(torch.arange(5.0, dtype=torch.float64))
    estimate = estimate_trace(_process(matrix, 0, 5))
    assert (estimate.standard_error, estimate.num_probes, estimate.num_matvecs) == (0.0, 0, 0)
    assert estimate.value == pytest.approx(10.0)
    assert estimate.frobenius_norm == pytest.approx(30**0.5)
    assert estimate.frobenius_standard_error == 0.0
    # Where eigenvalues cancel, what each of them rounds is left.
    process = _process(torch.diag(torch.arange(-2.0, 3.0)), 0, 5)
    assert estimate_trace(process).rounding == process.ritz().rounding > 1e-6


@pytest.mark.parametrize(("num_dims", "rtol"), [(LEAST_BASIS + MIN_PROBES, 0.01), (120, 1e-4)])
def test_a_basis_that_probes_would_cost_is_completed(num_dims: int, rtol: float) -> None:
    """Of 66 parameters the trace took 530 products, and was off by two percent after them."""
    matrix = _matrix(num_dims)
    found = estimate_trace(_process(matrix, 0), rtol=rtol)
    assert (found.standard_error, found.num_probes, found.converged) == (0, 0, True)
    assert found.value == pytest.approx(float(matrix.trace()), rel=1e-12)
    assert found.frobenius_norm == pytest.approx(float(matrix.norm()), rel=1e-12)
    assert found.num_matvecs <= num_dims - 12 + MIN_PROBES


@pytest.mark.parametrize("total", [41, 60])
def test_a_total_that_completes_the_basis_does(total: int) -> None:
    """60 products on 41 parameters went into half a basis and 30 probes, and stayed an estimate."""
    matrix = _matrix(41)
    found = estimate_trace(_process(matrix, 0), num_total=total)
    assert (found.standard_error, found.num_probes, found.num_total_matvecs) == (0, 0, 41)
    assert found.value == pytest.approx(float(matrix.trace()), rel=1e-12)
    last = estimate_trace(_process(matrix, 0, 40), num_total=41)  # no room for two probes
    assert (last.num_probes, last.num_matvecs) == (0, 1)
    short = estimate_trace(_process(matrix, 0), num_total=40)
    assert (short.num_probes, short.num_total_matvecs) == (20, 40)


def test_a_basis_that_is_nearly_there_is_completed() -> None:
    matrix = _matrix(66)
    found = estimate_trace(_process(matrix, 0, 50), rtol=math.inf)
    assert (found.num_probes, found.num_matvecs) == (0, 16)


def test_any_error_is_within_an_infinite_tolerance_of_zero() -> None:
    """As beside an exact trace, of a matrix that is zero."""
    matrix = torch.zeros(200, 200, dtype=torch.float64)
    found = estimate_trace(_process(matrix, 0, 1), rtol=math.inf, max_basis=30)
    assert (found.value, found.converged) == (0, True)
    assert found.num_probes == MIN_PROBES


def test_a_basis_that_has_no_room_is_not_completed() -> None:
    found = estimate_trace(_process(_matrix(), 0), rtol=1e-4, max_basis=60)
    assert found.num_probes > MIN_PROBES
    assert found.standard_error > 0


def test_probe_is_the_same_however_many_are_drawn() -> None:
    seen: list[torch.Tensor] = []

    class Recorder(DenseOperator):
        def _product(self, vector: torch.Tensor) -> torch.Tensor:
            seen.append(vector.clone())
            return super()._product(vector)

    for total in (34, 38):
        operator = Recorder(_matrix())
        process = Lanczos(operator, standard_normal(120, 0, "start"))
        estimate_trace(process, num_total=total, max_basis=2, seed=3)
    # 2 steps and 32 probes, then 2 steps and 36.
    assert all(torch.equal(seen[2 + i], seen[34 + 2 + i]) for i in range(32))


def test_product_that_is_not_finite() -> None:
    with pytest.raises(NumericsError):
        _process(torch.full((3, 3), torch.inf), 0, 1)


def test_total_after_a_restart_still_has_probes() -> None:
    matrix = _matrix()
    process = _process(matrix, 0, 30)
    process.restart(process.ritz(), np.arange(20, 30))
    process.step()
    estimate = estimate_trace(process, num_total=process.num_steps + 3)
    assert estimate.num_total_matvecs == 34
    assert estimate.num_probes == 2
    assert math.isfinite(estimate.standard_error)
    assert abs(estimate.value - float(matrix.trace())) < 10 * estimate.standard_error


def test_rounding_is_part_of_a_standard_error() -> None:
    """Of rank five in float32: a basis of 30 holds all but rounding, and probes see 3e-10 of it."""
    vectors = standard_normal(120 * 5, 2, "vectors").view(120, 5)
    matrix = (vectors @ vectors.T / 120).float()
    process = _process(matrix, 0)
    found = estimate_trace(process, num_total=60)
    assert found.num_probes == 30
    eps = torch.finfo(torch.float32).eps
    assert found.rounding == pytest.approx(
        ROUNDING_UNITS * eps * found.value
    )  # above one product's
    assert found.frobenius_rounding == pytest.approx(30**0.5 * process.ritz().rounding)
    assert found.standard_error == found.rounding > 0
    assert found.frobenius_standard_error == found.frobenius_rounding > 0
    assert abs(found.value - float(matrix.double().trace())) <= found.standard_error
    norm = float(torch.linalg.matrix_norm(matrix.double()))
    assert abs(found.frobenius_norm - norm) <= found.frobenius_standard_error
    # In float64 it is below the chance of a matrix that has some.
    chance = _estimate(_matrix(), 0, 60)
    assert 0 < chance.rounding < 1e-9 * chance.standard_error
