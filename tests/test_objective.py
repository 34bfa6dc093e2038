from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import Self

import pytest
import torch
import torch.nn.functional as F
from small_networks import NETWORKS, Merging, fit, make
from torch import Tensor, fx, nn

from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.curvature.tracing import trace
from lgo_cli.determinism import coupling, nondeterministic_module, sensitivities
from lgo_cli.errors import InputError, NumericsError, UsageError
from lgo_cli.gradients import gradients
from lgo_cli.loss import LossFunction
from lgo_cli.models.resnet import resnet
from lgo_cli.modes import uncompiled
from lgo_cli.objective import COUPLED, Objective
from lgo_cli.samples import Samples, default_micro_batch_size
from lgo_cli.seeding import rademacher, standard_normal
from lgo_cli.vectors import flatten


def _samples(n: int = 100, dim: int = 5, classes: int = 3) -> Samples:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, dim, generator=draw)
    return Samples(inputs, torch.randint(0, classes, (n,), generator=draw))


def _network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 3)
        )
        model(torch.randn(64, 5))  # running statistics that are not the initial ones
    return model


@pytest.mark.parametrize(("inputs", "labels"), [(3, 2), (2, 3), (0, 0)])
def test_each_sample_has_its_label(inputs: int, labels: int) -> None:
    with pytest.raises(ValueError, match=f"{inputs} inputs and {labels} labels"):
        Samples(torch.zeros(inputs, 5), torch.zeros(labels, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_sample_has_a_label_at_least(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"labels of shape \[3, 0\]: samples have none"):
        Samples(torch.zeros(3, 5), torch.zeros(3, 0, dtype=dtype))


@pytest.mark.parametrize("micro_batch_size", [1, 7, 64, 100, 1000])
def test_every_sample_weighs_the_same(micro_batch_size: int) -> None:
    model, samples = _network().double().eval(), _samples()
    outputs = model(samples.inputs.double())
    losses = F.cross_entropy(outputs, samples.labels, reduction="none").detach()
    with Objective(
        model, samples, micro_batch_size=micro_batch_size, dtype=torch.float64
    ) as objective:
        measured = objective.evaluate()
        loss, gradient = objective.loss_and_gradient()
    # Sums of 100 float64 terms of order 1 in another order: 100 ulps.
    assert measured.loss == pytest.approx(float(losses.mean()), rel=1e-14)
    assert measured.standard_error == pytest.approx(float(losses.std()) / 10, rel=1e-12)
    assert measured.accuracy == float((outputs.argmax(1) == samples.labels).double().mean())
    assert loss == pytest.approx(measured.loss, rel=1e-14)
    loss_tensor = F.cross_entropy(model(samples.inputs.double()), samples.labels)
    expected = torch.autograd.grad(loss_tensor, list(model.parameters()))
    torch.testing.assert_close(
        gradient, torch.cat([g.flatten() for g in expected]), rtol=1e-11, atol=1e-15
    )


def test_micro_batches_add_no_rounding_to_a_gradient() -> None:
    with Objective(_network(), _samples(), micro_batch_size=3) as objective:
        _, gradient = objective.loss_and_gradient()
        shares = [
            torch.autograd.grad(objective.batch_loss(batch), objective.parameters)
            for batch in objective.micro_batches()
        ]
        expected = sum(flatten(share).double() for share in shares)
    assert gradient.dtype == torch.float32
    assert torch.equal(gradient, expected.float())


def test_centre_is_the_untouched_model_to_the_bit() -> None:
    model, samples = _network(), _samples()
    model.eval()
    with torch.no_grad():
        total = sum(
            F.cross_entropy(model(x).double(), y, reduction="none").sum()
            for x, y in zip(samples.inputs.split(32), samples.labels.split(32), strict=True)
        )
    expected = float(total) / 100
    with Objective(model, samples, micro_batch_size=32) as objective:
        assert objective.center.loss == expected
        objective.displace((0.3, torch.ones(objective.dim)))
        assert objective.evaluate().loss != expected
        objective.displace((0.0, torch.ones(objective.dim)))
        assert objective.evaluate().loss == expected
        assert objective.loss(objective.theta) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fails", [False, True])
def test_leaves_the_model_as_it_was(dtype: torch.dtype, fails: bool) -> None:
    model = _network()
    model[3].eval()
    model[0].bias.requires_grad_(False)
    model[4].order = nn.Parameter(torch.arange(3), requires_grad=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    try:
        with Objective(model, _samples(), dtype=dtype) as objective:
            objective.displace((1.0, torch.ones(objective.dim, dtype=dtype)))
            for tensor in (model[1].running_mean, model[0].bias, model[4].order):
                tensor.add_(1)
            torch.randn(3)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), name
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == pointers
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True, False, *[True] * 4, False]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "measure",
    [
        lambda objective: objective.loss(torch.ones(objective.dim)),
        lambda objective: objective.loss_and_gradient(),
        lambda objective: objective.evaluate(),
        lambda objective: objective.displace(),
        HessianOperator,
    ],
    ids=["loss", "gradient", "evaluate", "displace", "operator"],
)
def test_measures_nothing_outside(measure: Callable[[Objective], object]) -> None:
    """There the model is where its own parameters are, whatever θ is asked for."""
    objective = Objective(_network(), _samples())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not entered"):
            measure(objective)
        with objective:
            measure(objective)


