"""Operators whose own second derivative is missing or wrong, against gradgradcheck and by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_networks import make
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from lgo_cli.config import HessianConfig, OperatorName
from lgo_cli.curvature.analysis import analyze_spectrum
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.errors import InputError
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples
from lgo_cli.second_derivatives import twice_differentiable


def _drawn(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()


OPERATORS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "weight norm of rows": (lambda v, g: torch._weight_norm(v, g, 0), (_drawn(4, 3), _drawn(4, 1))),
    "of columns": (lambda v, g: torch._weight_norm(v, g, dim=1), (_drawn(4, 3), _drawn(1, 3))),
    "of filters": (torch._weight_norm, (_drawn(4, 3, 2), _drawn(4, 1, 1))),
    "of the whole": (lambda v, g: torch._weight_norm(v, g, -1), (_drawn(4, 3), _drawn(1))),
    "hard sigmoid": (lambda x: F.hardsigmoid(4 * x), (_drawn(30),)),
    "complex view": (lambda x: torch.view_as_complex(x).exp().abs(), (_drawn(3, 2),)),
    "in place": (lambda x: F.hardsigmoid(4 * x, inplace=True), (_drawn(30),)),
}


@pytest.mark.parametrize("name", list(OPERATORS))
def test_second_derivatives_are_right(name: str) -> None:
    operator, inputs = OPERATORS[name]
    expected = operator(*inputs)
    with twice_differentiable(is_recurrent=False):
        torch.testing.assert_close(operator(*inputs), expected)
        assert gradcheck(operator, inputs)
        assert gradgradcheck(operator, inputs)


def test_in_place_is_in_place() -> None:
    x = torch.tensor([-4.0, 0.0, 4.0])
    with twice_differentiable(is_recurrent=False):
        assert F.hardsigmoid(x, inplace=True) is x
    assert x.tolist() == [0.0, 0.5, 1.0]


class _Spectral(nn.Module):
    """Fourier coefficients as pairs of real numbers, behind some odd number of others."""

    def __init__(self, num_before: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(num_before))
        self.pairs = nn.Parameter(torch.randn(3, 5, 2))

    def forward(self, x: Tensor) -> Tensor:
        filtered = (
            torch.fft.rfft(x + self.shift.mean()) * torch.view_as_complex(self.pairs)[:, None]
        )
        return torch.tanh(torch.fft.irfft(filtered, n=8)).sum(2).T


@pytest.mark.parametrize("num_before", [1, 2])
def test_complex_views_of_numbers_at_odd_places(num_before: int) -> None:
    """Of the parameters, and of the vectors that products are taken with: a traceback of lgo's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Spectral(num_before)
        samples = Samples(torch.randn(6, 8), torch.arange(6) % 3)
    config = HessianConfig(top_k=2, bottom_k=0, trace=True)
    with Objective(model, samples) as objective:
        found = analyze_spectrum(objective, config)
    with Objective(model, samples, dtype=torch.float64) as objective:
        theta = objective.theta.clone()
        twin = _Spectral(num_before).double()

        def loss(vector: Tensor) -> Tensor:
            state = {"shift": vector[:num_before], "pairs": vector[num_before:].view(3, 5, 2)}
            state = {name: 1.0 * value for name, value in state.items()}
            outputs = functional_call(twin, state, samples.inputs.double())
            return F.cross_entropy(outputs, samples.labels)

        assert objective.evaluate().loss == pytest.approx(float(loss(theta)), rel=1e-12)
    dense = torch.autograd.functional.hessian(loss, theta)
    expected = torch.linalg.eigvalsh(dense).flip(0)[:2]
    eigenpairs = found.eigenpairs
    values, bounds = eigenpairs.values[:2], eigenpairs.residual_bounds[:2]
    assert bool(((values - expected).abs() <= bounds).all())
    assert found.trace is not None
    assert found.trace.value == pytest.approx(float(dense.trace()), rel=1e-4)  # the whole space


