"""REPAIR: what the hidden units of an interpolated network put out afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from symmetric_networks import CASES, IMAGES, State, perturbed, trained_on_digits
from torch import Tensor, nn

from lgo_cli.landscape.alignment import align
from lgo_cli.landscape.repair import layer_statistics, repair
from lgo_cli.objective import Samples
from lgo_cli.training.loop import snapshot


def _loss(model: nn.Module, state: State, samples: Samples) -> float:
    model.load_state_dict(state)
    with torch.no_grad():
        return float(F.cross_entropy(model(samples.inputs), samples.labels))


def _between(a: State, b: State, alpha: float) -> State:
    return {k: torch.lerp(a[k], b[k], alpha) if a[k].is_floating_point() else a[k] for k in a}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["mlp", "convolution, flattened", "concatenation and a gate"])
def test_repair_restores_mean_and_spread(name: str, alpha: float) -> None:
    model, _ = perturbed(CASES[name])
    inputs = torch.randn(64, *CASES[name].shape, generator=torch.Generator().manual_seed(0))
    a = snapshot(model)
    draw = torch.Generator().manual_seed(1)
    b = {key: value + torch.randn(value.shape, generator=draw) for key, value in a.items()}
    stats = [layer_statistics(model, state, inputs) for state in (a, b)]
    point = _between(a, b, alpha)
    result = repair(model, point, *stats, alpha, inputs)
    assert list(result.layers) == list(stats[0].mean)
    assert len(result.layers) == sum(key.endswith("weight") for key in a) - 1
    assert not result.batch_norms
    after = layer_statistics(model, result.state, inputs)
    for layer in result.layers:
        # float32 moments of activations of the order of 1 to 10.
        for kind in ("mean", "std"):
            ends = [getattr(stat, kind)[layer] for stat in stats]
            torch.testing.assert_close(
                getattr(after, kind)[layer], torch.lerp(*ends, alpha), rtol=1e-4, atol=1e-4
            )
    if alpha in (0.0, 1.0):
        for key, value in point.items():
            torch.testing.assert_close(result.state[key], value, rtol=1e-3, atol=1e-4)


def test_repair_restores_the_spread_that_a_midpoint_has_lost() -> None:
    model, samples, (a, b) = trained_on_digits((64, 64, 64), (1, 2))
    aligned = align(model, a, b, samples.inputs).state
    stats = [layer_statistics(model, state, samples.inputs) for state in (a, aligned)]
    middle = _between(a, aligned, 0.5)
    lost = layer_statistics(model, middle, samples.inputs)
    repaired = repair(model, middle, *stats, 0.5, samples.inputs).state
    losses = [_loss(model, state, samples) for state in (middle, repaired)]
    last = "linear3.weight"
    assert lost.std[last].mean() < 0.8 * (stats[0].std[last].mean() + stats[1].std[last].mean()) / 2
    assert losses[1] < losses[0]


def test_repair_measures_batch_norms_anew() -> None:
    model, _ = perturbed(CASES["lgo's resnet"])
    inputs = torch.randn(32, *IMAGES, generator=torch.Generator().manual_seed(0))
    a = snapshot(model)
    draw = torch.Generator().manual_seed(1)
    b = {k: v + torch.rand(v.shape, generator=draw) if v.ndim else v for k, v in a.items()}
    stats = [layer_statistics(model, state, inputs) for state in (a, b)]
    assert not stats[0].mean
    assert not stats[0].not_repaired
    point = _between(a, b, 0.5)
    result = repair(model, point, *stats, 0.5, inputs)
    assert len(result.batch_norms) == 7
    repaired = copy.deepcopy(model)
    repaired.load_state_dict(result.state)
    checked = []

    def check(module: nn.Module, given: tuple[Tensor]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        variance, mean = torch.var_mean(given[0], (0, 2, 3))
        # float32, and the same operations in the same order.
        torch.testing.assert_close(module.running_mean, mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module.running_var, variance, rtol=1e-5, atol=1e-5)
        checked.append(module)

    for module in repaired.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(check)
    with torch.no_grad():
        repaired.eval()(inputs)
    assert len(checked) == 7
    for key, value in point.items():
        assert "running" in key or torch.equal(result.state[key], value)


def test_repair_names_what_it_leaves_alone() -> None:
    model, inputs = perturbed(CASES["tied weights"])
    stats = layer_statistics(model, snapshot(model), inputs)
    assert dict(stats.not_repaired) == {"again.weight": "its weight is used more than once"}
    assert list(stats.mean) == ["encode.weight"]
    model = nn.Sequential(nn.Linear(12, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))
    stats = layer_statistics(model, snapshot(model), inputs)
    assert dict(stats.not_repaired) == {"0.weight": "it has no bias to shift its units by"}
