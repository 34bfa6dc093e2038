"""Curves against closed forms, and their training against autograd and exhaustive search."""

from __future__ import annotations

import io
import itertools
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import NETWORKS, make
from torch import Tensor, nn
from torch.func import functional_call

from lgo_cli.config import CurveKind
from lgo_cli.data.loading import load_dataset
from lgo_cli.errors import InputError, UsageError
from lgo_cli.landscape.curve_training import CurveTraining, TrainedCurve, train_curve
from lgo_cli.landscape.curves import (
    Arc,
    Bezier,
    Curve,
    PolyChain,
    bend_plane,
    straight,
)
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.results import Recipe
from lgo_cli.runs.steps.curve import curve_arrays
from lgo_cli.samples import Samples
from lgo_cli.seeding import generator
from lgo_cli.training.loop import DivergenceError, Training

RECIPE = Recipe(
    epochs=1, batch_size=1000, optimizer="sgd", lr=0.5, momentum=0.0, nesterov=False,
    weight_decay=0.0, schedule="constant", warmup_epochs=0, augment="none",
    loss="cross_entropy", label_smoothing=0.0,
)  # fmt: skip
KINDS: tuple[CurveKind, ...] = ("bezier", "polychain")
DOUBLE_ROUNDING = 1e-13


def _recipe(**values: Any) -> Recipe:
    return RECIPE.model_copy(update=values)


def _vectors(num: int, dim: int = 7, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(num)
    return list(torch.randn(num, dim, generator=draw, dtype=torch.float64).to(dtype))


def _curve(kind: type[Bezier] | type[PolyChain], points: list[Tensor]) -> Bezier | PolyChain:
    return kind(points[0], tuple(points[1:-1]), points[-1])


@pytest.mark.parametrize("num_bends", [1, 2, 5])
@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.83, 1.0])
def test_bezier_is_de_casteljaus(num_bends: int, t: float) -> None:
    points = _vectors(num_bends + 2)
    level = points
    while len(level) > 1:
        level = [(1 - t) * a + t * b for a, b in itertools.pairwise(level)]
    point = _curve(Bezier, points).point(t)
    torch.testing.assert_close(point, level[0], rtol=0, atol=DOUBLE_ROUNDING)


@pytest.mark.parametrize("num_bends", [1, 2, 5])
def test_polychain_is_linear_interpolation(num_bends: int) -> None:
    points = _vectors(num_bends + 2)
    curve = _curve(PolyChain, points)
    knots = np.linspace(0, 1, num_bends + 2)
    for t in np.linspace(0, 1, 23):
        expected = [np.interp(t, knots, [float(p[i]) for p in points]) for i in range(7)]
        np.testing.assert_allclose(curve.point(t).numpy(), expected, rtol=0, atol=DOUBLE_ROUNDING)


def _tangent(curve: Curve, t: float) -> Tensor:
    """dθ/dt [P], by the velocities of the coefficients."""
    terms = zip(curve.velocity(np.array([t]))[0].tolist(), curve.points, strict=True)
    return torch.stack([c * point for c, point in terms]).sum(dim=0)


def test_kinks_are_the_bends_to_the_bit() -> None:
    """Also where k / n times n is not k, as 5 / 49 · 49 is not."""
    for num_bends in (1, 2, 6, 48, 60):
        points = _vectors(num_bends + 2, dtype=torch.float32)
        curve = _curve(PolyChain, points)
        for number, kink in enumerate(curve.kinks(), start=1):
            assert torch.equal(curve.point(float(kink)), points[number])
            after = (num_bends + 1) * (points[number + 1].double() - points[number].double())
            # Float32 points: (K + 1) times their difference, a few roundings of either.
            tangent = _tangent(curve, float(kink)).double()
            torch.testing.assert_close(tangent, after, rtol=0, atol=1e-6 * (num_bends + 1) * 8)


@pytest.mark.parametrize("kind", [Bezier, PolyChain])
def test_ends_are_the_ends_to_the_bit(kind: type[Bezier] | type[PolyChain]) -> None:
    points = _vectors(3, 1000, torch.float32)
    curve = _curve(kind, points)
    assert torch.equal(curve.point(0.0), points[0])
    assert torch.equal(curve.point(1.0), points[-1])
    assert curve.point(0.0) is not curve.start
    for t in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="for t from 0 to 1"):
            curve.point(t)


