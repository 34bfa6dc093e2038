"""Losses on a plane, against closed forms, a naive double loop and their own self-check."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgo_cli.landscape.adaptive import Filled
from lgo_cli.landscape.cells import Cells
from lgo_cli.landscape.evaluator import Evaluator
from lgo_cli.landscape.grids import linspace
from lgo_cli.landscape.planes import Plane, random_plane
from lgo_cli.landscape.surface import (
    Surface,
    is_complete,
    measure_share,
    measure_surface,
    relative_difference,
)
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.progress import Task
from lgo_cli.runs.steps.surfaces import _nearest
from lgo_cli.samples import Samples
from lgo_cli.vectors import cosine

DIM, CLASSES = 6, 3


def _samples(n: int = 50) -> Samples:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, DIM, generator=draw)
    return Samples(inputs, torch.randint(0, CLASSES, (n,), generator=draw))


SAMPLES = _samples()


def _network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)
        )
        model(torch.randn(64, DIM))
    return model


def _linear() -> nn.Linear:
    with torch.random.fork_rng():
        model = nn.Linear(DIM, CLASSES, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, CLASSES * DIM).view(CLASSES, DIM))
    return model


def _plane_of(first: Tensor, second: Tensor) -> Plane:
    return Plane(
        kind="random",
        directions=torch.stack([first, second]),
        axis_cosine=cosine(first, second),
        x_range=(-1.0, 1.0),
        y_range=(-1.0, 1.0),
        axis_labels=("x", "y"),
    )


def _oblique_plane(dim: int) -> Plane:
    """Two directions that are neither orthogonal nor of one length: nothing assumes that."""
    return _plane_of(
        torch.linspace(-1, 1, dim, dtype=torch.float64),
        torch.linspace(2, 0.5, dim, dtype=torch.float64) ** 2,
    )


def _surface(
    objective: Objective, plane: Plane, x: Sequence[float], y: Sequence[float], **more: Any
) -> Surface:
    return measure_surface(Evaluator(objective, plane.directions), x, y, **more)


def test_quadratic_in_closed_form() -> None:
    model = _linear()
    plane = _oblique_plane(CLASSES * DIM)
    inputs = SAMPLES.inputs.double()
    residual = inputs @ model.weight.detach().double().T
    residual -= F.one_hot(SAMPLES.labels, CLASSES)
    moved = [inputs @ direction.view(CLASSES, DIM).T for direction in plane.directions]
    x, y = linspace((-1.0, 2.0), 7), linspace((-0.5, 0.5), 4)
    with Objective(
        model, SAMPLES, LossFunction("squared_error"), micro_batch_size=7, dtype=torch.float64
    ) as objective:
        surface = _surface(objective, plane, x, y)
    assert surface.loss.shape == (4, 7)
    for i, y_i in enumerate(y):
        for j, x_j in enumerate(x):
            expected = float((residual + x_j * moved[0] + y_i * moved[1]).square().sum()) / 100
            # 50 terms in float64 in another order: a few hundred ulps.
            assert surface.loss[i, j] == pytest.approx(expected, rel=1e-13)
    # A quadratic's mixed second difference is one number: h_x h_y d₀ᵀHd₁.
    mixed = np.diff(np.diff(surface.loss, axis=0), axis=1)
    expected = float((moved[0] * moved[1]).sum()) / 50 * 0.5 / 3
    np.testing.assert_allclose(mixed, expected, rtol=1e-10)
    assert surface.self_check.recomputed_cell.difference < 1e-13


@dataclass(frozen=True)
class _Affine(LossFunction):
    """The first output itself: affine in the weights of a linear model."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        del labels
        return outputs[:, 0] + 10


def test_affine_metric_has_no_second_differences() -> None:
    plane = _oblique_plane(CLASSES * DIM)
    with Objective(_linear(), SAMPLES, _Affine(), dtype=torch.float64) as objective:
        surface = _surface(objective, plane, linspace((-1.0, 1.0), 21), linspace((-0.3, 0.7), 11))
    # Each loss carries a few ulps of its terms (about 20), a second difference four of them.
    room = 64 * np.finfo(float).eps * 20
    for axis in (0, 1):
        assert np.abs(np.diff(surface.loss, 2, axis=axis)).max() <= room


