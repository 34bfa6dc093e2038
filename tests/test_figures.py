"""Figures: equal bytes, nothing hidden, nothing made up. What they look like was looked at."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.image import imread
from mpl_toolkits.mplot3d import Axes3D

from lgo_cli.config import FigureConfig
from lgo_cli.curvature.smoothing import default_width
from lgo_cli.figures.bands import draw_bands
from lgo_cli.figures.catalogue import DRAWINGS as CATALOGUE
from lgo_cli.figures.catalogue import draw as draw_all
from lgo_cli.figures.files import save_figure
from lgo_cli.figures.interpolation import draw_interpolation
from lgo_cli.figures.maps import draw_convexity, draw_error_map, draw_matrix, error_share
from lgo_cli.figures.numbers import round_levels, tick_names, true_minus
from lgo_cli.figures.perspective import draw_surface_3d
from lgo_cli.figures.plane import TRAJECTORY, marked, wrapped
from lgo_cli.figures.scale import LossScale, bilinear
from lgo_cli.figures.spectrum import draw_spectrum
from lgo_cli.figures.style import house_style
from lgo_cli.figures.surface import draw_contour, draw_test_contour
from lgo_cli.figures.training import draw_training
from lgo_cli.runs.names import FIGURES

Arrays = dict[str, Any]
FORMATS = ("png", "pdf", "svg")
MEASURED = {
    "loss": "cross_entropy", "batchnorm": "frozen", "dtype": "float32", "split": "train",
    "num_samples": 1024,
}  # fmt: skip


def _results(**more: Any) -> Arrays:
    return {"model": "resnet20", "dataset": "digits", "measured": MEASURED, **more}


def _grid(nx: int, ny: int, reach: float = 1.0) -> tuple[Any, Any, Any, Any]:
    x, y = np.linspace(-reach, reach, nx), np.linspace(-reach, reach, ny)
    return x, y, *np.meshgrid(x, y)


def _surface(
    loss: Any, x: Any = None, y: Any = None, plane: str = "random", **more: Any
) -> tuple[Arrays, Arrays]:
    ny, nx = loss.shape
    x = np.linspace(-1, 1, nx) if x is None else x
    y = np.linspace(-1, 1, ny) if y is None else y
    finite = loss[np.isfinite(loss)]
    results = _results(
        plane=plane,
        loss_at_center=float(finite.min()) if len(finite) else 1.0,
        num_measured=loss.size,
        num_cells=loss.size,
        axis_labels=["x: direction, filter-normalised", "y: direction, filter-normalised"],
        markers=[],
        trajectory=None,
    )
    arrays = {"x": x, "y": y, "loss": loss, "measured": np.ones(loss.shape, bool)}
    return arrays, {**results, **more}


def _bowl(nx: int = 21, ny: int = 15) -> Any:
    _, _, X, Y = _grid(nx, ny)
    return 0.3 + 0.5 * X**2 + 0.4 * Y**2


def _holes() -> Any:
    loss = _bowl()
    loss[9:, 14:] = np.inf
    loss[0, 0] = np.nan
    return loss


def _decades() -> Any:
    _, _, X, Y = _grid(21, 15)
    return 1e-4 * np.exp(9.8 * np.hypot(X, Y))


SURFACES: dict[str, Any] = {
    "bowl": _bowl(),
    "two by three": _bowl(2, 3),
    "decades": _decades(),
    "holes": _holes(),
    "one hole": np.where(np.eye(5) * np.arange(5) == 3, np.nan, _bowl(5, 5)),
    "nothing finite": np.full((4, 3), np.nan),
    "one finite": np.where(np.arange(12).reshape(4, 3) == 5, 2.0, np.inf),
    "constant": np.full((3, 4), 2.3),
    "zero": np.zeros((3, 3)),
    "almost constant": 2.302585 + 1e-8 * _bowl(5, 5),
    "touches zero": np.abs(_grid(9, 5)[2]) ** 8,
    "overflow near": 10.0 ** (38 * _bowl(9, 9)),
    "negative": _bowl(5, 5) - 3,
    "larger than the picture": _bowl(203, 131),
}


def _line(**more: Any) -> tuple[Arrays, Arrays]:
    alpha = np.linspace(-0.5, 1.5, 41)
    loss = 0.2 + np.exp(-(((alpha - 0.5) / 0.2) ** 2)) + 0.1 * alpha
    arrays = {
        "alpha": alpha, "loss": loss, "standard_error": 0.05 * loss, "accuracy": 1 - loss / 3,
        "test_loss": 1.2 * loss, "test_standard_error": 0.06 * loss, "test_accuracy": 1 - loss / 2,
    }  # fmt: skip
    return arrays, _results(along="to", direction_norm=12.5, barrier=0.9, **more)


def _spectrum(count: int = 10, *, with_density: bool = True) -> tuple[Arrays, Arrays]:
    largest = np.geomspace(40, 2, count) if count else np.array([])
    smallest = np.array([-2.0, -1.0])[: min(count, 2)]
    arrays = {
        "largest": largest, "largest_residual_bounds": 0.05 * np.abs(largest),
        "smallest": smallest, "smallest_residual_bounds": 0.1 * np.abs(smallest),
    }  # fmt: skip
    if with_density:
        draw = np.random.default_rng(0)
        weights = draw.dirichlet(np.ones(12))
        arrays |= {"density_nodes": np.sort(draw.normal(0, 5, 12)), "density_weights": weights}
    results = _results(
        stability_threshold=38.0,
        sharpness_ratio=0.5,
        preconditioned=None,
        converged=True,
        num_matvecs=87,
        operator="hessian",
        scaling="none",
    )
    return arrays, results


def _course(epochs: int = 5, schedule: str = "cosine") -> tuple[Arrays, Arrays]:
    e = np.arange(epochs + 1.0)
    columns = {
        "epoch": e, "learning_rate": 0.1 / (1 + e), "train_loss": 2.3 * 0.5**e,
        "train_accuracy": 1 - 0.9 * 0.5**e, "test_loss": 2.4 * 0.6**e,
        "test_accuracy": 1 - 0.9 * 0.6**e,
    }  # fmt: skip
    recipe = {
        "loss": "cross_entropy", "schedule": schedule, "optimizer": "sgd", "lr": 0.1,
        "batch_size": 128, "warmup_epochs": 1,
    }  # fmt: skip
    return columns, {"model": "mlp", "dataset": "digits", "recipe": recipe}


def _everything() -> tuple[Arrays, Arrays]:
    """A surface with all that `lgo contour` can measure beside it."""
    loss = _holes()
    points = [
        {"label": "init", "x": -0.8, "y": -0.5, "distance": 3.0, "loss": 0.8},
        {"label": "100", "x": -0.3, "y": 0.1, "distance": 1.5},
        {"label": "end", "x": 0.0, "y": 0.0, "distance": 0.0},
    ]
    quadratic = {"gradient": [0.0, 0.0], "hessian": [1.0, 0.0, 0.8], "max_error": 0.25}
    markers = [{"label": "run", "x": 0.0, "y": 0.0}, {"label": "A", "x": 0.5, "y": 0.1}]
    arrays, results = _surface(
        loss, plane="eigen", trajectory=points, quadratic=quadratic, markers=markers
    )
    measured = np.zeros(loss.shape, bool)
    measured[::3, ::4] = True
    error = np.where(measured, 0.0, 0.01 * loss * np.linspace(0.1, 1, loss.size).reshape(15, 21))
    coarse, median = np.linspace(-1, 1, 5), np.linspace(0.3, 0.8, 9)
    X, Y = np.meshgrid(coarse, coarse)
    ratio, ratio_error = (0.2 + X**2) / (4 + Y**2), np.full((5, 5), 0.01)
    ratio[0, 0] = ratio_error[0, 0] = np.nan
    ratio[4, 1], ratio_error[4, 1] = 7.0, 3.0
    arrays |= {
        "measured": measured, "error_estimate": error, "convexity_x": coarse,
        "convexity_y": coarse, "convexity_ratio": ratio, "convexity_ratio_error": ratio_error,
        "planes_loss": np.stack([loss, loss, loss]), "profile_radius": np.linspace(0, 1, 9),
        "profile_median": median, "profile_low": 0.9 * median, "profile_high": 1.2 * median,
        "test_loss": 1.5 * loss + 1, "test_measured": measured.T.reshape(loss.shape),
    }  # fmt: skip
    results["measured"] = {**results["measured"], "num_test_samples": 77}
    results["test"] = {"loss_at_center": 1.5, "num_measured": 31}
    return arrays, {**results, "num_measured": int(measured.sum()), "filling": {"floor": 0.0}}


def _matrix(k: int = 4) -> tuple[Arrays, Arrays]:
    barrier = np.add.outer(np.arange(k), np.arange(k)) / 7.0
    barrier[0, 1] = barrier[1, 0] = np.inf
    names = [f"runs/seed-{i}" for i in range(k)]
    arrays = {
        "matrix_barrier": barrier, "matrix_lower": barrier * 0.9, "matrix_upper": barrier * 1.1
    }  # fmt: skip
    return arrays, _results(along="to", barrier=None, matrix={"names": names})


def _beside(prefix: str) -> tuple[Arrays, Arrays]:
    """A path with another one beside it: `line_` beside a curve, `unaligned_` beside aligned."""
    arrays, results = _line()
    arrays |= {f"{prefix}loss": 2 * arrays["loss"], f"{prefix}standard_error": arrays["loss"] / 9}
    return arrays, {**results, "barrier_interval": [0.8, 1.1]}


DRAWINGS: dict[str, Any] = {
    "training": lambda: draw_training(*_course()),
    "spectrum": lambda: draw_spectrum(*_spectrum()),
    "surface": lambda: draw_surface_3d(*_surface(_holes()[::2, ::2])),
    "everything": lambda: draw_contour(*_everything(), show_cells=True),
    "test": lambda: draw_test_contour(*_everything()),
    "error": lambda: draw_error_map(*_everything()),
    "convexity": lambda: draw_convexity(*_everything()),
    "bands": lambda: draw_bands(*_everything()),
    "curve": lambda: draw_interpolation(*_beside("line_")),
    "matrix": lambda: draw_matrix(*_matrix()),
    "names": lambda: draw_contour(*NAMED["many bends"]()),
    "names in perspective": lambda: draw_surface_3d(*NAMED["many bends"]()),
}


def _bytes(figure: Figure, format: str) -> bytes:
    handle = io.BytesIO()
    save_figure(figure, handle, format, 300)
    return handle.getvalue()


def _texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(mpl.text.Text))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawn_twice_has_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = DRAWINGS[name]()
    first = {format: _bytes(figure, format) for format in FORMATS}
    # Neither the clock nor the user's own settings get in.
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    with mpl.rc_context({"font.size": 17, "lines.linewidth": 5, "figure.facecolor": "red"}):
        before = dict(mpl.rcParams)
        figure = DRAWINGS[name]()
        second = {format: _bytes(figure, format) for format in FORMATS}
        assert dict(mpl.rcParams) == before
    assert first == second
    magic = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for format, found in first.items():
        for stamp in (b"CreationDate", b"ModDate", b"Software", b"<dc:date>", b"atplotlib v"):
            assert stamp not in found
        assert found.startswith(magic[format])


@pytest.mark.parametrize("inches", [0.5, 0.9, 1.2, 1.5, 1.8])
def test_no_label_is_broken_before_a_unit_or_at_an_equals_sign(inches: float) -> None:
    for label in ("y: principal axis 2 (6.7 %), unit norm", "x: eigenvector (λ = 2.6), unit norm"):
        lines = wrapped(label, inches).split("\n")
        assert " ".join(lines) == label
        assert len(lines) > 1
        assert not any(line[0] in "%=" or line[-1] == "=" for line in lines)


def test_figures_need_neither_torch_nor_pyplot() -> None:
    code = (
        "import sys\n"
        "from lgo_cli.figures import captions, catalogue, files\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize("draw", [draw_contour, draw_surface_3d])
def test_any_surface_can_be_drawn(draw: Any, name: str) -> None:
    """Without a warning, which the suite takes for an error."""
    loss = SURFACES[name]
    figure = draw(*_surface(loss))
    figure.draw_without_rendering()
    missing = int(np.sum(~np.isfinite(loss)))
    text = _texts(figure)
    assert ("not finite" in text) == bool(missing)
    if missing:
        assert f"not finite ({missing} cell{'s' * (missing > 1)})" in text
    if missing < loss.size:
        assert "mean loss (nats)" in text


def test_caption_says_what_was_measured_and_fits() -> None:
    for figure in (draw_contour(*_surface(_bowl())), draw_surface_3d(*_surface(_decades()))):
        words = figure.get_supxlabel().replace("\n", " · ")
        figure.draw_without_rendering()
        for part in ("resnet20 on digits", "cross entropy", "1,024 train samples", "batch norm"):
            assert part in words
        figure.draw_without_rendering()
        box = figure._supxlabel.get_window_extent()  # type: ignore[attr-defined]
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("width", [3.4, 7.0])
def test_caption_wraps_what_is_longer_than_a_line(width: float) -> None:
    arrays, results = _surface(_bowl())
    name = "model.py:" + "_".join(["a_network", "of_a_name", "that_is_long"] * 6)
    figure = draw_contour(arrays, {**results, "model": name}, (width, None))
    figure.draw_without_rendering()
    box = figure._supxlabel.get_window_extent()  # type: ignore[attr-defined]
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert name.partition(":")[2] in figure.get_supxlabel().replace("\n", "")


@pytest.mark.parametrize("width", [3.4, 7.0])
@pytest.mark.parametrize("sign", list("_./-"))
def test_caption_breaks_a_long_name_between_its_words(width: float, sign: str) -> None:
    arrays, results = _surface(_bowl())
    words = ["residual", "network", "of", "somebodys", "own", "with", "twelve", "blocks"]
    name = sign.join(words * 4)
    figure = draw_contour(arrays, {**results, "dataset": name}, (width, None))
    words_below = figure.get_supxlabel()
    assert name not in words_below
    assert name in words_below.replace(f"{sign}\n", sign)
    # What has no such place is broken all the same.
    figure = draw_contour(arrays, {**results, "dataset": "x" * 300}, (width, None))
    assert "x" * 300 in figure.get_supxlabel().replace("\n", "")


def test_negative_numbers_have_a_minus_sign_and_names_keep_their_hyphens() -> None:
    text = "seed-1 at -1.5 [-2, -.5] (-∞), 1e-5, a - b, ReLU-20"
    assert true_minus(text) == "seed-1 at −1.5 [−2, −.5] (−∞), 1e-5, a - b, ReLU-20"
    arrays, results = _surface(_bowl(5, 5) - 3)
    results["axis_labels"] = ["x: eigenvector 1 (λ = 2, least -0.5)", "y: seed-1"]
    for figure in (draw_contour(arrays, results), draw_surface_3d(arrays, results)):
        figure.draw_without_rendering()
        words = _texts(figure).split()
        assert {"−0.5)", "seed-1"} <= {*words}
        assert not any(re.match(r"-\d", word) for word in words)


def _contour_set(figure: Figure, *, filled: bool) -> ContourSet:
    (found,) = (c for c in figure.axes[0].findobj(ContourSet) if c.filled == filled)  # type: ignore[attr-defined]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["bowl", "decades", "holes", "overflow near"])
def test_labels_of_lines_do_not_overlap(name: str) -> None:
    loss = SURFACES[name]
    markers = [{"label": "run", "x": 0.0, "y": 0.0}, {"label": "A", "x": 0.5, "y": 0.1}]
    figure = draw_contour(*_surface(loss, markers=markers))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [text for text in _contour_set(figure, filled=False).labelTexts if text.axes]
    names = [text for text in axes.texts if text.get_text() == "A"]
    assert len(labels) >= 3
    assert len(names) == 1
    boxes = [text.get_window_extent() for text in [*labels, *names]]
    for index, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[index + 1 :])
        assert axes.get_window_extent().count_overlaps([box])


def test_lines_and_colours_share_levels() -> None:
    figure = draw_contour(*_surface(_decades()))
    lines, bands = (_contour_set(figure, filled=filled) for filled in (False, True))
    for level in lines.levels:
        assert np.isclose(bands.levels, level, rtol=1e-12).any()
    low, high = _decades().min(), _decades().max()
    assert bands.levels[0] <= low < high <= bands.levels[-1]
    assert 12 <= len(bands.levels) <= 40
    # No colour stands for a cell that was not measured: nothing is extended or filled in.
    assert bands.extend == "neither"


@pytest.mark.parametrize(
    ("loss", "logarithmic"), [(_bowl(), False), (_decades(), True), (_bowl() - 0.3, False)]
)
def test_scale_is_logarithmic_where_losses_span_decades(loss: Any, logarithmic: bool) -> None:
    figures = draw_contour(*_surface(loss)), draw_surface_3d(*_surface(loss))
    for figure in figures:
        text = _texts(figure).replace("\n", " ")
        assert ("mean loss (nats), logarithmic" in text) == logarithmic


@pytest.mark.parametrize("name", [name for name in SURFACES if name != "nothing finite"])
def test_scale_names_levels_apart(name: str) -> None:
    scale = LossScale.of(SURFACES[name], _results())
    assert scale.low < scale.high
    assert 1 <= len(scale.levels) == len(set(scale.names)) <= 16
    assert np.all(np.diff(scale.levels) > 0)
    assert np.all(np.diff(scale.band_edges) > 0)
    finite = SURFACES[name][np.isfinite(SURFACES[name])]
    assert scale.band_edges[0] < finite.min()
    assert scale.band_edges[-1] > finite.max()


def test_names_of_ticks() -> None:
    assert tick_names(np.array([0.1, 0.2, 12.0])) == ["0.1", "0.2", "12"]
    # One that takes a power of ten gives all others theirs.
    assert tick_names(np.array([1e-6, 1000.0, 1e7])) == ["10⁻⁶", "10³", "10⁷"]
    assert tick_names(np.array([-1e6, 0, 5e5])) == ["−10⁶", "0", "5×10⁵"]
    assert tick_names(np.array([1.25e-12, 3e5, 3.5e5])) == ["1.25×10⁻¹²", "3×10⁵", "3.5×10⁵"]
    assert tick_names(np.array([2.3001, 2.3002])) == ["2.3001", "2.3002"]
    # Three digits would tell these apart, and call them what they are not.
    quarters = np.array([1.275, 1.3, 1.325, 1.35, 1.375, 1.4])
    assert tick_names(quarters) == ["1.275", "1.3", "1.325", "1.35", "1.375", "1.4"]
    assert tick_names(1e-6 * quarters)[:2] == ["1.275×10⁻⁶", "1.3×10⁻⁶"]
    assert tick_names(quarters[:1]) == ["1.275"]
    assert tick_names(np.array([2.30258490, 2.30258492])) == ["2.3025849", "+2×10⁻⁸"]
    assert tick_names(9.2484e-5 + 1e-9 * np.array([0, 0.75, 1.5])) == [
        "9.2484×10⁻⁵", "+7.5×10⁻¹⁰", "+1.5×10⁻⁹",
    ]  # fmt: skip
    assert tick_names(1e8 + np.array([0, 1200.0, 2400.0])) == ["100000000", "+1200", "+2400"]


def _number(name: str) -> float:
    mantissa, _, power = name.rpartition("10") if set(name) & set("⁰¹²³⁴⁵⁶⁷⁸⁹") else (name, "", "0")
    exponent = int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
    mantissa = mantissa.replace("−", "-")
    digits = mantissa.rstrip("×")
    return float(f"{digits if digits.strip('+-') else digits + '1'}e{exponent}")


@pytest.mark.parametrize("logarithmic", [False, True])
def test_names_of_levels_are_the_levels(logarithmic: bool) -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        low = 10 ** generator.uniform(-3, 3)
        high = low * (1 + 10 ** generator.uniform(-6 if not logarithmic else -1, 1.5))
        levels = round_levels(low, high, logarithmic=logarithmic, about=10)
        names = tick_names(levels)
        start = _number(names[0])
        found = [_number(name) + start * name.startswith("+") for name in names]
        assert np.allclose(found, levels, rtol=1e-9, atol=1e-4 * (high - low))


def test_levels_are_round_and_inside() -> None:
    assert round_levels(0.03, 1.1, logarithmic=False, about=10).tolist() == pytest.approx(
        [0.1 * k for k in range(1, 12)]
    )
    assert round_levels(0.08, 12.0, logarithmic=True, about=6).tolist() == pytest.approx(
        [0.1, 0.2, 0.5, 1, 2, 5, 10]
    )
    wide = round_levels(1e-3, 1e30, logarithmic=True, about=10)
    assert 5 <= len(wide) <= 15


def test_centre_is_marked_only_where_it_is() -> None:
    inside = _surface(_bowl())
    beside = _surface(_bowl(), x=np.linspace(0.5, 2.0, 21))
    for draw in (draw_contour, draw_surface_3d):
        assert "run" in _texts(draw(*inside)).split("\n")
        figure = draw(*beside)
        assert "run" not in _texts(figure).split("\n")
        assert figure.axes[0].get_xlim() == (0.5, 2.0)


@pytest.mark.parametrize(
    ("x_reach", "y_reach", "to_scale"), [(1, 1, True), (2, 1, True), (9, 0.1, False)]
)
def test_units_have_one_length_on_both_axes(x_reach: float, y_reach: float, to_scale: bool) -> None:
    x, y = np.linspace(-x_reach, x_reach, 21), np.linspace(-y_reach, y_reach, 15)
    figure = draw_contour(*_surface(_bowl(), x=x, y=y, plane="eigen"), size=(7.0, None))
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    # Within a pixel.
    assert (abs(box.height / box.width - y_reach / x_reach) < 0.01) == to_scale
    assert ("not to one scale" in figure.get_supxlabel()) == (not to_scale)


@pytest.mark.parametrize(
    ("distance", "label"),
    [(1e-7, "curve"), (0.25, "curve, projected (off by ≤ 0.25)")],
)
def test_curve_that_came_with_the_directions_is_drawn(distance: float, label: str) -> None:
    path = np.array([[0.0, 0.0], [0.4, 0.3], [0.8, 0.0]])
    markers = [{"label": "bend", "x": 0.4, "y": 0.6}, {"label": "other end", "x": 0.8, "y": 0.0}]
    arrays, results = _surface(_bowl(), plane="file", markers=markers, curve_distance=distance)
    arrays["plane_path"] = path
    flat, steep = draw_contour(arrays, results), draw_surface_3d(arrays, results)
    for figure in (flat, steep):
        texts = [text.strip() for text in _texts(figure).splitlines()]
        assert {label, "run", "bend", "other end"} <= set(texts)
        _words_inside(figure)
    (line,) = [line for line in flat.axes[0].lines if line.get_label() == label]
    assert np.array_equal(line.get_xydata(), path)
    (line,) = [line for line in steep.axes[0].lines if line.get_label() == label]
    xs, ys, heights = line.get_data_3d()  # type: ignore[attr-defined]
    assert np.array_equal(np.stack([xs, ys], axis=1), path)
    np.testing.assert_allclose(heights, 0.3 + 0.5 * xs**2 + 0.4 * ys**2, atol=0.01)
    # The names stand on the sides where the curve is not.
    above, below = (t for t in flat.axes[0].texts if t.get_text() in ("bend", "other end"))
    assert (above.get_va(), below.get_va()) == ("bottom", "top")
    # Nothing of it without a curve.
    del arrays["plane_path"]
    assert label not in _texts(draw_contour(arrays, results)).splitlines()


def _named(points: list[tuple[str, float, float]], *, path: bool = False) -> tuple[Arrays, Arrays]:
    """A surface with named points, and with a curve through all of them if asked for."""
    markers = [{"label": "run", "x": 0.0, "y": 0.0}]
    markers += [{"label": label, "x": x, "y": y} for label, x, y in points]
    arrays, results = _surface(_bowl(), plane="file", markers=markers, curve_distance=0.0)
    if path:
        arrays["plane_path"] = np.array([[0.0, 0.0], *((x, y) for _, x, y in points)])
    return arrays, results


NAMED: dict[str, Any] = {
    "bends close together": lambda: _named(
        [("bend 1", 0.1, 0.45), ("bend 2", 0.2, 0.5), ("bend 3", 0.28, 0.48), ("other end", 0.8, 0)]
    ),
    "bends on a line": lambda: _named(
        [("bend 1", 0.27, 0), ("bend 2", 0.53, 0), ("other end", 0.8, 0)], path=True
    ),
    "many bends": lambda: _named(
        [*((f"bend {i}", 0.1 * i, 0.02 * (-1) ** i) for i in range(1, 7)), ("other end", 0.8, 0)],
        path=True,
    ),
    "corners": lambda: _named([("A", 1, 1), ("B", -1, 1), ("C", 1, -1), ("D", -1, -1)]),
    "one place": lambda: _named([("A", 0.5, 0.5), ("B", 0.5, 0.5), ("C", 0.0, 0.0)]),
}


@pytest.mark.parametrize("size", [(3.4, None), (7.0, None)])
@pytest.mark.parametrize("case", NAMED)
@pytest.mark.parametrize("draw", [draw_contour, draw_surface_3d])
def test_names_of_points_cover_neither_each_other_nor_markers(
    draw: Any, case: str, size: Any
) -> None:
    arrays, results = NAMED[case]()
    figure = draw(arrays, results, size)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    texts = {text.get_text().strip(): text for text in axes.texts}
    names = [marker["label"] for marker in results["markers"] if marker["label"] != "run"]
    boxes = [mpl.text.Text.get_window_extent(texts[name]) for name in names]  # type: ignore[attr-defined]
    markers = [line.get_window_extent() for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(markers) == len(names) + 1
    levels = [text for text in axes.texts if text.get_text().strip() not in names]
    taken = markers + [level.get_window_extent() for level in levels]
    inside = axes.get_window_extent() if draw is draw_contour else figure.bbox
    for index, box in enumerate(boxes):
        assert not box.count_overlaps([*boxes[index + 1 :], *taken]), names[index]
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1, names[index]
        assert inside.y0 <= box.y0 <= box.y1 <= inside.y1, names[index]


def test_names_stand_alike_in_every_format() -> None:
    """Where they stand is decided once, whatever draws them then, at whatever resolution."""
    figure = draw_contour(*NAMED["many bends"]())
    before = [
        (text.get_text(), text.get_position(), text.get_ha()) for text in figure.axes[0].texts
    ]
    for format in FORMATS:
        save_figure(figure, io.BytesIO(), format, 60)
    after = [(text.get_text(), text.get_position(), text.get_ha()) for text in figure.axes[0].texts]
    assert before == after


@pytest.mark.parametrize("cells", [21, 401])
def test_a_surface_in_perspective_is_one_picture_among_lines_and_text(cells: int) -> None:
    """As thousands of polygons, viewers show white seams between them, and SVGs are megabytes."""
    figure = draw_surface_3d(*_surface(_bowl(cells, cells)))
    svg = _bytes(figure, "svg")
    assert svg.count(b"<image") == 1
    assert svg.count(b"<path") < 200
    assert len(svg) < 1e6
    pdf = _bytes(figure, "pdf")
    assert pdf.count(b"/Subtype /Image") == 2  # its colours, and where it is
    assert b"/FontFile2" in pdf


def test_edges_that_close_the_seams_of_a_bar_move_no_band() -> None:
    figure = draw_contour(*_surface(_bowl()))
    edged = imread(io.BytesIO(_bytes(figure, "png")))
    bands = figure.findobj(QuadMesh)
    assert bands
    for each in bands:
        each.set_edgecolor("none")
    differ = (imread(io.BytesIO(_bytes(figure, "png"))) != edged).any(axis=-1)
    assert differ.any()
    assert not (differ[1:] & differ[:-1]).any()  # a row of pixels at most


def test_points_beyond_the_picture_have_no_name_in_it() -> None:
    arrays, results = _named([("A", 0.5, 0.5), ("B", 1.7, 0.5)], path=True)
    for draw in (draw_contour, draw_surface_3d):
        texts = _texts(draw(arrays, results)).split("\n")
        assert "A" in texts
        assert "B" not in texts


def test_trajectory_goes_through_its_points() -> None:
    points = [
        {"label": "init", "x": -0.8, "y": -0.5, "distance": 0.0},
        {"label": "100", "x": -0.3, "y": 0.1, "distance": 0.0},
        {"label": "end", "x": 0.0, "y": 0.0, "distance": 0.0},
    ]  # fmt: skip
    arrays, results = _surface(_bowl(), trajectory=points, plane="pca")
    flat, tall = draw_contour(arrays, results), draw_surface_3d(arrays, results)
    for figure in (flat, tall):
        assert "trajectory, projected" in _texts(figure)
    assert "init" in _texts(flat)
    assert "off the plane" not in _texts(flat)
    (line,) = (
        line for line in flat.axes[0].lines if str(line.get_label()).startswith("trajectory")
    )
    assert np.array_equal(line.get_xydata(), [[p["x"], p["y"]] for p in points])


@pytest.mark.parametrize(("number", "is_crowded"), [(50, False), (51, True), (2000, True)])
def test_of_many_checkpoints_those_are_marked_that_stand_apart(
    number: int, is_crowded: bool
) -> None:
    along = np.geomspace(1e-3, 0.9, number)[::-1]  # closer and closer to the run
    points = [
        {"label": "init" if not rank else str(rank), "x": -x, "y": x**2, "distance": x, "loss": 0.5}
        for rank, x in enumerate(along)
    ]
    points[-1] |= {"x": 0.0, "y": 0.0, "distance": 0.0}
    ranges = {"x_range": [-1, 1], "y_range": [-1, 1]}
    arrays, results = _surface(_bowl(), plane="pca", trajectory=points, **ranges)
    count = len(marked(results))
    assert (count < number) == is_crowded
    figure = draw_contour(arrays, results)
    assert ("checkpoints marked" in figure.get_supxlabel()) == is_crowded
    (line,) = (x for x in figure.axes[0].lines if x.get_label() == "trajectory, projected")
    assert len(line.get_xdata()) == number  # the line goes through all  # type: ignore[arg-type]
    circles = [x for x in figure.axes[0].lines if x.get_markeredgecolor() == TRAJECTORY]
    assert len(circles) == count
    assert circles[0].get_xdata() == [points[0]["x"]]
    (stems,) = (
        x
        for x in draw_surface_3d(arrays, results).axes[0].lines
        if x.get_label() == "loss at checkpoint's weights"
    )
    assert len(stems.get_xdata()) == count  # type: ignore[arg-type]
    if is_crowded:
        assert f"{count} of {number:,} checkpoints" in figure.get_supxlabel()
        with house_style():
            figure.draw_without_rendering()
        shown = figure.axes[0].transData.transform([[p["x"], p["y"]] for p in points])
        shown = shown[marked(results)]
        gaps = np.linalg.norm(np.diff(shown, axis=0), axis=1)[1:]  # the first is there anyway
        assert gaps.min() > 4.5 / 72 * figure.dpi  # as wide as half of the star and half a mark


def test_ones_own_files_are_called_what_they_are() -> None:
    arrays, results = _surface(_bowl())
    figure = draw_contour(arrays, {**results, "model": "model.py:build", "dataset": "data.npz"})
    assert "build (a user's model) on a user's data\n" in _texts(figure)


def test_circles_are_as_wide_as_checkpoints_are_off_the_plane() -> None:
    figure = draw_contour(*_everything())
    assert "off the plane by ≤ 3" in _texts(figure)
    circles = [line for line in figure.axes[0].lines if line.get_color() == "none"]
    diameters = np.array([circle.get_markersize() for circle in circles])
    np.testing.assert_allclose(diameters / diameters[0], [1, 0.5, 0], rtol=1e-12)


def test_labels_of_lines_keep_clear_of_checkpoints() -> None:
    """Wherever a label would stand, a checkpoint is put in its way."""
    free = draw_contour(*_surface(_bowl()))
    spots = [text.get_position() for text in _contour_set(free, filled=False).labelTexts]
    points = [
        {"label": "init", "x": float(x), "y": float(y), "distance": float(rank)}
        for rank, (x, y) in enumerate(spots)
    ]
    assert len(points) >= 3
    figure = draw_contour(*_surface(_bowl(), trajectory=points, plane="pca"))
    figure.draw_without_rendering()
    circles = [line for line in figure.axes[0].lines if line.get_color() == "none"]
    boxes = [circle.get_window_extent() for circle in circles]
    assert len(boxes) == len(points)
    for text in _contour_set(figure, filled=False).labelTexts:
        assert text.axes is None or not text.get_window_extent().count_overlaps(boxes)


def test_stems_stand_on_the_surface_and_end_at_the_loss_of_the_checkpoint() -> None:
    arrays, results = _everything()
    figure = draw_surface_3d(arrays, results)
    label = "loss at checkpoint's weights"
    (ends,) = (line for line in figure.axes[0].lines if line.get_label() == label)
    (xs, ys, heights) = ends.get_data_3d()  # type: ignore[attr-defined]
    # Only the first has a loss; the linear scale's heights are losses.
    assert (list(xs), list(ys), list(heights)) == ([-0.8], [-0.5], [0.8])
    stems = [line.get_data_3d() for line in figure.axes[0].lines if len(line.get_data_3d()[0]) == 2]  # type: ignore[attr-defined]
    ((_, _, (foot, top)),) = stems
    assert top == 0.8
    at = np.array([-0.8]), np.array([-0.5])
    assert foot == bilinear(arrays["x"], arrays["y"], arrays["loss"], *at)[0]


def test_error_share_counts_as_the_tolerance_does() -> None:
    """Relative to max(|loss|, floor)."""
    arrays, results = _everything()
    share = error_share(arrays, {**results, "filling": {"floor": 1.0}})
    filled = np.isfinite(share)
    scale = np.maximum(arrays["loss"][filled], 1.0)
    np.testing.assert_array_equal(share[filled], arrays["error_estimate"][filled] / scale)


def test_bilinear_is_exact_on_what_is_bilinear_and_nan_beyond() -> None:
    x, y = np.array([-1.0, 0.5, 2.0]), np.array([0.0, 1.0])
    X, Y = np.meshgrid(x, y)
    values = 1 + 2 * X - 3 * Y + X * Y
    at_x, at_y = np.array([-1.0, 0.2, 2.0, 2.1, 0.0]), np.array([0.0, 0.7, 1.0, 0.5, -0.1])
    expected = 1 + 2 * at_x - 3 * at_y + at_x * at_y
    expected[3:] = np.nan
    np.testing.assert_allclose(bilinear(x, y, values, at_x, at_y), expected, rtol=1e-14)
    # A missing corner spoils its squares only, and a point on a good corner not at all.
    values[0, 0] = np.nan
    measured = bilinear(x, y, values, np.array([-0.5, 0.5, 1.0]), np.array([0.5, 0.0, 0.5]))
    assert np.isnan(measured).tolist() == [True, False, False]


def test_line_marks_ends_and_barrier() -> None:
    arrays, results = _line()
    figure = draw_interpolation(arrays, results)
    text = _texts(figure)
    for part in ("run", "other checkpoint", "barrier 0.9", "±1 standard error", "‖d‖ = 12.5"):
        assert part in text
    (bar,) = (line for line in figure.axes[0].lines if str(line.get_label()).startswith("barrier"))
    loss = arrays["loss"]
    chord = loss[10] + (loss[30] - loss[10]) * (arrays["alpha"] - arrays["alpha"][10])
    top = int(np.argmax((loss - chord)[10:31])) + 10
    np.testing.assert_allclose(bar.get_ydata(), [chord[top], loss[top]], rtol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 1.5), (-1.0, 2.0), (0.0, 1.0)])
def test_both_ends_are_named_on_the_axis(low: float, high: float) -> None:
    arrays, results = _line()
    figure = draw_interpolation({**arrays, "alpha": np.linspace(low, high, 41)}, results)
    ticks = figure.axes[1].get_xticks()
    for end in (0, 1):
        assert np.abs(ticks - end).min() < 1e-9


@pytest.mark.parametrize("along", ["random", "gradient", "eigen"])
def test_direction_has_no_other_end(along: str) -> None:
    arrays, results = _line()
    figure = draw_interpolation(arrays, {**results, "along": along, "barrier": None})
    text = _texts(figure)
    assert "barrier" not in text
    assert "other checkpoint" not in text
    assert ("filter-normalised" if along == "random" else "unit norm") in text


@pytest.mark.parametrize(("value", "barrier"), [(np.inf, "Infinity"), (np.nan, "NaN")])
@pytest.mark.parametrize("index", [0, 10, 20, 30, 40])
def test_line_that_is_not_finite_somewhere(value: float, barrier: str, index: int) -> None:
    arrays, results = _line()
    for key in ("loss", "test_loss"):
        arrays[key][index] = value
    for key in ("standard_error", "test_standard_error"):
        arrays[key][index] = np.nan
    inside = 10 <= index <= 30
    figure = draw_interpolation(arrays, {**results, "barrier": barrier if inside else 0.9})
    figure.draw_without_rendering()
    assert "not finite (1 point)" in _texts(figure)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_line_that_is_finite_nowhere_has_no_numbers_beside_it(value: float) -> None:
    arrays, results = _line()
    for key in ("loss", "standard_error", "test_loss", "test_standard_error"):
        arrays[key] = np.full(41, value)
    figure = draw_interpolation(arrays, {**results, "barrier": "NaN"})
    figure.draw_without_rendering()
    assert "not finite (41 points)" in _texts(figure)
    assert [list(axes.get_yticks()) for axes in figure.axes] == [[], []]


def test_line_without_test_samples_shows_none() -> None:
    arrays, results = _line()
    for key in ("test_loss", "test_standard_error", "test_accuracy"):
        arrays[key] = np.full(41, np.nan)
    figure = draw_interpolation(arrays, results)
    assert [text for text in _texts(figure).split("\n") if text in ("train", "test")] == ["train"]


def test_band_of_a_mean_below_its_error_is_drawn() -> None:
    arrays, results = _line()
    arrays["standard_error"] = 3 * arrays["loss"]
    figure = draw_interpolation(arrays, results)
    figure.draw_without_rendering()
    (outline,) = figure.axes[0].collections[0].get_paths()
    at, height = outline.vertices.T
    for alpha, loss in zip(arrays["alpha"], arrays["loss"], strict=True):
        (low, high) = height[at == alpha].min(), height[at == alpha].max()
        assert 0 < low <= loss
        assert high == pytest.approx(4 * loss)


def test_eigenvalues_have_their_bounds_as_bars() -> None:
    arrays, results = _spectrum(with_density=False)
    figure = draw_spectrum(arrays, results)
    largest, smallest = figure.axes[0].containers
    for container, key in ((largest, "largest"), (smallest, "smallest")):
        order = slice(None) if key == "largest" else slice(None, None, -1)
        (bars,) = container.lines[2]  # type: ignore[attr-defined]
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends.mean(axis=1), arrays[key][order], rtol=1e-12)
        expected = 2 * arrays[f"{key}_residual_bounds"][order]
        np.testing.assert_allclose(np.diff(ends)[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("threshold", "text"),
    [
        (38.0, "stability threshold 38"),
        (900.0, "900 (above the picture)"),
        (38000.0, "stability threshold 38,000 (above the picture)"),
        (None, None),
    ],
)
def test_stability_threshold(threshold: float | None, text: str | None) -> None:
    arrays, results = _spectrum(with_density=False)
    ratio = None if threshold is None else 0.5
    stability = {"stability_threshold": threshold, "sharpness_ratio": ratio}
    figure = draw_spectrum(arrays, {**results, **stability})
    if text is None:
        assert "threshold" not in _texts(figure)
    else:
        assert text in _texts(figure)
    drawn = [line for line in figure.axes[0].lines if set(line.get_ydata()) == {threshold}]
    assert len(drawn) == (threshold == 38.0)


@pytest.mark.parametrize(
    "other",
    [
        {"operator": "ggn", "sharpness_ratio": None},
        {"scaling": "elementwise", "sharpness_ratio": None},
        {"preconditioned": {"value": 19.0}},  # Adam's ratio, which is of another matrix
    ],
)
def test_no_threshold_beside_curvatures_it_is_not_about(other: dict[str, Any]) -> None:
    arrays, results = _spectrum(3, with_density=False)
    assert "threshold" in _texts(draw_spectrum(arrays, results))
    assert "threshold" not in _texts(draw_spectrum(arrays, {**results, **other}))


@pytest.mark.parametrize("count", [0, 1, 60])
def test_any_number_of_eigenvalues(count: int) -> None:
    arrays, results = _spectrum(count, with_density=False)
    figure = draw_spectrum(arrays, {**results, "converged": False})
    figure.draw_without_rendering()
    assert "NOT CONVERGED" in figure.get_supxlabel()
    assert ("no eigenvalue was asked for" in _texts(figure)) == (count == 0)
    legend = figure.axes[0].get_legend()
    names = [text.get_text() for text in legend.get_texts()][-2:] if legend else []
    assert names == {0: [], 1: ["largest", "smallest"], 60: ["60 largest", "2 smallest"]}[count]


def test_ranks_are_from_either_end_where_there_are_two() -> None:
    arrays, results = _spectrum(3, with_density=False)
    assert draw_spectrum(arrays, results).axes[0].get_xlabel() == "rank, from either end"
    arrays |= {"smallest": np.zeros(0), "smallest_residual_bounds": np.zeros(0)}
    assert draw_spectrum(arrays, results).axes[0].get_xlabel() == "rank"


@pytest.mark.parametrize(
    ("count", "largest"),
    [
        (1, "1"),
        (3, "1 2 3"),
        (10, "1 2 3 4 5 6 7 8 9 10"),
        (37, "1 10 20 30 37"),
        (200, "1 50 100 150 200"),
    ],
)
def test_ranks_of_eigenvalues_are_round_and_both_ends_can_be_read(count: int, largest: str) -> None:
    for bottom, smallest in ((1, "1"), (count, " ".join(reversed(largest.split())))):
        arrays, results = _spectrum(count, with_density=False)
        values = np.linspace(-2, -1, bottom)
        arrays |= {"smallest": values, "smallest_residual_bounds": 0.1 * np.abs(values)}
        figure = draw_spectrum(arrays, results, (7.0 if bottom == count else 3.4, None))
        figure.draw_without_rendering()
        labels = figure.axes[0].get_xticklabels()
        labels.sort(key=lambda label: label.get_position()[0])
        _apart(labels)
        assert " ".join(label.get_text() for label in labels) == f"{largest} {smallest}"
        # Each name stands below the eigenvalue of its rank.
        ranks = [int(label.get_text()) for label in labels]
        places = [round(label.get_position()[0]) for label in labels]
        end = places[-1] + 1
        split = len(largest.split())
        assert places[:split] == [rank - 1 for rank in ranks[:split]]
        assert places[split:] == [end - rank for rank in ranks[split:]]
        _, low = figure.axes[0].containers
        assert max(low.lines[0].get_xdata()) == places[-1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("epochs", [0, 1, 160])
def test_any_number_of_epochs(epochs: int) -> None:
    figure = draw_training(*_course(epochs))
    figure.draw_without_rendering()
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert all("." not in label for label in labels)


def test_no_epoch_beyond_the_last_has_a_tick() -> None:
    for epochs in (20, 30, 164):
        for axes in draw_training(*_course(epochs)).axes:
            low, high = axes.get_xlim()
            assert low < 0
            assert high > epochs
            assert max(x for x in axes.get_xticks() if x <= high) <= epochs


def test_rate_is_drawn_as_it_was_used() -> None:
    columns, results = _course(4, "step")
    columns["learning_rate"] = np.array([0.002, 0.1, 0.1, 0.01, 0.001])
    rates = draw_training(columns, results).axes[-1]
    warmup, held = rates.lines
    assert (warmup.get_drawstyle(), held.get_drawstyle()) == ("default", "steps-pre")
    assert warmup.get_xydata().tolist() == [[0, 0.002], [1, 0.1]]  # type: ignore[union-attr]
    # 0.01 is the rate of all of epoch 3, from the end of epoch 2 on.
    assert held.get_path().vertices.tolist() == [
        [1, 0.1], [1, 0.1], [2, 0.1], [2, 0.01], [3, 0.01], [3, 0.001], [4, 0.001]
    ]  # fmt: skip
    assert rates.get_yscale() == "log"
    columns, results = _course(4)
    columns["learning_rate"] = np.array([0.002, 0.1, 0.1, 0.05, 0.0])
    rates = draw_training(columns, results).axes[-1]
    assert rates.get_yscale() == "linear"
    assert np.array_equal(rates.lines[0].get_ydata(), columns["learning_rate"])
    columns["learning_rate"] = np.full(5, 0.1)
    assert len(draw_training(columns, results).axes) == 2  # a rate that never changes is in words


@pytest.mark.parametrize("width", [3.4, 7.0])
def test_nothing_is_drawn_over_the_legends_of_a_training(width: float) -> None:
    figure = draw_training(*_course(schedule="step"), size=(width, None))
    figure.draw_without_rendering()
    for axes in figure.axes[:2]:
        legend = axes.get_legend()
        assert legend is not None
        assert not axes.get_window_extent().count_overlaps([legend.get_window_extent()])
    assert "test, last" in _texts(figure)
    _words_inside(figure)


@pytest.mark.parametrize(("ratio", "is_logarithmic"), [(2, False), (1000, True)])
def test_a_logarithmic_axis_of_training_says_so(ratio: float, is_logarithmic: bool) -> None:
    columns, results = _course()
    for split in ("train", "test"):
        columns[f"{split}_loss"] = np.geomspace(ratio, 1, len(columns["epoch"]))
    label = draw_training(columns, results).axes[0].get_ylabel()
    assert label.endswith(",\nlogarithmic") == is_logarithmic


def test_no_accuracy_is_a_percentage() -> None:
    for figure in (draw_training(*_course()), draw_interpolation(*_line())):
        assert "accuracy (fraction)" in _texts(figure).replace("\n", " ")


def _paraboloid(x: Any, y: Any) -> Any:
    """Its lowest point, (0.4, -0.5), is that of none of its mirror images; far from decades."""
    return 10 + (x - 0.4) ** 2 + 2 * (y + 0.5) ** 2


def test_contours_lie_where_the_loss_is() -> None:
    figure = draw_contour(*_surface(_paraboloid(*_grid(41, 31)[2:])))
    lines, bands = (_contour_set(figure, filled=filled) for filled in (False, True))
    # Linear interpolation errs by f'' h² / 8 along an edge: 2 / 20² / 8 and 4 / 15² / 8.
    room = 4 / 15**2 / 8
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        assert len(path.vertices)
        np.testing.assert_allclose(_paraboloid(*path.vertices.T), level, rtol=0, atol=room)
    innermost = next(path for path in bands.get_paths() if len(path.vertices))
    assert _paraboloid(*innermost.vertices.T).max() <= bands.levels[1] + room


def test_height_is_the_loss_over_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    plot_surface = Axes3D.plot_surface

    def recording(axes: Any, *arrays: Any, **how: Any) -> Any:
        drawn.extend(arrays)
        return plot_surface(axes, *arrays, **how)

    monkeypatch.setattr(Axes3D, "plot_surface", recording)
    draw_surface_3d(*_surface(_paraboloid(*_grid(41, 31)[2:])))
    x, y, height = drawn
    # So many cells are drawn as they are.
    assert height.shape == (31, 41)
    np.testing.assert_allclose(height, _paraboloid(x, y), rtol=1e-12)


def _words_inside(figure: Figure) -> None:
    """No legend, caption or label is cut off by the edge of the picture, at any resolution."""
    before = figure.dpi
    for dpi in (60, 300, before):
        figure.set_dpi(dpi)
        with house_style():  # as a file is written
            figure.draw_without_rendering()
        _words_drawn_inside(figure)


def _words_drawn_inside(figure: Figure) -> None:
    texts = [t for legend in figure.legends for t in legend.get_texts()]
    texts += [t for axes in figure.axes for t in (axes.xaxis.label, axes.yaxis.label)]
    texts += [t for axes in figure.axes if (inner := axes.get_legend()) for t in inner.get_texts()]
    for text in [*texts, figure._supxlabel]:  # type: ignore[attr-defined]
        box = text.get_window_extent()
        if text.get_text():
            assert box.x0 >= 0, text
            assert box.y0 >= 0, text
            assert box.x1 <= figure.bbox.x1, text
            assert box.y1 <= figure.bbox.y1, text


def _apart(labels: Any) -> None:
    """No two labels in a row overlap."""
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    assert len(boxes) > 1
    assert not any(one.overlaps(two) for one, two in pairwise(boxes))


@pytest.mark.parametrize("beside", [[], ["line_loss", "line_standard_error"]])
def test_a_path_of_real_targets_and_large_losses_fits_three_inches(beside: list[str]) -> None:
    arrays, results = _line()
    for name in [*arrays]:
        if "accuracy" in name:
            arrays[name] = np.full(41, np.nan)
        elif name != "alpha":
            arrays[name] = 1e4 * arrays[name]
    arrays |= dict.fromkeys(beside, 1.1 * arrays["loss"])
    measured = {**results["measured"], "loss": "squared_error"}
    results |= {"barrier": 9000.0, "direction_norm": 39.12, "measured": measured}
    figure = draw_interpolation(arrays, results, (3.0, 3.0))
    _words_inside(figure)
    assert "‖d‖ = 39.12)" in _texts(figure)


@pytest.mark.parametrize(("unit", "power"), [(1e-7, "10⁻⁷"), (1e7, "10⁷")])
def test_training_of_small_and_large_losses_fits_five_inches(unit: float, power: str) -> None:
    columns, results = _course()
    for split in ("train", "test"):
        columns[f"{split}_loss"] = (1 + 0.1 * columns["epoch"]) * unit
    figure = draw_training(columns, results, (5.0, 4.0))
    _words_inside(figure)
    assert power in _texts(figure)
    for axes in figure.axes[:2]:
        assert axes.get_window_extent().width > 1.2 * figure.dpi


@pytest.mark.parametrize("size", [(3.4, None), (7.0, None), (5.0, 4.0)])
def test_spectrum_of_many_and_of_long_names_fits(size: Any) -> None:
    arrays, results = _spectrum(40)
    n = 30
    values = np.linspace(1, 10, n)
    names = [f"encoder.layers.{i}.self_attention.projection" for i in range(n)]
    arrays |= {
        "layer_names": np.array(names),
        "layer_largest": values, "layer_residual_bounds": values / 50, "layer_traces": -values,
        "layer_trace_standard_errors": values / 10,
    }  # fmt: skip
    results |= {"operator": "empirical-fisher", "scaling": "elementwise"}
    figure = draw_spectrum(arrays, results, size)
    _words_inside(figure)
    ranks, density, layers, traces = figure.axes
    _apart(ranks.get_xticklabels())
    _apart(density.get_yticklabels())
    _apart(layers.get_yticklabels())
    labels = layers.get_yticklabels()
    # Of names for which a given height has no room, some are left out.
    num_names = len({label.get_text() for label in labels})
    assert num_names == n if size[1] is None else 5 < num_names < n
    assert all(label.get_window_extent().x0 >= 0 for label in labels)
    # Both have their rows at one height, and the same room for bars.
    boxes = [axes.get_window_extent() for axes in (layers, traces)]
    assert boxes[0].intervaly == pytest.approx(boxes[1].intervaly)
    assert layers.get_ylim() == traces.get_ylim()
    assert all(box.width > 0.25 * figure.bbox.width for box in boxes)
    for axes, found in ((layers, values), (traces, -values)):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(found)
        _apart(axes.get_xticklabels())


def test_barriers_over_one_sample_have_no_brackets() -> None:
    arrays, results = _matrix(3)
    arrays = {**arrays, **{f"matrix_{end}": np.full((3, 3), np.nan) for end in ("lower", "upper")}}
    texts = _texts(draw_matrix(arrays, results))
    assert "[" not in texts
    assert "intervals" not in texts


def test_barriers_fit_their_cells() -> None:
    arrays, results = _matrix(3)
    arrays = {key: 1e6 * values for key, values in arrays.items()}
    names = [f"sweep/learning-rate-{i}/model.pth" for i in range(3)]
    figure = draw_matrix(arrays, {**results, "matrix": {"names": names}})
    with house_style():
        figure.draw_without_rendering()
    (axes,) = figure.axes
    cell = axes.get_window_extent().width / 3
    for text in axes.texts:
        box = text.get_window_extent()
        assert max(box.width, box.height) < cell


def test_barriers_of_nothing_have_a_scale_all_the_same() -> None:
    arrays, results = _matrix(2)
    figure = draw_matrix({key: 0 * np.ones((2, 2)) for key in arrays}, results)
    (bar,) = figure.axes[0].child_axes
    assert bar.get_ylim() == (0, 1)


def test_names_of_a_matrix_are_not_cut_off() -> None:
    for size in (*SIZES, (5.0, 4.0)):
        arrays, results = _matrix()
        names = ["a", "b", *(f"{run}/checkpoints/step-00000160.pth" for run in "ab")]
        figure = draw_matrix(arrays, {**results, "matrix": {"names": names}}, size)
        figure.draw_without_rendering()
        axes = figure.axes[0]
        for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
            box = label.get_window_extent()
            assert min(box.x0, box.y0) >= 0
            assert box.x1 <= figure.bbox.x1


SIZES = [(3.4, None), (7.0, None), (4.0, 4.0)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stem", CATALOGUE)
def test_every_figure_fits_every_size(stem: str, size: Any) -> None:
    data = {
        "train": _course, "hessian": _spectrum, "interp_1d": lambda: _beside("unaligned_"),
        "interp_matrix": _matrix,
    }.get(stem, _everything)  # fmt: skip
    figure = CATALOGUE[stem][1](*data(), size)
    assert figure.get_figwidth() == size[0]
    if size[1] is not None:
        assert figure.get_figheight() == size[1]
    _words_inside(figure)


def test_catalogue_has_all_that_commands_may_draw() -> None:
    assert sorted(CATALOGUE) == sorted(stem for stems in FIGURES.values() for stem in stems)


def test_picture_on_the_test_samples_is_of_them_alone() -> None:
    arrays, results = _everything()
    figure = draw_test_contour(arrays, results)
    text = figure.get_supxlabel()
    assert "77 test samples" in text
    assert "31 of 315 cells measured" in text
    # The quadratic model and its errors are of the other loss.
    assert "quadratic" not in text
    bar = figure.axes[0].child_axes[0]
    finite = arrays["test_loss"][np.isfinite(arrays["test_loss"])]
    np.testing.assert_allclose(bar.get_ylim(), [finite.min(), finite.max()], rtol=1e-12)


def test_figures_without_arrays_are_not_drawn() -> None:
    arrays, results = _surface(_bowl())
    plain = draw_all(FIGURES["contour"], arrays, results, FigureConfig())
    assert list(plain) == ["contour_2d", "contour_3d"]
    figure = FigureConfig(size="5x3.5", show_cells=True)
    everything = draw_all(FIGURES["contour"], *_everything(), figure)
    assert list(everything) == list(FIGURES["contour"])
    assert tuple(everything["contour_2d"].get_size_inches()) == (5, 3.5)
    # On each surface, the cells of its own.
    arrays, _ = _everything()
    for stem, name in (("contour_2d", "measured"), ("contour_test", "test_measured")):
        rows, columns = np.nonzero(arrays[name])
        expected = np.column_stack([arrays["x"][columns], arrays["y"][rows]])
        assert np.array_equal(_dots(everything[stem]), expected)
    assert list(draw_all(FIGURES["interp"], *_matrix(), FigureConfig())) == ["interp_matrix"]


def test_pixels_are_inches_times_dpi() -> None:
    handle = io.BytesIO()
    save_figure(draw_contour(*_surface(_bowl()), size=(4.0, 3.0)), handle, "png", 123)
    width, height = (int.from_bytes(handle.getvalue()[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (492, 369)


def _dots(figure: Figure) -> Any:
    (dots,) = (line for line in figure.axes[0].lines if line.get_label() == "measured")
    return dots.get_xydata()


def test_dots_are_at_the_measured_cells() -> None:
    arrays, results = _everything()
    rows, columns = np.nonzero(arrays["measured"])
    expected = np.column_stack([arrays["x"][columns], arrays["y"][rows]])
    for figure in (
        draw_contour(arrays, results, show_cells=True),
        draw_error_map(arrays, results),
    ):
        assert np.array_equal(_dots(figure), expected)
        assert f"{len(expected)} of 315 cells measured" in figure.get_supxlabel()
    assert "measured" not in _texts(draw_contour(arrays, results)).split("\n")


def test_error_map_shows_shares_of_the_loss_and_nothing_where_measured() -> None:
    arrays, results = _everything()
    share = error_share(arrays, results)
    filled = ~arrays["measured"] & np.isfinite(arrays["loss"])
    assert np.array_equal(np.isfinite(share), filled)
    expected = 0.01 * np.linspace(0.1, 1, share.size).reshape(share.shape)
    np.testing.assert_allclose(share[filled], expected[filled], rtol=1e-12)
    figure = draw_error_map(arrays, results)
    (mesh,) = (c for c in figure.axes[0].collections if c.colorbar)
    assert np.array_equal(np.ma.getmaskarray(mesh.get_array()), ~filled)
    # Colours have a logarithmic scale of at most three decades; no value here is below it.
    np.testing.assert_allclose(mesh.get_array()[filled], share[filled], rtol=1e-12)
    assert f"largest estimate {share[filled].max():.2g}" in figure.get_supxlabel()


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-6, 1.2, 1.9, 1e5])
def test_bar_of_the_error_map_has_ticks_whatever_it_spans(factor: float) -> None:
    arrays, results = _everything()
    share = 1.13e-7 * factor ** np.linspace(0, 1, arrays["loss"].size)
    arrays["error_estimate"] = arrays["loss"] * share.reshape(arrays["loss"].shape)
    figure = draw_error_map(arrays, results)
    figure.draw_without_rendering()
    (bar,) = figure.axes[0].child_axes
    low, high = bar.get_ylim()
    names = [
        name
        for tick, name in zip(bar.get_yticks(), bar.get_yticklabels(), strict=True)
        if low <= tick <= high and name.get_visible()
    ]
    assert len(names) >= (1 if factor < 1.001 else 2)
    assert all(name.get_text() for name in names)


def test_convexity_map_hatches_what_is_not_known() -> None:
    arrays, results = _everything()
    figure = draw_convexity(arrays, results)
    (mesh,) = (c for c in figure.axes[0].collections if c.colorbar)
    ratio = mesh.get_array()
    assert ratio is not None
    assert np.argwhere(np.ma.getmaskarray(ratio)).tolist() == [[0, 0], [4, 1]]
    assert mesh.norm.vmax == pytest.approx(1.2 / 4)
    np.testing.assert_allclose(ratio[2], (0.2 + arrays["convexity_x"] ** 2) / 4, rtol=1e-12)
    # Cells lie around their points: a fifth of the plane, the outer ones half outside.
    corners = mesh.get_coordinates()  # type: ignore[attr-defined]
    np.testing.assert_allclose(corners[0, :, 0], [-1.25, -0.75, -0.25, 0.25, 0.75, 1.25])
    assert "not known to 0.05 (2)" in _texts(figure)
    _contour_set(figure, filled=False)


def test_dashes_are_levels_of_the_quadratic_model() -> None:
    model = {"gradient": [0.1, -0.2], "hessian": [0.6, 0.1, 0.4], "max_error": 0.25}
    loss = 1 + _bowl(41, 41) ** 2
    figure = draw_contour(*_surface(loss, plane="eigen", quadratic=model, loss_at_center=1.0))
    assert "off by up to 25 %" in figure.get_supxlabel()
    (dashed,) = (
        c
        for c in figure.axes[0].findobj(ContourSet)
        if not c.filled and c.linestyles == "--"  # type: ignore[attr-defined]
    )
    assert len(dashed.levels)
    for level, path in zip(dashed.levels, dashed.get_paths(), strict=True):
        x, y = path.vertices.T
        at = 1 + 0.1 * x - 0.2 * y + (0.6 * x**2 + 2 * 0.1 * x * y + 0.4 * y**2) / 2
        # Linear interpolation along an edge of 2 / 40 errs by at most f'' h² / 8.
        np.testing.assert_allclose(at, level, rtol=0, atol=0.6 * 0.05**2 / 8)


def test_band_is_what_the_arrays_say() -> None:
    arrays, results = _everything()
    figure = draw_bands(arrays, results)
    median = next(line for line in figure.axes[0].lines if line.get_label() == "median")
    np.testing.assert_array_equal(median.get_ydata(), arrays["profile_median"])
    assert "range of 3 planes" in _texts(figure)


def test_matrix_writes_each_barrier_in_its_cell() -> None:
    arrays, results = _matrix()
    figure = draw_matrix(arrays, results)
    cells = {
        (round(t.get_position()[0]), round(t.get_position()[1])): t.get_text()
        for t in figure.axes[0].texts
    }
    assert len(cells) == 12  # all but the diagonal
    assert cells[1, 0] == cells[0, 1] == "∞"
    assert cells[3, 2] == "0.714\n[0.643,\n0.786]"
    assert "95 % intervals" in figure.get_supxlabel()
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == results["matrix"]["names"]


def test_matrix_over_one_sample_has_barriers_and_no_intervals() -> None:
    arrays, results = _matrix(3)
    arrays["matrix_barrier"] = np.array([[0, 1.612, 0.949], [1.612, 0, 1.25], [0.949, 1.25, 0]])
    for key in ("matrix_lower", "matrix_upper"):
        arrays[key] = np.full((3, 3), np.nan)
    texts = draw_matrix(arrays, results).axes[0].texts
    assert {text.get_text().split("\n")[0] for text in texts} == {"1.61", "0.949", "1.25"}


@pytest.mark.parametrize(
    ("k", "width", "lines"), [(4, 3.4, 3), (12, 3.4, 0), (12, 7.0, 3), (20, 7.0, 1), (40, 7.0, 0)]
)
def test_matrix_writes_what_can_be_read(k: int, width: float, lines: int) -> None:
    arrays, results = _matrix(k)
    figure = draw_matrix(arrays, results, (width, None))
    texts = figure.axes[0].texts
    assert len(texts) == (k * (k - 1) if lines else 0)
    assert max((text.get_text().count("\n") + 1 for text in texts), default=0) == lines
    assert all(float(text.get_fontsize()) >= 4.5 for text in texts)
    assert ("95 % intervals" in figure.get_supxlabel()) == (lines == 3)
    assert ("hatched: not finite" in figure.get_supxlabel()) == (not texts)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["a", "sweep/learning-rate-0.1", "b"], ["a", "sweep/l…rate-0.1", "b"]),
        # The cut moves until what is left tells them apart; what it takes out may be all that does.
        (
            ["sweep/learning-1-rate-0.1", "sweep/learning-2-rate-0.1", "b"],
            ["sweep…1-rate-0.1", "sweep…2-rate-0.1", "b"],
        ),
        (
            ["a/checkpoints/step-00000040.pth", "b/checkpoints/step-00000080.pth"],
            ["a/check…0040.pth", "b/check…0080.pth"],
        ),
        (
            [f"sweep/learning-rate-{i}/checkpoints/step-00000040.pth" for i in (1, 2)],
            ["1: sweep/l…0040.pth", "2: sweep/l…0040.pth"],
        ),
    ],
)
def test_long_names_of_a_matrix_stay_apart(names: list[str], shown: list[str]) -> None:
    arrays, results = _matrix(len(names))
    axes = draw_matrix(arrays, {**results, "matrix": {"names": names}}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == shown


@pytest.mark.parametrize(
    ("prefix", "name", "own"),
    [
        ("line_", "train, line: barrier 2.5 [2.4, 2.6]", "train, curve"),
        ("unrepaired_", "train, unrepaired: barrier 2.5 [2.4, 2.6]", "train, repaired"),
        ("unaligned_", "train, unaligned: barrier 2.5 [2.4, 2.6]", "train, aligned"),
    ],
)
def test_other_path_is_drawn_beside_with_its_barrier(prefix: str, name: str, own: str) -> None:
    arrays, results = _beside(prefix)
    results[f"barrier_{prefix}".rstrip("_")] = {"value": 2.5, "interval": [2.4, 2.6]}
    done = {"line_": "curve", "unrepaired_": "repair", "unaligned_": "alignment"}
    results[done[prefix]] = {"what was": "done", "layers": ["fc1"]}
    # What was repaired was aligned before; the last thing done to a path is its name.
    if prefix == "unrepaired_":
        results["alignment"] = {"what was": "done before"}
        arrays |= {f"unaligned_{key}": arrays[key] for key in ("loss", "standard_error")}
    figure = draw_interpolation(arrays, results)
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    np.testing.assert_array_equal(lines[name].get_ydata(), arrays[f"{prefix}loss"])
    np.testing.assert_array_equal(lines[own].get_ydata(), arrays["loss"])
    assert len(figure.axes[0].collections) >= 3  # a band each


def test_path_without_a_layer_to_rescale_is_not_called_repaired() -> None:
    arrays, results = _beside("unaligned_")
    results |= {"alignment": {"what was": "done"}, "repair": {"layers": []}}
    labels = [str(line.get_label()) for line in draw_interpolation(arrays, results).axes[0].lines]
    assert "train, aligned" in labels


def test_two_lines_beside_a_curve_say_which_they_go_to() -> None:
    arrays, results = _beside("line_")
    arrays |= {f"unaligned_{key}": arrays[key] + 1 for key in ("loss", "standard_error")}
    results |= {"curve": {"what was": "done"}, "alignment": {"what was": "done before"}}
    lines = draw_interpolation(arrays, results).axes[0].lines
    found = {str(line.get_label()): line.get_ydata() for line in lines}
    assert {"train, curve", "train, aligned line", "train, unaligned line"} <= set(found)
    np.testing.assert_array_equal(found["train, aligned line"], arrays["line_loss"])
    np.testing.assert_array_equal(found["train, unaligned line"], arrays["unaligned_loss"])


def test_no_barrier_is_said_too() -> None:
    arrays, results = _beside("line_")
    figure = draw_interpolation(arrays, {**results, "barrier": 0.0, "barrier_interval": [0.0, 0.1]})
    assert "barrier 0 [0, 0.1]" in _texts(figure)


def test_whisker_is_the_interval_over_the_chord() -> None:
    arrays, results = _beside("line_")
    figure = draw_interpolation(arrays, results)
    assert "barrier 0.9 [0.8, 1.1]" in _texts(figure)
    (whisker,) = figure.axes[0].containers
    (bars,) = whisker.lines[2]  # type: ignore[attr-defined]
    ((_, low), (_, high)) = bars.get_segments()[0]
    # 0.8 to 1.1 above the chord, whose top lies 0.9 below the loss.
    assert high - low == pytest.approx(0.3, rel=1e-9)
    top = float(whisker.lines[0].get_ydata()[0])  # type: ignore[attr-defined]
    assert (low, high) == pytest.approx((top - 0.1, top + 0.2), rel=1e-9)


@pytest.mark.parametrize("height", [0.3, 0.5, 0.6, 1.0, 1.9])
def test_long_axis_labels_leave_room_for_the_picture(height: float) -> None:
    labels = [
        "x: principal axis 1 (91.3 % of the trajectory), unit norm",
        "y: principal axis 2 (7.6 %), unit norm",
    ]
    y = np.linspace(-height, height, 15)
    arrays, results = _surface(_decades(), y=y, plane="pca", axis_labels=labels)
    for figure in (draw_contour(arrays, results), draw_surface_3d(arrays, results)):
        _words_inside(figure)
    box = draw_contour(arrays, results).axes[0].get_window_extent()
    assert box.width > 0.4 * 340  # of a hundred pixels an inch


def test_labels_of_a_plane_not_to_scale_are_inside_at_every_resolution() -> None:
    """The layout was found anew for each, and moved them out of the picture."""
    labels = [f"{axis}: given direction {rank}, norm 4.536" for axis, rank in ("x1", "y2")]
    x, y = np.linspace(-0.25, 1.25, 9), np.linspace(-0.25, 0.25, 7)
    _, loss = np.meshgrid(x, y)
    _words_inside(draw_contour(*_surface(1.2 + 0.3 * loss, x=x, y=y, axis_labels=labels)))


@pytest.mark.parametrize("height", [0.57, 0.6, 1.0])
def test_wide_picture_is_no_higher_than_it_has_to_be(height: float) -> None:
    labels = ["x: given direction 1, norm 28.53", "y: given direction 2, norm 28.53"]
    y = np.linspace(-height, height, 15)
    figure = draw_contour(*_surface(_decades(), y=y, plane="file", axis_labels=labels))
    for _ in range(3):
        figure.draw_without_rendering()
    top = figure.axes[0].get_window_extent().y1
    above = figure.legends[0].get_window_extent().y0
    assert 0 <= above - top < 0.2 * figure.dpi
    _words_inside(figure)


def test_names_on_a_low_colour_bar_do_not_run_into_each_other() -> None:
    y = np.linspace(-0.57, 0.57, 15)
    figure = draw_contour(*_surface(_decades(), y=y))
    figure.draw_without_rendering()
    (bar,) = figure.axes[0].child_axes
    boxes = [name.get_window_extent() for name in bar.yaxis.get_ticklabels() if name.get_visible()]
    assert len(boxes) > 2
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))


@pytest.mark.parametrize("size", [(3.4, None), (7.0, None)])
@pytest.mark.parametrize("reach", [1.0, 1e6])
@pytest.mark.parametrize(
    "labels",
    [
        ["x: towards A,\nin units of ‖A − run‖ = 17.41", "y: orthogonal, towards B,\nsame unit"],
        ["x: eigenvector 1 (λ = 0.9206), unit norm", "y: eigenvector 2 (λ = 0.8886), unit norm"],
    ],
)
def test_labels_in_perspective_keep_clear_of_each_other(
    labels: list[str], reach: float, size: Any
) -> None:
    x, y = np.linspace(-reach, reach, 21), np.linspace(-reach, reach, 15)
    figure = draw_surface_3d(*_surface(_decades(), x=x, y=y, axis_labels=labels), size)
    figure.draw_without_rendering()
    axes: Any = figure.axes[0]
    below, right, up = (axis.label.get_window_extent() for axis in axes._axis_map.values())
    caption = figure._supxlabel.get_window_extent()  # type: ignore[attr-defined]
    assert min(below.y0, right.y0) > caption.y1
    assert up.y0 > right.y1
    assert up.x1 < figure.bbox.x1
    # No power of ten lies on a label: the ticks have it.
    assert not any(axis.offsetText.get_text() for axis in axes._axis_map.values())
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert any("10⁵" in name for name in names) == (reach == 1e6)


@pytest.mark.parametrize("size", [(3.4, None), (7.0, None), (3.4, 2.5)])
@pytest.mark.parametrize(("base", "step"), [(9.2484e-5, 1e-9), (1e20, 1e20), (1e10, 100.0)])
def test_height_with_long_names_stays_inside(base: float, step: float, size: Any) -> None:
    x = np.linspace(1e5, 1e5 + 1e-3, 21)
    loss = base + step * np.add.outer(np.arange(15.0), np.arange(21.0)) / 10
    figure = draw_surface_3d(*_surface(loss, x=x), size)
    figure.draw_without_rendering()
    axes: Any = figure.axes[0]
    for axis in axes._axis_map.values():
        words = [axis.label, *(tick.label1 for tick in axis.majorTicks)]
        boxes = [word.get_window_extent() for word in words]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    ticks = [tick.label1.get_window_extent() for tick in axes.zaxis.majorTicks]
    assert max(tick.x1 for tick in ticks) < axes.zaxis.label.get_window_extent().x1


def test_numbers_far_from_zero_do_not_run_into_each_other() -> None:
    x = np.linspace(1e5, 1e5 + 1e-3, 15)
    for size in ((3.4, None), (7.0, None)):
        figure = draw_contour(*_surface(1e10 + _bowl()[:, :15], x=x), size)
        figure.draw_without_rendering()
        names = [name for name in figure.axes[0].get_xticklabels() if name.get_visible()]
        boxes = [name.get_window_extent() for name in names]
        assert len(boxes) > 2
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        assert [name.get_text() for name in (names[0], names[-1])] == ["100000", "+0.001"]


def test_label_of_three_lines_keeps_clear_of_the_ticks() -> None:
    x, y = np.linspace(-0.4, 0.4, 21), np.linspace(-0.4, 0.4, 15)
    labels = [
        f"{axis}: eigenvector {rank} (λ = 13.61 with frozen statistics), unit norm"
        for rank, axis in enumerate("xy", start=1)
    ]
    figure = draw_surface_3d(*_surface(_decades(), x=x, y=y, axis_labels=labels))
    figure.draw_without_rendering()
    axes: Any = figure.axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        assert axis.label.get_text().count("\n") == 2
        box, angle = axis.label.get_window_extent(), np.radians(axis.label.get_rotation())
        axis.label.set_rotation(0)
        half = axis.label.get_window_extent().height / 2
        # How far the middles of the ticks' names are from the label's, across its lines.
        names = [tick.label1.get_window_extent() for tick in axis.majorTicks]  # where drawn
        middles = np.array([[(name.x0 + name.x1) / 2, (name.y0 + name.y1) / 2] for name in names])
        middle = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
        across = (middles - middle) @ np.array([-np.sin(angle), np.cos(angle)])
        assert across.min() > half + names[0].height


def test_powers_of_ten_stand_at_the_ticks_of_all_axes() -> None:
    x = np.linspace(-1e6, 1e6, 21)
    arrays, results = _everything()
    arrays |= {"x": x, "convexity_ratio": 1e-7 * arrays["convexity_ratio"]}
    arrays |= {"convexity_x": np.linspace(-1e6, 1e6, 5)}
    figure = draw_convexity(arrays, results)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    (bar,) = axes.child_axes
    assert axes.xaxis.get_offset_text().get_text() == bar.yaxis.get_offset_text().get_text() == ""
    assert "−10⁶" in [text.get_text() for text in axes.get_xticklabels()]
    assert "10⁻⁸" in bar.get_yticklabels()[1].get_text()


@pytest.mark.parametrize("along", ["random", "gradient", "eigen"])
def test_label_of_a_long_direction_fits(along: str) -> None:
    arrays, results = _line()
    _words_inside(draw_interpolation(arrays, {**results, "along": along, "barrier": None}))


def test_density_says_how_high_its_nodes_are() -> None:
    arrays, results = _spectrum()
    axes = draw_spectrum(arrays, results).axes[1]
    label = "12 quadrature nodes at their peaks, w/(σ√(2π))"
    (nodes,) = (line for line in axes.lines if line.get_label() == label)
    width = default_width(arrays["density_nodes"])
    expected = arrays["density_weights"] / (width * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(nodes.get_ydata(), expected, rtol=1e-12)
    one = {**arrays, "density_nodes": np.array([3.0]), "density_weights": np.array([1.0])}
    assert "1 quadrature node at its peak" in _texts(draw_spectrum(one, results))
