from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import dense_hessian, make
from torch import Tensor, nn

from lgo_cli.config import HessianConfig, OperatorName
from lgo_cli.curvature.analysis import analyze_spectrum
from lgo_cli.curvature.basis import Basis
from lgo_cli.curvature.density import spectral_density
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.curvature.spectrum import Setting
from lgo_cli.curvature.stability import sharpness_ratio, stability_threshold
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples


def _final_size(curvature: float, momentum: float, nesterov: bool, weight_decay: float) -> float:
    """|x| after many steps of torch's own SGD on ½·curvature·x² from x = 1."""
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD(
        [x], lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )
    for _ in range(1500):
        optimizer.zero_grad()
        (0.5 * curvature * x.square()).sum().backward()
        optimizer.step()
    return float(x.detach().abs())


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)]
)
def test_threshold_is_where_torchs_optimiser_diverges(
    momentum: float, nesterov: bool, weight_decay: float
) -> None:
    threshold, reason = stability_threshold("sgd", 0.1, momentum, nesterov)
    assert threshold is not None
    assert reason is None
    for factor, diverges in ((0.99, False), (1.01, True)):
        curvature = factor * threshold - weight_decay
        ratio = sharpness_ratio(curvature, threshold, weight_decay, coupled=True)
        assert ratio == pytest.approx(factor)
        assert (_final_size(curvature, momentum, nesterov, weight_decay) > 1) == diverges


@pytest.mark.parametrize("weight_decay", [0.0, 0.1, 2.0])
def test_adamws_threshold_is_where_its_iteration_diverges(weight_decay: float) -> None:
    """In torch's order, with the second moment held at 1."""
    lr, beta = 0.1, 0.9
    threshold, reason = stability_threshold("adamw", lr, 0.0, False, beta, weight_decay)
    assert threshold is not None
    assert reason is None
    for factor, diverges in ((0.999, False), (1.001, True)):
        x, m = 1.0, 0.0
        for _ in range(20_000):
            m = beta * m + (1 - beta) * factor * threshold * x
            x = (1 - lr * weight_decay) * x - lr * m
        assert (abs(x) > 1) == diverges
    plain, _ = stability_threshold("adam", lr, 0.0, False, beta, weight_decay)
    assert plain == pytest.approx(38 / lr)


@pytest.mark.parametrize(
    ("optimizer", "lr", "word"),
    [("adam", 0.0, "0 or unknown"), ("sgd", 0.0, "0 or unknown"), ("sgd", None, "0 or unknown")],
)  # fmt: skip
def test_no_threshold_has_a_reason(optimizer: str, lr: float | None, word: str) -> None:
    threshold, reason = stability_threshold(optimizer, lr, 0.0, False)
    assert threshold is None
    assert reason is not None
    assert word in reason
    assert sharpness_ratio(1.0, threshold, 0.0, coupled=True) is None


def test_decoupled_decay_adds_no_curvature() -> None:
    assert sharpness_ratio(3.0, 6.0, 1.0, coupled=False) == 0.5


def test_analysis_counts_every_product_and_leaves_the_model() -> None:
    model, samples, loss = make("batch norm")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = HessianConfig(top_k=2, bottom_k=1, trace=True, density=True, dtype="float64")
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        dense = dense_hessian(objective)
        spectrum = analyze_spectrum(objective, config)
        _, gradient = objective.loss_and_gradient()
        assert spectrum.loss == objective.center.loss
    assert spectrum.trace is not None
    assert spectrum.density is not None
    assert spectrum.audit is not None
    assert spectrum.matvecs == {
        "audit": spectrum.audit.num_matvecs,
        "eigenvalues": spectrum.eigenpairs.num_matvecs,
        "density": spectrum.density.num_matvecs,
        "trace": spectrum.trace.estimate.num_matvecs,
    }
    assert spectrum.num_matvecs == sum(spectrum.matvecs.values())
    assert spectrum.gradient_norm == pytest.approx(float(gradient.norm()))
    trace = float(dense.trace())
    rounding = 1e-13 * float(dense.abs().sum())  # all that is left where the basis is complete
    assert abs(spectrum.trace.value - trace) <= 4 * spectrum.trace.standard_error + rounding
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_every_product_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples, loss = make("relu")
    asked = HessianConfig(
        top_k=2, bottom_k=1, trace=True, density=True, per_layer=True, halves=True,
        multiplicity=True, recheck=True, audit=False, dtype="float64",
    )  # fmt: skip
    done: list[Tensor] = []
    product = HessianOperator._product

    def counted(self: HessianOperator, vector: Tensor) -> Tensor:
        done.append(vector)
        return product(self, vector)

    monkeypatch.setattr(HessianOperator, "_product", counted)
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        spectrum = analyze_spectrum(objective, asked)
    assert spectrum.num_matvecs == len(done)


