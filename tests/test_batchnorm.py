"""Batch norm's policies against closed forms, PyTorch's own modes and each other."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lgo_cli.config import BatchNormPolicy
from lgo_cli.errors import InputError, UsageError
from lgo_cli.landscape.batchnorm import BatchNorm
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples
from lgo_cli.vectors import flatten

POLICIES: tuple[BatchNormPolicy, ...] = ("frozen", "recompute", "interpolate", "batch")
EXACT = 1e-12
"""A few hundred float64 operations in another order."""


def _samples(num_samples: int = 40) -> Samples:
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(num_samples, 2, 4, 4, generator=draw)
    return Samples(inputs, torch.randint(0, 3, (num_samples,), generator=draw))


class Functional(nn.Module):
    """Convolution, batch norm by its function, dropout, linear; and the same with modules."""

    mean: Tensor
    variance: Tensor

    def __init__(self, *, modules: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.gamma = nn.Parameter(torch.linspace(0.5, 2.0, 4))
        self.beta = nn.Parameter(torch.linspace(-1.0, 1.0, 4))
        self.register_buffer("mean", torch.linspace(-0.5, 0.5, 4))
        self.register_buffer("variance", torch.linspace(0.5, 1.5, 4))
        self.head = nn.Linear(16, 3)
        self.norm = nn.BatchNorm2d(4) if modules else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if self.norm is None:
            h = F.batch_norm(h, self.mean, self.variance, self.gamma, self.beta, self.training)
        else:
            h = self.norm(h)
        return self.head(F.dropout(F.relu(h), training=self.training).flatten(1))


def _functional(*, modules: bool = False) -> Functional:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = Functional(modules=modules)
    if model.norm is not None:
        with torch.no_grad():
            model.norm.weight.copy_(model.gamma)
            model.norm.bias.copy_(model.beta)
            model.norm.running_mean = model.mean.clone()
            model.norm.running_var = model.variance.clone()
        del model.gamma, model.beta, model.mean, model.variance
    return model


def _deep(seed: int = 1) -> nn.Sequential:
    """Two batch norms, the second after the first, trained statistics, and dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6),
            nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3),
        )  # fmt: skip
        model(torch.randn(64, 2, 4, 4))
    return model


def _objective(
    model: nn.Module, micro_batch_size: int = 16, samples: Samples | None = None
) -> Objective:
    return Objective(
        model, samples or _samples(), micro_batch_size=micro_batch_size, dtype=torch.float64
    )


def _push(objective: Objective) -> None:
    """Move off the centre, so that stored statistics are those of other weights."""
    objective.move(1.3 * objective.theta + 0.1)


def _ends(model: nn.Module) -> dict[tuple[float, ...], dict[str, Tensor]]:
    return {(0.0,): model.state_dict(), (1.0,): _deep(seed=8).state_dict()}


def test_recomputed_statistics_in_closed_form() -> None:
    """Of 40 samples in batches of 16, 16 and 8: a mean of means must weigh the last by half."""
    model = _functional(modules=True)
    assert model.norm is not None
    with _objective(model) as objective:
        _push(objective)
        batchnorm = BatchNorm(objective, "recompute")
        model.norm.running_mean.fill_(math.nan)  # what was there has no part in it
        model.norm.running_var.fill_(math.inf)
        h = model.conv(objective.samples.inputs).transpose(0, 1).detach()
        with batchnorm.at():
            mean, variance = model.norm.running_mean, model.norm.running_var
            assert mean is not None
            assert variance is not None
            torch.testing.assert_close(mean, h.flatten(1).mean(1), rtol=EXACT, atol=EXACT)
            parts = [part.flatten(1).var(1) for part in h.split(16, dim=1)]
            expected = (16 * parts[0] + 16 * parts[1] + 8 * parts[2]) / 40
            torch.testing.assert_close(variance, expected, rtol=EXACT, atol=EXACT)