def test_an_untrained_curve_is_the_line() -> None:
    start, end = _vectors(2)
    for curve in (straight("bezier", start, end, 3), straight("polychain", start, end, 3)):
        for t in (0.0, 0.2, 0.5, 0.9):
            expected = (1 - t) * start + t * end
            torch.testing.assert_close(curve.point(t), expected, rtol=0, atol=DOUBLE_ROUNDING)
        length = float((end - start).norm())
        assert curve.arc_length() == pytest.approx(length, rel=DOUBLE_ROUNDING)
    with pytest.raises(UsageError, match="at least one bend, not 0"):
        straight("bezier", start, end, 0)


def test_tangent_is_the_derivative() -> None:
    curves = [
        _curve(Bezier, _vectors(5)),
        _curve(PolyChain, _vectors(5)),
        Arc.between(*_vectors(2)),
    ]
    step = 1e-5
    for curve in curves:
        for t in (0.1, 0.3, 0.7):
            difference = (curve.point(t + step) - curve.point(t - step)) / (2 * step)
            # Central differences: a third derivative of order 100 times step²/6, rounding ε/step.
            torch.testing.assert_close(_tangent(curve, t), difference, rtol=0, atol=1e-8)


def test_arc_length_of_a_parabola() -> None:
    """These control points draw y = x² over [−1, 1], whose length is √5 + arsinh(2) / 2."""
    points = torch.tensor([[-1.0, 1], [0, -1], [1, 1]], dtype=torch.float64)
    curve = _curve(Bezier, list(points))
    assert curve.point(0.75).tolist() == [0.5, 0.25]
    whole = math.sqrt(5) + math.asinh(2) / 2
    # Sixteen nodes on each of 64 panels: exact to rounding for what is analytic nearby.
    assert curve.arc_length() == pytest.approx(whole, rel=DOUBLE_ROUNDING)


def test_arc_length_of_chains_and_of_a_curve_that_turns_back() -> None:
    points = _vectors(4)
    chain = _curve(PolyChain, points)
    sides = [float((b - a).norm()) for a, b in itertools.pairwise(points)]
    assert chain.arc_length() == pytest.approx(sum(sides), rel=DOUBLE_ROUNDING)
    # Out to half the bend and back, with speed zero at the turn: there the integrand has a corner,
    # inside one panel of 64 at worst; the documented 1e-6.
    zero = torch.zeros(7, dtype=torch.float64)
    for scale in (1.0, 0.7):
        back = Bezier(zero, (points[1],), (1 - scale) * points[1])
        turn = 1 / (1 + scale)
        there = 2 * turn * (1 - turn) + turn * turn * (1 - scale)
        length = float(points[1].norm()) * (2 * there - (1 - scale))
        assert back.arc_length() == pytest.approx(length, rel=1e-6)


def test_length_between_close_ends_does_not_cancel() -> None:
    """Ends a millionth of their norm apart: squares of norms alone would leave no digit."""
    start, offset = _vectors(2)
    end = start + 1e-7 * offset
    chord = float((end - start).norm())
    for curve in (straight("bezier", start, end), straight("polychain", start, end)):
        # The midpoint is rounded to 1e-16 where the chord is 1e-7 long.
        assert curve.arc_length() == pytest.approx(chord, rel=1e-8)


def test_plane_of_one_bend_holds_the_curve() -> None:
    for kind in (Bezier, PolyChain):
        curve = _curve(kind, _vectors(3, 50))
        plane = bend_plane(curve)
        assert plane is not None
        identity = torch.eye(2, dtype=torch.float64)
        gram = plane.directions @ plane.directions.T
        torch.testing.assert_close(gram, identity, rtol=0, atol=DOUBLE_ROUNDING)
        assert plane.coordinates[1, 1] > 0
        assert plane.coordinates[-1, 1] == pytest.approx(0, abs=DOUBLE_ROUNDING)
        assert plane.distances == pytest.approx(np.zeros(3), abs=1e-12)
        for t in (0.2, 0.5, 0.9):
            x, y = (curve.coefficients(np.array([t])) @ plane.coordinates)[0]
            point = curve.start + x * plane.directions[0] + y * plane.directions[1]
            torch.testing.assert_close(point, curve.point(t), rtol=0, atol=1e-12)


