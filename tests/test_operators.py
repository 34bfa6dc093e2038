"""Hessian products against dense float64 twins, and the choice of keeping graphs."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import NETWORKS, dense_hessian, fit, make
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from lgo_cli import memory
from lgo_cli.curvature import networks, operators
from lgo_cli.curvature.folding import Rewritten
from lgo_cli.curvature.networks import GaussNewtonOperator, HessianOperator
from lgo_cli.curvature.operators import (
    ROUNDING_UNITS,
    DenseOperator,
    ScaledOperator,
    ShiftedOperator,
    most_asymmetry,
)
from lgo_cli.loss import LossFunction
from lgo_cli.memory import total_memory_bytes
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples
from lgo_cli.vectors import flatten

EPS = torch.finfo(torch.float32).eps
KINKED = {"relu", "convolution"}

each_network = pytest.mark.parametrize("name", list(NETWORKS))


class _OutputItself(LossFunction):
    """The output is the loss: nothing curves what is linear."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        del labels
        return outputs[:, 0]


class _Bilinear(nn.Module):
    """f = ab + c: gradients that are a parameter itself, and one that is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.tensor([x])) for x in (2.0, -3.0, 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return (self.a * self.b + self.c).expand(len(x), 1)


class _Linear(nn.Module):
    """f = Σw: no gradient needs one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.sum().expand(len(x), 1)


ZEROS = Samples(torch.zeros(16, 2), torch.zeros(16, dtype=torch.int64))


def _truth(name: str, model: nn.Module | None = None) -> Tensor:
    made, samples, loss = make(name)
    with Objective(model or made, samples, loss, dtype=torch.float64) as objective:
        return dense_hessian(objective)


def _matrix(operator: operators.Operator) -> Tensor:
    """The operator as a matrix [P, P], in float64, by P products."""
    identity = torch.eye(operator.dim, dtype=operator.dtype, device=operator.device)
    return torch.stack([operator.matvec(row) for row in identity], dim=1).double()


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


def _fitted(name: str, num_steps: int = 1500) -> nn.Module:
    """The network after so many steps of Adam that it fits its samples."""
    model, samples, loss = make(name)
    fit(model, samples, loss, num_steps)
    return model


@each_network
@pytest.mark.parametrize("memory_bytes", [0, 2**40])
def test_products_are_the_dense_hessians(name: str, memory_bytes: int) -> None:
    model, samples, loss = make(name, num_samples=12)
    # Batches of 7 and of 5: every sample must weigh the same.
    with Objective(model, samples, loss, micro_batch_size=7, dtype=torch.float64) as objective:
        expected = dense_hessian(objective)
        operator = HessianOperator(objective, memory_bytes=memory_bytes)
        assert operator.keeps_graph == (memory_bytes > 0)
        found = _matrix(operator)
        assert operator.num_matvecs == operator.dim == objective.dim
    # Float64 sums of a few hundred terms in another order: 1,000 ulps of the largest.
    assert float((found - expected).abs().max()) <= 2e-13 * max(1.0, _norm(expected))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in KINKED])
def test_products_are_differences_of_gradients(name: str) -> None:
    """Shares no second derivative with what it tests, where the twin above shares autograd's.

    It is needed: in torch 2.14 `jacrev(jacrev)`, and with it `torch.func.hessian`, is silently
    wrong through LayerNorm, by a tenth of the entries' size.
    """
    model, samples, loss = make(name)
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        v = torch.randn(objective.dim, generator=torch.Generator().manual_seed(2)).double()
        if name == "embedding with padding":
            v[:2] = 0  # its row is held fixed (see test_audit)
        v /= v.norm()
        found = HessianOperator(objective).matvec(v)
        h = 1e-4
        _, ahead = objective.loss_and_gradient(objective.theta + h * v)
        _, behind = objective.loss_and_gradient(objective.theta - h * v)
    # h²/6 = 2e-9 of a third derivative along v, itself of the order of 1, and eps/h = 2e-12.
    torch.testing.assert_close((ahead - behind) / (2 * h), found, rtol=0, atol=1e-7)


