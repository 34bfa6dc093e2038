"""`lgo show`, `lgo verify` and `lgo table`."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, Lgo
from typer.testing import CliRunner

from lgo_cli.cli import app
from lgo_cli.cli.output import Output
from lgo_cli.cli.table import SETTINGS, aligned, fitting
from lgo_cli.files import step_lock
from lgo_cli.manifest import read_manifest
from lgo_cli.runs.inspect import StepState, _aside
from lgo_cli.runs.rows import COLUMNS

# With vectors precise enough for a plane.
HESSIAN = (
    "--top-k", 2, "--trace", "--vector-rtol", 1e-3, "--analysis-samples", 64, "--quiet",
)  # fmt: skip


@pytest.fixture(scope="module")
def _run(_small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(_small_run, tmp_path_factory.mktemp("analysed") / "small"))
    plane = ("--plane", "eigen", "--resolution", 3, "--analysis-samples", 64, "--quiet")
    for line in (("hessian", run, *HESSIAN), ("contour", run, *plane)):
        assert CliRunner().invoke(app, [str(word) for word in line]).exit_code == 0
    return run


@pytest.fixture
def run(_run: Path, small_run: Path) -> Path:
    """A run of one's own with a spectrum and a plane."""
    return Path(shutil.copytree(_run, small_run, dirs_exist_ok=True))


def test_everything_is_true(lgo: Lgo, run: Path) -> None:
    result = lgo("verify", run)
    assert result.stdout == f"{run}  verified: train, hessian, contour\n"
    shown = lgo("show", run).stdout
    assert "train  ok" in shown
    assert "interp  not run" in shown
    paths = lgo("show", run, "--quiet").stdout.split()
    assert paths == [str(run / f"{step}.json") for step in ("train", "hessian", "contour")]
    lines = lgo("show", run, "--json").stdout.splitlines()
    assert [json.loads(line)["request"]["command"] for line in lines] == [
        "train", "hessian", "contour",
    ]  # fmt: skip


def test_a_retrained_run_makes_its_analyses_stale(lgo: Lgo, run: Path) -> None:
    lgo("train", "--out", run, *SMALL, "--seed", 5, "--quiet")
    result = lgo("verify", run, code=3)
    assert "hessian: stale: input model.pth" in result.stderr
    shown = lgo("show", run)
    assert "warning: contour: stale: input model.pth" in shown.stderr
    row = json.loads(lgo("table", run, "--format", "jsonl").stdout)
    assert row["seed"] == 5
    assert row["lambda_max"] is row["trace"] is row["contour_loss_min"] is None
    assert row["problems"].startswith("hessian: stale: input model.pth ")
    lgo("hessian", run, *HESSIAN)
    assert "contour: stale" in lgo("verify", run, code=3).stderr


def test_a_stale_step_is_computed_again_by_the_command_of_its_error(lgo: Lgo, run: Path) -> None:
    lgo("interp", run / "init.pth", "--to", run, "--num-points", 3, "--out", "a line", "--quiet")
    before = json.loads((run / "contour.json").read_text())
    lgo("train", "--out", run, *SMALL, "--seed", 5, "--quiet")
    for where, stale in ((run, ("hessian", "contour")), (Path("a line"), ("interp",))):
        for step in stale:
            stderr = lgo("verify", where, code=3).stderr
            assert f"{where}: {step}: stale: input " in stderr
            command = stderr.partition("compute it again: lgo ")[2]
            lgo(*shlex.split(command), *(("--to", run) if step == "interp" else ()), "--quiet")
        lgo("verify", where)
    after = json.loads((run / "contour.json").read_text())
    assert after["request"]["config"] == before["request"]["config"]


