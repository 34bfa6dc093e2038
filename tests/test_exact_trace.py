"""Traces without probes against dense float64 twins, and the proof that allows them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from small_networks import NETWORKS, dense_ggn, dense_hessian, dense_jacobian, fit, make
from torch import Tensor, nn

from lgo_cli.config import HessianConfig, OperatorName
from lgo_cli.curvature import exact_trace as module
from lgo_cli.curvature.analysis import analyze_spectrum
from lgo_cli.curvature.exact_trace import ExactTrace, exact_trace
from lgo_cli.curvature.reads import matrix_squares
from lgo_cli.curvature.spectrum import MAX_DEVIATION, Setting, Spectrum, Trace
from lgo_cli.curvature.trace import TraceEstimate
from lgo_cli.curvature.tracing import trace
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples
from lgo_cli.vectors import Block

EXACT = 1e-10
"""Rounding of float64 sums of some thousand terms is 1e-13; anything forgotten is 1e-4 at least."""

INPUTS = 32


class Functional(nn.Module):
    """Everything by functions, with operators of Python and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 2, 3, 3) / 3)
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("variance", torch.rand(3) + 0.5)
        self.gamma, self.beta = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
        self.position = nn.Parameter(torch.randn(1, 3, 4, 4))
        self.scale = nn.Parameter(torch.randn(4))
        self.matrix = nn.Parameter(torch.randn(12, 5) / 3)
        self.weight, self.bias = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x.view(-1, 2, 4, 4), self.kernel, padding=1)
        mean, variance = cast(Tensor, self.mean), cast(Tensor, self.variance)
        x = F.relu_(F.batch_norm(x, mean, variance, self.gamma, self.beta, training=False))
        x = F.max_pool2d((x + self.position).relu() * self.scale, 2)
        x = F.leaky_relu(x.flatten(1) @ self.matrix, 0.1, inplace=True)
        return F.linear(F.dropout(x, 0.5, self.training), self.weight, self.bias) / 2 - 1


class Residual(nn.Module):
    """A small ResNet with a projection, a concatenation and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.short = nn.Conv2d(4, 4, 1, stride=2, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x.view(-1, 2, 4, 4))))
        y = self.conv(x)
        y += self.short(x)
        x = torch.cat([self.act(y), -y], dim=1)
        return self.head(x.mean((2, 3)))


class Turned(nn.Module):
    """Activations transposed by attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mixed = nn.Linear(INPUTS, 8), nn.Linear(2, 3)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu().T.H
        return self.head(self.mixed(x.view(-1, 2, 4).mT).relu().mH.flatten(1))


class Words(nn.Module):
    """Tokens, repeated in a sample and one of them padding, through piecewise linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3, padding_idx=0)
        self.hidden = nn.Linear(3, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (2 * x).long() % 5
        return self.head(torch.relu(self.hidden(self.embed(tokens))).amax(1))


class Counted(Words):
    """Its padding counted from the last row of the table."""

    def forward(self, x: Tensor) -> Tensor:
        words = F.embedding((2 * x).long() % 5, self.embed.weight, padding_idx=-4)
        return self.head(torch.relu(self.hidden(words)).amax(1))


class Transformer(nn.Module):
    """A transformer's block: attention, layer norms, positions, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(8, 4))
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm((8, 4))
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4, bias=False)
        self.group = nn.GroupNorm(2, 8)
        self.up, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 8, 4) + self.position
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)
        return self.head(F.gelu(self.up(self.group(self.norm2(x)))).mean(1))


class Positions(nn.Module):
    """Positions that are read once for all samples, and a layer that sees them alone.

    Args:
        length: Of a sample.
        axis: Whether their index has an axis of length 1 for the samples.
        last: The activation.
    """

    def __init__(
        self, length: int, *, axis: bool = False, last: Callable[[Tensor], Tensor] = F.relu
    ) -> None:
        super().__init__()
        self.length, self.axis, self.last = length, axis, last
        self.value = nn.Linear(4, 5)
        self.place, self.mixed = nn.Embedding(10, 6), nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, : 4 * self.length].view(-1, self.length, 4)
        index = torch.arange(x.shape[1], device=x.device)
        place = self.mixed(F.relu(self.place(index[None] if self.axis else index)))
        return self.head(self.last(self.value(x) + place).mean(1))