def test_plane_of_several_bends_leaves_out_the_least() -> None:
    points = _vectors(5, 50)
    plane = bend_plane(_curve(Bezier, points))
    assert plane is not None
    chord = points[-1] - points[0]
    chord = chord / chord.norm()
    sides = torch.stack([p - points[0] for p in points[1:-1]])
    sides = sides - torch.outer(sides @ chord, chord)
    least = torch.linalg.svdvals(sides)[1:].square().sum()
    assert float(np.sum(plane.distances**2)) == pytest.approx(float(least), rel=1e-12)


def test_plane_of_a_curve_is_written_in_units_of_the_line() -> None:
    points = _vectors(5, 50)
    trained = TrainedCurve(_curve(Bezier, points), (), 0, 0, uses_batch_statistics=False)
    arrays = curve_arrays(trained)
    assert np.array_equal(arrays["bends"], torch.stack(list(points[1:-1])))
    directions = arrays["directions"]
    away = torch.stack(list(points)).numpy() - points[0].numpy()
    length = np.linalg.norm(away[-1])
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), length)
    np.testing.assert_allclose(arrays["plane_coordinates"][[0, -1]], [[0, 0], [1, 0]], atol=1e-12)
    off = np.linalg.norm(away - arrays["plane_coordinates"] @ directions, axis=1)
    np.testing.assert_allclose(arrays["plane_distances"], off / length, atol=1e-12)


def test_plane_is_drawn_through_kinks_and_turned_to_the_farthest_bend() -> None:
    for num_points in (4, 5, 6, 7):
        chain = _curve(PolyChain, _vectors(num_points, 50))
        plane = bend_plane(chain)
        assert plane is not None
        sides = plane.coordinates[1:-1, 1]
        assert sides[np.argmax(np.abs(sides))] > 0
        gaps = np.abs(plane.path(chain)[:, None] - plane.coordinates[None]).max(axis=2)
        assert gaps.min(axis=0).max() <= 1e-12


def test_plane_of_a_nearly_straight_curve_has_orthogonal_axes() -> None:
    start, end, offset = _vectors(3, 50)
    plane = bend_plane(Bezier(start, ((start + end) / 2 + 1e-9 * offset,), end))
    assert plane is not None
    assert abs(float(plane.directions[0] @ plane.directions[1])) <= DOUBLE_ROUNDING


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_straight_curve_spans_no_plane(dtype: torch.dtype) -> None:
    start, end = _vectors(2, 1000, dtype)
    assert bend_plane(straight("bezier", start, end, 2)) is None
    with pytest.raises(InputError, match="one point"):
        bend_plane(Bezier(start, (end,), start))


def test_spherical_turns_at_constant_speed_and_grows_linearly() -> None:
    a = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    b = 3 * torch.tensor([math.cos(2.0), math.sin(2.0), 0.0], dtype=torch.float64)
    for t in (0.25, 0.5, 0.8):
        radius, angle = 2 + t, 2.0 * t
        direction = [math.cos(angle), math.sin(angle), 0.0]
        expected = radius * torch.tensor(direction, dtype=torch.float64)
        point = Arc.between(a, b).point(t)
        torch.testing.assert_close(point, expected, rtol=0, atol=DOUBLE_ROUNDING)
        assert float(point.norm()) == pytest.approx(radius, rel=DOUBLE_ROUNDING)
    arc = Arc.between(a, 2 * b / 3)
    assert arc.angle == pytest.approx(2.0, rel=DOUBLE_ROUNDING)
    line = (a + 2 * b / 3) / 2
    assert float(line.norm()) == pytest.approx(2 * math.cos(1.0), rel=DOUBLE_ROUNDING)
    # Of radius 2 and angle 2.
    assert arc.arc_length() == pytest.approx(4.0, rel=DOUBLE_ROUNDING)


