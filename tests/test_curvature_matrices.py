"""Gauss-Newton, Fisher, blocks, scalings and preconditioning against dense twins in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import NETWORKS, dense_ggn, dense_hessian, dense_jacobian, make
from torch import Tensor, nn

from lgo_cli.config import HessianConfig
from lgo_cli.curvature.analysis import analyze_spectrum
from lgo_cli.curvature.networks import (
    OPERATORS,
    EmpiricalFisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    NetworkOperator,
)
from lgo_cli.curvature.operators import Operator
from lgo_cli.curvature.requested import Requested
from lgo_cli.curvature.spectrum import Setting
from lgo_cli.curvature.stability import Preconditioner, stability_threshold
from lgo_cli.errors import InputError, UsageError
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples
from lgo_cli.vectors import Block, ParameterLayout, flatten

each_network = pytest.mark.parametrize("name", list(NETWORKS))


def _matrix(operator: Operator) -> Tensor:
    identity = torch.eye(operator.dim, dtype=operator.dtype)
    return torch.stack([operator.matvec(row) for row in identity], dim=1)


@each_network
@pytest.mark.parametrize("kept", [True, False])
def test_gauss_newton_products_are_the_dense_twins(name: str, kept: bool) -> None:
    model, samples, loss = make(name, num_samples=12)  # batches of 7 and 5
    budget = 2**40 if kept else 0
    with Objective(model, samples, loss, micro_batch_size=7, dtype=torch.float64) as objective:
        expected = dense_ggn(objective)
        operator = GaussNewtonOperator(objective, memory_bytes=budget)
        torch.testing.assert_close(_matrix(operator), expected, rtol=0, atol=1e-12)
        gradients = dense_jacobian(objective, of_losses=True)
        fisher = EmpiricalFisherOperator(objective, memory_bytes=budget)
        expected = gradients.T @ gradients / len(samples)
        torch.testing.assert_close(_matrix(fisher), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["relu", "gelu, smoothed labels", "squared error"])
def test_fisher_of_the_models_own_labels_is_the_ggn(name: str) -> None:
    """E over y ~ p(y|x) of ∇log p ∇log pᵀ, summed over all labels, or over Gaussian targets."""
    model, samples, loss = make(name)
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        jacobian = dense_jacobian(objective, of_losses=False)
        outputs = model(objective.samples.inputs).detach()
        n, classes = outputs.shape
        if loss.name == "squared_error":
            # ∇log N(t; z, I) = Jᵀ(t − z), and the covariance of t − z is I.
            expected = torch.einsum("ncp,ncq->pq", jacobian, jacobian) / n
        else:
            p = torch.softmax(outputs, dim=1)
            expected = torch.zeros(objective.dim, objective.dim, dtype=torch.float64)
            for label in range(classes):
                score = torch.eye(classes, dtype=torch.float64)[label] - p
                gradients = torch.einsum("ncp,nc->np", jacobian, score)
                expected += torch.einsum("n,np,nq->pq", p[:, label], gradients, gradients) / n
        found = _matrix(OPERATORS["fisher"](objective))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_soft_labels_that_do_not_quite_sum_to_one() -> None:
    """As rounded ones: the loss is what they say, and so is its GGN; the Fisher matrix is not."""
    model, samples, _ = make("relu")
    with Objective(model, samples, dtype=torch.float64) as objective:
        fisher = dense_ggn(objective)  # of class labels
    labels = 0.9999 * F.one_hot(samples.labels, 3).double()
    soft = Samples(samples.inputs, labels)
    for smoothing in (0.0, 0.2):
        loss = LossFunction("cross_entropy", smoothing)
        with Objective(model, soft, loss, dtype=torch.float64) as objective:
            ggn = dense_ggn(objective)
            found = _matrix(OPERATORS["ggn"](objective))
            own = _matrix(OPERATORS["fisher"](objective))
        torch.testing.assert_close(found, ggn, rtol=0, atol=1e-12)
        torch.testing.assert_close(own, fisher, rtol=0, atol=1e-12)
        assert float((ggn - fisher).norm()) > 5e-5 * float(fisher.norm())


def _with_margin(margin: float) -> tuple[nn.Linear, Samples]:
    """A linear classifier that is sure of its samples: all logits are that far apart at least."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 4, generator=draw)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
    with torch.no_grad():
        first, second = model(inputs.double()).topk(2).values.T
        for parameter in model.parameters():
            parameter.mul_(margin / float((first - second).min()))
        return model, Samples(inputs, model(inputs.double()).argmax(dim=1))


