"""The plane of a trajectory: what it reproduces, what it leaves out, and what it holds."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from image_network import images, network, unit
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from lgo_cli.config import BatchNormPolicy
from lgo_cli.errors import InputError
from lgo_cli.landscape import directions, trajectory
from lgo_cli.landscape.batchnorm import BatchNorm
from lgo_cli.landscape.planes import MARGIN, checkpoints_plane, random_plane
from lgo_cli.landscape.trajectory import pca_plane, trajectory_heights
from lgo_cli.objective import Objective
from lgo_cli.vectors import norm


def lazy(points: Sequence[Tensor]) -> list[Callable[[], Tensor]]:
    """Checkpoints that are read when they are asked for."""
    return [point.clone for point in points]


def _planar_trajectory(theta: Tensor) -> tuple[list[Tensor], Tensor]:
    """Points in a plane through θ, and their coordinates in an orthonormal basis of it."""
    u = unit(len(theta), 5)
    v = unit(len(theta), 6)
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
    with Objective(network(), images(), dtype=dtype) as objective:
        theta = objective.theta
        points, coordinates = _planar_trajectory(theta)
        plane = pca_plane(objective, lazy(points), ["a", "b", "c", "d"])
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
    assert max(plane.trajectory_distances) <= room
    assert plane.trajectory_distances[-1] == 0.0
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
    with Objective(network(), images()) as objective:
        plane = pca_plane(objective, lazy(_planar_trajectory(objective.theta)[0]), list("abcd"))
    assert plane.trajectory is not None
    xs, ys = zip(*plane.trajectory, strict=True)
    extent = max(max(xs) - min(xs), max(ys) - min(ys))
    for (low, high), values in ((plane.x_range, xs), (plane.y_range, ys)):
        # Bounds have three digits of the extent.
        assert min(values) - low == pytest.approx(MARGIN * extent, abs=0.006 * extent)
        assert high - max(values) == pytest.approx(MARGIN * extent, abs=0.006 * extent)


def test_flat_but_resolved_trajectory_has_a_plane() -> None:
    with Objective(network(), images()) as objective:
        theta = objective.theta
        u, v = (unit(objective.dim, seed).float() for seed in (5, 6))
        # A second axis of 1e-3 of the first: far above rounding, 1e-7 of ‖θ‖ ≈ 3.
        plane = pca_plane(objective, lazy([theta + 10 * u, theta + 5 * u + 0.01 * v]), ["a", "b"])
    assert plane.trajectory is not None
    assert abs(plane.trajectory[1][1]) > 1e-3


@pytest.mark.parametrize("step", [0.1, 0.01, 1e-3, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_on_a_line_span_no_plane_whatever_rounding_says(
    step: float, dtype: torch.dtype
) -> None:
    """Weights rounded to float32 leave the line; that is no direction to draw a picture of."""
    with Objective(network(), images(), dtype=dtype) as objective:
        theta = objective.theta
        shift = (step * norm(theta) * unit(objective.dim, 7)).to(theta.dtype)
        points = [(theta + k * shift).float().to(dtype) for k in (3.0, 2.0, 1.0)]
        with pytest.raises(InputError, match="on one line") as error:
            pca_plane(objective, lazy(points), list("abc"))
        assert "--save-every" in str(error.value.hint)
        for a, b in ((points[2], points[1]), (points[0], points[2]), (points[2], points[0])):
            with pytest.raises(InputError, match="on one line"):
                checkpoints_plane(objective, a, b)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_distinct_checkpoints(count: int) -> None:
    with Objective(network(), images()) as objective:
        point = objective.theta + 1.0
        with pytest.raises(InputError, match=f"span no plane: {count} on the way"):
            pca_plane(objective, lazy([point] * count), ["x"] * count)
        with pytest.raises(InputError, match="span no plane: 3 on the way"):
            pca_plane(objective, lazy([objective.theta] * 3), ["x"] * 3)


def _walk(theta: Tensor, count: int) -> list[Tensor]:
    """Points of a random walk that ends at θ."""
    steps = [unit(len(theta), 20 + k) for k in range(count)]
    return [theta + torch.stack(steps[k:]).sum(0) for k in range(count)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_reading_by_blocks_gives_the_same_plane(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than two blocks of checkpoints are alive at a time."""
    with Objective(network(), images(), dtype=torch.float64) as objective:
        points = _walk(objective.theta, 7)
        at_once = pca_plane(objective, lazy(points), list("abcdefg"))
        monkeypatch.setattr(trajectory, "HELD_BYTES", size * 8 * objective.dim)
        alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        most = reads = 0

        def reader(point: Tensor) -> Callable[[], Tensor]:
            def read() -> Tensor:
                nonlocal most, reads
                fresh = point.clone()
                alive.add(fresh)
                most, reads = max(most, len(alive)), reads + 1
                return fresh

            return read

        streamed = pca_plane(objective, [reader(point) for point in points], list("abcdefg"))
    assert most <= 2 * size
    assert reads == sum(k // size + 1 for k in range(7)) + 14
    # The same sums in another order: eps of the largest, over the gap of the eigenvalues.
    torch.testing.assert_close(streamed.directions, at_once.directions, rtol=0, atol=1e-12)
    assert streamed.trajectory_distances == pytest.approx(at_once.trajectory_distances, abs=1e-12)


def test_what_the_plane_leaves_out() -> None:
    """Distances from the plane, and explained variance, against a dense SVD."""
    with Objective(network(), images(), dtype=torch.float64) as objective:
        theta = objective.theta
        points = _walk(theta, 6)
        plane = pca_plane(objective, lazy(points), list("abcdef"))
    deltas = torch.stack(points) - theta
    _, lengths, axes = torch.linalg.svd(deltas, full_matrices=False)
    beside = deltas - deltas @ axes[:2].T @ axes[:2]
    assert plane.trajectory_distances[:-1] == pytest.approx(beside.norm(dim=1).tolist(), rel=1e-11)
    assert min(plane.trajectory_distances[:-1]) > 0.1
    share = lengths.square() / lengths.square().sum()
    assert plane.explained_variance == pytest.approx(share[:2].tolist(), rel=1e-12)


def _states(
    objective: Objective, points: Sequence[Tensor]
) -> list[Callable[[], dict[str, Tensor]]]:
    """Checkpoints of these parameters that have the objective's buffers, read when asked for."""
    own = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
    names, split = objective.layout.names, objective.layout.split
    return [lambda p=point: own | dict(zip(names, split(p), strict=True)) for point in points]  # type: ignore[misc]


def test_heights_differ_off_the_plane_only() -> None:
    with Objective(network(), images(), dtype=torch.float64) as objective:
        theta = objective.theta

        def at(plane_directions: Tensor) -> Callable[[float, float], float]:
            first, second = plane_directions
            return lambda x, y: objective.loss(theta + x * first + y * second)

        for points, planar in ((_planar_trajectory(theta)[0], True), (_walk(theta, 4), False)):
            plane = pca_plane(objective, lazy(points), list("abcd"))
            states = _states(objective, points)
            heights = trajectory_heights(objective, plane, states, at(plane.directions))
            # Checkpoints without buffers of their own are drawn as what they are.
            assert heights.own_loss == heights.loss
            assert heights.loss[:-1] == tuple(objective.loss(point) for point in points)
            assert heights.loss[-1] == objective.center.loss == heights.surface[-1]
            gaps = [abs(a - b) for a, b in zip(heights.loss, heights.surface, strict=True)]
            # On the plane the two are one point but for rounding; off it the walk left by 0.5.
            assert max(gaps) <= 1e-12 if planar else max(gaps) > 1e-3
        with pytest.raises(ValueError, match="not that of these checkpoints"):
            trajectory_heights(objective, random_plane(objective, 0), states, at)  # type: ignore[arg-type]


def _trained(seed: int) -> nn.Sequential:
    """The network with weights and running statistics of its own."""
    model = network()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model(images().inputs)
    return model


@pytest.mark.parametrize("policy", ["frozen", "batch"])
def test_own_loss_is_of_the_checkpoint_with_its_own_buffers(policy: BatchNormPolicy) -> None:
    twins = [_trained(seed) for seed in (1, 2)]
    own_losses = []
    for twin in twins:
        with Objective(twin, images(), dtype=torch.float64) as itself:
            own_losses.append(itself.center.loss)
    model = _trained(0)
    with Objective(model, images(), dtype=torch.float64) as objective:
        points = [parameters_to_vector(twin.parameters()).detach() for twin in twins]
        plane = pca_plane(objective, lazy(points), ["a", "b"])
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        states = [twin.state_dict for twin in twins]
        batchnorm = BatchNorm(objective, policy)
        heights = trajectory_heights(objective, plane, states, lambda _x, _y: 0.0, batchnorm)
        after = model.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert heights.own_loss == (*own_losses, objective.center.loss)
    # The picture has the run's statistics, or each batch's, which are others.
    assert all(abs(a - b) > 1e-4 for a, b in zip(heights.loss[:2], own_losses, strict=True))
    assert (heights.loss[2] == heights.own_loss[2]) == (policy == "frozen")
