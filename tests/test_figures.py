"""Figures: equal bytes, nothing hidden, nothing made up. What they look like was looked at."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from lgo_cli.figures.files import save_figure
from lgo_cli.figures.interpolation import draw_interpolation
from lgo_cli.figures.scale import LossScale
from lgo_cli.figures.spectrum import draw_spectrum
from lgo_cli.figures.style import round_levels, tick_names
from lgo_cli.figures.surface import bilinear, draw_contour, draw_surface_3d
from lgo_cli.figures.training import draw_training

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
        axis_labels=["x: direction, filter-normalised", "y: direction, filter-normalised"],
        markers=[],
        trajectory=None,
    )
    return {"x": x, "y": y, "loss": loss}, {**results, **more}


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
        stability_threshold=38.0, converged=True, num_matvecs=87, operator="hessian", scaling="none"
    )
    return arrays, results


def _course(epochs: int = 5) -> tuple[Arrays, Arrays]:
    e = np.arange(epochs + 1.0)
    columns = {
        "epoch": e, "learning_rate": 0.1 / (1 + e), "train_loss": 2.3 * 0.5**e,
        "train_accuracy": 1 - 0.9 * 0.5**e, "test_loss": 2.4 * 0.6**e,
        "test_accuracy": 1 - 0.9 * 0.6**e,
    }  # fmt: skip
    recipe = {
        "loss": "cross_entropy", "schedule": "cosine", "optimizer": "sgd", "lr": 0.1,
        "batch_size": 128,
    }  # fmt: skip
    return columns, {"model": "mlp", "dataset": "digits", "recipe": recipe}


DRAWINGS: dict[str, Any] = {
    "training": lambda: draw_training(*_course()),
    "spectrum": lambda: draw_spectrum(*_spectrum()),
    "interpolation": lambda: draw_interpolation(*_line()),
    "contour": lambda: draw_contour(*_surface(_holes()[::2, ::2])),
    "surface": lambda: draw_surface_3d(*_surface(_holes()[::2, ::2])),
}


def _bytes(figure: Figure, format: str) -> bytes:
    handle = io.BytesIO()
    save_figure(figure, handle, format)
    return handle.getvalue()


def _texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(mpl.text.Text))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize("format", FORMATS)
def test_drawn_twice_has_the_same_bytes(
    name: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _bytes(DRAWINGS[name](), format)
    # Neither the clock nor the user's own settings get in.
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    with mpl.rc_context({"font.size": 17, "lines.linewidth": 5, "figure.facecolor": "red"}):
        before = dict(mpl.rcParams)
        second = _bytes(DRAWINGS[name](), format)
        assert dict(mpl.rcParams) == before
    assert first == second
    for stamp in (b"CreationDate", b"ModDate", b"Software", b"<dc:date>", b"atplotlib v"):
        assert stamp not in first
    magic = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[format]
    assert first.startswith(magic)


def test_figures_need_neither_torch_nor_pyplot() -> None:
    code = (
        "import sys\n"
        "from lgo_cli.figures import files, interpolation, scale, spectrum, style, surface\n"
        "from lgo_cli.figures import training\n"
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
        for part in ("resnet20 on digits", "cross entropy", "1,024 train samples", "batch norm"):
            assert part in words
        figure.draw_without_rendering()
        box = figure._supxlabel.get_window_extent()  # type: ignore[attr-defined]
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


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
        assert ("mean loss (nats), logarithmic" in _texts(figure)) == logarithmic


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
    assert tick_names(np.array([1e-6, 1000.0, 1e7])) == ["1e-06", "1000", "1e+07"]
    assert tick_names(np.array([2.3001, 2.3002])) == ["2.3001", "2.3002"]
    assert tick_names(np.array([2.30258490, 2.30258492])) == ["2.3025849", "+2e-08"]


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
    figure = draw_contour(*_surface(_bowl(), x=x, y=y, plane="eigen"))
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    # Within a pixel.
    assert (abs(box.height / box.width - y_reach / x_reach) < 0.01) == to_scale
    assert ("not to one scale" in figure.get_supxlabel()) == (not to_scale)


def test_trajectory_goes_through_its_points() -> None:
    points = [
        {"label": "init", "x": -0.8, "y": -0.5}, {"label": "100", "x": -0.3, "y": 0.1},
        {"label": "end", "x": 0.0, "y": 0.0},
    ]  # fmt: skip
    arrays, results = _surface(_bowl(), trajectory=points, plane="pca")
    flat, tall = draw_contour(arrays, results), draw_surface_3d(arrays, results)
    for figure in (flat, tall):
        assert "trajectory, projected" in _texts(figure)
    assert "init" in _texts(flat)
    (line,) = (
        line for line in flat.axes[0].lines if str(line.get_label()).startswith("trajectory")
    )
    assert np.array_equal(line.get_xydata(), [[p["x"], p["y"]] for p in points])


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


def test_line_without_test_samples_shows_none() -> None:
    arrays, results = _line()
    for key in ("test_loss", "test_standard_error", "test_accuracy"):
        arrays[key] = np.full(41, np.nan)
    figure = draw_interpolation(arrays, results)
    assert [text for text in _texts(figure).split("\n") if text in ("train", "test")] == ["train"]


def test_band_of_a_mean_below_its_error_is_drawn() -> None:
    arrays, results = _line()
    arrays["standard_error"] = 3 * arrays["loss"]
    draw_interpolation(arrays, results).draw_without_rendering()


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
    [(38.0, "stability threshold 38"), (900.0, "900 (above the picture)"), (None, None)],
)
def test_stability_threshold(threshold: float | None, text: str | None) -> None:
    arrays, results = _spectrum(with_density=False)
    figure = draw_spectrum(arrays, {**results, "stability_threshold": threshold})
    if text is None:
        assert "threshold" not in _texts(figure)
    else:
        assert text in _texts(figure)
    drawn = [line for line in figure.axes[0].lines if set(line.get_ydata()) == {threshold}]
    assert len(drawn) == (threshold == 38.0)


@pytest.mark.parametrize("count", [0, 1, 60])
def test_any_number_of_eigenvalues(count: int) -> None:
    arrays, results = _spectrum(count, with_density=False)
    figure = draw_spectrum(arrays, {**results, "converged": False})
    figure.draw_without_rendering()
    assert "NOT CONVERGED" in figure.get_supxlabel()
    assert ("no eigenvalue was asked for" in _texts(figure)) == (count == 0)


@pytest.mark.parametrize("epochs", [0, 1, 160])
def test_any_number_of_epochs(epochs: int) -> None:
    figure = draw_training(*_course(epochs))
    figure.draw_without_rendering()
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert all("." not in label for label in labels)


def test_no_accuracy_is_a_percentage() -> None:
    for figure in (draw_training(*_course()), draw_interpolation(*_line())):
        assert "accuracy (fraction)" in _texts(figure)


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
