"""On a GPU: where tensors lie, and how often the CPU waits for it, as a pretended one shows."""

from __future__ import annotations

import copy

import pytest
import torch
from image_network import images, network
from pretend_gpu import DEVICE, OnGPU, pretended
from small_networks import NETWORKS, make
from test_training import RECIPE

from lgo_cli.curvature.lanczos import Lanczos
from lgo_cli.curvature.networks import OPERATORS
from lgo_cli.curvature.trace import estimate_trace
from lgo_cli.landscape.evaluator import Evaluator
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.seeding import standard_normal
from lgo_cli.training.loop import Training


def test_the_pretended_device_refuses_and_counts() -> None:
    with pretended() as waits:
        a = torch.arange(3.0).to(DEVICE)
        assert isinstance(a * 2, OnGPU)
        assert waits == ["aten::_to_copy"]
        with pytest.raises(RuntimeError, match="on two devices"):
            a + torch.ones(3)
        waits.clear()
        assert float(a.sum()) == 3.0
        assert a.tolist() == [0.0, 1.0, 2.0]
        a[a > 1] = 5.0
        assert len(waits) == 3


@pytest.mark.parametrize(
    ("name", "operator"),
    [(name, "hessian") for name in NETWORKS]
    + [("convolution", operator) for operator in OPERATORS if operator != "hessian"],
)
def test_a_lanczos_step_waits_once(name: str, operator: str) -> None:
    """And a product not at all; the numbers are those of the CPU."""
    model, samples, loss = make(name, num_samples=24)  # a micro-batch and a half
    found = []
    for device in (torch.device("cpu"), DEVICE):
        with pretended() as waits:
            there = copy.deepcopy(model).to(device)
            on_device = samples.to(device, torch.float32)
            with Objective(there, on_device, loss, micro_batch_size=16) as objective:
                matrix = OPERATORS[operator](objective)
                start = standard_normal(matrix.dim, 0, "start").to(device)
                matrix.matvec(start)
                waits.clear()
                matrix.matvec(start)
                assert not waits
                process = Lanczos(matrix, start)
                process.step()
                waits.clear()
                for _ in range(3):
                    process.step()
                assert len(waits) == (3 if device == DEVICE else 0)
                found.append(torch.from_numpy(process.projected))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4 * float(found[0].abs().max()))


def test_a_probe_of_the_trace_waits_for_its_signs_and_for_its_numbers() -> None:
    model, samples, loss = make("relu")
    spent = []
    with pretended() as waits:
        on_device = samples.to(DEVICE, torch.float32)
        with Objective(model.to(DEVICE), on_device, loss) as objective:
            matrix = OPERATORS["hessian"](objective)
            start = standard_normal(matrix.dim, 0, "start").to(DEVICE)
            for total in (10, 20):
                process = Lanczos(matrix, start)
                for _ in range(2):
                    process.step()
                waits.clear()
                estimate_trace(process, rtol=0.0, num_total=total, max_basis=2)
                spent.append(len(waits))
    assert spent[1] - spent[0] == 2 * 10


def test_a_cell_waits_once() -> None:
    losses = []
    points = [(0.0, 0.0), (0.3, -0.2), (-1.0, 1.0), (0.5, 0.5)]
    for device in (torch.device("cpu"), DEVICE):
        with pretended() as waits:
            objective = Objective(
                network().to(device),
                images().to(device, torch.float32),
                LossFunction("cross_entropy"),
                micro_batch_size=16,
            )
            with objective:
                drawn = [standard_normal(objective.dim, 3, "test", i) for i in range(2)]
                directions = 0.3 * torch.stack(drawn).to(device)
                evaluator = Evaluator(objective, directions)
                assert evaluator.plan.startswith("1 batch norm folded into 1 convolution")
                evaluator(0.1, 0.1)
                waits.clear()
                losses.append([evaluator(*point).loss for point in points])
                assert len(waits) == (len(points) if device == DEVICE else 0)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_a_step_of_training_does_not_wait(augment: str) -> None:
    spent, rows = [], []
    for device, batch_size in ((torch.device("cpu"), 8), (DEVICE, 8), (DEVICE, 40)):
        recipe = RECIPE.model_copy(
            update={"augment": augment, "epochs": 1, "batch_size": batch_size}
        )
        with pretended() as waits:
            samples = images().to(device, torch.float32)
            training = Training(network().to(device), samples, samples, recipe)
            training.run()
            spent.append(len(waits))
            rows.append(training.rows[-1].train_loss)
    assert spent[1] == spent[2]  # five steps, or one
    assert rows[1] == pytest.approx(rows[0], rel=1e-4)
