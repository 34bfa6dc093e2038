"""Permutation symmetries and weight matching, against what they must not change."""

from __future__ import annotations

import copy
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self, cast
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import NETWORKS as SMALL
from small_networks import Merging, make
from symmetric_networks import (
    CASES,
    IMAGES,
    BiasedAttention,
    Case,
    CoarseAndFine,
    RandomViews,
    State,
    perturbed,
    trained_on_digits,
)
from torch import Tensor, nn
from torch.autograd import Function

from lgo_cli.checkpoint import snapshot
from lgo_cli.errors import InputError, NumericsError
from lgo_cli.landscape import equivariance
from lgo_cli.landscape.alignment import _Matching, align
from lgo_cli.landscape.assignment import assign
from lgo_cli.landscape.blocks import Segment, groups_of
from lgo_cli.landscape.heights import highest
from lgo_cli.landscape.permutations import UNREACHED, Symmetries, find_symmetries
from lgo_cli.loss import LossFunction
from lgo_cli.models.mlp import mlp
from lgo_cli.objective import Objective
from lgo_cli.vectors import flatten

FLOAT64 = 1e-12
"""Relative difference of outputs in float64 after sums of some hundred terms in another order,
through a few layers: 1e-15 was seen, a wrong permutation moves them by the order of 1."""


def _outputs(model: nn.Module, state: State, inputs: Tensor) -> Tensor:
    """In float64, of a copy that has loaded the state as anyone would."""
    copied = copy.deepcopy(model).double()
    copied.load_state_dict(state)
    with torch.no_grad():
        outputs: Tensor = copied(inputs.double())
    return outputs


def _shuffled(
    model: nn.Module, inputs: Tensor, seed: int = 0, symmetries: Symmetries | None = None
) -> State:
    symmetries = symmetries or find_symmetries(model, inputs)
    draw = torch.Generator().manual_seed(seed)
    order = [torch.randperm(group.size, generator=draw) for group in symmetries.groups]
    return symmetries.permute_state(snapshot(model), order)


def _matching(model: nn.Module, a: State, b: State, inputs: Tensor) -> _Matching:
    names = [name for name, _ in model.named_parameters()]
    weights_a, weights_b = ({name: state[name].double() for name in names} for state in (a, b))
    return _Matching(find_symmetries(model, inputs), weights_a, weights_b, Mock())


@pytest.mark.parametrize("name", CASES)
def test_every_permutation_found_is_a_symmetry_and_none_is_lost(name: str) -> None:
    case = CASES[name]
    model, inputs = perturbed(case)
    symmetries = find_symmetries(model, inputs)
    assert [group.size for group in symmetries.groups] == case.groups
    expected = _outputs(model, snapshot(model), inputs)
    for seed in range(3):
        state = _shuffled(model, inputs, seed, symmetries)
        found = _outputs(model, state, inputs)
        assert (found - expected).abs().max() <= FLOAT64 * expected.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_a_permuted_copy_is_recovered_exactly(name: str) -> None:
    model, inputs = perturbed(CASES[name])
    state = snapshot(model)
    permuted = _shuffled(model, inputs)
    assert any(not torch.equal(permuted[key], state[key]) for key in state)
    result = align(model, state, permuted, inputs)
    for key, value in state.items():
        assert torch.equal(result.state[key], value), key
    assert result.distance_after == 0.0 < result.distance_before
    assert result.output_difference <= FLOAT64
    assert result.output_tolerance == 2.0**-26
    assert result.num_units == sum(CASES[name].groups)


def test_random_views_are_symmetries_and_recovered() -> None:
    num_nested = 0
    for seed in range(60):
        model, inputs = perturbed(Case(lambda seed=seed: RandomViews(seed), [], (6,)))  # type: ignore[misc]
        symmetries = find_symmetries(model, inputs)
        state, permuted = snapshot(model), _shuffled(model, inputs, seed, symmetries)
        expected, found = (_outputs(model, values, inputs) for values in (state, permuted))
        assert (found - expected).abs().max() <= FLOAT64 * expected.abs().max(), seed
        assert align(model, state, permuted, inputs).distance_after == 0.0, seed
        axes = itertools.chain.from_iterable(symmetries.axes.values())
        num_nested += any(
            groups_of((Segment(segment.block),)) and groups_of(segment.inner)
            for axis in axes
            for segment in axis
        )
    assert num_nested > 20