def test_spherical_next_to_opposite_ends_is_rounded_once() -> None:
    a, b = _vectors(2, 1000, torch.float32)
    end = -a + 1e-3 * b
    point = Arc.between(a, end).point(0.5).double()
    exact = Arc.between(a.double(), end.double()).point(0.5)
    # Half an ulp of each entry; the two terms that are added are a thousand times as long.
    rounding = torch.finfo(torch.float32).eps / 2
    torch.testing.assert_close(point, exact, rtol=rounding, atol=1000 * DOUBLE_ROUNDING)


def test_spherical_ends_are_exact() -> None:
    a, b = _vectors(2, 1000, torch.float32)
    assert torch.equal(Arc.between(a, b).point(0.0), a)
    assert torch.equal(Arc.between(a, b).point(1.0), b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spherical_is_the_line_where_both_are_the_same(dtype: torch.dtype) -> None:
    rounding = torch.finfo(dtype).eps
    a = torch.tensor([1.0, 0.0], dtype=dtype)
    angles = {True: 0.9 * math.sqrt(8 * rounding), False: 1.2 * math.sqrt(8 * rounding)}
    for is_straight, angle in angles.items():
        b = torch.tensor([math.cos(angle), math.sin(angle)], dtype=dtype)
        arc = Arc.between(a, b)
        assert arc.is_straight is is_straight
        # Arc and chord are Ω²/8 apart at most: ε just below the threshold, 1.44 ε just above,
        # beside a rounding of each.
        apart = (arc.point(0.5).double() - (a.double() + b.double()) / 2).norm()
        assert float(apart) <= 3 * rounding
    assert Arc.between(a, 2 * a).is_straight
    assert Arc.between(a, 2 * a).point(0.5).tolist() == [1.5, 0.0]


def test_spherical_refuses_what_has_no_arc() -> None:
    a, b = _vectors(2)
    with pytest.raises(InputError, match="opposite directions") as caught:
        Arc.between(a, -2 * a)
    assert caught.value.hint
    with pytest.raises(InputError, match="opposite directions"):
        Arc.between(a, -a + 1e-9 * b)
    assert torch.isfinite(Arc.between(a, -a + 1e-3 * b).point(0.5)).all()
    with pytest.raises(InputError, match="is zero"):
        Arc.between(a, 0 * a)


class _Moving(nn.Module):
    """Replaces a buffer in training mode, and may return more than logits."""

    def __init__(self, *, is_odd: bool) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)
        self.register_buffer("ema", torch.zeros(3))
        self.is_odd = is_odd

    def forward(self, x: Tensor) -> Any:
        outputs = self.head(x)
        if not self.training:
            return outputs + self.ema
        self.ema = self.ema + outputs.detach().mean(0)
        return (outputs, outputs) if self.is_odd else outputs


@pytest.mark.parametrize("is_odd", [False, True])
def test_training_mode_is_looked_at_and_its_buffers_are_put_back(is_odd: bool) -> None:
    _, samples, _ = make("relu")
    with torch.random.fork_rng():
        model = _Moving(is_odd=is_odd)
    refused = pytest.raises(InputError, match="in training mode the model must return")
    with Objective(model, samples) as objective:
        ema, end = model.ema, objective.theta + 1
        with refused if is_odd else nullcontext():
            train_curve(objective, objective.theta, end, _recipe(), train=samples)
        assert model.ema is ema
        assert not ema.any()
        assert objective.evaluate() == objective.center


def _first_t(seed: int) -> float:
    draw = generator(seed, "curve", "t", 0)
    return float(torch.rand((), dtype=torch.float64, generator=draw))