@pytest.mark.parametrize(
    "around",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_modes_around_it_change_nothing(around: Callable[[], AbstractContextManager[None]]) -> None:
    model, samples = _network(), _samples()

    def measured() -> tuple[float, Tensor, Tensor]:
        with Objective(model, samples) as objective:
            gradient = objective.loss_and_gradient()[1]
            return objective.center.loss, gradient, HessianOperator(objective).matvec(gradient)

    alone = measured()
    with around():
        modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        within = measured()
        assert (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == modes
    assert all(torch.equal(*map(torch.as_tensor, pair)) for pair in zip(alone, within, strict=True))


@pytest.mark.parametrize("create_graph", [False, True])
def test_zeros_of_what_has_no_part_require_no_gradient(create_graph: bool) -> None:
    """Before PyTorch 2.10 its own did: products of a model with an unused layer were no arrays."""
    used, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    whole, none = gradients((used**2).sum(), [used, unused], create_graph=create_graph)
    assert whole.tolist() == [2, 2]
    assert none.tolist() == [0, 0]
    assert whole.requires_grad is create_graph
    assert not none.requires_grad


def test_float32_is_float32_inside() -> None:
    """Training scripts allow TF32 and bfloat16, with which no bound would hold."""
    torch.set_float32_matmul_precision("medium")
    try:
        with Objective(_network(), _samples()):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
        # Threads leave in any order.
        with ExitStack() as later:
            with Objective(_network(), _samples()):
                later.enter_context(Objective(_network(), _samples()))
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_threads_that_leave_in_any_order_put_back_what_was() -> None:
    """PyTorch keeps some of its switches for each thread: another's could not be put back."""
    import torch._dynamo
    from torch._dynamo import eval_frame

    found = str(eval_frame._stance), torch._dynamo.config.error_on_nested_fx_trace
    entered = [threading.Event(), threading.Event()]

    def first() -> None:
        with uncompiled():
            entered[0].set()
            assert entered[1].wait(30)

    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(first)
        assert entered[0].wait(30)
        with uncompiled():
            entered[1].set()
            leaving.result()
            assert not torch._dynamo.config.error_on_nested_fx_trace
            assert eval_frame._stance.stance == "force_eager"
    assert (str(eval_frame._stance), torch._dynamo.config.error_on_nested_fx_trace) == found


class _Padded(nn.Module):
    """The mean over all positions, of which a mask hides some from attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.encoder(self.embedding(tokens), src_key_padding_mask=tokens == 0)
        return self.head(x.mean(dim=1))


class _Keeping(nn.Module):
    """As LeViT does: in eval mode, what was made of parameters is kept until the next training."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(3))
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode:
            self.kept = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training or "bias" not in self.kept:
            self.kept["bias"] = self.bias.exp()
        return F.linear(x, self.weight) + self.kept["bias"]


class _Dropping(_Keeping):
    """Is not to be in training mode, and has to forget before each call."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5, self.training))


class _Assigning(_Keeping):
    """As LeViT's authors' own code: kept without gradients, by the change of mode itself."""

    @torch.no_grad()
    def train(self, mode: bool = True) -> Self:
        nn.Module.train(self, mode)
        if mode and hasattr(self, "ab"):
            del self.ab
        else:
            self.keep(torch.rand(1) * 0 + self.bias.exp())  # which moves the generator too
        return self

    def keep(self, value: Tensor) -> None:
        self.ab = value

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + (self.bias.exp() if self.training else self.ab)


class _Registering(_Assigning):
    """As MobileSAM's TinyViT."""

    def keep(self, value: Tensor) -> None:
        self.register_buffer("ab", value, persistent=False)


def _frozen_merging() -> Merging:
    layer = Merging(5, 3, bias=False)
    layer.weight.requires_grad_(False)
    return layer


@pytest.mark.parametrize("mode", [True, False])
def test_weights_that_are_merged_in_eval_mode_are_measured_apart(mode: bool) -> None:
    """Nothing moved, and the gradient of what was merged was zero."""
    torch.manual_seed(0)
    model = nn.Sequential(_frozen_merging(), nn.Linear(3, 3)).train(mode)
    layer = model[0]
    samples = _samples(32)
    before = layer.weight.detach().clone()
    with Objective(model, samples, dtype=torch.float64) as objective:
        direction = standard_normal(objective.dim, 0).double()
        with objective.replaced(dtype=torch.float64):
            pass
        trace(model)
        step = 1e-5 * direction
        loss, gradient = objective.loss_and_gradient()
        assert loss == pytest.approx(objective.center.loss, rel=1e-6)  # merged in float32
        assert gradient.all()
        rise = objective.loss(objective.theta + step) - objective.loss(objective.theta - step)
        assert rise / 2e-5 == pytest.approx(float(gradient @ direction), rel=1e-6)
    assert layer.is_merged is not mode
    assert layer.training is mode
    torch.testing.assert_close(layer.weight.detach(), before)


def test_weights_are_not_left_merged_where_a_model_is_refused() -> None:
    torch.manual_seed(0)
    layer = _frozen_merging()
    before = layer.weight.detach().clone()
    last = nn.Linear(3, 3)
    nn.init.constant_(last.bias, math.nan)
    with pytest.raises(NumericsError), Objective(nn.Sequential(layer, last), _samples(32)):
        pass
    assert not layer.is_merged
    torch.testing.assert_close(layer.weight.detach(), before)


@pytest.mark.parametrize("kind", [_Keeping, _Dropping, _Assigning, _Registering])
def test_what_a_model_keeps_in_eval_mode_follows_its_parameters(kind: type[_Keeping]) -> None:
    """Losses did not move with them, gradients were zero, and a trace left its proxies behind."""
    torch.manual_seed(0)
    model = kind().eval()
    samples = Samples(torch.randn(8, 4), torch.arange(8) % 3)
    outputs = model(samples.inputs).detach()
    bias, weight = (parameter.detach().double() for parameter in (model.bias, model.weight))

    def loss(theta: Tensor) -> Tensor:
        z = F.linear(samples.inputs.double(), theta[3:].view(3, 4)) + theta[:3].exp()
        return F.cross_entropy(z, samples.labels)

    drawn = torch.get_rng_state()
    with Objective(model, samples, dtype=torch.float64) as objective:
        theta = torch.cat([bias, weight.flatten()])
        assert isinstance(trace(model), fx.GraphModule)
        with Objective(model, samples, dtype=torch.float64, checked=True) as part:
            assert part.loss_and_gradient()[1][:3].all()
        elsewhere = theta + 0.1
        elsewhere[0] += 1
        assert objective.loss(elsewhere) == pytest.approx(float(loss(elsewhere)), rel=1e-12)
        vector = torch.randn(15, dtype=torch.float64)
        _, expected = torch.autograd.functional.hvp(loss, theta, vector)
        operator = HessianOperator(objective)
        torch.testing.assert_close(operator.matvec(vector), expected)
        objective.move(elsewhere)
    assert torch.equal(torch.get_rng_state(), drawn)
    torch.testing.assert_close(model(samples.inputs), outputs)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_what_is_measured_is_what_is_differentiated() -> None:
    """Without gradients PyTorch's encoder puts out zeros at masked positions, and with them not."""
    torch.manual_seed(0)
    tokens = torch.randint(1, 9, (12, 6))
    tokens[::2, 4:] = 0
    mha = torch.backends.mha
    with Objective(_Padded(), Samples(tokens, torch.arange(12) % 3)) as objective:
        measured, (differentiated, _) = objective.evaluate().loss, objective.loss_and_gradient()
        assert not mha.get_fastpath_enabled()
        mha.set_fastpath_enabled(True)
        assert abs(objective.evaluate().loss - measured) > 1e-3  # the other function
    assert mha.get_fastpath_enabled()
    assert measured == pytest.approx(differentiated, rel=1e-6)  # float32, two orders of sums


def test_vectors_are_drawn_on_the_cpu_whatever_the_default_device_is() -> None:
    expected = standard_normal(5, 0, "test"), rademacher(5, 0, "test")
    with torch.device("meta"):
        found = standard_normal(5, 0, "test"), rademacher(5, 0, "test")
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_is_entered_once_at_a_time() -> None:
    model = _network()
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    objective = Objective(model, _samples())
    for _ in range(2):
        with objective:
            with pytest.raises(RuntimeError, match="already entered"), objective:
                pass
            with objective.at(torch.zeros(objective.dim)):
                assert not any(p.any() for p in model.parameters())
        assert [parameter.data_ptr() for parameter in model.parameters()] == pointers


def test_parameters_are_views_of_one_buffer() -> None:
    model = _network()
    with Objective(model, _samples()) as objective:
        assert objective.dim == sum(p.numel() for p in model.parameters())
        with objective.at(torch.zeros(objective.dim)):
            assert not any(p.any() for p in model.parameters())
        # All outputs equal: log C to float32's rounding.
        assert objective.loss(torch.zeros(objective.dim)) == pytest.approx(math.log(3), rel=1e-6)


@pytest.mark.parametrize("num_classes", [3, 20])  # a layout for few, and one for many
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_are_as_documented(smoothing: float, soft: bool, num_classes: int) -> None:
    outputs = 3 * standard_normal(2 * num_classes, 0).view(2, num_classes)
    labels = torch.tensor([0, 1])
    targets = F.one_hot(labels, num_classes).double()
    if soft:
        labels = targets = outputs.flip(0).softmax(1)
    targets = targets * (1 - smoothing) + smoothing / num_classes
    entropy = LossFunction("cross_entropy", smoothing)(outputs, labels)
    # A handful of float64 operations.
    torch.testing.assert_close(
        entropy, -(targets * outputs.log_softmax(1)).sum(1), rtol=1e-14, atol=0
    )
    squared = LossFunction("squared_error", smoothing)(outputs, labels)
    torch.testing.assert_close(squared, ((outputs - targets) ** 2).sum(1) / 2, rtol=1e-14, atol=0)


def test_outputs_that_curve_a_loss() -> None:
    outputs = torch.tensor([[0.0, -700.0, -800.0], [1000.0, 900.0, 0.0]], dtype=torch.float64)
    curving = outputs.clone()
    curving[0, 2] = 0
    assert torch.equal(LossFunction().curving(outputs), curving)
    assert not LossFunction("squared_error").curving(outputs).any()


def test_a_loss_far_below_float32s_steps_has_its_digits() -> None:
    samples = Samples(torch.tensor([[16.0, 0.0, 0.0], [0.5, 17.5, -0.5]]), torch.tensor([0, 1]))
    network = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(3))
    with Objective(network, samples) as objective:
        found = objective.center
        loss, gradient = objective.loss_and_gradient()
    assert loss == pytest.approx(found.loss, rel=1e-12)
    inputs = samples.inputs.double()
    excess = inputs.softmax(1) - F.one_hot(samples.labels, 3)  # of p, over the label
    torch.testing.assert_close(
        gradient.view(3, 3), (excess.T @ inputs / 2).float(), rtol=1e-6, atol=0
    )
    losses = (math.log1p(2 * math.exp(-16)), math.log1p(math.exp(-17) + math.exp(-18)))
    assert found.loss == pytest.approx(sum(losses) / 2, rel=1e-8)  # 1 − p cancels 8 of 16 digits
    assert found.standard_error == pytest.approx((losses[0] - losses[1]) / 2, rel=1e-7)


def test_what_is_checked_already_is_not_evaluated() -> None:
    model, calls = _network(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    with Objective(model, _samples()) as objective:
        assert calls
        calls.clear()
        with Objective(model, objective.samples.head(8), dtype=torch.float64, checked=True) as part:
            assert not calls
            found, _ = part.loss_and_gradient()
    model.double().eval()
    expected = F.cross_entropy(model(_samples().inputs[:8].double()), _samples().labels[:8])
    assert found == pytest.approx(expected.item(), rel=1e-14)


class _AlwaysDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x))