def test_the_published_start_alone_may_stop_short_of_the_copy() -> None:
    """Why there is a second start: ascents from the identity end at local maxima on some seeds."""
    model, inputs = perturbed(Case(lambda: mlp((12,), 3, (6,) * 8), []))
    state = snapshot(model)
    distances = []
    for seed in range(8):
        permuted = _shuffled(model, inputs, seed)
        assert align(model, state, permuted, inputs).distance_after == 0.0
        matching = _matching(model, state, permuted, inputs)
        order, _ = matching.ascend([torch.arange(6)] * 8, 0)
        distances.append(matching.distance(order))
    assert max(distances) > 0.0


def test_progress_hears_of_each_group_that_is_matched() -> None:
    """Each of the eight once for the second start, and once at least in either ascent."""
    model, inputs = perturbed(Case(lambda: mlp((12,), 3, (6,) * 8), []))
    progress = MagicMock()
    align(model, snapshot(model), _shuffled(model, inputs), inputs, progress=progress)
    task = progress.task.return_value.__enter__.return_value
    assert task.advance.call_count >= 24


@pytest.mark.parametrize("name", ["mlp", "lgo's resnet", "stream into itself", "tied weights"])
@pytest.mark.parametrize("seed", range(4))
def test_objective_never_falls_and_is_the_distance(name: str, seed: int) -> None:
    """Networks that have nothing in common, where the tangent of a quadratic may mislead."""
    model, inputs = perturbed(CASES[name])
    a = snapshot(model)
    draw = torch.Generator().manual_seed(seed)
    b = {
        key: torch.randn(value.shape, generator=draw).abs() if value.ndim else value
        for key, value in a.items()
    }
    b["same.weight"], b["same.bias"] = b.get("again.weight"), b.get("again.bias")  # type: ignore[assignment]
    b = {key: value for key, value in b.items() if value is not None}
    result = align(model, a, b, inputs, seed=seed)
    matching = _matching(model, a, b, inputs)
    identity = [torch.arange(group.size) for group in matching.symmetries.groups]
    ascents = [matching.ascend(start, seed) for start in (identity, matching.forward())]
    for _, objective in ascents:
        assert np.all(np.diff(objective) >= 0)
    order, objective = max(ascents, key=lambda ascent: ascent[1][-1])
    assert len(objective) == result.num_iterations + 1 > 1
    assert result.num_moved == sum(
        int((o != i).sum()) for o, i in zip(order, identity, strict=True)
    )
    names = [name for name, _ in model.named_parameters()]
    theta_a, theta_b, aligned = (
        flatten(state[name].double() for name in names) for state in (a, b, result.state)
    )
    # float64 sums of a few thousand terms in another order: 1e-13.
    assert objective[-1] == pytest.approx(float(theta_a @ aligned), rel=1e-12)
    assert result.distance_before == pytest.approx(float((theta_a - theta_b).norm()), rel=1e-12)
    assert result.distance_after == pytest.approx(float((theta_a - aligned).norm()), rel=1e-12)
    assert result.distance_after <= result.distance_before


def test_the_maximum_over_all_permutations_is_found_on_a_layer() -> None:
    model, inputs = perturbed(Case(lambda: mlp((12,), 3, (5,)), [5]))
    a = snapshot(model)
    draw = torch.Generator().manual_seed(0)
    b = {key: torch.randn(value.shape, generator=draw) for key, value in a.items()}
    symmetries = find_symmetries(model, inputs)

    def inner_product(order: Tensor) -> float:
        state = symmetries.permute_state(b, [order])
        return sum(float((a[key].double() * state[key].double()).sum()) for key in a)

    best = max(inner_product(torch.tensor(p)) for p in itertools.permutations(range(5)))
    found = align(model, a, b, inputs).state
    assert sum(float((a[key].double() * found[key].double()).sum()) for key in a) == pytest.approx(
        best, rel=1e-12
    )


INTO_ITSELF = ["stream into itself", "flattened stream into itself", "tied weights", "LSTM"]
"""With a group on both axes of a weight, in which the objective is quadratic."""


