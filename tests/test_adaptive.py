"""Adaptive surfaces against functions that are known everywhere: honest first, then cheap."""

from __future__ import annotations

import math
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lgo_cli.landscape.adaptive import COARSE, NUM_CHECKED, Array, Filled, _Filling, fill_surface
from lgo_cli.landscape.borders import border, nearest_is_finite
from lgo_cli.landscape.checking import compare
from lgo_cli.landscape.grids import linspace
from lgo_cli.landscape.spline import ORDERS, Spline, _determined, fit
from lgo_cli.objective import Objective
from lgo_cli.results import FillingCheck
from lgo_cli.runs.steps.surfaces import SPLINE_BYTES
from lgo_cli.samples import Samples
from lgo_cli.seeding import generator

Function = Callable[[Array, Array], Array]
TOLERANCE = 0.01

SMOOTH: dict[str, Function] = {
    "quadratic": lambda x, y: 0.2 + 3 * x**2 + x * y + 0.5 * y**2,
    "quadratic with a zero": lambda x, y: 2 * x**2 + 5 * y**2,
    "steep": lambda x, y: 0.01 + np.expm1(4 * (x**2 + y**2)),
    "bumps": lambda x, y: (
        0.3 + np.exp(-3 * ((x - 0.3) ** 2 + (y + 0.2) ** 2)) + 0.5 * np.exp(2 * x - y)
    ),
    "ridge": lambda x, y: 0.5 + 1 / (0.05 + (x + y) ** 2),
    "both signs": lambda x, y: x + 0.5 * y,
    "kink": lambda x, y: 0.4 + np.maximum(x - 0.21, 0) + np.abs(y),
    "step": lambda x, y: np.where(x + 0.3 * y > 0.1, 2.0, 1.0),
}


class _Oracle:
    """A surface known everywhere, that counts what is asked and refuses to be asked twice."""

    def __init__(self, truth: Array) -> None:
        self.truth = truth
        self.asked: list[tuple[int, int]] = []

    def __call__(self, cells: Sequence[tuple[int, int]]) -> list[float]:
        assert not set(cells) & set(self.asked)
        assert len(cells) == len(set(cells))
        self.asked.extend(cells)
        return [float(self.truth[cell]) for cell in cells]


def _fill(
    function: Function, nx: int = 41, ny: int = 41, tolerance: float = TOLERANCE, **options: Any
) -> tuple[Filled, Array, list[tuple[int, int]]]:
    """What comes out, the truth, and the cells asked for in order."""
    x, y = linspace((-1.0, 1.0), nx), linspace((-1.0, 1.0), ny)
    truth = function(np.array(x)[None, :], np.array(y)[:, None]) + np.zeros((ny, nx))
    oracle = _Oracle(truth)
    return fill_surface(x, y, oracle, tolerance=tolerance, **options), truth, oracle.asked


def _assert_honest(found: Filled, truth: Array, tolerance: float = TOLERANCE) -> None:
    """What the issue asks of any surface."""
    finite = np.isfinite(truth)
    assert np.array_equal(np.isfinite(found.loss), finite)
    assert np.array_equal(found.loss[found.measured], truth[found.measured], equal_nan=True)
    assert not found.error_estimate[found.measured].any()
    assert np.isnan(found.error_estimate[~finite & ~found.measured]).all()
    if not finite.any():
        return
    scale = np.maximum(np.abs(truth), found.floor)[finite]
    error = np.abs(found.loss[finite] - truth[finite]) / scale
    stated = found.error_estimate[finite] / scale
    assert np.mean(error <= tolerance) >= 0.99
    # 1e-12: a polynomial is exact, and so is its estimate, up to rounding.
    assert error.max() <= 2 * stated.max() + 1e-12
    if found.converged:
        # The tolerance is of the filled loss, which differs from the true one by a tolerance.
        assert stated.max() <= tolerance * (1 + 2 * tolerance)


@pytest.mark.parametrize("tolerance", [0.01, 0.05])
@pytest.mark.parametrize("name", list(SMOOTH))
def test_errors_are_within_the_tolerance_and_what_was_stated(name: str, tolerance: float) -> None:
    found, truth, asked = _fill(SMOOTH[name], tolerance=tolerance)
    assert found.converged
    assert len(asked) == found.num_measured == found.measured.sum() == found.cost
    assert found.num_measured < truth.size
    _assert_honest(found, truth, tolerance)


@pytest.mark.parametrize(("name", "most"), [("quadratic", 150), ("bumps", 120)])
def test_smooth_surfaces_are_cheap(name: str, most: int) -> None:
    found, truth, _ = _fill(SMOOTH[name], 51, 51)
    assert found.num_measured <= most < truth.size / 17


