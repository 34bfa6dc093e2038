"""Straight paths by the fast path of cells, against the model's own pass at each point."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Lgo
from torch import Tensor, nn

from lgo_cli.config import Execution, TrainConfig
from lgo_cli.landscape.batchnorm import BatchNorm, statistics_at
from lgo_cli.landscape.evaluator import TOLERANCE, Evaluator
from lgo_cli.landscape.interpolation import CHANGED, OWN_PASS, LossPath, Series, interpolate
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.runs import execute
from lgo_cli.samples import Evaluation, Samples

ALPHAS = [-0.5, 0.0, 0.3, 0.7, 1.0, 1.25]
CHANNELS, SIDE, CLASSES = 3, 6, 3


def _samples(n: int, seed: int) -> Samples:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, CHANNELS, SIDE, SIDE, generator=draw)
    return Samples(inputs, torch.randint(0, CLASSES, (n,), generator=draw))


TRAIN, TEST = _samples(70, 0), _samples(40, 1)


def _wide(seed: int = 1) -> nn.Module:
    """Its first layer's products are kept."""
    return _built(
        nn.Sequential(
            nn.Flatten(), nn.Linear(CHANNELS * SIDE**2, 16), nn.ReLU(), nn.Linear(16, CLASSES)
        ),
        seed,
    )


def _convolutional(seed: int = 1) -> nn.Module:
    """Its batch norms are folded."""
    return _built(
        nn.Sequential(
            *(nn.Conv2d(CHANNELS, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(16, CLASSES)),
        ),
        seed,
    )


def _built(model: nn.Module, seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw))
        model(2 * TRAIN.inputs + 1)  # running statistics that are not the initial ones
    return model


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _agree(fast: Series, plain: Series, exact: list[int]) -> None:
    np.testing.assert_allclose(fast.loss, plain.loss, rtol=TOLERANCE)
    np.testing.assert_allclose(fast.standard_error, plain.standard_error, rtol=1e-4)
    # Differences of nearby losses: their own rounding, over a tenth of their size.
    np.testing.assert_allclose(
        fast.barrier_standard_error, plain.barrier_standard_error, rtol=1e-3, atol=1e-8
    )
    for name in ("loss", "standard_error", "accuracy"):
        assert np.array_equal(getattr(fast, name)[exact], getattr(plain, name)[exact])
    between = [i for i in range(len(ALPHAS)) if i not in exact]
    assert (fast.loss[between] != plain.loss[between]).any()  # another way it is


@pytest.mark.parametrize("along", ["target", "direction"])
@pytest.mark.parametrize(
    ("build", "policy", "said"),
    [
        (_wide, "frozen", "first linear layer kept (108 to 16)"),
        (_convolutional, "frozen", "2 batch norms folded into 2 convolutions, channels last"),
        (_convolutional, "recompute", "2 batch norms folded into 2 convolutions, channels last"),
        (_convolutional, "interpolate", "2 batch norms folded into 2 convolutions, channels last"),
    ],
)
def test_points_are_those_of_the_models_own_pass(
    build: object, policy: str, said: str, along: str
) -> None:
    assert callable(build)
    here, there = build(1), build(2)
    states = {(0.0,): here.state_dict(), (1.0,): there.state_dict()}
    with Objective(here, TRAIN, micro_batch_size=32) as objective:
        batchnorm = BatchNorm(objective, policy, ends=states)  # type: ignore[arg-type]
        far = _flat(there)
        route = {"target": far} if along == "target" else {"direction": far - objective.theta}
        fast = interpolate(objective, TEST, ALPHAS, batchnorm=batchnorm, **route)  # type: ignore[arg-type]
        plain = interpolate(
            objective, TEST, ALPHAS, around=lambda a: statistics_at(batchnorm, a), **route
        )  # type: ignore[arg-type]
        assert objective.evaluate() == objective.center
    assert said in fast.plan
    assert (fast.is_fast, plain.is_fast) == (True, False)
    assert (plain.plan, plain.fast_path_difference) == (CHANGED, None)
    assert fast.fast_path_difference is not None
    assert 0 < fast.fast_path_difference <= TOLERANCE
    # The run's own loss, and the other's along a path to it, are the model's to the bit.
    exact = [1, 4] if along == "target" else [1]
    _agree(fast.train, plain.train, exact)
    _agree(fast.test, plain.test, exact)
    if policy == "frozen":
        assert fast.loss_at_start == objective.center.loss
        assert fast.curvature_at_origin is not None
    assert fast.num_evaluations == plain.num_evaluations == 12