def _strangers(name: str, seed: int) -> tuple[nn.Module, Tensor, State, State]:
    """A network, its inputs, and two states that have nothing in common."""
    model, inputs = perturbed(CASES[name])
    draw = torch.Generator().manual_seed(seed)
    a, b = (
        {key: torch.randn(tuple(value.shape), generator=draw) for key, value in state.items()}
        for state in (model.state_dict(), model.state_dict())
    )
    return model, inputs, a, b


def _exchanges(order: list[Tensor], group: int) -> Iterator[tuple[tuple[int, int], list[Tensor]]]:
    """Every exchange of two units of a group."""
    for i, j in itertools.combinations(range(len(order[group])), 2):
        exchanged = order[group].clone()
        exchanged[[i, j]] = exchanged[[j, i]]
        yield (i, j), [*order[:group], exchanged, *order[group + 1 :]]


@pytest.mark.parametrize("name", INTO_ITSELF)
def test_gain_of_each_exchange_is_what_it_does(name: str) -> None:
    model, inputs, a, b = _strangers(name, 0)
    matching = _matching(model, a, b, inputs)
    draw = torch.Generator().manual_seed(1)
    order = [torch.randperm(g.size, generator=draw) for g in matching.symmetries.groups]
    before = matching.inner_product(order)
    for group, units in enumerate(order):
        tangent = matching.gains(group, order, matching.occurrences[group])[:, units]
        gains = matching._exchanges(group, order, tangent)
        for pair, exchanged in _exchanges(order, group):
            # Sums of some hundred numbers of order 1.
            expected = matching.inner_product(exchanged) - before
            assert float(gains[pair]) == pytest.approx(expected, abs=1e-11)


def test_equal_units_are_not_exchanged_back_and_forth() -> None:
    """What rounding says of their exchange is no gain: the order that was there stays."""
    model, inputs = perturbed(Case(lambda: mlp((12,), 3, (6, 6)), []))
    a, num_gaining = snapshot(model), 0
    first, bias, second = list(a)[:3]
    a[first][1], a[bias][1], a[second][:, 1] = a[first][0], a[bias][0], a[second][:, 0]
    here = [torch.arange(6), torch.arange(6)]
    exchanged = [torch.tensor([1, 0, 2, 3, 4, 5]), torch.arange(6)]
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        b = {k: v + 0.01 * torch.randn(v.shape, generator=draw) for k, v in a.items()}
        matching = _matching(model, a, b, inputs)
        gain = matching.inner_product(exchanged) - matching.inner_product(here)
        assert abs(gain) < matching.least_gain
        num_gaining += gain != 0
        for start in (here, exchanged):
            order, _ = matching.ascend(start, seed)
            assert all(torch.equal(o, s) for o, s in zip(order, start, strict=True))
    assert num_gaining


@pytest.mark.parametrize("name", INTO_ITSELF)
@pytest.mark.parametrize("seed", range(4))
def test_no_exchange_of_two_units_is_better(name: str, seed: int) -> None:
    model, inputs, a, b = _strangers(name, seed)
    matching = _matching(model, a, b, inputs)
    order, objective = matching.ascend(matching.forward(), seed)
    for group in range(len(order)):
        for _, exchanged in _exchanges(order, group):
            assert matching.inner_product(exchanged) <= objective[-1] + matching.least_gain


@pytest.mark.parametrize("n", range(1, 7))
def test_assignment_is_the_best_of_all(n: int) -> None:
    rng = np.random.default_rng(n)
    for draw in (rng.normal, lambda size: rng.integers(-2, 3, size).astype(float)):
        for _ in range(10):
            cost = draw(size=(n, n))
            columns, _, _ = assign(cost)
            best = min(
                sum(cost[i, p[i]] for i in range(n)) for p in itertools.permutations(range(n))
            )
            assert sorted(columns) == list(range(n))
            # Sums of six numbers.
            assert cost[np.arange(n), columns].sum() == pytest.approx(best, abs=1e-13)


@pytest.mark.parametrize("kind", ["noise", "low rank", "ties", "all alike"])
def test_assignment_is_proved_by_its_dual(kind: str) -> None:
    n = 150
    rng = np.random.default_rng(0)
    cost = {
        "noise": rng.normal(size=(n, n)),
        "low rank": rng.normal(size=(n, 3)) @ rng.normal(size=(3, n)),
        "ties": rng.integers(0, 4, (n, n)).astype(float),
        "all alike": np.ones((n, n)),
    }[kind]
    columns, u, v = assign(cost)
    assert sorted(columns) == list(range(n))
    # Feasible up to rounding of entries of the order of 10, and no gap in a sum of 150 of them.
    assert (cost - u[:, None] - v).min() >= -1e-12
    assert cost[np.arange(n), columns].sum() == pytest.approx(u.sum() + v.sum(), abs=1e-10)