class Enlarged(nn.Module):
    """A transposed convolution, slopes and an instance norm by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(2, 3, 2, 2) / 2)
        self.slope, self.gamma = nn.Parameter(torch.rand(3)), nn.Parameter(torch.randn(3))
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("variance", torch.rand(3) + 0.5)
        self.head = nn.Linear(192, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv_transpose2d(x.view(-1, 2, 4, 4), self.kernel, stride=2)
        mean, variance = cast(Tensor, self.mean), cast(Tensor, self.variance)
        x = F.instance_norm(x, mean, variance, self.gamma, use_input_stats=False)
        return self.head(F.prelu(x, self.slope).flatten(1))


class Gelu(nn.Module):
    """No kink at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(self.first(x)))


def _mlp(activation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(INPUTS, 5), activation(), nn.Linear(5, 3))


def _conv(*layers: nn.Module, shape: tuple[int, ...] = (2, 4, 4)) -> Callable[[], nn.Module]:
    """Convolutions and a head; the layers are copied, so that each build draws its own weights."""

    def build() -> nn.Module:
        body = nn.Sequential(nn.Unflatten(1, shape), *layers, nn.ReLU(), nn.Flatten())
        size = body.eval()(torch.zeros(2, INPUTS)).shape[1]
        return nn.Sequential(body, nn.Linear(size, 3))

    return build


PIECEWISE: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(
        nn.Linear(INPUTS, 6), nn.ReLU(), nn.Linear(6, 5), nn.LeakyReLU(0.1), nn.Linear(5, 3)
    ),
    "functional": Functional,
    "residual": Residual,
    "words": Words,
    "words, padding counted from the end": Counted,
    "turned": Turned,
    "positions": lambda: Positions(8),
    # As many as there are samples in a micro-batch, and in those that prove it.
    "three positions": lambda: Positions(3),
    "positions with an axis": lambda: Positions(8, axis=True),
    "conv": _conv(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)),
    "conv with few positions": _conv(nn.Conv2d(2, 8, 3, stride=2), nn.BatchNorm2d(8)),
    "strided, padded": _conv(nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2))),
    "grouped, dilated": _conv(nn.Conv2d(2, 4, 3, dilation=2, padding=2, groups=2)),
    "depthwise, same": _conv(nn.Conv2d(2, 4, 3, padding="same", groups=2, bias=False)),
    "conv1d": _conv(nn.Conv1d(4, 3, 3, stride=2, padding=1), nn.MaxPool1d(2), shape=(4, 8)),
    "conv3d": _conv(nn.Conv3d(1, 2, 2, dilation=(1, 2, 1)), shape=(1, 2, 4, 4)),
    "pooled": _conv(
        nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(2), nn.Hardtanh(), nn.Dropout(0.5),
        nn.AdaptiveMaxPool2d(2),
    ),
    "transposed": _conv(nn.ConvTranspose2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)),
    "transposed, strided": _conv(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), groups=2), nn.BatchNorm2d(6),
    ),
    "transposed, dilated": _conv(
        # Puts out rows that no weight reaches.
        nn.ConvTranspose2d(2, 3, 2, dilation=4, padding=2, output_padding=3, bias=False)
    ),
    "transposed1d": _conv(nn.ConvTranspose1d(4, 3, 3, 2, 1, 1), shape=(4, 8)),
    "transposed3d": _conv(nn.ConvTranspose3d(1, 2, 2, (1, 2, 1)), shape=(1, 2, 4, 4)),
    "transposed by function": Enlarged,
    "prelu": _conv(nn.Conv2d(2, 3, 3), nn.PReLU(), nn.Conv2d(3, 4, 1), nn.PReLU(4, init=-0.5)),
    "prelu of vectors": _mlp(lambda: nn.PReLU(5)),
    "instance norm by running statistics": _conv(
        nn.Conv2d(2, 3, 3),
        nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    ),
    "linear at positions": lambda: nn.Sequential(
        nn.Unflatten(1, (8, 4)), nn.Linear(4, 9), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)
    ),
    "layer norm of the data": lambda: nn.Sequential(
        nn.LayerNorm(INPUTS), nn.Linear(INPUTS, 4), nn.ReLU(), nn.Linear(4, 3)
    ),
}  # fmt: skip


