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
from lgo_cli.cli.path_tables import path_rows
from lgo_cli.config import ContourConfig, Execution, InterpConfig, TrainConfig
from lgo_cli.curvature.networks import HessianOperator
from lgo_cli.errors import InputError
from lgo_cli.landscape import alignment
from lgo_cli.landscape.barriers import rounding_allowance
from lgo_cli.landscape.curve_training import CurveTraining
from lgo_cli.results import ContourResults, InterpResults
from lgo_cli.runs import Status, execute
from lgo_cli.runs.checkpoints import distinct_names
from lgo_cli.runs.steps import curve as curve_step

pytestmark = pytest.mark.usefixtures("untouched_generator")

SMALL: dict[str, Any] = {"num_points": 9, "analysis_samples": 128}
DATA_OPTIONS = ("--dataset-arg", "num_train=256", "--dataset-arg", "num_test=128")
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
        ("--to b --matrix --num-points 2", "--matrix with --num-points 2", "--num-points 11"),
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


@pytest.fixture
def burst(pair: Path) -> Path:
    """Finite weights whose outputs overflow: a loss that is not finite."""
    state = checkpoint.load(pair / "run1" / "model.pth")
    checkpoint.save({name: 1e30 * tensor for name, tensor in state.items()}, pair / "burst.pth")
    return pair / "burst.pth"


def test_matrix_names_a_checkpoint_that_is_not_finite(pair: Path, burst: Path) -> None:
    ends = (str(burst), str(pair / "run1"))
    outcome = execute(InterpConfig(to=ends, matrix=True, **SMALL), pair / "run0")
    assert outcome.manifest is not None
    results = outcome.manifest.results
    assert isinstance(results, InterpResults)
    matrix = results.matrix
    assert matrix is not None
    assert matrix.names == ["run0", "burst.pth", "run1"]
    assert np.isfinite(matrix.loss).tolist() == [True, False, True]
    assert results.warnings[0].startswith(f"burst.pth: its loss is {matrix.loss[1]}, and it has no")
    with np.load(pair / "run0" / "interp.npz") as arrays:
        missing = [True, False, True]  # pairs (0, 1), (0, 2), (1, 2)
        for name in ("loss", "accuracy", "test_loss", "barrier_standard_error"):
            assert np.isnan(arrays[name]).all(axis=1).tolist() == missing
        for name in ("barrier", "standard_error", "lower", "upper"):
            for prefix in ("", "test_"):
                array = arrays[f"{prefix}matrix_{name}"]
                assert np.isnan(array[1, [0, 2]]).all()
                assert np.isnan(array[[0, 2], 1]).all()
                assert np.isfinite(array[0, 2])
    # The other pair is what it is without the bad one.
    alone = execute(
        InterpConfig(to=(ends[1],), matrix=True, **SMALL), pair / "run0",
        execution=Execution(out=pair / "alone"),
    ).manifest  # fmt: skip
    assert alone is not None
    assert alone.results.matrix.barrier[0][1] == matrix.barrier[0][2]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--matrix --to run1", "not finite: the loss of burst.pth"),
        ("--align", "not finite: barrier, barrier_standard_error, barrier_interval"),
        (
            "",
            "not finite: barrier, barrier_standard_error, barrier_interval, test_barrier, "
            "test_barrier_standard_error, test_barrier_interval, loss_at_end",
        ),
    ],
)
def test_strict_refuses_what_is_not_finite(
    pair: Path, burst: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch, options: str, message: str
) -> None:
    monkeypatch.chdir(pair)
    line = ["interp", "run0", "--to", burst, "--num-points", 5, *options.split()]
    result = lgo(*line, "--strict", code=4)
    assert message in result.stderr
    assert not (pair / "run0" / "interp.json").exists()
    assert not (pair / "run0" / "interp.npz").exists()
    printed = lgo(*line).stdout
    if "--matrix" not in options:
        assert "barrier    nan: a loss at an end or between them is not finite\n" in printed
        caption = (pair / "run0" / "interp_caption.txt").read_text()
        assert (
            "Barrier: nan, as a loss at an end or between them is not finite, the most" in caption
        )
    assert lgo("verify", "run0").stdout == "run0  verified: train, interp\n"
    before = (pair / "run0" / "interp.json").stat().st_mtime_ns
    # What is there already has to meet the same.
    assert message in lgo(*line, "--strict", code=4).stderr
    assert (pair / "run0" / "interp.json").stat().st_mtime_ns == before