def _one_step(
    name: str, kind: CurveKind, recipe: Recipe
) -> tuple[TrainedCurve, list[Tensor], list[Tensor], Tensor, list[float]]:
    """Bends after one full-batch step, bends before, their autograd gradients, θ(t), dθ/dbend."""
    model, samples, loss = make(name)
    recipe = recipe.model_copy(update={"loss": loss.name, "label_smoothing": loss.label_smoothing})
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        draw = torch.Generator().manual_seed(9)
        end = objective.theta + torch.randn(objective.dim, generator=draw, dtype=torch.float64)
        trained = train_curve(
            objective, objective.theta, end, recipe, train=samples, kind=kind, num_bends=2, seed=4
        )
        t = _first_t(seed=4)
        before = [bend.requires_grad_() for bend in straight(kind, objective.theta, end, 2).bends]
        if kind == "bezier":
            factors = [3 * t * (1 - t) ** 2, 3 * t * t * (1 - t)]
        else:
            factors = [max(0.0, 1 - abs(3 * t - 1)), max(0.0, 1 - abs(3 * t - 2))]
        c_end = t**3 if kind == "bezier" else max(0.0, 3 * t - 2)
        c_start = 1 - c_end - sum(factors)
        theta = c_start * objective.theta + c_end * end
        theta = theta + factors[0] * before[0] + factors[1] * before[1]
        named = dict(zip(objective.layout.names, objective.layout.split(theta), strict=True))
        model.train()
        batch = objective.samples
        outputs = functional_call(model, named, (batch.inputs,))
        gradients = torch.autograd.grad(loss(outputs, batch.labels).mean(), before)
        model.eval()
    return trained, [b.detach() for b in before], list(gradients), theta.detach(), factors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_is_that_of_autograd_through_functional_call(name: str, kind: CurveKind) -> None:
    recipe = _recipe(weight_decay=0.01)
    trained, before, gradients, theta, factors = _one_step(name, kind, recipe)
    assert trained.num_steps == 1
    assert max(float(g.norm()) for g in gradients) > 1e-3
    for bend, was, gradient, c in zip(trained.curve.bends, before, gradients, factors, strict=True):
        expected = was - 0.5 * (gradient + 0.01 * c * theta)
        # The same mean over the samples in another order, in float64: values of order 1.
        torch.testing.assert_close(bend, expected, rtol=0, atol=1e-12)


def test_decoupled_decay_pulls_on_the_curve() -> None:
    recipe = _recipe(optimizer="adamw", lr=0.01, weight_decay=0.1)
    trained, before, gradients, theta, factors = _one_step(
        "gelu, smoothed labels", "bezier", recipe
    )
    for bend, was, gradient, c in zip(trained.curve.bends, before, gradients, factors, strict=True):
        first = gradient / (gradient.abs() + 1e-8)  # Adam's first step.
        expected = was - 0.01 * first - 0.01 * 0.1 * c * theta
        torch.testing.assert_close(bend, expected, rtol=0, atol=1e-12)


class _Ring(nn.Module):
    """Squared error ½ (f − 1)² with f = 1 + √2 (‖w‖² − 1): the loss is (‖w‖² − 1)²."""

    def __init__(self, angle: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([math.cos(angle), math.sin(angle)]))

    def forward(self, x: Tensor) -> Tensor:
        return (1 + math.sqrt(2) * (self.w.square().sum() - 1)).expand(len(x), 1)


def _ring_loss(point: Tensor) -> Tensor:
    return (point.square().sum(-1) - 1).square()


@pytest.mark.parametrize("kind", KINDS)
def test_curve_goes_around_a_ring_as_well_as_one_can(kind: CurveKind) -> None:
    """Minima 150° apart on a ring; one bend, so all bends on the bisector can be tried."""
    half = math.radians(75)
    ends = torch.tensor([[math.cos(half), -math.sin(half)], [math.cos(half), math.sin(half)]])
    samples = Samples(torch.zeros(64, 1), torch.zeros(64, dtype=torch.long))
    recipe = _recipe(
        loss="squared_error", epochs=300, batch_size=8, lr=0.05, momentum=0.9, schedule="cosine"
    )
    loss = LossFunction("squared_error")
    with Objective(_Ring(half), samples, loss, dtype=torch.float64) as objective:
        curve = train_curve(objective, ends[0], ends[1], recipe, train=samples, kind=kind).curve
        ts = np.linspace(0, 1, 2001)
        points = torch.stack([curve.point(float(t)) for t in ts])
        losses = _ring_loss(points)
        # The toy is the ring: the objective's own losses along the curve are the closed form's.
        for index in (0, 700, 1000):
            assert objective.loss(points[index]) == pytest.approx(float(losses[index]), abs=1e-12)
    line = _ring_loss(torch.lerp(ends[0], ends[1], 0.5).double())
    assert float(line) > 0.8
    # Two chords cut the corner that a parabola rounds: 0.21 of the line's height, and 0.02.
    assert float(losses.max()) < float(line) / 3
    radii = torch.linspace(0.5, 3, 5001, dtype=torch.float64)
    weights = torch.tensor(curve.coefficients(ts))
    tried = torch.stack(
        [
            _ring_loss(
                weights[:, :1] * ends[0].double()
                + weights[:, 1:2] * torch.tensor([float(r), 0.0], dtype=torch.float64)
                + weights[:, 2:] * ends[1].double()
            ).mean()
            for r in radii[::10]
        ]
    )
    # A descent with noise, its rate falling to zero: the mean is at its minimum to second order.
    assert float(losses.mean()) == pytest.approx(float(tried.min()), rel=0.02)


