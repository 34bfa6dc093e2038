"""Planes: their units, what they show of the Hessian, and when there is none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Lgo
from image_network import images, network, unit
from small_networks import dense_hessian, fit, make
from torch import Tensor, nn

from lgo_cli.config import Normalization
from lgo_cli.curvature.audit import Rounding
from lgo_cli.curvature.eigenpairs import extreme_eigenpairs
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.curvature.search import Wanted
from lgo_cli.errors import InputError, NumericsError, UsageError
from lgo_cli.landscape.directions import gradient_direction, orthogonalize, random_direction
from lgo_cli.landscape.planes import (
    PlaneCurve,
    checkpoints_plane,
    eigen_plane,
    given_plane,
    gradient_plane,
    random_eigen_plane,
    random_plane,
    range_around,
)
from lgo_cli.loss import LossFunction
from lgo_cli.manifest import read_manifest
from lgo_cli.objective import Objective
from lgo_cli.results import ContourResults
from lgo_cli.samples import Samples
from lgo_cli.vectors import cosine, dot, norm

EPS32 = torch.finfo(torch.float32).eps


def _differences(objective: Objective, directions: Tensor, h: float) -> tuple[float, float, float]:
    """Second differences of the surface along x, along both, and along y, of fourth order."""
    first, second = directions

    def loss(x: float, y: float) -> float:
        return objective.loss(objective.theta + x * first + y * second)

    def along(x: float, y: float) -> float:
        near = loss(x * h, y * h) + loss(-x * h, -y * h)
        far = loss(2 * x * h, 2 * y * h) + loss(-2 * x * h, -2 * y * h)
        return (16 * near - far - 30 * loss(0.0, 0.0)) / (12 * h**2)

    xx, yy = along(1, 0), along(0, 1)
    return xx, (along(1, 1) - xx - yy) / 2, yy


def test_eigen_plane_shows_the_eigenvalues() -> None:
    model, samples, loss = make("squared error")
    fit(model, samples, loss, 100)
    with Objective(model.double(), samples, loss, dtype=torch.float64) as objective:
        found = extreme_eigenpairs(HessianOperator(objective), Wanted(top_k=2, vector_rtol=1e-6))
        plane = eigen_plane(objective, found.values, found.eigenvectors)
        xx, xy, yy = _differences(objective, plane.directions, 1e-2)
        truth = torch.linalg.eigvalsh(dense_hessian(objective)).flip(0)[:2]
    # The difference formula is off by h⁴/90 of a sixth derivative, and by a rounding of the loss,
    # 1e-16, times 64/(12h²): 1e-10 and 1e-12 on the scale of these losses, which is one.
    formula = 1e-8
    for shown, value, bound in zip((xx, yy), found.values.tolist(), found.residual_bounds,
                                   strict=True):  # fmt: skip
        assert abs(shown - value) <= float(bound) + formula
    assert (xx, yy) == pytest.approx(truth.tolist(), abs=formula + 1e-9)
    # v₁ᵀHv₂ is zero within the residuals.
    assert abs(xy) <= float(found.residual_bounds.max()) + 2 * formula
    assert xx > yy > 1e-2


class _FirstOutput(LossFunction):
    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        del labels
        return outputs[:, 0]


def test_affine_loss_has_no_second_differences() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(6, 3).double()
    draw = torch.Generator().manual_seed(1)
    samples = Samples(torch.randn(20, 6, generator=draw), torch.arange(20) % 3)
    with Objective(model, samples, _FirstOutput(), dtype=torch.float64) as objective:
        slope = gradient_direction(objective)
        plane = random_plane(objective, 0)
        # Losses of about one, rounded to 1e-16, over h² = 1.
        assert np.abs(_differences(objective, plane.directions, 1.0)).max() <= 1e-14
        rise = objective.loss(objective.theta + plane.directions[0]) - objective.center.loss
        _, gradient = objective.loss_and_gradient()
    assert rise == pytest.approx(dot(slope, plane.directions[0]) * norm(gradient), rel=1e-12)
    assert abs(rise) > 1e-3


class _Mlp(nn.Module):
    """Two layers of ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x)))