def test_strict_refuses_points_along_a_direction_that_are_not_finite(
    small_run: Path, lgo: Lgo
) -> None:
    """Its last point is the run itself, and finite."""
    line = ["interp", small_run, "--direction", "random", "--range", "-1e38", 0, "--num-points", 3]
    message = "not finite: the loss at 2 points, the loss at 2 points on the test samples"
    assert message in lgo(*line, "--strict", code=4).stderr
    told = lgo(*line).stderr
    assert "warning: the loss is not finite at 2 of 3 points" in told
    assert "warning: on the test samples, the loss is not finite at 2 of 3 points" in told
    results = json.loads((small_run / "interp.json").read_text())["results"]
    assert (results["num_nonfinite"], results["test_num_nonfinite"]) == (2, 2)
    assert message in lgo(*line, "--strict", code=4).stderr
    lgo("verify", small_run)


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("interp --num-points 3", "interpolation"),
        ("interp --direction random --num-points 3", "interpolation"),
        ("contour --plane eigen --resolution 3", "quadratic"),
        ("contour --num-planes 2 --resolution 3", "line_curvature"),
    ],
)
def test_memory_budget_reaches_every_hessian(
    small_run: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch, line: str, module: str
) -> None:
    kept: list[bool] = []

    class Spy(HessianOperator):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            kept.append(self.keeps_graph)

    monkeypatch.setattr(f"lgo_cli.landscape.{module}.HessianOperator", Spy)
    command, *options = line.split()
    for memory, keeps in (("1KiB", False), ("1GiB", True)):
        lgo(command, small_run, *options, "--memory", memory, "--force")
        assert kept == [keeps]
        kept.clear()


def test_strict_refuses_an_interval_that_one_sample_leaves_open(small_run: Path, lgo: Lgo) -> None:
    line = ["interp", small_run, "--num-points", 3, "--analysis-samples", 1]
    lgo(*line)
    printed = lgo(*line, "--force")
    assert "(no interval) above the straight line between the end losses\n" in printed.stdout
    assert "the barrier over one sample has no interval" in printed.stderr
    assert "nan" not in (small_run / "interp_caption.txt").read_text()
    result = lgo(*line, "--strict", "--force", code=4)
    assert "not finite: barrier_standard_error, barrier_interval" in result.stderr
    lgo("interp", small_run, "--num-points", 3, "--analysis-samples", 64, "--strict")


@pytest.mark.parametrize(
    "options",
    ["--range 2 3 --num-points 3", "--range 0 1 --num-points 2", "--spherical --num-points 2"],
)
def test_no_barrier_where_no_point_between_the_ends_was_measured(
    pair: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    monkeypatch.chdir(pair)
    line = ["interp", "run0", "--to", "run1", *options.split()]
    refused = lgo(*line, "--strict", code=4)
    assert "no barrier: no point between the two ends was measured" in refused.stderr
    assert not (pair / "run0" / "interp.json").exists()
    result = lgo(*line)
    assert "barrier    none: no point between the two ends was measured\n" in result.stdout
    assert "take a larger --num-points, or a --range that reaches into (0, 1)" in result.stderr
    results = json.loads((pair / "run0" / "interp.json").read_text())["results"]
    for split in ("barrier", "test_barrier"):
        for what in ("", "_standard_error", "_interval", "_alpha"):
            assert results[f"{split}{what}"] is None
    assert "Barrier: none" in (pair / "run0" / "interp_caption.txt").read_text()
    assert "barrier" not in lgo("table", "run0").stdout
    lgo("export", "run0", "--to", "csv")
    # What is there already has to meet the same.
    assert lgo(*line, "--strict", code=4).stderr == refused.stderr
    lgo("interp", "run0", "--to", "run1", "--range", 0, 1, "--num-points", 3, "--strict")


def test_loss_of_another_end_is_recorded_where_it_is_not_finite(pair: Path) -> None:
    """Frozen batch norm: the other end has a loss of its own, and it may overflow."""
    state = checkpoint.load(pair / "normed1" / "model.pth")
    checkpoint.save(
        {name: 1e30 * t if t.is_floating_point() else t for name, t in state.items()},
        pair / "burst.pth",
    )
    kept = checkpoint.load(pair / "normed0" / "model.pth")
    results, _ = _measure(pair, "normed", to=str(pair / "burst.pth"))
    assert results.loss_of_other is not None
    assert not np.isfinite(results.loss_of_other)
    again = checkpoint.load(pair / "normed0" / "model.pth")
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/r/a/model.pth", "/r/b/model.pth"], ["a", "b"]),
        (["/r/a/model.pth", "/r/a/init.pth"], ["a", "a/init.pth"]),
        (
            ["/r/a/model.pth", "/r/a/checkpoints/step-00000040.pth", "/r/b/init.pth"],
            ["a", "a/checkpoints/step-00000040.pth", "b/init.pth"],
        ),
        (["/r/0/x/model.pth", "/r/1/x/model.pth", "/r/c.pth"], ["0/x", "1/x", "c.pth"]),
        (["/r/a/init.pth", "/r/b/init.pth"], ["a/init.pth", "b/init.pth"]),
        (["/r/a/model.pth", "/r/a/../a/model.pth"], ["a", "a (2)"]),
        (["/x/model.pth", "/r/x/model.pth"], ["/x", "r/x"]),
    ],
)
def test_names_are_as_short_as_tells_them_apart(paths: list[str], names: list[str]) -> None:
    assert distinct_names([Path(path) for path in paths]) == names


