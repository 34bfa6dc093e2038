"""Convexity maps against closed forms and a dense Hessian at each cell."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import dense_hessian, fit, make
from torch import Tensor, nn

from lgo_cli.config import BatchNormPolicy
from lgo_cli.curvature.audit import Rounding
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.landscape import convexity
from lgo_cli.landscape.batchnorm import BatchNorm
from lgo_cli.landscape.convexity import Convexity, Finished, convexity_map
from lgo_cli.landscape.directions import random_direction
from lgo_cli.landscape.grids import linspace
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples
from lgo_cli.seeding import standard_normal

EXACT = 1e-12
"""A few hundred float64 operations in another order."""


def _directions(dim: int, scale: float = 1.0) -> Tensor:
    return scale * torch.stack([standard_normal(dim, 0, "test", index) for index in range(2)])


class Product(nn.Module):
    """f = a·b, of which ½(f − 1)² has the Hessian [[b², 2ab − 1], [2ab − 1, a²]]."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor([0.5, 1.5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.factors.prod() * x


def test_two_factors_in_closed_form() -> None:
    samples = Samples(torch.ones(3, 1), torch.zeros(3, dtype=torch.int64))
    x, y = linspace((-1.0, 1.0), 5), linspace((-2.0, 0.5), 3)
    with Objective(
        Product(), samples, LossFunction("squared_error"), dtype=torch.float64
    ) as objective:
        found = convexity_map(objective, torch.eye(2, dtype=torch.float64), x, y)
        assert objective.evaluate() == objective.center
    a, b = np.meshgrid(0.5 + np.array(x), 1.5 + np.array(y))
    middle, off = (a**2 + b**2) / 2, 2 * a * b - 1
    radius = np.hypot((b**2 - a**2) / 2, off)
    assert found.loss.shape == found.ratio.shape == (3, 5)
    np.testing.assert_allclose(found.loss, 0.5 * (a * b - 1) ** 2, atol=EXACT)
    np.testing.assert_allclose(found.largest, middle + radius, atol=EXACT)
    np.testing.assert_allclose(found.smallest, middle - radius, atol=EXACT)
    np.testing.assert_allclose(found.ratio, abs((middle - radius) / (middle + radius)), atol=EXACT)
    # Both kinds of point are there: convex cells, and the saddle of a = b = 0 among others.
    assert (found.smallest > 0.01).any()
    assert (found.smallest < -0.1).any()
    assert found.converged.all()
    assert (found.num_matvecs <= 2).all()
    assert found.warnings == found.complaints == ()


def test_linear_network_has_one_hessian_everywhere() -> None:
    """XᵀX/N for each class; its extreme eigenvalues are repeated, one copy of each is found."""
    model, samples, loss = make("linear, squared error")
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        found = convexity_map(
            objective, _directions(objective.dim), linspace((-1.0, 1.0), 3), [0.0, 4.0], rtol=1e-6
        )
    rows = torch.cat([samples.inputs, torch.ones(len(samples), 1)], dim=1).double()
    values = torch.linalg.eigvalsh(rows.T @ rows / len(samples)).numpy()
    np.testing.assert_allclose(found.largest, values[-1], rtol=1e-6)
    np.testing.assert_allclose(found.smallest, values[0], atol=1e-7 * values[-1])
    assert (found.smallest > 0).all()
    assert np.ptp(found.loss) > 1