def _rescaled(scales: Tensor) -> _Mlp:
    """The same function: each hidden unit's input weights times a scale, its outputs' by it."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = _Mlp().double()
    with torch.no_grad():
        model.hidden.weight.mul_(scales[:, None])
        model.hidden.bias.mul_(scales)
        model.head.weight.div_(scales)
    return model


def _drawn_surface(
    model: nn.Module, normalization: Normalization
) -> tuple[np.ndarray, float, np.ndarray]:
    """Losses over the drawn directions, how far they are from orthogonal, and over the plane."""
    _, samples, loss = make("relu")
    grid = [(x, y) for x in (-0.7, 0.4, 1.0) for y in (-1.0, 0.6)]
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        first, second = (
            random_direction(objective, 3, "contour", "direction", k, normalization=normalization)
            for k in (0, 1)
        )
        shear = dot(first, second) / dot(first, first)
        plane = random_plane(objective, 3, normalization=normalization).directions

        def at(x: float, y: float, axes: Tensor) -> float:
            return objective.loss(objective.theta + x * axes[0] + y * axes[1])

        drawn = torch.stack([first, second])
        # The plane's own (x + shear·y, y) is the drawn (x, y).
        return (
            np.array([at(x, y, drawn) for x, y in grid]),
            shear,
            np.array([at(x + shear * y, y, plane) for x, y in grid]),
        )


@pytest.mark.parametrize("normalization", ["filter", "layer", "none"])
def test_rescaled_layers_have_the_same_surface_and_rescaled_units_have_not(
    normalization: Normalization,
) -> None:
    """theory.md, sections 5 and 24. Orthogonalising shears the plane, and leaves it the same."""
    here, shear, plane = _drawn_surface(_rescaled(torch.ones(6).double()), normalization)
    there, other_shear, there_plane = _drawn_surface(
        _rescaled(torch.full((6,), 5.0).double()), normalization
    )
    # A dozen roundings in a network of this size.
    np.testing.assert_allclose(plane, here, rtol=1e-12)
    np.testing.assert_allclose(there_plane, there, rtol=1e-12)
    if normalization == "none":
        assert np.abs(there / here - 1).max() > 0.1
    else:
        np.testing.assert_allclose(there, here, rtol=1e-12)
        assert abs(shear - other_shear) > 1e-3
    units = torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0, 20.0]).double()
    elsewhere, _, _ = _drawn_surface(_rescaled(units), normalization)
    assert np.abs(elsewhere / here - 1).max() > 0.1


def test_planes_of_one_seed_differ_and_do_not_depend_on_their_number() -> None:
    with Objective(network(), images()) as objective:
        planes = [random_plane(objective, 3, index=k).directions for k in range(3)]
        assert torch.equal(planes[0], random_plane(objective, 3).directions)
        fifth = random_direction(objective, 3, "contour", "direction", 4)
    assert torch.equal(planes[2][0], fifth)
    flat = torch.cat(planes)
    flat = flat / flat.norm(dim=1, keepdim=True)
    overlaps = flat @ flat.T - torch.eye(6)
    # Cosines of independent directions of P ≈ 270 weights have a deviation of 1/√P = 0.06.
    assert overlaps.abs().max() < 0.3


@pytest.mark.parametrize("normalization", ["filter", "layer", "none"])
def test_steep_axis_beside_a_random_one_of_the_same_length(normalization: Normalization) -> None:
    with Objective(network(), images(), dtype=torch.float64) as objective:
        steep = gradient_direction(objective)
        vector = unit(objective.dim, 1)
        planes = [
            gradient_plane(objective, 0, normalization=normalization, index=1),
            random_eigen_plane(objective, 7.5, vector, 0, normalization=normalization, index=1),
        ]
        drawn = random_direction(
            objective, 0, "contour", "direction", 3, normalization=normalization
        )
    for plane, first in zip(planes, (steep, vector), strict=True):
        # The first axis to the bit; the second is the random one turned and scaled as a whole.
        assert torch.equal(plane.directions[0], first)
        second = plane.directions[1]
        assert norm(second) == pytest.approx(1.0, rel=1e-14)
        assert abs(plane.axis_cosine) <= 1e-14
        expected = drawn - dot(first, drawn) * first / norm(first) ** 2
        assert cosine(second, expected) == pytest.approx(1.0, rel=1e-14)
    assert planes[0].axis_labels[0] == "x: gradient (uphill), unit norm"
    assert planes[1].axis_labels[0] == "x: eigenvector 1 (λ = 7.5), unit norm"
    assert [plane.kind for plane in planes] == ["gradient", "random+eigen"]


def test_given_directions_are_used_as_they_are() -> None:
    with Objective(network(), images()) as objective:
        dim = objective.dim
        oblique = torch.stack([3 * unit(dim, 1), 0.1 * unit(dim, 2) + 0.5 * unit(dim, 1)])
        plane = given_plane(objective, oblique)
        right = given_plane(objective, torch.stack([unit(dim, 1), orthogonalize(*oblique)]))
    assert torch.equal(plane.directions, oblique.float())
    assert plane.kind == "file"
    angle = cosine(*oblique)
    assert angle > 0.9
    assert plane.axis_cosine == pytest.approx(angle, abs=EPS32)
    assert len(plane.warnings) == 1
    assert f"cosine {angle:.3f}" in plane.warnings[0]
    assert plane.axis_labels == (
        "x: given direction 1, norm 3",
        f"y: given direction 2, norm {norm(oblique[1]):.4g}",
    )
    assert right.warnings == ()


def test_curve_of_given_directions_is_inside_the_picture() -> None:
    """Its bend too, which it need not go through, and a quarter of the extent around."""
    path = np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 0.0]])
    points = np.array([[0.0, 0.0], [0.5, 2.0], [1.0, 0.0]])
    with Objective(network(), images()) as objective:
        first, other = unit(objective.dim, 1), unit(objective.dim, 2)
        directions = torch.stack([first, other - 0.5 * first])
        plane = given_plane(objective, directions, PlaneCurve(path, points, np.zeros(3)))
    assert plane.axis_cosine < 0
    assert (plane.x_range, plane.y_range) == ((-0.5, 1.5), (-0.5, 2.5))
    places = [(marker.label, marker.x, marker.y) for marker in plane.markers]
    assert places == [("bend", 0.5, 2.0), ("other end", 1.0, 0.0)]
    (warning,) = plane.warnings
    assert f"(cosine {plane.axis_cosine:.3f})" in warning


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((1.0, 3.0), "lie on one line"),
        ((1e-3, 1.0), "lie on one line"),
        ((1e-9, 1.0), "run itself"),
    ],
)
def test_checkpoints_on_a_line_but_for_rounding_span_no_plane(
    scales: tuple[float, float], message: str
) -> None:
    """Weights in float32 leave the line by their rounding, near the run by more of the distance."""
    with Objective(network(), images()) as objective:
        direction = objective.theta.norm() * unit(objective.dim, 1)
        a, b = ((objective.theta.double() + scale * direction).float() for scale in scales)
        with pytest.raises(InputError, match=message):
            checkpoints_plane(objective, a, b)


def test_ranges_are_rounded_to_three_digits_of_the_larger_extent() -> None:
    found = range_around([(0.0, 0.0), (1.23456, 0.5)])
    assert found == ((-0.31, 1.54), (-0.31, 0.81))
    assert range_around([(0.0, 0.0), (-1234.56, 0.5)]) == ((-1540.0, 310.0), (-310.0, 310.0))


def test_given_directions_that_are_none() -> None:
    with Objective(network(), images()) as objective:
        dim = objective.dim
        good = torch.stack([unit(dim, 1), unit(dim, 2)])
        for bad, message in (
            (good[:, 1:], rf"float64 \[2, {dim - 1}\], the model wants .* floats \[2, {dim}\]"),
            (good[0], r"float64 \[\d+\], the model wants"),
            (good.long(), "int64"),
            (good * torch.tensor([[1.0], [math.nan]]), "the second direction has values that"),
            (good * torch.tensor([[math.inf], [1.0]]), "the first direction has values that"),
            (good * torch.tensor([[0.0], [1.0]]), "the first direction is zero"),
            (good * torch.tensor([[1.0], [0.0]]), "the second direction is zero"),
            # Rounded to float32, a multiple leaves the line by less than eps.
            (torch.stack([good[0], -0.3 * good[0]]).float(), "lie on one line"),
        ):
            with pytest.raises(InputError, match=message):
                given_plane(objective, bad)


def test_no_random_direction_beside_the_only_one() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 1, bias=False), nn.Linear(1, 3, bias=False))
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    with Objective(model, images(), dtype=torch.float64) as objective:
        only = random_direction(objective, 0, "contour", "direction", 1)
        with pytest.raises(UsageError, match="no plane of filter-normalised"):
            random_eigen_plane(objective, 1.0, only, 0)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("contour", ("--plane", "eigen", "--resolution", 3)),
        ("contour", ("--plane", "random+eigen", "--resolution", 3)),
        ("interp", ("--direction", "eigen", "--num-points", 3)),
    ],
)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("runs.steps.eigenpairs.PLANE_VECTOR_RTOL", 1e-12),
        # Rounding that was measured counts: no product allows for a vector as good as that.
        ("curvature.audit.measure_rounding", lambda *_, **__: Rounding(1e5, None, None)),
    ],
)
def test_strict_holds_for_eigenvectors_that_are_there_already(
    command: str,
    options: tuple[Any, ...],
    name: str,
    value: Any,
    small_run: Path,
    lgo: Lgo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"lgo_cli.{name}", value)
    line = (command, small_run, *options, "--analysis-samples", 64)
    assert "did not converge" in lgo(*line, "--strict", code=4).stderr
    assert not (small_run / f"{command}.json").exists()
    printed = lgo(*line).stderr
    assert printed.startswith("warning: ")
    assert printed.count("did not converge") == 1
    assert "did not converge" in lgo(*line, "--strict", code=4).stderr


def test_eigenvectors_of_a_plane_are_as_precise_as_products_are(
    small_run: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What rounds is measured, and allowed for, as `lgo hessian` does."""
    measured: list[float] = []

    def look(operator: Any, *_: object, **__: object) -> None:
        measured.append(operator.measured_rounding)
        raise NumericsError("seen")

    monkeypatch.setattr("lgo_cli.curvature.eigenpairs.extreme_eigenpairs", look)
    line = ("contour", small_run, "--plane", "eigen", "--analysis-samples", 64)
    lgo(*line, code=4)
    assert measured[0] is not None


