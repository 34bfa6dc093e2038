"""The fast path against the model's own pass: equal where it serves, else given up."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_networks import NETWORKS, make
from torch import Tensor, nn

from lgo_cli.curvature.convolutions import can_fuse, laid_out
from lgo_cli.curvature.folding import _folded, fold
from lgo_cli.curvature.tracing import trace
from lgo_cli.errors import first_sentence
from lgo_cli.landscape.batchnorm import BatchNorm
from lgo_cli.landscape.evaluator import NUM_COMPARED, TOLERANCE, Evaluator
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.runs.loaded import machine_settings
from lgo_cli.samples import Evaluation, Samples
from lgo_cli.seeding import standard_normal

POINTS = [(0.0, 0.0), (0.3, -0.2), (-1.0, 1.0), (2.0, 0.0)]
EPS = torch.finfo(torch.float32).eps


class Functional(nn.Module):
    """A user's network: functions for layers, inputs standardised by buffers, an unusual name."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(16, 48) / 7)
        self.b1 = nn.Parameter(torch.randn(16) / 7)
        self.w2 = nn.Parameter(torch.randn(3, 16) / 4)
        self.register_buffer("mean", torch.tensor(0.1))

    def forward(self, images: Tensor) -> Tensor:
        x = (images - self.mean).flatten(1) * 2.0
        return F.linear(torch.relu(F.linear(x, weight=self.w1, bias=self.b1)), self.w2)