@each_network
def test_keeping_graphs_moves_no_bit(name: str) -> None:
    model, samples, loss = make(name)
    with Objective(model, samples, loss, micro_batch_size=7) as objective:
        keeps, rebuilds = (HessianOperator(objective, memory_bytes=size) for size in (2**40, 0))
        assert (keeps.keeps_graph, rebuilds.keeps_graph) == (True, False)
        draw = torch.Generator().manual_seed(2)
        for _ in range(3):  # a kept graph is as good the third time
            v = torch.randn(objective.dim, generator=draw)
            assert torch.equal(keeps.matvec(v), rebuilds.matvec(v))
        # So that bounds do not depend on it either.
        assert keeps.rounding_units == rebuilds.rounding_units


@each_network
def test_product_is_symmetric_and_linear(name: str) -> None:
    model, samples, loss = make(name)
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        operator = HessianOperator(objective)
        draw = torch.Generator().manual_seed(3)
        u, v = torch.randn(2, objective.dim, generator=draw, dtype=torch.float64)
        Hu, Hv, combined = operator.matvec(u), operator.matvec(v), operator.matvec(2 * u - v)
    # 100 ulps of the products of norms.
    scale = 2e-14 * float(Hu.norm() + Hv.norm())
    assert abs(float(u @ Hv - v @ Hu)) <= scale * float(u.norm() + v.norm())
    assert float((combined - (2 * Hu - Hv)).norm()) <= 2 * scale


def test_linear_least_squares_in_closed_form() -> None:
    samples = make("relu")[1]
    with torch.random.fork_rng():
        model = nn.Linear(12, 3, bias=False)
    with Objective(model, samples, LossFunction("squared_error"), dtype=torch.float64) as objective:
        found = _matrix(HessianOperator(objective))
    X = samples.inputs.double()
    # ½‖Wx − t‖² has the Hessian I ⊗ xxᵀ, whatever W and t are.
    expected = torch.kron(torch.eye(3, dtype=torch.float64), X.T @ X / len(X))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_gradient_that_is_a_parameter_or_a_constant() -> None:
    with Objective(_Bilinear(), ZEROS, _OutputItself()) as objective:
        found = _matrix(HessianOperator(objective))
    assert found.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]  # sums of 16 sixteenths: exact


def test_loss_without_curvature_has_zero_products() -> None:
    with Objective(_Linear(), ZEROS, _OutputItself()) as objective:
        assert not _matrix(HessianOperator(objective)).any()


@each_network
def test_float32_products_stay_within_their_allowance(name: str) -> None:
    expected = _truth(name)
    model, samples, loss = make(name)
    with Objective(model, samples, loss, micro_batch_size=7) as objective:
        operator = HessianOperator(objective)
        error = _norm(_matrix(operator).cpu() - expected)
    assert error <= operator.rounding_units * EPS * _norm(expected)


@pytest.mark.parametrize("name", ["relu", "batch norm", "convolution"])
def test_fitted_networks_keep_their_digits(name: str) -> None:
    """p(1 − p) with p near one: with the loss in float32 these miss by far more than allowed."""
    model, (_, samples, loss) = _fitted(name), make(name)
    expected = _truth(name, model)
    scale = EPS * _norm(expected)
    with Objective(model, samples, loss) as objective:
        assert objective.center.loss < 1e-3
        operator = HessianOperator(objective)
        error = _norm(_matrix(operator) - expected)
        plain = torch.stack([_plain_product(objective, row) for row in torch.eye(objective.dim)])
    assert error <= operator.rounding_units * scale
    assert _norm(plain.double() - expected) > operator.rounding_units * scale


def _plain_product(objective: Objective, v: Tensor) -> Tensor:
    """Double backward with the loss in the model's own dtype, for a single micro-batch."""
    (batch,) = objective.micro_batches()
    losses = objective.loss_function(objective.batch_outputs(batch), batch.labels)
    gradient = torch.autograd.grad(losses.mean(), objective.parameters, create_graph=True)
    return flatten(torch.autograd.grad(flatten(gradient) @ v, objective.parameters))


