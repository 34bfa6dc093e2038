"""Ranges found from the loss: where, at what cost, and when there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Lgo

from lgo_cli.errors import NumericsError, UsageError
from lgo_cli.landscape.ranges import MAX_DOUBLINGS, NUM_BISECTIONS, AutoRange, auto_range

Loss = Callable[[float, float], float]


class _Recorded:
    """A loss that remembers where it was asked for."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.asked: list[tuple[float, float]] = []

    def __call__(self, x: float, y: float) -> float:
        self.asked.append((x, y))
        return self.loss(x, y)


def _bowl(right: float, left: float, up: float, down: float, loss: float = 0.3) -> Loss:
    """Parabolas that reach ten times the centre's loss at the four distances."""

    def at(x: float, y: float) -> float:
        a, b = x / (right if x > 0 else left), y / (up if y > 0 else down)
        return loss * (1 + 9 * (a * a + b * b))

    return at


def _sides(found: AutoRange) -> list[float]:
    (left, right), (down, up) = found.x_range, found.y_range
    return [right, -left, up, -down]


@pytest.mark.parametrize(
    "truth", [(0.7, 1.3, 3.0, 0.02), (1e-4, 40.0, 0.5, 0.5), (63.9, 2.0, 1.001, 1e-6)]
)
def test_each_side_ends_a_little_outside_its_crossing(
    truth: tuple[float, float, float, float],
) -> None:
    loss = _Recorded(_bowl(*truth))
    found = auto_range(loss, 0.3, 10.0)
    for end, crossing in zip(_sides(found), truth, strict=True):
        # Bisection leaves 1/16 of the lower power of two; three digits outwards add 1 %. A
        # crossing at a power of two itself is seen from either side of its rounding.
        assert crossing * (1 - 1e-12) <= end <= crossing * (1 + 2**-NUM_BISECTIONS + 0.01)
        assert float(f"{end:.3g}") == end
    assert found.num_evaluations == len(loss.asked) == len(set(loss.asked))
    assert found.warnings == ()


def test_sequence_depends_on_the_losses_alone_and_is_cheap() -> None:
    first, second = _Recorded(_bowl(0.7, 0.9, 0.8, 0.6)), _Recorded(_bowl(0.7, 0.9, 0.8, 0.6))
    found = auto_range(first, 0.3, 10.0)
    assert auto_range(second, 0.3, 10.0) == found
    assert first.asked == second.asked
    # Two to bracket and four to bisect, on each of four sides.
    assert found.num_evaluations == 24
    # Zero has no sign: a journal keyed by the bits finds the cell.
    assert all(math.copysign(1, c) == 1 for pair in first.asked for c in pair if c == 0)


def test_what_is_not_finite_counts_as_above() -> None:
    for wall in (math.inf, math.nan):
        found = auto_range(lambda x, y, w=wall: w if abs(x) > 0.3 or abs(y) > 5 else 1.0, 1.0, 2.0)
        for end, crossing in zip(_sides(found), (0.3, 0.3, 5.0, 5.0), strict=True):
            assert crossing <= end <= crossing * 1.08


def test_a_side_that_never_gets_there_ends_at_the_limit_with_a_warning() -> None:
    bowl = _bowl(0.5, 0.5, 0.5, 0.5)
    found = auto_range(lambda x, y: bowl(max(x, 0), y) / (1 + max(-x, 0)), 0.3, 10.0)
    assert found.x_range == (-(2.0**MAX_DOUBLINGS), pytest.approx(0.5))
    assert found.warnings == (
        "along -x the loss stays below 10 times the centre's: the range ends at 64",
    )
    with pytest.raises(NumericsError, match=r"never reaches 3, 10 times .* within 64") as error:
        auto_range(lambda x, y: 0.3, 0.3, 10.0)
    assert "--x-range" in str(error.value.hint)


def test_a_loss_that_jumps_at_the_centre_is_refused() -> None:
    with pytest.raises(NumericsError, match=r"along \+x the loss is above 2 as near as 9e-10"):
        auto_range(lambda x, y: math.inf, 1.0, 2.0)


@pytest.mark.parametrize("ratio", [1.0, 0.5, -3.0, math.nan, math.inf])
def test_ratios_that_are_none(ratio: float) -> None:
    with pytest.raises(UsageError, match="--auto-range"):
        auto_range(lambda x, y: 1.0, 1.0, ratio)


@pytest.mark.parametrize("center", [0.0, -1.0, math.nan, math.inf])
def test_centre_without_multiples(center: float) -> None:
    with pytest.raises(NumericsError, match="nothing to multiply"):
        auto_range(lambda x, y: 1.0, center, 2.0)


def test_a_surface_is_of_the_ranges_that_were_found(
    lgo: Lgo, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = AutoRange((-1.0, 2.0), (-0.5, 0.25), 9, ("one side never got there",))
    monkeypatch.setattr("lgo_cli.landscape.ranges.auto_range", lambda *_: found)
    line = ("--auto-range", 2, "--resolution", 4, "--analysis-samples", 32, "--json")
    results = json.loads(lgo("contour", small_run, *line).stdout)["results"]
    assert (results["x_range"], results["y_range"]) == ([-1.0, 2.0], [-0.5, 0.25])
    assert results["num_range_evaluations"] == 9
    assert "one side never got there" in results["warnings"]
