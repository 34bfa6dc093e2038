"""`lgo contour --test`: the same plane on the test samples, apart from the training samples'."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Lgo

from lgo_cli.config import ContourConfig, Execution
from lgo_cli.files import BOOKKEEPING
from lgo_cli.landscape.evaluator import Evaluator
from lgo_cli.manifest import read_manifest
from lgo_cli.results import ContourResults
from lgo_cli.runs import Status, execute
from lgo_cli.runs.loaded import load
from lgo_cli.runs.plan import plan_step
from lgo_cli.samples import Evaluation

SAMPLES = 64


def _contour(run: Path, out: Path, shard: str | None = None, **config: Any) -> Status:
    values = {"resolution": "7x5", "analysis_samples": SAMPLES, "test": True, **config}
    return execute(ContourConfig(**values), run, execution=Execution(out=out, shard=shard)).status


def _arrays(out: Path) -> dict[str, Any]:
    with np.load(out / "contour.npz") as arrays:
        return dict(arrays)


def _results(out: Path) -> ContourResults:
    results = read_manifest(out / "contour.json").results
    assert isinstance(results, ContourResults)
    return results


def test_each_cell_is_the_model_on_the_test_samples(small_run: Path, tmp_path: Path) -> None:
    """Against the model itself, with parameters written by hand, in float64."""
    _contour(small_run, tmp_path, dtype="float64")
    arrays, results = _arrays(tmp_path), _results(tmp_path)
    plan = plan_step(ContourConfig(), small_run, Execution())
    loaded = load(plan, "cpu")
    samples = loaded.samples("test", SAMPLES)
    model = copy.deepcopy(loaded.model).double().eval()
    center = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    directions = torch.from_numpy(arrays["directions"])
    for i, y in enumerate(arrays["y"]):
        for j, x in enumerate(arrays["x"]):
            theta = center + x * directions[0] + y * directions[1]
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(theta, model.parameters())
                outputs = model(samples.inputs.double())
            losses = torch.nn.functional.cross_entropy(outputs, samples.labels, reduction="none")
            error = losses.std().item() / SAMPLES**0.5
            right = (outputs.argmax(dim=1) == samples.labels).double().mean().item()
            # A few hundred float64 operations in another order.
            assert arrays["test_loss"][i, j] == pytest.approx(losses.mean().item(), rel=1e-12)
            assert arrays["test_standard_error"][i, j] == pytest.approx(error, rel=1e-10)
            assert arrays["test_accuracy"][i, j] == right
    assert results.test is not None
    assert results.test.loss_at_center == arrays["test_loss"][2, 3]
    assert results.test.accuracy_at_center == arrays["test_accuracy"][2, 3]
    assert results.test.loss_min == arrays["test_loss"].min()
    assert results.test.num_measured == 35
    assert results.measured.num_test_samples == results.measured.num_samples == SAMPLES


def test_it_moves_no_bit_of_the_other_surface(small_run: Path, tmp_path: Path) -> None:
    """Both have equally many samples and coordinates: the journal must not take one for another."""
    _contour(small_run, tmp_path / "without", test=False)
    _contour(small_run, tmp_path / "with", test=True)
    without, arrays = _arrays(tmp_path / "without"), _arrays(tmp_path / "with")
    for name, values in without.items():
        np.testing.assert_array_equal(arrays[name], values)
    assert not np.isclose(arrays["test_loss"], arrays["loss"]).any()
    assert _results(tmp_path / "without").test is None
    assert not [name for name in without if name.startswith("test")]
    # Asked for later, it is measured beside cells that are there, to the same bits.
    _contour(small_run, tmp_path / "without", test=True)
    for name, values in arrays.items():
        np.testing.assert_array_equal(_arrays(tmp_path / "without")[name], values)
    journals = (tmp_path / "without" / BOOKKEEPING / "cells").glob("*.journal")
    assert [path.stat().st_size // 52 for path in journals] == [34, 34]


def test_to_a_tolerance_each_is_filled_in_by_itself(small_run: Path, tmp_path: Path) -> None:
    _contour(small_run, tmp_path / "full", resolution="31")
    _contour(small_run, tmp_path / "filled", resolution="31", tolerance=0.01)
    full, filled = _arrays(tmp_path / "full"), _arrays(tmp_path / "filled")
    results = _results(tmp_path / "filled")
    assert results.test is not None
    assert results.test.filling is not None
    assert results.test.filling.converged
    measured = filled["test_measured"]
    assert measured.sum() == results.test.num_measured < measured.size / 2
    np.testing.assert_array_equal(filled["test_loss"][measured], full["test_loss"][measured])
    np.testing.assert_allclose(filled["test_loss"], full["test_loss"], rtol=0.01)
    assert np.isnan(filled["test_standard_error"][~measured]).all()
    assert (filled["test_error_estimate"][~measured] > 0).all()
    assert full["test_measured"].all()


def test_shares_measure_it_too(small_run: Path, tmp_path: Path) -> None:
    _contour(small_run, tmp_path / "whole")
    assert _contour(small_run, tmp_path / "parts", "1/2") is Status.SHARE_DONE
    assert _contour(small_run, tmp_path / "parts", "0/2") is Status.COMPUTED
    whole, parts = (read_manifest(tmp_path / d / "contour.json") for d in ("whole", "parts"))
    assert parts.outputs == whole.outputs
    journals = (tmp_path / "parts" / BOOKKEEPING / "cells").glob("*of-2.journal")
    assert sorted(path.stat().st_size // 52 for path in journals) == [
        16,
        16,
        18,
        18,
    ]  # of 35, one is the centre


def test_shares_share_its_cells_when_the_fast_path_is_given_up(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is of the path, which must not hang on who asks for the test samples when."""
    reference = Evaluator.reference

    def off_in_training(self: Evaluator, *coordinates: float) -> Evaluation:
        found = reference(self, *coordinates)
        own = torch.equal(self.samples.inputs[:1], self.objective.samples.inputs[:1])
        return replace(found, loss=1.1 * found.loss) if own else found

    monkeypatch.setattr("lgo_cli.landscape.evaluator.LEAST_FEATURES", 1)
    monkeypatch.setattr(Evaluator, "reference", off_in_training)
    assert _contour(small_run, tmp_path, "1/2") is Status.SHARE_DONE
    assert _contour(small_run, tmp_path, "0/2") is Status.COMPUTED
    assert "it would move the loss" in _results(tmp_path).cell_plan
    cells = tmp_path / BOOKKEEPING / "cells"
    # One key for each split, and nothing left for the undivided journals to measure.
    assert len({path.name.split(".")[0] for path in cells.glob("*.journal")}) == 2
    assert sum(path.stat().st_size for path in cells.glob("*.journal")) // 52 == 2 * 34