def objective_of(
    build: Callable[[], nn.Module],
    loss: LossFunction | None = None,
    *,
    soft: bool = False,
    freeze: str = "",
    dtype: torch.dtype = torch.float64,
    num_steps: int = 0,
) -> Objective:
    """A network on 21 random samples, with running statistics that are not the initial ones."""
    loss = loss or LossFunction()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build()
        inputs = torch.randn(21, INPUTS)
        labels = torch.randint(0, 3, (21,))
        if soft:  # which sum to one but for a rounding that is within what data may have
            labels = torch.randn(21, 3).double().softmax(1)
            labels *= torch.linspace(0.99991, 1.00009, 21).double()[:, None].roll(3, 0)
        model.train()
        with torch.no_grad():
            model(2 * inputs + 1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (freeze and name.startswith(freeze)))
    samples = Samples(inputs, labels)
    if num_steps:
        fit(model, samples, loss, num_steps)
    return Objective(model, samples, loss, micro_batch_size=9, dtype=dtype)


def exact(objective: Objective, operator: OperatorName = "hessian") -> ExactTrace:
    found = exact_trace(objective, operator, Block.whole(objective.layout))
    assert isinstance(found, ExactTrace), found
    return found


def refusal(build: Callable[[], nn.Module], operator: OperatorName = "hessian") -> str:
    with objective_of(build) as objective:
        found = exact_trace(objective, operator, Block.whole(objective.layout))
    assert isinstance(found, str)
    return found


def assert_parts(found: ExactTrace, dense: Tensor, layout: Any) -> None:
    """Of each parameter, so that errors of two cannot cancel."""
    for part, block in zip(found.parts, dense.diag().split(layout.sizes), strict=True):
        assert part == pytest.approx(float(block.sum()), rel=EXACT, abs=EXACT)


@pytest.mark.parametrize("name", list(PIECEWISE))
def test_trace_of_the_hessian_is_the_dense_twins(name: str) -> None:
    with objective_of(PIECEWISE[name]) as objective:
        found = exact(objective)
        assert found.reason == ("the network is piecewise linear: tr H = tr G; 3 backward passes")
        assert sum(found.parts) > 0.1
        assert_parts(found, dense_hessian(objective), objective.layout)


def test_trace_of_the_hessian_is_that_of_the_gauss_newton_matrix() -> None:
    """Exactly for piecewise linear networks; the matrices themselves are far apart."""
    with objective_of(PIECEWISE["mlp"]) as objective:
        hessian, ggn = dense_hessian(objective), dense_ggn(objective)
        assert float((hessian - ggn).norm() / ggn.norm()) > 0.1
        assert float(hessian.trace()) == pytest.approx(float(ggn.trace()), rel=EXACT)
    with objective_of(_mlp(nn.Tanh)) as objective:
        hessian, ggn = dense_hessian(objective), dense_ggn(objective)
        assert float(hessian.trace()) != pytest.approx(float(ggn.trace()), rel=1e-2)


@pytest.mark.parametrize(
    ("loss", "soft"),
    [
        (LossFunction("cross_entropy", 0.1), False),
        (LossFunction(), True),
        (LossFunction("squared_error"), False),
        (LossFunction("squared_error", 0.2), True),
    ],
)
@pytest.mark.parametrize("operator", ["hessian", "ggn", "fisher", "empirical-fisher"])
def test_losses(loss: LossFunction, soft: bool, operator: OperatorName) -> None:
    with objective_of(PIECEWISE["conv"], loss, soft=soft) as objective:
        found, samples = exact(objective, operator), objective.samples
        if operator == "fisher" and soft:  # its labels are the model's, and sum to one
            samples = Samples(samples.inputs, samples.labels.argmax(1))
        with objective.replaced(samples=samples, checked=True) as twin:
            assert_parts(found, _dense(twin, operator), objective.layout)