@pytest.mark.parametrize("value", [0.0, 2.5, -1.0])
def test_constant_takes_the_coarse_grid_and_a_check(value: float) -> None:
    found, truth, _ = _fill(lambda x, y: np.full_like(x + y, value))
    # The weights of a constant spline add up to one, to rounding.
    np.testing.assert_allclose(found.loss, truth, rtol=1e-12, atol=1e-12)
    assert found.num_measured == COARSE**2 + 1 + NUM_CHECKED
    assert found.check is not None
    assert found.check.share_within == 1
    assert found.num_checks == 1
    # 20 of 20: a share p has a chance of p^20 = 5 %/2, the other half being of checks to come.
    assert found.check.least_share == pytest.approx(0.025 ** (1 / 20), abs=1e-9)


def test_what_checks_say_holds_for_all_of_them_together() -> None:
    """Of a share of `least_share`, no more than 5 % of all tries pass, however many there are."""
    loss = np.ones(NUM_CHECKED)
    least = [compare(loss, loss, loss, 1.0, 0.01, k).least_share for k in range(1, 40)]
    assert least == sorted(least, reverse=True)
    chances = np.array(least) ** NUM_CHECKED
    assert chances.sum() == pytest.approx(0.05)


def test_check_by_hand() -> None:
    """Errors relative to max(|measured|, floor), or to what was stated; kinds of cells by count."""
    filled = np.array([1.0, 2.03, -0.001, np.nan])
    stated = np.array([0.01, 0.02, 0.001, np.nan])
    measured = np.array([1.01, 2.0, 0.0, np.nan])
    found = compare(filled, stated, measured, 0.5, 0.01, 1)
    assert found.num_cells == 4
    assert found.worst_error == pytest.approx(0.015)
    assert found.worst_ratio == pytest.approx(1.5)
    assert found.share_within == 0.75
    # A share p of cells has 3 or more of 4 within by chance: 4 p³ − 3 p⁴ = 5 % / 2.
    p = found.least_share
    assert 4 * p**3 - 3 * p**4 == pytest.approx(0.025, rel=1e-9)
    for surprise in (np.array([1.0, np.inf]), np.array([np.nan, 1.0])):
        found = compare(np.ones(2), np.full(2, 0.01), surprise, 1.0, 0.01, 1)
        assert found.worst_error == found.worst_ratio == math.inf
        assert found.share_within == 0.5


@pytest.mark.parametrize(("nx", "ny"), [(2, 2), (3, 7), (11, 11), (60, 2), (2, 90), (70, 9)])
def test_any_shape(nx: int, ny: int) -> None:
    found, truth, _ = _fill(SMOOTH["bumps"], nx, ny)
    assert found.loss.shape == found.measured.shape == found.error_estimate.shape == (ny, nx)
    _assert_honest(found, truth)
    if nx * ny <= 2 * COARSE**2:
        assert found.measured.all()
        assert found.check is None
        assert found.converged


def _rim(x: Array, y: Array) -> Array:
    """Infinite outside an ellipse, steep before it."""
    r = x**2 / 0.8 + y**2 / 0.5
    return np.where(r < 1, 0.1 + r / np.maximum(1.02 - r, 1e-9), np.inf)


def _island(x: Array, y: Array) -> Array:
    inside = (np.abs(x - 0.2) < 0.31) & (np.abs(y) < 0.17)
    return np.where(inside, np.nan, SMOOTH["bumps"](x, y))


def _wall(x: Array, y: Array) -> Array:
    """NaN between two smooth halves that do not meet."""
    halves = 0.5 + x**2 + y**2 + 3.0 * (x > 0.3 * y)
    return np.where(np.abs(x - 0.3 * y) < 0.06, np.nan, halves)


def _overflow(x: Array, y: Array) -> Array:
    """Doubly exponential, until it leaves float32, as a deep network's loss does."""
    loss = 0.01 * np.exp(np.exp(3.5 * np.hypot(x, y)))
    return np.where(loss > np.finfo(np.float32).max, np.inf, loss)


@pytest.mark.parametrize("function", [_rim, _island, _wall, _overflow])
@pytest.mark.parametrize("levels", [1, 2])
def test_border_of_what_is_not_finite_is_measured_cell_by_cell(
    function: Function, levels: int
) -> None:
    x = y = linspace((-1.0, 1.0), 41)
    truth = function(np.array(x)[None, :], np.array(y)[:, None])
    # On few samples the loss is another one, and finite in more places.
    smaller = np.where(np.isfinite(truth), 0.9 * truth + 0.01 * np.array(x), truth)
    small = np.where(np.isfinite(truth) | (np.array(x) < 0), smaller, 1.0)
    found = fill_surface(
        x,
        y,
        _Oracle(truth),
        tolerance=TOLERANCE,
        measure_small=_Oracle(small) if levels == 2 else None,
    )
    _assert_honest(found, truth)
    assert found.converged
    finite = np.isfinite(truth)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        step = finite[one] != finite[other]
        assert step.any()
        assert found.measured[one][step].all()
        assert found.measured[other][step].all()