@pytest.mark.parametrize(("nx", "ny"), [(5, 3), (2, 7), (3, 3)])
def test_naive_loop_over_the_saved_directions(nx: int, ny: int) -> None:
    model = _network()
    twin = copy.deepcopy(model).eval()
    with Objective(model, SAMPLES, micro_batch_size=16) as objective:
        plane = random_plane(objective, 0)
        surface = _surface(objective, plane, linspace((-1.0, 1.0), nx), linspace((-0.5, 1.0), ny))
    assert surface.loss.shape == surface.standard_error.shape == surface.accuracy.shape == (ny, nx)
    assert surface.num_cells == surface.num_measured == nx * ny
    first, second = plane.directions
    start = torch.cat([p.detach().flatten() for p in twin.parameters()])
    for i in range(ny):
        for j in range(nx):
            point = start + float(surface.x[j]) * first + float(surface.y[i]) * second
            nn.utils.vector_to_parameters(point, twin.parameters())
            with torch.no_grad():
                outputs = twin(SAMPLES.inputs)
            losses = F.cross_entropy(outputs.double(), SAMPLES.labels, reduction="none")
            # Parameters and activations are float32, rounded in another order.
            assert surface.loss[i, j] == pytest.approx(float(losses.mean()), rel=1e-5)
            expected = float(losses.std()) / math.sqrt(len(SAMPLES))
            assert surface.standard_error[i, j] == pytest.approx(expected, rel=1e-5)
            correct = float((outputs.argmax(1) == SAMPLES.labels).double().mean())
            assert surface.accuracy[i, j] == correct
    assert surface.loss_min == surface.loss.min()
    assert surface.loss_max == surface.loss.max()


def _measure(model: nn.Module, nx: int = 5, ny: int = 3, seed: int = 0) -> Surface:
    with Objective(model, SAMPLES) as objective:
        return _surface(
            objective,
            random_plane(objective, 0),
            linspace((-1.0, 1.0), nx),
            linspace((-1.0, 1.0), ny),
            seed=seed,
        )


def test_centre_is_the_untouched_model_to_the_bit() -> None:
    model = _network()
    surface = _measure(model)
    model.eval()
    with torch.no_grad():
        losses = F.cross_entropy(model(SAMPLES.inputs).double(), SAMPLES.labels, reduction="none")
    expected = float(losses.sum()) / len(SAMPLES)
    assert (surface.x[2], surface.y[1]) == (0.0, 0.0)
    assert surface.loss[1, 2] == surface.loss_at_center == expected
    assert surface.self_check.center_difference == 0.0
    assert surface.self_check.num_nonfinite == 0


def test_grids_that_share_points_share_bits() -> None:
    coarse, fine = _measure(_network(), 3, 3), _measure(_network(), 9, 5)
    assert np.array_equal(coarse.x, fine.x[::4])
    assert np.array_equal(coarse.loss, fine.loss[::2, ::4])


def test_same_again_and_the_model_stays() -> None:
    model = _network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = _measure(model), _measure(model)
    assert np.array_equal(first.loss, second.loss)
    assert first.self_check == second.self_check
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_recomputed_cell_is_off_the_centre_and_the_seeds_choice() -> None:
    cells = {
        (cell.row, cell.column)
        for seed in range(40)
        for cell in [_measure(_network(), 3, 3, seed).self_check.recomputed_cell]
    }
    assert (1, 1) not in cells
    assert len(cells) > 4


def test_self_check_notices_a_point_in_the_wrong_place(monkeypatch: pytest.MonkeyPatch) -> None:
    displace = Objective.displace

    def drifting(objective: Objective, *terms: tuple[float, Tensor]) -> None:
        displace(objective, *((1.01 * c + 0.01, d) for c, d in terms))

    monkeypatch.setattr(Objective, "displace", drifting)
    check = _measure(_network()).self_check
    assert check.center_difference != 0.0
    assert check.recomputed_cell.difference > 1e-5


def test_self_check_leaves_the_objective_usable() -> None:
    with Objective(_network(), SAMPLES) as objective:
        plane = random_plane(objective, 0)
        for _ in range(2):
            _surface(objective, plane, [-1.0, 1.0], [-1.0, 1.0])
            assert objective.evaluate().loss == objective.center.loss
            objective.displace((1.0, plane.directions[0]))
            assert objective.evaluate().loss != objective.center.loss


def test_cells_that_are_not_finite_stay_so() -> None:
    with Objective(_network(), SAMPLES) as objective:
        steep = torch.zeros(objective.dim)
        steep[0] = 1e38
        plane = _plane_of(steep, random_plane(objective, 0).directions[0])
        surface = _surface(objective, plane, [0.0, 1e3], [0.0, 0.5, 1.0])
    assert np.isfinite(surface.loss[:, 0]).all()
    assert not np.isfinite(surface.loss[:, 1]).any()
    assert surface.self_check.num_nonfinite == 3
    assert surface.loss_max == surface.loss[:, 0].max()


