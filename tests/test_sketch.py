"""λmax alone starts at a sketch of a part of the samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_networks import dense_hessian, fit, make

from lgo_cli.config import HessianConfig
from lgo_cli.curvature import analysis, sketch
from lgo_cli.curvature.analysis import analyze_spectrum
from lgo_cli.curvature.operators import DenseOperator
from lgo_cli.curvature.spectrum import Setting
from lgo_cli.objective import Objective, Samples

if TYPE_CHECKING:
    from lgo_cli.curvature.operators import Operator
    from lgo_cli.objective import LossFunction

ALONE: dict[str, Any] = {"top_k": 1, "bottom_k": 0, "audit": False}


@pytest.fixture(scope="module")
def problem() -> tuple[torch.nn.Module, Samples, LossFunction]:
    """A network after 50 steps, and 1,024 samples that can be learnt."""
    model, samples, loss = make("batch norm", 1024)
    samples = Samples(samples.inputs, samples.inputs[:, :3].argmax(dim=1))
    fit(model, samples, loss, 50)
    return model, samples, loss


@pytest.fixture
def sketches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples of each sketch that was taken."""
    taken: list[int] = []
    leading_vectors = sketch.leading_vectors

    def note(operator: Operator, gradient: torch.Tensor, seed: int) -> torch.Tensor:
        network: Any = operator
        while not hasattr(network, "objective"):
            network = network.operator
        taken.append(len(network.objective.samples))
        return leading_vectors(operator, gradient, seed)

    monkeypatch.setattr(analysis.sketch, "leading_vectors", note)
    return taken


def test_saves_products_and_finds_the_largest(
    problem: tuple[torch.nn.Module, Samples, LossFunction],
    sketches: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From as few samples as are sketched, and from the gradient where they are too few."""
    seeds = range(5)
    products = []
    with Objective(*problem, dtype=torch.float64) as objective:
        largest = torch.linalg.eigvalsh(dense_hessian(objective))[-1]
        for least in (64, 65):
            monkeypatch.setattr(sketch, "LEAST_SAMPLES", least)
            runs = [
                analyze_spectrum(objective, HessianConfig(**ALONE, seed=seed)).eigenpairs
                for seed in seeds
            ]
            for run in runs:
                assert abs(run.values[0] - largest) <= run.error_estimates[0]
            products.append(sum(run.num_matvecs for run in runs))
    assert sketches == [64] * len(seeds)
    assert products[0] < products[1]


@pytest.mark.parametrize(
    "matrix",
    [
        {"operator": "ggn"},
        {"operator": "empirical-fisher"},
        {"scaling": "elementwise"},
        {"include_weight_decay": True},
        {"layers": ("1.*",)},
    ],
    ids=str,
)
def test_is_of_the_matrix_that_is_asked_for(
    problem: tuple[torch.nn.Module, Samples, LossFunction],
    sketches: list[int],
    matrix: dict[str, Any],
) -> None:
    """With the same value, to the tolerance, as from the gradient."""
    setting = Setting(weight_decay=0.5)
    with Objective(*problem, dtype=torch.float64) as objective:
        alone = analyze_spectrum(objective, HessianConfig(**ALONE, **matrix), setting)
        assert sketches == [64]
        several = HessianConfig(top_k=3, bottom_k=1, audit=False, **matrix)
        known = analyze_spectrum(objective, several, setting)
    assert sketches == [64]
    assert float(alone.eigenpairs.values[0]) == pytest.approx(
        float(known.eigenpairs.values[0]), rel=1e-3
    )


@pytest.mark.parametrize("other", [{"density": True}, {"bottom_k": 1}, {"top_k": 2}], ids=str)
def test_none_for_anything_else(
    problem: tuple[torch.nn.Module, Samples, LossFunction],
    sketches: list[int],
    other: dict[str, Any],
) -> None:
    with Objective(*problem) as objective:
        analyze_spectrum(objective, HessianConfig(**{**ALONE, **other}))
    assert sketches == []


def test_none_beside_a_warm_start(
    problem: tuple[torch.nn.Module, Samples, LossFunction], sketches: list[int]
) -> None:
    with Objective(*problem) as objective:
        pairs = analyze_spectrum(objective, HessianConfig(**{**ALONE, "top_k": 2})).eigenpairs
        setting = Setting(warm_start=pairs.eigenvectors)
        analyze_spectrum(objective, HessianConfig(**ALONE), setting)
    assert sketches == []


def test_warning_of_a_warm_start_is_given_once(
    problem: tuple[torch.nn.Module, Samples, LossFunction],
) -> None:
    config = HessianConfig(**ALONE, layers=("0.*",), halves=True)
    with Objective(*problem) as objective:
        nothing = torch.zeros(1, objective.dim)
        warnings = analyze_spectrum(objective, config, Setting(warm_start=nothing)).warnings
    assert warnings == ("--warm-start has nothing in these layers: a cold start",)


def test_a_matrix_of_few_steps_is_sketched_whole() -> None:
    """Where five steps are more than there are dimensions."""
    matrix = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    found = sketch.leading_vectors(DenseOperator(matrix), torch.ones(2, dtype=torch.float64), 0)
    assert found.shape == (2, 2)
    assert abs(found[-1, 1]) == pytest.approx(1)