def test_what_a_training_began_from_is_named_and_made_anew_where_it_moved(
    lgo: Lgo, small_run: Path
) -> None:
    """Each hint of `lgo verify` works as it stands, but for the place that only the user knows."""
    options = ("--model-arg", "hidden=8", "--epochs", 1, "--quiet")
    lgo("train", "--init", small_run, *options, "--out", "child")
    before = Path("child/model.pth").read_bytes()
    begun = f"{small_run.name}/model.pth"
    assert f"  init    {begun}\n" in lgo("show", "child").stdout
    assert "init " not in lgo("show", small_run).stdout
    table = lgo("table", "child", small_run, "--format", "csv").stdout
    assert [row["init"] for row in csv.DictReader(io.StringIO(table))] == [begun, ""]
    lgo("hessian", "child", "--top-k", 1, "--out", "else", "--quiet")

    def advised(where: str, problem: str) -> str:
        error = lgo("verify", where, code=3).stderr
        assert f"{where}: {problem}\n" in error
        return error.rstrip("\n").rpartition(": lgo ")[2]

    small_run.rename("moved")
    command = advised("child", f"train: input init.pth is not at {begun}")
    lgo(*shlex.split(command.replace("RUN", "moved")))
    assert lgo("verify", "child").stdout == "child  verified: train\n"
    assert Path("child/model.pth").read_bytes() == before

    Path("child").rename("grown")
    command = advised("else", "hessian: input model.pth is not at child/model.pth")
    lgo(*shlex.split(command.replace("RUN", "grown")))
    lgo("verify", "else")

    lgo("train", *SMALL, "--seed", 5, "--out", "moved", "--quiet")
    stale = "train: stale: input init.pth (moved/model.pth) has changed since"
    lgo(*shlex.split(advised("grown", stale)))
    lgo("verify", "grown")
    assert Path("grown/model.pth").read_bytes() != before


def test_other_ends_are_named(lgo: Lgo, small_run: Path) -> None:
    lgo("train", *SMALL, "--seed", 5, "--out", "other", "--quiet")
    few = ("--analysis-samples", 64)
    name = small_run.name
    line = lgo("interp", name, "--to", "other", *few, "--num-points", 3)
    plane = ("--to", "other", "--to", "init", "--resolution", 3)
    lgo("contour", name, *plane, *few, "--quiet")
    for shown in (line.stdout, lgo("show", name).stdout):
        assert re.search(r"^ *to +other/model\.pth$", shown, re.MULTILINE)
    assert re.search(r"^ *A +other/model\.pth\n *B +small/init\.pth$", shown, re.MULTILINE)
    # Its own initialisation is called so.
    assert " to  " not in lgo("interp", name, *few, "--num-points", 3).stdout


def test_layers_have_their_heads_above_them_on_80_columns(lgo: Lgo, small_run: Path) -> None:
    asked = ("--top-k", 1, "--trace", "--per-layer", "--analysis-samples", 64)
    lines = lgo("hessian", small_run, *asked).stdout.splitlines()
    (head,) = [line for line in lines if line.startswith("  per layer ")]
    (row,) = [line for line in lines if line.startswith("  linear1 ")]
    value, trace, count = re.search(r"(\S+) ± \S+ +(\S+) \D.* (\d+)$", row).groups()
    for name, number in (("largest", value), ("trace", trace), ("parameters", count)):
        end = head.index(name) + len(name)
        assert row[:end].endswith(number)
    assert count == "168"
    # A ResNet's names are five longer than the head's, and `lgo show` puts two spaces before.
    assert len(row) == len(head) <= 80 - 5 - 2


def test_analysis_of_another_checkpoint_is_not_the_runs(lgo: Lgo, run: Path) -> None:
    line = ["--top-k", 1, "--analysis-samples", 64, "--quiet"]
    lgo("hessian", run / "init.pth", *line)
    assert "hessian  of init.pth, not of the final model.pth" in lgo("show", run).stdout
    result = lgo("table", run, "--format", "jsonl")
    row = json.loads(result.stdout)
    assert row["lambda_max"] is None
    why = "hessian: of init.pth, not of the final model.pth; contour: stale: input hessian.npz"
    assert row["problems"].startswith(why)
    assert f"warning: {run}: {row['problems']}" in result.stderr


def test_table_puts_no_weights_from_elsewhere_beside_the_runs_own(lgo: Lgo, run: Path) -> None:
    lgo("train", "--out", "other", *SMALL, "--seed", 5, "--quiet")
    lgo("contour", "other", "--resolution", 3, "--analysis-samples", 64, "--out", run, "--quiet")
    assert "contour  of other weights than train\n" in lgo("show", run).stdout
    row = json.loads(lgo("table", run, "--format", "jsonl").stdout)
    assert row["contour_loss_min"] is None
    assert row["lambda_max"] is not None


