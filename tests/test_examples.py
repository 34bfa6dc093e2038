"""The examples do what they say: each command of the walkthrough, the Makefile, the scripts."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Lgo
from lgo_server import CLIENT

import lgo_cli

EXAMPLES = Path(__file__).parent.parent / "examples"
README = EXAMPLES.parent / "README.md"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment in which `lgo` is this interpreter's, on one thread, in a fork of a server."""
    place = tmp_path_factory.mktemp("shell")
    address = str(place / "server")
    (place / "client.py").write_text(CLIENT.format(address=address))
    (place / "bin").mkdir()
    for name, arguments in (("lgo", f'-IS "{place}/client.py"'), ("python", "")):
        script = place / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    environment = {
        **os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(README.parent)
    }  # fmt: skip
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        command = [sys.executable, "-m", "lgo_server", str(listening.fileno())]
        server = subprocess.Popen(
            command, cwd=Path(__file__).parent, env=environment, pass_fds=[listening.fileno()]
        )
    yield environment
    server.kill()
    server.wait()


Done = subprocess.CompletedProcess[str]


def _run(command: str, place: Path, environment: dict[str, str]) -> Done:
    done = subprocess.run(
        command, shell=True, cwd=place, env=environment, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def commands(document: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL)
    whole = (re.sub(r"\\\n *", "", block) for block in blocks)  # that were broken to fit
    return [line for block in whole for line in block.splitlines() if line.strip()]


def test_walkthrough(tmp_path: Path, lgo: Lgo, shell: dict[str, str]) -> None:
    """Plain commands run in this process, which need not import torch each time; pipes for real."""
    for name in ("custom_model.py", "focal_loss.py", "language_model.py", "walkthrough.md"):
        shutil.copy(EXAMPLES / name, tmp_path)
    lines = commands(EXAMPLES / "walkthrough.md")
    assert len(lines) > 15
    outputs = {}
    for line in lines:
        if "|" in line:
            outputs[line] = _run(line, tmp_path, shell).stdout
        else:
            program, *arguments = shlex.split(line)
            assert program == "lgo"
            outputs[line] = lgo(*arguments).stdout
    assert outputs["lgo table runs/a runs/b"].count("\n") == 3
    again = [line for line in lines if line.startswith("lgo run ")][1]
    assert outputs[again].count("\n") == 4
    lgo("verify", "runs/a", "runs/b", "runs/all")


def test_make_twice(tmp_path: Path, shell: dict[str, str]) -> None:
    place = tmp_path / "make"
    place.mkdir()
    shutil.copy(EXAMPLES / "Makefile", place)
    train = "--dataset-arg num_train=256 --dataset-arg num_test=64 --epochs 1 --model-arg hidden=8"
    planned = _run("make -n", place, shell).stdout.splitlines()
    steps = ("contour", "hessian", "interp", "train")
    assert sorted(" ".join(line.split()[:3]) for line in planned) == sorted(
        f"lgo {step} {'--out' if step == 'train' else f'runs/{seed}'}"
        for seed in (0, 1)
        for step in steps
    )
    # One of both for real: of its steps too two are worked on at once.
    line = f"make -j2 SEEDS=1 TRAIN='{train}'"
    _run(line, place, shell)
    manifests = sorted(str(path.relative_to(place)) for path in place.rglob("*.json"))
    assert manifests == [f"runs/1/{step}.json" for step in steps]
    assert "Nothing to be done" in _run(line, place, shell).stdout
    _run("lgo verify runs/1", place, shell)
    # What Make believes to be stale and lgo knows not to be: looked up, touched, and done.
    (place / "runs/1/train.json").touch()
    _run(line, place, shell)
    assert "Nothing to be done" in _run(line, place, shell).stdout
    # A changed option, which Make does not see: only what it touches is computed.
    text = (place / "Makefile").read_text()
    (place / "Makefile").write_text(text.replace("hessian runs/$*", "hessian runs/$* --top-k 3"))
    assert "Nothing to be done" in _run(line, place, shell).stdout
    payloads = [place / "runs/1" / name for name in ("model.pth", "interp.npz", "hessian.npz")]
    before = [path.stat().st_mtime_ns for path in payloads]
    _run(f"{line} -B", place, shell)
    after = [path.stat().st_mtime_ns for path in payloads]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False]


