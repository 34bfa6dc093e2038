"""Losses along a line, against closed forms and a naive loop."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgo_cli.config import linspace
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.landscape.interpolation import alpha_grid, barrier, interpolate
from lgo_cli.objective import LossFunction, Objective, Samples

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
    np.testing.assert_allclose(path.loss, expected, rtol=1e-12)
    assert path.barrier is None
    assert path.loss_at_end == path.loss[-1]
    assert not path.warnings
    # Equidistant points of a parabola have one second difference, the curvature times h².
    np.testing.assert_allclose(np.diff(path.loss, 2), curvature / 16, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_the_models_to_the_bit(dtype: torch.dtype) -> None:
    here, there = _network(1), _network(2)
    target = _flat(there).to(dtype)
    with Objective(here, TRAIN, dtype=dtype) as objective:
        test = TEST.to(objective.device, dtype)
        path = interpolate(objective, test, [-0.5, 0.0, 0.3, 1.0, 1.25], target=target)
        start, at_target = objective.evaluate(), objective.loss(target)
        assert path.loss[1] == path.loss_at_start == objective.center.loss == start.loss
        assert path.loss[3] == path.loss_at_end == at_target
        assert path.test_loss[1] == objective.evaluate(test).loss
        with objective.at(target):
            assert path.test_loss[3] == objective.evaluate(test).loss
        assert np.array_equal(path.direction, (target - objective.theta).numpy())
    assert path.num_evaluations == 10
    assert path.barrier == barrier(path.alpha, path.loss)


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
            (TRAIN, path.loss, path.standard_error, path.accuracy),
            (TEST, path.test_loss, path.test_standard_error, path.test_accuracy),
        ):
            with torch.no_grad():
                outputs = twin(samples.inputs)
            losses = F.cross_entropy(outputs, samples.labels, reduction="none").double()
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
    assert np.isnan([path.test_loss, path.test_standard_error, path.test_accuracy]).all()
    assert np.isfinite(path.loss).all()
    assert path.num_evaluations == 2


def test_target_and_direction_exclude_each_other() -> None:
    with Objective(_network(), TRAIN) as objective:
        for both in (None, objective.theta):
            with pytest.raises(TypeError, match="its target or by its direction"):
                interpolate(objective, None, [0.0, 1.0], target=both, direction=both)


def test_barrier_is_above_the_line_between_the_ends() -> None:
    alpha = np.array([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0])
    # The line at 0.25 and 0.5 is 1.5 and 2; what lies outside of [0, 1] does not count.
    assert barrier(alpha, np.array([99.0, 1.0, 2.0, 2.75, 3.0, 99.0])) == 0.75
    assert barrier(alpha, np.array([0.0, 1.0, 1.2, 1.5, 3.0, 0.0])) == 0.0
    assert barrier(alpha, np.array([0.0, 3.0, 2.5, 2.0, 1.0, 0.0])) == 0.0
    assert barrier(np.array([0.0, 1.0]), np.array([0.1, 0.3])) == 0.0


def test_barrier_of_losses_that_are_not_finite() -> None:
    alpha = np.array([0.0, 0.5, 1.0])
    assert barrier(alpha, np.array([1.0, np.inf, 2.0])) == math.inf
    assert math.isnan(barrier(alpha, np.array([1.0, np.nan, 2.0])))
    assert math.isnan(barrier(alpha, np.array([1.0, 1.5, np.inf])))
    assert math.isnan(barrier(alpha, np.array([1.0, 1.5, np.nan])))
    # Outside of [0, 1] they do not matter.
    assert barrier(np.array([-1.0, 0.0, 1.0]), np.array([np.nan, 1.0, 2.0])) == 0.0


def test_points_that_are_not_finite_stay_so() -> None:
    with Objective(_network(), TRAIN) as objective:
        direction = torch.zeros(objective.dim)
        direction[0] = 1e38
        path = interpolate(objective, TEST, [0.0, 1.0, 1e3], direction=direction)
    assert math.isfinite(path.loss[0])
    assert not math.isfinite(path.loss[2])
    assert not math.isfinite(path.loss_at_end)
    num_nonfinite = int(np.sum(~np.isfinite(path.loss)))
    assert path.warnings == (f"the loss is not finite at {num_nonfinite} of 3 points",)