def test_gauss_newton_products_keep_their_digits_where_samples_are_fitted() -> None:
    """Against Σ pᵢpⱼ(Jᵢ − Jⱼ)(Jᵢ − Jⱼ)ᵀ, in which nothing cancels where a p is all but one."""
    model, samples = _with_margin(34.0)
    x = torch.cat([samples.inputs.double(), torch.ones(20, 1).double()], dim=1)
    p = torch.softmax(model(samples.inputs.double()), dim=1).detach()
    dense = torch.zeros(15, 15, dtype=torch.float64)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        d = torch.zeros(20, 3, 5, dtype=torch.float64)
        d[:, i], d[:, j] = x, -x
        flat = torch.cat([d[:, :, :4].flatten(1), d[:, :, 4]], dim=1)
        dense += torch.einsum("n,na,nb->ab", p[:, i] * p[:, j], flat, flat) / 20
    with Objective(model, samples, dtype=torch.float64) as objective:
        operator = GaussNewtonOperator(objective)
        found = torch.stack([operator.matvec(row) for row in torch.eye(15, dtype=torch.float64)])
    assert float(dense.abs().max()) < 1e-9
    # Sums of 20 samples; the entries of diag(p) − ppᵀ cancel to a relative 1e-2 here.
    torch.testing.assert_close(found, dense, rtol=1e-12, atol=1e-14 * float(dense.abs().max()))


def test_gradients_of_fitted_samples_are_of_outputs_in_float64() -> None:
    model, samples = _with_margin(20.0)
    with Objective(model, samples, dtype=torch.float64) as objective:
        _, expected = objective.loss_and_gradient()
    with Objective(model, samples) as objective:
        loss, found = objective.loss_and_gradient()
    assert 0 < loss < 1e-8
    # What an output of 200 rounds by, 1e-5; a loss in float32 has one digit at most.
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_linear_model_has_no_other_curvature() -> None:
    model, samples, loss = make("linear, squared error")
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        ggn, hessian = GaussNewtonOperator(objective), HessianOperator(objective)
        torch.testing.assert_close(_matrix(ggn), _matrix(hessian), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator, EmpiricalFisherOperator])
@pytest.mark.parametrize("kept", [True, False])
def test_blocks_are_the_matrixs(kind: type[NetworkOperator[object]], kept: bool) -> None:
    model, samples, loss = make("convolution", num_samples=12)
    with Objective(model, samples, loss, micro_batch_size=7, dtype=torch.float64) as objective:
        whole = kind(objective, memory_bytes=2**40 if kept else 0)
        dense = _matrix(whole)
        block = Block.matching(objective.layout, ["1.*", "5.bias"])
        assert block.names == ("1.weight", "1.bias", "5.bias")
        rows = block.extract(torch.arange(objective.dim))
        expected = dense[rows][:, rows]
        for part in (whole.restricted(block), kind(objective, block=block)):
            torch.testing.assert_close(_matrix(part), expected, rtol=0, atol=1e-13)


def test_blocks_by_name() -> None:
    model, samples, loss = make("attention and layer norm")
    with Objective(model, samples, loss) as objective:
        layout = objective.layout
        assert list(Block.whole(layout).modules()) == ["qkv", "norm", "head"]
        block = Block.matching(layout, ["qkv", "*.bias"])
        assert block.names == ("qkv.weight", "qkv.bias", "norm.bias", "head.bias")
        vector = torch.arange(float(objective.dim))
        inside = block.extract(vector)
        assert len(inside) == block.dim
        assert torch.equal(block.extract(block.embed(inside)), inside)
        assert float(block.embed(inside).sum()) == float(inside.sum())
        with pytest.raises(UsageError, match="'heat'; did you mean head"):
            Block.matching(layout, ["heat"])
    model.get_parameter("norm.bias").requires_grad_(False)
    with pytest.raises(UsageError, match=r"no trainable parameter is called 'norm\.bias'"):
        Block.matching(ParameterLayout.of(model), ["norm.bias"])