def test_filled_cells_count_as_those_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among cells that are not finite, and among the extremes."""

    def fill(x: list[float], y: list[float], measure: Any, **options: Any) -> Filled:
        assert (options["tolerance"], options["max_cost"], options["seed"]) == (0.1, 99, 4)
        loss = np.array([[*measure([(0, 0)]), 9.0, math.nan], [math.inf, 0.25, 1.0]])
        rest = {"error_estimate": loss, "num_measured": 1, "num_small": 0, "cost": 1.0}
        check = {"floor": 1.0, "check": None, "num_checks": 0, "converged": True}
        return Filled(loss=loss, measured=loss > 0, **rest, **check)

    monkeypatch.setattr("lgo_cli.landscape.surface.fill_surface", fill)
    with Objective(_network(), SAMPLES) as objective:
        options = {"tolerance": 0.1, "max_cells": 99, "seed": 4}
        plane = random_plane(objective, 0)
        found = _surface(objective, plane, [0.5, 1.0, 1.5], [0.5, 1.0], **options)
    assert found.self_check.num_nonfinite == 2
    assert (found.loss_min, found.loss_max) == (0.25, 9.0)
    assert found.num_measured == found.measured.sum() == 1


def test_surface_without_a_finite_cell_has_no_extremes() -> None:
    with Objective(_network(), SAMPLES) as objective:
        steep = torch.full((objective.dim,), 1e38)
        surface = _surface(objective, _plane_of(steep, steep), [1e3, 2e3], [1e3, 2e3])
    assert surface.loss_min is None
    assert surface.loss_max is None
    assert surface.self_check.num_nonfinite == surface.num_cells == 4
    assert math.isfinite(surface.loss_at_center)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (2.0, 1.0, 0.5),
        (0.0, 0.0, 0.0),
        (0.0, 1e-9, 1.0),
        (math.nan, math.nan, 0.0),
        (math.inf, math.inf, 0.0),
        (math.inf, 1.0, math.inf),
        (1.0, math.nan, math.inf),
    ],
)
def test_relative_difference(a: float, b: float, expected: float) -> None:
    assert relative_difference(a, b) == relative_difference(b, a) == expected


class _Listener:
    def __init__(self) -> None:
        self.total: int | None = None
        self.losses: list[float] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[Task]:
        assert (description, unit) == ("surface", "cells")
        self.total = total
        yield self

    def advance(self, amount: int = 1, **stats: float | str) -> None:
        assert amount == 1
        self.losses.append(float(stats["loss"]))


def test_progress_hears_of_each_cell_once() -> None:
    listener = _Listener()
    with Objective(_network(), SAMPLES) as objective:
        plane = random_plane(objective, 0)
        surface = _surface(objective, plane, [-1.0, 0.0, 1.0], [0.0, 1.0], progress=listener)
    assert listener.total == 6
    assert sorted(listener.losses) == sorted(surface.loss.ravel().tolist())


@pytest.mark.parametrize(("seconds", "minutes"), [(0.8, None), (10.0, 12)])
def test_a_long_surface_is_said_once_to_be_long(
    seconds: float, minutes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 9 of 81 cells, by the time that these took: the other 72 take 72 times `seconds`."""
    cells, listener, axis = Cells(), _Listener(), linspace((0.5, 1.5), 9)
    clock = SimpleNamespace(monotonic=lambda: 100.0 + seconds * cells.num_measured)
    monkeypatch.setattr("lgo_cli.landscape.surface.time", clock)
    with Objective(_network(), SAMPLES) as objective:
        plane = random_plane(objective, 0)
        _surface(objective, plane, axis, axis, cells=cells, progress=listener)
    said = f"hint: the other 72 cells take about {minutes} min; --tolerance 0.01 measures"
    assert [note.partition(" a part")[0] for note in listener.notes] == [said] * bool(minutes)


def test_a_fast_path_is_compared_at_the_centre_and_two_corners(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[float, ...]] = []

    def verify(evaluator: Evaluator, points: list[tuple[float, ...]]) -> float:
        compared.extend(points)
        return 0.25

    monkeypatch.setattr(Evaluator, "verify", verify)
    with Objective(_network(), SAMPLES) as objective:
        found = _surface(objective, random_plane(objective, 0), [-1.0, 0.0, 2.0], [-3.0, 4.0])
    assert compared == [(0.0, 0.0), (-1.0, -3.0), (2.0, 4.0)]
    assert found.self_check.fast_path_difference == 0.25


def test_finer_and_wider_grids_measure_shared_cells_once() -> None:
    cells = Cells()
    with Objective(_network(), SAMPLES) as objective:
        plane = random_plane(objective, 0)
        fresh = _surface(objective, plane, *_axes(11), cells=Cells())
        _surface(objective, plane, *_axes(6), cells=cells)
        assert cells.num_measured == 36
        finer = _surface(objective, plane, *_axes(11), cells=cells)
        # The centre is on the finer grid alone, and is the untouched model, which is no cell.
        assert cells.num_measured == 120
        wide = linspace((-2.0, 2.0), 21)
        _surface(objective, plane, wide, wide, cells=cells)
        assert cells.num_measured == 440
    assert np.array_equal(finer.loss, fresh.loss)
    assert np.array_equal(finer.standard_error, fresh.standard_error)