def test_losses_that_span_more_than_float64_are_measured_cell_by_cell() -> None:
    """Heights over the least of them are infinite, and no spline through such says anything."""
    x = y = linspace((-1.0, 1.0), 31)
    radius = np.hypot(np.array(x)[None, :], np.array(y)[:, None])
    with np.errstate(over="ignore"):
        truth = np.exp(700 * radius)
    truth[15, 15] = 1e-9
    found = fill_surface(x, y, _Oracle(truth), tolerance=TOLERANCE)
    assert found.converged
    assert np.array_equal(found.loss, truth)


@pytest.mark.parametrize("shape", [(1, 9), (7, 12), (31, 30)])
def test_nearest_measured_cell_is_the_first_of_the_nearest(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    num_cells = shape[0] * shape[1]
    measured = draw.permutation(num_cells)[: num_cells // 3]
    values = np.where(draw.random(len(measured)) < 0.5, 1.0, np.nan)
    cells = np.stack(np.divmod(np.arange(num_cells), shape[1]), axis=1)
    gaps = np.abs(cells[:, None] - cells[measured][None]).max(axis=2)
    finite, distance = nearest_is_finite(shape, measured, values)
    assert np.array_equal(finite, np.isfinite(values[np.argmin(gaps, axis=1)]))
    assert np.array_equal(distance, gaps.min(axis=1))


def test_border_takes_diagonal_neighbours_and_keeps_cells_of_a_batch_apart() -> None:
    """One corner is finite and measured, and so is the opposite one, which is not finite."""
    shape, known = (3, 3), np.zeros(9, bool)
    known[[0, 8]] = True
    finite = np.arange(9) == 0
    _, distance = nearest_is_finite(shape, np.array([0, 8]), np.array([1.0, np.nan]))
    # Beside the finite corner lie 1, 3 and, along the diagonal, 4: all at one distance from it.
    assert border(shape, known, finite, distance) == [1, 3, 4]
    # Of cells that are farther from what is measured than from each other one is enough.
    assert border(shape, known, finite, 2 * distance) == [1]


def test_nearest_measured_cells_take_memory_of_the_grid_alone() -> None:
    """What `runs.steps.surfaces` allows a cell of `--tolerance`; all at once it was 16 kB."""
    tracemalloc.start()
    nearest_is_finite((101, 101), np.arange(500), np.full(500, np.nan))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < SPLINE_BYTES * 101 * 101


def test_small_cells_that_overflow_are_measured_on_all_samples() -> None:
    """Where few samples say infinity, no spline of theirs reaches: the loss itself is asked."""
    x = y = linspace((-1.0, 1.0), 51)
    truth = _rough(np.array(x)[None, :], np.array(y)[:, None])
    small = truth / 1.1
    small[10:13, 20:23] = math.inf
    found = fill_surface(
        x, y, _Oracle(truth), tolerance=TOLERANCE, measure_small=(few := _Oracle(small))
    )
    assert found.num_small > COARSE**2 + 1
    overflown = [cell for cell in few.asked if not math.isfinite(small[cell])]
    assert overflown
    assert all(found.measured[cell] for cell in overflown)
    assert found.num_measured < truth.size / 4  # they leave the spline of the difference alone
    _assert_honest(found, truth)


def test_nothing_finite_is_nothing_filled() -> None:
    found, truth, _ = _fill(lambda x, y: np.full_like(x + y, np.nan))
    assert np.isnan(found.loss).all()
    assert found.num_measured == COARSE**2 + 1 + NUM_CHECKED
    _assert_honest(found, truth)


def test_one_finite_cell_is_found_out_to_be_alone() -> None:
    found, truth, _ = _fill(lambda x, y: np.where(np.hypot(x, y) < 0.01, 1.0, np.nan))
    assert np.isfinite(found.loss).sum() == 1
    _assert_honest(found, truth)


def test_noise_is_measured_whole() -> None:
    """No spline serves: past half of the cells all are measured."""
    draw = np.random.default_rng(0).uniform(0.5, 2.0, (21, 21))
    found, truth, _ = _fill(lambda x, y: draw + 0 * (x + y), 21, 21)
    assert found.measured.all()
    assert np.array_equal(found.loss, truth)
    assert found.converged
    assert found.check is None


def _share_above(found: Filled, tolerance: float = TOLERANCE) -> float:
    return float(
        np.mean(found.error_estimate > tolerance * np.maximum(np.abs(found.loss), found.floor))
    )


@pytest.mark.parametrize("max_cost", [72, 80, 120, 121, 300])
def test_limit_on_cost_ends_it_and_says_so(max_cost: int) -> None:
    found, truth, _ = _fill(SMOOTH["ridge"], max_cost=max_cost)
    # All of it is spent, the check's cells included.
    assert found.cost == found.num_measured == max_cost
    assert not found.converged
    assert found.check is not None
    assert found.check.num_cells == NUM_CHECKED
    assert _share_above(found) > 0
    scale = np.maximum(np.abs(found.loss), found.floor)
    error = np.abs(found.loss - truth) / np.maximum(np.abs(truth), found.floor)
    # It may be wrong, and it says by how much: of a filled cell in thirty the estimate falls short
    # on measured surfaces; four times that here, where the limit came early.
    stated = found.error_estimate / scale
    assert np.mean(error > np.maximum(stated, 1e-12)) < 4 / 30


def _valley(x: Array, y: Array) -> Array:
    return np.where(x + 0.4 * y < 0.6, 1 + x**2 + np.abs(y) ** 3, np.inf)


@pytest.mark.parametrize(
    ("name", "num"),
    [("ridge", 41), ("step", 41), ("valley", 41), ("noise", 31), ("two levels", 31)],
)
def test_limit_on_cost_is_kept_and_a_larger_one_asks_for_the_same_cells(
    name: str, num: int
) -> None:
    x = y = np.array(linspace((-1.0, 1.0), num))
    draw = np.random.default_rng(0).uniform(0.5, 2.0, (num, num))
    functions = {
        **SMOOTH, "valley": _valley, "two levels": _rough, "noise": lambda x, y: draw + 0 * (x + y)
    }  # fmt: skip
    truth = functions[name](x[None, :], y[:, None])
    small = truth / 1.1
    small[10:13, 20:23] = math.inf
    before: tuple[set[tuple[int, int]], set[tuple[int, int]]] = set(), set()
    num_ended = 0
    for max_cost in (72, 75, 90, 130, 200, 350, 700, math.inf):
        full, few = _Oracle(truth), _Oracle(small)
        found = fill_surface(
            x.tolist(),
            y.tolist(),
            full,
            tolerance=TOLERANCE,
            measure_small=few if name == "two levels" else None,
            max_cost=max_cost,
        )
        assert found.cost == len(full.asked) + len(few.asked) / 16 <= max_cost
        assert found.cost > max_cost - 2 or found.converged
        assert before[0] <= set(full.asked)
        assert before[1] <= set(few.asked)
        before = set(full.asked), set(few.asked)
        num_ended += not found.converged
    assert found.converged
    assert num_ended >= 1


def test_grid_of_the_least_budget_is_measured_whole() -> None:
    found, _, asked = _fill(SMOOTH["ridge"], 12, 6, max_cost=72)
    assert len(asked) == 72
    assert found.converged


def test_check_is_of_random_filled_cells_and_says_what_it_found() -> None:
    """Its figures from the surface as it was before: a preview's last, which shows it."""
    shown: list[tuple[Array, Array]] = []
    found, truth, asked = _fill(
        SMOOTH["ridge"],
        tolerance=0.05,
        seed=5,
        preview=lambda loss, measured: shown.append((loss, measured)),
    )
    assert found.num_checks == 1
    loss, measured = shown[-1]
    order = torch.randperm(truth.size, generator=generator(5, "contour", "check", 0)).tolist()
    cells = [divmod(cell, 41) for cell in order if not measured.ravel()[cell]][:NUM_CHECKED]
    assert asked[-NUM_CHECKED:] == sorted(cells)
    errors = [abs(loss[cell] - truth[cell]) / truth[cell] for cell in cells]
    assert found.check is not None
    assert found.check.worst_error == pytest.approx(max(errors), rel=1e-12)
    assert found.check.num_cells == NUM_CHECKED
    # What was not checked is as it was shown.
    assert np.array_equal(found.loss[~found.measured], loss[~found.measured])


def test_spike_that_a_check_finds_is_not_believed_over() -> None:
    """A narrow spike between coarse cells: some seed's check hits it, and then it is refined."""

    def spiky(x: Array, y: Array) -> Array:
        return 1 + 0.1 * x + 3.0 * ((np.abs(x - 0.55) < 0.13) & (np.abs(y + 0.55) < 0.13))

    checks = []
    for seed in range(10):
        found, truth, _ = _fill(spiky, seed=seed)
        checks.append(found.num_checks)
        if found.num_checks > 1:
            assert found.check is not None
            if found.check.share_within == 1:
                chance = found.check.least_share**found.check.num_cells
                assert chance == pytest.approx(0.05 / 2**found.num_checks)
            assert found.num_measured > COARSE**2 + 1 + 2 * NUM_CHECKED
            _assert_honest(found, truth)
    # 25 of 1,616 cells, 20 drawn: a chance of 27 % for each seed, 4 % for none of ten.
    assert max(checks) > 1


def test_same_values_same_cells() -> None:
    first, _, asked = _fill(SMOOTH["ridge"], seed=3)
    second, _, again = _fill(SMOOTH["ridge"], seed=3)
    assert asked == again
    assert np.array_equal(first.loss, second.loss)
    assert np.array_equal(first.error_estimate, second.error_estimate)
    _, _, other = _fill(SMOOTH["ridge"], seed=4)
    assert set(other) != set(asked)


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("limit", [1, 66, 150])
def test_killed_run_goes_on_from_a_journal_of_values(limit: int) -> None:
    x = y = linspace((-1.0, 1.0), 41)
    truth = SMOOTH["ridge"](np.array(x)[None, :], np.array(y)[:, None])
    journal: dict[tuple[int, int], float] = {}
    num_measured = 0

    def measure(most: float) -> Callable[[Sequence[tuple[int, int]]], list[float]]:
        def cells_by_journal(cells: Sequence[tuple[int, int]]) -> list[float]:
            nonlocal num_measured
            for cell in cells:
                if cell not in journal:
                    if num_measured == most:
                        raise _KilledError
                    journal[cell] = float(truth[cell])
                    num_measured += 1
            return [journal[cell] for cell in cells]

        return cells_by_journal

    with pytest.raises(_KilledError):
        fill_surface(x, y, measure(limit), tolerance=TOLERANCE)
    resumed = fill_surface(x, y, measure(math.inf), tolerance=TOLERANCE)
    fresh, _, asked = _fill(SMOOTH["ridge"])
    assert num_measured == len(asked) == fresh.num_measured
    assert np.array_equal(resumed.loss, fresh.loss)
    assert np.array_equal(resumed.error_estimate, fresh.error_estimate)


def _rough(x: Array, y: Array) -> Array:
    return 1 + 0.5 * np.sin(9 * x) * np.cos(7 * y) + x**2


def test_two_levels_where_the_ratio_is_smooth() -> None:
    """A rough loss whose ratio to that on few samples is smooth: few full cells carry it."""
    x = y = linspace((-1.0, 1.0), 51)
    truth = _rough(np.array(x)[None, :], np.array(y)[:, None])
    small = truth / (1.1 + 0.1 * np.array(x)[None, :])
    full, few = _Oracle(truth), _Oracle(small)
    found = fill_surface(x, y, full, tolerance=TOLERANCE, measure_small=few)
    alone, _, _ = _fill(_rough, 51, 51)
    assert (found.num_measured, found.num_small) == (len(full.asked), len(few.asked))
    assert found.cost == found.num_measured + found.num_small / 16
    assert found.num_measured < found.num_small
    assert found.cost < 0.7 * alone.cost
    assert found.converged
    for filled in (found, alone):
        _assert_honest(filled, truth)


def test_no_spline_is_laid_twice_nor_beside_the_one_it_replaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between batches of small cells the spline of the difference stays as it is."""
    x = y = linspace((-1.0, 1.0), 51)
    truth = _rough(np.array(x)[None, :], np.array(y)[:, None])
    small = truth / (1.1 + 0.1 * np.array(x)[None, :])
    laid: list[tuple[bytes, bytes]] = []
    alive: list[weakref.ref[Spline]] = []

    def counted(points: Array, values: Array, grid: Array, *options: Any) -> Spline:
        # One through the small losses and one of the difference, of which this replaces one.
        assert sum(ref() is not None for ref in alive) <= 1
        spline = fit(points, values, grid, *options)
        if len(grid) == truth.size:
            laid.append((points.tobytes(), values.tobytes()))
            alive.append(weakref.ref(spline))
        return spline

    monkeypatch.setattr("lgo_cli.landscape.spline.fit", counted)
    found = fill_surface(x, y, _Oracle(truth), tolerance=TOLERANCE, measure_small=_Oracle(small))
    assert found.num_small > found.num_measured
    assert len(laid) > 10
    assert len(set(laid)) == len(laid)


def test_one_level_where_few_samples_tell_nothing() -> None:
    """An unrelated surface is measured on the coarse grid, and no further."""
    x = y = linspace((-1.0, 1.0), 51)
    truth = SMOOTH["ridge"](np.array(x)[None, :], np.array(y)[:, None])
    few = _Oracle(np.random.default_rng(0).uniform(0.5, 5.0, truth.shape))
    found = fill_surface(x, y, _Oracle(truth), tolerance=TOLERANCE, measure_small=few)
    assert found.num_small == len(few.asked) == COARSE**2 + 1
    _assert_honest(found, truth)


@pytest.mark.parametrize("margin", [1.0, 2.0])
@pytest.mark.parametrize("levels", [1, 2])
def test_stated_error_in_closed_form(
    levels: int, margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.5 deviations, of both splines together, and rounding, at heights asinh(L / floor)."""
    x = linspace((-1.0, 1.0), 21)
    truth = SMOOTH["both signs"](np.array(x)[None, :], np.array(x)[:, None]) - 0.13
    small = truth * (1.1 + 0.1 * np.array(x))
    filling = _Filling(x, x, _Oracle(truth), _Oracle(small), 1 / 16, TOLERANCE, None)
    filling.two_levels, filling.margin, filling.floor = levels == 2, margin, 0.03
    filling.ask(filling.coarse())
    limits: list[Array] = []
    monkeypatch.setattr(Spline, "rank", lambda _, limit, number: limits.append(limit) or [])
    filling._fill(np.ones(truth.size, bool))
    known = filling.known
    parts = [np.arcsinh(truth.ravel() / 0.03)]
    if levels == 2:
        few = np.arcsinh(small.ravel() / 0.03)
        parts = [few, parts[0] - few]
    splines = [fit(filling.grid[known], p[known], filling.grid, TOLERANCE) for p in parts]
    heights = np.sum([spline.values for spline in splines], axis=0)
    variance = np.sum([spline.deviation**2 for spline in splines], axis=0)
    stated = 1.5 * margin * np.sqrt(variance) + 2.0**-23
    expected = 0.03 * (np.sinh(np.abs(heights) + stated) - np.sinh(np.abs(heights)))
    np.testing.assert_allclose(filling.loss[~known], 0.03 * np.sinh(heights)[~known], rtol=1e-12)
    np.testing.assert_allclose(filling.error[~known], expected[~known], rtol=1e-9)
    assert not filling.error[known].any()
    # A deviation may be what takes a height to the tolerance, of the loss or of the floor; that of
    # the small losses half of it, and that of the difference what they leave, half at least.
    size = np.sinh(np.abs(heights))
    limit = np.arcsinh(size + TOLERANCE * np.maximum(size, 1)) - np.abs(heights)
    limit /= 1.5 * margin
    left = np.sqrt(np.maximum(limit**2 - splines[0].deviation ** 2, limit**2 / 4))
    for found, wanted in zip(limits, [limit / 2, left] if levels == 2 else [limit], strict=True):
        np.testing.assert_allclose(found[~known], wanted[~known], rtol=1e-7)
        assert np.isinf(found[known]).all()


@pytest.mark.parametrize(
    ("losses", "floor"),
    [
        ({}, 2.0),
        ({0: -0.5}, 0.5),
        ({0: 1e-6}, 2e-3),  # a thousandth of the centre's
        ({0: 0.0}, 2.0),
        ({0: 1e-6, 60: math.inf}, 1e-6),
    ],
)
def test_floor_is_the_least_size_or_a_thousandth_of_the_centres(
    losses: dict[int, float], floor: float
) -> None:
    x = linspace((-1.0, 1.0), 11)
    filling = _Filling(x, x, _Oracle(np.ones((11, 11))), None, 1 / 16, TOLERANCE, None)
    filling.full[:] = 2.0
    filling.full[list(losses)] = list(losses.values())
    assert filling.choose_floor() == floor


@pytest.mark.parametrize(
    ("ratio", "error", "margin", "is_within"),
    [
        (0.5, 0.006, 1.0, True),
        (1.5, 0.009, 1.5, True),
        (1.7, 0.0102, 1.7, False),
        (10.0, 0.06, 2.0, False),
    ],
)
def test_estimates_are_enlarged_to_what_a_check_found(
    ratio: float, error: float, margin: float, is_within: bool
) -> None:
    """By all of it those of the surface, by twice at most those of splines to come."""
    x = linspace((-1.0, 1.0), 11)
    filling = _Filling(x, x, _Oracle(np.ones((11, 11))), None, 1 / 16, TOLERANCE, None)
    filling.loss[:], filling.error[:] = 0.5, 0.006  # the floor is 1
    check = FillingCheck(
        num_cells=20, worst_error=0.0, worst_ratio=ratio, share_within=1.0, least_share=0.8
    )
    assert filling.enlarge(check) == is_within
    np.testing.assert_allclose(filling.error, error, rtol=1e-12)
    assert filling.margin == margin
    # Nor does anything do where a cell was not finite.
    assert not filling.enlarge(check.model_copy(update={"worst_ratio": math.inf}))
    np.testing.assert_allclose(filling.error, error, rtol=1e-12)


@pytest.mark.parametrize(
    ("shares", "within"),
    [([1.0], [True]), ([0.95, 1.0], [True, True]), ([1.0, 1.0], [False, True])],
)
def test_a_check_that_fails_is_followed_by_another(
    shares: list[float], within: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it by a cell beyond the tolerance, or by estimates that are beyond it once enlarged."""

    def check(filling: _Filling, cells: Sequence[int], number: int) -> FillingCheck:
        filling.ask(cells)
        return FillingCheck(
            num_cells=len(cells), worst_error=0.0, worst_ratio=1.0, least_share=0.8,
            share_within=shares[number - 1],
        )  # fmt: skip

    answers = iter(within)
    monkeypatch.setattr(_Filling, "check", check)
    monkeypatch.setattr(_Filling, "enlarge", lambda *_: next(answers))
    found, _, _ = _fill(SMOOTH["quadratic"])
    assert found.num_checks == len(shares)
    assert found.converged


def test_what_a_budget_ends_has_not_converged_whatever_its_check_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refine = _Filling.refine
    monkeypatch.setattr(_Filling, "refine", lambda *given: refine(*given) and False)
    found, _, _ = _fill(lambda x, y: np.ones_like(x + y))
    assert found.check is not None
    assert found.check.share_within == 1
    assert found.num_checks == 1
    assert not found.converged


def test_preview_sees_it_sharpen() -> None:
    counts: list[int] = []
    found, _, _ = _fill(
        SMOOTH["ridge"], preview=lambda loss, measured: counts.append(int(measured.sum()))
    )
    assert counts == sorted(counts)
    assert len(counts) > 2
    assert counts[0] == COARSE**2 + 1
    assert counts[-1] == found.num_measured - NUM_CHECKED


def test_network() -> None:
    """A ReLU network on random data, wide enough that its surface has valleys and kinks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
        model.append(nn.Linear(24, 4))
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(256, 8, generator=draw)
    samples = Samples(inputs, inputs[:, :4].argmax(dim=1))
    x, y = linspace((-1.0, 1.0), 41), linspace((-0.8, 1.0), 33)
    with Objective(model, samples) as objective:
        directions = torch.randn(2, objective.dim, generator=draw)
        directions *= objective.theta.norm() / directions.norm(dim=1, keepdim=True)
        losses = np.empty((2, len(y), len(x)))
        for i, y_i in enumerate(y):
            for j, x_j in enumerate(x):
                objective.displace((x_j, directions[0]), (y_i, directions[1]))
                losses[:, i, j] = (
                    objective.evaluate().loss,
                    objective.evaluate(samples.head(16)).loss,
                )
    for small in (None, _Oracle(losses[1])):
        found = fill_surface(x, y, _Oracle(losses[0]), tolerance=TOLERANCE, measure_small=small)
        _assert_honest(found, losses[0])
        assert found.converged
        assert found.cost < losses[0].size / 4


POINTS = np.random.default_rng(1).uniform(-1, 1, (25, 2))
VALUES = SMOOTH["bumps"](POINTS[:, 0], POINTS[:, 1])
GRID = np.random.default_rng(2).uniform(-1, 1, (60, 2))


def _bordered(order: int, at: Array, points: Array = POINTS) -> tuple[Array, Array]:
    """The textbook's matrix [[φ, p], [pᵀ, 0]] and right-hand sides, written out."""

    def phi(a: Array, b: Array) -> Array:
        r = np.linalg.norm(a[:, None] - b[None], axis=2)
        return np.asarray({1: -r, 3: r**3, 5: -(r**5)}[order])

    def monomials(p: Array) -> Array:
        x, y = p.T
        columns = [x**0, x, y, x * x, x * y, y * y][: {1: 1, 3: 3, 5: 6}[order]]
        return np.stack(columns, axis=1)

    p = monomials(points)
    matrix = np.block([[phi(points, points), p], [p.T, np.zeros((p.shape[1],) * 2)]])
    return matrix, np.concatenate([phi(at, points), monomials(at)], axis=1).T


@pytest.mark.parametrize("order", ORDERS)
def test_spline_and_its_variance_are_the_textbooks(order: int) -> None:
    matrix, sides = _bordered(order, GRID)
    solved = np.linalg.solve(matrix, sides)
    spline = fit(POINTS, VALUES, GRID, TOLERANCE, order)
    # The bordered matrix's condition is 1e8 at most: eight digits are left.
    np.testing.assert_allclose(spline.values, VALUES @ solved[:25], rtol=1e-7, atol=1e-7)
    variance = -np.sum(sides * solved, axis=0)
    assert variance.min() > 0
    # What is left over is the local scale σ²: the mean of c_i²/(A⁻¹)_ii over the twelve nearest
    # points, or the median of that.
    inverse = np.linalg.inv(matrix)
    coefficients = (inverse[:, :25] @ VALUES)[:25]
    scales = coefficients**2 / np.diagonal(inverse)[:25]
    nearest = np.linalg.norm(GRID[:, None] - POINTS[None], axis=2).argsort(axis=1)[:, :12]
    local = scales[nearest].mean(axis=1)
    expected = variance * np.maximum(local, np.median(np.sqrt(local)) ** 2)
    np.testing.assert_allclose(spline.deviation**2, expected, rtol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_spline_goes_through_its_points_and_leaves_out_by_the_formula(order: int) -> None:
    spline = fit(POINTS, VALUES, POINTS, TOLERANCE, order)
    np.testing.assert_allclose(spline.values, VALUES, atol=1e-9)
    assert spline.deviation.max() <= 1e-6
    for left in (0, 7, 24):
        others = np.arange(25) != left
        twin = fit(POINTS[others], VALUES[others], POINTS[left : left + 1], TOLERANCE, order)
        assert spline.residuals[left] == pytest.approx(VALUES[left] - twin.values[0], rel=1e-6)


def test_spline_takes_no_more_memory_than_it_keeps() -> None:
    """Of NumPy's matrices [n, m] one is kept, the kernels; the scale took two more beside it."""
    draw = np.random.default_rng(0)
    points, grid = draw.uniform(-1, 1, (60, 2)), draw.uniform(-1, 1, (9000, 2))
    tracemalloc.start()
    fit(points, points[:, 0], grid, TOLERANCE, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * 8 * len(points) * len(grid)


@pytest.mark.parametrize("order", [3, 5])
def test_spline_reproduces_its_polynomials(order: int) -> None:
    def polynomial(p: Array) -> Array:
        value = 2 - 3 * p[:, 0] + 0.5 * p[:, 1]
        return np.asarray(value + (p[:, 0] * p[:, 1] if order == 5 else 0))

    found = fit(POINTS, polynomial(POINTS), GRID, TOLERANCE, order)
    np.testing.assert_allclose(found.values, polynomial(GRID), atol=1e-9)
    assert found.deviation.max() <= 1e-8


@pytest.mark.parametrize("order", ORDERS)
def test_error_of_a_spline_is_bounded_by_the_seminorm(order: int) -> None:
    """For functions that are themselves splines, through points elsewhere."""
    largest = 0.0
    for seed in range(20):
        draw = np.random.default_rng(seed)
        points, values = draw.uniform(-1, 1, (12, 2)), draw.standard_normal(12)
        matrix, at_grid = _bordered(order, GRID, points)
        _, at_points = _bordered(order, POINTS, points)
        solved = np.linalg.solve(matrix, np.pad(values, (0, len(matrix) - 12)))
        seminorm = math.sqrt(solved[:12] @ values)  # cᵀφc, since pᵀc = 0
        spline = fit(POINTS, solved @ at_points, GRID, TOLERANCE, order)
        error = np.abs(solved @ at_grid - spline.values)
        largest = max(largest, float((error / (np.sqrt(spline._variance) * seminorm)).max()))
    assert 0.2 < largest <= 1


@pytest.mark.parametrize("order", ORDERS)
def test_batch_is_what_one_at_a_time_would_choose(order: int) -> None:
    """The naive twin lays a new spline through all that was chosen before each choice."""
    scale = 1.0 + GRID[:, 0] ** 2
    spline = fit(POINTS, VALUES, GRID, TOLERANCE, order)
    limit = spline.deviation.max() / 50 * scale
    batch = spline.rank(limit, 6)
    points, chosen = POINTS, []
    # Where only the variance matters, values are anything; the local scale stays the first one's.
    matrix, sides = _bordered(order, GRID)
    first = -np.sum(sides * np.linalg.solve(matrix, sides), axis=0)
    local = spline.deviation / np.sqrt(first)
    for _ in range(6):
        values = np.random.default_rng(3).standard_normal(len(points))
        later = fit(points, values, GRID, TOLERANCE, order)
        excess = local * np.sqrt(later._variance) / limit
        chosen.append(int(np.argmax(excess)))
        points = np.concatenate([points, GRID[chosen[-1:]]])
    assert batch == chosen


def test_order_follows_the_surface() -> None:
    """The smooth one takes r⁵, the broken one r."""
    grid = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), axis=-1).reshape(-1, 2) / 4 - 1
    smooth = np.exp(grid[:, 0] - 0.5 * grid[:, 1])
    broken = np.random.default_rng(0).permutation(len(grid)) / 10.0
    assert fit(grid, smooth, grid, 1e-6).order == 5
    assert fit(grid, broken, grid, 1e-6).order == 1


def test_order_is_one_that_the_points_determine_with_one_to_spare() -> None:
    assert [fit(POINTS[:n], VALUES[:n], GRID, TOLERANCE).order for n in (2, 3)] == [1, 1]
    assert fit(POINTS[:6], VALUES[:6], GRID, TOLERANCE).order < 5
    assert [_determined(POINTS[:n], 3) for n in (3, 4)] == [False, True]
    line = POINTS * [1.0, 0.0]
    assert fit(line, line[:, 0] ** 2, GRID, TOLERANCE).order == 1