def test_names_do_not_depend_on_where_the_runs_are(
    pair: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure() -> Any:
        outcome = execute(
            InterpConfig(to=("run1", "run0/init.pth"), matrix=True, **SMALL), Path("run0")
        )
        return outcome.manifest

    elsewhere = Path(shutil.copytree(pair, pair.parent / "deep" / "elsewhere"))
    monkeypatch.chdir(pair)
    here = measure()
    monkeypatch.chdir(elsewhere)
    there = measure()
    assert there.outputs == here.outputs
    assert there.results == here.results
    printed = lgo("show", elsewhere / "run0").stdout
    assert "run0, run1  " in printed
    assert "to_0" not in printed


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
    assert matrix.names == ["run0", "run1", "run0/init.pth"]
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
    state = checkpoint.load(pair / "run0" / "model.pth")
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
    rounding = rounding_allowance(arrays["loss"], torch.float32, 0.0)
    assert (results.barrier, results.barrier_interval) == (0.0, (0.0, pytest.approx(rounding)))
    assert not arrays["direction"].any()
    plain, unaligned = _measure(pair, to=str(pair / "copy.pth"))
    assert results.barrier_unaligned.value == plain.barrier
    assert np.array_equal(arrays["unaligned_test_loss"], unaligned["test_loss"])


def test_the_table_names_some_of_what_was_left_alone_and_why(pair: Path) -> None:
    results, _ = _measure(pair, align=True, repair=True)
    assert results.alignment is not None
    assert results.repair is not None
    view, rule = "a view splits its units", "topk has no rule"
    names = [f"stage2.{i}.branch1.2.weight" for i in range(80)]
    vast = f"encoder.layers.{'deep.' * 10}weight"
    permuted = dict.fromkeys(names, view) | {"gate.weight": rule} | {names[3]: rule}
    repaired = {vast: view, names[0]: view}
    update = {
        "alignment": results.alignment.model_copy(update={"not_permuted": permuted}),
        "repair": results.repair.model_copy(update={"not_repaired": repaired}),
    }
    rows = path_rows(results.model_copy(update=update))
    start = rows.index(("not permuted", f"79 parameters: {view}"))
    assert rows[start + 1 : start + 4] == [
        ("", f"  {names[0]}, {names[1]}, ..."),
        ("", f"2 parameters: {rule}"),
        ("", f"  {names[3]}, gate.weight"),
    ]
    start = rows.index(("not repaired", f"2 parameters: {view}"))
    assert rows[start - 1] == ("repaired", "1 layer, 0 batch norms")
    assert rows[start + 1] == ("", f"  {vast}, ...")
    assert not any(name.startswith("not ") for name, _ in path_rows(results))


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
    # A state of another request is no beginning for this one, and other requests leave it alone.
    epochs = []
    other = execute(asked.model_copy(update={"seed": 5, "epochs": 2}), pair / "run0").manifest
    assert other is not None
    assert epochs == [0, 1, 2]
    _measure(pair)
    (state,) = (pair / "run0" / ".lgo").glob("*.pth")
    # Nor is it gone before the manifest stands.
    with monkeypatch.context() as patch:
        patch.setattr("lgo_cli.runs.claims.write_manifest", _interrupt)
        epochs = []
        with pytest.raises(KeyboardInterrupt):
            execute(asked, pair / "run0")
        assert epochs == [3, 4]
        assert state.exists()
    epochs = []
    again = execute(asked, pair / "run0").manifest
    assert again is not None
    assert epochs == []  # the last state was of all four
    assert again.fingerprint == fresh.fingerprint
    assert again.results == fresh.results
    assert again.outputs["interp.npz"].sha256 == fresh.outputs["interp.npz"].sha256
    assert not list((pair / "run0" / ".lgo").glob("*.pth"))


def _interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b""])
def test_damaged_state_of_a_curve_is_refused_and_force_starts_over(
    pair: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    monkeypatch.setattr(curve_step, "STATE_INTERVAL_S", 0.0)
    line = ["interp", pair / "run0", "--to", pair / "run1", "--curve", "bezier", "--epochs", 2]
    line += ["--num-points", 3, "--analysis-samples", 32]
    with monkeypatch.context() as patch:
        patch.setattr("lgo_cli.runs.steps.interp.curve_results", _interrupt)
        lgo(*line, code=130)
    (state,) = (pair / "run0" / ".lgo").glob("*.pth")
    whole = state.read_bytes()
    state.write_bytes(damage(whole))
    error, hint = lgo(*line, code=3).stderr.splitlines()[-2:]
    assert f"{state} is not a readable checkpoint" in error or f"{state} holds more than" in error
    assert hint == "hint: --force starts over"
    assert not (pair / "run0" / "interp.json").exists()
    lgo(*line, "--force")
    assert not state.exists()
    # A state under this name that is of another request, as after a copy by hand.
    checkpoint.save({"fingerprint": "0" * 64}, state)
    (pair / "run0" / "interp.json").unlink()
    (pair / "run0" / "interp.npz").unlink()
    (pair / "run0" / "interp_1d.png").unlink()
    (pair / "run0" / "interp_caption.txt").unlink()
    assert "is the state of another training" in lgo(*line, code=3).stderr


def test_training_of_a_curve_is_recorded_and_shown(pair: Path, lgo: Lgo) -> None:
    results, arrays = _measure(pair, curve="bezier", epochs=3, batch_size=32, lr=0.05)
    curve = results.curve
    assert curve is not None
    assert len(curve.epoch_losses) == 3
    assert curve.epoch_losses[-1] == curve.train_loss
    shown = lgo("show", pair / "run0").stdout
    first, last = curve.epoch_losses[0], curve.epoch_losses[-1]
    assert f"training loss {first:.4g} in the first epoch, {last:.4g} in the last" in shown
    lgo("export", pair / "run0", "--to", "csv", "--step", "interp")
    table = (pair / "run0" / "interp_curve.csv").read_text().splitlines()
    rows = [f"{epoch},{loss}" for epoch, loss in enumerate(curve.epoch_losses, start=1)]
    assert table == ["epoch,train_loss", *rows]
    assert arrays["bends"].shape == (1, results.num_parameters)
    caption = (pair / "run0" / "interp_caption.txt").read_text()
    assert (
        "The curve (Garipov et al. 2018) has 1 bend, trained on 256 samples for 3 epochs" in caption
    )
    assert results.barrier_line is not None
    line = f"Barrier of the straight line instead of the curve: {results.barrier_line.value:.4g} ("
    assert line in caption


def test_plane_of_a_curve_is_one_that_contour_draws(pair: Path) -> None:
    """The curve's losses, measured as a path, are the plane's at the curve's coordinates."""
    found, arrays = _measure(pair, curve="bezier", epochs=3, batch_size=32, lr=0.05)
    start, bend, end = arrays["plane_coordinates"]
    # In units of the line; a hundred chords of a parabola are short by a few parts in 10,000.
    chords = np.linalg.norm(np.diff(arrays["plane_path"], axis=0), axis=1)
    assert found.curve is not None
    assert 1 < found.curve.length == pytest.approx(chords.sum(), rel=1e-3)
    assert (start.tolist(), end[0]) == ([0.0, 0.0], 1.0)
    assert end[1] == pytest.approx(0, abs=1e-6)
    assert bend[1] > 0
    # Rounding of float32 alone: one bend lies in the plane.
    assert arrays["plane_distances"].max() < 1e-5
    x, y = arrays["plane_coordinates"].T @ [0.25, 0.5, 0.25]  # θ(1/2) of a Bézier curve
    np.testing.assert_allclose(arrays["plane_path"][[0, 50, 100]], [start, (x, y), end], atol=1e-12)
    config = ContourConfig(
        directions=(str(pair / "run0" / "interp.npz"),), analysis_samples=128, resolution="3x3",
        x_range=(0.0, 2 * float(x)), y_range=(0.0, float(y)),
    )  # fmt: skip
    execute(config, pair / "run0", execution=Execution(out=pair / "plane"))
    with np.load(pair / "plane" / "contour.npz") as plane:
        assert plane["loss"][2, 1] == pytest.approx(arrays["loss"][4], rel=1e-4)
        assert plane["loss"][0, 0] == pytest.approx(arrays["loss"][0], rel=1e-6)
        for name in ("plane_path", "plane_coordinates", "plane_distances"):
            assert np.array_equal(plane[name], arrays[name])
    # Without ranges it reaches as far as the curve and its bend; and its own arrays draw it again.
    again = config.model_copy(
        update={"directions": (str(pair / "plane" / "contour.npz"),), "x_range": None,
                "y_range": None}
    )  # fmt: skip
    outcome = execute(again, pair / "run0", execution=Execution(out=pair / "again"))
    assert outcome.manifest is not None
    results = outcome.manifest.results
    assert isinstance(results, ContourResults)
    assert results.x_range == (-0.25, 1.25)
    assert results.y_range[0] <= -0.25 < bend[1] < results.y_range[1]
    assert [marker.label for marker in results.markers] == ["bend", "other end"]
    assert (results.markers[0].x, results.markers[0].y) == tuple(bend)
    assert results.curve_distance == arrays["plane_distances"].max()
    caption = (pair / "again" / "contour_caption.txt").read_text()
    assert "curve that came with the directions, to the other end, by 1 bend as control" in caption


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


KEPT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.inner, self.outer = nn.Linear(inputs, 8), nn.Linear(8, classes)
        self.inner.requires_grad_(False)
        self.register_buffer("scale", torch.ones(inputs))

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(self.scale * x)))

