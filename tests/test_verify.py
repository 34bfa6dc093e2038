"""`lgo verify` holds a manifest's results against the arrays of its step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, Lgo

from lgo_cli.runs.evidence import convexity_results

HONEST = (
    "hessian --top-k 2",
    "hessian --top-k 0 --bottom-k 0",
    "hessian --top-k 3 --bottom-k 2 --trace --density --per-layer --halves --multiplicity",
    "hessian --operator ggn --layers output --scaling elementwise",
    "interp",
    "interp --num-points 4 --range -0.2 1.3",
    "interp --analysis-samples 1",
    "interp --num-points 2 --range 0 1",
    "interp --direction random --range 0.5 2",
    "interp --direction eigen",
    "interp --to other --matrix --to init",
    "interp --to other --align --repair",
    "interp --to other --spherical",
    "interp --to other --align --curve polychain --num-bends 2 --epochs 1",
    "contour",
    "contour --resolution 4x6 --x-range 0.5 2 --test",
    "contour --resolution 5x3 --test",
    "contour --resolution 21 --tolerance 0.05 --test",
    "contour --num-planes 3 --convexity 2",
    "contour --plane pca",
    "contour --plane eigen --test",
    "contour --to other --to init",
)


def _line(options: str, run: Path) -> list[str]:
    command, *rest = options.split()
    rest = [
        str(run / "init.pth") if word == "init" and command == "contour" else word for word in rest
    ]
    small = {"contour": ["--resolution", "5"], "interp": ["--num-points", "5"]}.get(command, [])
    return [command, str(run), "--analysis-samples", "64", *small, *rest, "--quiet"]


@pytest.mark.parametrize("options", HONEST)
def test_honest_results_are_verified(lgo: Lgo, small_run: Path, options: str) -> None:
    if "other" in options:
        lgo("train", "--out", "other", *SMALL, "--seed", 1, "--quiet")
    lgo(*_line(options, small_run))
    command = options.split(maxsplit=1)[0]
    assert lgo("verify", small_run).stdout == f"{small_run}  verified: train, {command}\n"


def test_statistics_of_each_point_are_verified(lgo: Lgo) -> None:
    lgo("train", "--out", "run", *SMALL, "--model-arg", "batch_norm=true", "--quiet")
    for command in ("interp", "contour"):
        lgo(*_line(f"{command} --batchnorm recompute", Path("run")))
    assert lgo("verify", "run").stdout == "run  verified: train, interp, contour\n"


def test_losses_that_are_not_finite_are_verified(lgo: Lgo, tmp_path: Path) -> None:
    """An exponential network, infinite at the rim of its plane and half-way on its line."""
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = torch.nn.Linear(20, 10)\n"
        "    def forward(self, x):\n"
        "        return torch.exp(9 * self.linear(x))\n"
    )
    code = ("--trust-code", "--quiet", "--analysis-samples", "64")
    lgo("train", "--model", "net.py:Net", *SMALL[2:], "--epochs", 0, "--out", "run", "--quiet")
    lgo(
        "contour", "run", "--x-range", "-9", "9", "--y-range", "-9", "9", "--resolution", "5", *code
    )
    lgo(
        "interp", "run", "--direction", "random", "--range", "-99", "99", "--num-points", "5", *code
    )
    results = json.loads(Path("run/contour.json").read_text())["results"]
    assert results["self_check"]["num_nonfinite"] > 0
    assert json.loads(Path("run/interp.json").read_text())["results"]["loss_at_end"] in (
        "NaN",
        "Infinity",
    )
    assert "verified: train, interp, contour" in lgo("verify", "run").stdout


def _falsify(path: Path, keys: str, value: object) -> Any:
    """Put a value into a manifest's results; returns the one that was there."""
    manifest = json.loads(path.read_text())
    *way, last = [int(key) if key.isdigit() else key for key in keys.split(".")]
    place = manifest["results"]
    for key in way:
        place = place[key]
    before, place[last] = place[last], value
    path.write_text(json.dumps(manifest))
    return before


