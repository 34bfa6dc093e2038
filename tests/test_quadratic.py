"""The quadratic model: exact where the loss is quadratic, and honest about where it is not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Lgo
from small_networks import dense_hessian, make

from lgo_cli.landscape.planes import random_plane
from lgo_cli.landscape.quadratic import QuadraticModel, quadratic_error, quadratic_model
from lgo_cli.objective import Objective

X, Y = np.linspace(-1, 1, 7), np.linspace(-2, 1, 4)


def _surface(objective: Objective, directions: torch.Tensor) -> np.ndarray:
    first, second = directions
    return np.array(
        [[objective.loss(objective.theta + x * first + y * second) for x in X] for y in Y]
    )


def test_exact_on_a_linear_network_with_squared_error() -> None:
    model, samples, loss = make("linear, squared error")
    with Objective(model.double(), samples, loss, dtype=torch.float64) as objective:
        directions = random_plane(objective, 0).directions
        quadratic = quadratic_model(objective, directions)
        surface = _surface(objective, directions)
        plane_hessian = directions @ dense_hessian(objective) @ directions.T
    np.testing.assert_allclose(quadratic.at(X, Y), surface, rtol=1e-13)
    xx, xy, yy = quadratic.hessian
    assert [[xx, xy], [xy, yy]] == pytest.approx(plane_hessian.numpy(), rel=1e-12)
    assert quadratic.num_matvecs == 2
    error = quadratic_error(quadratic, X, Y, surface)
    assert error.max_error <= 1e-13
    assert error.holds_everywhere
    assert error.radius == pytest.approx(math.hypot(1, 2))


def test_error_falls_with_the_third_power_of_the_distance() -> None:
    model, samples, loss = make("squared error")
    with Objective(model.double(), samples, loss, dtype=torch.float64) as objective:
        directions = random_plane(objective, 0).directions
        quadratic = quadratic_model(objective, directions)
        sizes = [0.1, 0.05, 0.025]
        errors = []
        for size in sizes:
            at = objective.theta + size * directions[0] - size * directions[1]
            model_there = quadratic.at(np.array([size]), np.array([-size]))[0, 0]
            errors.append(abs(model_there - objective.loss(at)))
    # The remainder is cubic; its next term, a tenth of it here, moves the ratios of 8.
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.15)


def test_error_and_radius_by_hand() -> None:
    """1 + x² beside a surface that is off by known amounts."""
    model = QuadraticModel(loss=1.0, gradient=(0.0, 0.0), hessian=(2.0, 0.0, 0.0), num_matvecs=0)
    x, y = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), np.array([0.0, 3.0])
    surface = 1 + x**2 + np.array([0.0, 0.1, 0.0, 0.3, 5.0]) + 0 * y[:, None]
    found = quadratic_error(model, x, y, surface)
    expected = np.array([0, -0.1 / 2.1, 0, -0.3 / 2.3, -5 / 10])
    for index in np.ndindex(surface.shape):
        alone = np.zeros(surface.shape, bool)
        alone[index] = True
        error = quadratic_error(model, x, y, surface, alone).max_error
        assert error == pytest.approx(abs(expected[index[1]]), rel=1e-14)
    assert found.max_error == pytest.approx(0.5)
    assert found.rms_error == pytest.approx(math.sqrt(np.mean(expected**2)))
    # (1, 0) is 13 % off; (−1, 0) holds, but is no nearer, and only the centre is.
    assert found.radius == 0.0
    assert not found.holds_everywhere
    # Unless that cell does not count: then (2, 0) is the first.
    counted = np.ones(surface.shape, bool)
    counted[:, 3] = False
    measured = quadratic_error(model, x, y, surface, counted)
    assert measured.radius == 1.0
    assert measured.rms_error == pytest.approx(math.sqrt(np.mean(np.delete(expected, 3) ** 2)))
    # A cell that is not finite is off, and has no error to average.
    surface[0, 1] = math.inf
    blown = quadratic_error(model, x, y, surface, counted)
    assert blown.radius == 0.0
    assert not quadratic_error(model, x, y, surface, surface == math.inf).holds_everywhere
    assert blown.max_error == pytest.approx(0.5)


def test_surface_without_a_finite_cell() -> None:
    model = QuadraticModel(loss=1.0, gradient=(0.0, 0.0), hessian=(2.0, 0.0, 0.0), num_matvecs=0)
    found = quadratic_error(model, X, Y, np.full((4, 7), math.nan))
    assert math.isnan(found.max_error)
    assert math.isnan(found.rms_error)
    assert not found.holds_everywhere
    assert found.radius == 0.0


def test_how_far_the_model_holds_is_said_in_words(lgo: Lgo, small_run: Path) -> None:
    line = ("contour", small_run, "--plane", "eigen", "--analysis-samples", 64, "--resolution", 3)
    for reach, words in ((1e-3, "up to radius 0.00141"), (50, "at the centre alone")):
        ends = ("--x-range", -reach, reach, "--y-range", -reach, reach)
        assert f"within a tenth of the loss {words}, off by" in lgo(*line, *ends).stdout
