"""REPAIR: what the hidden units of an interpolated network put out while it is in force."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from symmetric_networks import CASES, State, perturbed, trained_on_digits
from torch import Tensor, nn

from lgo_cli.checkpoint import snapshot
from lgo_cli.errors import NumericsError, UsageError
from lgo_cli.landscape.alignment import align
from lgo_cli.landscape.batchnorm import BatchNorm
from lgo_cli.landscape.repair import Moments, Repair
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples
from lgo_cli.vectors import flatten

EXACT = 1e-10
"""Float64: a few thousand terms, through a few layers, scaled by up to a hundred."""


def _samples(shape: tuple[int, ...], num_samples: int = 40) -> Samples:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_samples, *shape, generator=draw)
    return Samples(inputs, torch.randint(0, 3, (num_samples,), generator=draw))


def _objective(
    model: nn.Module,
    shape: tuple[int, ...] = (12,),
    micro_batch_size: int | None = 16,
    num_samples: int = 40,
) -> Objective:
    return Objective(
        model,
        _samples(shape, num_samples),
        micro_batch_size=micro_batch_size,
        dtype=torch.float64,
    )


def _other(objective: Objective, scale: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return objective.theta + scale * torch.randn(objective.dim, generator=draw).double()


def _move(objective: Objective, end: Tensor, alpha: float) -> None:
    objective.move(torch.lerp(objective.theta, end, alpha))


class Mixed(nn.Module):
    """Layers with batch norm between layers without."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 6)
        self.second = nn.Linear(6, 7)
        self.norm = nn.BatchNorm1d(7)
        self.third = nn.Linear(7, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.second(torch.relu(self.first(x)))))
        return self.head(torch.relu(self.third(x)))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["mlp", "convolution, flattened", "concatenation and a gate"])
def test_repair_restores_mean_and_spread(name: str, alpha: float) -> None:
    """Of all samples, though they come in micro-batches of 16, 16 and 8."""
    model, _ = perturbed(CASES[name])
    with _objective(model, CASES[name].shape) as objective:
        end = _other(objective)
        repair = Repair(objective, end)
        num_weights = sum(key.endswith("weight") for key in model.state_dict())
        assert len(repair.ends) == num_weights - 1
        assert not repair.batch_norms
        assert not repair.not_repaired
        _move(objective, end, alpha)
        with repair.at(alpha):
            found = repair.moments(*repair.ends)
        for layer, (a, b) in repair.ends.items():
            for part in range(2):
                expected = torch.lerp(a[part], b[part], alpha)
                torch.testing.assert_close(found[layer][part], expected, rtol=EXACT, atol=EXACT)


def test_moments_are_those_of_all_samples_at_once() -> None:
    """Of units with a mean a million times their spread, which squares would lose."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3))
    with torch.no_grad():
        assert model[0].bias is not None
        model[0].bias += 1e6
    with _objective(model, (3, 8, 8)) as objective:
        found = Repair(objective, objective.theta).ends["0.weight"][0]
        with torch.no_grad():
            outputs = model[0](objective.samples.inputs).transpose(0, 1).flatten(1)
    std, mean = torch.std_mean(outputs, 1, correction=0)
    torch.testing.assert_close(found.mean, mean, rtol=1e-14, atol=0.0)
    # Outputs of 1e6 are good to 1e-10 of their spread.
    torch.testing.assert_close(found.std, std, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("name", ["mlp", "convolution, flattened"])
def test_repair_does_not_depend_on_micro_batches(name: str) -> None:
    losses = []
    for size in (7, 16, 40):
        model, _ = perturbed(CASES[name])
        with _objective(model, CASES[name].shape, size) as objective:
            end = _other(objective)
            repair = Repair(objective, end)
            _move(objective, end, 0.4)
            with repair.at(0.4):
                losses.append(objective.evaluate().loss)
    assert losses == pytest.approx([losses[0]] * 3, rel=EXACT)


@pytest.mark.parametrize("build", [CASES["mlp"].build, Mixed])
def test_at_the_ends_nothing_but_batch_norms_statistics_changes(build: type[nn.Module]) -> None:
    """And those are `--batchnorm recompute`'s: batch norm has stored others here."""
    model = build()
    with _objective(model) as objective:
        end = _other(objective)
        repair = Repair(objective, end)
        for alpha, theta in ((0.0, objective.theta), (1.0, end)):
            objective.move(theta)
            with repair.batchnorm.at():
                expected = objective.evaluate()
            with repair.at(alpha):
                assert torch.equal(flatten(p.detach() for p in objective.parameters), theta)
                assert objective.evaluate() == expected


