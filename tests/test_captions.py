"""Figures of a step as files: sizes, what redraws them, and the caption beside them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Lgo

from lgo_cli.config import ContourConfig, FigureConfig, InterpConfig
from lgo_cli.errors import UsageError
from lgo_cli.figures.captions import describe
from lgo_cli.figures.files import save_figure
from lgo_cli.manifest import read_manifest
from lgo_cli.parsing import parse_config
from lgo_cli.results import alike, in_thousands, spelled_out
from lgo_cli.runs import Status, execute
from lgo_cli.runs.names import FIGURES

CONTOUR = ContourConfig(resolution="7x5", analysis_samples=64)


def _png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


@pytest.mark.parametrize("size", ["row", "5", "1x4", "5x21", "5x4cm", "-5x4"])
def test_bad_size_is_refused(size: str) -> None:
    with pytest.raises(UsageError, match="--size: must be column, page, or width and height"):
        parse_config(FigureConfig, {"size": size}, "--")


def test_sizes_in_inches() -> None:
    assert FigureConfig().inches == (3.4, None)
    assert FigureConfig(size="page").inches == (7.0, None)
    assert FigureConfig(size="5.5x4").inches == (5.5, 4.0)


def test_size_and_dpi_redraw_without_computing(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lgo_cli.figures.files.save_figure", save_figure)  # in all its pixels
    first = execute(CONTOUR, small_run).manifest
    assert first is not None
    assert _png_size(small_run / "contour_2d.png")[0] == round(3.4 * 300)
    caption = small_run / "contour_caption.txt"
    written = caption.read_text()
    assert "contour_caption.txt" in first.outputs

    def refuse(*arguments: object) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr("lgo_cli.runs.steps.contour.ContourStep.compute", refuse)
    caption.unlink()  # it is drawn like a figure: from what is there
    assert execute(CONTOUR, small_run).status is Status.REDRAWN
    assert caption.read_text() == written
    large = execute(CONTOUR, small_run, figure=FigureConfig(size="5x4", dpi=100))
    assert large.status is Status.REDRAWN
    assert large.manifest is not None
    assert _png_size(small_run / "contour_2d.png") == (500, 400)
    assert large.manifest.fingerprint == first.fingerprint
    payload = "contour.npz"
    assert large.manifest.outputs[payload] == first.outputs[payload]
    back = execute(CONTOUR, small_run).manifest
    assert back is not None
    assert back.outputs == first.outputs


def test_caption_of_a_surface_says_what_was_measured(small_run: Path) -> None:
    execute(CONTOUR, small_run)
    text = (small_run / "contour_caption.txt").read_text()
    results = json.loads((small_run / "contour.json").read_text())["results"]
    for sentence in (
        "Model: mlp with",
        "Loss: mean cross entropy (nats), without weight decay, over the first 64 of 256 train "
        "samples, in evaluation mode and float32 arithmetic.",
        "The model has no batch norm.",
        "Seed: 0.",
        "Plane: random",
        "All 7 × 5 = 35 cells were measured.",
        f"where the loss is {results['loss_at_center']:.6g}.",
        f"Finite losses range from {results['loss_min']:.6g} to {results['loss_max']:.6g}.",
    ):
        assert sentence in text
    paragraphs = text.strip().split("\n\n")
    assert [part.partition(":")[0] for part in paragraphs[1:]] == ["contour_2d", "contour_3d"]
    assert text.endswith(".\n")


def test_caption_of_a_path_says_what_was_measured(small_run: Path) -> None:
    execute(InterpConfig(num_points=5, analysis_samples=64), small_run)
    text = (small_run / "interp_caption.txt").read_text()
    results = json.loads((small_run / "interp.json").read_text())["results"]
    assert "Path: along the straight line to the initialisation, 5 points on [−0.5, 1.5]" in text
    assert f"Barrier: {results['barrier']:.4g}" in text
    assert re.search(r"Test: 64 samples of the test split\.", text)
    assert "not finite" not in text


def test_caption_of_a_path_counts_what_the_figure_leaves_out(small_run: Path) -> None:
    config = InterpConfig(direction="random", range=(-1e38, 0.0), num_points=3, analysis_samples=1)
    execute(config, small_run)
    text = (small_run / "interp_caption.txt").read_text()
    assert "over the first 1 of 256 train samples" in text
    assert "Test: 1 sample of the test split. " in text
    assert (
        "Points whose loss is not finite, which the figure leaves out: 2; on the test samples 2."
        in text
    )


def test_caption_of_a_matrix_states_its_extremes() -> None:
    _, results, config = _adaptive()
    value = np.array([[0, 0.5, 0.25], [0.5, 0, np.nan], [0.25, np.nan, 0]])
    arrays = {
        "matrix_barrier": value, "matrix_lower": value - 0.125, "matrix_upper": value + 0.125
    }  # fmt: skip
    results |= {"matrix": {"names": ["a", "b", "c"]}, "shape": "line", "num_points": 5}
    text = describe("interp", ["interp_matrix"], arrays, {**results, "barrier": None}, config)
    for part in (
        "Largest barrier: 0.5 (95 % interval from 0.375 to 0.625, from paired differences), "
        "between a and b. Smallest barrier: 0.25 (95 % interval from 0.125 to 0.375",
        "between a and c.",
        "Pairs without one, as a loss is not finite: 1.",
        "and, in brackets, its 95 % interval are written out.",
    ):
        assert part in text, part


def _adaptive() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    loss = np.full((3, 4), 2.0)
    measured = np.zeros((3, 4), bool)
    measured[::2, ::3] = True
    loss[1, 2] = np.inf
    arrays = {
        "loss": loss, "measured": measured, "convexity_ratio": np.ones((5, 6)),
        "convexity_ratio_error": np.array([[0.01] * 6] * 4 + [[0.01, 0.06, np.nan] * 2]),
        "planes_loss": np.stack([loss] * 7), "test_loss": np.ones((3, 4)),
    }  # fmt: skip
    results = {
        "model": "resnet20", "dataset": "cifar10", "num_parameters": 272474, "plane": "random",
        "measured": {
            "loss": "cross_entropy", "label_smoothing": 0.1, "batchnorm": "recompute",
            "batchnorm_samples": 512, "dtype": "float64", "split": "train", "num_samples": 1024,
            "num_available": 50000, "num_test_samples": 77, "micro_batch_size": 64,
        },
        "axis_labels": ["x: direction", "y: direction"], "x_range": [-1, 1], "y_range": [-2, 2],
        "loss_at_center": 0.5, "loss_min": 0.5, "loss_max": 2.0,
        "trajectory": [{"label": "init", "x": 0, "y": 0, "distance": 2.5}],
        "quadratic": {"max_error": 0.125, "gradient": [0, 0], "hessian": [1, 0, 1]},
    }  # fmt: skip
    check = {"num_cells": 30, "worst_error": 0.0042}
    results |= {
        "normalization": "filter",
        "movements": [
            {"name": "a: held: b", "shape": [3, 2], "treatment": "3 filters", "held": None},
            {"name": "fc.bias", "shape": [3], "treatment": "held: bias", "held": "bias"},
        ],
        "filling": {
            "tolerance": 0.01, "largest_relative_estimate": 0.0075, "check": check,
            "converged": False, "share_above": 0.125,
        },
    }  # fmt: skip
    results["explained_variance"] = [0.75, 0.125]
    results["test"] = {"loss_at_center": 1.25, "accuracy_at_center": 0.875, "num_measured": 9}
    return arrays, results, {"seed": 3}


@pytest.mark.parametrize(
    ("is_measured", "cells", "errors"),
    [
        (
            lambda loss: np.ones(loss.shape, bool),
            "All 4 × 3 = 12 cells were measured: filling in to a tolerance of 1 % of each cell's "
            "loss would have saved nothing. ",
            "contour_error: No cell was filled in; dots were measured.",
        ),
        (
            np.isfinite,
            "Of 4 × 3 = 12 cells 11 were measured, at a tolerance of 1 % of each cell's loss; the "
            "others lie among cells that are not finite. ",
            "contour_error: No cell was filled in; dots were measured.",
        ),
        (
            lambda loss: loss == np.inf,
            "the others are filled by a spline",
            "contour_error: Error estimate of each filled cell as a share of its loss; dots were",
        ),
    ],
)
def test_caption_says_of_no_cell_that_it_was_filled_if_none_was(
    is_measured: Any, cells: str, errors: str
) -> None:
    arrays, results, config = _adaptive()
    arrays["measured"] = is_measured(arrays["loss"])
    results["filling"] |= {"converged": True, "check": None}
    text = describe("contour", FIGURES["contour"], arrays, results, config)
    assert cells in text
    assert errors in text


@pytest.mark.parametrize(
    ("worst_error", "is_measured", "sentence"),
    [
        (
            0.0,
            np.isfinite,
            "30 cells that were predicted not to be finite, drawn at random, were measured as a "
            "check: none is.",
        ),
        (
            "Infinity",
            lambda loss: loss == np.inf,
            "30 filled cells, drawn at random, were measured as a check: not all are finite that "
            "were predicted to be, or the reverse.",
        ),
    ],
)
def test_caption_says_what_a_check_found_of_cells_that_are_not_finite(
    worst_error: Any, is_measured: Any, sentence: str
) -> None:
    arrays, results, config = _adaptive()
    arrays["measured"] = is_measured(arrays["loss"])
    results["filling"]["check"]["worst_error"] = worst_error
    text = describe("contour", FIGURES["contour"], arrays, results, config)
    assert f" {sentence} " in text
    assert "the largest error was" not in text


def test_caption_calls_no_file_by_a_name_that_it_has_not() -> None:
    arrays, results, config = _adaptive()
    own = {**results, "model": "model.py:build", "dataset": "data.npz"}
    text = describe("contour", [], arrays, own, config)
    assert "Model: build (a user's model) with 272,474 parameters, on a user's data." in text
    assert spelled_out("data.py:make") == "make (a user's data)"
    assert spelled_out("package.model:build") == "package.model:build"


def test_caption_of_all_that_a_surface_may_have() -> None:
    text = describe("contour", FIGURES["contour"], *_adaptive())
    for part in (
        "with label smoothing 0.1,",
        "recomputed at every point over 512 samples",
        "float64",
        "Seed: 3.",
        "Normalisation of directions: filter; parameters that do not move: bias.",
        "Of 4 × 3 = 12 cells 4 were measured, at a tolerance of 1 % of each cell's loss",
        "the largest error estimate is 0.75 %. A limit on the cells ended it before: estimates "
        "are above the tolerance at 12 % of the cells.",
        "30 filled cells, drawn at random, were measured as a check: the largest error was 0.42 %.",
        "The loss of 1 cell is not finite",
        "contour_2d: ",
        "1 checkpoint projected onto the plane",
        "2.5 at most",
        "12.5 % of the loss at most",
        "on 6 × 5 points of the plane",
        "almost convex there. Hatched: it is not known to 0.05 at 4 points.",
        "The axes hold 75.0 % and 12.5 % of the squared displacements of the trajectory's "
        "checkpoints from the run.",
        "on 7 planes",
        "Test: 77 samples of the test split, on which 9 cells were measured; the run's loss is "
        "1.25, accuracy 0.8750.",
        "contour_test: Loss on the same plane over the test samples; levels are linear.",
        "its height is linear. Stems lead from each checkpoint's projection to the loss at its "
        "weights.",
    ):
        assert part in text, part


def test_caption_says_of_each_axis_and_surface_what_is_its_own() -> None:
    arrays, results, config = _adaptive()
    point = {"label": "init", "x": 0, "y": 0, "distance": 2.5}
    results["trajectory"] = [point, {**point, "distance": 0.125, "x": 0.5}]
    arrays["test_loss"] = np.array([[1e-3, 1.0, 1e3]])
    text = describe("contour", ["contour_2d", "contour_test"], arrays, results, config)
    assert "x: direction, from −1 to 1; y: direction, from −2 to 2;" in text
    assert "2 checkpoints projected onto the plane. Circles show how far checkpoints are" in text
    assert "2.5 at most" in text
    assert "over the test samples; levels are logarithmic." in text
    assert "contour_2d: Loss on the plane from above; levels are linear;" in text
    arrays["loss"] = np.full((3, 4), np.inf)
    text = describe("contour", ["contour_2d"], arrays, results, config)
    assert "Finite losses" not in text


def test_caption_says_which_loss_a_checkpoints_stem_is_of() -> None:
    arrays, results, config = _adaptive()
    point = {"label": "init", "x": 0, "y": 0, "distance": 2.5}
    losses = [(1.0, 0.75), (0.5, 0.5), ("NaN", 0.5)]
    results["trajectory"] = [{**point, "loss": loss, "own_loss": own} for loss, own in losses]
    text = describe("contour", ["contour_3d"], arrays, results, config)
    assert text.endswith(
        "to the loss at its weights, with buffers and batch norm as on the surface. With all of "
        "its own buffers a checkpoint's loss is another, by 0.25 at most.\n"
    )


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((0.003438, 0.04509), ["0.00344", "0.04509"]),
        ((1.05, 1.1), ["1.05", "1.10"]),
        ((0.0, 0.01172), ["0", "0.01172"]),
        ((0.0003, 1.2345), ["0.000", "1.234"]),  # above zero, if by less than is written
        ((-1.0, 1.0), ["-1", "1"]),
        ((1e-7, 2e-6), ["1e-07", "2e-06"]),
        ((math.nan, 1.0), ["nan", "1"]),
        ((1.25, math.nan, math.nan), ["1.25", "nan", "nan"]),
        ((0.0, 0.0), ["0", "0"]),
        ((1.02, 0.9914, 1.048), ["1.020", "0.991", "1.048"]),
    ],
)
def test_numbers_that_stand_together(values: tuple[float, ...], texts: list[str]) -> None:
    assert alike(values) == texts


def test_thousands_have_a_comma_that_rounding_makes_too() -> None:
    texts = [in_thousands(value) for value in (38.52, 999.94, 999.96, -1234.5, 1e10)]
    assert texts == ["38.52", "999.9", "1,000", "-1,234", "1e+10"]


def test_manifest_run_again_draws_the_same_figures(lgo: Lgo, small_run: Path) -> None:
    line = ("contour", "--config", small_run / "contour.json")
    asked = ("--show-cells", "--size", "5x4", "--dpi", 60, "--format", "svg")
    lgo(*line[:1], small_run, "--resolution", 3, "--analysis-samples", 64, *asked, "--quiet")
    first = read_manifest(small_run / "contour.json")
    assert "up to date" in lgo(*line, small_run).stderr
    lgo(*line, "--out", "again", "--quiet")
    again = read_manifest("again/contour.json")
    assert (again.figure, again.outputs) == (first.figure, first.outputs)
    assert again.figure.show_cells
    # What is said beside it still goes before.
    lgo(*line, "--out", "again", "--dpi", 70, "--quiet")
    assert read_manifest("again/contour.json").figure == first.figure.model_copy(update={"dpi": 70})
