"""The command line: what it asks of the library, and what it prints where."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any, get_type_hints

import numpy as np
import pytest
from conftest import SMALL, Lgo

from lgo_cli import __version__
from lgo_cli.cli import app
from lgo_cli.cli.table import fitting
from lgo_cli.cli.talk import laid_out
from lgo_cli.config import (
    CONFIGS,
    ContourConfig,
    Execution,
    FigureConfig,
    HessianConfig,
    InterpConfig,
    StepConfig,
    TrainConfig,
)
from lgo_cli.manifest import InputRef, parse_manifest, read_manifest, write_manifest
from lgo_cli.parsing import parse_config
from lgo_cli.runs import Outcome, Status
from lgo_cli.runs.inspect import verify_run

Asked = tuple[StepConfig, Path | None, Execution, FigureConfig]


class _Stop(Exception):  # noqa: N818 - ends a command before it computes
    pass


@pytest.fixture
def asked(lgo: Lgo, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command line up to the library's door; return what was handed over there."""

    def run(*arguments: object) -> Asked:
        seen: list[Asked] = []

        def execute(config: Any, run: Any = None, *, execution: Any, figure: Any, **_: Any) -> None:
            seen.append((config, run, execution, figure))
            raise _Stop

        monkeypatch.setattr("lgo_cli.runs.execute", execute)
        with pytest.raises(_Stop):
            lgo(*arguments)
        return seen[0]

    return run


@pytest.mark.parametrize(
    ("line", "config"),
    [
        ("train", TrainConfig()),
        (
            "train --model resnet20 --model-arg shortcuts=false --model-arg width=0.5",
            TrainConfig(model="resnet20", model_arg={"shortcuts": False, "width": 0.5}),
        ),
        (
            "train --model-arg hidden=64,32 --dataset-arg noise=2 --model-arg activation=tanh",
            TrainConfig(
                model_arg={"hidden": "64,32", "activation": "tanh"}, dataset_arg={"noise": 2}
            ),
        ),
        (
            "train --lr 0.5 --epochs 3 --nesterov --schedule step --save-every 7 --seed 4",
            TrainConfig(lr=0.5, epochs=3, nesterov=True, schedule="step", save_every=7, seed=4),
        ),
        ("hessian", HessianConfig()),
        (
            "hessian --top-k 0 --bottom-k 3 --trace --density --rtol 1e-4 --dtype float64",
            HessianConfig(
                top_k=0, bottom_k=3, trace=True, density=True, rtol=1e-4, dtype="float64"
            ),
        ),
        (
            "interp --to other --range -0.1 1.1 --num-points 13",
            InterpConfig(to="other", range=(-0.1, 1.1), num_points=13),
        ),
        ("interp --direction eigen", InterpConfig(direction="eigen")),
        (
            "contour --to a --to b --resolution 11x7 --x-range -2 2",
            ContourConfig(to=("a", "b"), resolution="11x7", x_range=(-2.0, 2.0)),
        ),
        (
            "contour --plane pca --analysis-samples 64 --micro-batch-size 16 --loss squared_error",
            ContourConfig(
                plane="pca", analysis_samples=64, micro_batch_size=16, loss="squared_error"
            ),
        ),
    ],
)
def test_translation(asked: Any, line: str, config: StepConfig) -> None:
    got, run, execution, figure = asked(*line.split())
    assert got == config
    assert type(got) is type(config)
    assert run is None
    assert execution == Execution()
    assert figure == FigureConfig()


def test_translation_of_where_and_how(asked: Any) -> None:
    line = (
        "contour some/run -o there --device cpu --num-threads 2 --force --strict --trust-code "
        "--data-root data/sets --format pdf"
    )
    _, run, execution, figure = asked(*line.split())
    assert run == Path("some/run")
    assert execution == Execution(
        out=Path("there"), device="cpu", num_threads=2, force=True, strict=True, trust_code=True,
        data_root=Path("data/sets"),
    )  # fmt: skip
    assert figure == FigureConfig(format="pdf")
    assert asked("train", "--save-dir", "there")[2].out == Path("there")


def test_config_file_and_command_line(asked: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        'epochs = 7\nlr = 0.5\nout = "there"\nformat = "svg"\nmodel_arg = {hidden = [4, 4]}\n'
    )
    config, _, execution, figure = asked(
        "train", "--config", file, "--lr", "0.1", "--model-arg", "dropout=0.5"
    )
    assert config == TrainConfig(epochs=7, lr=0.1, model_arg={"hidden": [4, 4], "dropout": 0.5})
    assert execution.out == Path("there")
    assert figure.format == "svg"


