"""Directions and planes: what they are made of, and when there is none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lgo_cli.errors import InputError, NumericsError, UsageError
from lgo_cli.landscape import directions
from lgo_cli.landscape.directions import (
    MARGIN,
    checkpoints_plane,
    eigen_plane,
    gradient_direction,
    orthogonalize,
    pca_plane,
    random_direction,
    random_plane,
)
from lgo_cli.objective import LossFunction, Objective, Samples
from lgo_cli.vectors import cosine, dot, norm

EPS32 = torch.finfo(torch.float32).eps


def _samples(n: int = 40) -> Samples:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 2, 6, 6, generator=draw)
    return Samples(inputs, torch.randint(0, 3, (n,), generator=draw))


def _network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )


def _unit(dim: int, seed: int) -> Tensor:
    vector = torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector / vector.norm()


def test_random_direction_has_the_filters_norms_and_moves_weights_only() -> None:
    model = _network()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    with Objective(model, _samples()) as objective:
        direction = random_direction(objective, 0, "test")
        pieces = dict(zip(objective.layout.names, objective.layout.split(direction), strict=True))
    for name in ("0.weight", "4.weight"):
        expected = weights[name].double().flatten(1).norm(dim=1)
        measured = pieces[name].double().flatten(1).norm(dim=1)
        # Each entry is rounded to float32 once.
        torch.testing.assert_close(measured, expected, rtol=EPS32, atol=0)
    for name in ("0.bias", "1.weight", "1.bias", "4.bias"):
        assert not pieces[name].any(), name


def test_streams_do_not_depend_on_what_else_is_drawn() -> None:
    with Objective(_network(), _samples()) as objective:
        alone = random_direction(objective, 3, "contour", "direction", 1)
        plane = random_plane(objective, 3)
        again = random_plane(objective, 3)
        other = random_plane(objective, 4)
        first = random_direction(objective, 3, "contour", "direction", 0)
    assert torch.equal(plane.directions, again.directions)
    assert torch.equal(plane.directions[0], first)
    assert torch.equal(plane.directions[1], orthogonalize(first, alone))
    assert not torch.equal(plane.directions, other.directions)


def test_dtype_changes_the_rounding_and_not_the_direction() -> None:
    drawn = []
    for dtype in (torch.float32, torch.float64):
        with Objective(_network(), _samples(), dtype=dtype) as objective:
            drawn.append(random_direction(objective, 0, "x"))
            assert drawn[-1].dtype == dtype
    single, double = (direction.double() for direction in drawn)
    # The draw, the scale and the product are each rounded to float32.
    torch.testing.assert_close(single, double, rtol=4 * EPS32, atol=0)


def test_random_plane_is_normalised_before_it_is_orthogonalised() -> None:
    with Objective(_network(), _samples()) as objective:
        plane = random_plane(objective, 0)
        theta = objective.theta
        drawn = random_direction(objective, 0, "contour", "direction", 1)
    first, second = plane.directions
    # Rounding P entries to float32 turns a vector by eps/2 at most.
    assert abs(plane.axis_cosine) <= EPS32
    assert plane.axis_cosine == cosine(first, second)
    # What orthogonalising took away lies along the first axis, and nowhere else.
    taken = drawn.double() - second.double()
    assert abs(cosine(taken.float(), first)) == pytest.approx(1.0, abs=1e-5)
    # All weights have filters, so the first axis is as long as they are.
    weights = theta[first != 0]
    assert norm(first) == pytest.approx(norm(weights), rel=EPS32)
    assert (plane.x_range, plane.y_range) == ((-1.0, 1.0), (-1.0, 1.0))


def test_orthogonalize_in_float64() -> None:
    first = torch.tensor([1.0, 1.0]).repeat(5000)
    nearly = first + 1e-3 * torch.tensor([1.0, -1.0]).repeat(5000)
    left = orthogonalize(first, nearly)
    assert left.dtype == torch.float32
    # Sums in float32 would leave a cosine of about 1e-4 here. The residue of the subtraction
    # keeps the rounding of `nearly`, 6e-8 beside 1e-3, only as far as it is orthogonal.
    assert abs(cosine(first, left)) <= EPS32


def test_model_of_zeros_has_no_random_direction() -> None:
    model = _network()
    for parameter in model.parameters():
        parameter.data.zero_()
    with (
        Objective(model, _samples()) as objective,
        pytest.raises(UsageError, match="no weight to filter-normalise"),
    ):
        random_plane(objective, 0)


class _OneWeight(nn.Module):
    """All it can learn is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.flatten(1)[:, :3]