def test_recompute_is_update_bn_where_batches_are_equal() -> None:
    """PyTorch's own cumulative average, layer after layer, is the oracle; dropout stays off."""
    model = _deep()
    twin = copy.deepcopy(model).double()
    assert isinstance(twin[7], nn.Dropout)
    twin[7].p = 0.0
    with _objective(model, 8) as objective:
        _push(objective)
        with torch.no_grad():
            nn.utils.vector_to_parameters(1.3 * objective.theta + 0.1, twin.parameters())
        update_bn([batch.inputs for batch in objective.micro_batches()], twin)
        twin.eval()
        expected = F.cross_entropy(twin(objective.samples.inputs), objective.samples.labels).item()
        frozen = objective.evaluate().loss
        with BatchNorm(objective, "recompute").at():
            for name, buffer in model.named_buffers():
                if "running" in name:
                    own = dict(twin.named_buffers())[name]
                    torch.testing.assert_close(buffer, own, rtol=EXACT, atol=EXACT)
            loss = objective.evaluate().loss
    assert loss == pytest.approx(expected, rel=EXACT)
    assert abs(frozen - expected) > 1e-3  # the policy is seen to matter


def test_recompute_on_a_subset_is_recompute_on_those_samples_alone() -> None:
    model = _deep()
    with _objective(model) as objective:
        _push(objective)
        subset = BatchNorm(objective, "recompute", num_samples=24)
        assert subset.num_samples == 24
        with subset.at():
            first = {name: buffer.clone() for name, buffer in subset.buffers.items()}
        assert BatchNorm(objective, "recompute", num_samples=1000).num_samples == 40
    with _objective(model, samples=_samples().head(24)) as objective:
        _push(objective)
        alone = BatchNorm(objective, "recompute")
        with alone.at():
            assert all(torch.equal(first[name], buffer) for name, buffer in alone.buffers.items())


def test_batch_norm_that_is_passed_twice_sees_both_passes() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)[:, :6]
            return self.norm(flat[:, :3]) + self.norm(flat[:, 3:])

    model = Twice()
    with _objective(model, 16) as objective, BatchNorm(objective, "recompute").at():
        both = objective.samples.inputs.flatten(1)[:, :6].view(-1, 2, 3).flatten(0, 1)
        mean = model.norm.running_mean
        assert mean is not None
        torch.testing.assert_close(mean, both.mean(0), rtol=EXACT, atol=EXACT)


def test_by_batch_is_train_mode_without_dropout() -> None:
    model = _deep()
    twin = copy.deepcopy(model).double().train()
    twin[7].eval()
    with _objective(model) as objective:
        _push(objective)
        with torch.no_grad():
            nn.utils.vector_to_parameters(1.3 * objective.theta + 0.1, twin.parameters())
        total = 0.0
        for batch in objective.micro_batches():
            total += F.cross_entropy(twin(batch.inputs), batch.labels, reduction="sum").item()
        with BatchNorm(objective, "batch").at():
            assert objective.evaluate().loss == pytest.approx(total / 40, rel=EXACT)