@pytest.mark.parametrize("name", ["relu", "convolution", "gelu, smoothed labels"])
def test_adaptive_sharpness_is_the_dense_twins_and_invariant(name: str) -> None:
    model, samples, loss = make(name)
    config = HessianConfig(
        scaling="elementwise", top_k=3, bottom_k=1, rtol=1e-9, dtype="float64", audit=False
    )
    found = []
    with torch.no_grad():
        for _ in range(2):
            with Objective(model, samples, loss, dtype=torch.float64) as objective:
                weights = objective.theta.abs()
                dense = weights[:, None] * dense_hessian(objective) * weights
                truth = torch.linalg.eigvalsh(dense)
                with torch.enable_grad():
                    pairs = analyze_spectrum(objective, config).eigenpairs
            torch.testing.assert_close(pairs.largest, truth.flip(0)[:3], rtol=1e-8, atol=1e-12)
            torch.testing.assert_close(pairs.smallest, truth[:1], rtol=1e-8, atol=1e-12)
            found.append(pairs.largest)
            if name == "relu":
                # The same function: one layer times 4, the next over 4 (powers of 2: exact).
                model[0].weight.mul_(4)
                model[0].bias.mul_(4)
                model[2].weight.div_(4)
    if name == "relu":
        torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=0)


def _trained(optimizer: torch.optim.Optimizer, objective_model: nn.Module, steps: int = 30) -> None:
    _, samples, loss = make("gelu, smoothed labels")
    for _ in range(steps):
        optimizer.zero_grad()
        loss(objective_model(samples.inputs), samples.labels).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_preconditioned_spectrum_is_the_dense_twins(kind: type[torch.optim.Adam]) -> None:
    model, samples, loss = make("gelu, smoothed labels")
    model.eval()
    optimizer = kind(model.parameters(), lr=1e-3, betas=(0.8, 0.99), eps=1e-6)
    _trained(optimizer, model)
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        found = Preconditioner.of(optimizer.state_dict(), objective.layout)
        assert found.first_moment_decay == 0.8
        second = flatten(optimizer.state[p]["exp_avg_sq"].double() for p in model.parameters())
        expected = (1 - 0.8**30) * ((second / (1 - 0.99**30)).sqrt() + 1e-6)
        torch.testing.assert_close(found.diagonal, expected, rtol=1e-12, atol=0)
        dense = dense_hessian(objective) / expected.sqrt()[:, None] / expected.sqrt()
        # The spectrum of D^{-1}H, which is not symmetric, is that of D^{-1/2}HD^{-1/2}.
        truth = torch.linalg.eigvals(dense_hessian(objective) / expected[:, None]).real
        assert float(truth.max()) == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]))
        setting = Setting(preconditioner=found.diagonal)
        asked = {"bottom_k": 0, "rtol": 1e-9, "dtype": "float64", "audit": False}
        beside = analyze_spectrum(objective, HessianConfig(top_k=1, **asked), setting)
        alone = analyze_spectrum(
            objective, HessianConfig(top_k=3, scaling="adam", **asked), setting
        )
    assert beside.preconditioned is not None
    largest = torch.linalg.eigvalsh(dense).flip(0)
    assert float(beside.preconditioned.values[0]) == pytest.approx(float(largest[0]), rel=1e-8)
    torch.testing.assert_close(alone.eigenpairs.largest, largest[:3], rtol=1e-8, atol=0)
    assert alone.preconditioned is None
    assert beside.num_matvecs == sum(beside.matvecs.values())


