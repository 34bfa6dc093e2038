"""What the bounds of a Krylov run allow for: rounding, breakdowns, early stops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matrices import with_spectrum
from small_networks import dense_hessian, fit, make
from torch import Tensor, nn

from lgo_cli.config import HessianConfig
from lgo_cli.curvature.analysis import analyze_spectrum
from lgo_cli.curvature.audit import measure_rounding
from lgo_cli.curvature.eigenpairs import extreme_eigenpairs
from lgo_cli.curvature.lanczos import Lanczos
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.curvature.operators import DenseOperator
from lgo_cli.curvature.search import DEFAULT_MAX_MATVECS, Wanted, matvec_limit
from lgo_cli.curvature.spectrum import Setting
from lgo_cli.errors import UsageError
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples
from lgo_cli.seeding import standard_normal

ISOLATED = torch.cat([torch.tensor([50.0, 30.0, 10.0, -4.0]), torch.linspace(-1, 1, 96)])


FITTED = ("relu", "gelu, smoothed labels", "squared error", "batch norm", "convolution", "LSTM")
CASES = [
    (name, steps) for name in (*FITTED, "attention and layer norm") for steps in (100, 400, 1500)
]


@pytest.mark.parametrize(("name", "num_steps"), CASES)
def test_bounds_hold_for_fitted_float32_networks(name: str, num_steps: int) -> None:
    model, samples, loss = make(name)
    fit(model, samples, loss, num_steps)
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        truth = torch.linalg.eigvalsh(dense_hessian(objective))
    with Objective(model, samples, loss) as objective:
        rounding = measure_rounding(objective, HessianOperator, difference=False)
        operator = HessianOperator(objective)
        operator.measured_rounding = rounding.units
        pairs = extreme_eigenpairs(operator, Wanted(top_k=4, bottom_k=2))
    values = torch.cat([pairs.largest, pairs.smallest])
    bounds = torch.cat([pairs.largest_residual_bounds, pairs.smallest_residual_bounds])
    distances = (truth[:, None] - values).abs().amin(dim=0)
    assert (distances <= bounds).all()


def test_recurrence_holds_with_its_defect() -> None:
    matrix = with_spectrum(ISOLATED)
    process = Lanczos(DenseOperator(matrix), standard_normal(100, 0, "s"))
    for _ in range(70):  # across three blocks of the basis
        process.step()
    Q = torch.cat(process.basis.rows())
    left = Q[:-1] @ matrix
    right = torch.from_numpy((process.projected + process._defect).T) @ Q[:-1]
    right += torch.from_numpy(process._pending)[:, None] * Q[-1]
    # Each row is a product, and two passes over 70 vectors: 100 ulps of ‖H‖ = 50.
    assert float(torch.linalg.vector_norm(left - right, dim=1).max()) < 50 * 100 * 2.3e-16
    # What couples to the next vector is a part of the norm, 1e-4 of it.
    assert process.squared_norm == pytest.approx(float(left.square().sum()), rel=1e-12)


def test_asymmetric_products_widen_the_bounds() -> None:
    """An operator that is only nearly symmetric: bounds hold for its symmetric part."""
    exact = with_spectrum(ISOLATED)
    noise = 1e-3 * standard_normal(100 * 100, 1, "noise").view(100, 100)
    truth = torch.linalg.eigvalsh(exact)
    matrix = exact + (noise - noise.T) / 2
    pairs = extreme_eigenpairs(DenseOperator(matrix), Wanted(top_k=3, bottom_k=1, rtol=1e-2))
    values = torch.cat([pairs.largest, pairs.smallest])
    bounds = torch.cat([pairs.largest_residual_bounds, pairs.smallest_residual_bounds])
    assert ((truth[:, None] - values).abs().amin(dim=0) <= bounds).all()
    # The eps of float64 says nothing of 1e-3: what the steps saw does.
    assert pairs.rounding > 1e-3
    # And residuals against the products themselves are known to the digit.
    assert pairs.process is not None
    ritz = pairs.process.ritz()
    vectors = pairs.process.vectors(ritz.coefficients)
    seen = vectors @ matrix.T - torch.from_numpy(ritz.values)[:, None] * vectors
    np.testing.assert_allclose(ritz.residuals - ritz.rounding, seen.norm(dim=1), atol=1e-12)


def test_new_vector_is_orthogonal_where_little_is_left_of_a_product() -> None:
    """Of the space without the vector of 100, which has converged, hardly anything leads out."""
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 100.0, 7.0]).double())
    process = Lanczos(DenseOperator(matrix), torch.tensor([1.0] * 6 + [0.0]).double())
    for _ in range(5):
        process.step()
    process.restart(process.ritz(), np.arange(4))
    process.step()
    assert process._pending[-1] < 1e-5 * np.abs(process.projected[-1, :4]).max()
    assert process.basis.orthogonality() < 1e-14


def test_what_is_found_again_is_what_rounding_leaves_certain() -> None:
    operator = DenseOperator(torch.eye(3))
    operator.rounding_floor = 6e-4
    process = Lanczos(operator, torch.ones(3))
    process.step()
    process._lost[:] = 1e-3
    found = process._find_again(np.array([1e-3]))
    np.testing.assert_allclose(found, [(1e-3**2 - 4e-4**2) ** 0.5])


def test_remainder_of_a_breakdown_is_in_the_bound() -> None:
    """What a run drops when it takes a space for invariant still counts."""
    coupling = 1e-6  # below 8 eps·‖H‖ in float32, and well above eps·‖H‖
    matrix = torch.diag(torch.tensor([10.0, 1.0, 2.0]))
    matrix[0, 1] = matrix[1, 0] = coupling
    process = Lanczos(DenseOperator(matrix), torch.tensor([1.0, 0.0, 0.0]))
    process.step()
    assert not process._pending.any()
    assert process.ritz().residuals[0] >= coupling + process.ritz().rounding - 1e-12


def test_tolerance_below_rounding_stops_early_and_says_why() -> None:
    matrix = torch.diag(torch.linspace(-1, 10, 400))
    pairs = extreme_eigenpairs(DenseOperator(matrix), Wanted(top_k=3, bottom_k=2, rtol=1e-7))
    assert not pairs.converged
    assert pairs.num_matvecs < 200  # and not the 300 it may
    assert "--dtype float64" in pairs.warnings[0]
    assert "--max-matvecs" not in pairs.warnings[0]  # would not help
    assert "may be another than was found" in pairs.warnings[0]
    exact = extreme_eigenpairs(
        DenseOperator(matrix.double()), Wanted(top_k=3, bottom_k=2, rtol=1e-7)
    )
    assert exact.converged


def test_warning_names_what_missed() -> None:
    matrix = with_spectrum(ISOLATED)
    pairs = extreme_eigenpairs(DenseOperator(matrix), Wanted(top_k=2, bottom_k=2, max_matvecs=12))
    assert not pairs.converged
    assert "smallest 2 ×" in pairs.warnings[0]
    assert "largest 1" not in pairs.warnings[0]  # isolated: found by then
    assert "--max-matvecs raises the limit" in pairs.warnings[0]
    # In whatever units, rounding is no asymmetry.
    large = DenseOperator(1e6 * matrix.float())
    (said,) = extreme_eigenpairs(large, Wanted(2, 2, max_matvecs=12)).warnings
    assert "--max-matvecs raises the limit" in said


def test_tolerance_of_a_block_is_a_share_of_the_whole() -> None:
    pairs = extreme_eigenpairs(DenseOperator(with_spectrum(ISOLATED)), Wanted(2, scale=1e4))
    assert pairs.residual_floor == pytest.approx(1e-3 * 0.01 * 1e4)


def test_one_check_is_not_enough() -> None:
    matrix = with_spectrum(ISOLATED)
    free = extreme_eigenpairs(DenseOperator(matrix), Wanted(top_k=1, bottom_k=0))
    exact = extreme_eigenpairs(
        DenseOperator(matrix), Wanted(top_k=1, bottom_k=0, max_matvecs=free.num_matvecs)
    )
    short = extreme_eigenpairs(
        DenseOperator(matrix), Wanted(top_k=1, bottom_k=0, max_matvecs=free.num_matvecs - 1)
    )
    assert (free.converged, exact.converged, short.converged) == (True, True, False)
    assert "only at the last" in short.warnings[0]


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_units_of_the_loss_do_not_matter(scale: float) -> None:
    matrix = with_spectrum(ISOLATED).float()
    base = extreme_eigenpairs(DenseOperator(matrix), Wanted(top_k=3, bottom_k=1))
    scaled = extreme_eigenpairs(DenseOperator(matrix * scale), Wanted(top_k=3, bottom_k=1))
    assert scaled.num_matvecs == base.num_matvecs
    torch.testing.assert_close(scaled.largest / scale, base.largest, rtol=1e-5, atol=0)


def test_zero_operator() -> None:
    pairs = extreme_eigenpairs(
        DenseOperator(torch.zeros(20, 20, dtype=torch.float64)), Wanted(top_k=2, bottom_k=2)
    )
    assert pairs.converged
    assert not pairs.largest.any()
    assert not pairs.largest_residual_bounds.any()


def test_zero_block_has_converged_whatever_the_whole_rounds() -> None:
    operator = DenseOperator(torch.zeros(20, 20))
    operator.rounding_floor = 1e-3
    pairs = extreme_eigenpairs(operator, Wanted(1, scale=1.0))
    assert pairs.converged
    assert pairs.warnings == ()
    assert pairs.values.tolist() == [0.0]
    assert float(pairs.residual_bounds[0]) == 1e-3


def test_convergence_by_chance_after_rounding_is_looked_at_again() -> None:
    """An error of twice the rounding ends a run, but not at the step at which it converges."""
    values = torch.cat([torch.linspace(0, 1, 60), torch.tensor([2.0, 3.0, 4.0])]).double()
    for seed in range(40):
        operator = DenseOperator(torch.diag(values))
        operator.rounding_floor = 0.7 * 1e-2 * 4  # within the tolerance, and twice of it is not
        pairs = extreme_eigenpairs(operator, Wanted(1, rtol=1e-2, seed=seed))
        assert pairs.converged
        assert pairs.num_matvecs < 20


def test_limit_on_products() -> None:
    assert matvec_limit(10_000, Wanted(10, 1)) == DEFAULT_MAX_MATVECS
    assert matvec_limit(10_000, Wanted(40, 10)) == 1000
    assert matvec_limit(50, Wanted(10, 1)) == 50
    # A run that restarts or begins anew may need more than there are dimensions.
    assert matvec_limit(50, Wanted(10, 1, max_basis=26)) == DEFAULT_MAX_MATVECS
    assert matvec_limit(50, Wanted(10, 1, multiplicity=True)) == DEFAULT_MAX_MATVECS
    assert matvec_limit(10_000, Wanted(10, 1, max_matvecs=77)) == 77
    with pytest.raises(UsageError, match="fewer than the 11"):
        matvec_limit(10_000, Wanted(10, 1, max_matvecs=10))


class _SharpAttention(nn.Module):
    """A softmax over large scores: it amplifies rounding that its outputs do not show."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 3, 4)
        scores = self.scale * self.q(x) @ self.k(x).transpose(1, 2)
        return self.head((torch.softmax(scores, -1) @ self.v(x)).mean(1))


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_bounds_hold_where_a_model_amplifies_rounding(scale: float) -> None:
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = _SharpAttention(scale)
            samples = Samples(torch.randn(64, 12), torch.randint(0, 3, (64,)))
        parts = (samples, samples.head(32), Samples(samples.inputs[32:], samples.labels[32:]))
        truths = []
        for part in parts:
            with Objective(model, part, dtype=torch.float64) as objective:
                truths.append(torch.linalg.eigvalsh(dense_hessian(objective)))
        config = HessianConfig(top_k=4, bottom_k=3, halves=True, audit=False, seed=seed)
        with Objective(model, samples) as objective:
            spectrum = analyze_spectrum(objective, config)
        assert spectrum.halves is not None
        found = [spectrum.eigenpairs, *(half.eigenpairs for half in spectrum.halves)]
        for truth, pairs in zip(truths, found, strict=True):
            distances = (truth[:, None] - pairs.values).abs().amin(dim=0)
            assert (distances <= pairs.residual_bounds).all()