def test_large_logits_widen_the_allowance() -> None:
    """Their rounding moves p alike in each product: symmetric, invisible, so allowed for."""
    draw = torch.Generator().manual_seed(0)
    samples = Samples(1000 * torch.randn(64, 5, generator=draw), torch.arange(64) % 3)
    with torch.random.fork_rng():
        model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 5, generator=draw))
        model.bias.zero_()
    with Objective(model, samples, dtype=torch.float64) as objective:
        expected = dense_hessian(objective)
        outputs = model(objective.samples.inputs).detach()
        largest = float(outputs[outputs.softmax(dim=1) > 0].abs().max())  # others round nothing
    with Objective(model, samples, micro_batch_size=16) as objective:
        operator = HessianOperator(objective)
        found = _matrix(operator)
    assert operator.rounding_units == pytest.approx(ROUNDING_UNITS + largest / 2, rel=1e-5)
    error, scale = _norm(found - expected), EPS * _norm(expected)
    assert ROUNDING_UNITS * scale < error <= operator.rounding_units * scale
    assert _norm(found - found.T) < error / 10


def test_budget_is_compared_with_what_the_graphs_hold() -> None:
    model, samples, loss = make("gelu, smoothed labels", num_samples=256)
    sizes = []
    for micro_batch_size in (32, 64):
        with Objective(model, samples, loss, micro_batch_size=micro_batch_size) as objective:
            batch = next(iter(objective.micro_batches()))
            _, num_bytes = HessianOperator(objective)._measured_graph(batch)
            total = num_bytes * (256 // micro_batch_size)
            assert HessianOperator(objective, memory_bytes=total).keeps_graph
            assert not HessianOperator(objective, memory_bytes=total - 1).keeps_graph
            sizes.append(num_bytes)
    # What grows with the batch are activations: at least the hidden layer, 6 numbers a sample.
    assert sizes[1] - sizes[0] >= 32 * 6 * 4


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
def test_gradients_that_graphs_hold_are_counted(kind: type[HessianOperator]) -> None:
    samples = Samples(torch.zeros(4, 2000), torch.zeros(4, dtype=torch.int64))
    with Objective(nn.Linear(2000, 3), samples, micro_batch_size=2) as objective:
        assert kind(objective).graph_bytes >= 2 * 4 * objective.dim


def test_default_budget_is_half_of_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples, loss = make("relu")
    with Objective(model, samples, loss) as objective:
        batch = next(iter(objective.micro_batches()))
        _, num_bytes = HessianOperator(objective)._measured_graph(batch)
        for total, keeps in ((2 * num_bytes, True), (2 * num_bytes - 1, False)):
            monkeypatch.setattr(networks, "total_memory_bytes", lambda device, n=total: n)
            assert HessianOperator(objective).keeps_graph is keeps


@pytest.mark.parametrize(
    ("line", "mount", "limit", "none"),
    [
        ("0::/job/step", ".", "memory.max", "max"),
        ("4:cpu,memory:/job/step", "memory", "memory.limit_in_bytes", f"{2**63 - 4096}"),
    ],
)
def test_memory_is_the_machines_or_that_of_the_tightest_group(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    mount: str,
    limit: str,
    none: str,
) -> None:
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "CGROUP_MOUNT", tmp_path)
    device = torch.device("cpu")
    physical = total_memory_bytes(device)
    assert physical > 2**28
    (tmp_path / "own").write_text(f"9:name=systemd:/memory\n{line}\n")
    assert total_memory_bytes(device) == physical  # no such directory, as in a container
    step = tmp_path / mount / "job" / "step"
    step.mkdir(parents=True)
    for directory in (step, step.parent, tmp_path / mount):
        (directory / limit).write_text(f"{none}\n")
    assert total_memory_bytes(device) == physical
    for num_bytes, directory in ((2**22, tmp_path / mount), (2**21, step), (2**20, step.parent)):
        (directory / limit).write_text(f"{num_bytes}\n")
        assert total_memory_bytes(device) == num_bytes


