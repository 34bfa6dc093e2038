"""Statistics over planes, against order statistics, closed forms and dense Hessians."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Lgo
from small_networks import dense_hessian, make
from torch import nn

from lgo_cli.config import Normalization
from lgo_cli.errors import UsageError
from lgo_cli.landscape.line_curvature import LineCurvature, line_curvature, line_variance
from lgo_cli.landscape.statistics import band, plane_statistics, profile
from lgo_cli.objective import Objective
from lgo_cli.runs.evidence import load_arrays
from lgo_cli.vectors import root_mean_square

X, Y = np.linspace(-1.5, 1, 21), np.linspace(-1, 2, 31)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
def test_band_is_made_of_order_statistics(count: int) -> None:
    values = np.random.default_rng(count).standard_normal((count, 3))
    found = band(values)
    for column in range(3):
        ordered = sorted(values[:, column].tolist())
        half = (count + 1) // 2
        assert found.median[column] == statistics.median(ordered)
        assert found.lower[column] == statistics.median(ordered[:half])
        assert found.upper[column] == statistics.median(ordered[-half:])
        assert (found.minimum[column], found.maximum[column]) == (ordered[0], ordered[-1])


def test_planes_that_blow_up_are_the_largest() -> None:
    found = band(np.array([2.0, math.nan, 1.0, math.inf, 3.0]))
    assert (found.minimum, found.lower, found.median) == (1.0, 2.0, 3.0)
    assert found.upper == found.maximum == math.inf


@pytest.mark.parametrize("count", [2, 3, 5])
def test_range_of_planes_holds_the_median_as_often_as_stated(count: int) -> None:
    """For a skewed distribution, whose median is ln 2."""
    draws = np.random.default_rng(0).exponential(size=(count, 20_000))
    found = band(draws)
    held = (found.minimum <= math.log(2)) & (math.log(2) <= found.maximum)
    stated = 1 - 2 ** (1 - count)
    # Four standard deviations of a share of 20,000.
    assert abs(held.mean() - stated) <= 4 * math.sqrt(stated * (1 - stated) / 20_000)


def test_profile_of_a_quadratic() -> None:
    """Mean of 1 + (a·x² + b·y²)/2 + x over a circle of radius r: 1 + (a + b)/4·r²."""
    a, b = 3.0, 0.5
    loss = 1 + (a * X**2) / 2 + X + (b * Y[:, None] ** 2) / 2
    radii = np.linspace(0, 1, 6)
    found = profile(X, Y, loss, radii, center=1.0)
    # Linear interpolation would lie above, by h²/8 of each second derivative at most. A cubic of f
    # is off by 0.016·h³ of each third derivative; those of asinh(L) are below 10, and L changes by
    # less than 3 for 1 of it: together less than a tenth of that.
    hx, hy = X[1] - X[0], Y[1] - Y[0]
    excess = found - (1 + (a + b) / 4 * radii**2)
    assert (np.abs(excess) <= (a * hx**2 + b * hy**2) / 80).all()
    assert found[0] == 1.0


@pytest.mark.parametrize("center", [0.01, 0.0, math.inf])
@pytest.mark.parametrize("number", [20, 21])
def test_profile_of_a_minimum_about_as_wide_as_a_cell(number: int, center: float) -> None:
    """Linear interpolation is above by h²/2 in the middle of a cell: it doubled small losses."""
    grid = np.linspace(-1, 1, number)
    bottom = center if math.isfinite(center) else 0.01
    loss = bottom + grid**2 + grid[:, None] ** 2
    radii = np.linspace(0, 1, 26)
    found = profile(grid, grid, loss, radii, center)
    assert found[0] == center
    expected = bottom + radii**2
    # A quarter of that, where no cell is at the bottom.
    room = (grid[1] - grid[0]) ** 2 / 8
    np.testing.assert_allclose(found[1:], expected[1:], rtol=0.05, atol=room)


def test_profile_of_a_parabolic_height_is_exact_up_to_the_rim() -> None:
    def loss(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray(0.5 * np.sinh(1 + 0.3 * x - 0.2 * x * y + 0.5 * x**2 + 0.4 * y**2))

    x, y, radii = np.linspace(-1, 1, 9), np.linspace(-1, 1, 7), np.array([0.3, 0.9, 1.0])
    angles = 2 * np.pi * np.arange(96) / 96
    expected = [loss(r * np.cos(angles), r * np.sin(angles)).mean() for r in radii]
    found = profile(x, y, loss(x[None], y[:, None]), radii, 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_profile_of_losses_that_no_scale_holds() -> None:
    loss = np.ones((21, 21))
    loss[0] = 1e300
    found = profile(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21), loss, np.array([0.5, 1]), 1e-9)
    assert found.tolist() == [pytest.approx(1.0), math.inf]


def test_profile_is_infinite_where_a_circle_touches_what_is_not_finite() -> None:
    loss = np.ones((31, 21))
    loss[10, 20] = math.nan  # (1, 0)
    found = profile(X, Y, loss, np.array([0.0, 0.5, 0.87, 0.9, 1.0]), 1.0)
    assert found.tolist() == [1.0, 1.0, 1.0, math.inf, math.inf]
    # A circle through cells has neighbours beyond it, of no weight.
    x, beyond = np.linspace(-2, 2, 5), np.ones((5, 5))
    beyond[2, 4] = math.inf  # (2, 0)
    assert profile(x, x, beyond, np.array([1.0, 1.01]), 1.0).tolist() == [1.0, math.inf]


def test_statistics_of_surfaces() -> None:
    grid = X**2 + Y[:, None] ** 2
    losses = np.stack([1 + k * grid for k in (1.0, 2.0, 4.0)])
    losses[2, 0, 0] = math.nan
    found = plane_statistics(X, Y, losses, 1.0)
    assert found.num_planes == 3
    assert found.radii.tolist() == [k / 25 for k in range(26)]
    room = 4 * (0.125**2 + 0.1**2) / 4
    np.testing.assert_allclose(found.profile.median, 1 + 2 * found.radii**2, atol=room)
    np.testing.assert_allclose(found.profile.maximum, 1 + 4 * found.radii**2, atol=room)
    assert found.loss_max.maximum == math.inf
    assert found.loss_max.median == pytest.approx(1 + 2 * (1.5**2 + 2**2))
    assert found.loss_min.maximum == pytest.approx(1.0, abs=4 * grid.min() + 1e-12)
    with pytest.raises(ValueError, match="centre inside"):
        plane_statistics(X + 2, Y, losses, 1.0)


def _line_curvature(
    name: str, normalization: Normalization, num_planes: int
) -> tuple[LineCurvature, float, float]:
    """What the lines say, and the dense twin's weighted trace and its largest eigenvalue."""
    model, samples, loss = make(name)
    with Objective(model.double(), samples, loss, dtype=torch.float64) as objective:
        found = line_curvature(objective, 5, num_planes, normalization=normalization)
        dense = dense_hessian(objective)
        scale = root_mean_square(objective.theta, objective.layout, normalization)
    weights = scale.square() / scale.square().sum()
    top = float(torch.linalg.eigvalsh(dense)[-1])
    return found, float((weights * dense.diagonal()).sum()), top


