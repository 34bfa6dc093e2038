"""What a surface says of all that stays the run's own under it: statistics and derivatives."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, Lgo
from typer.testing import CliRunner

from lgo_cli import checkpoint
from lgo_cli.cli.root import app
from lgo_cli.landscape.unmoved import unmoved_warnings
from lgo_cli.manifest import read_manifest
from lgo_cli.results import ContourResults, InterpResults
from lgo_cli.runs.evidence import load_arrays

GRID = ("--analysis-samples", 64, "--resolution", 3)


@pytest.fixture(scope="module")
def _normed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("normed")
    for seed in ("0", "1"):
        options = ("--model-arg", "batch_norm=true", "--seed", seed, "--quiet")
        line = ["train", "--out", str(directory / f"run{seed}"), *SMALL, *options]
        assert CliRunner().invoke(app, line).exit_code == 0
    return directory


@pytest.fixture
def normed(_normed: Path, tmp_path: Path) -> Path:
    """Runs of a network with batch norm: run0 and run1."""
    return Path(shutil.copytree(_normed, tmp_path / "normed"))


def _contour(lgo: Lgo, *line: object) -> tuple[ContourResults, list[str]]:
    """What `lgo contour` reports, and the warnings that it prints."""
    printed = lgo("contour", *line, *GRID, "--out", "plane")
    results = read_manifest(Path("plane/contour.json")).results
    assert isinstance(results, ContourResults)
    return results, [
        line.removeprefix("warning: ")
        for line in printed.stderr.splitlines()
        if line.startswith("warning: ")
    ]


def test_other_checkpoints_are_shown_with_the_runs_statistics(normed: Path, lgo: Lgo) -> None:
    """In the words, and with the losses, that `lgo interp` has for the same ends."""
    run, others = normed / "run0", (normed / "run1", normed / "run0" / "init.pth")
    expected = []
    for label, other in zip("AB", others, strict=True):
        lgo("interp", run, "--to", other, "--num-points", 3, *GRID[:2])
        end = read_manifest(run / "interp.json").results
        assert isinstance(end, InterpResults)
        assert end.loss_of_other is not None
        expected.append(
            "batch-norm statistics are the run's own all over the plane: with its own, "
            f"{label}'s loss is {end.loss_of_other:.4g}, not {end.loss_at_end:.4g}"
        )
    line = (run, "--to", others[0], "--to", others[1])
    results, warnings = _contour(lgo, *line)
    assert warnings == results.warnings == expected
    # Under a policy that gives each point its own, there is nothing to warn of.
    for policy in ("interpolate", "recompute"):
        assert _contour(lgo, *line, "--batchnorm", policy)[1] == []


def test_losses_that_differ_are_printed_so() -> None:
    """They were 1.102, not 1.102."""
    kinds = {"buffers": True}
    (warning,) = unmoved_warnings(kinds, "along the path", "B's", 1.10204, 1.10206)
    assert warning.endswith("B's loss is 1.10204, not 1.10206")
    (warning,) = unmoved_warnings(kinds, "along the path", "B's", 9.99996, 9.99984)
    assert warning.endswith("B's loss is 9.99996, not 9.99984")
    (warning,) = unmoved_warnings(kinds, "along the path", "B's", 1.2, 538.312)
    assert warning.endswith("B's loss is 1.2, not 538.3")


def test_checkpoints_with_the_runs_statistics_need_no_word(normed: Path, lgo: Lgo) -> None:
    state = checkpoint.load(normed / "run0" / "model.pth")
    for number, name in enumerate(("A.pth", "B.pth")):
        weights = [key for key in state if key.endswith(".weight")][number : number + 1]
        checkpoint.save({k: 1.5 * v if k in weights else v for k, v in state.items()}, Path(name))
    assert _contour(lgo, normed / "run0", "--to", "A.pth", "--to", "B.pth")[1] == []


def test_trained_curve_has_statistics_of_its_own(normed: Path, lgo: Lgo) -> None:
    """Its file has its bends; of a curve that merely stands in a file nothing is known."""
    run, other = normed / "run0", normed / "run1"
    line = ("--curve", "bezier", "--epochs", 1, "--num-points", 3, *GRID[:2])
    lgo("interp", run, "--to", other, *line, "--out", "curve")
    said = read_manifest(Path("curve/interp.json")).results.warnings[-1]
    assert said.endswith("measure it with --batchnorm recompute")
    assert _contour(lgo, run, "--directions", "curve/interp.npz")[1] == [said]
    recomputed = ("--batchnorm", "recompute")
    assert _contour(lgo, run, "--directions", "curve/interp.npz", *recomputed)[1] == []
    with np.load("curve/interp.npz") as arrays:
        np.savez("drawn.npz", directions=arrays["directions"], plane_path=arrays["plane_path"])
    assert _contour(lgo, run, "--directions", "drawn.npz")[1] == []


@pytest.mark.parametrize(
    ("kind", "named", "what"),
    [
        ("eigen", 2, "λ and the eigenvectors are of the loss with frozen statistics"),
        ("random+eigen", 1, "λ and the eigenvector are of the loss with frozen statistics"),
        ("gradient", 1, "the gradient is of the loss with frozen statistics"),
    ],
)
def test_derivatives_are_of_the_loss_with_frozen_statistics(
    kind: str, named: int, what: str, normed: Path, lgo: Lgo
) -> None:
    line = (normed / "run0", "--plane", kind)
    frozen, warnings = _contour(lgo, *line)
    assert warnings == []
    assert "frozen statistics" not in "".join(frozen.axis_labels)
    results, warnings = _contour(lgo, *line, "--batchnorm", "recompute")
    # Said once, and at each λ and gradient in axes, table and caption.
    ((said),) = warnings
    assert said.startswith(f"{what}, not of the one that is drawn (--batchnorm recompute)")
    labels = [text.replace(" with frozen statistics", "") for text in results.axis_labels]
    assert labels == list(frozen.axis_labels)
    assert "".join(results.axis_labels).count(" with frozen statistics") == named
    assert Path("plane/contour_caption.txt").read_text().count("with frozen statistics") == named
    model = "; the quadratic model would be too, and is left out"
    assert said.endswith(model) == (kind == "eigen" and results.quadratic is None)


def test_lines_are_not_held_against_planes_of_other_statistics(normed: Path, lgo: Lgo) -> None:
    line = (normed / "run0", "--num-planes", 2, "--convexity", 2)
    frozen, warnings = _contour(lgo, *line)
    before = load_arrays(Path("plane/contour.npz"))
    assert frozen.planes is not None
    assert frozen.planes.line_curvature is not None
    assert warnings == []
    results, (said,) = _contour(lgo, *line, "--batchnorm", "batch")
    assert results.planes is not None
    assert results.planes.line_curvature is None
    assert said.endswith("the mean curvature along random lines would be too, and is left out")
    # All that is measured has them.
    after = load_arrays(Path("plane/contour.npz"))
    assert _contour(lgo, line[0], "--batchnorm", "batch")[1] == []  # one plane has no such lines
    for name in ("planes_loss", "convexity_largest"):
        assert np.all(np.abs(after[name] - before[name]) > 1e-3 * np.abs(before[name]))