def _dense(
    model: nn.Module, samples: Samples, loss: LossFunction, displacement: Tensor,
    policy: BatchNormPolicy,
) -> Tensor:  # fmt: skip
    """Eigenvalues at a point displaced from the model's, of a model that was built there."""
    moved = copy.deepcopy(model).double()
    start = nn.utils.parameters_to_vector(moved.parameters()).detach()
    with torch.no_grad():
        nn.utils.vector_to_parameters(start + displacement, moved.parameters())
    with (
        Objective(moved, samples, loss, dtype=torch.float64) as objective,
        BatchNorm(objective, policy).at(),
    ):
        return torch.linalg.eigvalsh(dense_hessian(objective))


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("gelu, smoothed labels", "frozen"),
        ("attention and layer norm", "frozen"),
        ("convolution", "frozen"),
        ("convolution", "recompute"),
        ("batch norm", "recompute"),
        ("batch norm", "batch"),
    ],
)
def test_dense_twin_at_each_cell(name: str, policy: BatchNormPolicy) -> None:
    model, samples, loss = make(name)
    x, y = linspace((-0.5, 0.5), 3), linspace((0.0, 0.4), 2)
    rtol = 1e-4
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        directions = _directions(objective.dim)
        batchnorm = None if policy == "frozen" else BatchNorm(objective, policy)
        found = convexity_map(objective, directions, x, y, rtol=rtol, batchnorm=batchnorm)
        assert objective.evaluate() == objective.center
    assert found.converged.all()
    for row, y_i in enumerate(y):
        for column, x_i in enumerate(x):
            displacement = x_i * directions[0] + y_i * directions[1]
            values = _dense(model, samples, loss, displacement, policy)
            scale = float(values.abs().max())
            for end, own, bound in (
                (-1, found.largest, found.largest_residual_bound),
                (0, found.smallest, found.smallest_residual_bound),
            ):
                # The tolerance is on the error estimate, the bound holds for some eigenvalue.
                assert abs(own[row, column] - float(values[end])) <= rtol * scale
                assert float((values - own[row, column]).abs().min()) <= bound[row, column]
            ratio = abs(float(values[0] / values[-1]))
            assert abs(found.ratio[row, column] - ratio) <= rtol * (1 + ratio) * 1.01


@pytest.mark.parametrize("num_steps", [200, 400])
def test_bounds_hold_at_each_cell_in_float32(num_steps: int) -> None:
    """Attention rounds within itself, and more the larger its scores: at each cell otherwise."""
    model, samples, loss = make("attention and layer norm")
    fit(model, samples, loss, num_steps)
    x = [0.0, 1.0, 2.0, 4.0]
    with Objective(model, samples, loss) as objective:
        directions = torch.stack(
            [random_direction(objective, 0, "test", axis, normalization="filter") for axis in "xy"]
        )
        found = convexity_map(objective, directions, x, [0.0, 0.5])
        assert found.warnings == ()
        for row, y_i in enumerate(found.y):
            for column, x_i in enumerate(x):
                # The very point: where scores are large, half an ulp of weights moves eigenvalues.
                objective.displace((x_i, directions[0]), (y_i, directions[1]))
                values = _dense(model, samples, loss, torch.zeros(objective.dim), "frozen")
                for own, bound in (
                    (found.largest, found.largest_residual_bound),
                    (found.smallest, found.smallest_residual_bound),
                ):
                    distance = float((values - own[row, column]).abs().min())
                    assert distance <= bound[row, column], (x_i, y_i)


def test_rounding_by_statistics_of_small_batches() -> None:
    """A thirty-second of a micro-batch would be no sample, and one has no variance."""
    model, samples, loss = make("batch norm")
    with Objective(model, samples, loss, micro_batch_size=16) as objective:
        batchnorm = BatchNorm(objective, "batch")
        found = convexity_map(
            objective, _directions(objective.dim, 0.1), [0.0, 1.0], [0.0], batchnorm=batchnorm
        )
        assert objective.evaluate() == objective.center
    assert found.converged.all()
    assert found.warnings == found.complaints == ()


def test_rounding_that_cannot_be_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _map([0.0], [0.0])
    unmeasured = Rounding(None, None, "the model does not run in float64")
    monkeypatch.setattr(convexity, "measure_rounding", lambda *_, **__: unmeasured)
    found = _map([0.0], [0.0])
    assert found.converged.all()
    assert (found.largest_residual_bound <= plain.largest_residual_bound).all()
    assert found.warnings == (
        "residual bounds at 1 of 1 cells of the convexity map allow for the rounding of outputs "
        "only: the model does not run in float64",
    )