def test_repair_restores_the_spread_that_a_midpoint_has_lost() -> None:
    model, samples, (a, b) = trained_on_digits((64, 64, 64), (1, 2))
    aligned = align(model, a, b, samples.inputs).state
    model.load_state_dict(a)
    with Objective(model, samples) as objective:
        end = flatten(aligned[name] for name in objective.layout.names)
        repair = Repair(objective, end)
        last = "linear3.weight"
        start_std, end_std = (moments.std for moments in repair.ends[last])
        _move(objective, end, 0.5)
        lost = repair.moments(last)[last].std
        losses = [objective.evaluate().loss]
        with repair.at(0.5):
            losses.append(objective.evaluate().loss)
    assert lost.mean() < 0.8 * (start_std.mean() + end_std.mean()) / 2
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", ["lgo's resnet", "mixed"])
def test_batch_norms_have_the_statistics_of_recompute(name: str) -> None:
    """In every bit, at the repaired weights; the layers behind them are repaired under them."""
    case = CASES.get(name)
    model = perturbed(case)[0] if case else Mixed()
    with _objective(model, case.shape if case else (12,)) as objective:
        end = _other(objective, 0.3)
        repair = Repair(objective, end)
        recompute = BatchNorm(objective, "recompute")
        assert repair.batchnorm.policy == "recompute"
        assert repair.batch_norms == tuple(key for key in recompute.buffers if "mean" in key)
        assert list(repair.ends) == ([] if case else ["first.weight", "third.weight"])
        assert not repair.not_repaired
        _move(objective, end, 0.5)
        with repair.at(0.5):
            kept = {key: value.clone() for key, value in recompute.buffers.items()}
            with recompute.at():
                for key, value in recompute.buffers.items():
                    assert torch.equal(value, kept[key])
            found = repair.moments(*repair.ends)
        for layer, (a, b) in repair.ends.items():
            expected = (a.std + b.std) / 2
            torch.testing.assert_close(found[layer].std, expected, rtol=EXACT, atol=EXACT)


def test_a_pass_ends_behind_the_layer_it_measures() -> None:
    model, _ = perturbed(CASES["mlp"])
    with _objective(model) as objective:
        repair = Repair(objective, objective.theta)
        seen: list[str] = []
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
        with repair.at(0.5):
            linear = [name for name in seen if isinstance(model.get_submodule(name), nn.Linear)]
    # Three micro-batches as far as the first, and three as far as the second.
    assert linear == ["linear1"] * 3 + ["linear1", "linear2"] * 3


