"""Losses along a line, against closed forms and a naive loop."""

from __future__ import annotations

import copy
import math
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.landscape import barriers, interpolation
from lgo_cli.landscape.barriers import (
    _factor,
    _quantile,
    _studentised_quantile,
    estimate_barrier,
    height_errors,
    rounding_allowance,
)
from lgo_cli.landscape.curves import Arc, straight
from lgo_cli.landscape.evaluator import Evaluator
from lgo_cli.landscape.grids import alpha_grid, linspace
from lgo_cli.landscape.heights import highest
from lgo_cli.landscape.interpolation import interpolate
from lgo_cli.loss import LossFunction, RoundingScale
from lgo_cli.objective import Objective
from lgo_cli.results import Barrier
from lgo_cli.samples import Samples

DIM, CLASSES = 6, 3


def _samples(n: int, seed: int) -> Samples:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, DIM, generator=draw)
    return Samples(inputs, torch.randint(0, CLASSES, (n,), generator=draw))


TRAIN, TEST = _samples(50, 0), _samples(30, 1)


def _network(seed: int = 1) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)
        )
        model(torch.randn(64, DIM))
    return model


def _linear(*, bias: bool = False) -> nn.Linear:
    with torch.random.fork_rng():
        model = nn.Linear(DIM, CLASSES, bias=bias)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, CLASSES * DIM).view(CLASSES, DIM))
        for rest in list(model.parameters())[1:]:
            rest.zero_()
    return model


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-0.1, 0.1), (-2.5, 2.5), (-1e-3, 1e-3)])
@pytest.mark.parametrize("num_points", [3, 11, 51, 101])
def test_odd_grid_has_the_centre_on_it_and_is_symmetric(
    bounds: tuple[float, float], num_points: int
) -> None:
    points = linspace(bounds, num_points)
    assert points[num_points // 2] == 0.0
    assert points == [-point for point in reversed(points)]
    assert (points[0], points[-1]) == bounds


def test_grids_that_share_points_share_bits() -> None:
    coarse, fine = linspace((-0.7, 1.3), 11), linspace((-0.7, 1.3), 101)
    assert fine[::10] == coarse
    # The decimals -0.1 and 0.2 are meant, not their binary neighbours, and rounded once.
    assert linspace((-0.1, 0.2), 4) == [-0.1, 0.0, 0.1, 0.2]
    assert -0.1 + (0.2 + 0.1) / 3 != 0.0
    assert linspace((0.1, 0.7), 3)[1] == float(Fraction(4, 10))


@pytest.mark.parametrize("num_points", [2, 4, 11])
def test_required_points_are_on_the_grid(num_points: int) -> None:
    grid = alpha_grid((-0.5, 1.5), num_points, (0.0, 1.0))
    assert grid == sorted(set(grid))
    assert {0.0, 1.0, *linspace((-0.5, 1.5), num_points)} == set(grid)
    # They are there already, to the bit, where the spacing puts them.
    assert len(alpha_grid((-0.5, 1.5), 41, (0.0, 1.0))) == 41
    assert alpha_grid((2.0, 3.0), 2, (0.0,)) == [0.0, 2.0, 3.0]


def test_quadratic_in_closed_form() -> None:
    """½‖Wx + b − t‖² is a parabola along every line."""
    model = _linear(bias=True)
    direction = torch.linspace(1, -2, CLASSES * (DIM + 1), dtype=torch.float64)
    x = torch.cat([TRAIN.inputs, torch.ones(50, 1)], dim=1).double()
    # The Hessian of each output's row of [W, b] is the same mean of x xᵀ.
    rows = torch.cat(
        [direction[: CLASSES * DIM].view(CLASSES, DIM), direction[CLASSES * DIM :, None]], dim=1
    )
    weights = torch.cat([model.weight, model.bias[:, None]], dim=1).detach().double()
    residual = x @ weights.T - F.one_hot(TRAIN.labels, CLASSES).double()
    moved = x @ rows.T
    slope = float((residual * moved).sum() / 50)
    curvature = float((moved * moved).sum() / 50)
    loss = float(residual.square().sum() / 100)
    alphas = alpha_grid((-1.0, 2.0), 13, (0.0,))
    with Objective(
        model, TRAIN, LossFunction("squared_error"), micro_batch_size=7, dtype=torch.float64
    ) as objective:
        path = interpolate(
            objective, TEST.to(objective.device, torch.float64), alphas, direction=direction
        )
    # 50 terms of order ten in another order: a few hundred ulps.
    assert path.curvature_at_origin == pytest.approx(curvature, rel=1e-13)
    a = np.array(alphas)
    expected = loss + slope * a + curvature * a**2 / 2
    np.testing.assert_allclose(path.train.loss, expected, rtol=1e-12)
    assert path.train.barrier is None
    assert path.test.barrier is None
    assert np.isnan(path.train.barrier_standard_error).all()
    assert path.loss_at_end == path.train.loss[-1]
    assert not path.warnings
    # Equidistant points of a parabola have one second difference, the curvature times h².
    np.testing.assert_allclose(np.diff(path.train.loss, 2), curvature / 16, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_the_models_to_the_bit(dtype: torch.dtype) -> None:
    here, there = _network(1), _network(2)
    target = _flat(there).to(dtype)
    with Objective(here, TRAIN, dtype=dtype) as objective:
        test = TEST.to(objective.device, dtype)
        path = interpolate(objective, test, [-0.5, 0.0, 0.3, 1.0, 1.25], target=target)
        start, at_target = objective.evaluate(), objective.loss(target)
        assert path.train.loss[1] == path.loss_at_start == objective.center.loss == start.loss
        assert path.train.loss[3] == path.loss_at_end == at_target
        assert path.test.loss[1] == objective.evaluate(test).loss
        with objective.at(target):
            assert path.test.loss[3] == objective.evaluate(test).loss
        assert np.array_equal(path.direction, (target - objective.theta).numpy())
    assert path.num_evaluations == 10
    assert path.train.barrier is not None
    assert path.train.barrier.value == _height(path.alpha, path.train.loss)


def test_end_is_the_target_where_adding_the_difference_is_not() -> None:
    """fl(θ + fl(θ' − θ)) is not θ': the end has to be put there."""
    model = _linear()
    model.weight.data.fill_(1.0)
    target = torch.full((CLASSES * DIM,), 1e-4) * torch.linspace(1, 2, CLASSES * DIM)
    with Objective(model, TRAIN) as objective:
        assert not torch.equal(objective.theta + (target - objective.theta), target)
        path = interpolate(objective, None, [0.0, 1.0], target=target)
        assert path.loss_at_end == objective.loss(target)


def test_naive_loop_over_the_saved_direction() -> None:
    model = _network()
    twin = copy.deepcopy(model).eval()
    alphas = alpha_grid((-0.5, 1.5), 10, (0.0, 1.0))
    with Objective(model, TRAIN, micro_batch_size=16) as objective:
        path = interpolate(objective, TEST, alphas, target=_flat(_network(2)))
    start = _flat(twin)
    for index, alpha in enumerate(alphas):
        point = start + alpha * torch.from_numpy(path.direction)
        nn.utils.vector_to_parameters(point, twin.parameters())
        for samples, loss, error, accuracy in (
            (TRAIN, path.train.loss, path.train.standard_error, path.train.accuracy),
            (TEST, path.test.loss, path.test.standard_error, path.test.accuracy),
        ):
            with torch.no_grad():
                outputs = twin(samples.inputs)
            losses = F.cross_entropy(outputs.double(), samples.labels, reduction="none")
            # Parameters and activations are float32, rounded in another order.
            assert loss[index] == pytest.approx(float(losses.mean()), rel=1e-5)
            expected = float(losses.std()) / math.sqrt(len(samples))
            assert error[index] == pytest.approx(expected, rel=1e-5)
            correct = float((outputs.argmax(1) == samples.labels).double().mean())
            assert accuracy[index] == correct


def test_one_product_and_the_model_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[Tensor] = []
    product = HessianOperator.matvec

    def counting(operator: HessianOperator, vector: Tensor) -> Tensor:
        products.append(vector)
        return product(operator, vector)

    monkeypatch.setattr(HessianOperator, "matvec", counting)
    model = _network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with Objective(model, TRAIN) as objective:
        direction = torch.ones(objective.dim)
        interpolate(objective, TEST, [0.0, 0.5], direction=direction)
        assert objective.evaluate().loss == objective.center.loss
    assert len(products) == 1
    assert torch.equal(products[0], direction)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_without_test_samples_nothing_stands_in_for_them() -> None:
    with Objective(_network(), TRAIN) as objective:
        path = interpolate(objective, None, [0.0, 0.5], direction=torch.ones(objective.dim))
    assert np.isnan([path.test.loss, path.test.standard_error, path.test.accuracy]).all()
    assert np.isfinite(path.train.loss).all()
    assert path.num_evaluations == 2


def test_target_and_direction_exclude_each_other() -> None:
    with Objective(_network(), TRAIN) as objective:
        for both in (None, objective.theta):
            with pytest.raises(TypeError, match="its target, by its direction or by a curve"):
                interpolate(objective, None, [0.0, 1.0], target=both, direction=both)


def test_coordinates_ascend_from_end_to_end_and_may_be_an_array() -> None:
    """A barrier of [1, 0, 0.5] would be measured against the wrong ends."""
    model = _linear()
    with Objective(model, TRAIN) as objective:
        target = objective.theta + 1
        for alphas in ([1.0, 0.0, 0.5], [0.0, 0.0, 1.0], [0.5, 1.0], [0.0, 0.5]):
            with pytest.raises(ValueError, match="must ascend"):
                interpolate(objective, None, alphas, target=target)
        with pytest.raises(ValueError, match="must ascend"):
            interpolate(objective, None, [0.5, 1.0], direction=target)
        path = interpolate(objective, None, np.linspace(0, 1, 3), target=target)  # type: ignore[arg-type]
        assert path.loss_at_end == objective.loss(target)


def test_curve_and_arc_are_measured_where_they_say() -> None:
    model, twin = _network(), copy.deepcopy(_network()).eval()
    target = _flat(_network(2))
    alphas = [0.0, 0.25, 0.7, 1.0]
    with Objective(model, TRAIN) as objective:
        bent = straight("bezier", objective.theta.clone(), target)
        bent.bends[0].add_(torch.linspace(-0.3, 0.3, objective.dim))
        curves = [bent, Arc.between(objective.theta.clone(), target)]
        paths = [interpolate(objective, TEST, alphas, curve=curve) for curve in curves]
        assert objective.evaluate().loss == objective.center.loss
        ends = objective.center.loss, objective.loss(target)
    for curve, path in zip(curves, paths, strict=True):
        assert (path.loss_at_start, path.loss_at_end) == ends
        assert path.curvature_at_origin is None
        assert path.num_matvecs == 0
        assert torch.equal(torch.from_numpy(path.direction), target - curve.start)
        for index in (1, 2):
            point = curve.point(alphas[index])
            nn.utils.vector_to_parameters(point, twin.parameters())
            for samples, series in ((TRAIN, path.train), (TEST, path.test)):
                with torch.no_grad():
                    expected = float(F.cross_entropy(twin(samples.inputs), samples.labels))
                # float32 forward passes in other batches.
                assert series.loss[index] == pytest.approx(expected, rel=1e-5)


def test_what_is_around_a_point_is_in_force_there_and_at_the_centre_too() -> None:
    model = _linear()
    entered: list[float] = []

    @contextmanager
    def around(alpha: float) -> Iterator[None]:
        # The parameters have been moved when it is entered.
        entered.append(model.weight[0, 0].item())
        model.weight.data.mul_(2.0)
        yield
        model.weight.data.mul_(0.5)

    target = torch.linspace(1, 2, CLASSES * DIM)
    with Objective(model, TRAIN) as objective:
        path = interpolate(objective, TEST, [0.0, 1.0], target=target, around=around)
        doubled = [objective.loss(2 * theta) for theta in (objective.theta, target)]
    assert entered == [-1.0, 1.0]
    # Doubling is exact.
    assert [path.loss_at_start, path.loss_at_end] == doubled
    assert path.curvature_at_origin is None


def test_sample_losses_are_those_behind_the_mean() -> None:
    with Objective(_network(), TRAIN, LossFunction("cross_entropy", 0.1), micro_batch_size=16) as o:
        evaluation, losses = o.sample_losses(o.samples)
        assert evaluation == o.evaluate()
        assert losses.dtype == torch.float64
        with torch.no_grad():
            outputs = o.model(o.samples.inputs)
            expected = F.cross_entropy(
                outputs, o.samples.labels, reduction="none", label_smoothing=0.1
            )
        # Batches of another size: the last bits of float32.
        torch.testing.assert_close(losses, expected.double(), rtol=1e-5, atol=1e-6)
        assert o.sample_losses(TEST)[0] == o.evaluate(TEST)


def _height(alpha: np.ndarray[Any, Any], loss: np.ndarray[Any, Any]) -> float:
    return highest(alpha, loss)[1]


def test_barrier_is_above_the_line_between_the_ends() -> None:
    alpha = np.array([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0])
    # The line at 0.25 and 0.5 is 1.5 and 2; what lies outside of [0, 1] does not count.
    assert _height(alpha, np.array([99.0, 1.0, 2.0, 2.75, 3.0, 99.0])) == 0.75
    assert _height(alpha, np.array([0.0, 1.0, 1.2, 1.5, 3.0, 0.0])) == 0.0
    assert _height(alpha, np.array([0.0, 3.0, 2.5, 2.0, 1.0, 0.0])) == 0.0
    assert _height(np.array([0.0, 1.0]), np.array([0.1, 0.3])) == 0.0


def test_barrier_of_losses_that_are_not_finite() -> None:
    alpha = np.array([0.0, 0.5, 1.0])
    assert _height(alpha, np.array([1.0, np.inf, 2.0])) == math.inf
    assert math.isnan(_height(alpha, np.array([1.0, np.nan, 2.0])))
    assert math.isnan(_height(alpha, np.array([1.0, 1.5, np.inf])))
    assert math.isnan(_height(alpha, np.array([1.0, 1.5, np.nan])))
    # Outside of [0, 1] they do not matter.
    assert _height(np.array([-1.0, 0.0, 1.0]), np.array([np.nan, 1.0, 2.0])) == 0.0


def test_points_that_are_not_finite_stay_so() -> None:
    with Objective(_network(), TRAIN) as objective:
        direction = torch.zeros(objective.dim)
        direction[0] = 1e38
        path = interpolate(objective, TEST, [0.0, 1.0, 1e3], direction=direction)
    assert math.isfinite(path.train.loss[0])
    assert not math.isfinite(path.train.loss[2])
    assert not math.isfinite(path.loss_at_end)
    for series, where in ((path.train, ""), (path.test, "on the test samples, ")):
        assert series.num_nonfinite == np.sum(~np.isfinite(series.loss)) > 0
        warning = f"{where}the loss is not finite at {series.num_nonfinite} of 3 points"
        assert warning in path.warnings
    assert len(path.warnings) == 2


ALPHA = np.linspace(0, 1, 21)


def _drawn(rng: np.random.Generator, num_samples: int, height: float, skewed: bool) -> np.ndarray:
    """Losses [21, N] whose mean rises to `height` half way; samples vary together along α."""
    shapes = np.stack([np.sin(k * np.pi * ALPHA) for k in (1, 2, 3)])
    noise = (
        rng.exponential(size=(num_samples, 3)) - 1 if skewed else rng.normal(size=(num_samples, 3))
    )
    level = 3 * rng.exponential(size=(num_samples, 1)) + 1 + ALPHA  # the same at every α, and large
    return (level + height * shapes[0] + noise @ shapes).T


@pytest.mark.parametrize(("height", "skewed"), [(0.0, False), (0.0, True), (0.3, True)])
def test_interval_covers_the_barrier(
    height: float, skewed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the true path is flat, and the maximum is chosen from noise."""
    monkeypatch.setattr(barriers, "NUM_DRAWS", 1000)
    rng = np.random.default_rng(7)
    trials, covered, naive = 100, 0, 0
    for trial in range(trials):
        losses = _drawn(rng, 256, height, skewed)
        found = estimate_barrier(ALPHA, losses.mean(axis=1), losses, seed=trial)
        covered += found.interval[0] <= height <= found.interval[1]
        naive += abs(found.value - height) <= 1.96 * found.standard_error
    # At 95 % the count of 100 has a standard deviation of 2.2; three of them below.
    assert covered >= 95 - 6.6
    if height == 0:
        # The band is wider than ±1.96 standard errors because it must be.
        assert naive < covered


@pytest.mark.parametrize(
    ("num_samples", "quantile"), [(2, 12.7062), (3, 4.30265), (5, 2.77645), (101, 1.98397)]
)
def test_band_of_one_height_is_students(num_samples: int, quantile: float) -> None:
    """At a single α between the ends the interval is the t-test's: two-sided 95 %, from tables."""
    alpha = np.array([0.0, 0.5, 1.0])
    losses = np.zeros((3, num_samples))
    losses[1] = np.random.default_rng(1).normal(1000.0, 1.0, num_samples)
    found = estimate_barrier(alpha, losses.mean(axis=1), losses, seed=0)
    for bound, side in zip(found.interval, (-1, 1), strict=True):
        # Over 10,000 draws the quantile is good to 1 %; three of them.
        expected = side * quantile * found.standard_error
        assert bound - found.value == pytest.approx(expected, rel=0.03)


def test_interval_covers_the_barrier_of_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five samples whose losses go up and down in three ways; 83 % without Student's tails."""
    monkeypatch.setattr(barriers, "NUM_DRAWS", 1000)
    rng = np.random.default_rng(11)
    covered = 0
    for trial in range(300):
        losses = _drawn(rng, 5, 0.0, skewed=False)
        lower, upper = estimate_barrier(ALPHA, losses.mean(axis=1), losses, seed=trial).interval
        covered += lower <= 0.0 <= upper
    # At 95 % the count of 300 has a standard deviation of 3.8; three of them below.
    assert covered >= 285 - 11.4


def test_paired_standard_error() -> None:
    losses = _drawn(np.random.default_rng(3), 400, 0.3, skewed=False)
    alpha = np.array([-0.5, *ALPHA, 1.5])
    losses = np.vstack([losses[:1] + 0.2, losses, losses[-1:] + 0.4])
    errors = height_errors(alpha, losses)
    for index in (0, 5, 11, 22):
        a = alpha[index]
        d = losses[index] - (1 - a) * losses[1] - a * losses[-2]
        # 400 terms of order ten, a few cancelling digits.
        assert errors[index] == pytest.approx(d.std(ddof=1) / 20, rel=1e-12)
    assert errors[1] == errors[-2] == 0
    top = estimate_barrier(alpha, losses.mean(axis=1), losses, seed=0)
    assert top.standard_error == errors[np.flatnonzero(alpha == top.alpha)[0]]
    # The levels of samples vary with a standard deviation of 3, which unpaired errors would have.
    assert top.standard_error < 0.4 * losses.std(axis=1, ddof=1)[11] / 20


def test_band_is_the_multiplier_bootstraps() -> None:
    """Against ten thousand sums over samples with Gaussian weights, drawn one by one."""
    rng = np.random.default_rng(5)
    losses = _drawn(rng, 60, 0.3, skewed=True)
    found = estimate_barrier(ALPHA, losses.mean(axis=1), losses, seed=0)
    d = (losses - (1 - ALPHA)[:, None] * losses[0] - ALPHA[:, None] * losses[-1])[1:-1]
    centred = d - d.mean(axis=1, keepdims=True)
    errors = d.std(axis=1, ddof=1) / math.sqrt(60)
    sums = rng.normal(size=(10_000, 60)) @ centred.T / 60
    # The bootstrap's own standard deviation, of weights with variance one, divides by N.
    sums *= math.sqrt(60 / 59)
    maxima = np.abs(sums / errors).max(axis=1)
    # Studentised: with 59 degrees of freedom each deviation is over a root of χ²/59.
    c = float(np.quantile(maxima / np.sqrt(rng.chisquare(59, 10_000) / 59), 0.95))
    upper = float(np.max(d.mean(axis=1) + c * errors))
    lower = float(np.max(d.mean(axis=1) - c * errors))
    # Each quantile of 10,000 draws is uncertain by about 0.02 errors, their difference by 0.03.
    assert found.interval == pytest.approx((lower, upper), abs=4 * 0.03 * errors.max())
    assert 2.0 < c < 3.0


@pytest.mark.parametrize("strange", [math.inf, math.nan])
def test_quantile_of_draws_that_are_not_finite_is_unknown(strange: float) -> None:
    draws = torch.ones(100, dtype=torch.float64)
    # 1/S is beyond c where χ² of 5 is below 5/c²: 1.145476 for 5 % (tables).
    expected = math.sqrt(5 / 1.145476)
    for scale in (1.0, 1e300):
        found = _studentised_quantile(scale * draws, 5)
        assert found == pytest.approx(scale * expected, rel=1e-5)
    draws[:10] = strange
    assert math.isnan(_studentised_quantile(draws, 5))


def test_interval_of_what_has_no_spread_and_of_what_is_not_finite() -> None:
    alpha = np.array([0.0, 0.5, 1.0])
    same = np.array([[1.0] * 4, [3.0] * 4, [2.0] * 4])
    found = estimate_barrier(alpha, same.mean(axis=1), same, seed=0)
    assert found is not None
    assert found.value == 1.5
    rounding = rounding_allowance(same[:, 0], torch.float64, 0.0)
    interval = (1.5 - rounding, 1.5 + rounding)
    assert (found.standard_error, found.interval, found.alpha) == (0.0, interval, 0.5)
    one = estimate_barrier(alpha, same[:, 0], same[:, :1], seed=0)
    assert one is not None
    assert one.value == 1.5
    assert np.isnan([one.standard_error, *one.interval]).all()
    infinite = same.copy()
    infinite[1, 2] = np.inf
    for losses, value in ((infinite, math.inf), (infinite[[1, 0, 2]], math.nan)):
        found = estimate_barrier(alpha, losses.mean(axis=1), losses, seed=0)
        assert found is not None
        assert np.array_equal(found.value, value, equal_nan=True)
        assert np.isnan([found.standard_error, *found.interval]).all()


def test_no_barrier_without_a_point_between_the_ends() -> None:
    alpha = np.array([-1.0, 0.0, 1.0, 2.0])
    losses = np.array([[9.0, 8.0], [1.0, 2.0], [2.0, 1.0], [9.0, 9.0]])
    assert estimate_barrier(alpha, losses.mean(axis=1), losses, seed=0) is None
    with Objective(_network(), TRAIN) as objective:
        target = objective.theta + 0.1
        path = interpolate(objective, TEST, [0.0, 1.0, 2.0, 3.0], target=target)
        assert path.train.barrier is path.test.barrier is None
        (warning,) = path.warnings
        assert "no point between the two ends was measured" in warning
        assert "--num-points" in warning
        # A direction has no other end, and nothing to say.
        assert not interpolate(objective, TEST, [0.0, 1.0], direction=target).warnings


def test_one_sample_is_said_to_have_no_interval() -> None:
    for train, test in ((TRAIN.head(1), TEST), (TRAIN, TEST.head(1))):
        with Objective(_network(), train) as objective:
            path = interpolate(objective, test, [0.0, 0.5, 1.0], target=objective.theta + 0.1)
        assert path.warnings == (
            "the barrier over one sample has no interval: raise --analysis-samples",
        )
    with Objective(_network(), TRAIN.head(2)) as objective:
        path = interpolate(objective, TEST.head(2), [0.0, 0.5, 1.0], target=objective.theta + 0.1)
    assert not path.warnings


def test_equal_losses_have_no_barrier_beyond_rounding() -> None:
    """One rounding more at one α, the same for all samples: no spread says how sure that is."""
    for dtype in (torch.float32, torch.float64):
        losses = np.full((21, 8), 1.25)
        losses[10] += (ulp := torch.finfo(dtype).eps)
        found = estimate_barrier(ALPHA, losses[:, 0], losses, seed=0, dtype=dtype)
        assert found is not None
        rounding = rounding_allowance(losses[:, 0], dtype, 0.0)
        assert found.value == pytest.approx(ulp, rel=0.5)
        assert found.interval == (0.0, pytest.approx(found.value + rounding))
        assert rounding < 20 * ulp
    # Twice four roundings of the largest loss L, in units of eps·(1 + L), and once what is fast.
    allowed = rounding_allowance(np.array([1.0, 3.0, 2.0]), torch.float32, 0.125)
    assert allowed == 2 * 4 * 2.0**-23 * (1 + 3) + 0.125 * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_barriers_are_told_of_the_arithmetic_and_of_fast_paths(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the training samples points are fast and off by 1/8, on the test samples they are not."""
    told, compared = [], []

    def noted(*arrays: np.ndarray, **known: Any) -> Barrier | None:
        told.append(known)
        return estimate_barrier(*arrays, **known)

    monkeypatch.setattr(interpolation, "estimate_barrier", noted)
    monkeypatch.setattr(Evaluator, "verify", lambda _, points: compared.append(points))
    is_fast = property(lambda self: self.samples is self.objective.samples)
    monkeypatch.setattr(Evaluator, "is_fast", is_fast)
    monkeypatch.setattr(
        Evaluator, "difference", property(lambda self: 0.125 if self.is_fast else 9.0)
    )
    with Objective(_network(), TRAIN, dtype=dtype) as objective:
        test = TEST.to(objective.device, dtype)
        end = objective.theta + 0.1
        path = interpolate(objective, test, [-0.5, 0.0, 0.5, 1.0, 2.0], target=end, seed=3)
    same = {"seed": 3, "dtype": dtype, "scale": RoundingScale()}
    assert told == [
        {**same, "label": "train", "fast_path_difference": 0.125},
        {**same, "label": "test", "fast_path_difference": 0.0},
    ]
    assert compared == 2 * [[(0.0,), (-0.5,), (2.0,)]]
    assert path.fast_path_difference == 0.125
    assert not path.is_fast


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_rounding_of_heights_is_within_the_allowance(scale: float) -> None:
    """Heights in float32 by the fast path against the same in float64, also of tiny losses."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(64, 40, generator=draw)
    models = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            models.append(nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 3)))
        for parameter in models[-1].parameters():
            parameter.data.mul_(scale)
    samples = Samples(x, models[0](x).argmax(1))
    paths = []
    for dtype in (torch.float32, torch.float64):
        with Objective(copy.deepcopy(models[0]), samples, dtype=dtype) as objective:
            target = _flat(models[1]).to(dtype)
            paths.append(interpolate(objective, None, ALPHA.tolist(), target=target))
    assert "products of the first linear layer kept" in paths[0].plan
    heights = [
        path.train.loss - (1 - ALPHA) * path.train.loss[0] - ALPHA * path.train.loss[-1]
        for path in paths
    ]
    allowance = rounding_allowance(
        paths[0].train.loss, torch.float32, paths[0].fast_path_difference or 0.0
    )
    assert 0 < np.abs(heights[0] - heights[1]).max() < allowance
    # Small beside what barriers are about.
    assert allowance < 1e-5 * (1 + paths[0].train.loss.max())


@pytest.mark.parametrize("num_samples", [12, 400])
def test_both_sides_of_the_gram_matrix_draw_from_one_distribution(
    num_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is smaller, coordinates or samples, the covariances are those of the band."""
    losses = _drawn(np.random.default_rng(3), num_samples, 0.3, skewed=False)[1:-1]
    d = losses - losses.mean(axis=1, keepdims=True)
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    factor = _factor(d)
    assert factor.shape == (19, min(19, num_samples))
    # The rounding of an eigenvalue that is 0, whose root is squared in the product.
    np.testing.assert_allclose(factor @ factor.T, d @ d.T, atol=1e-13)
    found = []
    for root in (_factor, lambda d: np.linalg.cholesky(d @ d.T + 1e-12 * np.eye(len(d)))):
        monkeypatch.setattr(barriers, "_factor", root)
        found.append(_quantile(d, np.ones(19), seed=0, label="train"))
    # Each quantile of 10,000 draws is known to 1 %; three of them for the difference, times √2.
    assert found[0] == pytest.approx(found[1], rel=0.04)


def test_memory_of_many_coordinates_is_not_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barriers, "NUM_DRAWS", 1000)
    alpha = np.linspace(0, 1, 6001)
    rng = np.random.default_rng(0)
    losses = 1.0 + np.sin(np.pi * alpha)[:, None] * rng.normal(1.0, 1.0, 16)
    tracemalloc.start()
    found = estimate_barrier(alpha, losses.mean(axis=1), losses, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    # All heights rise and fall together: one degree of freedom, Student's 2.131 for 15 of them.
    assert found.interval[1] - found.value == pytest.approx(2.131 * found.standard_error, rel=0.1)
    assert peak < 6001**2  # an eighth of the matrix [n, n]


def test_draws_are_the_seeds() -> None:
    losses = _drawn(np.random.default_rng(3), 64, 0.3, skewed=False)
    intervals = [
        estimate_barrier(ALPHA, losses.mean(axis=1), losses, seed=seed, label=label).interval
        for seed, label in ((0, "train"), (0, "train"), (1, "train"), (0, "test"))
    ]
    assert intervals[0] == intervals[1]
    assert len(set(intervals)) == 3
