"""Rewritten models are the same function of the same parameters, or are not used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models import mobilenet_v3_small

from lgo_cli.curvature import folding
from lgo_cli.curvature.folding import Rewritten, fold
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.landscape.permutations import find_symmetries
from lgo_cli.objective import Objective
from lgo_cli.results import counted
from lgo_cli.samples import Samples


class UsersBlock(nn.Module):
    """As people write them: functional activations, a projection, a subclassed convolution."""

    class Conv(nn.Conv2d):
        pass

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(num_out)
        self.second = self.Conv(num_out, num_out, 3, padding=1)
        self.other_norm = nn.BatchNorm2d(num_out, eps=1e-3)
        self.project = nn.Conv2d(num_in, num_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm(self.first(x)), inplace=True)
        out = self.other_norm(self.second(out))
        return torch.relu(out + self.project(x))


class UsersResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([UsersBlock(2, 4, 1), UsersBlock(4, 4, 2)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Functional(nn.Module):
    """Convolution and batch norm as functions of parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 2, 3, 3) / 4)
        self.gamma = nn.Parameter(torch.rand(4) + 0.5)
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("variance", torch.rand(4) + 0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, stride=2)
        x = F.batch_norm(x, self.mean, self.variance, self.gamma, training=False)
        return self.head(torch.tanh(x).mean((2, 3)))


class Branching(nn.Module):
    """Control flow that tracing cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x).mean((2, 3))
        return out if out.sum() > 0 else 2 * out


class Asking(nn.BatchNorm2d):
    """As timm writes it: a function, after a look at the number of axes."""

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"{x.ndim} axes")
        torch._assert(x.dim() == 4, "other axes")
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, 0.1, self.eps)


class Counting(nn.Module):
    """Asks a tensor for its number of samples as of any sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.reshape(len(x), -1, 8, 8))).relu()
        return self.head(x.reshape(len(x), -1) + x.new_zeros(len(x), 1))


def _plain(*layers: nn.Module, width: int = 4) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


MODELS = {
    "a user's ResNet": (UsersResNet, 4, 6),
    "functional": (Functional, 1, 1),
    "grouped, dilated": (
        lambda: _plain(
            nn.Conv2d(2, 4, 3, dilation=2, groups=2), nn.BatchNorm2d(4), nn.Tanh(),
            nn.Conv2d(4, 4, (2, 1), bias=False), nn.BatchNorm2d(4, affine=False), nn.Tanh(),
        ), 2, 2,
    ),
    "norm first, or used twice": (
        lambda: _plain(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 2), nn.GELU()), 0, 1,
    ),
    "circular padding stays": (
        lambda: _plain(
            nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4), nn.Tanh(),
            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        ), 1, 1,
    ),
    "a user's norm that asks for the axes, identities": (
        lambda: _plain(
            nn.Conv2d(2, 4, 3), Asking(4), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Identity(), Asking(4),
        ), 2, 2,
    ),
    "len": (Counting, 1, 1),
    "no gradient into the input of the second": (
        lambda: _plain(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.Tanh()),
        0, 2,
    ),
}  # fmt: skip


def _made(name: str) -> tuple[nn.Module, Samples]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name][0]()
        samples = Samples(torch.randn(12, 2, 8, 8), torch.arange(12) % 3)
        with torch.no_grad():
            model.train()(samples.inputs * 2 + 1)  # statistics that are not the initial ones
    return model, samples


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_function_of_the_same_parameters(name: str, dtype: torch.dtype) -> None:
    model, samples = _made(name)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-13
    with Objective(model, samples, micro_batch_size=5, dtype=dtype) as objective:
        for own_derivatives in (True, False):
            found = fold(objective, own_derivatives=own_derivatives)
            assert found.call is not model
            norms, convolutions = MODELS[name][1:3]
            seen = counted(convolutions, "convolution")
            done = f"{counted(norms, 'batch norm')} folded into {seen}, "
            expected_note = done if norms else f"{seen} rewritten, "
            assert found.note.startswith(expected_note), found.note
            plain = HessianOperator(objective, model=Rewritten(model, ""))
            rewritten = HessianOperator(objective, model=found)
            draw = torch.Generator().manual_seed(1)
            for _ in range(3):
                v = torch.randn(objective.dim, generator=draw, dtype=dtype)
                expected, product = plain.matvec(v), rewritten.matvec(v)
                assert float((product - expected).norm()) <= tolerance * float(expected.norm())
            # Elsewhere too: the parameters are the model's own, nothing is baked in.
            elsewhere = objective.theta * 0.7
            with objective.at(elsewhere), torch.no_grad():
                batch = objective.samples
                torch.testing.assert_close(
                    objective.batch_outputs(batch, found.call),
                    objective.batch_outputs(batch),
                    rtol=tolerance, atol=tolerance,
                )  # fmt: skip


def test_frozen_convolution_in_the_middle() -> None:
    model, samples = _made("a user's ResNet")
    model.blocks[0].second.weight.requires_grad_(False)  # type: ignore[union-attr, index]
    with Objective(model, samples, dtype=torch.float64) as objective:
        v = torch.ones(objective.dim, dtype=torch.float64)
        expected = HessianOperator(objective, model=Rewritten(model, "")).matvec(v)
        found = HessianOperator(objective)
        assert "folded into" in found.model.note
        torch.testing.assert_close(found.matvec(v), expected, rtol=1e-10, atol=1e-12)