def test_repair_is_taken_back() -> None:
    model = Mixed()
    before = snapshot(model)
    with _objective(model) as objective:
        end = _other(objective)
        repair = Repair(objective, end)
        _move(objective, end, 0.5)
        inside = snapshot(model)
        with repair.at(0.5):
            assert not torch.equal(model.first.weight, inside["first.weight"])
            assert not torch.equal(model.norm.running_mean, inside["norm.running_mean"])  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError), repair.at(0.5):
            raise ZeroDivisionError
        assert all(torch.equal(value, inside[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_constant_units_are_only_shifted() -> None:
    """One is constant everywhere, one only half way; dead ReLUs before are constant inputs."""
    model = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight[0] = 0.0
        model[0].bias[2:] = -100.0
        model[2].weight[0, :2] = 0.0
    with _objective(model) as objective:
        with torch.no_grad():
            model[0].weight[1] *= -1.0
        end = flatten(p.detach() for p in objective.parameters).clone()
        objective.move(objective.theta)
        repair = Repair(objective, end)
        objective.move((objective.theta + end) / 2)
        inside = snapshot(model)
        with repair.at(0.5):
            for key, value in model.state_dict().items():
                if key.endswith("weight") and key != "2.weight":
                    assert torch.equal(value, inside[key])
            found = repair.moments(*repair.ends)
        for layer, (a, b) in repair.ends.items():
            expected = (a.mean + b.mean) / 2
            torch.testing.assert_close(found[layer].mean, expected, rtol=EXACT, atol=EXACT)
        assert found["0.weight"].std[:2].max() < EXACT  # weights of zero have no spread to restore
        assert found["2.weight"].std[0] < EXACT


def test_a_spread_of_rounding_is_none() -> None:
    """A unit whose two ends cancel half way but for the last bits of a float32."""
    model = nn.Sequential(nn.Linear(12, 2), nn.ReLU(), nn.Linear(2, 3))
    with Objective(model, _samples((12,))) as objective:
        end = objective.theta.clone()
        end[:12] *= -1 - 2.0**-22
        repair = Repair(objective, end)
        objective.move((objective.theta + end) / 2)
        assert 0 < repair.moments("0.weight")["0.weight"].std[0] < 1e-6
        inside = snapshot(model)
        with repair.at(0.5):
            assert torch.equal(model[0].weight[0], inside["0.weight"][0])


def test_a_spread_of_a_thousandth_of_the_mean_is_one() -> None:
    model = nn.Sequential(nn.Linear(12, 2), nn.ReLU(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
        model[0].bias.fill_(1.0)
    with Objective(model, _samples((12,))) as objective:
        end = objective.theta.clone()
        end[:24] = end[:24].flip(0)
        repair = Repair(objective, end)
        objective.move((objective.theta + end) / 2)
        before = repair.moments("0.weight")["0.weight"].std
        with repair.at(0.5):
            after = repair.moments("0.weight")["0.weight"].std
        expected = sum(each.std for each in repair.ends["0.weight"]) / 2
        # Outputs near 1 are rounded to 6e-8, of a spread of 6e-4.
        torch.testing.assert_close(after, expected, rtol=1e-3, atol=0)
        assert ((before / expected - 1).abs() > 0.05).all()


class SharedBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 5)
        self.second = nn.Linear(5, 5)
        self.second.bias = self.first.bias
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Transposed(nn.Module):
    """A weight of a layer that is also multiplied by, and one that no layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(12, 6)
        self.mix = nn.Parameter(torch.randn(12, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.encode(x)) @ self.encode.weight
        return self.head(torch.tanh(hidden @ self.mix))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.hidden = nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.lstm(x.unflatten(1, (3, 4)))[0][:, -1])))


class Upsampled(nn.Module):
    """Transposed convolutions, the first before batch norm, which looks after any layer's units."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(3, 4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.again = nn.ConvTranspose1d(4, 5, 2)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.up(x.unflatten(1, (3, 4)))))
        return self.head(torch.relu(self.again(x)).mean(2))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.unflatten(1, (3, 4)))[:, 0])


def _frozen(part: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    getattr(model[2], part).requires_grad_(False)
    return model


_TWICE = "its weight is used more than once"


@pytest.mark.parametrize(
    ("build", "repaired", "not_repaired"),
    [
        (CASES["tied weights"].build, [], {"encode.weight": _TWICE, "again.weight": _TWICE}),
        (
            SharedBias,
            [],
            dict.fromkeys(("first.weight", "second.weight"), "its bias is used more than once"),
        ),
        (
            Transposed,
            [],
            {"encode.weight": _TWICE, "mix": "it is used by matmul, whose units are not seen"},
        ),
        (
            lambda: nn.Sequential(nn.Linear(12, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)),
            [],
            {"0.weight": "it has no bias to shift its units by"},
        ),
        (lambda: _frozen("weight"), ["0.weight"], {"2.weight": "it is frozen"}),
        (lambda: _frozen("bias"), ["0.weight"], {"2.weight": "it is frozen"}),
        (
            Recurrent,
            ["hidden.weight"],
            dict.fromkeys(
                ("lstm.weight_ih_l0", "lstm.weight_hh_l0"),
                "it is used by lstm, whose units are not seen",
            ),
        ),
        (
            Upsampled,
            [],
            {"again.weight": "it is used by conv_transpose1d, whose units are not seen"},
        ),
        (
            Attention,
            ["layer.linear1.weight", "layer.linear2.weight"],
            dict.fromkeys(
                ("layer.self_attn.in_proj_weight", "layer.self_attn.out_proj.weight"),
                "it is used by multi_head_attention_forward, whose units are not seen",
            ),
        ),
    ],
)
def test_what_is_left_alone_is_named(
    build: type[nn.Module], repaired: list[str], not_repaired: dict[str, str]
) -> None:
    model = build()
    with _objective(model) as objective:
        end = _other(objective)
        repair = Repair(objective, end)
        assert list(repair.ends) == repaired
        assert repair.not_repaired == not_repaired
        _move(objective, end, 0.5)
        inside = snapshot(model)
        with repair.at(0.5):
            for key in not_repaired:
                assert torch.equal(model.state_dict()[key], inside[key])


@pytest.mark.parametrize("num_samples", [1, 2])
def test_fewer_than_two_samples_have_no_spread(num_samples: int) -> None:
    """One in all, or one for each of two experts."""
    model = CASES["mlp"].build() if num_samples == 1 else Experts()
    samples = _samples((12,), num_samples)
    samples.inputs[:, 0] = torch.arange(num_samples)
    with (
        Objective(model, samples, dtype=torch.float64) as objective,
        pytest.raises(UsageError, match="no layer that it could rescale sees more than one sample"),
    ):
        Repair(objective, objective.theta)


def test_one_sample_has_spread_enough_for_batch_norm_of_images() -> None:
    """Its statistics, over positions, are repaired where no layer of units can be."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
        nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    with _objective(model, (1, 6, 6), num_samples=1) as objective:
        repair = Repair(objective, _other(objective, 0.1))
        assert not repair.ends
        assert repair.batch_norms == ("1.running_mean",)
        assert repair.not_repaired == {
            "4.weight": "at an end of the path it sees no more than one sample"
        }


class Experts(nn.Module):
    """The first feature of a sample says which expert sees it, turned by a parameter.

    All are called, also without a sample.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.zeros(()))
        self.experts = nn.ModuleList(nn.Linear(12, 5) for _ in range(4))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        chosen = (x[:, 0] + self.turn).round() % 4
        hidden = x.new_zeros(len(x), 5)
        for index, expert in enumerate(self.experts):
            rows = torch.where(chosen == index)[0]
            hidden = hidden.index_add(0, rows, expert(x[rows]))
        return self.head(torch.relu(hidden))


def _routed(counts: list[int]) -> Objective:
    """So many samples for each expert, which come in micro-batches of 16."""
    samples = _samples((12,), sum(counts))
    samples.inputs[:, 0] = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    return Objective(Experts(), samples, dtype=torch.float64, micro_batch_size=16)


def test_a_layer_that_no_two_samples_reach_is_left_alone() -> None:
    with _routed([20, 18, 1, 0]) as objective:
        end = _other(objective, 0.3)
        end[0] = 0.0  # the same route
        repair = Repair(objective, end)
        few = "at an end of the path it sees no more than one sample"
        left = ["experts.2.weight", "experts.3.weight"]
        assert list(repair.ends) == ["experts.0.weight", "experts.1.weight"]
        assert repair.not_repaired == dict.fromkeys(left, few)
        _move(objective, end, 0.5)
        inside = snapshot(objective.model)
        with repair.at(0.5):
            found = repair.moments(*repair.ends)
            for name in left:
                assert torch.equal(objective.model.state_dict()[name], inside[name])
        for layer, (a, b) in repair.ends.items():
            moments = found[layer]
            assert isinstance(moments, Moments)
            torch.testing.assert_close(moments.std, (a.std + b.std) / 2, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("num_left", [0, 1])
def test_a_layer_that_no_two_samples_reach_on_the_way_is_left_alone_there(num_left: int) -> None:
    """Experts take turns: from the first to the third, whose neighbours have few samples."""
    with _routed([20, num_left, 18, num_left]) as objective:
        end = _other(objective, 0.3)
        end[0] = 2.0
        repair = Repair(objective, end)
        assert list(repair.ends) == ["experts.0.weight", "experts.2.weight"]
        _move(objective, end, 0.5)
        inside = snapshot(objective.model)
        with repair.at(0.5):
            assert all(torch.equal(v, inside[k]) for k, v in objective.model.state_dict().items())
        where = "at some points of the path it sees no more than one sample"
        assert {k: v for k, v in repair.not_repaired.items() if k in repair.ends} == dict.fromkeys(
            repair.ends, where
        )
        assert len(repair.not_repaired) == 4
        _move(objective, end, 0.1)
        inside = snapshot(objective.model)
        with repair.at(0.1):
            for name in repair.ends:
                assert not torch.equal(objective.model.state_dict()[name], inside[name])


class Chunked(nn.Module):
    """One pass calls a layer once for each two samples: once for those that are traced."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(torch.cat([self.hidden(two) for two in x.split(2)])))


def test_a_layer_that_more_samples_use_more_often_is_left_alone() -> None:
    with _objective(Chunked()) as objective:
        repair = Repair(objective, objective.theta)
        assert not repair.ends
        assert repair.not_repaired == {
            "hidden.weight": f"at an end of the path {_TWICE}",
        }


def test_units_that_are_not_finite_are_refused() -> None:
    with _objective(CASES["mlp"].build()) as objective:
        repair = Repair(objective, objective.theta)
        objective.move(objective.theta * 1e200)
        with pytest.raises(NumericsError, match="are not finite, so REPAIR"), repair.at(0.5):
            pass
        objective.move(objective.theta)
        with pytest.raises(NumericsError, match=r"the units of linear1\.weight are not finite"):
            Repair(objective, objective.theta * 1e200)


class Copied(nn.Module):
    """Hands over a copy of its statistics, which nobody else can reach."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert self.norm.running_mean is not None
        return self.head(F.batch_norm(x, self.norm.running_mean * 1.0, self.norm.running_var))


def test_batch_norm_that_cannot_be_recomputed_is_refused() -> None:
    with (
        _objective(Copied()) as objective,
        pytest.raises(UsageError, match=r"--repair recomputes .*: .* no buffers of it"),
    ):
        Repair(objective, objective.theta)


def test_the_repaired_point_is_the_one_that_is_measured() -> None:
    """Against a twin that is rescaled by hand: a hidden layer, by closed form."""
    model, samples, (a, b) = trained_on_digits((16,), (1, 2))
    model.load_state_dict(a)
    with Objective(model, samples, dtype=torch.float64) as objective:
        end = flatten(b[name] for name in objective.layout.names).double()
        repair = Repair(objective, end)
        _move(objective, end, 0.25)
        with repair.at(0.25):
            found = objective.evaluate().loss
    states: list[State] = [{key: value.double() for key, value in s.items()} for s in (a, b)]
    between = {key: torch.lerp(states[0][key], states[1][key], 0.25) for key in a}
    x = samples.inputs.double().flatten(1)
    hidden = [F.linear(x, s["linear1.weight"], s["linear1.bias"]) for s in (*states, between)]
    (s_a, m_a), (s_b, m_b), (s, m) = (torch.std_mean(h, 0, correction=0) for h in hidden)
    repaired = (hidden[2] - m) / s * (0.75 * s_a + 0.25 * s_b) + 0.75 * m_a + 0.25 * m_b
    outputs = F.linear(torch.relu(repaired), between["output.weight"], between["output.bias"])
    assert found == pytest.approx(F.cross_entropy(outputs, samples.labels).item(), rel=EXACT)