def _axes(n: int) -> tuple[list[float], list[float]]:
    return linspace((-1.0, 1.0), n), linspace((-1.0, 1.0), n)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shares_are_the_surface(count: int) -> None:
    cells = Cells()
    with Objective(_network(), SAMPLES) as objective:
        plane = random_plane(objective, 0)
        evaluator = Evaluator(objective, plane.directions)
        x, y = linspace((-1.0, 1.0), 7), linspace((-1.0, 1.0), 5)
        whole = measure_surface(evaluator, x, y)
        for index in range(count):
            assert not is_complete(x, y, len(evaluator.samples), cells)
            measure_share(evaluator, x, y, cells, index=index, count=count)
        assert is_complete(x, y, len(evaluator.samples), cells)
        assert cells.num_measured == 34
        assembled = measure_surface(evaluator, x, y, cells=cells)
        assert cells.num_measured == 34
    assert np.array_equal(assembled.loss, whole.loss)
    assert np.array_equal(assembled.accuracy, whole.accuracy)


def test_tolerance_measures_a_part_and_says_how_far_the_rest_may_be_off() -> None:
    shown: list[int] = []
    with Objective(_network(), SAMPLES) as objective:
        plane = random_plane(objective, 0)
        truth = _surface(objective, plane, *_axes(31))
        found = _surface(
            objective,
            plane,
            *_axes(31),
            tolerance=0.02,
            preview=lambda loss, measured: shown.append(int(measured.sum())),
        )
    assert found.filled is not None
    assert found.filled.converged
    assert found.num_measured == found.measured.sum() < 500
    assert shown == sorted(shown)
    assert np.array_equal(found.loss[found.measured], truth.loss[found.measured])
    assert not found.error_estimate[found.measured].any()
    assert np.isnan(found.standard_error[~found.measured]).all()
    error = np.abs(found.loss - truth.loss)
    # Of 961 cells one in a hundred may be off; none by twice the largest that was stated.
    assert np.mean(error <= 0.02 * truth.loss) >= 0.99
    assert error.max() <= 2 * found.error_estimate.max()


def test_other_samples_are_treated_as_the_own_are() -> None:
    """Equal samples under another name give equal surfaces, a sixteenth of them measured first."""
    with Objective(_network(), _samples(400)) as objective:
        evaluator = Evaluator(objective, random_plane(objective, 0).directions)
        x, y = linspace((-3.0, 3.0), 41), linspace((-3.0, 3.0), 31)
        own = measure_surface(evaluator, x, y, tolerance=0.003, cells=(cells := Cells()))
        other = measure_surface(evaluator.on(_samples(400)), x, y, tolerance=0.003)
    assert own.filled is not None
    assert other.filled is not None
    assert own.filled.num_small == other.filled.num_small > 0
    assert own.filled.cost == own.num_measured + own.filled.num_small / 16
    assert {num_samples for _, _, num_samples in cells.known} == {400, 400 // 16}
    assert np.array_equal(own.measured, other.measured)
    assert np.array_equal(own.loss, other.loss)
    assert own.loss_at_center == other.loss_at_center
    assert own.self_check == other.self_check


def test_killed_filling_asks_for_the_same_cells_again() -> None:
    """A run that finds part of its cells known goes the way of one that finds none."""
    with Objective(_network(), SAMPLES) as objective:
        plane = random_plane(objective, 0)
        whole = Cells()
        fresh = _surface(objective, plane, *_axes(25), tolerance=0.02, cells=whole)
        for num_known in (1, len(whole.known) // 2, len(whole.known) - 1):
            cells = Cells()
            cells.known = dict(list(whole.known.items())[:num_known])
            again = _surface(objective, plane, *_axes(25), tolerance=0.02, cells=cells)
            assert cells.num_measured == len(whole.known) - num_known
            assert np.array_equal(again.loss, fresh.loss)
            assert np.array_equal(again.measured, fresh.measured)
            assert np.array_equal(again.error_estimate, fresh.error_estimate)


def test_preview_takes_what_is_not_there_from_the_nearest_measured_cell() -> None:
    """A filled cell stays; so does a measured one that is not finite."""
    nan, inf = math.nan, math.inf
    loss = np.array([[1.0, nan, nan, inf], [nan, 5.0, nan, nan], [nan, nan, nan, 2.0]])
    measured = np.zeros(loss.shape, dtype=bool)
    assert _nearest(loss, measured) is loss  # none yet
    measured[[0, 0, 2], [0, 3, 3]] = True
    shown = _nearest(loss, measured)
    expected = [[1.0, 1.0, inf, inf], [1.0, 5.0, inf, inf], [1.0, 2.0, 2.0, 2.0]]
    assert np.array_equal(shown, expected)