def test_by_batch_the_loss_does_not_see_the_scale_of_weights_before() -> None:
    """And its gradient is orthogonal to them; with frozen statistics neither holds."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(32, 6, bias=False), nn.BatchNorm1d(6, eps=1e-300), nn.Linear(6, 3)
    )
    found = {}
    for policy in ("frozen", "recompute", "batch"):
        with _objective(model) as objective:
            batchnorm = BatchNorm(objective, policy)
            scaled = objective.theta.clone()
            scaled[: 32 * 6] *= 3.0
            losses = []
            for theta in (objective.theta, scaled):
                with objective.at(theta), batchnorm.at():
                    losses.append(objective.evaluate().loss)
            with batchnorm.at():
                _, gradient = objective.loss_and_gradient()
            inner = torch.dot(gradient[: 32 * 6], objective.theta[: 32 * 6])
            found[policy] = (abs(losses[1] - losses[0]), abs(float(inner)))
    assert max(found["batch"]) < EXACT
    assert found["recompute"][0] < EXACT  # the same loss, but statistics are constants in it
    assert min(found["frozen"]) > 1e-3
    assert found["recompute"][1] > 1e-3


def test_interpolated_statistics_on_a_line() -> None:
    model = _deep()
    ends = _ends(model)
    other = _deep(seed=8)
    with _objective(other) as objective:
        loss_of_other = objective.center.loss
    with _objective(model) as objective:
        batchnorm = BatchNorm(objective, "interpolate", ends=ends)
        with batchnorm.at(0.0):
            assert objective.evaluate().loss == objective.center.loss
        target = flatten(p.detach() for p in other.parameters()).double()
        with objective.at(target):
            without = objective.evaluate().loss
            with batchnorm.at(1.0):
                assert objective.evaluate().loss == loss_of_other
        assert abs(without - loss_of_other) > 1e-3
        for alpha in (-0.5, 0.25, 1.5):
            share = min(max(alpha, 0.0), 1.0)  # beyond the ends: those of the nearer one
            with batchnorm.at(alpha):
                for name, buffer in batchnorm.buffers.items():
                    a, b = (state[name].double() for state in ends.values())
                    expected = (1 - share) * a + share * b
                    torch.testing.assert_close(buffer, expected, rtol=EXACT, atol=EXACT)


def test_interpolated_statistics_on_a_plane_are_barycentric() -> None:
    model = _deep()
    corners = [(0.0, 0.0), (1.0, 0.0), (0.3, 0.8)]
    states = [_deep(seed).state_dict() for seed in (1, 8, 9)]
    ends = dict(zip(corners, states, strict=True))
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    inside = weights @ torch.tensor(corners, dtype=torch.float64)
    with _objective(model) as objective:
        batchnorm = BatchNorm(objective, "interpolate", ends=ends)
        # Beyond the second corner, on the line through the first and the second.
        cases = [(tuple(inside.tolist()), weights), ((1.7, 0.0), torch.tensor([0.0, 1.0, 0.0]))]
        cases += [(corner, torch.eye(3)[rank]) for rank, corner in enumerate(corners)]
        for point, shares in cases:
            with batchnorm.at(*point):
                for name, buffer in batchnorm.buffers.items():
                    expected = sum(
                        share * state[name].double()
                        for share, state in zip(shares.tolist(), states, strict=True)
                    )
                    torch.testing.assert_close(buffer, expected, rtol=EXACT, atol=EXACT)
        with batchnorm.at(-3.0, 40.0):
            assert all(
                bool((buffer >= 0).all())
                for name, buffer in batchnorm.buffers.items()
                if name.endswith("running_var")
            )


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_stays_behind(policy: BatchNormPolicy) -> None:
    model = _deep().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffers = list(model.buffers())
    with _objective(model) as objective:
        inside = [buffer.clone() for buffer in buffers]
        modes = [module.training for module in model.modules()]
        batchnorm = BatchNorm(objective, policy, ends=_ends(model))
        _push(objective)
        with batchnorm.at(0.5):
            first = objective.evaluate()
        with pytest.raises(ZeroDivisionError), batchnorm.at(0.5):
            raise ZeroDivisionError
        assert all(torch.equal(a, b) for a, b in zip(inside, model.buffers(), strict=True))
        assert modes == [module.training for module in model.modules()]
        with batchnorm.at(0.5):
            assert objective.evaluate() == first  # and the policy depends on no history
        objective.move(objective.theta)
        assert objective.evaluate() == objective.center
    assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))
    assert all(torch.equal(before[name], own) for name, own in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("policy", POLICIES)
def test_the_function_is_switched_as_the_module_is(policy: BatchNormPolicy) -> None:
    """Equal parameters in another order: losses of the two agree under each policy."""
    losses = []
    for modules in (False, True):
        model = _functional(modules=modules)
        state = model.state_dict()
        moved = {name: 2 * tensor + 1 for name, tensor in state.items()}
        with _objective(model) as objective:
            batchnorm = BatchNorm(
                objective, policy, ends={(0.0,): state, (1.0,): moved}, num_samples=30
            )
            objective.move(1.3 * objective.theta)
            with batchnorm.at(0.5):
                losses.append(objective.evaluate().loss)
    assert losses[0] == pytest.approx(losses[1], rel=EXACT)


def test_buffers_are_named() -> None:
    with _objective(_functional()) as objective:
        assert sorted(BatchNorm(objective, "frozen").buffers) == ["mean", "variance"]
    with _objective(_deep()) as objective:
        assert sorted(BatchNorm(objective, "frozen").buffers) == [
            "1.running_mean", "1.running_var", "5.running_mean", "5.running_var",
        ]  # fmt: skip


class _Copied(Functional):
    """Hands over a copy of its statistics, which nobody else can reach."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.batch_norm(self.conv(x), self.mean * 1.0, self.variance, self.gamma, self.beta)
        return self.head(h.flatten(1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), "sees no batch norm"),
        (
            lambda: nn.Sequential(
                nn.Conv2d(2, 3, 4), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()
            ),
            "sees no batch norm",
        ),
        (_Copied, "no buffers of it"),
    ],
)
@pytest.mark.parametrize("policy", ["recompute", "interpolate", "batch"])
def test_models_that_cannot_follow_are_refused(
    build: Callable[[], nn.Module], message: str, policy: BatchNormPolicy
) -> None:
    with _objective(build()) as objective:
        BatchNorm(objective, "frozen")
        with pytest.raises(UsageError, match=f"--batchnorm {policy}: .*{message}"):
            BatchNorm(objective, policy)