@pytest.mark.parametrize("name", ["squared error", "attention and layer norm", "convolution"])
@pytest.mark.parametrize("normalization", ["filter", "layer", "none"])
def test_mean_curvature_along_random_lines_is_the_weighted_trace(
    name: str, normalization: Normalization
) -> None:
    found, truth, top = _line_curvature(name, normalization, 150)
    # 300 lines: beyond 4 standard errors in 1 of 16,000 seeds.
    assert abs(found.mean - truth) <= 4 * found.standard_error
    assert abs(found.expected - truth) <= 4 * found.expected_standard_error + 1e-12
    together = math.hypot(found.standard_error, found.expected_standard_error)
    assert found.deviation == pytest.approx((found.mean - found.expected) / together)
    assert abs(found.deviation) <= 4
    # And the test could fail: the lines know their mean far better than they know λmax.
    assert 0 < found.standard_error < 0.05 * top
    assert len(found.values) == 300
    assert found.num_matvecs > 300


def test_isotropic_lines_show_the_trace_over_the_dimension() -> None:
    model, samples, loss = make("squared error")
    found, _, _ = _line_curvature("squared error", "none", 150)
    with Objective(model.double(), samples, loss, dtype=torch.float64) as objective:
        dense = dense_hessian(objective)
    mean = float(dense.trace()) / len(dense)
    assert abs(found.mean - mean) <= 4 * found.standard_error
    # Var uᵀHu on the sphere (theory.md, section 7).
    spread = float(dense.square().sum()) / len(dense) - mean**2
    deviation = math.sqrt(2 * spread / (len(dense) + 2))
    # The sample deviation of 300 lines, skewed ones, is known to about a tenth.
    assert found.values.std(ddof=1) == pytest.approx(deviation, rel=0.3)


