"""`lgo contour --tolerance T --max-cells N`: a budget that is kept, said, and not lost."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Lgo
from pydantic import ValidationError

from lgo_cli.config import ContourConfig, Execution
from lgo_cli.errors import UsageError
from lgo_cli.files import BOOKKEEPING
from lgo_cli.landscape.adaptive import COARSE, NUM_CHECKED
from lgo_cli.landscape.surface import SMALL_SHARE
from lgo_cli.manifest import read_manifest
from lgo_cli.results import ContourResults
from lgo_cli.runs import execute
from lgo_cli.runs.evidence import load_arrays
from lgo_cli.runs.journal import _records
from lgo_cli.runs.steps.beside import filling_results

ROUGH = ("--resolution", "31", "--x-range", "-3", "3", "--y-range", "-3", "3")
HARD = (*ROUGH, "--analysis-samples", "64", "--tolerance", "0.003")


def _results(out: Path) -> ContourResults:
    results = read_manifest(out / "contour.json").results
    assert isinstance(results, ContourResults)
    return results


def _records_of(out: Path) -> list[Any]:
    """The cells of all journals, in the order in which they were measured."""
    paths = sorted((out / BOOKKEEPING / "cells").glob("*.journal"))
    return [key for path in paths for key, _ in _records(path.read_bytes())]


def test_budget_ends_it_and_all_say_so(small_run: Path, lgo: Lgo) -> None:
    result = lgo("contour", small_run, *HARD, "--max-cells", 90)
    results = _results(small_run)
    filling = results.filling
    assert filling is not None
    assert not filling.converged
    assert filling.cost == results.num_measured == 90
    assert filling.check is not None
    with np.load(small_run / "contour.npz") as arrays:
        relative = arrays["error_estimate"] / np.maximum(np.abs(arrays["loss"]), filling.floor)
    assert filling.largest_relative_estimate == relative.max() > 0.003
    assert filling.share_above == np.mean(relative > 0.003) > 0
    complaint = (
        "--max-cells ended the surface short of the tolerance of 0.003: errors are estimated at up "
        f"to {filling.largest_relative_estimate:.2g} of the loss, above the tolerance at "
        f"{100 * filling.share_above:.1f} % of the cells, and cells that were checked were off by "
        f"up to {filling.check.worst_error:.2g}"
    )
    assert results.complaints == [complaint]
    assert f"warning: {complaint}\n" in result.stderr
    row = (
        "cells       90 of 961 measured, worth 90; the rest NOT filled in to 0.003, short of it "
        f"at {100 * filling.share_above:.1f} %\n"
    )
    assert row in result.stdout
    text = (small_run / "contour_caption.txt").read_text()
    assert "A limit on the cells ended it before: estimates are above the tolerance at" in text


def test_budget_that_suffices_changes_nothing(small_run: Path, tmp_path: Path) -> None:
    config = {"resolution": "21", "analysis_samples": 64, "tolerance": 0.02}
    for name, values in (("without", config), ("with", {**config, "max_cells": 441})):
        execute(ContourConfig(**values), small_run, execution=Execution(out=tmp_path / name))
    without, limited = (read_manifest(tmp_path / n / "contour.json") for n in ("without", "with"))
    assert limited.results.filling.converged  # type: ignore[attr-defined]
    assert limited.outputs == without.outputs
    assert limited.fingerprint != without.fingerprint


def test_strict_refuses_it_and_a_larger_budget_goes_on(
    small_run: Path, tmp_path: Path, lgo: Lgo
) -> None:
    line = ["contour", small_run, *HARD, "--strict", "--out", tmp_path]
    error = lgo(*line, "--max-cells", 80, code=4).stderr
    assert "lgo: error: --max-cells ended the surface short of the tolerance of 0.003" in error
    assert not (tmp_path / "contour.json").exists()
    assert not (tmp_path / "contour.npz").exists()
    first = _records_of(tmp_path)
    # The centre is the untouched model, which is no cell.
    assert len(first) == 79
    lgo(*line, "--max-cells", 200, code=4)
    second = _records_of(tmp_path)
    assert second[:79] == first
    assert 79 < len(second) == len(set(second)) < 200
    lgo(*line)
    lgo(*line[:-1], tmp_path / "fresh")
    # Whoever had no budget at all asked for the same cells, each once.
    third, fresh = _records_of(tmp_path), _records_of(tmp_path / "fresh")
    assert len(third) == len(fresh) >= 200
    assert set(third) == set(fresh)
    outputs = [read_manifest(d / "contour.json").outputs for d in (tmp_path, tmp_path / "fresh")]
    assert outputs[0] == outputs[1]


def test_each_surface_has_the_budget(small_run: Path, lgo: Lgo) -> None:
    """Of every plane and of both splits, with ranges that are found."""
    more = ("--num-planes", 3, "--test", "--auto-range", 50, "--max-cells", 75)
    line = ("--resolution", "31", "--analysis-samples", "64", "--tolerance", "0.002", *more)
    result = lgo("contour", small_run, *line)
    results = _results(small_run)
    assert results.num_range_evaluations > 0
    assert results.planes is not None
    assert results.test is not None
    assert len(results.planes.fillings) == 2
    for filling in (results.filling, results.test.filling, *results.planes.fillings):
        assert filling is not None
        assert filling.cost == 75
        assert not filling.converged
    assert not results.planes.converged
    ended = [text.partition(" short of")[0] for text in results.complaints]
    assert ended == [
        "--max-cells ended the surface",
        "--max-cells ended the surface on the test samples",
        "--max-cells ended further planes",
    ]
    assert "75 of 961 measured; the rest NOT filled in to 0.002" in result.stdout
    assert "; 2 NOT filled in to 0.002\n" in result.stdout


def test_the_seed_draws_the_cells_of_the_check(small_run: Path, lgo: Lgo) -> None:
    line = ("--plane", "eigen", "--resolution", 21, "--tolerance", 0.05, "--analysis-samples", 32)
    masks = []
    for seed in (0, 1):
        lgo("contour", small_run, *line, "--seed", seed, "--quiet")
        masks.append(load_arrays(small_run / "contour.npz")["measured"])
    assert not np.array_equal(*masks)


def test_planes_converged_if_all_did(
    small_run: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch
) -> None:
    converged = iter([False, True])

    def mixed(*what: Any) -> Any:
        found = filling_results(*what)
        assert found is not None
        return found.model_copy(update={"converged": next(converged)})

    monkeypatch.setattr("lgo_cli.runs.steps.beside.filling_results", mixed)
    more = ("--analysis-samples", 32, "--tolerance", 0.1, "--num-planes", 3)
    lgo("contour", small_run, "--resolution", 9, *more, "--quiet")
    planes = _results(small_run).planes
    assert planes is not None
    assert [filling.converged for filling in planes.fillings] == [False, True]
    assert not planes.converged


def test_errors_are_held_against_the_floor_where_the_loss_is_below_it() -> None:
    inf, nan = math.inf, math.nan
    filled: Any = SimpleNamespace(
        loss=np.array([1e-9, 1.0, inf, 2.0]), error_estimate=np.array([0.01, 0.02, nan, 0.0]),
        floor=0.1, num_small=0, cost=4.0, check=None, num_checks=0, converged=False,
    )  # fmt: skip
    found = filling_results(filled, ContourConfig(tolerance=0.05))
    assert found is not None
    assert found.largest_error_estimate == 0.02
    assert found.largest_relative_estimate == pytest.approx(0.1)
    assert found.share_above == 0.25


def test_it_goes_with_a_tolerance(small_run: Path, lgo: Lgo) -> None:
    for more in ((), ("--dry-run",)):
        error = lgo("contour", small_run, "--max-cells", 100, *more, code=2).stderr
        assert error == (
            "lgo: error: --max-cells goes with --tolerance\nhint: --tolerance 0.01, or so\n"
        )
    error = lgo("contour", small_run, "--max-cells", 71, "--tolerance", 0.1, code=2).stderr
    assert "--max-cells: input should be greater than or equal to 72, got 71" in error
    with pytest.raises(UsageError, match="--shard divides all cells"):
        execute(
            ContourConfig(tolerance=0.1, max_cells=100), small_run, execution=Execution(shard="0/2")
        )


def test_least_budget_is_what_is_measured_in_any_case() -> None:
    """The coarse grid with the cell at the centre and a check; or a small grid, whole."""
    coarse = (COARSE**2 + 1 + NUM_CHECKED) * (1 + 1 / SMALL_SHARE)
    least = int(np.ceil(max(coarse, 2 * COARSE**2)))
    assert ContourConfig(tolerance=0.1, max_cells=least).max_cells == least
    with pytest.raises(ValidationError, match="greater than or equal to"):
        ContourConfig(tolerance=0.1, max_cells=least - 1)