class Cumulative(nn.Module):
    """A sum along the hidden units, in their order, which no permutation leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 5)
        self.second = nn.Linear(5, 6)
        self.third = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)).cumsum(dim=1))))


class SplitUnits(nn.Module):
    """Rows of six entries, of units of four."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 7)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1).unflatten(1, (4, 6)).relu().mean(1))


class PickedAndRolled(nn.Module):
    """Of five units the last but one by its number, of others some by an index, or all rolled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 7), nn.Linear(12, 5), nn.Linear(12, 4)
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.a(x), self.b(x), self.c(x).roll(1, 1).tanh()
        picked = a[:, torch.tensor([[3], [0]])].sum((1, 2))[:, None]
        return self.head(torch.cat((b * b[:, -2, None], c), 1)) + picked


class PickedUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 5)
        self.head = nn.Linear(5, 3)
        self.register_buffer("scale", torch.arange(5.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        return self.head(hidden * self.scale) + hidden[:, 2:3]


class _Swish(Function):
    """As published for memory's sake, the context among the arguments of forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        assert ctx.needs_input_grad in ((True,), (False,))
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s))


class _Sine(Function):
    """Of the newer form."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


class OwnDerivatives(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 5), nn.Linear(5, 6)
        self.third = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(_Sine.apply(self.second(_Swish.apply(self.first(x)))))


def test_functions_with_derivatives_of_their_own_are_what_they_compute() -> None:
    """Such a model was said to be one whose course depends on values."""
    torch.manual_seed(0)
    model, inputs = OwnDerivatives(), torch.randn(7, 12)
    assert [group.size for group in find_symmetries(model, inputs).groups] == [5, 6]
    expected = _outputs(model, snapshot(model), inputs)
    found = _outputs(model, _shuffled(model, inputs), inputs)
    torch.testing.assert_close(found, expected, rtol=FLOAT64, atol=FLOAT64)
    # They have their derivatives again.
    model(inputs).sum().backward()
    assert model.first.weight.grad is not None


def test_scripted_model_is_told_what_to_give() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their being deprecated
        model = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    with pytest.raises(InputError) as error:
        find_symmetries(model, torch.randn(7, 4))
    assert (
        error.value.hint == "give the model as it was before torch.jit, which has the same weights"
    )


@pytest.mark.parametrize(
    ("build", "groups", "not_permuted"),
    [
        (
            Cumulative,
            [6],
            {
                "first.weight": "cumsum has no rule",
                "first.bias": "cumsum has no rule",
                "second.weight": "cumsum has no rule",
            },
        ),
        (
            SplitUnits,
            [],
            dict.fromkeys(("conv.weight", "conv.bias", "head.weight"), "a view splits its units"),
        ),
        (
            PickedAndRolled,
            [3],
            dict.fromkeys(("a.weight", "a.bias"), "its units are picked by an index")
            | dict.fromkeys(("c.weight", "c.bias", "head.weight"), "its units are rolled"),
        ),
        (
            CoarseAndFine,
            [],
            dict.fromkeys(
                (
                    "a.weight",
                    "a.bias",
                    "b.weight",
                    "b.bias",
                    "twice.weight",
                    "twice.bias",
                    "thrice.weight",
                    "thrice.bias",
                ),
                "its units do not line up with another axis's",
            )
            | dict.fromkeys(
                ("up.weight", "up.bias", "head.weight"), "a grouped transposed convolution"
            ),
        ),
        (
            PickedUnit,
            [],
            dict.fromkeys(
                ("hidden.weight", "hidden.bias", "head.weight"),
                "a buffer that is not in the state_dict",
            ),
        ),
        (
            SMALL["tied, frozen and unused"].build,
            [],
            {
                "encode.weight": "frozen weights keep their order",
                "unused.weight": UNREACHED,
                "unused.bias": UNREACHED,
            },
        ),
    ],
)
def test_what_cannot_be_permuted_is_named(
    build: Callable[[], nn.Module], groups: list[int], not_permuted: dict[str, str]
) -> None:
    model, inputs = perturbed(
        Case(build, groups, IMAGES if build in (CoarseAndFine, SplitUnits) else (12,))
    )
    result = align(model, snapshot(model), _shuffled(model, inputs), inputs)
    assert result.num_units == sum(groups)
    assert dict(result.not_permuted) == not_permuted
    assert result.distance_after == 0.0


class KeptSlopes(BiasedAttention):
    """Slopes of the heads that are in the state_dict."""

    def __init__(self) -> None:
        super().__init__("slopes")
        slopes = self._buffers.pop("slopes")
        self.register_buffer("slopes", slopes)


def test_a_buffer_of_both_networks_holds_the_units_that_it_tells_apart() -> None:
    """It stands all along a path: one in another order would not be at its end."""
    model, inputs = perturbed(Case(KeptSlopes, []))
    a, permuted = snapshot(model), _shuffled(model, inputs)
    assert not torch.equal(a["slopes"], permuted["slopes"])
    assert align(model, a, permuted, inputs).distance_after == 0.0
    b = permuted | {"slopes": a["slopes"]}
    result = align(model, a, b, inputs)
    assert torch.equal(result.state["slopes"], a["slopes"])
    assert result.num_moved > 0
    for name in ("q.weight", "k.bias", "v.weight", "out.weight"):
        assert result.not_permuted[name] == "a buffer that is the same in both networks"


def test_a_wrong_permutation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof does not trust the rules: one that lies is found out."""
    monkeypatch.setitem(equivariance._RULES, "cumsum", equivariance._same)
    model, inputs = perturbed(Case(Cumulative, []))
    with pytest.raises(NumericsError, match="more than rounding"):
        align(model, snapshot(model), _shuffled(model, inputs), inputs)


