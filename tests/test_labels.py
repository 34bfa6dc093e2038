"""Several labels a sample, as of tokens and pixels, and real-valued targets, as of regression."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Lgo
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from lgo_cli.config import OperatorName, TrainConfig
from lgo_cli.curvature.audit import measure_rounding
from lgo_cli.curvature.exact_trace import ExactTrace, exact_trace
from lgo_cli.curvature.networks import OPERATORS
from lgo_cli.curvature.operators import ROUNDING_UNITS
from lgo_cli.data.arrays import from_arrays
from lgo_cli.errors import InputError, UsageError
from lgo_cli.figures.interpolation import draw_interpolation
from lgo_cli.figures.training import draw_training
from lgo_cli.labels import are_distributions, target_norm
from lgo_cli.landscape.barriers import rounding_allowance
from lgo_cli.landscape.evaluator import Evaluator
from lgo_cli.landscape.interpolation import interpolate
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.samples import (
    Samples,
    check_outputs,
    default_micro_batch_size,
    evaluate_model,
    refuse_unknown,
)
from lgo_cli.training.loop import Training
from lgo_cli.training.recipe import resolve_recipe
from lgo_cli.vectors import Block

LENGTH, VOCABULARY = 4, 5
EXACT = 1e-11
"""A few thousand float64 operations on numbers of order one."""


class Language(nn.Module):
    """A transformer of one head whose last layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 4)
        self.positions = nn.Parameter(torch.randn(LENGTH, 4))
        self.norm = nn.LayerNorm(4)
        self.qkv = nn.Linear(4, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x @ self.embed.weight.T


def _tagger() -> nn.Module:
    """Piecewise linear, at each token by itself."""
    return nn.Sequential(
        nn.Embedding(VOCABULARY, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, VOCABULARY)
    )


class Segmenting(nn.Module):
    """Convolutions that see images of tokens, with the classes last: [n, 2, 2, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(),
            nn.Conv2d(3, VOCABULARY, 3, padding=1),
        )  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        images = tokens.view(-1, 1, 2, 2) / VOCABULARY
        return self.convolutions(images.to(self.convolutions[0].weight.dtype)).movedim(1, -1)


def _tokens(
    build: Callable[[], nn.Module], loss: LossFunction, *, ignoring: bool = False
) -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = build()
        tokens = torch.randint(0, VOCABULARY, (9, LENGTH + 1))
        labels = tokens[:, 1:]
        if isinstance(model, Segmenting):
            model.train()(tokens[:, :-1])  # running statistics
            labels = labels.reshape(-1, 2, 2)
        if ignoring:  # as of padding: two labels of four are left, or one
            labels = labels.clone()
            labels.view(9, -1)[1:5, 2:] = -100
            labels.view(9, -1)[7, 1:] = -100
    samples = Samples(tokens[:, :-1], labels)
    return Objective(model, samples, loss, micro_batch_size=4, dtype=torch.float64)


LOSSES = {
    "cross entropy": LossFunction(),
    "smoothed": LossFunction("cross_entropy", 0.1),
    "squared error": LossFunction("squared_error"),
    "binary": LossFunction("binary_cross_entropy", 0.1),
}
MODELS = {"language": Language, "tagger": _tagger, "segmenting": Segmenting}


def _function(objective: Objective) -> Callable[[Tensor], Tensor]:
    names = objective.layout.names

    def outputs(theta: Tensor) -> Tensor:
        parameters = dict(zip(names, objective.layout.split(theta), strict=True))
        return functional_call(objective.model, parameters, (objective.samples.inputs,))

    return outputs


def _losses_by_pytorch(outputs: Tensor, labels: Tensor, loss: LossFunction) -> Tensor:
    """[N]: PyTorch's own means, of one sample after the other."""
    return torch.stack(
        [
            _loss_of_sample(rows.reshape(-1, VOCABULARY), classes.flatten(), loss)
            for rows, classes in zip(outputs, labels, strict=True)
        ]
    )


def _loss_of_sample(rows: Tensor, classes: Tensor, loss: LossFunction) -> Tensor:
    if loss.name == "cross_entropy":  # whose ignored label is -100
        return F.cross_entropy(rows, classes, label_smoothing=loss.label_smoothing)
    kept = classes >= 0
    targets = F.one_hot(classes[kept], VOCABULARY).double()
    if loss.name == "squared_error":
        return F.mse_loss(rows[kept], targets) * VOCABULARY / 2
    targets = 0.9 * targets + 0.1 / VOCABULARY  # smoothed
    each = torch.logaddexp(rows[kept], torch.zeros_like(targets)) - targets * rows[kept]
    return each.mean() * VOCABULARY


def _dense(objective: Objective, operator: str) -> Tensor:
    """[P, P], by reverse mode twice, or from the Jacobian of all labels' outputs."""
    outputs, labels, loss = _function(objective), objective.samples.labels, objective.loss_function
    theta = objective.theta
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        if operator == "hessian":
            return jacrev(grad(lambda at: _losses_by_pytorch(outputs(at), labels, loss).mean()))(
                theta
            ).detach()
        if operator == "empirical-fisher":
            slopes = jacrev(lambda at: _losses_by_pytorch(outputs(at), labels, loss))(theta)
            return (slopes.T @ slopes / len(labels)).detach()
        jacobian = jacrev(lambda at: outputs(at).flatten(0, -2))(theta).detach()
        z = outputs(theta).detach().flatten(0, -2)
    p = z.softmax(-1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    if loss.name == "squared_error":
        middle = torch.eye(VOCABULARY, dtype=p.dtype).expand_as(middle)
    if loss.name == "binary_cross_entropy":
        middle = torch.diag_embed(z.sigmoid() * (1 - z.sigmoid()))
    kept = (labels.flatten(1) >= 0).double()
    share = (kept / kept.sum(dim=1, keepdim=True)).flatten() / len(labels)
    return torch.einsum("n,nap,nab,nbq->pq", share, jacobian, middle, jacobian)


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("ignoring", [False, True])
def test_products_are_of_the_mean_over_all_labels(
    model: str, operator: OperatorName, loss: str, ignoring: bool
) -> None:
    with _tokens(MODELS[model], LOSSES[loss], ignoring=ignoring) as objective:
        dense = _dense(objective, operator)
        found = OPERATORS[operator](objective)
        columns = [found.matvec(unit) for unit in torch.eye(objective.dim, dtype=dense.dtype)]
    assert float((torch.stack(columns) - dense).norm()) <= EXACT * float(dense.norm())


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("ignoring", [False, True])
def test_exact_trace_of_several_labels(operator: OperatorName, loss: str, ignoring: bool) -> None:
    with _tokens(_tagger, LOSSES[loss], ignoring=ignoring) as objective:
        found = exact_trace(objective, operator, Block.whole(objective.layout))
        assert isinstance(found, ExactTrace), found
        passes = "1 backward pass" if operator == "empirical-fisher" else "20 backward passes"
        assert passes in found.reason
        parts = _dense(objective, operator).diag().split(objective.layout.sizes)
    assert found.parts == pytest.approx([float(part.sum()) for part in parts], rel=EXACT)


def test_a_backward_pass_for_each_word_at_each_place_is_too_many() -> None:
    samples = Samples(torch.zeros(2, 30, dtype=torch.int64), torch.zeros(2, 30, dtype=torch.int64))
    model = nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Linear(4, VOCABULARY))
    with Objective(model, samples) as objective:
        found = exact_trace(objective, "ggn", Block.whole(objective.layout))
    assert found == "it would take 150 backward passes, one for each output"


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("ignoring", [False, True])
def test_loss_accuracy_and_error_of_several_labels(model: str, loss: str, ignoring: bool) -> None:
    with _tokens(MODELS[model], LOSSES[loss], ignoring=ignoring) as objective:
        labels = objective.samples.labels
        outputs = objective.model(objective.samples.inputs).detach()
        losses = _losses_by_pytorch(outputs, labels, LOSSES[loss])
        found = objective.evaluate()
        on_a_line = Evaluator(objective, torch.randn(1, objective.dim))(0.0)
    for each in (found, on_a_line):
        assert each.loss == pytest.approx(float(losses.mean()), rel=EXACT)
        # Samples are independent draws; the labels of one are not.
        assert each.standard_error == pytest.approx(float(losses.std()) / 3, rel=1e-9)
        right = (outputs.argmax(-1) == labels).flatten(1).sum(dim=1)
        share = right / (labels >= 0).flatten(1).sum(dim=1)
        assert each.accuracy == pytest.approx(float(share.double().mean()), rel=1e-6)


def test_micro_batches_count_labels() -> None:
    labels = torch.zeros(3, 8, 8, dtype=torch.int64)
    assert default_micro_batch_size(nn.Linear(2, 2), labels) == 4096 // 64
    assert default_micro_batch_size(nn.Conv2d(1, 1, 3), labels) == 64
    assert default_micro_batch_size(nn.Conv2d(1, 1, 3), labels[:, 0]) == 128
    assert default_micro_batch_size(nn.Linear(2, 2), torch.zeros(3, 8, 8)) == 4096
    assert default_micro_batch_size(nn.Linear(2, 2), torch.zeros(1, 9999, dtype=torch.int64)) == 1
    labels[0, 0, 0] = 2**16 - 1  # a vocabulary whose outputs would be 2**28 numbers
    assert default_micro_batch_size(nn.Linear(2, 2), labels) == 2**24 // (64 * 2**16) == 4
    images = torch.zeros(3, 2**9, 2**9)
    assert default_micro_batch_size(nn.Linear(2, 2), images) == 2**24 // 2**18 == 64
    assert default_micro_batch_size(nn.Conv2d(1, 1, 3), images) == 64


class Counting(nn.Module):
    """Sees that of what it put out before no more than the last is still held."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, VOCABULARY)
        self.seen: list[weakref.ref[Tensor]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.embed(tokens)
        assert sum(each() is not None for each in self.seen) <= 1
        self.seen.append(weakref.ref(outputs))
        return outputs


def test_outputs_of_a_large_vocabulary_are_not_held() -> None:
    tokens = torch.arange(40).view(20, 2) % VOCABULARY
    model = Counting()
    with Objective(model, Samples(tokens, tokens), micro_batch_size=3) as objective:
        objective.evaluate()
    assert len(model.seen) >= 2 * 5 + 2 * 7


# Real-valued targets.


def _regression(shape: tuple[int, ...], build: Callable[[], nn.Module]) -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        samples = Samples(torch.randn(11, 6), torch.randn(11, *shape))
        model = build()
    loss = LossFunction("squared_error")
    return Objective(model, samples, loss, micro_batch_size=4, dtype=torch.float64)


def test_linear_regression_has_its_closed_form() -> None:
    """H = G = F = (1/N) Σ x xᵀ for each output, whatever the targets; and its least loss."""
    with _regression((2,), lambda: nn.Linear(6, 2, bias=False)) as objective:
        x, y = objective.samples.inputs, objective.samples.labels.double()
        expected = torch.block_diag(*[x.T @ x / 11] * 2)
        for operator in ("hessian", "ggn", "fisher"):
            found = OPERATORS[operator](objective)
            for unit, column in zip(torch.eye(12, dtype=torch.float64), expected, strict=True):
                torch.testing.assert_close(found.matvec(unit), column, rtol=EXACT, atol=EXACT)
        solution, residual, *_ = torch.linalg.lstsq(x, y, driver="gelsd")
        least, gradient = objective.loss_and_gradient(solution.T.reshape(-1))
        assert least == pytest.approx(float(residual.sum()) / 22, rel=EXACT)
        assert float(gradient.norm()) < EXACT


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3)])
@pytest.mark.parametrize("operator", list(OPERATORS))
def test_products_and_trace_of_real_targets(operator: OperatorName, shape: tuple[int, ...]) -> None:
    def build() -> nn.Module:
        layers = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, math.prod(shape))
        return nn.Sequential(*layers, nn.Unflatten(1, shape))

    with _regression(shape, build) as objective:
        outputs, y = _function(objective), objective.samples.labels.double()

        def losses(theta: Tensor) -> Tensor:
            return ((outputs(theta) - y) ** 2).flatten(1).sum(dim=1) / 2

        if operator == "hessian":
            dense = jacrev(grad(lambda theta: losses(theta).mean()))(objective.theta)
        else:
            what = losses if operator == "empirical-fisher" else outputs
            jacobian = jacrev(what)(objective.theta).reshape(-1, objective.dim)
            dense = jacobian.T @ jacobian / 11
        dense = dense.detach()
        found = OPERATORS[operator](objective)
        columns = [found.matvec(unit) for unit in torch.eye(objective.dim, dtype=dense.dtype)]
        trace = exact_trace(objective, operator, Block.whole(objective.layout))
        expected = losses(objective.theta).mean()
        assert objective.center.loss == pytest.approx(float(expected), rel=EXACT)
        assert math.isnan(objective.center.accuracy)
    assert float((torch.stack(columns) - dense).norm()) <= EXACT * float(dense.norm())
    assert isinstance(trace, ExactTrace), trace
    assert trace.of(Block.whole(objective.layout)) == pytest.approx(float(dense.trace()), rel=EXACT)


class Residuals(nn.Module):
    """u'' + u − x of a network u, by torch.func: what a physics-informed one is to make zero."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        def u(x: Tensor) -> Tensor:
            return self.net(x[None])[0, 0]

        def residual(x: Tensor) -> Tensor:
            return grad(lambda x: grad(u)(x)[0])(x) + u(x) - x

        return torch.func.vmap(residual)(x)


class ByAutograd(Residuals):
    """The same by `torch.autograd.grad`."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            u = self.net(x)
            (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (curve,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return curve + u - x


def _dense_of_residuals(objective: Objective, operator: str) -> Tensor:
    outputs, theta = _function(objective), objective.theta
    if operator == "hessian":
        return jacrev(grad(lambda at: (outputs(at) ** 2).sum() / 18))(theta).detach()
    jacobian = jacrev(lambda at: outputs(at)[:, 0])(theta).detach()
    if operator == "empirical-fisher":
        jacobian *= outputs(theta).detach()
    return jacobian.T @ jacobian / 9


@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("build", [Residuals, ByAutograd])
def test_physics_informed_networks(build: type[Residuals], operator: OperatorName) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, x = build(), torch.rand(9, 1)
    samples, loss = Samples(x, torch.zeros(9, 1)), LossFunction("squared_error")
    with Objective(model, samples, loss, micro_batch_size=4, dtype=torch.float64) as objective:
        found = OPERATORS[operator](objective)
        columns = [found.matvec(unit) for unit in torch.eye(objective.dim, dtype=torch.float64)]
        assert found.keeps_graph is (build is ByAutograd)
        hidden = "torch.func in the model hides what it keeps"
        assert (hidden in found.plan) is (build is Residuals)
        # Weights are read by a derivative too, which no rule sees: refused, and not wrong.
        assert isinstance(exact_trace(objective, operator, Block.whole(objective.layout)), str)
        model.forward = Residuals.forward.__get__(model)  # type: ignore[method-assign]
        dense = _dense_of_residuals(objective, operator)
    assert float((torch.stack(columns) - dense).norm()) <= EXACT * float(dense.norm())


def _in_units(offset: float, scale: float) -> tuple[nn.Sequential, Samples]:
    """A network and targets y that it fits in part, as offset + scale·y; of the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        x, noise = torch.randn(300, 6), torch.randn(300, 1)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    with torch.no_grad():
        y = model(x) + 0.1 * noise
        model[2].weight *= scale
        model[2].bias.mul_(scale).add_(offset)
    return model, Samples(x, offset + scale * y)


UNITS = [(0.0, 1e-4), (0.0, 1e4), (3000.0, 1.0)]


@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize(("offset", "scale"), UNITS)
def test_rounding_of_products_whatever_the_unit(
    operator: OperatorName, offset: float, scale: float
) -> None:
    """Outputs have no part in the second derivative of squared error, however large they are."""
    model, samples = _in_units(offset, scale)
    loss, kind = LossFunction("squared_error"), OPERATORS[operator]
    matrices, units = [], 0.0
    for dtype in (torch.float64, torch.float32):
        with Objective(model, samples, loss, dtype=dtype) as objective:
            measured = measure_rounding(objective, kind, difference=False)
            found = kind(objective)
            found.measured_rounding = measured.units
            rows = [found.matvec(unit) for unit in torch.eye(found.dim, dtype=dtype)]
            matrices.append(torch.stack(rows).double())
            units = found.rounding_units
    exact, rounded = matrices
    eps = torch.finfo(torch.float32).eps
    error = torch.linalg.matrix_norm(rounded - exact, 2) / torch.linalg.matrix_norm(exact, 2)
    assert float(error) <= units * eps
    if operator in ("ggn", "fisher"):
        assert units == ROUNDING_UNITS  # it was 1,500 and more


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), *UNITS])
def test_rounding_of_heights_whatever_the_unit(offset: float, scale: float) -> None:
    model, samples = _in_units(offset, scale)
    loss, alpha = LossFunction("squared_error"), np.linspace(0, 1, 21)
    found = []
    for dtype in (torch.float64, torch.float32):
        with Objective(copy.deepcopy(model), samples, loss, dtype=dtype) as objective:
            target = objective.theta.clone()
            target[:-1] *= -1  # the same function, since tanh is odd
            path = interpolate(objective, None, alpha.tolist(), target=target)
            found.append(path)
    exact, rounded = (path.train.loss for path in found)
    off = rounded - exact
    heights = np.abs(off - (1 - alpha) * off[0] - alpha * off[-1])
    scale = loss.rounding_scale(samples.labels, 0.0)
    allowance = rounding_allowance(rounded, torch.float32, 0.0, scale)
    assert 0 < heights.max() <= allowance
    barrier = found[1].train.barrier
    assert barrier is not None
    assert barrier.interval[1] - barrier.value >= allowance
    if offset == 0:  # small beside the losses, also where these are tiny
        assert allowance < 1e-5 * rounded.max()
        assert barrier.interval[1] < 2 * barrier.value