def test_a_curve_does_not_leave_a_line_that_a_symmetry_keeps() -> None:
    """Opposite minima of the ring: every gradient on the line points along it."""
    ends = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    samples = Samples(torch.zeros(64, 1), torch.zeros(64, dtype=torch.long))
    recipe = _recipe(loss="squared_error", epochs=20, batch_size=8, lr=0.05)
    with Objective(_Ring(0.0), samples, LossFunction("squared_error")) as objective:
        curve = train_curve(objective, ends[0], ends[1], recipe, train=samples).curve
    assert float(curve.bends[0][0]) != 0
    assert float(curve.bends[0][1]) == 0


def _noisy_model() -> nn.Sequential:
    """Batch norm, dropout, and a power iteration that goes on from pass to pass in a buffer."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(8, 2),
        )


def _two_classes(n: int) -> Samples:
    inputs = torch.randn(n, 6, generator=torch.Generator().manual_seed(n))
    return Samples(inputs, (inputs[:, 0] > 0).long())


def _train(recipe: Recipe, **options: Any) -> TrainedCurve:
    samples = _two_classes(70)
    with Objective(_noisy_model(), samples) as objective:
        draw = torch.Generator().manual_seed(1)
        end = objective.theta + torch.randn(objective.dim, generator=draw)
        return train_curve(objective, objective.theta, end, recipe, train=samples, **options)


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return dict(torch.load(buffer, weights_only=True))


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_training_has_the_same_bits(kind: CurveKind, optimizer: str) -> None:
    recipe = _recipe(
        optimizer=optimizer, epochs=4, batch_size=16, lr=0.05, schedule="cosine",
        weight_decay=1e-2, momentum=0.9 if optimizer == "sgd" else 0.0, warmup_epochs=1,
    )  # fmt: skip
    options = {"kind": kind, "num_bends": 2, "seed": 3}
    whole = _train(recipe, **options)
    assert [row.step for row in whole.history] == [5, 10, 15, 20]
    for killed_after in (1, 2, 3):
        states: list[dict[str, Any]] = []

        def die(
            training: CurveTraining, states: list[dict[str, Any]] = states, last: int = killed_after
        ) -> None:
            states.append(_through_a_file(training.state()))
            if training.epoch == last:
                raise _KilledError

        with pytest.raises(_KilledError):
            _train(recipe, **options, on_epoch=die)
        resumed = _train(recipe, **options, state=states[-1])
        for a, b in zip(whole.curve.bends, resumed.curve.bends, strict=True):
            assert torch.equal(a, b)
        assert resumed.history == whole.history
        assert resumed.num_steps == whole.num_steps


def test_seed_decides() -> None:
    recipe = _recipe(epochs=2, batch_size=16)
    a, b, c = (_train(recipe, seed=seed).curve.bends[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_state_of_another_curve_is_refused() -> None:
    states: list[dict[str, Any]] = []
    _train(_recipe(), on_epoch=lambda training: states.append(training.state()))
    with pytest.raises(InputError, match="does not fit"):
        _train(_recipe(), num_bends=2, state=states[0])
    with pytest.raises(InputError, match="does not fit"):
        _train(_recipe(), state={"epoch": 1})


def test_everything_but_the_bends_is_what_it_was() -> None:
    model, samples = _noisy_model().train(), _two_classes(70)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator_state = torch.get_rng_state()
    with Objective(model, samples) as objective:
        entered = [buffer.clone() for buffer in model.buffers()]
        loss = objective.center.loss
        end = objective.theta + 1
        start = objective.theta.clone()
        trained = train_curve(
            objective, start, end, _recipe(epochs=2, batch_size=16), train=samples
        )
        assert objective.evaluate().loss == loss
        assert not any(module.training for module in model.modules())
        for buffer, was in zip(model.buffers(), entered, strict=True):
            assert torch.equal(buffer, was)
        assert torch.equal(trained.curve.point(0.0), start)
        assert torch.equal(trained.curve.point(1.0), end)
        assert not torch.equal(trained.curve.bends[0], torch.lerp(start, end, 0.5))
        assert trained.curve.end is not end
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert trained.uses_batch_statistics
    assert trained.train_loss == trained.history[-1].train_loss
    assert not _one_step("relu", "bezier", RECIPE)[0].uses_batch_statistics


def test_no_epochs_leave_the_line() -> None:
    trained = _train(_recipe(epochs=0))
    assert trained.history == ()
    assert math.isnan(trained.train_loss)
    assert bend_plane(trained.curve) is None


def test_logged_loss_is_the_mean_over_the_epoch() -> None:
    """One full batch: the loss at the step's t before the step, here of a model without noise."""
    trained = _one_step("relu", "bezier", RECIPE)[0]
    model, samples, loss = make("relu")
    with Objective(model, samples, loss, dtype=torch.float64) as objective:
        t = _first_t(seed=4)
        line = straight("bezier", trained.curve.start, trained.curve.end, 2)
        expected = objective.loss(line.point(t))
    assert trained.history[0].train_loss == pytest.approx(expected, rel=1e-12)
    assert trained.history[0].learning_rate == 0.5
    # Of the last step that was done, of two along half a cosine; not of the next.
    trained = _one_step("relu", "bezier", _recipe(epochs=2, schedule="cosine"))[0]
    assert [row.learning_rate for row in trained.history] == pytest.approx([0.5, 0.25])