def test_one_weight_spans_no_plane() -> None:
    with (
        Objective(_OneWeight(), _samples()) as objective,
        pytest.raises(UsageError, match="span no plane") as error,
    ):
        random_plane(objective, 0)
    assert "lgo interp" in str(error.value.hint)


def test_gradient_direction_is_the_unit_gradient_and_uphill() -> None:
    with Objective(_network(), _samples(), dtype=torch.float64) as objective:
        direction = gradient_direction(objective)
        _, gradient = objective.loss_and_gradient()
        assert norm(direction) == pytest.approx(1.0, rel=1e-14)
        assert dot(direction, gradient) == pytest.approx(norm(gradient), rel=1e-14)
        assert objective.loss(objective.theta + 1e-4 * direction) > objective.center.loss


def test_stationary_point_has_no_gradient_direction() -> None:
    with torch.random.fork_rng():
        model = nn.Linear(2, 2, bias=False)
    model.weight.data.copy_(torch.eye(2))
    # The one-hot targets are met to the bit: the gradient of the squared error is zero.
    samples = Samples(torch.eye(2), torch.tensor([0, 1]))
    with (
        Objective(model, samples, LossFunction("squared_error")) as objective,
        pytest.raises(NumericsError, match="norm is 0"),
    ):
        gradient_direction(objective)


def test_eigenvectors_are_never_rescaled() -> None:
    with Objective(_network(), _samples()) as objective:
        vectors = torch.stack([_unit(objective.dim, 1), _unit(objective.dim, 2)])
        plane = eigen_plane(objective, torch.tensor([12.34, 5.6, 1.0]), vectors)
    assert torch.equal(plane.directions, vectors.float())
    assert plane.axis_labels == (
        "x: eigenvector 1 (λ = 12.34), unit norm",
        "y: eigenvector 2 (λ = 5.6), unit norm",
    )


def _planar_trajectory(theta: Tensor) -> tuple[list[Tensor], Tensor]:
    """Points in a plane through θ, and their coordinates in an orthonormal basis of it."""
    u = _unit(len(theta), 5)
    v = _unit(len(theta), 6)
    v = v - torch.dot(u, v) * u
    v = v / v.norm()
    coordinates = torch.tensor([[5.0, -1.0], [3.0, 1.5], [2.0, 1.0], [0.5, 0.2]])
    points = coordinates.double() @ torch.stack([u, v]) + theta.double()
    return [point.to(theta.dtype) for point in points], coordinates.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [7, 2**20])
def test_pca_of_a_planar_trajectory_reproduces_it(
    dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directions, "BLOCK", block)
    with Objective(_network(), _samples(), dtype=dtype) as objective:
        theta = objective.theta
        points, coordinates = _planar_trajectory(theta)
        plane = pca_plane(objective, points, ["a", "b", "c", "d"])
    assert plane.trajectory is not None
    # Weights and axes are rounded to the dtype: eps of the largest distance, for each of the two.
    room = 4 * torch.finfo(dtype).eps * (norm(theta) + 6.0)
    for point, (x, y) in zip([*points, theta], plane.trajectory, strict=True):
        back = theta.double() + x * plane.directions[0].double() + y * plane.directions[1].double()
        assert float((back - point.double()).norm()) <= room
    measured = torch.tensor(plane.trajectory[:-1], dtype=torch.float64)
    torch.testing.assert_close(
        torch.cdist(measured, measured), torch.cdist(coordinates, coordinates), rtol=0, atol=room
    )
    assert plane.trajectory[-1] == (0.0, 0.0)
    assert plane.trajectory_labels == ("a", "b", "c", "d", "end")
    assert plane.trajectory[0][0] < 0
    assert plane.trajectory[0][1] < 0
    assert plane.explained_variance is not None
    assert sum(plane.explained_variance) == pytest.approx(1.0, abs=room**2)
    squares = torch.linalg.svdvals(coordinates).square()
    expected = (squares / squares.sum()).tolist()
    assert plane.explained_variance == pytest.approx(expected, abs=room)
    for axis in plane.directions:
        assert norm(axis) == pytest.approx(1.0, abs=torch.finfo(dtype).eps)
    # v₁ᵀGv₂ / (σ₁σ₂), of a 4 × 4 Gram matrix that float64 holds to eps of σ₁², then the cast.
    ratio = math.sqrt(float(squares[0] / squares[1]))
    bound = 4 * torch.finfo(torch.float64).eps * ratio + torch.finfo(dtype).eps
    assert abs(plane.axis_cosine) <= bound