@pytest.mark.parametrize(("command", "option"), [("contour", "--plane"), ("interp", "--direction")])
def test_strict_refuses_a_gradient_that_is_lost_in_rounding(
    command: str, option: str, small_run: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lgo_cli.landscape.directions.CLEAR_OF_ROUNDING", 1e9)
    size = "--resolution" if command == "contour" else "--num-points"
    line = (command, small_run, option, "gradient", size, 3, "--analysis-samples", 64)
    said = "the gradient's direction is lost in rounding"
    assert lgo(*line).stderr.count(f"warning: {said}") == 1
    assert said in lgo(*line, "--strict", code=4).stderr
    assert said in lgo(*line, "--strict", "--force", code=4).stderr


def test_table_says_at_which_cells_the_quadratic_model_was_held(small_run: Path, lgo: Lgo) -> None:
    line = ("--plane", "eigen", "--resolution", 21, "--analysis-samples", 64, "--tolerance", 0.05)
    printed = lgo("contour", small_run, *line).stdout
    results = read_manifest(small_run / "contour.json").results
    assert isinstance(results, ContourResults)
    assert results.num_measured < results.num_cells
    assert results.quadratic is not None
    off = results.quadratic.max_error
    assert f"off by {off:.2g} of it at most at the measured cells\n" in printed


def test_eigenvectors_are_never_rescaled() -> None:
    with Objective(network(), images()) as objective:
        vectors = torch.stack([unit(objective.dim, 1), unit(objective.dim, 2)])
        plane = eigen_plane(objective, torch.tensor([12.34, 5.6, 1.0]), vectors)
    assert torch.equal(plane.directions, vectors.float())
    assert plane.axis_labels == (
        "x: eigenvector 1 (λ = 12.34), unit norm",
        "y: eigenvector 2 (λ = 5.6), unit norm",
    )


def test_plane_through_three_points() -> None:
    with Objective(network(), images(), dtype=torch.float64) as objective:
        theta = objective.theta
        a, b = theta + 3 * unit(objective.dim, 8), theta + 4 * unit(objective.dim, 9)
        plane = checkpoints_plane(objective, a, b)
        d0, d1 = plane.directions
        for marker, point in zip(plane.markers, (theta, a, b), strict=True):
            at = theta + marker.x * d0 + marker.y * d1
            # A few float64 roundings of entries below ‖θ‖ + 4.
            torch.testing.assert_close(at, point, rtol=0, atol=1e-14)
        # Equal lengths: a picture with equal axes shows true distances, in units of ‖a − θ‖.
        assert norm(d0) == pytest.approx(norm(d1), rel=1e-14)
        assert [marker.label for marker in plane.markers] == ["run", "A", "B"]
        assert (plane.markers[1].x, plane.markers[1].y) == (1.0, 0.0)
        points = [math.dist((m.x, m.y), (n.x, n.y)) for m in plane.markers for n in plane.markers]
        true = [norm(p - q) / norm(a - theta) for p in (theta, a, b) for q in (theta, a, b)]
        assert points == pytest.approx(true, rel=1e-13)
        assert abs(plane.axis_cosine) <= 1e-15
    for marker in plane.markers:
        assert plane.x_range[0] < marker.x < plane.x_range[1]
        assert plane.y_range[0] < marker.y < plane.y_range[1]


def test_degenerate_triples() -> None:
    with Objective(network(), images()) as objective:
        theta = objective.theta
        other = theta + unit(objective.dim, 8).float()
        with pytest.raises(InputError, match="A is the run itself"):
            checkpoints_plane(objective, theta.clone(), other)
        for b in (theta.clone(), other.clone()):
            with pytest.raises(InputError, match="on one line") as error:
                checkpoints_plane(objective, other, b)
            assert "lgo interp --to" in str(error.value.hint)