def build(input_shape, num_classes):
    return Net(input_shape[0], num_classes)
"""


@pytest.mark.parametrize(
    ("changed", "kinds"),
    [
        (("scale",), "buffers"),
        (("inner.weight",), "frozen parameters"),
        (("scale", "inner.bias"), "buffers and frozen parameters"),
        (("outer.weight",), None),
    ],
)
def test_warning_names_what_the_other_end_has_of_its_own(
    lgo: Lgo, changed: tuple[str, ...], kinds: str | None
) -> None:
    Path("kept.py").write_text(KEPT)
    lgo("train", "--model", "kept.py:build", *DATA_OPTIONS, "--epochs", 1, "--out", "run", "-q")
    state = checkpoint.load(Path("run/model.pth"))
    other = {name: 1.5 * t if name in changed else t for name, t in state.items()}
    checkpoint.save(other, Path("other.pth"))
    result = lgo("interp", "run", "--to", "other.pth", "--trust-code", "--num-points", 3)
    said = [line for line in result.stderr.splitlines() if "the run's own" in line]
    loss = json.loads(Path("run/interp.json").read_text())["results"]["loss_of_other"]
    expected = f"warning: {kinds} are the run's own all along the path: with its own, the other "
    assert [line.startswith(expected) for line in said] == ([True] if kinds else [])
    assert all(f"end's loss is {loss:.4g}, not " in line for line in said)


def test_matrix_says_whose_statistics_are_frozen(pair: Path, lgo: Lgo) -> None:
    line = ["interp", pair / "normed0", "--to", pair / "normed1", "--num-points", 3]
    whose = lgo(*line).stdout
    assert "\nbatch norm  statistics frozen: those of the run\n" in whose
    whose = lgo(*line, "--to", "init", "--matrix").stdout
    assert "statistics frozen: those of the first of each two\n" in whose
    caption = (pair / "normed0" / "interp_caption.txt").read_text()
    assert "Batch-norm statistics are frozen: those of the first of each two." in caption


@pytest.mark.parametrize("policy", ["recompute", "interpolate", "batch"])
def test_losses_of_a_matrix_are_those_that_its_barriers_rise_from(pair: Path, policy: str) -> None:
    config = InterpConfig(
        to=(str(pair / "normed1"), "init"),
        matrix=True,
        batchnorm=policy,  # type: ignore[arg-type]
        **{**SMALL, "num_points": 3},
    )
    manifest = execute(config, pair / "normed0").manifest
    assert manifest is not None
    matrix = manifest.results.matrix  # type: ignore[attr-defined]
    with np.load(pair / "normed0" / "interp.npz") as arrays:
        for (first, second), losses in zip(arrays["pairs"], arrays["loss"], strict=True):
            assert (matrix.loss[first], matrix.loss[second]) == (losses[0], losses[-1])
    assert manifest.results.loss_at_start == matrix.loss[0]  # type: ignore[attr-defined]


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
    caption = (pair / "run0" / "interp_caption.txt").read_text()
    aligned, found = results.alignment, results.barrier_unrepaired
    assert aligned is not None
    for part in (
        "along the spherical arc",
        f"{aligned.num_moved} of 16 moved, and the distance fell from "
        f"{aligned.distance_before:.4g} to {aligned.distance_after:.4g}.",
        "REPAIR (Jordan et al. 2023): of 1 layer; each layer's weights are rescaled at every point "
        "to restore the mean and spread of its units' activations.",
        f"Barrier of the same path without REPAIR: {found.value:.4g} (from {found.interval[0]:.4g}",
        "Barrier of the path before units were permuted: ",
        "Dash-dotted: the same path without REPAIR.",
    ):
        assert part in caption, part


def test_repair_of_batch_norm_recomputes_its_statistics_on_all_paths(pair: Path) -> None:
    """In micro-batches of 48, 48 and 32."""
    batches = {"micro_batch_size": 48, "batchnorm": "recompute", "range": (0.0, 1.0)}
    results, arrays = _measure(pair, "normed", align=True, repair=True, micro_batch_size=48)
    assert results.repair is not None
    assert (results.repair.layers, len(results.repair.batch_norms)) == ([], 1)
    assert (results.measured.batchnorm, results.measured.batchnorm_samples) == ("recompute", 128)
    caption = (pair / "normed0" / "interp_caption.txt").read_text()
    recomputed, expected = _measure(pair, "normed", align=True, **batches)
    for key in ("loss", "test_loss", "accuracy", "unaligned_loss", "unaligned_test_loss"):
        assert np.array_equal(arrays[key], expected[key])
    assert results.barrier == recomputed.barrier
    assert results.barrier_unaligned == recomputed.barrier_unaligned
    # No layer is left to rescale: there is no other path beside the repaired one.
    assert results.barrier_unrepaired is None
    assert "unrepaired_loss" not in arrays
    assert results.num_evaluations == recomputed.num_evaluations
    assert (
        "REPAIR (Jordan et al. 2023): of 1 batch norm; no layer is left to rescale; the statistics "
        "of batch norm are recomputed on all paths here." in caption
    )


MIXED = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(),
        nn.Linear(5, 10),
    )
"""