def test_products_that_float32_loses_are_compared_in_float64() -> None:
    """Before training, activations shrink until rounding carries them over their kinks.

    Outputs were equal to 1e-6 and products off by 0.46, or by 0.2, in float32 and 2e-10 in float64;
    the model was not rewritten.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mobilenet_v3_small(num_classes=4)
        samples = Samples(torch.randn(8, 3, 64, 64), torch.arange(8) % 4)
    with Objective(model, samples) as objective:
        found = fold(objective)
        assert found.note.startswith("34 batch norms folded into 52 convolutions, outputs equal")
        assert found.note.endswith(" (float64)")
        # Each dtype's own tensors are back.
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert folding._differences(objective, found.call)[1] > folding.PRODUCT_TOLERANCE


class _Layers(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        """Of its own: PyTorch 2.6 compiles no module in place whose forward is in torch.nn."""
        for layer in self:
            x = layer(x)
        return x


@pytest.mark.parametrize("part", ["whole", "inner", "in place"])
def test_what_was_compiled_runs_as_it_was_written(part: str) -> None:
    """Compiled functions have no second derivative: such models were refused, and never traced."""
    compiled_calls = []

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled_calls.append(graph)
        return graph.forward

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            _Layers(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh()), nn.Flatten(),
            nn.Linear(12, 3),
        )  # fmt: skip
        inputs = torch.randn(6, 1, 4, 4)
    samples = Samples(inputs, torch.arange(6) % 3)
    with Objective(model, samples, dtype=torch.float64) as objective:
        v = torch.ones(objective.dim, dtype=torch.float64)
        expected = HessianOperator(objective).matvec(v)
    compiled: Any = model
    if part == "whole":
        compiled = torch.compile(model, backend=backend)
    elif part == "inner":
        model[0] = torch.compile(model[0], backend=backend)  # type: ignore[assignment]
    else:
        model[0].compile(backend=backend)
    with Objective(compiled, samples, dtype=torch.float64) as objective:
        found = HessianOperator(objective)
        assert found.model.note.startswith("1 batch norm folded into 1 convolution, ")
        torch.testing.assert_close(found.matvec(v), expected, rtol=1e-12, atol=1e-14)
    assert len(find_symmetries(compiled, inputs).groups) == 1
    assert not compiled_calls
    compiled.eval()(inputs)
    assert compiled_calls  # and it is compiled again for its owner


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims: int) -> None:
    conv, norm = ((nn.Conv1d, nn.BatchNorm1d), None, (nn.Conv3d, nn.BatchNorm3d))[dims - 1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(conv(2, 3, 2), norm(3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
        inputs = torch.randn(6, 2, *[4] * dims)
        model(inputs)
    with Objective(model, Samples(inputs, torch.arange(6) % 3), dtype=torch.float64) as objective:
        found = HessianOperator(objective)
        assert found.model.note.startswith("1 batch norm folded into 1 convolution, ")
        v = torch.ones(objective.dim, dtype=torch.float64)
        expected = HessianOperator(objective, model=Rewritten(model, "")).matvec(v)
        torch.testing.assert_close(found.matvec(v), expected, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_traced_runs_as_it_is() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Branching()
        samples = Samples(torch.randn(4, 2, 6, 6), torch.arange(4) % 3)
    with Objective(model, samples) as objective:
        found = fold(objective)
        assert found.call is model
        assert "cannot be traced" in found.note
        assert HessianOperator(objective).matvec(objective.theta).isfinite().all()


def test_a_rewriting_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = _made("a user's ResNet")
    monkeypatch.setattr(folding, "_differences", lambda objective, call: (0.0, 0.5))
    with Objective(model, samples) as objective:
        found = fold(objective)
    assert found.call is model
    assert "not rewritten: it would move outputs by 0.0e+00, products by 5.0e-01" in found.note


class Alone(Branching):
    """Another function of one sample, by a look at a number that tracing sees as none."""

    def forward(self, x: Tensor) -> Tensor:
        number = x.shape[0]
        factor = 2 if isinstance(number, int) and number == 1 else 1
        return factor * self.conv(x).mean((2, 3))


def test_a_rewriting_that_differs_on_one_sample_is_not_used() -> None:
    model, samples = Alone(), Samples(torch.randn(9, 2, 8, 8), torch.zeros(9, dtype=torch.long))
    with Objective(model, samples) as objective:
        found = fold(objective)
    assert found.call is model
    assert "not rewritten: it would move outputs by 5.0e-01" in found.note


def test_memory_that_ends_is_not_a_model_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = _made("a user's ResNet")
    monkeypatch.setattr(folding, "_differences", lambda objective, call: torch.empty(2**45))
    with (
        Objective(model, samples) as objective,
        pytest.raises(RuntimeError, match="can't allocate memory"),
    ):
        fold(objective)


def test_dense_models_are_left_alone() -> None:
    model = nn.Linear(3, 2)
    with Objective(model, Samples(torch.ones(2, 3), torch.tensor([0, 1]))) as objective:
        assert fold(objective) == Rewritten(model, "no convolution to rewrite")


class LeNet(nn.Module):
    """Views by size what channels last cannot view; pads by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding="same")
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 3, 2, padding="valid")
        self.head = nn.Linear(3 * 49, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv(input=x)))
        x = torch.tanh(self.other(x))
        return self.head(x.view(x.size(0), -1))


def test_views_keep_channels_first(capfd: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LeNet()
        samples = Samples(torch.randn(6, 2, 8, 8), torch.arange(6) % 3)
    with Objective(model, samples, dtype=torch.float64) as objective:
        found = HessianOperator(objective)
        assert found.model.note.startswith("1 batch norm folded into 2 convolutions")
        v = torch.ones(objective.dim, dtype=torch.float64)
        expected = HessianOperator(objective, model=Rewritten(model, "")).matvec(v)
        torch.testing.assert_close(found.matvec(v), expected, rtol=1e-10, atol=1e-12)
    assert capfd.readouterr().err == ""