@pytest.mark.parametrize(
    ("options", "decay", "expected"),
    [
        ({}, 0.0, True),
        ({}, 0.1, True),
        ({"scaling": "adam"}, 0.0, False),  # it is the one asked for
        ({"scaling": "adam"}, 0.1, True),
        ({"scaling": "adam", "include_weight_decay": True}, 0.1, False),
        ({"scaling": "elementwise"}, 0.1, False),
        ({"operator": "ggn"}, 0.1, False),
        ({"top_k": 0}, 0.1, False),
        ({"layers": ("0",)}, 0.1, False),
    ],
)
def test_preconditioned_curvature_beside_another(
    options: dict[str, Any], decay: float, expected: bool
) -> None:
    config = HessianConfig(**options)
    layout = ParameterLayout.of(make("relu")[0])
    block = Block.matching(layout, config.layers) if config.layers else Block.whole(layout)
    adam = Setting(preconditioner=torch.ones(layout.dim), weight_decay=decay)
    assert Requested(config, adam).has_preconditioned(block) == expected
    assert not Requested(config, replace(adam, preconditioner=None)).has_preconditioned(block)
    if "scaling" in options:  # AdamW's decay is no part of what it preconditions
        adamw = replace(adam, is_decay_coupled=False)
        assert not Requested(config, adamw).has_preconditioned(block)


