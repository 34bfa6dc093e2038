"""Single directions: what they are made of, and when there is none."""

from __future__ import annotations

import pytest
import torch
from image_network import images, network, unit
from small_networks import dense_hessian
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from lgo_cli.config import Normalization
from lgo_cli.errors import NumericsError, UsageError
from lgo_cli.landscape.directions import (
    gradient_complaints,
    gradient_direction,
    orthogonalize,
    project,
    random_direction,
)
from lgo_cli.landscape.planes import random_plane
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples
from lgo_cli.seeding import standard_normal
from lgo_cli.vectors import cosine, dot, flatten, norm

EPS32 = torch.finfo(torch.float32).eps


def test_random_direction_has_the_filters_norms_and_moves_weights_only() -> None:
    model = network()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    with Objective(model, images()) as objective:
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
    with Objective(network(), images()) as objective:
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
        with Objective(network(), images(), dtype=dtype) as objective:
            drawn.append(random_direction(objective, 0, "x"))
            assert drawn[-1].dtype == dtype
    single, double = (direction.double() for direction in drawn)
    # The draw, the scale and the product are each rounded to float32.
    torch.testing.assert_close(single, double, rtol=4 * EPS32, atol=0)


def test_random_plane_is_normalised_before_it_is_orthogonalised() -> None:
    with Objective(network(), images()) as objective:
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
    model = network()
    for parameter in model.parameters():
        parameter.data.zero_()
    with (
        Objective(model, images()) as objective,
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
        Objective(_OneWeight(), images()) as objective,
        pytest.raises(UsageError, match="span no plane") as error,
    ):
        random_plane(objective, 0)
    assert "lgo interp" in str(error.value.hint)


def test_gradient_direction_is_the_unit_gradient_and_uphill() -> None:
    with Objective(network(), images(), dtype=torch.float64) as objective:
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


class _Float32Only(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def test_gradient_that_float32_loses_is_said() -> None:
    """Newton's steps in float64 lead to a convex loss's minimum, where float32 has but noise."""
    draw = torch.Generator().manual_seed(0)
    samples = Samples(torch.randn(300, 4, generator=draw), torch.arange(300) % 3)
    with torch.random.fork_rng():
        model = nn.Linear(4, 3)
    with Objective(model, samples) as objective:
        assert gradient_complaints(objective) == ()
    for _ in range(8):
        with Objective(model, samples, dtype=torch.float64) as objective:
            _, gradient = objective.loss_and_gradient()
            # Adding a number to all outputs changes nothing: the Hessian has a null space.
            step = torch.linalg.pinv(dense_hessian(objective), hermitian=True) @ gradient
            theta = objective.theta - step
        vector_to_parameters(theta.float(), model.parameters())
    with Objective(model, samples) as objective:
        before = objective.theta.clone()
        (complaint,) = gradient_complaints(objective)
        assert "lost in rounding" in complaint
        assert complaint.endswith("--dtype float64")
        assert torch.equal(flatten(objective.parameters), before)
        assert objective.parameters[0].dtype == torch.float32
    with Objective(model, samples, dtype=torch.float64) as objective:
        assert gradient_complaints(objective) == ()
    model.__class__ = _Float32Only
    with Objective(model, samples) as objective:
        assert gradient_complaints(objective) == ()  # there is nothing to compare with


def test_projection_is_the_nearest_point() -> None:
    """Oblique directions of unequal length, against least squares by QR."""
    with Objective(network(), images(), dtype=torch.float64) as objective:
        theta, dim = objective.theta, objective.dim
    first, second = 3 * unit(dim, 1), 0.2 * unit(dim, 2) + 0.1 * unit(dim, 1)
    point = theta + 2 * first - 5 * second + unit(dim, 3)
    (x, y), distance = project(theta, torch.stack([first, second]), point)
    axes = torch.stack([first, second], dim=1)
    expected = torch.linalg.lstsq(axes, (point - theta)[:, None])
    # Entries of 10 solved with a condition number of the Gram matrix of about 10³.
    assert (x, y) == pytest.approx(expected.solution[:, 0].tolist(), rel=1e-11)
    beside = point - theta - axes @ expected.solution[:, 0]
    assert distance == pytest.approx(norm(beside), rel=1e-12)
    on_it, nothing = project(theta, torch.stack([first, second]), theta + 2 * first - second)
    assert on_it == pytest.approx((2.0, -1.0), rel=1e-12)
    # A few roundings of entries below ‖θ‖ + ‖δ‖ ≈ 10.
    assert nothing <= 1e-13


@pytest.mark.parametrize("normalization", ["layer", "none"])
def test_other_normalisations_scale_layers_and_the_whole(normalization: Normalization) -> None:
    with Objective(network(), images(), dtype=torch.float64) as objective:
        theta, layout = objective.theta, objective.layout
        direction = random_direction(objective, 0, "x", normalization=normalization)
    drawn = standard_normal(layout.dim, 0, "x")
    if normalization == "none":
        # Isotropic: the draw itself, biases and norm layers too, as long as θ.
        assert norm(direction) == pytest.approx(norm(theta), rel=1e-14)
        assert cosine(direction, drawn) == pytest.approx(1.0, rel=1e-14)
        return
    pieces = zip(*(layout.split(v) for v in (direction, theta, drawn)), layout.names, strict=True)
    for d, w, z, name in pieces:
        if name in ("0.weight", "4.weight"):
            torch.testing.assert_close(d, z * (w.norm() / z.norm()), rtol=1e-14, atol=0)
        else:
            assert not d.any(), name