def test_pca_range_holds_the_trajectory_with_one_margin() -> None:
    with Objective(_network(), _samples()) as objective:
        plane = pca_plane(objective, _planar_trajectory(objective.theta)[0], list("abcd"))
    assert plane.trajectory is not None
    xs, ys = zip(*plane.trajectory, strict=True)
    extent = max(max(xs) - min(xs), max(ys) - min(ys))
    for (low, high), values in ((plane.x_range, xs), (plane.y_range, ys)):
        # Bounds have three digits of the extent.
        assert min(values) - low == pytest.approx(MARGIN * extent, abs=0.006 * extent)
        assert high - max(values) == pytest.approx(MARGIN * extent, abs=0.006 * extent)


def test_flat_but_resolved_trajectory_has_a_plane() -> None:
    with Objective(_network(), _samples()) as objective:
        theta = objective.theta
        u, v = (_unit(objective.dim, seed).float() for seed in (5, 6))
        # A second axis of 1e-3 of the first: far above rounding, 1e-7 of ‖θ‖ ≈ 3.
        plane = pca_plane(objective, [theta + 10 * u, theta + 5 * u + 0.01 * v], ["a", "b"])
    assert plane.trajectory is not None
    assert abs(plane.trajectory[1][1]) > 1e-3


@pytest.mark.parametrize("step", [0.1, 0.01, 1e-3, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_on_a_line_span_no_plane_whatever_rounding_says(
    step: float, dtype: torch.dtype
) -> None:
    """Weights rounded to float32 leave the line; that is no direction to draw a picture of."""
    with Objective(_network(), _samples(), dtype=dtype) as objective:
        theta = objective.theta
        shift = (step * norm(theta) * _unit(objective.dim, 7)).to(theta.dtype)
        points = [(theta + k * shift).float().to(dtype) for k in (3.0, 2.0, 1.0)]
        with pytest.raises(InputError, match="on one line") as error:
            pca_plane(objective, points, list("abc"))
        assert "--save-every" in str(error.value.hint)
        for a, b in ((points[2], points[1]), (points[0], points[2]), (points[2], points[0])):
            with pytest.raises(InputError, match="on one line"):
                checkpoints_plane(objective, a, b)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_distinct_checkpoints(count: int) -> None:
    with Objective(_network(), _samples()) as objective:
        point = objective.theta + 1.0
        with pytest.raises(InputError, match=f"span no plane: {count} on the way"):
            pca_plane(objective, [point] * count, ["x"] * count)
        with pytest.raises(InputError, match="span no plane: 3 on the way"):
            pca_plane(objective, [objective.theta] * 3, ["x"] * 3)


def test_plane_through_three_points() -> None:
    with Objective(_network(), _samples(), dtype=torch.float64) as objective:
        theta = objective.theta
        a, b = theta + 3 * _unit(objective.dim, 8), theta + 4 * _unit(objective.dim, 9)
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
    with Objective(_network(), _samples()) as objective:
        theta = objective.theta
        other = theta + _unit(objective.dim, 8).float()
        with pytest.raises(InputError, match="A is the run itself"):
            checkpoints_plane(objective, theta.clone(), other)
        for b in (theta.clone(), other.clone()):
            with pytest.raises(InputError, match="on one line") as error:
                checkpoints_plane(objective, other, b)
            assert "lgo interp --to" in str(error.value.hint)