def test_config_file_with_a_table_a_command(asked: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[hessian]\ntop_k = 3\n[contour]\nx_range = [-1.0, 2.0]\n")
    assert asked("hessian", "--config", file)[0] == HessianConfig(top_k=3)
    assert asked("contour", "--config", file)[0] == ContourConfig(x_range=(-1.0, 2.0))
    assert asked("interp", "--config", file)[0] == InterpConfig()


def test_file_of_lgo_run_says_what_its_commands_take(
    lgo: Lgo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where and how, and figures, too, as `lgo contour --config` takes them."""
    (tmp_path / "c.toml").write_text(
        '[train]\nmodel_arg = {hidden = [4]}\ndevice = "cpu"\n'
        '[hessian]\nbasis_device = "disk"\nlayers = "linear1"\n'
        '[contour]\nresolution = 5\nformat = "pdf"\nshow_cells = true\nnum_threads = 2\n'
    )
    seen: list[Asked] = []

    def execute(config: Any, run: Any = None, *, execution: Any, figure: Any, **_: Any) -> Any:
        seen.append((config, run, execution, figure))
        return Outcome(Status.SHARE_DONE, Path(), execute, Namespace(command="any"))  # type: ignore[arg-type]

    monkeypatch.setattr("lgo_cli.runs.execute", execute)
    lgo("run", "--config", "c.toml", "--model-arg", "dropout=0.5", "--dpi", 200, "--out", "there")
    (train, hessian, interp, contour) = seen
    assert train[0] == TrainConfig(model_arg={"hidden": [4], "dropout": 0.5})
    assert train[2] == Execution(device="cpu", out=Path("there"))
    assert hessian[0] == HessianConfig(layers=("linear1",))
    assert hessian[1:3] == (Path("there"), Execution(basis_device="disk", trust_code=True))
    assert interp[0] == InterpConfig()
    assert contour[0] == ContourConfig(resolution="5x5")
    assert contour[2] == Execution(num_threads=2, trust_code=True)
    assert contour[3] == FigureConfig(format="pdf", show_cells=True, dpi=200)
    assert interp[3] == FigureConfig(dpi=200)


@pytest.mark.parametrize(
    ("line", "text", "error"),
    [
        (
            "run",
            "[hessian]\ntop-k = 3",
            "c.toml: [hessian] top-k is no option of lgo hessian; did y",
        ),
        (
            "run",
            "[hessian]\ntop_k = -3",
            "c.toml: [hessian] top_k: input should be greater than or",
        ),
        (
            "run",
            "[train]\nout = 'x'",
            "c.toml: [train] out: lgo run has one directory for all steps",
        ),
        ("run", "[train]\nmodel_arg = 'x'", "c.toml: [train] model_arg: 'x' is no table"),
        (
            "run",
            "[hessian]\nshow_cells = true",
            "c.toml: [hessian] show_cells is no option of lgo he",
        ),
        ("run --lr -1", "[train]\nlr = 0.1", "--lr: input should be greater than 0, got -1.0"),
        ("train --lr -1", "lr = 0.1", "--lr: input should be greater than 0, got -1.0"),
        ("train", "lr = -1", "c.toml: lr: input should be greater than 0, got -1"),
        ("train", "format = 'gif'", "c.toml: format: input should be 'png', 'pdf' or 'svg'"),
        ("train --model-arg a=1", "model_arg = 'x'", "c.toml: model_arg: 'x' is no table"),
        ("train", "model_arg = ['hidden=3']", "c.toml: model_arg: ['hidden=3'] is no table"),
        ("hessian", "run = 'a'", "c.toml: run is not for a file"),
        ("train", "out = ''", "c.toml: out is empty"),
        ("interp", "to = ['init', '']", "c.toml: to is empty"),
        ("hessian", "[hessian]\nforce = true", "c.toml: [hessian] force is not for a file"),
        ("contour", "basis_device = 'disk'", "c.toml: basis_device is no option of lgo contour"),
        ("train", "[trains]\nlr = 1", "c.toml: trains is no table of lgo train; did you mean tra"),
        ("train", "model_args = {}", "c.toml: model_args is no table of lgo train; did you"),
        ("contour", "seed = 1\n[contour]\ndpi = 9", "c.toml: seed is not a table of a command"),
        (
            "contour",
            "seed = 1\n[contour]\ndpi = 9",
            "c.toml: seed is not a table of a command\n"
            "hint: options stand either all at the top, or in [train], [hessian], ",
        ),
        (
            "run",
            "seed = 1\n[contour]\ndpi = 90",
            "c.toml: seed is not a table of a command\nhint: options stand in [train], [hessian], ",
        ),
    ],
)
def test_file_that_says_what_it_cannot(
    lgo: Lgo, tmp_path: Path, line: str, text: str, error: str
) -> None:
    (tmp_path / "c.toml").write_text(text)
    result = lgo(*line.split(), "--config", "c.toml", code=2)
    assert result.stderr.startswith(f"lgo: error: {error}")


def test_run_takes_no_manifest(lgo: Lgo, small_run: Path) -> None:
    error = lgo("run", "--config", small_run / "train.json", code=2).stderr
    assert "train.json: lgo run takes no manifest, which is of one step" in error


@pytest.mark.parametrize(
    "line",
    [
        "hessian --top-k 3 --analysis-samples 64",
        "interp --num-points 3 --analysis-samples 64",
        "contour --to small --to small/init.pth --resolution 3 --analysis-samples 64",
        "contour --to small --to init --resolution 3 --analysis-samples 64",
    ],
)
def test_manifest_runs_again(lgo: Lgo, small_run: Path, line: str) -> None:
    command, *options = line.split()
    run = small_run / "checkpoints" / "step-00000004.pth" if command == "contour" else small_run
    lgo(command, run, *options, "--quiet", "--out", "first")
    lgo(command, "--config", f"first/{command}.json", "--out", "second", "--quiet")
    first, second = (
        json.loads(Path(f"{out}/{command}.json").read_text()) for out in ("first", "second")
    )
    assert first["fingerprint"] == second["fingerprint"]
    assert first["outputs"] == second["outputs"]


def test_init_is_the_runs_own_in_a_plane_too(lgo: Lgo, small_run: Path) -> None:
    step = small_run / "checkpoints" / "step-00000004.pth"
    for out, end in (("by-file", small_run / "init.pth"), ("by-name", "init")):
        line = ("contour", step, "--to", small_run, "--to", end, "--resolution", 3)
        lgo(*line, "--analysis-samples", 64, "--out", out, "--quiet")
    first, second = (Path(out, "contour.npz").read_bytes() for out in ("by-file", "by-name"))
    assert first == second


@pytest.mark.parametrize(
    "line",
    [
        ("train", "--out", ""), ("train", "--out", " "), ("train", "-o", ""), ("hessian", ""),
        ("interp", "small", "--to", ""), ("interp", "small", "--to="), ("show", ""),
        ("hessian", "small", "--warm-start", "\t"), ("verify", "small", ""), ("run", "--config="),
    ],
)  # fmt: skip
def test_an_empty_argument_is_not_the_current_directory(
    lgo: Lgo, small_run: Path, line: tuple[str, ...]
) -> None:
    """It is a shell variable that is not set."""
    before = sorted(Path().rglob("*"))
    assert lgo(*line, code=2).stderr.startswith("lgo: error: an argument is empty: lgo ")
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "line", ["train --out r\udcff", "hessian r\udcff", "run --model \udcff.py:f"]
)
def test_an_argument_that_a_manifest_cannot_record(lgo: Lgo, line: str) -> None:
    error = lgo(*line.split(), code=2).stderr
    assert error.startswith("lgo: error: an argument is not utf-8 text: lgo ")
    assert "\\udcff" in error
    assert list(Path().iterdir()) == []
    # What records nothing takes any name.
    assert "no such run directory" in lgo("show", "r\udcff", code=3).stderr


def test_missing_weights_are_no_run_to_be_trained(lgo: Lgo, small_run: Path) -> None:
    for line in (("hessian", "no.pth"), ("interp", small_run, "--to", "no.pth")):
        error = lgo(*line, code=3).stderr
        assert "lgo: error: no such run or checkpoint: no.pth\n" in error
        assert "lgo train" not in error


def test_a_strangers_train_json_says_nothing_of_weights_beside_it(
    lgo: Lgo, small_run: Path
) -> None:
    weights = Path("coco", "weights", "w.pth")
    weights.parent.mkdir(parents=True)
    weights.write_bytes((small_run / "model.pth").read_bytes())
    strangers = Path("coco", "train.json")
    strangers.write_text('{"info": {"year": 2017}, "images": [], "annotations": []}')
    line = ("hessian", weights, "--top-k", 1, "--analysis-samples", 64)
    assert "comes with no train.json that says what it is" in lgo(*line, code=2).stderr
    named = ("--model", "mlp", "--dataset", "synthetic", *SMALL[:6])
    lgo(*line, *named, "--quiet")
    assert Path("coco", "weights", "hessian.json").is_file()
    # Nobody is told to delete it.
    error = lgo("hessian", "coco", code=3).stderr
    assert error.startswith("lgo: error: coco/train.json is not a manifest that this lgo reads: ")
    assert error.endswith(
        "\nhint: if lgo wrote it, its step again with --force replaces it; if not, keep it and "
        "choose another directory with --out\n"
    )
    # lgo's own that was cut short is missed, not passed over.
    manifest = small_run / "train.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    assert "is not a manifest" in lgo("hessian", small_run / "model.pth", *named, code=3).stderr


def test_what_is_no_run_is_not_to_be_trained_into(lgo: Lgo, small_run: Path) -> None:
    hint = "hint: name the directory of a run, or a checkpoint\n"
    Path("full").mkdir()
    Path("full", "notes.txt").touch()
    for named in ("full", "a/none.json", "none.pth"):
        assert lgo("hessian", named, code=3).stderr.endswith(hint)
    assert "lgo train --out" not in lgo("show", "full", code=3).stderr
    kept = small_run / "checkpoints"
    assert lgo("hessian", kept, code=3).stderr.endswith(
        f"hint: name a checkpoint in it: {kept / 'step-00000016.pth'}\n"
    )
    for named in ("sweep/0.1", "none"):
        error = lgo("hessian", named, code=3).stderr
        assert error.endswith(f"hint: train one first: lgo train --out {named}\n")


def test_a_lost_manifest_is_no_reason_to_train_something_else(lgo: Lgo, small_run: Path) -> None:
    """`lgo train --out RUN`, as it was advised, trained the default experiment over the weights."""
    again = "lgo train with the options of that training and"
    (small_run / "train.json").unlink()
    error = lgo("hessian", small_run, code=3).stderr
    weights = small_run / "model.pth"
    assert error.endswith(
        f"hint: {again} --out {small_run} makes it again; "
        f"or name {weights}, with --model, --dataset and --out\n"
    )
    line = ("--top-k", 1, "--bottom-k", 0, "--no-audit", "--quiet")
    own = ("--model", "mlp", "--model-arg", "hidden=8", "--dataset", "synthetic", "--out", "of it")
    lgo("hessian", weights, *own, *line)
    weights.unlink()
    (small_run / "init.pth").unlink()
    error = lgo("hessian", small_run, code=3).stderr
    assert error.endswith(f"hint: {again} --out {small_run} makes it again\n")
    (small_run / ".lgo" / "train.claim").touch()
    error = lgo("hessian", small_run, code=3).stderr
    assert error.endswith(f"training did not end: {again} --resume --out {small_run}\n")


@pytest.mark.parametrize("link", ["link.pth", "small/best.pth"])
def test_link_to_weights_of_a_run_is_followed(lgo: Lgo, small_run: Path, link: str) -> None:
    Path(link).symlink_to(small_run / "model.pth")
    line = ("--top-k", 1, "--bottom-k", 0, "--analysis-samples", 64, "--no-audit", "--json")
    linked = json.loads(lgo("hessian", link, *line).stdout)
    assert (small_run / "hessian.json").is_file()
    named = json.loads(lgo("hessian", small_run, *line, "--force").stdout)
    assert linked["request"] == named["request"]
    assert linked["locations"] == named["locations"]


def test_a_manifest_is_no_checkpoint(lgo: Lgo, small_run: Path) -> None:
    error = lgo("hessian", small_run / "train.json", code=3).stderr
    assert error.startswith(f"lgo: error: {small_run / 'train.json'} holds no weights\n")


def _data(path: Path, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=(80, 5)).astype(np.float32), np.arange(80) % 3
    np.savez(path, x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
    return path


def test_manifest_does_not_run_on_other_inputs(lgo: Lgo, small_run: Path, tmp_path: Path) -> None:
    """Neither silently nor half: the exit is that of any file that is not what was recorded."""
    lgo("interp", small_run, "--num-points", 2, "--out", "old", "--quiet")
    again = ("interp", "--config", "old/interp.json", "--out", "new")
    lgo("train", "--out", small_run, *SMALL, "--seed", 5, "--quiet")
    error = lgo(*again, code=3).stderr
    assert error == (
        "lgo: error: small/model.pth is not the model.pth that the manifest records\n"
        "hint: put the old one back, or name what to use on the command line: the run, --init, "
        "--model, --model-arg, --dataset, --dataset-arg, --loss, --loss-arg, --to, --directions or "
        "--warm-start\n"
    )
    assert not Path("new").exists()
    # A run that is named is meant, and so is its own beginning.
    lgo(*again, small_run, "--quiet")
    lgo(*again, small_run, "--to", small_run / "model.pth", "--quiet")


def test_what_a_step_finds_wrong_is_named_where_the_file_says_it(lgo: Lgo, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[hessian]\nhalves = true\naudit = false\n")
    error = lgo("run", *SMALL, "--analysis-samples", 1, "--config", "c.toml", code=2).stderr
    assert error.endswith(
        "lgo: error: c.toml: [hessian] --halves needs two samples at least\n"
        "hint: lgo hessian --help\n"
    )


def test_training_manifest_runs_no_code_on_its_own_word(lgo: Lgo, tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "def build():\n"
        "    Path('was_run').touch()\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    named = ("--model", f"{source}:build")
    lgo("train", *named, "--dataset", "digits", "--epochs", 1, "--out", "run", "--quiet")
    Path("was_run").unlink()
    again = ("train", "--config", "run/train.json", "--out", "again", "--quiet")
    assert "names code, net.py:build, which runs only if you name it" in lgo(*again, code=2).stderr
    assert not Path("was_run").exists()
    lgo(*again, *named)
    lgo(*again, "--trust-code", "--force")


def test_manifest_does_not_run_on_other_data(lgo: Lgo, tmp_path: Path) -> None:
    data = _data(tmp_path / "data.npz", 0)
    small = ("--epochs", 1, "--model-arg", "hidden=4", "--quiet")
    lgo("train", "--dataset", data, "--out", "run", *small)
    again = ("train", "--config", "run/train.json", "--out", "again", "--quiet")
    lgo(*again)
    _data(data, 1)
    assert "data.npz is not the data.npz that the manifest records" in lgo(*again, code=3).stderr
    lgo(*again, "--dataset", data)


def test_training_manifest_runs_again(lgo: Lgo, small_run: Path) -> None:
    lgo("train", "--config", small_run / "train.json", "--out", "again", "--quiet")
    first = json.loads((small_run / "train.json").read_text())
    assert json.loads(Path("again/train.json").read_text())["outputs"] == first["outputs"]


def test_streams_of_one_command(lgo: Lgo, small_run: Path) -> None:
    line = ["interp", small_run, "--num-points", 3, "--analysis-samples", 300]
    human = lgo(*line)
    assert human.stdout.splitlines()[-1] == str(small_run / "interp.json")
    assert "barrier" in human.stdout
    assert "warning: all 256 training samples are measured, not 300" in human.stderr
    quiet = lgo(*line, "--quiet")
    assert quiet.stdout == f"{small_run / 'interp.json'}\n"
    assert quiet.stderr == ""
    as_json = lgo(*line, "--json")
    manifest = parse_manifest(as_json.stdout, Path("stdout"))
    assert as_json.stdout == (small_run / "interp.json").read_text()
    assert manifest.request.command == "interp"
    assert "interp: up to date" in as_json.stderr
    verbose = lgo(*line, "--verbose", "--force")
    assert re.search(r"compute \d+\.\d\d s", verbose.stderr)
    assert manifest.fingerprint in verbose.stderr


def test_what_ones_own_code_prints_is_talk(lgo: Lgo, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nprint('imported')\n"
        "def build(input_shape, num_classes):\n"
        "    print('built')\n    return nn.Linear(input_shape[0], num_classes)\n"
    )
    result = lgo("train", "--model", "net:build", *SMALL[2:], "--json")
    assert json.loads(result.stdout)["results"]["model"] == "net:build"
    assert "built" in result.stderr


def test_manifest_and_run_both_named(lgo: Lgo, small_run: Path) -> None:
    line = ["--num-points", 3, "--analysis-samples", 64, "--quiet"]
    lgo("interp", small_run, *line)
    again = lgo("interp", small_run, "--config", small_run / "interp.json")
    assert "interp: up to date" in again.stderr


def test_stdout_is_never_marked_up_or_wrapped(lgo: Lgo, small_run: Path) -> None:
    odd = "[bold]" + "x" * 120 + "[seed=0]"
    result = lgo("interp", small_run, "--num-points", 2, "--out", odd, "--quiet")
    assert result.stdout == f"{odd}/interp.json\n"
    result = lgo("hessian", "[seed=0]" + "y" * 100, code=3)
    assert "[seed=0]" + "y" * 100 in result.stderr.splitlines()[0]


def test_dry_run(lgo: Lgo, small_run: Path) -> None:
    result = lgo("hessian", small_run, "--dry-run")
    assert "hessian: would compute (nothing done: --dry-run)" in result.stderr
    assert str(small_run / "model.pth") in result.stdout
    assert not (small_run / "hessian.json").exists()
    as_json = lgo("hessian", small_run, "--dry-run", "--json")
    planned = json.loads(as_json.stdout)
    assert "would compute" in as_json.stderr
    manifest = json.loads(lgo("hessian", small_run, "--json").stdout)
    assert planned == manifest["request"]
    line = ("run", "--out", "new", "--dry-run", "--json")
    assert json.loads(lgo(*line).stdout)["command"] == "train"
    assert lgo(*line).stdout.count("\n") == 1
    lgo("train", "--out", "run", *SMALL, "--quiet")
    told = lgo("train", "--out", "run", *SMALL, "--format", "pdf", "--dry-run").stderr
    assert told == "train: would redraw figures (nothing done: --dry-run)\n"


def test_dry_run_of_all_four_plans_each_that_can_be_planned(lgo: Lgo) -> None:
    """Only what a step to be computed decides is left open: weights, or a plane's eigenvectors."""
    file = Path("c.toml")
    tables = "[hessian]\ntop_k = {}\nvector_rtol = 1e-3\n[interp]\nnum_points = {}\n[contour]\n"
    plane = "plane = 'eigen'\nresolution = '3'\n"
    line = ("run", "--config", file, "--out", "r", *SMALL, "--analysis-samples", 64)

    def told(top_k: int, num_points: int, plane: str) -> list[str]:
        file.write_text(tables.format(top_k, num_points) + plane)
        result = lgo(*line, "--dry-run")
        return [text.removesuffix(" (nothing done: --dry-run)") for text in
                result.stderr.splitlines() if text.startswith(tuple(CONFIGS))]  # fmt: skip

    assert told(2, 3, plane) == [
        "train: would compute", "hessian: would follow", "interp: would follow",
        "contour: would follow",
    ]  # fmt: skip
    lgo(*line, "--quiet")
    assert told(2, 3, plane) == [f"{command}: up to date" for command in CONFIGS]
    assert told(2, 5, plane) == [
        "train: up to date", "hessian: up to date", "interp: would compute", "contour: up to date",
    ]  # fmt: skip
    # The plane's eigenvectors would be others.
    assert told(3, 3, plane)[1:] == [
        "hessian: would compute", "interp: up to date", "contour: would follow",
    ]  # fmt: skip
    assert told(3, 3, "resolution = '5'\n")[1:] == [
        "hessian: would compute", "interp: up to date", "contour: would compute",
    ]  # fmt: skip
    printed = lgo(*line, "--dry-run", "--json").stdout.splitlines()
    asked = [json.loads(text).get("command") for text in printed]
    assert asked == [None, "hessian", None, "contour"]  # manifests of what is there


def test_help_loses_no_bracketed_word(lgo: Lgo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Help goes through Rich, to which `[train]` is a style."""
    monkeypatch.setenv("COLUMNS", "200")
    num_words = 0
    for info in app.registered_commands:
        function = info.callback
        assert function is not None
        assert function.__doc__ is not None
        texts = [function.__doc__]
        for annotation in get_type_hints(function, include_extras=True).values():
            texts += [option.help or "" for option in getattr(annotation, "__metadata__", ())]
        words = [word for text in texts for word in text.split() if "[" in word or "]" in word]
        shown = lgo(function.__name__, "--help").stdout.split()
        assert [word for word in words if word not in shown] == []
        num_words += len(words)
    assert num_words >= 4
    assert "[train], [hessian], [interp], [contour]" in lgo("run", "--help").stdout


def test_help_wraps_whole_paragraphs(lgo: Lgo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for info in app.registered_commands:
        assert info.callback is not None
        paragraphs = inspect.getdoc(info.callback).split("\n\n")  # type: ignore[union-attr]
        shown = [line.strip() for line in lgo(info.callback.__name__, "--help").stdout.split("\n")]
        assert [text for text in paragraphs if " ".join(text.split()) not in shown] == []


def test_what_names_a_run_is_called_run_everywhere(lgo: Lgo) -> None:
    for command in ("hessian", "interp", "contour", "show", "export"):
        assert f"lgo {command} [OPTIONS] [RUN] " in lgo(command, "--help").stdout
    for command in ("verify", "table"):
        assert f"lgo {command} [OPTIONS] {{RUN}}... " in lgo(command, "--help").stdout
        assert lgo(command, code=2).stderr.startswith("lgo: error: missing argument 'RUN'\n")


def test_catalogues_fit_a_terminal(lgo: Lgo) -> None:
    assert (
        max(map(len, [*lgo("models").stdout.split("\n"), *lgo("datasets").stdout.split("\n")]))
        <= 80
    )


def test_interrupt_while_modules_are_loaded() -> None:
    code = (
        "import lgo_cli.__main__ as entry\n"
        "def interrupted(commands): raise KeyboardInterrupt\n"
        "entry.load = interrupted\n"
        "entry.main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 130
    assert result.stderr.startswith("lgo: error: interrupted\nhint: ")


def test_interrupt_that_an_import_swallows(tmp_path: Path) -> None:
    """As PyTorch's extension does where it does not abort."""
    (tmp_path / "swallows.py").write_text(
        "import signal\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    code = (
        "import signal, sys\nimport lgo_cli.__main__ as entry\n"
        # A suite in the background has it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def load(commands):\n    import swallows\n    return lambda prog_name: print('done')\n"
        "entry.load = load\n"
        "entry.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr.startswith("lgo: error: interrupted\nhint: ")


def test_terminated_as_by_timeout_shows_the_cursor_again(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "lgo_cli", "train", "--epochs", "10000"]
    shown = b""
    with subprocess.Popen(
        line, cwd=tmp_path, env={**os.environ, "TERM": "xterm"}, stderr=theirs
    ) as process:
        os.close(theirs)
        while b"%" not in shown:  # a bar is drawn, and the cursor hidden
            shown += os.read(ours, 10_000)
        process.terminate()
        with suppress(OSError):  # Linux's word for the end
            while more := os.read(ours, 10_000):
                shown += more
    os.close(ours)
    assert process.returncode == 130
    assert b"lgo: error: interrupted" in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("shown", [False, True])  # amid the bar's start, amid its end
def test_interrupt_amid_the_start_or_the_end_of_a_bar(name: str, shown: bool) -> None:
    code = (
        "import signal\n"
        "from rich.console import Console\n"
        "from lgo_cli.cli.output import Output\n"
        f"signal.signal(signal.{name}, signal.default_int_handler)\n"
        "show_cursor = Console.show_cursor\n"
        "def interrupted(console, show):\n"
        f"    if show is {shown}: signal.raise_signal(signal.{name})\n"
        "    return show_cursor(console, show)\n"
        "Console.show_cursor = interrupted\n"
        "out = Output(json=False, quiet=False, verbose=False)\n"
        "try:\n"
        "    with out.progress.task('surface', 2, 'cells') as task: task.bar.refresh()\n"
        "except KeyboardInterrupt:\n"
        "    out.say('interrupted')\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], env=environment, stderr=theirs, check=True)
    os.close(theirs)
    text = b""
    with suppress(OSError):  # Linux's word for the end
        while more := os.read(ours, 10_000):
            text += more
    os.close(ours)
    assert text.endswith(b"interrupted\r\n")
    assert text.rindex(b"\x1b[?25h") > text.rindex(b"\x1b[?25l")
    assert text.rindex(b"\x1b[2K") > text.find(b"surface")  # no bar is left


def test_talk_on_a_terminal_ends_its_lines_between_words() -> None:
    path = "/a/rather/long/path/that-is/in one/piece.json"
    said = f"warning: {'eigenvalues of the Hessian, ' * 5}in {path}, {'end ' * 9}"
    code = (
        "import sys\n"
        "from lgo_cli.cli import root, output\n"
        "out = output.Output(json=False, quiet=False, verbose=False)\n"
        f"out.say({said!r})\n"
        "root._fail('not found ' * 9, 'lgo train --out ' + 'directory/' * 9, 3)\n"
    )
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "COLUMNS": "40", "TERM": "xterm"},
            stderr=theirs, check=False,
        )  # fmt: skip
        lines = os.read(ours, 10_000).decode().split("lgo: error: ")
    finally:
        os.close(theirs)
        os.close(ours)
    talk, (error, hint) = lines[0].splitlines(), lines[1].split("hint: ")
    assert " ".join(" ".join(talk).split()) == " ".join(said.split())
    assert max(map(len, talk)) <= 40
    assert error.split() == ["not", "found"] * 9
    # Half of a command is another command.
    assert hint.startswith(f"lgo train --out {'directory/' * 9}\r\n")


def test_run_does_all_four_and_then_none(lgo: Lgo, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        "[hessian]\ntop_k = 2\nmax_matvecs = 40\n[interp]\nnum_points = 3\n"
        '[contour]\nresolution = "3"\n'
    )
    line = ["run", "--out", "all", *SMALL, "--analysis-samples", 64, "--config", "c.toml"]
    lgo(*line, "--quiet")
    steps = ["train", "hessian", "interp", "contour"]
    assert all((tmp_path / "all" / f"{step}.json").is_file() for step in steps)
    again = lgo(*line, "--json")
    manifests = [json.loads(text) for text in again.stdout.splitlines()]
    assert [manifest["request"]["command"] for manifest in manifests] == steps
    assert again.stderr.count("up to date") == 4
    hessian = manifests[1]["request"]["config"]
    assert (hessian["top_k"], hessian["analysis_samples"], hessian["model"]) == (2, 64, "mlp")


def test_run_trusts_the_code_that_it_was_given(lgo: Lgo, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build(input_shape, num_classes):\n"
        "    return nn.Linear(input_shape[0], num_classes)\n"
    )
    (tmp_path / "c.toml").write_text('[contour]\nresolution = "2"\n[interp]\nnum_points = 2\n')
    lgo(
        "run", "--model", "net.py:build", "--dataset-arg", "num_train=64", "--epochs", 1,
        "--config", "c.toml", "--quiet",
    )  # fmt: skip
    assert (tmp_path / "outputs" / "contour.json").is_file()


def test_version_and_help(lgo: Lgo) -> None:
    assert lgo("--version").stdout == f"lgo {__version__}\n"
    text = lgo("--help").stdout
    order = [text.index(f" {name} ") for name in ("train", "hessian", "interp", "contour", "run")]
    assert order == sorted(order)
    help_text = lgo("contour", "-h").stdout
    assert "outputs)" in help_text  # the default that Rich would read as markup in brackets


def test_help_says_what_each_command_prints(lgo: Lgo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("models", "datasets", "show", "verify"):
        text = lgo(command, "--help").stdout
        assert "Print the manifest;" not in text
        assert "Print the manifest's" not in text
    assert "or a manifest" not in lgo("run", "--help").stdout


@pytest.mark.parametrize(
    ("line", "error", "asked"),
    [
        ("interp --range 1", "option '--range' requires 2 arguments", "interp"),
        ("interp --num-point 1", "no such option: --num-point", "interp"),
        ("hessian --quiet --verbose", "--verbose and --quiet exclude each other", "hessian"),
        ("hessian --quiet --json", "--json and --quiet exclude each other", "hessian"),
        ("nope", "no such command 'nope'", ""),
        ("--nope", "no such option: --nope", ""),
    ],
)
def test_usage_errors_name_the_help_of_their_command(
    lgo: Lgo, line: str, error: str, asked: str
) -> None:
    stderr = lgo(*line.split(), code=2).stderr
    assert stderr.startswith(f"lgo: error: {error}")
    assert stderr.endswith(f"\nhint: lgo {asked} --help\n".replace("  ", " "))


def test_resume_where_nothing_is_says_so(lgo: Lgo) -> None:
    line = ("train", "--resume", *SMALL)
    said = "out has no saved state: training from the start\n"
    assert lgo(*line, "--out", "out").stderr == said
    assert said not in lgo(*line, "--out", "out", "--force").stderr
    assert lgo(*line, "--out", "other", "--quiet").stderr == ""


def test_choices_stand_in_the_one_line_of_the_error(lgo: Lgo) -> None:
    assert lgo("export", code=2).stderr == (
        "lgo: error: missing option '--to'. Choose from: csv, vtk, h5\nhint: lgo export --help\n"
    )


@pytest.mark.parametrize(
    "command",
    ["datasets", "models --json", "verify small", "show small", "--version", "train --help"],
)
def test_a_reader_who_has_seen_enough_is_no_error(small_run: Path, command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        line = [sys.executable, "-m", "lgo_cli", *command.split()]
        done = subprocess.run(
            line, cwd=small_run.parent, stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("environment", "on_terminal", "bar"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, False, False),
    ],
)
def test_progress_is_a_bar_where_one_can_be_shown_and_lines_elsewhere(
    environment: dict[str, str], on_terminal: bool, bar: bool
) -> None:
    code = (
        "from lgo_cli.cli import output, progress\n"
        "progress.LINE_INTERVAL_S = 0\n"
        "out = output.Output(json=False, quiet=False, verbose=False)\n"
        "out.say('before')\n"
        "with out.progress.task('surface', 2, 'cells') as task: task.advance(loss=0.5)\n"
    )
    ours, theirs = pty.openpty() if on_terminal else os.pipe()
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    try:
        subprocess.run(
            [sys.executable, "-c", code], env={**kept, **environment}, stderr=theirs, check=True
        )
        lines = os.read(ours, 10_000).decode().splitlines()
    finally:
        os.close(theirs)
        os.close(ours)
    assert lines[0] == "before"
    assert ("\x1b" in "".join(lines)) == bar
    shown = [re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", line) for line in lines]
    assert all(len(line) <= 80 - len("^C") for line in shown)  # which the terminal echoes
    if not bar:
        assert lines[1].startswith("surface: 1/2 cells, ")
        assert lines[1].endswith(" left, loss 0.5")


HESSIAN = "hessian small --top-k 1 --bottom-k 0 --no-audit --analysis-samples 64"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f"{HESSIAN} >&-", 0),
        (f"{HESSIAN} 2>&-", 0),
        (f"{HESSIAN} <&- >&- 2>&-", 0),
        (f"{HESSIAN} --verbose 2>/dev/full", 0),
        ("table small >&-", 0),
        ("--version >&-", 0),
        ("hessian nowhere 2>&-", 3),
        ("hessian nowhere 2>/dev/full", 3),
        ("hessian --nothing 2>/dev/full", 2),
        ("show small >/dev/full", 5),
        ("train --help >/dev/full", 5),
        ("--version >/dev/full", 5),
    ],
)
def test_closed_and_full_streams(small_run: Path, line: str, code: int) -> None:
    """Talk that nobody hears and data that nobody wants change nothing; data that are lost do."""
    done = subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -m lgo_cli {line}"],
        cwd=small_run.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    if code == 5:
        assert done.stderr == (
            "lgo: error: no space left on the disk\nhint: free some space and run the same again\n"
        )
    if code == 0 and line.startswith(HESSIAN):
        assert (small_run / "hessian.json").is_file()
        # Nothing that was printed went to a file which got the closed stream's number.
        assert verify_run(small_run) == ["train", "hessian"]


def _without_a_home(*arguments: str, place: Path) -> subprocess.CompletedProcess[str]:
    names = ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    # No process has that number. The shell is the one named, not what started the tests, if any.
    detection = "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"
    environment |= {"HOME": "/proc/nobody", detection: "1"}
    return subprocess.run(
        [sys.executable, "-m", "lgo_cli", *arguments], cwd=place, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_completion_that_cannot_be_installed(tmp_path: Path) -> None:
    done = _without_a_home("--install-completion", "bash", place=tmp_path)
    assert done.returncode == 3
    assert done.stderr == (
        "lgo: error: cannot write /proc/nobody: No such file or directory\n"
        "hint: lgo --show-completion prints what the shell is to read\n"
    )


def test_quiet_is_quiet_where_no_home_can_be_written(tmp_path: Path) -> None:
    done = _without_a_home("train", *SMALL, "--quiet", place=tmp_path)
    assert (done.stdout, done.stderr) == ("outputs/train.json\n", "")


def test_characters_that_the_encoding_lacks(small_run: Path) -> None:
    """They are escaped as JSON escapes them: `--json` is the manifest in any encoding."""
    line = [sys.executable, "-m", "lgo_cli", *HESSIAN.split(), "--out", "λ\U0001d706"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = partial(
        subprocess.run, cwd=small_run.parent, env=environment, capture_output=True, check=True
    )
    shown = run(line).stdout
    assert b"\\u00b1" in shown
    # A path is for the shell, as the system has it.
    assert shown.endswith(os.fsencode(f"{line[-1]}/hessian.json\n"))
    assert json.loads(run([*line, "--json"]).stdout)["provenance"]["argv"][-1] == line[-1]
    quiet = run([*line[:3], "show", line[-1], "--quiet"]).stdout
    assert quiet == os.fsencode(f"{line[-1]}/hessian.json\n")


def test_a_config_file_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes("epochs = 1  # für später\n".encode())
    line = [sys.executable, "-m", "lgo_cli", "train", "--config", "c.toml", "--dry-run", "--json"]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        line, cwd=tmp_path, env={**os.environ, **plain}, capture_output=True, check=True
    )
    assert json.loads(done.stdout)["config"]["epochs"] == 1


def test_catalogue(lgo: Lgo) -> None:
    assert "shortcuts=true" in lgo("models").stdout
    models = json.loads(lgo("models", "--json").stdout)
    assert models["resnet20"]["num_parameters"] == 269_722
    assert models["mlp"]["arguments"]["hidden"]["default"] == [256, 128]
    data = json.loads(lgo("datasets", "--json").stdout)
    assert data["synthetic"]["arguments"]["seed"]["default"] == 0


def test_real_process(small_run: Path, tmp_path: Path) -> None:
    """One real subprocess: console streams, exit code, and talk without colour where there is no
    terminal."""
    command = [sys.executable, "-m", "lgo_cli", "contour", str(small_run), "--resolution", "3"]
    command += ["--analysis-samples", "64"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{small_run / 'contour.json'}\n")
    assert done.stderr == ""
    assert "\x1b" not in done.stdout + done.stderr
    failed = subprocess.run(
        [*command[:4], "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 3
    assert failed.stderr.startswith("lgo: error: no such run or checkpoint: nowhere\nhint: ")
    assert failed.stdout == ""


def test_arguments_are_json_where_they_can_be() -> None:
    from lgo_cli.cli.request import parse_arguments

    pairs = ["a=1", "b=1e-3", "c=true", "d=False", "e=x=y", "f=", "g=[1, 2]", "h=NaN", "i={}"]
    assert parse_arguments(pairs, "--model-arg") == {
        "a": 1, "b": 1e-3, "c": True, "d": False, "e": "x=y", "f": "", "g": [1, 2], "h": "NaN",
        "i": "{}",
    }  # fmt: skip
    too_long = "9" * 5000  # for Python to read as a number
    assert parse_arguments([f"a={too_long}"], "--model-arg") == {"a": too_long}
    assert parse_config(TrainConfig, {"model_arg": {"a": [1]}}).model_arg == {"a": [1]}


def test_arguments_on_the_command_line_are_over_those_of_the_file_for_one_factory(
    lgo: Lgo,
) -> None:
    Path("c.toml").write_text('model_arg = {hidden = [8], activation = "tanh"}\n')
    for said, found in (
        (("activation=gelu",), {"hidden": [8], "activation": "gelu"}),
        (("hidden=5", "--model", "mlp"), {"hidden": [5], "activation": "relu"}),
    ):
        line = ("train", "--config", "c.toml", "--dry-run", "--json", "--model-arg", *said)
        asked = json.loads(lgo(*line).stdout)["config"]["model_arg"]
        assert found.items() <= asked.items()


def test_a_manifests_inputs_are_named_by_where_they_were(lgo: Lgo, small_run: Path) -> None:
    from lgo_cli.cli.request import _named_by, read_config_file

    few = ("--analysis-samples", 32, "--format", "pdf", "--quiet")
    lgo("hessian", small_run, "--top-k", 1, "--bottom-k", 0, "--no-audit", *few)
    lgo("contour", small_run, "--resolution", 2, *few)
    some = InputRef(sha256="0" * 64)
    for command, config, name, option, value in (
        ("train", {"init": "init.pth"}, "init.pth", "init", "far/away/file"),
        ("train", {}, "train-images-idx3-ubyte", "data_root", "far/away"),
        ("hessian", {"warm_start": "warm_start.npz"}, "warm_start.npz", "warm_start", "far/away"),
        ("contour", {"directions": ["directions_0"]}, "directions_0", "directions",
         ["far/away/file"]),
    ):  # fmt: skip
        path = small_run / f"{command}.json"
        manifest = read_manifest(path)
        request = manifest.request
        changed = manifest.model_copy(
            update={
                "locations": {**manifest.locations, name: "far/away/file"},
                "request": request.model_copy(
                    update={
                        "config": {**request.config, **config},
                        "inputs": {**request.inputs, name: some},
                    }
                ),
            }
        )
        write_manifest(changed, small_run / "changed.json")
        found = read_config_file(small_run / "changed.json", CONFIGS[command], ()).values
        places = [value] if isinstance(value, str) else value
        asked = [found[option]] if isinstance(value, str) else found[option]
        assert [Path(place) for place in asked] == [small_run / place for place in places]
        assert found["format"] == ("png" if command == "train" else "pdf")
        assert _named_by(name, changed) == ("dataset" if option == "data_root" else option)
    # A run that is named is meant, whatever the manifest's was.
    init = hashlib.sha256((small_run / "init.pth").read_bytes()).hexdigest()
    line = ("--config", small_run / "hessian.json", "--out", "there", "--dry-run", "--json")
    inputs = json.loads(lgo("hessian", small_run / "init.pth", *line).stdout)["inputs"]
    assert inputs["model.pth"]["sha256"] == init


def test_smoothing_and_the_same_soft_labels_give_the_same(lgo: Lgo, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((96, 5)), rng.integers(0, 3, 96)
    hard = {"x_train": x, "y_train": y, "x_test": x[:32], "y_test": y[:32]}
    soft = {name: 0.7 * np.eye(3)[labels] + 0.1 for name, labels in hard.items() if name[0] == "y"}
    np.savez(tmp_path / "hard.npz", **hard)
    np.savez(tmp_path / "soft.npz", **(hard | soft))
    found = []
    for name, smoothing in (("hard", 0.3), ("soft", 0.0)):
        out = tmp_path / name
        lgo(
            "train", "--dataset", tmp_path / f"{name}.npz", "--label-smoothing", smoothing,
            "--model-arg", "hidden=8", "--epochs", 2, "--out", out,
        )  # fmt: skip
        results = []
        for command, *options in (
            ("hessian", "--operator", "ggn", "--top-k", 2),
            ("interp", "--num-points", 3),
            ("contour", "--resolution", 3),
        ):
            lgo(command, out, *options)
            results.append(json.loads((out / f"{command}.json").read_text())["results"])
        train = json.loads((out / "train.json").read_text())["results"]
        found.append(
            [train["train_loss"], train["test_accuracy"], results[0]["loss"], results[1]["barrier"]]
            + [pair["value"] for pair in results[0]["largest"]]
            + [results[2]["loss_min"], results[2]["loss_max"]]
        )
    # Float32 sums of 96 samples through two epochs of training.
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_outputs_beyond_the_classes_are_named(lgo: Lgo, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\ndef net(num_classes=10): return torch.nn.Linear(20, num_classes)\n"
        "def more(): return torch.nn.Linear(20, 12)\n"
    )
    options = ("--epochs", 1, "--dataset-arg", "num_train=64", "--dataset-arg", "num_test=32")
    assert "puts out" not in lgo("train", "--model", "net.py:net", *options).stderr
    out = tmp_path / "more"
    for result in (
        lgo("train", "--model", "net.py:more", *options, "--out", out),
        lgo("hessian", out, "--trust-code", "--top-k", 1, "--bottom-k", 0),
    ):
        line = "the model puts out 12 classes, the data have 10: the others are in the loss too"
        assert line in result.stderr


def test_lines_of_a_terminal_end_between_words_and_go_on_under_the_value() -> None:
    rows = [("cost", "115 products (audit 3, eigenvalues 92)"), ("  a/long/name", "x"), ("ok", "y")]
    assert laid_out(rows, None) == [
        "cost  115 products (audit 3, eigenvalues 92)",
        "  a/long/name  x",
        "ok    y",
    ]
    assert laid_out([(name, f"{value} {value}") for name, value in rows], 60) == [
        "cost  115 products (audit 3, eigenvalues 92) 115 products",
        "        (audit 3, eigenvalues 92)",
        "  a/long/name  x x",
        "ok    y y",
    ]
    # `lgo show` has indented them by two: of two columns none is left, which is a word a line.
    assert laid_out([("ok", "y z")], 0) == ["ok", "    y", "    z"]


def test_what_runs_share_that_have_it_is_no_column() -> None:
    names = ("run", "operator", "lambda_max")
    rows = [dict(zip(names, values, strict=True)) for values in (
        ("a", "hessian", 1.5), ("b", None, None), ("c", "hessian", 2.5),
    )]  # fmt: skip
    assert fitting(rows, 17) == (["run", "lambda_max"], ["the same in all runs: operator hessian"])
    rows[2]["operator"] = "ggn"
    shown, said = fitting(rows, 17)
    assert shown == ["run", "lambda_max"]
    assert said == ["no room on 17 columns for: operator; --format csv has them all"]