def test_shares_end_where_there_are_fewer_test_samples(small_run: Path, tmp_path: Path) -> None:
    """128 of them, beside 200 for training: a cell is known by how many it is of."""
    config = {"analysis_samples": 200, "resolution": "3"}
    assert _contour(small_run, tmp_path, "1/2", **config) is Status.SHARE_DONE
    assert _contour(small_run, tmp_path, "0/2", **config) is Status.COMPUTED
    assert _results(tmp_path).measured.num_test_samples == 128


def test_it_is_checked_as_the_other_is(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell again by plain arithmetic, on the test samples; with `--strict` it counts."""
    _contour(small_run, tmp_path)
    results = _results(tmp_path)
    assert results.test is not None
    # Float32 in another order, as for the other surface.
    assert results.test.self_check.recomputed_cell.difference < 1e-5
    assert abs(results.test.self_check.center_difference) < 1e-5
    assert not results.complaints
    call = Evaluator.__call__

    def off_in_test(self: Evaluator, *coordinates: float) -> Evaluation:
        found = call(self, *coordinates)
        own = torch.equal(self.samples.inputs[:1], self.objective.samples.inputs[:1])
        return found if own else replace(found, loss=1.01 * found.loss)

    monkeypatch.setattr(Evaluator, "__call__", off_in_test)
    _contour(small_run, tmp_path / "off")
    assert _results(tmp_path / "off").complaints == [
        "the centre, measured as any cell, is off by 1.0e-02 of the loss on the test samples",
        "a cell that was measured again by plain arithmetic is off by 9.9e-03 of the loss "
        "on the test samples",
    ]


def test_test_centre_that_is_not_finite_is_called_that(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost_in_test(name: str) -> Any:
        measure = getattr(Evaluator, name)

        def lost(self: Evaluator, *coordinates: float) -> Evaluation:
            found = measure(self, *coordinates)
            own = torch.equal(self.samples.inputs[:1], self.objective.samples.inputs[:1])
            return found if own or any(coordinates) else replace(found, loss=math.nan)

        return lost

    for name in ("__call__", "reference"):
        monkeypatch.setattr(Evaluator, name, lost_in_test(name))
    _contour(small_run, tmp_path)
    assert _results(tmp_path).complaints == [
        "1 of 35 cells are not finite on the test samples",
        "the loss at the centre is not finite on the test samples",
    ]


def test_further_planes_are_checked_too(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, seen = Evaluator.__call__, []

    def off_on_third(self: Evaluator, *coordinates: float) -> Evaluation:
        found, plane = call(self, *coordinates), self.directions.sum().item()
        if plane not in seen:
            seen.append(plane)
        return replace(found, loss=1.01 * found.loss) if seen.index(plane) == 2 else found

    monkeypatch.setattr(Evaluator, "__call__", off_on_third)
    _contour(small_run, tmp_path, test=False, num_planes=4)
    results = _results(tmp_path)
    assert results.complaints == [
        "the centre, measured as any cell, is off by 1.0e-02 of the loss on plane 3",
        "a cell that was measured again by plain arithmetic is off by 9.9e-03 of the loss "
        "on plane 3",
    ]
    assert results.planes is not None
    checks = results.planes.self_checks
    assert [check.recomputed_cell.difference > 0.005 for check in checks] == [False, True, False]
    assert len({check.axis_cosine for check in checks}) == 3


@pytest.mark.parametrize(
    ("options", "complaints"),
    [
        ("", ["12 of 15 cells are not finite"]),
        (
            "--test --num-planes 3",
            [
                "12 of 15 cells are not finite",
                "12 of 15 cells are not finite on the test samples",
                "24 of 30 cells of further planes are not finite",
            ],
        ),
        (
            "--convexity 3",
            [
                "the loss is not finite at 6 of 9 cells of the convexity map",
                "12 of 15 cells are not finite",
            ],
        ),
    ],
)
def test_strict_refuses_cells_that_are_not_finite(
    small_run: Path, lgo: Lgo, options: str, complaints: list[str]
) -> None:
    line = ("contour", small_run, "--resolution", "5x3", "--x-range", -1e30, 1e30)
    line = (*line, "--analysis-samples", SAMPLES, *options.split())
    error = lgo(*line, "--strict", code=4).stderr
    assert f"lgo: error: {'; '.join(complaints)}\n" in error
    assert not (small_run / "contour.json").exists()
    printed = lgo(*line).stderr
    assert printed == "".join(f"warning: {complaint}\n" for complaint in complaints)
    assert _results(small_run).complaints == complaints
    # What is there already has to meet the same.
    assert lgo(*line, "--strict", code=4).stderr == error


def test_what_is_written_of_it(small_run: Path, lgo: Lgo) -> None:
    line = ("contour", small_run, "--resolution", "5x3", "--analysis-samples", SAMPLES, "--test")
    printed = lgo(*line).stdout
    results = _results(small_run)
    assert results.test is not None
    assert (
        f"test        {results.test.loss_at_center:.6g} at the centre, accuracy "
        f"{results.test.accuracy_at_center:.4f}, 64 samples; 15 of 15 measured" in printed
    )
    assert (small_run / "contour_test.png").stat().st_size > 10_000
    text = (small_run / "contour_caption.txt").read_text()
    assert "Test: 64 samples of the test split, on which 15 cells were measured" in text
    assert "contour_test: Loss on the same plane over the test samples" in text
    one = ("contour", small_run, "--resolution", 3, "--analysis-samples", 1, "--test")
    assert "00, 1 sample; 9 of 9 measured" in lgo(*one, "--out", "one").stdout
    lgo("export", small_run, "--to", "csv")
    lgo("export", small_run, "--to", "vtk")
    header = (small_run / "contour.csv").read_text().splitlines()[0].split(",")
    assert [name for name in header if name.startswith("test")] == [
        "test_loss", "test_standard_error", "test_accuracy", "test_measured",
        "test_error_estimate",
    ]  # fmt: skip
    assert 'Name="test_loss"' in (small_run / "contour.vti").read_text()
    # Without it, nothing of it is left.
    lgo(*line[:-1])
    assert not (small_run / "contour_test.png").exists()


def test_cells_that_lie_among_infinite_ones_are_not_called_filled_in(
    small_run: Path, lgo: Lgo
) -> None:
    far = ("--resolution", 41, "--x-range", -1e37, 1e37, "--y-range", -1e37, 1e37)
    line = ("contour", small_run, *far, "--tolerance", 0.01, "--analysis-samples", SAMPLES)
    table = lgo(*line).stdout
    assert "the rest lie among cells that are not finite\n" in table
    assert "nothing was filled in; 20 of the rest, measured, are not finite\n" in table
    assert "filled in to" not in table