def test_random_model_is_refused_with_the_modules_name() -> None:
    model = nn.ModuleDict({"body": nn.Sequential(nn.Identity(), _AlwaysDropout())})
    wrapped = nn.Sequential(model["body"])
    state = torch.get_rng_state()
    with (
        pytest.raises(NumericsError, match=r"not deterministic.*module that differs is 0\.1$"),
        Objective(wrapped, _samples()),
    ):
        pass
    torch.set_rng_state(state)


class _Averaging(nn.Module):
    """Keeps a running mean of its features in a buffer, in eval mode too."""

    def __init__(self, *, assigns: bool, uses: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.register_buffer("ema", torch.zeros(3))
        self.assigns, self.uses = assigns, uses

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        ema = 0.9 * self.ema + 0.1 * x.detach().mean(0)
        if self.assigns:
            self.ema = ema
        else:
            self.ema.copy_(ema)
        return x - self.ema if self.uses else x


def test_buffer_that_forward_assigns_is_put_back() -> None:
    model = _Averaging(assigns=True, uses=False)
    ema = model.ema
    with Objective(model, _samples(), dtype=torch.float64) as objective:
        objective.loss_and_gradient()
        assert model.ema is not ema
        model.register_buffer("cache", torch.ones(2))
    assert model.ema is ema
    assert ema.dtype == torch.float32
    assert not ema.any()
    assert list(model.state_dict()) == ["ema", "linear.weight", "linear.bias"]


@pytest.mark.parametrize("assigns", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_buffer_that_changes_the_outputs_is_named(assigns: bool, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Identity(), _Averaging(assigns=assigns, uses=True))
    with (
        pytest.raises(NumericsError, match="not deterministic") as caught,
        Objective(model, _samples(), dtype=dtype),
    ):
        pass
    assert str(caught.value.hint).startswith("forward changes the buffer 1.ema")
    assert not model[1].ema.any()


def test_deterministic_model_has_no_culprit() -> None:
    assert nondeterministic_module(_network().eval(), _samples().inputs) is None


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).to(self.dtype)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Linear(4, 3), r"cannot take inputs of shape \(5,\)"),
        (nn.Linear(5, 2), "label 2, but the model puts out 2 classes"),
        (nn.Sequential(nn.Linear(5, 3), nn.Flatten(0)), r"returned \(6,\)"),
        (_Cast(torch.complex64), "real floating-point outputs, it returned complex64"),
        (_Cast(torch.int64), "real floating-point outputs, it returned int64"),
    ],
)
def test_model_that_does_not_fit_the_samples(model: nn.Module, match: str) -> None:
    with pytest.raises(InputError, match=match), Objective(model, _samples()):
        pass