class _Amplifier(nn.Module):
    """Rounding is large in one part, and ‖H‖ lies in another, whose weights are next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False)
        self.small = nn.Parameter(1e-7 * torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(300 * self.scores(x), 1)
        return self.head(weights * torch.tanh(x)) + 1000 * x[:, :4] @ self.small.T


@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_where_a_scaling_removes_the_norm(seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _Amplifier()
        samples = Samples(torch.randn(64, 6), torch.randint(0, 3, (64,)))
    with Objective(model, samples, dtype=torch.float64) as objective:
        scale = objective.theta.abs()
        truth = torch.linalg.eigvalsh(scale[:, None] * dense_hessian(objective) * scale)
    config = HessianConfig(
        top_k=4, bottom_k=2, trace=True, scaling="elementwise", audit=False, seed=seed
    )
    with Objective(model, samples) as objective:
        spectrum = analyze_spectrum(objective, config)
    pairs, trace = spectrum.eigenpairs, spectrum.trace
    assert ((truth[:, None] - pairs.values).abs().amin(dim=0) <= pairs.residual_bounds).all()
    assert trace is not None
    off = abs(trace.value - float(truth.sum()))
    assert off <= 4 * trace.standard_error + trace.rounding


@pytest.mark.parametrize("seed", [1, 3, 4])
def test_bounds_hold_where_adam_magnifies_rounding(seed: int) -> None:
    """Where float32 rounds a tanh to one there is no gradient, and Adam's P is its ε."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
        inputs = torch.randn(61, 6)
        inputs[:, 4:] *= 1000
        samples = Samples(inputs, torch.randint(0, 3, (61,)))
    with Objective(model, samples) as objective:
        preconditioner = objective.loss_and_gradient()[1].abs().double() + 1e-8
    with Objective(model, samples, dtype=torch.float64) as objective:
        scale = preconditioner.rsqrt()
        truth = torch.linalg.eigvalsh(scale[:, None] * dense_hessian(objective) * scale)
    setting = Setting(preconditioner=preconditioner)
    with Objective(model, samples) as objective:
        asked = HessianConfig(top_k=2, bottom_k=1, scaling="adam", seed=seed)
        main = analyze_spectrum(objective, asked, setting).eigenpairs
        beside = analyze_spectrum(objective, HessianConfig(seed=seed), setting).preconditioned
    assert beside is not None
    for pairs in (main, beside):
        assert ((truth[:, None] - pairs.values).abs().amin(dim=0) <= pairs.residual_bounds).all()
    ranks = torch.cat([truth.flip(0)[:2], truth[:1]])
    assert ((ranks - main.values).abs() <= main.error_estimates).all()


def test_rounding_of_a_smooth_model_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 128 samples four are measured, and others only where a kink may have been in the way."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _SharpAttention(1.0)
        inputs = torch.randn(128, 12)
        inputs[:4] *= 30
        samples = Samples(inputs, torch.randint(0, 3, (128,)))
    with Objective(model, samples, micro_batch_size=128) as objective:
        smooth = measure_rounding(objective, HessianOperator, difference=False)
        monkeypatch.setattr("lgo_cli.curvature.audit.nonsmooth_operations", lambda _: ("ReLU",))
        kinked = measure_rounding(objective, HessianOperator, difference=False)
    assert smooth.units is not None
    assert kinked.units is not None
    assert smooth.units > 1e3
    assert kinked.units < 100