def test_statistics_are_recomputed_once_for_both_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[None] = []
    recompute = BatchNorm._recompute

    def counting(batchnorm: BatchNorm) -> None:
        counts.append(None)
        recompute(batchnorm)

    monkeypatch.setattr(BatchNorm, "_recompute", counting)
    with Objective(_convolutional(), TRAIN) as objective:
        batchnorm = BatchNorm(objective, "recompute")
        direction = torch.ones(objective.dim)
        interpolate(objective, TEST, ALPHAS, direction=direction, batchnorm=batchnorm)
    # At each point, and to compare both ways on both sets at 0 and both ends of the grid.
    assert len(counts) == len(ALPHAS) + 12


def test_ways_are_compared_where_the_loss_is_finite() -> None:
    """At 0, where neither end of the line has a loss."""
    with Objective(_convolutional(), TRAIN) as objective:
        direction = torch.ones(objective.dim)
        path = interpolate(objective, None, [-1e30, 0.0, 1e30], direction=direction)
    assert not np.isfinite(path.train.loss[[0, 2]]).any()
    assert path.fast_path_difference is not None
    assert 0 < path.fast_path_difference < 1e-5


def test_each_micro_batchs_own_statistics_are_no_fast_path() -> None:
    with Objective(_convolutional(), TRAIN, micro_batch_size=35) as objective:
        path = interpolate(
            objective,
            None,
            [0.0, 1.0],
            direction=torch.ones(objective.dim),
            batchnorm=BatchNorm(objective, "batch"),
        )
    assert path.plan == "the model's own pass: batch norm normalises by each micro-batch"
    assert path.fast_path_difference is None


def _path(model: nn.Module, test: Samples | None = TEST) -> LossPath:
    with Objective(model, TRAIN) as objective:
        return interpolate(objective, test, ALPHAS, target=_flat(_wide(2)))


def test_wrong_fast_path_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Evaluator._products_of

    def wrong(evaluator: Evaluator, linear: object, inputs: Tensor) -> list[Tensor]:
        origin, along = right(evaluator, linear, inputs)  # type: ignore[arg-type]
        # Right at the centre, wrong away from it, on the test samples alone.
        return [origin, along * (1.1 if len(inputs) == len(TEST) else 1.0)]

    before = _path(_wide())
    monkeypatch.setattr(Evaluator, "_products_of", wrong)
    path = _path(_wide())
    kept, given_up = path.plan.split("; on the test samples, ")
    assert kept == before.plan
    assert (before.is_fast, path.is_fast) == (True, False)  # on both sets, or it is not said
    assert given_up.startswith("the model's own pass: it would move the loss by")
    # Of the way that was taken.
    assert path.fast_path_difference is not None
    assert 0 < path.fast_path_difference < TOLERANCE
    assert np.array_equal(path.train.loss, before.train.loss)
    np.testing.assert_allclose(path.test.loss, before.test.loss, rtol=TOLERANCE)


def test_losses_of_single_samples_are_those_behind_the_mean() -> None:
    with Objective(_wide(), TRAIN, LossFunction("squared_error", 0.1)) as objective:
        direction = torch.linspace(-1, 1, objective.dim)
        for evaluator in (
            Evaluator(objective, direction[None]),
            Evaluator(objective, direction[None]).on(TEST),
        ):
            found = evaluator(0.7)
            evaluation, losses = evaluator.here(0.7)
            assert (evaluation, losses.dtype) == (found, torch.float64)
            assert isinstance(evaluation, Evaluation)
            assert len(losses) == evaluation.num_samples == len(evaluator.samples)
            assert float(losses.mean()) == pytest.approx(evaluation.loss, rel=1e-14)


def test_fast_points_that_are_not_finite_are_the_models_own() -> None:
    with Objective(_wide(), TRAIN) as objective:
        path = interpolate(objective, TEST, [0.0, 1e38], direction=torch.ones(objective.dim))
    assert not np.isfinite(path.train.loss[1])
    assert path.warnings == (
        "the loss is not finite at 1 of 2 points",
        "on the test samples, the loss is not finite at 1 of 2 points",
    )
    assert (path.train.num_nonfinite, path.test.num_nonfinite) == (1, 1)