def test_targets_have_a_norm_and_labels_none() -> None:
    assert target_norm(torch.tensor([[3.0, 4.0], [1.0, 0.0]])) == pytest.approx(13**0.5)
    assert target_norm(torch.tensor([[0.5, 0.5], [1.0, 0.0]])) is None
    assert target_norm(torch.tensor([3, 4])) is None


def test_soft_labels_have_an_accuracy_and_real_targets_none() -> None:
    soft = torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.6, 0.4]])
    targets = soft + torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.0, 0.0]])
    assert are_distributions(soft).tolist() == [True] * 3
    assert are_distributions(targets).tolist() == [True, False, True]
    assert are_distributions(soft[:, None]).tolist() == [False] * 3
    assert are_distributions(torch.ones(3, 1)).tolist() == [False] * 3  # of one class
    loss, inputs = LossFunction("squared_error"), torch.tensor([[0.0, 1.0]] * 3)
    found = evaluate_model(nn.Identity(), Samples(inputs, soft), loss, 2)
    assert found.accuracy == pytest.approx(1 / 3)
    found = evaluate_model(nn.Identity(), Samples(inputs, targets), loss, 2)
    assert math.isnan(found.accuracy)
    assert found.loss == pytest.approx((0.04 * 2 + 1 + 0.81 + 0.36 * 2) / 6)