def _trained() -> tuple[nn.Module, Samples, LossFunction]:
    draw = torch.Generator().manual_seed(0)
    samples = Samples(
        torch.randn(128, 20, generator=draw), torch.randint(0, 5, (128,), generator=draw)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 5))
        loss = LossFunction()
        fit(model, samples, loss, 30)
    return model, samples, loss


def _map(x: list[float], y: list[float], **options: Any) -> Convexity:
    model, samples, loss = _trained()
    with Objective(model, samples, loss) as objective:
        return convexity_map(objective, _directions(objective.dim, 0.1), x, y, **options)


def test_warm_starts_save_products_and_change_no_result() -> None:
    x, y = linspace((-1.0, 1.0), 5), linspace((-1.0, 1.0), 4)
    warm = _map(x, y)
    cold = [[_map([x_i], [y_i]) for x_i in x] for y_i in y]
    spent = sum(int(cell.num_matvecs.sum()) for row in cold for cell in row)
    assert warm.num_matvecs[0, 0] == cold[0][0].num_matvecs[0, 0]
    assert warm.num_matvecs.sum() < 0.9 * spent
    ratio = np.array([[float(cell.ratio[0, 0]) for cell in row] for row in cold])
    assert np.abs(warm.ratio - ratio).max() < 1e-2  # the tolerance
    assert warm.converged.all()


def test_same_again_to_the_bit() -> None:
    first, second = (_map([-1.0, 0.0, 1.0], [0.0, 0.5]) for _ in range(2))
    assert np.array_equal(first.largest, second.largest)
    assert np.array_equal(first.smallest, second.smallest)
    assert np.array_equal(first.num_matvecs, second.num_matvecs)


def _same(one: Convexity, other: Convexity) -> None:
    for name, values in vars(one).items():
        np.testing.assert_array_equal(values, getattr(other, name), err_msg=name)


@pytest.mark.parametrize("num_done", [1, 4, 6])
def test_goes_on_behind_what_is_finished_to_the_same_bits(num_done: int) -> None:
    """Each cell begins from the last one's eigenvectors, which therefore have to be kept."""
    x, y = linspace((-1.0, 1.0), 3), [0.0, 0.5]
    kept: list[Finished] = []
    whole = _map(x, y, keep=kept.append)
    assert [len(finished.cells) for finished in kept] == [1, 2, 3, 4, 5, 6]
    assert kept[-1].warm_start is None
    again: list[Finished] = []
    _same(_map(x, y, finished=kept[num_done - 1], keep=again.append), whole)
    assert len(again) == 6 - num_done
    for one, other in zip(again, kept[num_done:], strict=True):
        np.testing.assert_array_equal(one.cells, other.cells)
    if num_done == 4:
        cold = _map(x, y, finished=Finished(kept[3].cells))
        assert (cold.num_matvecs != whole.num_matvecs).any()


def test_memory_moves_no_bit_of_what_is_kept() -> None:
    """So that a map may go on with another budget, which the key of what is kept leaves out."""
    x, y = linspace((-1.0, 1.0), 3), [0.0, 0.5]
    kept: list[Finished] = []
    whole = _map(x, y, memory_bytes=2**40)
    _same(_map(x, y, memory_bytes=0, keep=kept.append), whole)
    _same(_map(x, y, memory_bytes=2**40, finished=kept[2]), whole)