def test_unrepaired_path_has_the_statistics_of_the_repaired_one(
    tmp_path: Path, lgo: Lgo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer to rescale, and one with batch norm, whose running statistics are others."""
    monkeypatch.chdir(tmp_path)
    Path("mixed.py").write_text(MIXED)
    data = ("--dataset-arg", "num_train=256", "--dataset-arg", "dimension=20")
    for seed in (0, 1):
        line = ["train", "--model", "mixed.py:build", *data, "--epochs", 1, "--out", f"run{seed}"]
        lgo(*line, "--seed", seed)
    measured = {}
    for options in ("--repair", "--batchnorm recompute --range 0 1"):
        line = ["interp", "run0", "--to", "run1", "--align", "--trust-code", "--num-points", 5]
        lgo(*line, *options.split())
        with np.load("run0/interp.npz") as arrays:
            measured[options] = dict(arrays)
    repaired, recomputed = measured.values()
    for key in ("loss", "test_loss"):
        assert np.array_equal(repaired[f"unrepaired_{key}"], recomputed[key])
        assert np.array_equal(repaired[f"unaligned_{key}"], recomputed[f"unaligned_{key}"])
        # One chord, from which all barriers count.
        assert repaired[key][[0, -1]] == pytest.approx(recomputed[key][[0, -1]], rel=1e-5)
        assert np.abs(repaired[key] - recomputed[key])[1:-1].max() > 1e-4


def test_curve_to_the_run_itself_is_refused_before_training(
    small_run: Path, tmp_path: Path
) -> None:
    config = InterpConfig(to=(str(small_run),), curve="bezier", epochs=1, analysis_samples=32)
    with pytest.raises(InputError, match="the run's own weights"):
        execute(config, small_run, execution=Execution(out=tmp_path))
    assert not (tmp_path / "interp.npz").exists()
