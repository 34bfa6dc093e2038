"""`lgo interp` as a step: matrices, aligned ends, trained curves, arcs, batch norm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Lgo

from lgo_cli import checkpoint
from lgo_cli.config import Execution, InterpConfig, TrainConfig
from lgo_cli.errors import InputError
from lgo_cli.landscape import alignment
from lgo_cli.landscape.curve_training import CurveTraining
from lgo_cli.results import InterpResults
from lgo_cli.runs import Status, execute
from lgo_cli.runs.steps import curve as curve_step

pytestmark = pytest.mark.usefixtures("untouched_generator")

SMALL: dict[str, Any] = {"num_points": 9, "analysis_samples": 128}
DATA: dict[str, Any] = {"dataset_arg": {"num_train": 256, "num_test": 128}, "batch_size": 32}


@pytest.fixture(scope="module")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("pair")
    for seed in (0, 1):
        config = TrainConfig(model_arg={"hidden": [16]}, epochs=4, lr=0.1, seed=seed, **DATA)
        execute(config, execution=Execution(out=out / f"run{seed}"))
        normed = config.model_copy(update={"model_arg": {"hidden": [16], "batch_norm": True}})
        execute(normed, execution=Execution(out=out / f"normed{seed}"))
    return out


@pytest.fixture
def pair(_pair: Path, tmp_path: Path) -> Path:
    """Directories run0 and run1, and with batch norm normed0 and normed1."""
    return Path(shutil.copytree(_pair, tmp_path / "pair"))


def _measure(pair: Path, name: str = "run", **config: Any) -> tuple[InterpResults, dict[str, Any]]:
    asked = InterpConfig(**{"to": str(pair / f"{name}1"), **SMALL, **config})
    outcome = execute(asked, pair / f"{name}0")
    assert outcome.manifest is not None
    assert isinstance(outcome.manifest.results, InterpResults)
    with np.load(pair / f"{name}0" / "interp.npz") as arrays:
        return outcome.manifest.results, dict(arrays)


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("--to b --direction random", "--direction and --to exclude each other", "no other end"),
        ("--direction eigen --align", "--direction and --align exclude each other", "other end"),
        ("--to b --to c", "a path has one other end, and --to was given 2 times", "--matrix"),
        ("--matrix", "--matrix: there is one checkpoint only", "--to B --to C --matrix"),
        ("--to b --matrix --align", "--matrix and --align exclude each other", "one --to"),
        ("--to b --matrix --range 0 2", "--matrix and --range exclude each other", "from 0 to 1"),
        ("--to b --spherical --range 0 2", "--spherical and --range exclude", "from 0 to 1"),
        ("--to b --curve bezier --spherical", "--curve and --spherical exclude", "a curve"),
        ("--to b --repair", "--repair goes with --align", "--batchnorm recompute"),
        (
            "--to b --align --repair --batchnorm batch",
            "--repair and --batchnorm exclude each other",
            "looks after",
        ),
        ("--to b --lr 0.1", "--lr is for training a curve", "--curve bezier"),
        ("--num-bends 2", "--num-bends is for training a curve", "--curve bezier"),
    ],
)
def test_options_that_exclude_each_other(
    lgo: Lgo, small_run: Path, line: str, message: str, hint: str
) -> None:
    result = lgo("interp", small_run, *line.split(), code=2)
    error, advice = result.stderr.splitlines()
    assert error.startswith(f"lgo: error: {message}")
    assert advice.startswith("hint: ")
    assert hint in advice


def test_interval_and_error_stand_with_the_barrier(pair: Path, lgo: Lgo) -> None:
    results, arrays = _measure(pair)
    within = (arrays["alpha"] >= 0) & (arrays["alpha"] <= 1)
    for prefix in ("", "test_"):
        value, error, (lower, upper), alpha = (
            getattr(results, f"{prefix}barrier{what}")
            for what in ("", "_standard_error", "_interval", "_alpha")
        )
        loss, a = arrays[f"{prefix}loss"][within], arrays["alpha"][within]
        heights = loss - (1 - a) * loss[0] - a * loss[-1]
        assert value == pytest.approx(heights.max(), abs=1e-14)
        assert alpha == a[heights.argmax()]
        top = arrays["alpha"] == alpha
        assert [error] == arrays[f"{prefix}barrier_standard_error"][top].tolist()
        # The band is at least as wide as one point's own interval.
        assert 0 < lower < value - 1.9 * error < value + 1.9 * error < upper
    printed = lgo("interp", pair / "run0", "--config", pair / "run0" / "interp.json").stdout
    assert f"barrier    {results.barrier:.4g} (" in printed


def test_matrix_is_what_the_pairs_are(pair: Path) -> None:
    single, line = _measure(pair, range=(0.0, 1.0))
    outcome = execute(
        InterpConfig(to=(str(pair / "run1"), "init"), matrix=True, **SMALL), pair / "run0"
    )
    assert outcome.manifest is not None
    assert not (pair / "run0" / "interp_1d.png").exists()
    assert (pair / "run0" / "interp_matrix.png").exists()
    results = outcome.manifest.results
    assert isinstance(results, InterpResults)
    assert results.barrier is None
    matrix = results.matrix
    assert matrix is not None
    assert matrix.names == ["run", "to_0", "init"]
    text = json.dumps(outcome.manifest.request.model_dump(mode="json"))
    assert str(pair) not in text
    assert matrix.barrier[0][1] == single.barrier
    assert (matrix.lower[0][1], matrix.upper[0][1]) == single.barrier_interval
    assert matrix.test_barrier[0][1] == single.test_barrier
    assert matrix.loss[:2] == [single.loss_at_start, single.loss_at_end]
    with np.load(pair / "run0" / "interp.npz") as arrays:
        assert arrays["pairs"].tolist() == [[0, 1], [0, 2], [1, 2]]
        assert np.array_equal(arrays["loss"][0], line["loss"])
        for name in ("barrier", "standard_error", "lower", "upper", "test_barrier"):
            head, _, rest = name.rpartition("test_")
            array = arrays[f"test_matrix_{rest}" if "test_" in name else f"matrix_{rest}"]
            assert head == ""
            assert np.array_equal(array, array.T)
            assert np.array_equal(array, getattr(matrix, name))
            assert not array.diagonal().any()
    # The other way round, from the second run, a pair has the same barrier to rounding of θ.
    other = InterpConfig(to=(str(pair / "run0"),), matrix=True, **SMALL)
    back = execute(other, pair / "run1").manifest
    assert back is not None
    assert back.results.matrix.barrier[0][1] == pytest.approx(single.barrier, rel=1e-5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("more", [{"matrix": True}, {}])
def test_manifest_runs_again_and_a_moved_run_is_up_to_date(
    pair: Path, lgo: Lgo, more: dict[str, Any]
) -> None:
    to = [str(pair / "run1"), "init"] if more else ["init"]
    execute(InterpConfig(to=tuple(to), **SMALL, **more), pair / "run0")
    again = lgo("interp", "--config", pair / "run0" / "interp.json")
    assert "interp: up to date" in again.stderr
    moved = pair.rename(pair.parent / "elsewhere")
    to = [name.replace(str(pair), str(moved)) for name in to]
    outcome = execute(InterpConfig(to=tuple(to), **SMALL, **more), moved / "run0")
    assert outcome.status is Status.UP_TO_DATE


def test_aligned_copy_has_no_barrier(pair: Path) -> None:
    """B is A with its hidden units in another order: the line between them has a barrier."""
    state = checkpoint.load_state_dict(pair / "run0" / "model.pth")
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    names = list(state)
    for name, index in zip(names, (0, 0, 1), strict=False):
        state[name] = state[name].index_select(index, order)
    checkpoint.save(state, pair / "copy.pth")
    results, arrays = _measure(pair, to=str(pair / "copy.pth"), align=True)
    found = results.alignment
    assert found is not None
    assert found.distance_before > 1
    assert found.distance_after == 0
    assert found.num_moved == int((order != torch.arange(16)).sum())
    assert found.not_permuted == {}
    # The same float64 sums in another order.
    assert found.output_difference < 1e-13
    assert results.barrier_unaligned is not None
    assert results.barrier_unaligned.interval[0] > 0.01
    assert (results.barrier, results.barrier_interval) == (0.0, (0.0, 0.0))
    assert not arrays["direction"].any()
    plain, unaligned = _measure(pair, to=str(pair / "copy.pth"))
    assert results.barrier_unaligned.value == plain.barrier
    assert np.array_equal(arrays["unaligned_test_loss"], unaligned["test_loss"])


def test_a_weaker_proof_of_an_alignment_is_said(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = alignment._compared

    def insisting(*arguments: Any) -> float:
        if arguments[-1] == torch.float64:
            raise RuntimeError("only float32\nand a trace")
        return compared(*arguments)

    monkeypatch.setattr(alignment, "_compared", insisting)
    results, _ = _measure(pair, align=True, num_points=5)
    assert results.alignment is not None
    assert results.alignment.output_dtype == "float32"
    assert [warning for warning in results.warnings if "float64: only float32" in warning]
    assert "trace" not in "".join(results.warnings)


def test_aligned_end_is_the_other_network(pair: Path) -> None:
    plain, _ = _measure(pair)
    results, arrays = _measure(pair, align=True)
    # The same network with its sums in another order.
    assert results.loss_at_end == pytest.approx(plain.loss_at_end, rel=1e-5)
    assert results.alignment is not None
    assert results.direction_norm == pytest.approx(results.alignment.distance_after, rel=1e-5)
    assert results.alignment.distance_before == pytest.approx(plain.direction_norm, rel=1e-5)
    assert np.isfinite(arrays["loss"]).all()


def test_curve_is_resumed_to_the_bytes_of_an_undisturbed_one(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = InterpConfig(
        to=str(pair / "run1"), curve="polychain", num_bends=2, epochs=4, batch_size=32, lr=0.05,
        **SMALL,
    )  # fmt: skip
    fresh = execute(asked, pair / "run0", execution=Execution(out=pair / "fresh")).manifest
    assert fresh is not None
    results = fresh.results
    assert isinstance(results, InterpResults)
    assert results.curve is not None
    assert results.curve.recipe.epochs == 4
    assert results.curve.num_steps == 32
    assert results.barrier_line is not None
    assert results.barrier is not None
    assert results.barrier < results.barrier_line.value
    with np.load(pair / "fresh" / "interp.npz") as arrays:
        assert arrays["bends"].shape == (2, results.num_parameters)
        assert len(arrays["line_loss"]) == len(arrays["loss"]) == 9
        assert arrays["alpha"][[0, -1]].tolist() == [0.0, 1.0]
    assert not list((pair / "fresh" / ".lgo").glob("*.pth"))

    monkeypatch.setattr(curve_step, "STATE_INTERVAL_S", 0.0)
    epochs: list[int] = []
    log, interrupt = CurveTraining._log_epoch, True

    def counted(training: CurveTraining) -> dict[str, float]:
        if interrupt and training.epoch == 3:
            raise KeyboardInterrupt
        epochs.append(training.epoch)
        return log(training)

    monkeypatch.setattr(CurveTraining, "_log_epoch", counted)
    with pytest.raises(KeyboardInterrupt):
        execute(asked, pair / "run0")
    assert not (pair / "run0" / "interp.json").exists()
    interrupt = False
    # A state of another request is no beginning for this one.
    other = execute(asked.model_copy(update={"seed": 5}), pair / "run0").manifest
    assert other is not None
    assert 4 in epochs
    interrupt, epochs = True, []
    with pytest.raises(KeyboardInterrupt):
        execute(asked, pair / "run0")
    interrupt, epochs = False, []
    again = execute(asked, pair / "run0").manifest
    assert again is not None
    assert epochs == [3, 4]
    assert again.fingerprint == fresh.fingerprint
    assert again.results == fresh.results
    assert again.outputs["interp.npz"].sha256 == fresh.outputs["interp.npz"].sha256
    assert not list((pair / "run0" / ".lgo").glob("*.pth"))


def test_arc_has_the_ends_of_the_line(pair: Path) -> None:
    line, _ = _measure(pair, range=(0.0, 1.0))
    arc, arrays = _measure(pair, spherical=True)
    assert (arc.shape, line.shape) == ("arc", "line")
    assert (arc.loss_at_start, arc.loss_at_end) == (line.loss_at_start, line.loss_at_end)
    assert arc.curvature_at_origin is None
    assert arc.barrier != line.barrier
    assert arrays["alpha"][[0, -1]].tolist() == [0.0, 1.0]


def test_statistics_of_batch_norm_follow_the_policy(pair: Path) -> None:
    frozen, _ = _measure(pair, "normed")
    assert frozen.measured.batchnorm == "frozen"
    assert "batch-norm statistics are the run's own all along the path" in frozen.warnings[0]
    between, _ = _measure(pair, "normed", batchnorm="interpolate")
    assert between.measured.batchnorm == "interpolate"
    assert between.loss_at_end == pytest.approx(frozen.loss_of_other, rel=1e-6)
    assert between.loss_at_start == pytest.approx(frozen.loss_at_start, rel=1e-6)
    assert between.curvature_at_origin is None
    assert not between.warnings
    recomputed, _ = _measure(pair, "normed", batchnorm="recompute", batchnorm_samples=64)
    assert recomputed.measured.batchnorm_samples == 64
    assert recomputed.loss_at_start != frozen.loss_at_start
    aligned, _ = _measure(pair, "normed", batchnorm="interpolate", align=True)
    # Statistics are permuted with the units they belong to.
    assert aligned.loss_at_end == pytest.approx(between.loss_at_end, rel=1e-5)
    curve, _ = _measure(pair, "normed", curve="bezier", epochs=1)
    assert "measure it with --batchnorm recompute" in curve.warnings[-1]


def test_repair_leaves_the_ends_and_is_taken_back(pair: Path) -> None:
    plain, unrepaired = _measure(pair, align=True, spherical=True)
    results, arrays = _measure(pair, align=True, spherical=True, repair=True)
    assert results.repair is not None
    assert (len(results.repair.layers), results.repair.batch_norms) == (1, [])
    assert results.barrier_unrepaired is not None
    assert results.barrier_unrepaired.value == plain.barrier
    for key in ("loss", "test_loss"):
        assert np.array_equal(arrays[f"unrepaired_{key}"], unrepaired[key])
        # At an end the units have their own mean and spread: scaled by one to float32's rounding.
        assert arrays[key][[0, -1]] == pytest.approx(unrepaired[key][[0, -1]], rel=1e-5)
        assert np.abs(arrays[key] - unrepaired[key])[1:-1].max() > 1e-4
    assert results.measured.batchnorm == "none"


def test_repair_of_batch_norm_recomputes_its_statistics(pair: Path) -> None:
    """In micro-batches of 48, 48 and 32."""
    batches = {"align": True, "micro_batch_size": 48}
    results, arrays = _measure(pair, "normed", repair=True, **batches)
    assert results.repair is not None
    assert (results.repair.layers, len(results.repair.batch_norms)) == ([], 1)
    assert (results.measured.batchnorm, results.measured.batchnorm_samples) == ("recompute", 128)
    recomputed, expected = _measure(
        pair, "normed", batchnorm="recompute", range=(0.0, 1.0), **batches
    )
    for key in ("loss", "test_loss", "accuracy"):
        assert np.array_equal(arrays[key], expected[key])
    assert results.barrier == recomputed.barrier


def test_curve_to_the_run_itself_is_refused_before_training(
    small_run: Path, tmp_path: Path
) -> None:
    config = InterpConfig(to=(str(small_run),), curve="bezier", epochs=1, analysis_samples=32)
    with pytest.raises(InputError, match="the run's own weights"):
        execute(config, small_run, execution=Execution(out=tmp_path))
    assert not (tmp_path / "interp.npz").exists()