@pytest.mark.parametrize("scaling", ["none", "adam"])
def test_adam_never_steps_what_has_no_gradient(scaling: str) -> None:
    """With weight decay, whose curvature over eps alone was the largest."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(12, 3), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    _, samples, loss = make("gelu, smoothed labels")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.1)
    _trained(optimizer, model, 5)
    asked = {"top_k": 1, "bottom_k": 0, "rtol": 1e-9, "dtype": "float64", "audit": False}
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        diagonal = Preconditioner.of(optimizer.state_dict(), objective.layout).diagonal
        setting = Setting(preconditioner=diagonal, weight_decay=0.1, is_decay_coupled=True)
        config = HessianConfig(
            scaling=scaling, include_weight_decay=scaling == "adam", per_layer=True, **asked
        )
        found = analyze_spectrum(objective, config, setting)
        P = 12 * 3 + 3
        dense = dense_hessian(objective)[:P, :P] + 0.1 * torch.eye(P, dtype=torch.float64)
    scale = diagonal[:P].rsqrt()
    truth = float(torch.linalg.eigvalsh(scale[:, None] * dense * scale)[-1])
    pairs = found.eigenpairs if scaling == "adam" else found.preconditioned
    assert pairs is not None
    assert float(pairs.values[0]) == pytest.approx(truth, rel=1e-8)
    assert found.layers is not None
    if scaling == "adam":
        assert found.layers[-1].largest == 0


def test_state_of_another_optimiser_is_refused() -> None:
    model, samples, loss = make("relu")
    with Objective(model, samples, loss) as objective:
        layout = objective.layout
        with pytest.raises(InputError, match="not Adam's"):
            Preconditioner.of(torch.optim.SGD(model.parameters(), lr=0.1).state_dict(), layout)
    other = make("squared error")[0]
    adam = torch.optim.Adam([*other.parameters()][:2])
    with pytest.raises(InputError, match="not Adam's"):
        Preconditioner.of(adam.state_dict(), layout)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_adams_threshold_is_where_its_steps_diverge(decay: float) -> None:
    """EMA momentum with a fixed preconditioner: x ← x − η m/D, m ← β₁m + (1 − β₁)Hx."""
    lr, precondition = 0.05, 3.0
    threshold, reason = stability_threshold("adam", lr, 0.0, False, decay)
    assert threshold is not None
    assert reason is None
    for factor, diverges in ((0.99, False), (1.01, True)):
        curvature = factor * threshold * precondition  # of H; D^{-1}H is at the threshold
        x, m = 1.0, 0.0
        for _ in range(3000):
            m = decay * m + (1 - decay) * curvature * x
            x -= lr * m / precondition
        assert (abs(x) > 1) is diverges


def test_weight_decay_moves_every_eigenvalue() -> None:
    model, samples, loss = make("relu")
    asked = {"top_k": 2, "bottom_k": 1, "rtol": 1e-9, "dtype": "float64", "audit": False}
    setting = Setting(weight_decay=0.25)
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        plain = analyze_spectrum(objective, HessianConfig(**asked), setting)
        config = HessianConfig(include_weight_decay=True, **asked)
        shifted = analyze_spectrum(objective, config, setting)
    torch.testing.assert_close(
        shifted.eigenpairs.values, plain.eigenpairs.values + 0.25, rtol=1e-8, atol=1e-9
    )


def test_layers_are_their_blocks() -> None:
    model, samples, loss = make("batch norm", 60)
    config = HessianConfig(
        per_layer=True, top_k=1, bottom_k=0, rtol=1e-6, dtype="float64", audit=False
    )
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        dense = dense_hessian(objective)
        spectrum = analyze_spectrum(objective, config)
        blocks = Block.whole(objective.layout).modules()
    assert spectrum.layers is not None
    assert [layer.name for layer in spectrum.layers] == list(blocks) == ["0", "1", "3"]
    for layer, block in zip(spectrum.layers, blocks.values(), strict=True):
        rows = block.extract(torch.arange(len(dense)))
        part = dense[rows][:, rows]
        truth = torch.linalg.eigvalsh(part)[-1]
        assert abs(layer.largest - float(truth)) <= layer.residual_bound + 1e-12
        error = 4 * layer.trace.standard_error + 1e-9
        assert abs(layer.trace.value - float(part.trace())) <= error
        estimate = layer.trace.estimate
        error = 4 * estimate.frobenius_standard_error + 1e-9
        assert abs(estimate.frobenius_norm - float(torch.linalg.matrix_norm(part))) <= error
    assert spectrum.matvecs["layers"] > 0


def test_layers_that_ten_products_complete_are_not_estimated() -> None:
    """A block of 4 took 13 products, and one that is the whole had another trace than that."""
    model, samples, loss = make("batch norm", 60)
    asked = {"per_layer": True, "top_k": 1, "bottom_k": 0, "dtype": "float64", "audit": False}
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        both = analyze_spectrum(objective, HessianConfig(layers=["1", "3.bias"], **asked))
        alone = analyze_spectrum(objective, HessianConfig(layers=["0"], **asked))
    assert both.layers is not None
    for layer, size in zip(both.layers, (12, 3), strict=True):
        estimate = layer.trace.estimate
        assert (estimate.num_probes, estimate.num_total_matvecs) == (0, size)
        assert layer.trace.standard_error == 0 < layer.trace.rounding
    assert both.matvecs["layers"] == 12 + 3
    assert alone.layers is not None
    assert [layer.trace for layer in alone.layers] == [alone.trace]


def test_small_and_unused_layers_converge_as_the_whole_does() -> None:
    """In float32: their tolerance is that of the whole, whose rounding they have."""
    model, samples, loss = make("tied, frozen and unused", 60)
    with torch.no_grad():
        model.head.weight.mul_(1e-3)  # through which the others' curvature is small
    with Objective(model, samples, loss) as objective:
        spectrum = analyze_spectrum(objective, HessianConfig(per_layer=True, top_k=1, bottom_k=0))
    assert spectrum.layers is not None
    layers = {layer.name: layer for layer in spectrum.layers}
    assert layers["encode"].largest < 1e-3 * float(spectrum.eigenpairs.values[0])
    assert layers["unused"].largest == 0
    rounding = spectrum.eigenpairs.rounding
    assert rounding <= layers["unused"].residual_bound < 2 * rounding
    assert [layer.unconverged for layer in spectrum.layers] == [()] * len(layers)
    assert spectrum.warnings == ()


def test_soft_labels_do_not_enter_the_gauss_newton_matrix() -> None:
    model, samples, _ = make("relu")
    matrices = []
    for smoothing in (0.0, 0.3):
        loss = LossFunction("cross_entropy", smoothing)
        with Objective(model, samples, loss, dtype=torch.float64) as objective:
            matrices.append(_matrix(GaussNewtonOperator(objective)))
    assert torch.equal(*matrices)
    for name in ("cross_entropy", "squared_error"):
        hard = nn.functional.one_hot(samples.labels, 3).float()
        soft = Samples(samples.inputs, 0.7 * hard + 0.1)
        found, accuracies = [], []
        for labels, smoothing in ((samples, 0.3), (soft, 0.0)):
            loss = LossFunction(name, smoothing)
            with Objective(model, labels, loss, dtype=torch.float64) as objective:
                found.append((objective.center.loss, _matrix(HessianOperator(objective))))
                accuracies.append(objective.center.accuracy)
        assert accuracies[0] == accuracies[1]
        # (1 − s)·onehot + s/C written out, in float32 labels.
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-7)