def test_batch(tmp_path: Path, shell: dict[str, str]) -> None:
    shutil.copy(EXAMPLES / "batch.sh", tmp_path)
    done = _run("./batch.sh", tmp_path, {**shell, "EPOCHS": "1"})
    assert "lambda_max" in done.stdout
    assert (tmp_path / "sweep" / "table.csv").read_text().count("\n") == 4


def test_edge_of_stability(tmp_path: Path, shell: dict[str, str]) -> None:
    """Sharpness rises past the threshold of the steps and comes back to it, as the table says."""
    document = (EXAMPLES / "edge_of_stability.md").read_text()
    done = _run(
        f"{EXAMPLES}/edge_of_stability.sh", tmp_path, shell | {"EPOCHS": "600", "EVERY": "200"}
    )
    header, *lines = (line.split() for line in done.stdout.splitlines()[-4:])
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    assert [row["run"] for row in rows] == [f"edge/gd/step-{n:08d}" for n in (200, 400, 600)]
    assert {row["stability_threshold"] for row in rows} == {"5"}
    below, above, there = (float(row["sharpness_ratio"]) for row in rows)
    (told,) = re.findall(r"^\| 200 \|.* (\S+) \| 4e-12 \|$", document, re.MULTILINE)
    assert below == pytest.approx(float(told), abs=1e-3)
    # From here on rounding grows from step to step: other machines have other digits.
    assert below < 0.95 < min(above, there)
    assert max(above, there) < 1.2


def test_train_and_analyze(tmp_path: Path, shell: dict[str, str]) -> None:
    script = EXAMPLES / "train_and_analyze.py"
    options = "--dataset digits --model mlp --epochs 1 --analysis_samples 64 --save_dir out"
    done = _run(f"python {script} {options}", tmp_path, shell)
    assert "largest eigenvalue" in done.stdout
    for name in ("hessian.png", "interp_1d.png", "contour_2d.png", "model.pth"):
        assert (tmp_path / "out" / name).is_file()


def test_batchnorm_policies(tmp_path: Path, lgo: Lgo, shell: dict[str, str]) -> None:
    options = "--model resnet20 --dataset digits --train-samples 64 --epochs 1"
    lgo("train", "--out", tmp_path / "run", *options.split(), "--quiet")
    script = EXAMPLES / "batchnorm_policies.py"
    done = _run(f"python {script} run --analysis_samples 16 --num_points 3", tmp_path, shell)
    for policy in ("frozen", "recompute", "interpolate", "batch"):
        manifest = json.loads((tmp_path / "batchnorm" / policy / "interp.json").read_text())
        assert manifest["results"]["measured"]["batchnorm"] == policy
        assert policy in done.stdout
    assert (tmp_path / "batchnorm" / "policies.png").stat().st_size > 10_000


def test_readme_names_only_what_there_is(shell: dict[str, str], tmp_path: Path) -> None:
    """Each relative link of the README leads somewhere, and each lgo command line parses."""
    text = README.read_text()
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (README.parent / target).exists(), target
    for line in commands(README):
        if line.startswith("lgo ") and "|" not in line:
            done = subprocess.run(
                f"{line.split(' #')[0]} --help", shell=True, cwd=tmp_path, env=shell, check=False,
                capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_every_picture_is_shown_somewhere() -> None:
    shown = "".join(path.read_text() for path in (README, *EXAMPLES.glob("*.md")))
    pictures = [path.name for path in (EXAMPLES / "figures").iterdir()]
    assert len(pictures) > 20
    assert [name for name in pictures if f"figures/{name})" not in shown] == []


def test_docstring_of_the_package_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lgo_cli.__doc__ is not None
    run, own = re.findall(r"::\n\n((?:    .*\n|\n)+)", lgo_cli.__doc__)
    exec(textwrap.dedent(run), {})
    assert 0.5 < float(capsys.readouterr().out) <= 1
    assert (tmp_path / "outputs" / "train.json").is_file()
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        exec(textwrap.dedent(own), names)
    assert capsys.readouterr().out.startswith("tensor([")
    assert len(names["pairs"].values) == 3
