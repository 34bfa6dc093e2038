"""What the commands print against the truth: a dense float64 Hessian and naive loops.

One trained MLP of 2,778 parameters on the real digits, analysed through the command line's own
files, as a reader of them would check.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from lgo_cli.config import ContourConfig, Execution, HessianConfig, InterpConfig, TrainConfig
from lgo_cli.data.loading import load_dataset
from lgo_cli.models.building import build_model
from lgo_cli.runs import execute

SAMPLES = 256
HIDDEN = {"hidden": [32, 16]}
ROUNDING = 1e-15
"""Of a loss in float64 of the same outputs: sums in another order."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("truth") / "run"
    train = TrainConfig(dataset="digits", model_arg=HIDDEN, epochs=3)
    execute(train, execution=Execution(out=out))
    execute(HessianConfig(analysis_samples=SAMPLES, trace=True, density=True), out)
    execute(InterpConfig(analysis_samples=SAMPLES, num_points=21), out)
    execute(ContourConfig(analysis_samples=SAMPLES, resolution="21x11"), out)
    return out


def _results(run: Path, step: str) -> dict[str, Any]:
    return dict(json.loads((run / f"{step}.json").read_text())["results"])


def _arrays(run: Path, step: str) -> dict[str, Any]:
    with np.load(run / f"{step}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model(run: Path) -> nn.Module:
    """The trained module, from the plain state_dict and without lgo's objective."""
    module = build_model("mlp", HIDDEN, (1, 8, 8), 10, seed=0)
    module.load_state_dict(torch.load(run / "model.pth", weights_only=True))
    return module.eval()


@pytest.fixture(scope="module")
def data() -> dict[str, tuple[Tensor, Tensor]]:
    digits = load_dataset("digits", {}, Path("nowhere"))
    return {
        "train": (digits.x_train[:SAMPLES], digits.y_train[:SAMPLES]),
        "test": (digits.x_test[:SAMPLES], digits.y_test[:SAMPLES]),
    }


@pytest.fixture(scope="module")
def dense(model: nn.Module, data: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    """The Hessian [P, P] in float64, by reverse over reverse on a flat vector."""
    twin = copy.deepcopy(model).double()
    named = dict(twin.named_parameters())
    sizes = [parameter.numel() for parameter in named.values()]
    x, y = data["train"][0].double(), data["train"][1]

    def loss(theta: Tensor) -> Tensor:
        pieces = zip(named.items(), theta.split(sizes), strict=True)
        parameters = {name: piece.view_as(p) for (name, p), piece in pieces}
        return F.cross_entropy(functional_call(twin, parameters, (x,)), y)

    theta = torch.cat([parameter.detach().flatten() for parameter in named.values()])
    assert theta.numel() == 2778
    matrix = jacrev(grad(loss), chunk_size=256)(theta).detach()
    return (matrix + matrix.T) / 2


def test_eigenvalues_lie_within_their_printed_bounds(run: Path, dense: Tensor) -> None:
    results = _results(run, "hessian")
    assert results["converged"]
    assert len(results["largest"]) == 10
    truth = torch.linalg.eigvalsh(dense)
    pairs = [
        *zip(results["largest"], truth.flip(0), strict=False),
        (results["smallest"][0], truth[0]),
    ]
    for found, true in pairs:
        error = abs(found["value"] - float(true))
        assert error <= found["residual_bound"]
        assert error <= 1e-3 * abs(float(true))
        assert error <= found["error_estimate"]
        # The estimate is worth something: not above what the run was asked to stop at.
        floor = 0.01 * float(truth.abs().max())
        assert found["error_estimate"] <= 1.001e-3 * max(abs(float(true)), floor)
        assert found["error_estimate"] <= found["residual_bound"]


def test_eigenvectors_are_the_hessians(run: Path, dense: Tensor) -> None:
    arrays = _arrays(run, "hessian")
    vectors = torch.from_numpy(arrays["eigenvectors"]).double()
    values = torch.from_numpy(np.r_[arrays["largest"], arrays["smallest"]])
    bounds = np.r_[arrays["largest_residual_bounds"], arrays["smallest_residual_bounds"]]
    residuals = torch.linalg.norm(vectors @ dense - values[:, None] * vectors, dim=1)
    assert (residuals.numpy() <= bounds).all()
    # Unit norm and orthogonal to float32's rounding of 2,778 entries.
    gram = vectors @ vectors.T
    torch.testing.assert_close(gram, torch.eye(11, dtype=torch.float64), rtol=0, atol=1e-5)
    assert (vectors.gather(1, vectors.abs().argmax(1, keepdim=True)) > 0).all()


def test_trace_and_density_agree_within_their_errors(run: Path, dense: Tensor) -> None:
    results = _results(run, "hessian")
    trace = results["trace"]
    truth = float(dense.trace())
    assert (trace["method"], trace["standard_error"]) == ("exact", 0.0)
    assert abs(trace["value"] - truth) <= trace["rounding_allowance"] <= 1e-4 * truth
    estimate = trace["estimate"]
    assert abs(estimate["value"] - truth) <= 3 * estimate["standard_error"]
    norm = results["frobenius_norm"]
    expected = float(torch.linalg.matrix_norm(dense))
    assert 0 < norm["rounding_allowance"] <= 1e-4 * expected
    error = 3 * norm["standard_error"] + norm["rounding_allowance"]
    assert abs(norm["value"] - expected) <= error
    density = results["density"]
    mean = float(dense.trace()) / len(dense)
    assert abs(density["mean"] - mean) <= density["wasserstein_bound"]
    arrays = _arrays(run, "hessian")
    assert arrays["density_weights"].sum() == pytest.approx(1.0, rel=1e-12)


def _loss_at(model: nn.Module, theta: Tensor, x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Loss, standard error and accuracy at a flat vector, sample by sample in float64."""
    twin = copy.deepcopy(model)
    start = 0
    with torch.no_grad():
        for parameter in twin.parameters():
            size = parameter.numel()
            parameter.copy_(theta[start : start + size].view_as(parameter))
            start += size
        outputs = twin.double()(x.double())
        losses = F.cross_entropy(outputs, y, reduction="none")
    accuracy = float((outputs.argmax(1) == y).double().mean())
    return float(losses.mean()), float(losses.std()) / len(y) ** 0.5, accuracy


def _center(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_cells_of_the_contour(
    run: Path, model: nn.Module, data: dict[str, tuple[Tensor, Tensor]]
) -> None:
    arrays = _arrays(run, "contour")
    assert arrays["loss"].shape == (11, 21)
    first, second = torch.from_numpy(arrays["directions"])
    center = _center(model)
    for cell in np.random.default_rng(0).choice(arrays["loss"].size, 30, replace=False):
        i, j = divmod(int(cell), 21)
        theta = center + float(arrays["x"][j]) * first + float(arrays["y"][i]) * second
        loss, error, _ = _loss_at(model, theta, *data["train"])
        assert arrays["loss"][i, j] == pytest.approx(loss, rel=1e-5)
        assert arrays["standard_error"][i, j] == pytest.approx(error, rel=1e-4)


def test_points_of_the_line_on_both_splits(
    run: Path, model: nn.Module, data: dict[str, tuple[Tensor, Tensor]]
) -> None:
    arrays = _arrays(run, "interp")
    direction = torch.from_numpy(arrays["direction"])
    center = _center(model)
    for index in np.linspace(0, len(arrays["alpha"]) - 1, 10).astype(int):
        theta = center + float(arrays["alpha"][index]) * direction
        for split, prefix in (("train", ""), ("test", "test_")):
            loss, error, accuracy = _loss_at(model, theta, *data[split])
            assert arrays[f"{prefix}loss"][index] == pytest.approx(loss, rel=1e-5)
            assert arrays[f"{prefix}standard_error"][index] == pytest.approx(error, rel=1e-4)
            # One sample on the fence may fall to the other side in float32.
            assert abs(arrays[f"{prefix}accuracy"][index] - accuracy) <= 1 / SAMPLES


def test_ends_of_the_line_are_the_checkpoints(
    run: Path, model: nn.Module, data: dict[str, tuple[Tensor, Tensor]]
) -> None:
    results, arrays = _results(run, "interp"), _arrays(run, "interp")
    initial = copy.deepcopy(model)
    initial.load_state_dict(torch.load(run / "init.pth", weights_only=True))
    for module, key, alpha in ((model, "loss_at_start", 0.0), (initial, "loss_at_end", 1.0)):
        assert results[key] == pytest.approx(_plain_loss(module, *data["train"]), rel=ROUNDING)
        assert arrays["loss"][arrays["alpha"] == alpha] == results[key]
    inside = (arrays["alpha"] >= 0) & (arrays["alpha"] <= 1)
    a, losses = arrays["alpha"][inside], arrays["loss"][inside]
    assert results["barrier"] == max(
        0, (losses - ((1 - a) * losses[0] + a * losses[-1]))[1:-1].max()
    )


def _plain_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The untouched model's mean loss, of one batch's outputs in float64."""
    with torch.no_grad():
        return float(F.cross_entropy(model(x).double(), y, reduction="none").sum()) / len(y)


def test_centre_is_the_untouched_model_to_the_bit(
    run: Path, model: nn.Module, data: dict[str, tuple[Tensor, Tensor]]
) -> None:
    contour, arrays = _results(run, "contour"), _arrays(run, "contour")
    expected = contour["loss_at_center"]
    assert expected == pytest.approx(_plain_loss(model, *data["train"]), rel=ROUNDING)
    assert arrays["loss"][5, 10] == expected
    assert (arrays["x"][10], arrays["y"][5]) == (0.0, 0.0)
    assert contour["self_check"]["center_difference"] == 0.0
    assert _results(run, "hessian")["loss"] == expected
    assert contour["self_check"]["recomputed_cell"]["difference"] < 1e-5
    assert abs(contour["axis_cosine"]) < 1e-6


def test_curvature_along_the_line_is_the_hessians(run: Path, dense: Tensor) -> None:
    direction = torch.from_numpy(_arrays(run, "interp")["direction"]).double()
    expected = float(direction @ dense @ direction)
    # A float32 product: relative 1e-4 of ‖d‖²λmax would be loose; 1e-4 of the value is met.
    assert _results(run, "interp")["curvature_at_origin"] == pytest.approx(expected, rel=1e-4)