@pytest.mark.parametrize("operator", ["ggn", "fisher", "empirical-fisher"])
@pytest.mark.parametrize(
    "build",
    [
        Transformer,
        Gelu,
        Residual,
        lambda: Positions(3, axis=True, last=F.gelu),
        _conv(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.ConvTranspose2d(3, 2, 2)),
        _mlp(lambda: nn.RMSNorm(5, eps=1e-3)),
    ],
    ids=["attention", "gelu", "residual", "positions", "instance norm", "RMS norm"],
)
def test_other_matrices_need_no_kinks(
    build: Callable[[], nn.Module], operator: OperatorName
) -> None:
    with objective_of(build) as objective:
        assert_parts(exact(objective, operator), _dense(objective, operator), objective.layout)


@pytest.mark.parametrize("name", [n for n in NETWORKS if "tied" not in n and n != "LSTM"])
def test_table_of_small_networks(name: str) -> None:
    model, samples, loss = make(name)
    with Objective(model, samples, loss, micro_batch_size=7, dtype=torch.float64) as objective:
        assert_parts(exact(objective, "ggn"), dense_ggn(objective), objective.layout)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("operator", ["hessian", "ggn", "empirical-fisher"])
def test_trace_on_a_gpu(operator: OperatorName) -> None:
    for build in PIECEWISE.values():
        with objective_of(build) as objective:
            dense = _dense(objective, operator)
        model = copy.deepcopy(objective.model).cuda()  # tables share some modules
        samples, loss = objective.samples, objective.loss_function
        with Objective(model, samples, loss, micro_batch_size=9, dtype=torch.float64) as objective:
            assert_parts(exact(objective, operator), dense, objective.layout)


def test_frozen_parameters_do_not_count() -> None:
    for freeze in ("stem", "norm", "head.bias", "conv"):
        with objective_of(Residual, freeze=freeze) as objective:
            assert_parts(exact(objective), dense_hessian(objective), objective.layout)


def test_a_block_needs_a_proof_of_its_own_parameters_only() -> None:
    """Behind the last smooth activation the outputs are linear in the head's parameters."""
    with objective_of(_mlp(nn.Tanh)) as objective:
        block = Block.matching(objective.layout, ["2"])
        found = exact_trace(objective, "hessian", block)
        assert isinstance(found, ExactTrace)
        rows = block.extract(torch.arange(objective.dim))
        expected = float(dense_hessian(objective).diag()[rows].sum())
        assert found.of(block) == pytest.approx(expected, rel=EXACT)
        hidden = Block.matching(objective.layout, ["0"])
        assert "Tanh" in str(exact_trace(objective, "hessian", hidden))


@pytest.mark.parametrize(
    ("names", "num_steps"), [(list(PIECEWISE), 0), (["mlp", "functional", "conv"], 300)]
)
def test_float32_rounds_as_is_allowed(names: list[str], num_steps: int) -> None:
    """Also of networks that fit their samples, whose p(1 − p) has lost digits."""
    for name in names:
        with objective_of(PIECEWISE[name], dtype=torch.float32, num_steps=num_steps) as objective:
            spectrum = analyze_spectrum(objective, TRACE)
        with Objective(
            objective.model, objective.samples, objective.loss_function, dtype=torch.float64
        ) as twin:
            truth = float(dense_hessian(twin).trace())
        assert spectrum.trace is not None
        assert spectrum.trace.exact is not None
        assert abs(spectrum.trace.value - truth) <= spectrum.trace.rounding
        assert not any("one of them is wrong" in warning for warning in spectrum.warnings)


# The proof


@pytest.mark.parametrize(
    ("rows", "num_positions", "value"), [(1_000_000, 1, 0.7), (1_000, 600, 0.625)]
)
def test_float32_norms_of_large_weights(rows: int, num_positions: int, value: float) -> None:
    """By outer products and by the gradient itself, whose entries are exact: of a million squares.

    Sums in pairs are off by some roundings of 6e-8, one by one by 8e-4.
    """
    columns = 1_000
    a = torch.full((1, columns, num_positions), 0.125)
    delta = torch.full((1, 1, rows, num_positions), value)
    entry = num_positions * 0.125 * float(delta.flatten()[0])
    assert float(matrix_squares(a, delta)) == pytest.approx(rows * columns * entry**2, rel=1e-6)