def test_nothing_to_interpolate_between() -> None:
    with _objective(_deep()) as objective:
        with pytest.raises(UsageError, match="nothing to interpolate between") as caught:
            BatchNorm(objective, "interpolate")
        assert "--to" in str(caught.value.hint)
        with pytest.raises(InputError, match=r"no running statistics 1\.running_mean"):
            BatchNorm(objective, "interpolate", ends={(0.0,): {}, (1.0,): {}})


@pytest.mark.parametrize("policy", ["recompute", "batch"])
def test_last_micro_batch_of_one_sample(policy: BatchNormPolicy) -> None:
    with _objective(_deep(), 13) as objective:  # 40 = 3 · 13 + 1
        batchnorm = BatchNorm(objective, policy)
        with pytest.raises(UsageError, match="one sample") as caught, batchnorm.at():
            objective.evaluate()
        assert "--micro-batch-size" in str(caught.value.hint)
        assert objective.evaluate() == objective.center


def test_interpolation_overstates_the_variance_of_the_first_layer() -> None:
    """Means are linear in the weights before, variances are quadratic: convex along the line."""

    def model(seed: int) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.BatchNorm1d(6))

    states = []
    for network in (model(0), model(1)):
        with _objective(network, 40) as objective:
            recompute = BatchNorm(objective, "recompute")
            with recompute.at():
                buffers = {name: buffer.clone() for name, buffer in recompute.buffers.items()}
            weights = [p.detach().clone() for p in objective.parameters[:2]]
            states.append((flatten(p.detach() for p in objective.parameters), buffers, weights))
    (a, of_a, weights_a), (b, of_b, weights_b) = states
    with _objective(model(0), 40) as objective, objective.at(0.6 * a + 0.4 * b):
        with BatchNorm(objective, "recompute").at():
            true = [buffer.clone() for buffer in objective.model.buffers()]
        ends = {(0.0,): of_a, (1.0,): of_b}
        with BatchNorm(objective, "interpolate", ends=ends).at(0.4):
            linear = [buffer.clone() for buffer in objective.model.buffers()]
        covariance = objective.samples.inputs.flatten(1).T.cov()
    torch.testing.assert_close(linear[0], true[0], rtol=EXACT, atol=EXACT)
    d = weights_b[0] - weights_a[0]
    gap = 0.4 * 0.6 * ((d @ covariance) * d).sum(dim=1)
    torch.testing.assert_close(linear[1] - true[1], gap, rtol=1e-10, atol=EXACT)
    assert (gap > 0.01).all()