def test_divergence_says_where_and_keeps_the_last_finite_bends() -> None:
    recipe = _recipe(epochs=50, batch_size=16, lr=1e6, loss="squared_error")
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    samples = _two_classes(70)
    with (
        Objective(model, samples, LossFunction("squared_error")) as objective,
        pytest.raises(DivergenceError, match=r"at step \d+ of 250, with learning rate") as caught,
    ):
        train_curve(objective, objective.theta, objective.theta + 1, recipe, train=samples)
    assert list(caught.value.state) == ["bend 1"]
    assert torch.isfinite(caught.value.state["bend 1"]).all()


def _barrier(losses: np.ndarray[Any, Any]) -> float:
    """Height above the straight line between the ends, at equidistant points."""
    return float(np.max(losses - np.linspace(losses[0], losses[-1], len(losses))))


def test_two_networks_on_digits_are_joined_by_a_lower_path() -> None:
    """Of two seeds: a barrier on the line, and a fraction of it on the curve."""
    data = load_dataset("digits", {}, Path("nowhere"))
    samples = Samples(data.x_train, data.y_train)
    test = Samples(data.x_test, data.y_test)
    recipe = _recipe(
        epochs=15, batch_size=64, lr=0.05, momentum=0.9, schedule="cosine", weight_decay=1e-4
    )
    ends = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        Training(model, samples, test, recipe, seed=seed).run()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    ts = np.linspace(0, 1, 21)
    with Objective(model, samples) as objective:
        line = straight("bezier", *ends)
        on_line = np.array([objective.loss(line.point(float(t))) for t in ts])
        for kind in KINDS:
            trained = train_curve(objective, *ends, recipe, train=samples, kind=kind)
            on_curve = np.array([objective.loss(trained.curve.point(float(t))) for t in ts])
            assert _barrier(on_line) > 0.3
            assert _barrier(on_curve) < 0.2 * _barrier(on_line)
            assert trained.train_loss < trained.history[0].train_loss
            assert trained.curve.arc_length() > line.arc_length()