def test_cells_that_are_not_finite_are_nan_and_spoil_no_other() -> None:
    model, samples, loss = _trained()
    with Objective(model, samples, loss) as objective:
        directions = _directions(objective.dim, 0.1)
        directions[0] = 0.0
        directions[0, -1] = 1e38  # a bias of the outputs
        found = convexity_map(objective, directions, [-1e3, 0.0, 1e3], [0.0, 1.0, 2.0])
        alone = convexity_map(objective, directions, [0.0], [0.0, 1.0, 2.0])
    missing = np.array([[True, False, True]] * 3)
    assert np.array_equal(~np.isfinite(found.loss), missing)
    for values in (found.largest, found.smallest, found.ratio, found.ratio_error):
        assert np.array_equal(np.isnan(values), missing)
    assert np.array_equal(found.largest[:, 1:2], alone.largest)
    assert (found.num_matvecs[missing] == 0).all()
    assert not found.converged[missing].any()
    assert found.warnings == ()
    assert found.complaints == ("the loss is not finite at 6 of 9 cells of the convexity map",)


def test_products_that_overflow_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HessianOperator, "_product", lambda self, v: v * math.inf)
    found = _map([0.0], [0.0])
    assert np.isfinite(found.loss).all()
    assert np.isnan(found.ratio).all()
    assert found.num_matvecs.sum() == 1
    assert found.complaints == (
        "at 1 cells of the convexity map the loss is finite and products with its Hessian are not",
    )


def test_cells_that_did_not_converge_are_marked() -> None:
    """No float32 product is so good."""
    found = _map([0.0, 0.1], [0.0], rtol=1e-9)
    assert not found.converged.any()
    assert np.isfinite(found.ratio).all()
    assert found.complaints == (
        "at 2 of 2 cells of the convexity map the eigenvalues did not converge: "
        "convexity_ratio_error says how far off they may be; --dtype float64 rounds less",
    )


def test_loss_without_curvature_has_no_ratio() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x + 0.0 * self.weight.sum()

    samples = Samples(torch.randn(5, 2, generator=torch.Generator()), torch.zeros(5).long())
    with Objective(Constant(), samples) as objective:
        found = convexity_map(objective, _directions(4), [0.0, 1.0], [0.0])
    assert (found.largest == 0).all()
    assert np.isnan(found.ratio).all()


def test_error_of_a_ratio_is_of_first_order_in_both() -> None:
    """|λmin| = 2 ± 0.1 over λmax = 4 ± 0.2: (0.1 + 0.5·0.2) / 4."""
    ends = {"largest": np.array([4.0, 0.0]), "ratio": np.array([0.5, math.nan])}
    errors = {"largest_error_estimate": 0.2, "smallest_error_estimate": 0.1}
    found = Convexity.ratio_error.fget(SimpleNamespace(**ends, **errors))
    np.testing.assert_allclose(found, [0.05, math.nan])


def test_each_number_of_a_finished_cell_has_its_place() -> None:
    """Of a map that is all done, in serpentine order: nothing is computed."""
    cells = np.arange(60.0).reshape(6, 10)
    cells[:, 7] = [1, 0, 1, 1, 0, 1]
    cells[[1, 4], 9] = cells[4, 1] = math.nan
    model, samples, loss = make("relu")
    with Objective(model, samples, loss) as objective:
        directions = torch.eye(objective.dim)[:2]
        found = convexity_map(
            objective, directions, [0.0, 1.0, 2.0], [0.0, 1.0], finished=Finished(cells)
        )
    expected = cells[[[0, 1, 2], [5, 4, 3]]]
    names = (
        "loss", "largest", "smallest", "largest_residual_bound", "smallest_residual_bound",
        "largest_error_estimate", "smallest_error_estimate", "converged", "num_matvecs",
    )  # fmt: skip
    for number, name in enumerate(names):
        np.testing.assert_array_equal(getattr(found, name), expected[..., number], name)
    # The fifth has no eigenvalues, and so neither bounds nor convergence to speak of.
    (warning,) = found.warnings
    assert warning.startswith("residual bounds at 1 of 6 cells of the convexity map allow for")
    not_finite, unconverged = found.complaints
    assert not_finite.startswith("at 1 cells of the convexity map the loss is finite and products")
    assert unconverged.startswith("at 1 of 6 cells of the convexity map the eigenvalues did not")