class _Outside(nn.Module):
    """Keeps a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.scale = torch.eye(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x @ self.scale)


def test_tensor_outside_the_buffers_is_not_the_data_sets_fault() -> None:
    for model, hint in (
        (_Outside(), "leave out --dtype float64, or keep every tensor"),
        (nn.Linear(4, 3), "give the data set it was made for"),
    ):
        with (
            pytest.raises(InputError, match="cannot take inputs") as caught,
            Objective(model, _samples(), dtype=torch.float64),
        ):
            pass
        assert str(caught.value.hint).startswith(hint)


class _Vast(nn.Module):
    """What no machine has the memory for."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x.new_empty(2**45)


def test_memory_that_ends_is_not_a_model_that_does_not_fit() -> None:
    with (
        pytest.raises(RuntimeError, match="can't allocate memory"),
        Objective(_Vast(), _samples()),
    ):
        pass


def test_soft_labels_want_as_many_outputs() -> None:
    soft = Samples(_samples(6).inputs, torch.full((6, 3), 1 / 3))
    for num_outputs in (2, 4):
        with (
            pytest.raises(
                InputError,
                match=rf"a target of shape \[3\]: .* it returned \(2, {num_outputs}\)",
            ),
            Objective(nn.Linear(5, num_outputs), soft),
        ):
            pass