# What does not fit.


@pytest.mark.parametrize(
    ("labels", "outputs", "message", "hint"),
    [
        (torch.zeros(2, dtype=torch.int64), (2, 7, 3), "one label: .* [samples, classes]", "tok"),
        (
            torch.zeros(2, 7, dtype=torch.int64),
            (2, 3, 7),
            "labels of shape [7]: .* [samples, 7, classes], it returned (2, 3, 7)",
            "movedim(1, -1)",
        ),
        (
            torch.zeros(2, 7, dtype=torch.int64),
            (2, 7),
            "labels of shape [7]: .* [samples, 7, classes], it returned (2, 7)",
            'y.astype("float32") makes soft labels',
        ),
        (
            torch.zeros(2, 3, dtype=torch.int64),  # rows that are one-hot, and a built-in model
            (2, 2),
            "labels of shape [3]: .* [samples, 3, classes], it returned (2, 2)",
            'y.astype("float32") makes soft labels',
        ),
        (torch.ones(2), (2, 1), "a target of shape []: .* it returned (2, 1)", "y[:, None]"),
        (torch.ones(2, 1), (2, 3), "a target of shape [1]: .* [samples, 1], it returned", "None"),
        (torch.ones(2, 2, 3), (2, 6), "a target of shape [2, 3]: .* [samples, 2, 3], it", "None"),
    ],
)
def test_outputs_that_do_not_fit(
    labels: Tensor, outputs: tuple[int, ...], message: str, hint: str
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, math.prod(outputs[1:])))
    model.append(nn.Unflatten(1, outputs[1:]))
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(InputError, match=pattern) as error:
        check_outputs(model, Samples(torch.zeros(2, 4), labels), LossFunction())
    assert hint in str(error.value.hint)
    with pytest.raises(InputError, match=pattern):
        LossFunction("squared_error")(torch.zeros(outputs), labels)