LIES = {
    "train": ("train_accuracy", "test_accuracy", "train_loss", "test_loss", "epochs", "final_lr"),
    "hessian --trace --density --per-layer --top-k 2": (
        "largest.0.value", "smallest.0.residual_bound", "largest.1.error_estimate", "density.mean",
        "density.num_nodes", "per_layer.blocks.0.largest.value", "per_layer.blocks.1.trace",
        "per_layer.blocks.0.trace_standard_error",
    ),
    "interp --to init --align": (
        "barrier", "barrier_standard_error", "barrier_alpha", "test_barrier", "loss_at_start",
        "loss_at_end", "barrier_unaligned.value", "test_barrier_unaligned.standard_error",
        "num_points", "range.0", "direction_norm", "num_nonfinite", "test_num_nonfinite",
    ),
    "interp --matrix --to init": ("matrix.barrier.0.1", "matrix.test_upper.1.0", "num_points"),
    "interp --direction random": ("loss_at_end", "barrier", "test_barrier_standard_error"),
    "contour --num-planes 2 --convexity 2 --test": (
        "loss_at_center", "loss_min", "loss_max", "num_cells", "num_measured", "x_range.1",
        "self_check.num_nonfinite", "test.loss_max", "test.loss_at_center",
        "test.accuracy_at_center", "planes.loss_max.median", "planes.num_planes",
        "planes.self_checks.0.num_nonfinite",
        "convexity.largest_ratio", "convexity.num_converged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("options", list(LIES))
def test_the_first_lie_is_told_with_both_numbers(lgo: Lgo, small_run: Path, options: str) -> None:
    command = options.split(maxsplit=1)[0]
    if command != "train":
        lgo(*_line(options, small_run))
    path = small_run / f"{command}.json"
    source = "train.csv" if command == "train" else f"{command}.npz"
    honest = path.read_bytes()
    for keys in LIES[options]:
        value = 7 if "num_" in keys or keys == "epochs" else 0.3
        before = _falsify(path, keys, value)
        error = lgo("verify", small_run, code=3).stderr
        assert f"{small_run}: {command}: results.{keys.split('.')[0]}" in error
        assert f" is {value}, and {source} says {before}\n" in error
        path.write_bytes(honest)
    lgo("verify", small_run)
    if "--num-planes 2" in options:
        assert (small_run / "contour_bands.png").is_file()


def test_the_last_bits_may_be_another_machines(lgo: Lgo, small_run: Path) -> None:
    path = small_run / "train.json"
    loss = _falsify(path, "train_loss", 0.0)
    _falsify(path, "train_loss", loss * (1 + 1e-12))
    lgo("verify", small_run)
    _falsify(path, "train_loss", loss * (1 + 1e-7))
    assert f"train.csv says {loss}\n" in lgo("verify", small_run, code=3).stderr


@pytest.mark.parametrize(("key", "value"), [("lr", 0.3), ("momentum", 0.0), ("optimizer", "adam")])
def test_a_recipe_is_the_one_that_was_asked_for(
    lgo: Lgo, small_run: Path, key: str, value: object
) -> None:
    """The stability threshold is of it."""
    before = _falsify(small_run / "train.json", f"recipe.{key}", value)
    error = lgo("verify", small_run, code=3).stderr
    assert f"results.recipe.{key} is {value}, and the request says {before}\n" in error


@pytest.mark.parametrize(
    ("key", "value"),
    [("recipe.lr", 0.3), ("recipe.epochs", 7), ("num_bends", 3), ("kind", "polychain")],
)
def test_a_curve_is_trained_as_was_asked_for(
    lgo: Lgo, small_run: Path, key: str, value: object
) -> None:
    lgo(*_line("interp --to init --curve bezier --epochs 1", small_run))
    before = _falsify(small_run / "interp.json", f"curve.{key}", value)
    error = lgo("verify", small_run, code=3).stderr
    assert f"results.curve.{key} is {value}, and the request says {before}\n" in error


def test_what_the_arrays_have_no_trace_of_is_a_lie(lgo: Lgo, small_run: Path) -> None:
    lgo(*_line("hessian --top-k 2 --density", small_run))
    path = small_run / "hessian.json"
    honest = json.loads(path.read_text())["results"]
    _falsify(path, "density", None)
    assert (
        "results.density is None, and hessian.npz says {'num_nodes'"
        in lgo("verify", small_run, code=3).stderr
    )
    _falsify(path, "density", honest["density"])
    _falsify(path, "largest", honest["largest"][:1])
    assert (
        "the number of results.largest is 1, and hessian.npz says 2\n"
        in lgo("verify", small_run, code=3).stderr
    )


def test_arrays_that_lack_one_are_told(lgo: Lgo, small_run: Path) -> None:
    import hashlib

    lgo(*_line("hessian --top-k 2", small_run))
    arrays = dict(np.load(small_run / "hessian.npz"))
    del arrays["largest_residual_bounds"]
    np.savez(small_run / "hessian.npz", **arrays)
    content = (small_run / "hessian.npz").read_bytes()
    path = small_run / "hessian.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"]["hessian.npz"] |= {
        "sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content),
    }  # fmt: skip
    path.write_text(json.dumps(manifest))
    error = lgo("verify", small_run, code=3).stderr
    assert "hessian: hessian.npz has no largest_residual_bounds\n" in error


def test_convexity_is_reported_of_the_cell_that_is_surely_the_largest() -> None:
    """A larger ratio that is hardly known, and one that is not known at all, are not it."""
    found = convexity_results(
        {
            "convexity_ratio": np.array([[0.5, 0.6, 0.45], [math.nan, 0.3, 0.9]]),
            "convexity_ratio_error": np.array([[0.05, 0.2, 0.01], [math.nan, 0.0, math.nan]]),
            "convexity_converged": np.array([[True, False, True], [False, True, False]]),
            "convexity_num_matvecs": np.array([[1, 2, 3], [4, 5, 6]]),
        }
    )
    assert (found.largest_ratio, found.largest_ratio_error) == (0.5, 0.05)
    assert (found.num_cells, found.num_converged, found.num_matvecs) == (6, 3, 21)