class _ByHand(nn.Module):
    """Weight normalisation spelt out; parameters in the order of the hooks'."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Linear(12, 6)
        self.bias = first.bias
        self.g = nn.Parameter(first.weight.detach().norm(dim=1, keepdim=True))
        self.v = first.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.v * self.g / self.v.norm(dim=1, keepdim=True), self.bias)


def _hooked() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in use
        return torch.nn.utils.weight_norm(nn.Linear(12, 6))


@pytest.mark.parametrize(
    "build",
    [lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(12, 6)), _hooked],
    ids=["parametrization", "hook"],
)
def test_hessian_through_weight_norm(build: Callable[[], nn.Module]) -> None:
    _, samples, loss = make("relu")
    dense = []
    for first in (build, _ByHand):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(first(), nn.Tanh(), nn.Linear(6, 3))
        with Objective(model, samples, loss, dtype=torch.float64) as objective:
            operator = HessianOperator(objective)
            unit = torch.eye(objective.dim, dtype=torch.float64)
            dense.append(torch.stack([operator.matvec(row) for row in unit]))
            operator.release()
            config = HessianConfig(top_k=1, bottom_k=0, trace=True, dtype="float64")
            spectrum = analyze_spectrum(objective, config)
        assert spectrum.audit is not None
        assert spectrum.audit.complaints == ()
        assert spectrum.trace is not None
        assert spectrum.trace.value == pytest.approx(float(dense[-1].trace()), rel=1e-10)
    # Rounding of sums of 40 samples; the kernel's second derivative is off by a tenth.
    torch.testing.assert_close(dense[0], dense[1], rtol=0, atol=1e-12)


def test_hard_sigmoid_has_a_hessian() -> None:
    _, samples, loss = make("relu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 6), nn.Hardsigmoid(), nn.Linear(6, 3))
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        config = HessianConfig(top_k=1, bottom_k=0, trace=True, dtype="float64")
        spectrum = analyze_spectrum(objective, config)
    assert spectrum.trace is not None
    assert spectrum.trace.exact is not None  # piecewise linear
    assert spectrum.trace.converged


class _Checkpointed(nn.Module):
    """Runs a part of a model again wherever its derivatives are taken."""

    def __init__(self, inner: nn.Module, use_reentrant: bool) -> None:
        super().__init__()
        self.inner, self.use_reentrant = inner, use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.inner, x, use_reentrant=self.use_reentrant)
        return found


@pytest.mark.parametrize("keeps_graph", [True, False])
def test_checkpointed_attention_has_the_same_hessian(keeps_graph: bool) -> None:
    model, samples, loss = make("attention and layer norm")
    products = []
    for module in (model, _Checkpointed(model, use_reentrant=False)):
        with Objective(module, samples, loss, dtype=torch.float64) as objective:
            operator = HessianOperator(objective, memory_bytes=2**30 if keeps_graph else 0)
            assert operator.keeps_graph == keeps_graph
            products.append(operator.matvec(torch.ones(objective.dim, dtype=torch.float64)))
            _, gradient = objective.loss_and_gradient()
            torch.testing.assert_close(operator.gradient(), gradient, rtol=1e-12, atol=1e-15)
    # What runs again is what it was, but for the order in which gradients are added.
    torch.testing.assert_close(products[1], products[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Linear(12, 12), _Checkpointed(nn.Linear(12, 3), use_reentrant=True)),
        # Its recomputation is out of reach of what runs in a kernel's place.
        (
            nn.Linear(12, 12),
            _Checkpointed(
                torch.nn.utils.parametrizations.weight_norm(nn.Linear(12, 3)), use_reentrant=False
            ),
        ),
        # Around the inputs, of which PyTorch warns: its parameters had rows of zeros.
        (_Checkpointed(nn.Linear(12, 4), use_reentrant=True), nn.Linear(4, 3)),
    ],
    ids=["reentrant", "weight norm", "around the inputs"],
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # without gradients
def test_checkpoints_without_a_second_derivative_are_refused(
    layers: tuple[nn.Module, ...],
) -> None:
    _, samples, loss = make("relu")
    with (
        Objective(nn.Sequential(*layers), samples, loss) as objective,
        pytest.raises(InputError, match=r"no second derivative through its torch\.utils\.check"),
    ):
        analyze_spectrum(objective, HessianConfig(top_k=1, bottom_k=0))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_checkpoint_around_what_is_frozen_loses_nothing() -> None:
    _, samples, loss = make("relu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        frozen, head = nn.Linear(12, 4).requires_grad_(False), nn.Linear(4, 3)
    values = []
    for use_reentrant in (True, False):
        model = nn.Sequential(_Checkpointed(frozen, use_reentrant), nn.Tanh(), head)
        with Objective(model, samples, loss) as objective:
            spectrum = analyze_spectrum(objective, HessianConfig(top_k=2, bottom_k=0))
        values.append(spectrum.eigenpairs.values)
        assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(*values)


class _Speaking(nn.Module):
    """Warns at each call, and writes a buffer to what it was."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 3)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("this layer is old", stacklevel=1)
        assert isinstance(self.scale, Tensor)
        outputs: Tensor = torch.tanh(self.linear(x)) * self.scale.clamp_(-1, 1)
        return outputs


def test_a_models_warnings_and_buffers_are_left_to_it() -> None:
    """A warning is shown once for its place in the code, however many products there are."""
    _, samples, loss = make("relu")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        with Objective(_Speaking(), samples, loss) as objective:
            operator = HessianOperator(objective)
            for _ in range(5):
                objective.evaluate()
                operator.matvec(torch.ones(objective.dim))
    assert [str(each.message) for each in seen] == ["this layer is old"]


class _Overwriting(nn.Module):
    """Changes what the sigmoid's derivative is taken of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sigmoid(self.first(x))
        hidden += 1
        out: Tensor = self.last(hidden)
        return out


@pytest.mark.parametrize("num_batches", [1, 2])
def test_what_a_graph_saved_is_not_overwritten(num_batches: int) -> None:
    """Of the first micro-batch's graph too, whose bytes are counted by hooks."""
    _, samples, loss = make("relu")
    size = -(-len(samples) // num_batches)
    with (
        Objective(_Overwriting(), samples, loss, micro_batch_size=size) as objective,
        pytest.raises(InputError, match="no second derivative: one of the variables needed"),
    ):
        HessianOperator(objective).matvec(torch.ones(objective.dim))


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return 2 * grad


class _Marked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_Once.apply(super().forward(x)) @ torch.ones(3, 12).to(x))


class _Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag((2 * x).long() % 5))


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_no_second_derivative_is_said(operator: OperatorName) -> None:
    _, samples, loss = make("relu")
    with torch.random.fork_rng():
        model = _Bag()
    config = HessianConfig(top_k=1, bottom_k=0, operator=operator)
    with (
        Objective(model, samples, loss) as objective,
        pytest.raises(InputError, match="the model has no second derivative: the derivative for"),
    ):
        analyze_spectrum(objective, config)


def test_what_is_marked_as_differentiable_once_is_seen_by_the_audit() -> None:
    """PyTorch's mark is an error on a path that no parameter lies behind: the term is lost."""
    _, samples, loss = make("relu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Marked(12, 3)
    config = HessianConfig(top_k=1, bottom_k=0, max_matvecs=8)
    with Objective(model, samples, loss) as objective:
        found = analyze_spectrum(objective, config).audit
    assert found is not None
    assert any("a second derivative of the model is wrong" in text for text in found.complaints)