@each_network
def test_leaves_no_graph(name: str) -> None:
    model, samples, loss = make(name)
    activations = []

    def note(module: nn.Module, inputs: object, output: Any) -> None:
        del module, inputs
        output = output[0] if isinstance(output, tuple) else output
        activations.append(StorageWeakRef(output.untyped_storage()))

    for module in model.modules():
        if [*module.parameters()]:  # others may put out a view of the inputs
            module.register_forward_hook(note)
    with Objective(model, samples, loss) as objective:
        activations.clear()
        operator = HessianOperator(objective, model=Rewritten(model, "as it is"))
        assert activations
        assert operator.keeps_graph
        graph = weakref.ref(operator._kept[0][0])
        assert all(parameter.grad is None for parameter in model.parameters())
        gc.disable()  # the graph goes with its operator, not whenever a collection happens
        try:
            del operator
            assert graph() is None
            assert all(activation.expired() for activation in activations)
        finally:
            gc.enable()


def test_graphs_can_be_freed_and_built_again() -> None:
    model, samples, loss = make("relu")
    with Objective(model, samples, loss) as objective:
        operator = HessianOperator(objective)
        v = torch.ones(objective.dim)
        before = operator.matvec(v)
        operator.release()
        assert torch.equal(operator.matvec(v), before)


@each_network
def test_gradient_is_the_objectives(name: str) -> None:
    model, samples, loss = make(name)
    with Objective(model, samples, loss, micro_batch_size=7, dtype=torch.float64) as objective:
        _, expected = objective.loss_and_gradient()
        for memory_bytes in (0, 2**40):
            found = HessianOperator(objective, memory_bytes=memory_bytes).gradient()
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_shifted_and_scaled_operators_are_their_matrices() -> None:
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 5, generator=draw, dtype=torch.float64)
    matrix = matrix + matrix.T
    scale = torch.rand(5, generator=draw, dtype=torch.float64)
    shifted = ShiftedOperator(DenseOperator(matrix), 0.3)
    scaled = ScaledOperator(shifted, scale)
    identity = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(_matrix(shifted), matrix + 0.3 * identity)
    expected = torch.diag(scale) @ (matrix + 0.3 * identity) @ torch.diag(scale)
    torch.testing.assert_close(_matrix(scaled), expected)
    assert scaled.num_matvecs == 5
    assert shifted.num_matvecs == 10


def test_dense_operator_counts_and_refuses() -> None:
    operator = DenseOperator(torch.diag(torch.tensor([1.0, 2.0])))
    assert (operator.dim, operator.dtype, operator.num_matvecs) == (2, torch.float32, 0)
    assert operator.matvec(torch.ones(2)).tolist() == [1.0, 2.0]
    assert operator.num_matvecs == 1
    for shape in ((2, 3), (4,)):
        with pytest.raises(ValueError, match="square"):
            DenseOperator(torch.zeros(shape))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_product_on_a_gpu() -> None:
    expected = _truth("relu")
    model, samples, loss = make("relu")
    with Objective(model.cuda(), samples, loss) as objective:
        operator = HessianOperator(objective)
        error = _norm(_matrix(operator).cpu() - expected)
    assert error <= operator.rounding_units * EPS * _norm(expected)


@pytest.mark.parametrize("fill", [-1e9, -float("inf")])
def test_masked_classes_round_nothing(fill: float) -> None:
    class Masked(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return F.pad(super().forward(x), (0, 2), value=fill)

    model, samples, loss = make("relu")
    expected = []
    for candidate in (model, Masked(model)):
        with Objective(candidate, samples, loss) as objective:
            expected.append(HessianOperator(objective).rounding_units)
    assert expected[0] == expected[1] < 1e3


def test_a_machine_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sysconf")  # Windows has none
    monkeypatch.setattr(memory, "CGROUPS", Path("nowhere"))
    assert total_memory_bytes(torch.device("cpu")) == memory.UNKNOWN_MEMORY


def test_rounding_that_was_measured_is_passed_on() -> None:
    inner = DenseOperator(torch.eye(3))
    scale = torch.ones(3)
    assert ShiftedOperator(inner, 1.0).rounding_units == ROUNDING_UNITS
    inner.measured_rounding = 500.0
    assert ShiftedOperator(inner, 1.0).rounding_units == 500
    assert ScaledOperator(inner, scale).rounding_units == 502  # two products more
    inner.measured_rounding = 1e5
    assert most_asymmetry(inner) == pytest.approx(1e5 * EPS)
    assert most_asymmetry(DenseOperator(torch.eye(3).double())) == pytest.approx(1e3 * EPS)