def test_analysis_of_another_checkpoint_says_what_it_replaces(lgo: Lgo, small_run: Path) -> None:
    line = ["--top-k", 1, "--analysis-samples", 64]
    assert "keeps both" not in lgo("hessian", small_run, *line).stderr
    path = small_run / "hessian.json"
    told = f"warning: {path} was of model.pth and will be of init.pth: --out DIR keeps both\n"
    assert told in lgo("hessian", small_run / "init.pth", *line).stderr
    assert lgo("hessian", small_run, *line, "--quiet").stderr == ""
    # The run's own weights take the place of nothing but themselves.
    assert "keeps both" not in lgo("hessian", small_run, "--top-k", 2).stderr
    last = small_run / "checkpoints" / "step-00000016.pth"  # the same weights once more
    assert "keeps both" not in lgo("hessian", last, *line, "--out", small_run).stderr
    lgo("hessian", small_run, *line, "--force", "--quiet")
    lgo("train", "--out", small_run, *SMALL, "--seed", 1, "--quiet")
    assert "keeps both" not in lgo("hessian", small_run, *line).stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--dataset-arg", "seed=1"), "with another --dataset-arg than train"),
        (("--dataset", "other.npz"), "with another --dataset than train"),
        (("--train-samples", 100), "with another --train-samples than train"),
        (("--loss", "squared_error"), "with another --loss than train"),
    ],
)
def test_table_puts_no_other_data_beside_the_runs_own(
    lgo: Lgo, run: Path, options: tuple[object, ...], why: str
) -> None:
    x, y = np.random.default_rng(0).normal(size=(64, 20)), np.arange(64) % 10
    np.savez("other.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    lgo("contour", run, *options, "--resolution", 3, "--analysis-samples", 64, "--quiet")
    assert f"contour  {why}\n" in lgo("show", run).stdout
    row = json.loads(lgo("table", run, "--format", "jsonl").stdout)
    assert row["contour_loss_min"] is row["contour_loss_max"] is None
    assert row["dataset"] == "synthetic"
    assert row["lambda_max"] is not None
    assert row["problems"] == f"contour: {why}"


@pytest.mark.parametrize("name", ["model.py/blocks.py", "model_arg/mask", "dataset_arg/rows"])
def test_a_file_that_one_of_two_steps_alone_has_is_told(run: Path, name: str) -> None:
    train, contour = (read_manifest(run / f"{step}.json") for step in ("train", "contour"))
    inputs = {**contour.request.inputs, name: contour.request.inputs["model.pth"]}
    request = contour.request.model_copy(update={"inputs": inputs})
    other = contour.model_copy(update={"request": request})
    for one, two in ((train, other), (other, contour)):
        states = [StepState(each.request.command, each, ()) for each in (one, two)]
        assert _aside(two, states) == f"with another {name} than {one.request.command}"


def test_data_of_one_name_and_other_content_are_other_data(
    lgo: Lgo, small_run: Path, tmp_path: Path
) -> None:
    """Also where no training says what the run's own data are: the first step does."""
    line = ("--model", "mlp", "--model-arg", "hidden=8", "--out", "found", "--quiet")
    (small_run / "model.pth").rename("model.pth")
    for seed, command in enumerate((("hessian", "--top-k", 1), ("contour", "--resolution", 3))):
        (tmp_path / str(seed)).mkdir()
        data = tmp_path / str(seed) / "data.npz"
        x, y = np.random.default_rng(seed).normal(size=(64, 20)), np.arange(64) % 10
        np.savez(data, x_train=x, y_train=y, x_test=x, y_test=y)
        lgo(command[0], "model.pth", *command[1:], "--dataset", data, *line)
    assert "contour  with another data.npz than hessian\n" in lgo("show", "found").stdout
    row = json.loads(lgo("table", "found", "--format", "jsonl").stdout)
    assert row["lambda_max"] is not None
    assert row["contour_loss_min"] is None


def test_a_file_is_no_run(lgo: Lgo, run: Path) -> None:
    for command in ("show", "table", "verify"):
        error = lgo(command, run / "model.pth", code=3).stderr
        assert error.endswith(f"model.pth is a file\nhint: name its run: {run}\n")


def test_table_goes_on_past_an_unreadable_run(lgo: Lgo, run: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.json").write_text("{")
    result = lgo("table", "bad", run, "--format", "csv", code=3)
    assert result.stdout.count("\n") == 3
    assert "bad/train.json is not a manifest" in result.stderr.splitlines()[-2]


def test_table_says_once_that_there_is_no_run(lgo: Lgo, run: Path) -> None:
    result = lgo("table", "none", run, "neither", code=3)
    assert result.stderr == (
        "warning: neither: no such run directory: neither\n"
        "lgo: error: no such run directory: none\n"
        "hint: make one: lgo train --out none\n"
    )
    assert result.stdout.count("no such run directory: none\n") == 1


def test_one_damaged_manifest_hides_no_other_step(lgo: Lgo, run: Path) -> None:
    path = run / "contour.json"
    path.write_bytes(path.read_bytes()[:400])
    shown = lgo("show", run, code=3)
    assert "train  ok" in shown.stdout
    assert "  largest 1 " in shown.stdout
    assert f"contour  {path} is not a manifest" in shown.stdout
    assert shown.stderr.startswith(f"lgo: error: {path} is not a manifest")
    assert lgo("show", run, "--quiet", code=3).stdout.split() == [
        str(run / "train.json"), str(run / "hessian.json"),
    ]  # fmt: skip
    table = lgo("table", run, "--format", "jsonl", code=3)
    row = json.loads(table.stdout)
    hessian = json.loads((run / "hessian.json").read_text())["results"]
    assert row["lambda_max"] == hessian["largest"][0]["value"]
    assert row["problems"].startswith(f"contour: {path} is not a manifest")
    assert f"{path} is not a manifest" in table.stderr
    assert f"{path} is not a manifest" in lgo("verify", run, code=3).stderr
    lgo("export", run, "--to", "csv", "--step", "hessian")


def test_a_damaged_maker_is_named(lgo: Lgo, run: Path) -> None:
    path = run / "hessian.json"
    path.write_bytes(path.read_bytes()[:400])
    shown = lgo("show", run, code=3).stdout
    assert (
        "contour  input hessian.npz: hessian.json beside it, which may have made it, is damaged"
        in shown
    )
    # What the hint says: it is made again, and all is as before.
    path.unlink()
    lgo("hessian", run, *HESSIAN)
    lgo("verify", run)


def test_a_chain_link_that_lies(lgo: Lgo, run: Path) -> None:
    path = run / "contour.json"
    manifest = json.loads(path.read_text())
    manifest["request"]["inputs"]["hessian.npz"]["produced_by"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert (
        "contour: the fingerprint is not that of the request" in lgo("verify", run, code=3).stderr
    )
    from lgo_cli.manifest import Request, fingerprint

    request = Request.model_validate_json(json.dumps(manifest["request"]))
    manifest["fingerprint"] = fingerprint(request)
    path.write_text(json.dumps(manifest))
    stderr = lgo("verify", run, code=3).stderr
    assert "contour: stale: input hessian.npz was made by another hessian" in stderr


@pytest.mark.parametrize("name", ["hessian.npz", "contour_2d.png", "init.pth"])
@pytest.mark.parametrize("change", ["flip", "remove"])
def test_a_changed_byte_is_found(lgo: Lgo, run: Path, name: str, change: str) -> None:
    path = run / name
    content = bytearray(path.read_bytes())
    if change == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    stderr = lgo("verify", run, code=3).stderr
    assert f"{name} is missing" in stderr or f"{name} is not what lgo" in stderr


def test_outputs_that_are_none_and_sizes_that_lie(lgo: Lgo, run: Path) -> None:
    path = run / "contour.json"
    honest = path.read_text()
    (run / "notes.txt").write_bytes((run / "contour.npz").read_bytes())
    manifest = json.loads(honest)
    arrays = manifest["outputs"]["contour.npz"]
    manifest["outputs"]["notes.txt"] = {**arrays, "path": "notes.txt"}
    path.write_text(json.dumps(manifest))
    stderr = lgo("verify", run, code=3).stderr
    assert "contour: it lists notes.txt, which this step never writes\n" in stderr
    manifest = json.loads(honest)
    manifest["outputs"]["contour.npz"]["num_bytes"] += 1
    path.write_text(json.dumps(manifest))
    assert "contour.npz is not what lgo contour wrote" in lgo("verify", run, code=3).stderr


def test_an_interrupted_step_is_named(lgo: Lgo, run: Path) -> None:
    (run / ".lgo" / "interp.claim").write_text('{"names": []}')
    assert "interp  interrupted: run it again" in lgo("show", run).stdout
    assert "interp: interrupted" in lgo("verify", run, code=3).stderr


def test_a_running_step_is_not_called_interrupted(lgo: Lgo, run: Path) -> None:
    (run / "contour.json").rename(run / ".lgo" / "contour.old.json")
    (run / ".lgo" / "contour.claim").write_text('{"names": []}')
    with step_lock(run, "contour"):
        assert "contour  running in another process\n" in lgo("show", run).stdout
        assert "contour: running in another process" in lgo("verify", run, code=3).stderr
        assert "contour: running" in lgo("export", run, "--to", "csv", code=3).stderr
    assert "contour  interrupted: run it again\n" in lgo("show", run).stdout
    (run / "train.json").rename(run / ".lgo" / "train.old.json")
    (run / ".lgo" / "train.claim").write_text('{"names": []}')
    with step_lock(run, "train"):
        error = lgo("hessian", run, code=3).stderr
    assert error.endswith("hint: its training runs in another process: wait for it to end\n")


def test_table_of_many_runs(lgo: Lgo, run: Path) -> None:
    lgo("train", "--out", "other", *SMALL, "--seed", 1, "--quiet")
    text = lgo("table", run, "other").stdout.splitlines()
    assert text[0].split()[:4] == ["run", "model", "dataset", "loss"]
    assert len(text) == 3
    assert "barrier" not in text[0]
    assert text[2].split()[-1] == "-"
    rows = list(csv.DictReader(io.StringIO(lgo("table", run, "other", "--format", "csv").stdout)))
    assert [row["run"] for row in rows] == [str(run), "other"]
    hessian = json.loads((run / "hessian.json").read_text())["results"]
    assert float(rows[0]["lambda_max"]) == hessian["largest"][0]["value"]
    assert float(rows[0]["trace"]) == hessian["trace"]["value"]
    samples = ("num_train_samples", "num_test_samples", "hessian_num_samples")
    assert [int(rows[0][name]) for name in samples] == [
        256,
        128,
        hessian["measured"]["num_samples"],
    ]
    assert rows[1]["hessian_num_samples"] == rows[0]["interp_num_samples"] == ""
    assert rows[1]["lambda_max"] == ""
    lines = lgo("table", run, "other", "--format", "jsonl").stdout.splitlines()
    assert json.loads(lines[0])["seed"] == 0
    assert json.loads(lines[1])["lambda_max"] is None


def _row(run: str, **more: Any) -> dict[str, Any]:
    """A row in which every column has a number."""
    settings = {
        "model": "mlp", "dataset": "synthetic", "loss": "squared_error", "seed": 0, "epochs": 20,
        "optimizer": "sgd", "lr": 0.05, "batch_size": 64, "weight_decay": 0.0005,
        "operator": "hessian",
        "num_train_samples": 2048, "num_test_samples": 1024, "hessian_num_samples": 512,
        "interp_num_samples": 512, "contour_num_samples": 512, "barrier_path": "line to init",
    }  # fmt: skip
    numbers = dict.fromkeys(COLUMNS, 0.123456)
    return {"run": run, **numbers, **settings, "problems": None, **more}


@pytest.mark.parametrize("width", [20, 80, 120])
def test_table_has_as_many_columns_as_the_terminal_has_room_for(width: int) -> None:
    rows = [_row("a"), _row("b", seed=1)]
    names, said = fitting(rows, width)
    lines = aligned(rows, names)
    assert all(len(line) <= width for line in lines)
    # What tells the runs apart has room, and no column is lost without a word.
    assert names[:2] == ["run", "test_accuracy" if width == 20 else "seed"]
    assert said[0] == (
        "the same in all runs: model mlp, dataset synthetic, loss squared_error, "
        "num_train_samples 2048, num_test_samples 1024, epochs 20, optimizer sgd, lr 0.05, "
        "batch_size 64, weight_decay 0.0005, hessian_num_samples 512, operator hessian, "
        "interp_num_samples 512, "
        "barrier_path line to init, contour_num_samples 512"
    )
    lost = said[1].removesuffix("; --format csv has them all").partition(" for: ")[2].split(", ")
    settings = {*SETTINGS, "problems"} - {"seed"}
    assert {*names, *lost, *settings} == {"run", *COLUMNS}
    # One more would not fit.
    for name in lost:
        wider = [column for column in ["run", *COLUMNS] if column in {*names, name}]
        assert max(map(len, aligned(rows, wider))) > width


def test_table_has_room_for_a_number_before_what_it_is_of() -> None:
    rows = [_row("a"), _row("b", operator="empirical-fisher of linear1.weight, output.weight")]
    names, _ = fitting(rows, 60)
    assert "lambda_max" in names
    assert "operator" not in names


def test_table_has_room_for_answers_before_recipes() -> None:
    other = {
        "model": "resnet20", "dataset": "fashion-mnist", "seed": 1, "epochs": 164,
        "optimizer": "adamw", "lr": 0.001, "batch_size": 128, "weight_decay": 0.01,
    }  # fmt: skip
    names, _ = fitting([_row("sweep/first"), _row("sweep/second", **other)], 80)
    assert {"test_accuracy", "lambda_max", "barrier", "model", "dataset"} <= {*names}


def test_table_keeps_all_columns_where_there_is_room() -> None:
    rows = [_row("a"), _row("b", seed=1)]
    full = ["run", *(name for name in COLUMNS if name != "problems")]
    assert fitting(rows, None) == (full, [])
    exact = max(map(len, aligned(rows, full)))
    assert fitting(rows, exact) == (full, [])
    assert fitting(rows, exact - 1)[0] != full


@pytest.mark.parametrize("columns", [80, 120])
def test_table_fits_a_real_terminal_and_is_whole_in_a_pipe(run: Path, columns: int) -> None:
    command = [sys.executable, "-m", "lgo_cli", "table", run.name]
    how: dict[str, Any] = {
        "cwd": run.parent, "stderr": subprocess.PIPE, "text": True,
        "env": {**os.environ, "COLUMNS": str(columns)},
    }  # fmt: skip
    ours, theirs = pty.openpty()
    try:
        shown = subprocess.run(command, stdout=theirs, check=True, **how)
        text = os.read(ours, 10_000).decode().replace("\r", "")
    finally:
        os.close(theirs)
        os.close(ours)
    assert text.startswith("run ")
    assert max(map(len, text.splitlines())) <= columns
    assert f"no room on {columns} columns for: " in shown.stderr
    piped = subprocess.run(command, stdout=subprocess.PIPE, check=True, **how)
    assert max(map(len, piped.stdout.splitlines())) > 120
    assert "trace_standard_error" in piped.stdout
    assert piped.stderr == ""


def test_a_terminal_shows_which_steps_have_problems(
    lgo: Lgo, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their reasons are too long for a column there, and are said beside the table."""
    (run / "hessian.npz").write_bytes(b"x")
    monkeypatch.setattr(Output, "width", 80)
    result = lgo("table", run.name, "nowhere", code=3)
    lines = result.stdout.splitlines()
    assert [line[lines[0].index("problems") :] for line in lines] == [
        "problems", "hessian, contour", "unreadable"
    ]  # fmt: skip
    assert max(map(len, lines)) <= 80
    assert "warning: small: hessian: small/hessian.npz is not what" in result.stderr


def test_ones_own_files_go_by_their_names(lgo: Lgo, tmp_path: Path) -> None:
    code = (
        "from torch import nn\n"
        "def build(input_shape, num_classes):\n"
        "    return nn.Linear(input_shape[0], num_classes)\n"
    )
    x, y = np.random.default_rng(0).normal(size=(64, 3)), np.arange(64) % 2
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(code)
        np.savez(tmp_path / f"{name}-data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        named = ("--model", f"{name}.py:build", "--dataset", f"{name}-data.npz")
        text = lgo("train", *named, "--epochs", 1, "--out", f"runs/{name}").stdout
        assert f"{name}.py:build, 8 parameters" in text
        assert f"{name}-data.npz, 64 training" in text
    shown = lgo("show", "runs/second").stdout
    assert "second.py:build" in shown
    rows = lgo("table", "runs/first", "runs/second").stdout.splitlines()[1:]
    expected = [[f"{name}.py:build", f"{name}-data.npz"] for name in ("first", "second")]
    assert [row.split()[1:3] for row in rows] == expected
    measured = lgo("hessian", "runs/first", "--trust-code", "--top-k", 1).stdout
    assert "model       first.py:build" in measured
    assert "samples of first-data.npz" in measured
    # What is published does not depend on a file's name.
    first, second = (
        json.loads(Path(f"runs/{n}/train.json").read_text()) for n in ("first", "second")
    )
    assert first["outputs"] == second["outputs"]
    assert first["results"]["model"] == second["results"]["model"] == "model.py:build"


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ("", "line to init"),
        ("--to other", "line to other"),
        ("--to other --spherical --align", "arc aligned to other"),
        ("--to other --align --repair", "line aligned repaired to other"),
        ("--to other --curve bezier --epochs 1", "bezier to other"),
    ],
)
def test_table_says_of_what_path_a_barrier_is(
    lgo: Lgo, small_run: Path, options: str, path: str
) -> None:
    lgo("train", "--out", "other", *SMALL, "--seed", 1, "--quiet")
    lgo("interp", small_run, *options.split(), "--num-points", 3, "--analysis-samples", 64, "-q")
    row = json.loads(lgo("table", small_run, "--format", "jsonl").stdout)
    results = json.loads((small_run / "interp.json").read_text())["results"]
    assert row["barrier"] == results["barrier"]
    assert [row["barrier_lower"], row["barrier_upper"]] == results["barrier_interval"]
    assert row["barrier_path"] == path
    assert path in lgo("table", small_run).stdout


@pytest.mark.parametrize(
    ("options", "operator"),
    [
        ("", "hessian"),
        ("--operator ggn --layers output --layers linear1.bias", "ggn of output, linear1.bias"),
        ("--scaling elementwise", "hessian elementwise"),
        ("--include-weight-decay", "hessian with weight decay"),
    ],
)
def test_table_says_of_what_matrix_eigenvalues_are(
    lgo: Lgo, small_run: Path, options: str, operator: str
) -> None:
    lgo("hessian", small_run, *options.split(), "--top-k", 1, "--analysis-samples", 64, "-q")
    row = json.loads(lgo("table", small_run, "--format", "jsonl").stdout)
    assert row["operator"] == operator


def test_table_tells_runs_of_a_sweep_apart(lgo: Lgo) -> None:
    recipe = {"optimizer": "adam", "batch_size": 16, "weight_decay": 0.01}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in recipe.items()]
    lgo("train", "--out", "run", *SMALL, *options, "-q")
    row = json.loads(lgo("table", "run", "--format", "jsonl").stdout)
    assert {name: row[name] for name in recipe} == recipe


def test_table_calls_repaired_what_has_a_layer_that_was(lgo: Lgo) -> None:
    for seed in (0, 1):
        lgo("train", "--out", seed, *SMALL, "--model-arg", "batch_norm=true", "--seed", seed, "-q")
    line = ("interp", 0, "--to", 1, "--align", "--repair", "--num-points", 3)
    lgo(*line, "--analysis-samples", 64, "-q")
    row = json.loads(lgo("table", 0, "--format", "jsonl").stdout)
    assert row["barrier_path"] == "line aligned batch norm recompute to other"


def test_table_has_no_barrier_of_a_direction_or_a_matrix(lgo: Lgo, small_run: Path) -> None:
    for options in (["--direction", "random"], ["--to", "init", "--matrix"]):
        lgo("interp", small_run, *options, "--num-points", 3, "--analysis-samples", 64, "-q")
        row = json.loads(lgo("table", small_run, "--format", "jsonl").stdout)
        assert row["barrier"] is row["barrier_path"] is None


def test_table_warns_of_what_cannot_be_relied_on(lgo: Lgo, run: Path) -> None:
    (run / "hessian.npz").write_bytes(b"x")
    result = lgo("table", run)
    why = f"hessian: {run / 'hessian.npz'} is not what lgo hessian wrote; contour: stale: input"
    assert f"warning: {run}: {why}" in result.stderr