def test_outputs_that_are_not_finite_prove_nothing() -> None:
    model, inputs = perturbed(CASES["mlp"])
    state = snapshot(model)
    broken = {
        key: value * 1e200 if key == "output.weight" else value for key, value in state.items()
    }
    with pytest.raises(NumericsError, match="differ from the original's by nan"):
        align(model, state, broken, inputs)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        return hidden if bool(hidden.sum() > 0) else -hidden


def test_a_forward_that_depends_on_values_is_refused() -> None:
    """In one sentence of PyTorch's, without its advice about a call that the user has not made."""
    model = Branching()
    with pytest.raises(InputError, match="cannot be traced") as caught:
        align(model, snapshot(model), snapshot(model), torch.zeros(2, 12))
    assert "tracing_mode" in str(caught.value.__cause__.__cause__)  # type: ignore[union-attr]
    assert "tracing_mode" not in caught.value.message
    assert len(caught.value.message) < 200


class Experts(nn.Module):
    """The first feature of a sample says which expert sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(12, 5) for _ in range(3))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(len(x), 5)
        for index, expert in enumerate(self.experts):
            rows = torch.where(x[:, 0] == index)[0]
            if len(rows):
                hidden = hidden.index_add(0, rows, expert(x[rows]))
        return self.head(torch.relu(hidden))


def test_what_the_traced_samples_do_not_reach_is_said() -> None:
    model, inputs = perturbed(Case(Experts, []))
    inputs[:, 0] = torch.arange(len(inputs)) % 3
    result = align(model, snapshot(model), snapshot(model), inputs)
    reasons = result.not_permuted
    assert {name for name, why in reasons.items() if why == UNREACHED} == {
        "experts.2.weight",
        "experts.2.bias",
    }
    assert reasons["experts.1.weight"] == "index_add has no rule"
    assert result.warnings == (
        "--align leaves the units of 2 parameters where they are, on which the two traced samples' "
        "outputs do not depend, while others' may: experts.2.weight, experts.2.bias",
    )


class SinglePrecision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x)).float())


def test_a_model_that_insists_on_its_dtype_is_compared_in_it() -> None:
    model, inputs = perturbed(Case(SinglePrecision, []))
    result = align(model, snapshot(model), _shuffled(model, inputs), inputs)
    assert result.output_dtype == "float32"
    assert result.output_difference <= result.output_tolerance == pytest.approx(2**-11.5)
    assert result.distance_after == 0.0
    (warning,) = result.warnings
    assert re.fullmatch(
        r"the aligned network was compared with the original in float32 and to 3\.5e-04 alone, "
        r"since the model does not run in float64: .*(float != double|same dtype).*",
        warning,
    )
    model, inputs = perturbed(CASES["mlp"])
    assert not align(model, snapshot(model), snapshot(model), inputs).warnings


class VastInFloat64(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x) + (x.new_empty(2**45) if x.dtype == torch.float64 else 0)


def test_memory_that_ends_is_not_a_dtype_that_is_refused() -> None:
    model, inputs = perturbed(Case(VastInFloat64, []))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        align(model, snapshot(model), snapshot(model), inputs)


def test_the_model_is_left_as_it_was_and_the_seed_decides() -> None:
    model, inputs = perturbed(CASES["lgo's resnet"])
    model.train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    before = snapshot(model)
    state = {k: v + torch.rand_like(v) if v.ndim else v for k, v in snapshot(model).items()}
    given = {key: value.clone() for key, value in state.items()}
    random_state = torch.get_rng_state()
    first, second = (align(model, before, state, inputs, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert torch.backends.mkldnn.enabled
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        assert torch.equal(given[key], state[key])
        assert torch.equal(first.state[key], second.state[key])
    assert first.distance_after == second.distance_after


def test_two_networks_trained_apart_have_a_lower_barrier_once_aligned() -> None:
    model, samples, (a, b) = trained_on_digits((256, 256), (1, 2))
    result = align(model, a, b, samples.inputs)
    barriers = []
    model.load_state_dict(a)
    with Objective(model, samples, LossFunction()) as objective:
        for state in (b, result.state):
            target = flatten(state[name] for name in objective.layout.names)
            alphas = np.linspace(0, 1, 5)
            losses = [objective.loss(torch.lerp(objective.theta, target, a)) for a in alphas]
            barriers.append(highest(alphas, np.array(losses))[1])
            # The aligned network is the other one: the same loss, to float32's sums.
            outputs = _outputs(model, b, samples.inputs)
            expected = float(F.cross_entropy(outputs, samples.labels))
            assert losses[-1] == pytest.approx(expected, rel=1e-4)
    assert barriers[1] < 0.5 * barriers[0]
    assert result.distance_after < result.distance_before


@pytest.mark.parametrize("name", SMALL)
def test_every_small_network_is_aligned_with_itself(name: str) -> None:
    model, samples, _ = make(name)
    state = snapshot(model)
    result = align(model, state, state, samples.inputs)
    assert result.num_moved == 0
    assert result.distance_before == result.distance_after == 0.0


class _Registering(nn.Module):
    """As TinyViT: the change of mode itself registers what it made of the parameters."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_outputs, num_inputs))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode and hasattr(self, "kept"):
            del self.kept
        elif not mode:
            self.register_buffer("kept", self.weight.detach().exp(), persistent=False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.exp() if self.training else cast("Tensor", self.kept))