def test_non_finite_loss_is_refused() -> None:
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight[0, 0] = torch.inf
    with (
        pytest.raises(NumericsError, match="loss at the given weights is"),
        Objective(model, _samples()),
    ):
        pass


def test_micro_batches_come_from_the_shapes() -> None:
    labels = torch.zeros(9, dtype=torch.int64)
    assert default_micro_batch_size(nn.Linear(2, 2), labels) == 4096
    assert default_micro_batch_size(nn.Conv2d(1, 1, 3), labels) == 128
    assert default_micro_batch_size(nn.ParameterList([torch.zeros(1, 16, 8)]), labels) == 128


class _Centering(nn.Module):
    """Features less their mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.linear(x))
        return self.head(x - x.mean(0))


class _OverTheBatch(nn.Module):
    """Attention over [N, S, E] with batch_first left out."""

    def __init__(self, *, batch_first: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 4), nn.Linear(4, 3)
        self.encode = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(self.embed(x[:, :, None])).mean(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("micro_batch_size", "num_samples"), [(None, 100), (1, 100), (4, 100), (7, 9), (None, 3)]
)
@pytest.mark.parametrize(
    "build",
    [
        _Centering,
        _OverTheBatch,
        lambda: nn.Sequential(
            nn.Linear(5, 7), nn.BatchNorm1d(7, track_running_stats=False), nn.Linear(7, 3)
        ),
    ],
)
def test_samples_that_see_each_other_are_seen(
    build: Callable[[], nn.Module],
    micro_batch_size: int | None,
    num_samples: int,
    dtype: torch.dtype,
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    if micro_batch_size == 1 and isinstance(model, nn.Sequential):
        return  # a single sample has no statistics
    samples = _samples(num_samples)
    with Objective(model, samples, micro_batch_size=micro_batch_size, dtype=dtype) as objective:
        assert objective.coupling is not None
        assert objective.coupling > COUPLED
        (found,) = objective.complaints
    assert "samples see each other" in found
    assert "batch_first" in found


def _nothing_seen(objective: Objective) -> bool:
    # Kernels that depend on the size of a call round in other orders: some eps of float32.
    return objective.complaints == () and (objective.coupling or 0.0) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_no_right_network_is_said_to_mix_samples(name: str, dtype: torch.dtype) -> None:
    model, samples, loss = make(name, 70)
    for num_steps in (0, 300):  # fitted, its losses are small beside its outputs
        fit(model, samples, loss, num_steps)
        for size in (None, 1, 7):
            with Objective(model, samples, loss, micro_batch_size=size, dtype=dtype) as objective:
                assert objective.coupling is not None
                assert _nothing_seen(objective)


class _Exponential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (20 * self.linear(x)).exp()


@pytest.mark.parametrize("loss", [LossFunction(), LossFunction("squared_error", 0.1)])
@pytest.mark.parametrize(
    "build",
    [
        _network,
        _Exponential,
        lambda: _OverTheBatch(batch_first=True),
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 1, 5)), nn.Upsample((16, 16)), resnet((1, 16, 16), 3, depth=20)
        ),
    ],
)
def test_rounding_is_no_sight(build: Callable[[], nn.Module], loss: LossFunction) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    for size in (None, 1, 7):
        with Objective(model, _samples(60), loss, micro_batch_size=size) as objective:
            assert _nothing_seen(objective)


@pytest.mark.parametrize(("micro_batch_size", "num_samples"), [(None, 1), (None, 2), (2, 2)])
def test_equal_calls_say_nothing(micro_batch_size: int | None, num_samples: int) -> None:
    with Objective(
        _Centering(), _samples(num_samples), micro_batch_size=micro_batch_size
    ) as objective:
        assert objective.coupling is None
        assert objective.complaints == ()


def test_coupling_is_of_the_outputs_however_small_the_losses() -> None:
    labels = torch.tensor([0, 1])
    for loss in (LossFunction(), LossFunction("squared_error")):
        for margin in (0.5, 20.0, 2e4):
            outputs = margin * F.one_hot(labels, 3).double() + 0.25
            others = loss(outputs * (1 + 1e-5), labels)
            assert coupling(*sensitivities(loss, [(outputs, labels)]), others) < 1e-4
        assert coupling(*sensitivities(loss, [(outputs, labels)]), loss(outputs, labels)) == 0


class _Masked(_Centering):
    """Puts out two more classes, which are masked."""

    fill = -1e9

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(super().forward(x), (0, 2), value=self.fill)


@pytest.mark.parametrize("fill", [-1e9, -math.inf])
def test_masked_classes_hide_no_coupling(fill: float) -> None:
    model = _Masked()
    model.fill = fill
    with Objective(model, _samples(60)) as objective:
        assert objective.complaints


class _Forgetful(_Averaging):
    """Its forward takes a buffer away, and makes one that was none."""

    def __init__(self) -> None:
        super().__init__(assigns=True, uses=False)
        self.register_buffer("count", None)

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        del self.ema
        self.register_buffer("ema", torch.zeros(3))
        self.count = torch.ones(1) if self.count is None else self.count + 1
        return outputs + self.count


def test_buffer_that_comes_or_goes_is_put_back_and_named() -> None:
    model = _Forgetful()
    ema = model.ema
    with (
        pytest.raises(NumericsError, match="not deterministic") as caught,
        Objective(model, _samples()),
    ):
        pass
    assert "the buffer count" in str(caught.value.hint)
    assert model.count is None
    with Objective(_Averaging(assigns=True, uses=False), _samples()) as objective:
        del objective.model.ema
    assert not objective.model.ema.any()
    assert model.ema is ema


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_model_that_is_not_deterministic_is_refused() -> None:
    model = torch.jit.trace(nn.Dropout(0.5).train(), torch.ones(4, 3), check_trace=False)
    assert nondeterministic_module(model, torch.ones(4, 3)) is None


class _Filling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.nan_to_num(x))


def test_a_model_may_fill_in_what_is_missing() -> None:
    """NaN is not equal to itself, and nothing was written into the inputs."""
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    inputs[::2, 1] = float("nan")
    with Objective(_Filling(4, 3), Samples(inputs, torch.arange(8) % 3)) as objective:
        assert math.isfinite(objective.center.loss)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: LossFunction("mse"), UsageError, "unknown loss 'mse'"),  # type: ignore[arg-type]
        (lambda: LossFunction("cross_entropy", 1.0), UsageError, "outside"),
        (
            lambda: Objective(nn.Linear(5, 3), _samples(), nn.CrossEntropyLoss()),  # type: ignore[arg-type]
            TypeError,
            "the loss is a CrossEntropyLoss, not a LossFunction",
        ),
        (
            lambda: Objective(torch.relu, _samples()),  # type: ignore[arg-type]
            TypeError,
            "not an nn.Module",
        ),
        *(
            (
                lambda size=size: Objective(nn.Linear(5, 3), _samples(), micro_batch_size=size),
                UsageError,
                f"a micro-batch of {size} samples",
            )
            for size in (0, -1)
        ),
        (
            lambda: Samples(torch.ones(4, 5).numpy(), torch.arange(4)),  # type: ignore[arg-type]
            TypeError,
            "samples are tensors, not a ndarray",
        ),
    ],
)
def test_what_no_command_line_checked_is_refused_where_it_is_given(
    make: Callable[[], object], error: type[Exception], match: str
) -> None:
    """A loss of another name was computed as the squared error, without a word."""
    with pytest.raises(error, match=match):
        make()