class TwoTowers(nn.Module):
    """Two wide layers see the inputs, one of them frozen, one without a bias, one tied."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(48, 8, bias=False)
        self.right = nn.Linear(48, 8)
        self.right.requires_grad_(False)
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        again = torch.tanh(self.left(torch.tanh(self.left(x) @ self.left.weight)))
        return self.head(torch.cat([again, self.right(x)], dim=1))


class Convolutional(nn.Module):
    """Functional activations and normalisation after convolutions, with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(x + self.bn2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


def _images(n: int = 90) -> Samples:
    draw = torch.Generator().manual_seed(5)
    return Samples(torch.randn(n, 3, 4, 4, generator=draw), torch.arange(n) % 3)


def _build(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = kind()
        model(2 * _images().inputs + 1)  # running statistics that are not the initial ones
    return model


def _directions(objective: Objective, number: int = 2) -> Tensor:
    drawn = [standard_normal(objective.dim, 3, "test", i) for i in range(number)]
    return 0.3 * torch.stack(drawn).to(objective.theta)


def _check(evaluator: Evaluator, room: float) -> None:
    for point in POINTS:
        fast, plain = evaluator(*point), evaluator.reference(*point)
        assert fast.loss == pytest.approx(plain.loss, rel=room)
        assert fast.standard_error == pytest.approx(plain.standard_error, rel=100 * room)
        assert fast.num_samples == plain.num_samples
        near = pytest.approx(plain.accuracy, abs=1 / plain.num_samples, nan_ok=True)
        assert fast.accuracy == near


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Functional, "first linear layer kept (48 to 16)"),
        (TwoTowers, "first linear layer kept (48 to 8, 48 to 8)"),
        (Convolutional, "2 batch norms folded into 2 convolutions, channels last"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 3, 4), nn.BatchNorm2d(3), nn.Flatten()),
            "1 batch norm folded into 1 convolution, channels last",
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 3, 4), nn.BatchNorm2d(3), nn.Identity(), nn.ReLU(), nn.Flatten()
            ),
            "1 batch norm folded into 1 convolution, channels last",
        ),
    ],
)
def test_fast_path_is_the_model(
    kind: Callable[[], nn.Module], said: str, dtype: torch.dtype
) -> None:
    model = _build(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with Objective(model, _images(), micro_batch_size=32, dtype=dtype) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        assert said in evaluator.plan
        eps = torch.finfo(dtype).eps
        assert evaluator.verify(POINTS) <= 1000 * eps
        # Sums of some dozens of terms in another order, through three layers.
        _check(evaluator, 1000 * eps)
        assert said in evaluator.plan
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [Functional, TwoTowers, Convolutional])
def test_fast_path_on_a_gpu(kind: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    model, few = _build(kind).cuda(), _images(30).to(torch.device("cuda"), dtype)
    with (
        machine_settings(None, "cuda"),
        Objective(model, _images(), micro_batch_size=40, dtype=dtype) as objective,
    ):
        directions = _directions(objective)
        for policy in ("frozen", "recompute") if kind is Convolutional else ("frozen",):
            batchnorm = BatchNorm(objective, policy)  # type: ignore[arg-type]
            evaluator = Evaluator(objective, directions, batchnorm=batchnorm)
            assert evaluator.is_fast
            assert evaluator.verify(POINTS) <= TOLERANCE
            assert evaluator.is_fast
            _check(evaluator, TOLERANCE)
            _check(evaluator.on(few), TOLERANCE)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_any_network_has_the_models_losses(name: str) -> None:
    model, samples, loss = make(name)
    with Objective(model, samples, loss, micro_batch_size=16) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        evaluator.verify(POINTS)
        _check(evaluator, TOLERANCE)


class Patches(nn.Module):
    """A wide first layer that serves five positions of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)[:, None].expand(-1, 5, -1)
        return self.head(torch.tanh(self.embed(x)).mean(1))


@pytest.mark.parametrize(
    ("kind", "num_layers", "num_outputs"), [(TwoTowers, 2, 8), (Patches, 1, 5 * 8)]
)
def test_products_of_all_layers_fit_together(
    kind: Callable[[], nn.Module],
    num_layers: int,
    num_outputs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # At the origin, along two directions, and a row's sum.
    num_bytes = num_layers * 90 * 4 * num_outputs * 4
    for less in (0, 1):
        monkeypatch.setattr("lgo_cli.landscape.evaluator.MOST_BYTES", num_bytes - less)
        with Objective(_build(kind), _images()) as objective:
            evaluator = Evaluator(objective, _directions(objective))
            _check(evaluator, TOLERANCE)
            parts = [[*products.parts, products._row] for products in evaluator._products]
            assert [len(kept) for kept in parts] == [4] * (num_layers - less)
            held = sum(part.untyped_storage().nbytes() for kept in parts for part in kept)
            assert held == num_bytes * (num_layers - less) // num_layers


@pytest.mark.parametrize("number", [1, 2, 3])
def test_lines_planes_and_more(number: int) -> None:
    with Objective(_build(Functional), _images()) as objective:
        evaluator = Evaluator(objective, _directions(objective, number))
        point = (0.5, -0.25, 1.0)[:number]
        assert evaluator(*point).loss == pytest.approx(evaluator.reference(*point).loss, rel=1e-5)
        with pytest.raises(ValueError, match=r"shorter|longer"):
            evaluator(*point, 1.0)


def test_directions_in_float64_serve_in_float32() -> None:
    model = _build(lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 5)))
    with Objective(model, _images()) as objective:
        directions = _directions(objective)
        own, double = (Evaluator(objective, each) for each in (directions, directions.double()))
        assert own(0.3, -0.2) == double(0.3, -0.2)


def test_other_samples_and_soft_labels() -> None:
    samples = _images()
    soft = Samples(samples.inputs[:7], F.one_hot(samples.labels[:7], 3).double())
    loss = LossFunction("squared_error", 0.1)
    with Objective(_build(Functional), samples, loss) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        for other in (samples.head(5), soft):
            on = evaluator.on(other)
            assert on.plan == evaluator.plan
            _check(on, 1e-5)
        assert evaluator(0.3, 0.3).num_samples == len(samples)


@pytest.mark.parametrize("policy", ["frozen", "recompute", "batch"])
def test_batch_norm_policies_hold_on_the_fast_path(policy: str) -> None:
    with Objective(_build(Convolutional), _images(), micro_batch_size=30) as objective:
        batchnorm = BatchNorm(objective, policy)  # type: ignore[arg-type]
        evaluator = Evaluator(objective, _directions(objective), batchnorm=batchnorm)
        assert ("own pass" in evaluator.plan) == (policy == "batch")
        evaluator.verify(POINTS)
        _check(evaluator, 1e-5)
        frozen = Evaluator(objective, _directions(objective))
        assert (evaluator(1.0, 0.0).loss == frozen(1.0, 0.0).loss) == (policy == "frozen")


def test_loss_that_is_not_finite_is_the_models_own() -> None:
    with Objective(_build(Convolutional), _images()) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        fast, plain = evaluator(1e30, 0.0), evaluator.reference(1e30, 0.0)
        assert not math.isfinite(plain.loss)
        assert str(fast.loss) == str(plain.loss)


class Plain(nn.Module):
    """Convolutions and ReLU without a way around them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


def test_overflow_inside_is_not_hidden_by_a_fused_relu() -> None:
    # Infinite after the second layer, NaN after the third: a ReLU that makes 0 of NaN would put
    # out a finite loss.
    with Objective(_build(Plain), _images()) as objective:
        direction = torch.zeros_like(objective.theta)
        first, _, second, *_ = objective.layout.split(direction)  # weights of two layers
        first.fill_(1e20)
        second.fill_(1e20)
        evaluator = Evaluator(objective, direction[None])
        assert "ReLU or sum in 4 of them" in evaluator.plan
        plain, fast = evaluator.reference(1.0), evaluator(1.0)
        assert not math.isfinite(plain.loss)
        assert str(fast.loss) == str(plain.loss)


class Residual(nn.Module):
    """Sums of all kinds: with what is read later, by the convolution itself, and spread out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))
        self.shrink = nn.Conv2d(4, 4, 3, stride=2)
        self.token = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        a, b, c, d, e, f = self.layers
        x = F.relu(self.stem(images))
        x = x + a(x)  # reads what it would write over
        later = torch.sigmoid(x)
        x = F.relu(b(F.relu(c(x))) + x)  # x may be written over
        x = d(x) + x * later  # the product is fresh, and no convolution has read it
        y = e(torch.relu(x))
        x = y + f(torch.relu(x)) + self.token  # two convolutions, then a spread sum
        x = self.shrink(x) + self.token.expand(1, 4, 1, 1)
        return self.head(F.relu(x + y[:, :, :1, :1]).mean((2, 3)))


def test_convolutions_add_to_what_nothing_else_reads() -> None:
    with Objective(_build(Residual), _images(), micro_batch_size=32) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        assert "ReLU or sum in 7 of them" in evaluator.plan
        assert evaluator.verify(POINTS) <= 1e-5
        _check(evaluator, 1e-5)


class Exchange(Convolutional):
    """What one convolution reads is added to before its own ReLU comes."""

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.conv1(images))
        a = self.conv2(images.mean(1, keepdim=True).expand(-1, 4, -1, -1))
        b = self.conv2(x)
        x = x + a
        return self.head((x + F.relu(b)).mean((2, 3)))


class Positions(nn.Module):
    """A sum that is larger than its first summand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 4)
        self.positions = nn.Parameter(torch.linspace(-1, 1, 20).view(1, 5, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer(images.flatten(1)[:, None]) + self.positions
        return self.head(F.relu(x).mean(1))


@pytest.mark.parametrize("kind", [Exchange, Positions])
def test_what_is_read_later_or_larger_is_not_written_over(kind: Callable[[], nn.Module]) -> None:
    with Objective(_build(kind), _images(), micro_batch_size=32) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        assert evaluator.verify(POINTS) <= 1e-5
        assert "own pass" not in evaluator.plan
        _check(evaluator, 1e-5)


def test_fused_operators_are_those_of_this_pytorch() -> None:
    assert can_fuse()


@pytest.mark.parametrize(("factor", "shift"), [(1.1, 0.08), (1.00002, 1.6e-5), (1.00001, 8e-6)])
def test_wrong_fast_path_is_given_up(factor: float, shift: float) -> None:
    with Objective(_build(Functional), _images()) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        evaluator._products[0].parts[1] *= factor  # right at the centre, and wrong away from it
        assert evaluator.verify([(0.0, 0.0)]) <= TOLERANCE
        worst = evaluator.verify([(0.0, 0.0), (1.0, 0.0)])
        assert worst == pytest.approx(shift, rel=0.1)
        assert evaluator.is_fast == (worst <= 1e-5)
        if not evaluator.is_fast:
            said = "the model's own pass: it would move the loss by"
            assert evaluator.plan == f"{said} {worst:.1e}"
            assert evaluator.verify([(0.0, 0.0)]) == evaluator.difference == worst
            assert evaluator(1.0, 0.5) == evaluator.reference(1.0, 0.5)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_bits_do_not_depend_on_the_points_before(number: int) -> None:
    """What a row's points share is kept, over several micro-batches, for each set of samples."""
    points = [(0.25, 0.5, -1.0), (-0.5, 0.5, -1.0), (0.25, 0.0, 0.5), (0.25, 0.5, 0.5), (1.0, 0, 0)]
    points = [point[:number] for point in [*points, *reversed(points)]]
    with Objective(_build(TwoTowers), _images(), micro_batch_size=40) as objective:
        directions = _directions(objective, number)
        evaluator = Evaluator(objective, directions)
        others = evaluator.on(_images(30))
        for point in points:
            for one in (evaluator, others):
                fresh = Evaluator(objective, directions).on(one.samples)
                assert one(*point) == fresh(*point)
                assert fresh.is_fast


def test_few_samples_tell_a_wrong_function(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    evaluate = Objective.evaluate

    def note(objective: Objective, samples: Samples) -> Evaluation:
        seen.append(len(samples))
        return evaluate(objective, samples)

    monkeypatch.setattr(Objective, "evaluate", note)
    for count, most in ((NUM_COMPARED + 30, NUM_COMPARED), (50, 50)):
        with Objective(_build(Functional), _images(count)) as objective:
            Evaluator(objective, _directions(objective)).verify([(0.0, 0.0), (1.0, 0.0)])
        assert seen == [most, most]
        seen.clear()
    # On other samples it is compared again, and never twice on the same.
    with Objective(_build(Functional), _images(50)) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        for one in (evaluator, evaluator.on(_images(20))):
            one.verify([(0.0, 0.0), (0.0, 0.0)])
            one.verify([(0.0, 0.0)])
    assert seen == [50, 20]


class Branching(nn.Module):
    """Control flow that depends on values: fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer(images.flatten(1))
        return x if x.sum() > 0 else 2 * x


class InPlace(Convolutional):
    """The shortcut added as torchvision's blocks do it."""

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        out = self.bn2(self.conv2(x))
        out += x
        return self.head(F.relu(out).mean((2, 3)))


class TwoNames(Convolutional):
    """fx takes y += k for y = y + k, whereby the other name keeps the old value."""

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        out = self.bn2(self.conv2(x))
        other = out
        other += x
        return self.head(F.relu(out).mean((2, 3)))


def test_sum_in_place_is_fast_unless_another_name_sees_it() -> None:
    with Objective(_build(InPlace), _images(), micro_batch_size=32) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        assert evaluator.verify(POINTS) <= 1e-5
        assert evaluator.plan.startswith("2 batch norms folded into 2 convolutions")
        assert "ReLU or sum in 2 of them" in evaluator.plan
        _check(evaluator, 1e-5)
        assert fold(objective).note.startswith("2 batch norms folded into 2 convolutions")
        losses = [evaluator.reference(*point).loss for point in POINTS]
    with Objective(_build(TwoNames), _images(), micro_batch_size=32) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        evaluator.verify(POINTS)
        assert evaluator.plan.startswith("the model's own pass: it would move the loss by ")
        # The same function as the one above.
        assert [evaluator(*point).loss for point in POINTS] == losses
        assert fold(objective).note.startswith("not rewritten: it would move outputs by ")


class Iterating(nn.Module):
    """What fx says of it goes on with 300 letters of advice."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.hidden(row) for row in x.flatten(1)])


def test_a_reason_of_pytorchs_is_its_first_sentence() -> None:
    assert trace(Iterating()) == "the model cannot be traced (Proxy object cannot be iterated)"
    for said, reason in (
        ("Wrong size! Expected 2.5, see e.g. The docs.\nMore", "Wrong size!"),
        ("see e.g. The docs. They help", "see e.g. The docs"),
        ("sizes (2.5). Try others", "sizes (2.5)"),
        ("", "ValueError"),
    ):
        assert first_sentence(ValueError(said)) == reason


def test_model_that_cannot_be_traced_runs_as_it_is() -> None:
    with Objective(_build(Branching), _images()) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        assert "own pass: the model cannot be traced" in evaluator.plan
        assert evaluator.verify(POINTS) == 0.0
        assert evaluator(0.4, 0.1) == evaluator.reference(0.4, 0.1)


def test_hooked_layer_is_left_alone() -> None:
    model = _build(TwoTowers)
    assert isinstance(model.left, nn.Linear)
    model.left.register_forward_hook(lambda module, args, output: 2 * output)
    with Objective(model, _images()) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        assert "(48 to 8)" in evaluator.plan or "own pass" in evaluator.plan
        _check(evaluator, 1e-5)


class Aliasing(nn.Module):
    """Puts out a part of what is kept, and adds to a row that is broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(48, 6)
        self.token = nn.Parameter(torch.randn(1, 6))

    def forward(self, images: Tensor) -> Tensor:
        return self.wide(images.flatten(1))[:, 1:4]


class Broadcasting(Aliasing):
    """A fresh row that broadcasts over the samples must not be written over."""

    def forward(self, images: Tensor) -> Tensor:
        row = F.linear(self.token, self.token.T.expand(6, 6))
        return (row + self.wide(images.flatten(1)))[:, :3]


@pytest.mark.parametrize("kind", [Aliasing, Broadcasting])
def test_memory_that_is_reused_is_nobody_elses(kind: Callable[[], nn.Module]) -> None:
    samples = _images(5000)  # more than one micro-batch
    with Objective(_build(kind), samples) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        _check(evaluator, 1e-5)
        assert evaluator(0.3, 0.1) == evaluator(0.3, 0.1)


class Shifting(nn.Module):
    """Writes into what the wide layer reads, by a parameter: a prefix alone would miss it."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(48))
        self.wide = nn.Linear(48, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1).clone()
        x.add_(self.shift)
        return self.head(torch.tanh(self.wide(x)))


def test_writing_in_place_before_the_wide_layer_is_left_to_the_model() -> None:
    with Objective(_build(Shifting), _images()) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        _check(evaluator, 1e-5)


class Masked(nn.Module):
    """Weights are computed, once from the parameters alone and once from the samples too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3) / 5)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(F.conv2d(images, torch.tanh(self.weight), padding=1))
        gate = torch.sigmoid(images).mean() if self.of_samples else torch.sigmoid(self.weight)
        x = F.relu(F.conv2d(x, gate.mean() * self.weight.transpose(0, 1)))
        return self.head(x.flatten(2).mean(2) @ self.weight[:, :, 0, 0].T)

    of_samples = False


class WrittenOver(Masked):
    """A weight of which a later convolution reads what was written over it meanwhile."""

    def forward(self, images: Tensor) -> Tensor:
        weight = torch.tanh(self.weight)
        x = F.relu(F.conv2d(images, weight, padding=1))
        weight.mul_(0.5)
        x = x + F.relu(F.conv2d(images, weight, padding=1))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "is_once"), [(Convolutional, True), (Masked, True), (WrittenOver, False)]
)
def test_weights_are_computed_once_for_a_point(
    kind: Callable[[], nn.Module], is_once: bool
) -> None:
    with Objective(_build(kind), _images(), micro_batch_size=32) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        assert evaluator.plan[0].isdigit(), evaluator.plan
        _check(evaluator, 1e-5)
        assert isinstance(evaluator._call, torch.fx.GraphModule)
        targets = {node.target for node in evaluator._call.graph.nodes}
        made = {_folded, laid_out, torch.tanh, torch.sigmoid} & targets
        assert made == (set() if is_once else {torch.tanh})


class Optional(nn.Module):
    """An argument of its own with a default, and what a trace keeps though nothing reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.wide = nn.Linear(48, 6)
        self.head = nn.Linear(10, 3)

    def forward(self, images: Tensor, scale: float = 2.0) -> Tensor:
        torch._assert(images.shape[1] == 3, "three channels")
        seen = F.relu(self.conv(images)).mean((2, 3))
        return self.head(torch.cat([seen, torch.tanh(self.wide(images.flatten(1)))], 1)) * scale


class AnyNumber(Optional):
    """The same of any number of arguments."""

    def forward(self, *images: Tensor) -> Tensor:
        return super().forward(images[0])


@pytest.mark.parametrize("kind", [Optional, AnyNumber])
def test_arguments_of_its_own_stand_in_no_ones_way(kind: Callable[[], nn.Module]) -> None:
    with Objective(_build(kind), _images(), micro_batch_size=32) as objective:
        evaluator = Evaluator(objective, _directions(objective))
        assert evaluator.plan.startswith("1 convolution rewritten, channels last; ")
        assert "first linear layer kept (48 to 6)" in evaluator.plan
        _check(evaluator, 1e-5)