@pytest.mark.parametrize("layer", [Merging, _Registering])
@pytest.mark.parametrize("mode", [True, False])
def test_what_modules_keep_in_eval_mode_is_of_the_parameters(
    layer: Callable[[int, int], nn.Module], mode: bool
) -> None:
    """They kept, or merged, what they had made of their own, and no proof saw it."""
    torch.manual_seed(0)
    models = [
        nn.Sequential(nn.Linear(8, 12), nn.ReLU(), layer(12, 10), nn.ReLU(), nn.Linear(10, 3))
        for _ in range(2)
    ]
    state_a, state_b = ({k: v.clone() for k, v in m.state_dict().items()} for m in models)
    inputs = torch.randn(20, 8)
    model = models[0].train(mode)
    found = align(model, state_a, state_b, inputs)
    assert not found.not_permuted
    assert found.num_moved > 15
    assert found.output_difference < 1e-12
    assert all(module.training is mode for module in model.modules())
    model.train()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state_a[name])
    outputs = []
    for state in (state_b, found.state):
        model.train()
        model.load_state_dict(state)
        outputs.append(model.eval()(inputs))
    torch.testing.assert_close(*outputs)
    again = align(model.train(), state_b, found.state, inputs)
    assert again.distance_after < 1e-6 * again.distance_before