class Then(nn.Module):
    """A linear layer, something, and another one."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, 4), nn.Linear(4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def _written_into_zeros(x: Tensor) -> Tensor:
    """What is read afterwards is the node of the zeros."""
    zeros = torch.zeros_like(x)
    zeros.add_(x)
    return zeros * zeros


BENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "softmax": lambda x: x.softmax(1),
    "sigmoid": lambda x: x.sigmoid() + x,
    "hardswish": F.hardswish,
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "instance_norm": lambda x: F.instance_norm(x[:, None])[:, 0],
    "mul": lambda x: x * x,
    "product": lambda x: x.relu() * x.abs(),
    "in place": lambda x: x.clone().mul_(x),
    "truediv": lambda x: 1 / (x.abs() + 1),
    "pow": lambda x: x**2,
    "matmul": lambda x: (x[:, :, None] @ x[:, None, :]).sum(1),
    "einsum": lambda x: torch.einsum("ni,ni->ni", x, x),
    "norm": lambda x: x / x.norm(),
    "written into": lambda x: x.new_zeros(1, 4).add(x * 0).add_(x).mul(x),
    "written into zeros": _written_into_zeros,
    "clamp": lambda x: x.clamp(min=-1) * x.clamp(max=1),
    "std": lambda x: x - x.std(1, keepdim=True),
}


@pytest.mark.parametrize("name", list(BENDS))
def test_what_bends_breaks_the_proof(name: str) -> None:
    """And rightly: each of these has another trace than its Gauss-Newton matrix."""
    assert "is not known to be piecewise linear" in refusal(lambda: Then(BENDS[name]))
    with objective_of(lambda: Then(BENDS[name])) as objective:
        hessian, ggn = (float(_dense(objective, of).trace()) for of in ("hessian", "ggn"))
    assert abs(hessian - ggn) > 1e-6 * ggn


@pytest.mark.parametrize(
    "activation",
    [
        nn.Tanh, nn.GELU, nn.Softplus, lambda: nn.Softmax(1), nn.SiLU, nn.ELU,
        lambda: nn.LayerNorm(5), lambda: nn.GroupNorm(1, 5), lambda: nn.RMSNorm(5),
    ],
)  # fmt: skip
def test_smooth_modules_break_the_proof(activation: Callable[[], nn.Module]) -> None:
    name = type(activation()).__name__
    assert refusal(_mlp(activation)) == f"1 ({name}) is not known to be piecewise linear"


STRAIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "max pool": lambda x: F.max_pool1d(x[:, None], 2, 1, 1)[:, 0, :4],
    "maximum": lambda x: torch.maximum(x, -x / 2),
    "constants": lambda x: 2 * x - x / 3 + torch.linspace(0, 1, 4),
    "shape": lambda x: x.reshape(x.shape[0], x.size(1)) / x.shape[1],
    "zeros": lambda x: torch.cat([x[:, :2], torch.zeros_like(x)], 1)[:, :4] + x.new_ones(4),
    "pad": lambda x: F.pad(x, (1, 1)).narrow(1, 1, 4),
    "stack": lambda x: torch.stack([x, x.relu()]).sum(0),
    "abs": lambda x: abs(x) - x.neg(),
}


@pytest.mark.parametrize("name", list(STRAIGHT))
def test_what_does_not_bend(name: str) -> None:
    with objective_of(lambda: Then(STRAIGHT[name])) as objective:
        assert_parts(exact(objective), dense_hessian(objective), objective.layout)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat(tensors=[x[:, :2], x[:, 2:]], dim=1),
        lambda x: torch.add(input=x, other=x),
    ],
)
def test_arguments_by_keyword_prove_nothing(function: Callable[[Tensor], Tensor]) -> None:
    assert "is not known to be piecewise linear" in refusal(lambda: Then(function))


class Twice(nn.Module):
    """One layer before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, INPUTS)
        self.head = nn.Linear(INPUTS, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(torch.relu(self.first(x))))


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS)
        self.second.weight = self.first.weight
        self.head = nn.Linear(INPUTS, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Computed(nn.Module):
    """A weight that is a function of the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, INPUTS))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight**2)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(INPUTS, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x if x.sum() > 0 else -x)


class Mixing(nn.Module):
    """Samples that see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(INPUTS, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(torch.relu(x - 0.5 * x.mean(0)))


class Faint(Mixing):
    """The same, with outputs that are next to nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e-4 * super().forward(x)


class Transposed(nn.Module):
    """Positions first, samples second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.view(-1, 8, 4).transpose(0, 1)))
        return self.head(x.sum(0))