def test_a_sample_without_a_label() -> None:
    labels = torch.tensor([[1, 0], [-100, 2], [-100, -100]])
    with pytest.raises(InputError, match="the data has no label in row 2: all are ignored"):
        check_outputs(
            nn.Embedding(3, 3),
            Samples(torch.zeros(3, 2, dtype=torch.int64), labels),
            LossFunction(),
        )


def test_the_only_label_of_a_sample_is_not_ignored() -> None:
    """Nor where it has an axis: its mean would be of none."""
    tokens = torch.arange(3)[:, None]
    for labels in (torch.tensor([[1], [-100], [0]]), torch.full((3, 1), -100)):
        with pytest.raises(InputError, match="the data has no label in row"):
            check_outputs(nn.Embedding(3, 3), Samples(tokens, labels), LossFunction())


def test_what_is_ignored_may_have_no_finite_loss() -> None:
    """As a word that is masked by -inf, at a place that does not count."""
    outputs = torch.zeros(1, 2, 3, dtype=torch.float64)
    outputs[0, 1, 0] = -torch.inf
    losses = LossFunction()(outputs, torch.tensor([[1, -100]]))
    assert losses.tolist() == pytest.approx([math.log(3)])


class Turning(nn.Module):
    """Puts the classes elsewhere in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.embed(tokens)
        return outputs.movedim(1, -1) if self.training else outputs


@pytest.mark.parametrize("real", [False, True])
def test_labels_of_pixels_are_not_moved_with_the_image(real: bool) -> None:
    """They would be of other pixels than the mirrored ones."""
    labels = torch.zeros(4, 8, 8) if real else torch.zeros(4, 8, 8, dtype=torch.int64)
    samples = Samples(torch.zeros(4, 1, 8, 8), labels)
    loss = "squared_error" if real else "cross_entropy"
    recipe = resolve_recipe(TrainConfig(model="mlp", loss=loss, augment="crop-flip"))
    with pytest.raises(UsageError, match="moves images, and not the labels of their places"):
        Training(nn.Conv2d(1, 2, 1), samples, samples, recipe)


def test_outputs_that_do_not_fit_in_training_mode() -> None:
    samples = Samples(*[torch.zeros(8, 3, dtype=torch.int64)] * 2)
    training = Training(Turning(), samples, samples, resolve_recipe(TrainConfig(model="mlp")))
    message = r"in training mode the model must return outputs of shape \[samples, 3, classes\]"
    with pytest.raises(InputError, match=message):
        training.run()


def test_a_single_output_keeps_its_axis() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    with pytest.raises(InputError, match=r"it returned \(2,\)") as error:
        check_outputs(model, Samples(torch.zeros(2, 4), torch.ones(2, 1)), LossFunction())
    assert error.value.hint == "a single output keeps its axis: [samples, 1]"


@pytest.mark.parametrize(
    ("labels", "outputs", "hint"),
    [
        ([0, 5], 3, None),
        ([0, 1], 1, "two classes have two outputs"),
        ([[0, 255]], 3, "padding"),
        ([[0, -1]], 3, "padding"),
        ([-100, -1], 3, None),
    ],
)
def test_labels_without_an_output(labels: list[Any], outputs: int, hint: str | None) -> None:
    with pytest.raises(InputError, match=rf"have label -?\d+, but .* {outputs} class") as error:
        refuse_unknown(torch.tensor(labels), outputs)
    assert error.value.hint is hint or str(hint) in str(error.value.hint)
    samples = Samples(torch.zeros(len(labels), 2), torch.tensor(labels))
    with pytest.raises(InputError), Objective(nn.Linear(2, outputs), samples):
        pass


def _data(**change: Any) -> dict[str, Any]:
    x = np.zeros((3, 2), "float32")
    return {"x_train": x, "y_train": [], "x_test": x, "y_test": [], **change}


@pytest.mark.parametrize(
    ("train", "test", "message", "hint"),
    [
        (np.array([0.5, 2, 1]), np.array([0, 2, 1]), r"y_train .* must be \[3, 3\]", "in both"),
        (np.array([0.5, 2, np.inf]), np.ones(3), "y_train is not finite in row 2", None),
        (np.array([0.5, 2, 1e300]), np.ones(3), "y_train is not finite in row 2", None),
        (np.ones((3, 2)), np.ones((3, 1)), r"y_test has shape .* be \[3, 2\], a tar", None),
        (np.zeros((3, 4), int), np.zeros((3, 5), int), r"\[3, 5\], but y_train has shape", None),
        (np.eye(3, dtype=int), np.zeros(3, int), r"\[3\], but y_train has shape", "one-hot"),
        (np.zeros((3, 1), int), np.zeros((3, 1), int), "there is one label a row", "float32"),
        (np.array([[1, 2], [0, -1], [0, 0]]), np.zeros((3, 2), int), "label -1", "padding"),
        (np.array([1, -2, 0]), np.zeros(3, int), "label -2 in row 1", "real targets"),
        (np.array([1, 0, -100]), np.zeros(3, int), "label -100 in row 2", "real targets"),
        (
            np.array([[0, -100], [-100] * 2, [1, 1]]),
            np.zeros((3, 2), int),
            "no label in row 1",
            None,
        ),
        (np.array([1, 2, 0]), np.array([0.5, 0.1, 2]), r"y_test .* must be \[3, 3\]", "in both"),
        (np.full((3, 2), 0.5), np.array([[0.5, 0.5], [0.5, 0.4], [1, 0]]), "no dist.* 1", "both"),
    ],
)
def test_targets_that_are_refused(train: Any, test: Any, message: str, hint: str | None) -> None:
    with pytest.raises(InputError, match=message) as error:
        from_arrays("own.npz", _data(y_train=train, y_test=test)).validate("own.npz")
    assert error.value.hint is hint or str(hint) in str(error.value.hint)


def test_one_number_a_row_is_one_input() -> None:
    numbers = np.zeros(3, "float32")
    with pytest.raises(InputError, match=r"x_train has shape \[3\]") as error:
        from_arrays("own.npz", dict.fromkeys(("x_train", "y_train", "x_test", "y_test"), numbers)
        ).validate("own.npz")  # fmt: skip
    assert error.value.hint == "x[:, None]"


def test_a_large_vocabulary() -> None:
    x = np.array([[0, 151_642]])
    data = from_arrays("here", {"x_train": x, "y_train": x, "x_test": x, "y_test": x})
    assert data.validate("here").num_classes == 151_643


def test_how_many_values_a_target_has() -> None:
    one = from_arrays("here", _data(y_train=np.array([0.5, 2, 1]), y_test=np.ones(3)))
    assert one.validate("here").num_classes == 1
    assert one.y_train.tolist() == [[0.5], [2], [1]]
    image = np.ones((3, 4, 5), "float32")
    many = from_arrays("here", _data(y_train=image, y_test=image)).validate("here")
    assert many.num_classes == 20
    assert many.has_real_targets
    soft = np.full((3, 2), 0.5)
    assert not from_arrays("here", _data(y_train=soft, y_test=soft)).has_real_targets


@pytest.mark.parametrize("loss", [LossFunction(), LossFunction("squared_error", 0.1)])
def test_real_targets_want_a_loss_that_is_of_them(loss: LossFunction) -> None:
    samples = Samples(torch.zeros(3, 2), torch.tensor([[0.5, 0.5], [2.5, -1.0], [0.0, 1.0]]))
    message = "no distribution over classes in row 1: the least entry is -1, the sum 1.5"
    with (
        pytest.raises(InputError, match=message) as error,
        Objective(nn.Linear(2, 2), samples, loss),
    ):
        pass
    assert "--loss squared_error" in str(error.value.hint)
    recipe = resolve_recipe(
        TrainConfig(model="mlp", loss=loss.name, label_smoothing=loss.label_smoothing)
    )
    with pytest.raises(InputError, match=message):
        Training(nn.Linear(2, 2), samples, samples, recipe)


# The command line.


def _sine(path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (96, 3)).astype("float32")
    y = np.sin(2 * x[:, 0]) + x[:, 1]
    y[5] = -100  # a target as any other
    np.savez(path, x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:])


def _results(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())["results"]
    return found


def test_regression_from_training_to_the_table(lgo: Lgo) -> None:
    _sine(Path("sine.npz"))
    named = ("--dataset", "sine.npz", "--model-arg", "hidden=6", "--epochs", 3)
    refused = lgo("train", *named, code=3)
    assert "sine.npz: y_train has targets of shape [1], not one distribution" in refused.stderr
    assert "are fitted by --loss squared_error" in refused.stderr
    for seed in (0, 1):
        out = ("--seed", seed, "--out", f"run{seed}")
        trained = lgo("train", *named, "--loss", "squared_error", *out)
    assert "accuracy" not in trained.stdout
    assert "ignored" not in lgo("hessian", "run0", "--top-k", 1, "--trace").stdout
    lgo("interp", "run0", "--to", "run1", "--align", "--num-points", 5)
    surface = lgo("contour", "run0", "--resolution", 5, "--test")
    assert "accuracy" not in surface.stdout
    lgo("export", "run0", "--to", "csv")
    assert "verified: train, hessian, interp, contour" in lgo("verify", "run0").stdout
    lgo("show", "run0")
    train, hessian = _results("run0/train.json"), _results("run0/hessian.json")
    assert train["train_accuracy"] is train["test_accuracy"] is None
    assert _results("run0/contour.json")["test"]["accuracy_at_center"] is None
    assert hessian["trace"]["standard_error"] == 0  # exact
    assert "accuracy" not in Path("run0/interp_caption.txt").read_text()
    assert "accuracy" not in Path("run0/contour_caption.txt").read_text()
    (row,) = csv.DictReader(lgo("table", "run0", "--format", "csv").stdout.splitlines())
    assert row["test_accuracy"] == ""
    assert float(row["test_loss"]) == train["test_loss"]
    columns = np.genfromtxt("run0/train.csv", delimiter=",", names=True)
    for figure in (
        draw_training(columns, train),
        draw_interpolation(dict(np.load("run0/interp.npz")), _results("run0/interp.json")),
    ):
        labels = [axes.get_ylabel() for axes in figure.axes]
        assert "accuracy" not in str(labels)
        assert sum("loss" in label for label in labels) == 1


TAGGER = """
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embed = nn.Embedding(num_classes, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.head = nn.Linear(6, num_classes)
    def forward(self, x):
        return self.head(self.lstm(self.embed(x))[0])

def build(num_classes):
    return Tagger(num_classes)

def text(length=6):
    tokens = torch.arange(40 * length + 1) ** 2 % 7
    x, y = tokens[:-1].view(-1, length), tokens[1:].view(-1, length).clone()
    y[3, 4:] = -100
    return x[:30], y[:30], x[30:], y[30:]
"""


def test_a_word_of_the_test_samples_that_the_model_has_not(lgo: Lgo) -> None:
    Path("net.py").write_text(TAGGER + "\ndef small(): return build(7)\n")
    x = np.arange(24).reshape(4, 6) % 7
    np.savez("words.npz", x_train=x, y_train=x, x_test=x, y_test=x + (x == 6))
    refused = lgo("train", "--model", "net.py:small", "--dataset", "words.npz", code=3)
    assert "the data have label 7, but the model puts out 7 classes" in refused.stderr


def test_a_language_model_from_training_to_the_surface(lgo: Lgo) -> None:
    Path("net.py").write_text(TAGGER)
    named = ("--model", "net.py:build")
    data = ("--dataset", "net.py:text", "--lr", 0.3, "--epochs", 4, "--batch-size", 8)
    lgo("train", *named, *data, "--out", "run", "--save-every", 8)
    table = lgo("hessian", "run", *named, "--dataset", "net.py:text", "--top-k", 1).stdout
    assert "net.py:text, 6 labels each, of which 2 in all are ignored, float32" in table
    lgo("contour", "run", *named, "--dataset", "net.py:text", "--resolution", 5, "--plane", "pca")
    caption = Path("run/contour_caption.txt").read_text()
    assert (
        "30 of 30 train samples and the 6 labels of each, of which 2 in all are ignored" in caption
    )
    lgo("verify", "run")
    train, hessian = _results("run/train.json"), _results("run/hessian.json")
    assert hessian["measured"]["labels_per_sample"] == 6
    assert hessian["loss"] == pytest.approx(train["train_loss"], rel=1e-6)
    assert hessian["warnings"] == [] or "classes" not in str(hessian["warnings"])
    assert 0 < train["train_accuracy"] < 1