def test_density_is_of_a_random_start_whatever_else_is_asked() -> None:
    """The gradient, from which eigenvalues are sought, or a warm start sees another measure."""
    model, samples, loss = make("relu")
    options = {"density": True, "audit": False, "bottom_k": 0}
    with Objective(model, samples, loss) as objective:
        alone, beside = (
            analyze_spectrum(objective, HessianConfig(top_k=top_k, **options)) for top_k in (0, 2)
        )
        warm = Setting(warm_start=beside.eigenpairs.eigenvectors[:1])
        warmed = analyze_spectrum(objective, HessianConfig(top_k=1, **options), warm)
        fresh = spectral_density(HessianOperator(objective))
    assert alone.density is not None
    assert beside.density is not None
    assert warmed.density is not None
    np.testing.assert_array_equal(beside.density.nodes, alone.density.nodes)
    np.testing.assert_array_equal(warmed.density.nodes, fresh.nodes)


def test_each_half_has_the_memory_of_a_basis_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Basis]] = []
    alive = []

    class Counted(Basis):
        def __init__(self, *arguments: Any) -> None:
            alive.append(sum(basis() is not None for basis in made))
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr("lgo_cli.curvature.lanczos.Basis", Counted)
    model, samples, loss = make("relu")
    with Objective(model, samples, loss) as objective:
        analyze_spectrum(objective, HessianConfig(top_k=1, halves=True))
    assert alive == [0, 0, 0]


@pytest.mark.parametrize("operator", ["hessian", "ggn", "empirical-fisher"])
def test_gradient_that_is_all_rounding_has_no_share(operator: OperatorName) -> None:
    """As at a minimum, where a direction is of the rounding alone."""
    model, samples, _ = make("linear, squared error")
    loss = LossFunction(label_smoothing=0.1)
    config = HessianConfig(operator=operator, top_k=1, bottom_k=0, audit=False)
    for at_minimum in (False, True):
        if at_minimum:
            _minimize(model, samples, loss)
        with Objective(model, samples, loss, dtype=torch.float64) as objective:
            known = analyze_spectrum(objective, config)
        with Objective(model, samples, loss) as objective:
            found = analyze_spectrum(objective, config)
        if at_minimum:
            assert found.gradient_norm > 10 * known.gradient_norm or found.gradient_norm < 1e-6
            assert found.gradient_share is None
        else:
            assert found.gradient_share == pytest.approx(known.gradient_share, rel=1e-4)


def test_share_of_the_gradient_is_of_a_space_that_is_known() -> None:
    """Each eigenvalue is there three times: a space of two is any two of the copies."""
    model, samples, loss = make("linear, squared error")
    with Objective(model, samples, loss) as objective:
        cut, whole = (
            analyze_spectrum(objective, HessianConfig(top_k=top_k, multiplicity=True, audit=False))
            for top_k in (2, 3)
        )
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        vectors = torch.linalg.eigh(dense_hessian(objective)).eigenvectors[:, -3:]
        gradient = HessianOperator(objective).gradient()
    assert cut.gradient_share is None
    assert cut.gradient_share_note is not None
    assert "not told apart" in cut.gradient_share_note
    known = float((vectors.T @ gradient).square().sum() / gradient.square().sum())
    assert whole.gradient_share == pytest.approx(known, rel=1e-4)
    assert whole.gradient_share_note is None


def _minimize(model: nn.Module, samples: Samples, loss: LossFunction) -> None:
    """Go to the minimum in float64, as near as weights in float32 come."""
    model.double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-13, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        mean = loss(model(samples.inputs.double()), samples.labels).mean()
        mean.backward()
        return mean

    optimizer.step(closure)
    model.float()


def test_rounding_of_a_trace_that_cancels_is_no_contradiction() -> None:
    """Far from its targets a small network has eigenvalues ± far above its trace, tr G."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 3, generator=draw)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=1e-4, generator=draw)
    samples = Samples(inputs, (inputs[:, 0] > 0).long())
    with Objective(model, samples, LossFunction("squared_error")) as objective:
        found = analyze_spectrum(objective, HessianConfig(top_k=2, trace=True, audit=False))
    trace = found.trace
    assert trace is not None
    assert trace.exact is not None
    assert trace.estimate.num_probes == 0
    assert abs(trace.estimate.value - trace.exact) > trace.rounding
    assert trace.deviation == 0
    assert not [text for text in found.warnings if "one of them is wrong" in text]


def test_share_of_the_gradient_is_in_the_coordinates_of_a_scaled_operator() -> None:
    model, samples, loss = make("gelu, smoothed labels")
    config = HessianConfig(top_k=2, scaling="elementwise", rtol=1e-8, audit=False)
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        found = analyze_spectrum(objective, config)
        scale = objective.theta.abs()
        scaled = scale[:, None] * dense_hessian(objective) * scale
        vectors = torch.linalg.eigh(scaled).eigenvectors[:, -2:]
        gradient = scale * HessianOperator(objective).gradient()
    known = float((vectors.T @ gradient).square().sum() / gradient.square().sum())
    assert found.gradient_share == pytest.approx(known, rel=1e-4)