class Expanded(nn.Module):
    """Positions that are given an axis of samples behind the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.head = nn.Embedding(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        place = self.place(torch.arange(8, device=x.device))[None].expand(x.shape[0], -1, -1)
        return self.head(torch.relu(x.view(-1, 8, 4) + place).sum(1))


class Summed(nn.Module):
    """Gives 8 rows in turn to a sample."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 8, 3).sum(1)


class TransposedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, INPUTS))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class Unseen(nn.Module):
    """A layer that autograd is kept from."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(INPUTS, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():  # tracing does not see this
            x = self.first(x)
        return self.head(torch.relu(x))


class Reflected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")
        self.head = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x.view(-1, 2, 4, 4))).flatten(1))


def _hooked() -> nn.Module:
    model = PIECEWISE["mlp"]()
    model.get_submodule("0").register_forward_hook(lambda *args: torch.tanh(args[2]))
    return model


def _hooked_root() -> nn.Module:
    model = PIECEWISE["mlp"]()
    model.register_forward_hook(lambda *args: torch.tanh(args[2]))
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "twice": (Twice, "first.weight is read more than once"),
    "tied": (Tied, "first.weight is read more than once"),
    "computed": (Computed, "weight is read by pow"),
    "branching": (Branching, "the model cannot be traced"),
    "mixing": (Mixing, "gradients read off the graph differ from autograd's"),
    "mixing faintly": (Faint, "gradients read off the graph differ from autograd's"),
    "transposed": (Transposed, "the first axis of what first (Linear) puts out is not that of"),
    "one position": (
        lambda: Positions(1),  # taken for an axis of the samples
        "the first axis of what place (Embedding) puts out is not that of samples",
    ),
    "expanded": (Expanded, "the first axis of what place (Embedding) puts out is not that of"),
    "flattened": (
        lambda: nn.Sequential(nn.Unflatten(1, (8, 4)), nn.Flatten(0, 1), nn.Linear(4, 3), Summed()),
        "the first axis of what 2 (Linear) puts out is not that of samples",
    ),
    "transposed weight": (TransposedWeight, "weight is read by T"),
    "unseen by autograd": (Unseen, "gradients read off the graph differ from autograd's"),
    "padded by reflection": (Reflected, "conv.weight is read by conv (Conv2d)"),
    "batch norm by its batch": (
        _mlp(lambda: nn.BatchNorm1d(5, track_running_stats=False)),
        "1.weight is read by 1 (BatchNorm1d)",
    ),
    "hook": (_hooked, "0.weight is read by 0 (Linear)"),
    "hook of the whole": (_hooked_root, "gradients read off the graph differ from autograd's"),
}


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_proved_is_refused(name: str, operator: OperatorName) -> None:
    build, reason = REFUSED[name]
    assert refusal(build, operator).startswith(reason)


def test_replaced_forward_proves_nothing() -> None:
    """What is set on one module, as libraries do that wrap others' models, is not its class's."""

    def build() -> nn.Module:
        model = PIECEWISE["mlp"]()
        relu = next(module for module in model.modules() if isinstance(module, nn.ReLU))
        relu.forward = torch.tanh  # type: ignore[method-assign, assignment]
        return model

    assert refusal(build).endswith("(ReLU) is not known to be piecewise linear")
    model = PIECEWISE["mlp"]()
    model.forward = torch.tanh  # type: ignore[method-assign, assignment]
    assert trace(model) == "the model cannot be traced (its forward is not its class's)"


def test_many_outputs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BACKWARD_PASSES", 2)
    assert "3 backward passes" in refusal(PIECEWISE["mlp"])
    with objective_of(PIECEWISE["mlp"]) as objective:
        assert exact(objective, "empirical-fisher").reason == "closed form; 1 backward pass"


# In the analysis

TRACE = HessianConfig(top_k=2, bottom_k=0, trace=True, audit=False)


def _analyzed(
    build: Callable[[], nn.Module], setting: Setting | None = None, **changes: Any
) -> Any:
    config = TRACE.model_copy(update={"dtype": "float64", **changes})
    with objective_of(build) as objective:
        return analyze_spectrum(objective, config, setting), dense_hessian(objective)


def _trace_of(spectrum: Spectrum) -> Trace:
    assert spectrum.trace is not None
    return spectrum.trace


def test_probes_stand_beside_an_exact_trace() -> None:
    spectrum, dense = _analyzed(PIECEWISE["mlp"], trace_rtol=1e-9)
    trace = _trace_of(spectrum)
    assert trace.value == pytest.approx(float(dense.trace()), rel=EXACT)
    assert (trace.standard_error, trace.converged) == (0.0, True)
    assert spectrum.converged
    assert trace.estimate.num_probes == 20
    assert trace.estimate.standard_error > 0
    assert trace.deviation is not None
    assert trace.deviation < MAX_DEVIATION
    assert not spectrum.warnings


def test_estimate_where_there_is_no_proof() -> None:
    spectrum, dense = _analyzed(_mlp(nn.Tanh), trace_matvecs=60)
    trace = _trace_of(spectrum)
    assert trace.exact is trace.deviation is None
    assert trace.note == "1 (Tanh) is not known to be piecewise linear"
    assert trace.value == trace.estimate.value
    assert trace.standard_error == trace.estimate.standard_error > 0
    assert abs(trace.value - float(dense.trace())) < 4 * trace.standard_error
    scaled, _ = _analyzed(PIECEWISE["mlp"], scaling="elementwise")
    assert _trace_of(scaled).note == "the matrix is scaled"


def test_decay_layers_and_halves() -> None:
    setting = Setting(weight_decay=0.25)
    changes = {"include_weight_decay": True, "per_layer": True, "halves": True}
    spectrum, dense = _analyzed(PIECEWISE["mlp"], setting, **changes)
    P = len(dense)
    assert _trace_of(spectrum).value == pytest.approx(float(dense.trace()) + 0.25 * P, rel=EXACT)
    note = "tr H = tr G; 3 backward passes; + ωP by weight decay"
    assert _trace_of(spectrum).note.endswith(note)
    assert spectrum.layers is not None
    start = 0
    for layer in spectrum.layers:
        part = dense.diag()[start : start + layer.num_parameters] + 0.25
        start += layer.num_parameters
        assert layer.trace.value == pytest.approx(float(part.sum()), rel=EXACT)
        assert layer.trace.standard_error == 0.0 < layer.trace.estimate.standard_error
    assert spectrum.halves is not None
    both = [half.trace.value - 0.25 * P for half in spectrum.halves if half.trace is not None]
    # 10 and 11 samples.
    mean = (10 * both[0] + 11 * both[1]) / 21
    assert mean == pytest.approx(float(dense.trace()), rel=EXACT)
    assert both[0] != pytest.approx(both[1], rel=1e-3)
    only, _ = _analyzed(PIECEWISE["mlp"], setting, include_weight_decay=True, layers=["4"])
    assert _trace_of(only).value == pytest.approx(spectrum.layers[-1].trace.value, rel=EXACT)


def test_contradiction_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = ExactTrace.of
    monkeypatch.setattr(ExactTrace, "of", lambda self, block: 1.5 * truth(self, block))
    spectrum, _ = _analyzed(PIECEWISE["mlp"])
    assert any("one of them is wrong" in warning for warning in spectrum.warnings)
    assert not spectrum.converged


def test_deviation_counts_standard_errors_beyond_rounding() -> None:
    estimate = TraceEstimate(10.0, 0.5, 8.0, 3.0, 0.1, 20, 20, 50, True)
    trace = Trace(estimate, 12.25, 0.05, 0.2, "")
    assert trace.deviation == pytest.approx(4.0)
    assert replace(trace, exact=10.1).deviation == 0.0
    assert replace(trace, exact=None).deviation is None
    assert replace(trace, estimate=replace(estimate, num_probes=19)).deviation is None
    whole = replace(estimate, num_probes=0, standard_error=0.0)
    assert replace(trace, estimate=whole).deviation == math.inf
    assert replace(trace, estimate=whole, exact=10.2).deviation == 0.0


def _dense(objective: Objective, operator: str) -> Tensor:
    if operator == "hessian":
        return dense_hessian(objective)
    if operator == "empirical-fisher":
        gradients = dense_jacobian(objective, of_losses=True)
        return gradients.T @ gradients / len(objective.samples)
    return dense_ggn(objective)