def test_filter_normalised_lines_do_not_show_the_trace() -> None:
    """The statement that holds for one normalisation fails for another, and is seen to."""
    found, weighted, _ = _line_curvature("attention and layer norm", "filter", 150)
    model, samples, loss = make("attention and layer norm")
    with Objective(model.double(), samples, loss, dtype=torch.float64) as objective:
        dense = dense_hessian(objective)
    plain = float(dense.trace()) / len(dense)
    assert abs(found.mean - weighted) <= 4 * found.standard_error
    assert abs(found.mean - plain) > 6 * found.standard_error


@pytest.mark.parametrize("normalization", ["filter", "layer", "none"])
def test_variance_of_a_line_is_that_of_many(normalization: Normalization) -> None:
    found, _, _ = _line_curvature("attention and layer norm", normalization, 150)
    stated = found.standard_error * math.sqrt(300)
    # The sample deviation of 300 lines, skewed ones, is known to about a tenth.
    assert found.values.std(ddof=1) == pytest.approx(stated, rel=0.3)


def test_variance_of_a_line_is_of_the_weights_that_move(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(trace: float, norm: float, num_moved: int) -> float:
        seen.append(num_moved)
        return line_variance(trace, norm, num_moved)

    monkeypatch.setattr("lgo_cli.landscape.line_curvature.line_variance", noted)
    for normalization in ("filter", "none"):
        _line_curvature("relu", normalization, 1)
    sizes = [(p.numel(), p.ndim) for p in make("relu")[0].parameters()]
    assert seen == [sum(n for n, ndim in sizes if ndim > 1), sum(n for n, _ in sizes)]


@pytest.mark.parametrize("num_lines", [4, 16])
@pytest.mark.parametrize("rank", [1, 2, 5, 20, 100])
def test_deviation_is_within_its_quantile_as_often_as_stated(rank: int, num_lines: int) -> None:
    """Also where the Hessian is of low rank: Student's quantile would hold in 82 % for rank one.

    Along lines that are uniform on the sphere in 200 dimensions, of a projection times 200.
    """
    dim, number = 200, 40_000
    shares = np.random.default_rng(0).beta(rank / 2, (dim - rank) / 2, size=(number, num_lines))
    error = math.sqrt(line_variance(rank, math.sqrt(rank), dim) / num_lines)
    beyond = float(np.mean(np.abs(dim * shares.mean(axis=1) - rank) > 1.959964 * error))
    # Four standard deviations of a share of 40,000; the tail of what is skewed has a little less.
    room = 4 * math.sqrt(0.05 * 0.95 / number)
    assert 0.035 <= beyond <= 0.05 + room


def test_model_without_filters_has_no_lines() -> None:
    model, samples, loss = make("relu")
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim < 2)
    assert isinstance(model, nn.Module)
    with Objective(model, samples, loss) as objective, pytest.raises(UsageError, match="no weight"):
        line_curvature(objective, 0, 2)


def test_profile_of_a_surface_is_of_all_its_planes(lgo: Lgo, small_run: Path) -> None:
    """From the lowest to the highest, also where no cell is at the centre."""
    line = ("--num-planes", 3, "--resolution", 4, "--analysis-samples", 64, "--json")
    results = json.loads(lgo("contour", small_run, *line).stdout)["results"]
    arrays = load_arrays(small_run / "contour.npz")
    planes = arrays["planes_loss"]
    assert np.array_equal(planes[0], arrays["loss"])
    found = plane_statistics(arrays["x"], arrays["y"], planes, results["loss_at_center"])
    assert np.array_equal(arrays["profile_radius"], found.radii)
    for name, values in (("median", "median"), ("low", "minimum"), ("high", "maximum")):
        assert np.array_equal(arrays[f"profile_{name}"], getattr(found.profile, values))