def _trained(out: Path, dimension: int, seed: int = 0) -> Path:
    data = {"num_train": 128, "num_test": 64, "dimension": dimension}
    config = TrainConfig(model_arg={"hidden": [8]}, dataset_arg=data, epochs=1, seed=seed)
    execute(config, execution=Execution(out=out / f"run{dimension}{seed}"))
    return out / f"run{dimension}{seed}"


def test_plan_and_difference_are_recorded_and_shown(tmp_path: Path, lgo: Lgo) -> None:
    run, other, third = (_trained(tmp_path, 40, seed) for seed in (0, 1, 2))
    plan = "products of the first linear layer kept (40 to 8)"
    to = ("--to", str(other))
    for options in (("--direction", "random"), to, (*to, "--to", str(third), "--matrix")):
        told = lgo("interp", run, *options, "--num-points", "5", "--verbose")
        results = json.loads((run / "interp.json").read_text())["results"]
        assert (results["point_plan"], results["is_fast"]) == (plan, True)
        assert plan in told.stderr
        assert 0 < results["fast_path_difference"] < TOLERANCE
        row = f"fast path equal to {results['fast_path_difference']:.1e}"
        assert any(line.split(maxsplit=1) == ["self-check", row] for line in
                   told.stdout.splitlines())  # fmt: skip
    arc = lgo("interp", run, *to, "--num-points", "5", "--spherical")
    results = json.loads((run / "interp.json").read_text())["results"]
    assert (results["point_plan"], results["fast_path_difference"]) == (OWN_PASS, None)
    assert results["is_fast"] is False
    assert f"\npoints     {OWN_PASS}\n" in arc.stdout
    # Too few inputs for products to pay: there is no fast path to boast of.
    narrow = _trained(tmp_path, 20)
    own = "the model's own pass: no convolution, and no wide linear layer sees the inputs"
    line = lgo("interp", narrow, "--num-points", "5")
    assert f"\npoints     {own}\n" in line.stdout
    plane = lgo("contour", narrow, "--resolution", "3")
    assert f"\n            cells took {own}\n" in plane.stdout
    for step in ("interp", "contour"):
        assert json.loads((narrow / f"{step}.json").read_text())["results"]["is_fast"] is False
    for told in (arc, line, plane):
        assert "fast path" not in told.stdout


def test_fast_path_of_the_paths_beside_a_repaired_one_is_called_theirs(
    tmp_path: Path, lgo: Lgo
) -> None:
    run, other = (_trained(tmp_path, 40, seed) for seed in (0, 1))
    line = ("interp", run, "--to", other, "--num-points", "3")
    route = "along the straight line to the other checkpoint"
    for options, end, plan in (
        (("--align", "--repair"), f"{route}, repaired at each point", CHANGED),
        (("--curve", "bezier", "--epochs", "1"), "along the trained Bezier curve", OWN_PASS),
        (("--align",), route, None),
    ):
        told = lgo(*line, *options).stdout
        results = json.loads((run / "interp.json").read_text())["results"]
        for text in (told, (run / "interp_caption.txt").read_text()):
            assert end in text
            assert text.count("repaired at each point, 3 points on [") == (plan == CHANGED)
        beside = f"of the paths beside it equal to {results['fast_path_difference_beside']:.1e}\n"
        assert f"fast path {beside}" in told
        assert (results["fast_path_difference"] is None) == (plan is not None)
        rows = [row.partition(" ")[2].strip() for row in told.splitlines() if "points " in row[:7]]
        assert rows == ([plan] if plan else [])


def test_rejected_fast_path_is_not_called_equal(
    tmp_path: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Evaluator._products_of
    monkeypatch.setattr(
        Evaluator, "_products_of", lambda *given: [1.1 * part for part in right(*given)]
    )
    run = _trained(tmp_path, 40)
    for command, why in (("interp", "\npoints     "), ("contour", "\n            cells took ")):
        grid = ("--num-points", "5") if command == "interp" else ("--resolution", "3")
        told = lgo(command, run, *grid)
        assert f"{why}the model's own pass: it would move the loss by" in told.stdout
        assert "fast path" not in told.stdout
