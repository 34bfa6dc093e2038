"""Every bad way in: documented exit code, one error, one hint, no traceback, no file changed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Lgo

from lgo_cli.files import canonical_json, sha256_bytes

Setup = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A command line that must fail.

    Attributes:
        line: Arguments, in a directory that holds a trained run `run`.
        code: Exit code.
        message: Part of the one error.
        setup: What is there beside the run.
    """

    line: str
    code: int
    message: str
    setup: Setup = lambda place: None


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch EXPLODED",)


def _write(name: str, content: bytes) -> Setup:
    def setup(place: Path) -> None:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return setup


def _edit_manifest(change: Callable[[dict[str, object]], object], *, forge: bool = False) -> Setup:
    """Edit the run's manifest; a forger makes its fingerprint fit, so that no edit shows."""

    def setup(place: Path) -> None:
        path = place / "run" / "train.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        if forge:
            manifest["fingerprint"] = sha256_bytes(canonical_json(manifest["request"]))
        path.write_text(json.dumps(manifest))

    return setup


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Setup:
    def setup(place: Path) -> None:
        state = torch.load(place / "run" / "model.pth", weights_only=True)
        changed = change(state)
        torch.save(state if changed is None else changed, place / "w.pth")

    return setup


def _nan(state: dict[str, torch.Tensor]) -> None:
    state["linear1.weight"][0, 0] = torch.nan


def _bomb(place: Path) -> None:
    torch.save({"linear1.weight": _Bomb()}, place / "w.pth")


def _cut(name: str, num_bytes: int) -> Setup:
    def setup(place: Path) -> None:
        path = place / name
        path.write_bytes(path.read_bytes()[:num_bytes])

    return setup


def _npz(**change: object) -> Setup:
    def setup(place: Path) -> None:
        arrays: dict[str, object] = {
            "x_train": np.zeros((8, 3)), "y_train": np.arange(8) % 2,
            "x_test": np.zeros((4, 3)), "y_test": np.arange(4) % 2,
        }  # fmt: skip
        arrays |= change
        np.savez(place / "d.npz", **{k: v for k, v in arrays.items() if v is not None})  # type: ignore[arg-type]

    return setup


def _idx(place: Path) -> None:
    for split in ("train", "t10k"):
        images = struct.pack(">HBBIII", 0, 8, 3, 10, 28, 28) + bytes(10 * 28 * 28 - 1)
        _write(f"data/{split}-images-idx3-ubyte", images)(place)
        _write(f"data/{split}-labels-idx1-ubyte", struct.pack(">HBBI", 0, 8, 1, 10) + bytes(10))(
            place
        )


def _cifar(content: bytes) -> Setup:
    def setup(place: Path) -> None:
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            _write(f"data/cifar-10-batches-py/{name}", content)(place)

    return setup


def _read_only(place: Path) -> None:
    # Root writes anywhere; a path below /proc is one where nobody can.
    (place / "closed").symlink_to("/proc/self/fdinfo")


FACTORY = b"""
import torch
def raises(): raise ZeroDivisionError("in the user's own code")
def number(): return 3
def needs(width): return torch.nn.Linear(20, width)
def small(input_shape, num_classes): return torch.nn.Linear(3, num_classes)
def flat(input_shape, num_classes): return torch.nn.Flatten()
def frozen(): return torch.nn.Linear(20, 10).requires_grad_(False)
class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(20, 10)
    def forward(self, x):
        return torch.nn.functional.dropout(self.linear(x))
"""
FOREIGN = "--model mlp --dataset synthetic --dataset-arg num_train=256 --out o"
TINY = "--dataset-arg num_train=64 --dataset-arg num_test=32 --epochs 1"

CASES = {
    # the command line
    "unknown command": Case("trian", 2, "no such command 'trian'. Did you mean 'train'?"),
    "unknown option": Case("train --epoch 3", 2, "no such option: --epoch"),
    "option without value": Case("train --epochs", 2, "'--epochs' requires an argument"),
    "text for a number": Case(
        "train --epochs many", 2, "'--epochs': input should be a valid integer, got 'many'"
    ),
    "text for one of two numbers": Case(
        "interp run --range 0 one", 2, "'--range': input should be a valid number, got 'one'"
    ),
    "two runs": Case("interp run run", 2, "got unexpected extra argument(s) (run)"),
    "negative count": Case("train --epochs -1", 2, "--epochs: input should be greater than or"),
    "zero rate": Case("train --lr 0", 2, "--lr: input should be greater than 0, got 0.0"),
    "infinite rate": Case("train --lr inf", 2, "--lr: input should be a finite number"),
    "rate beyond float32": Case("train --lr 1e39", 2, "--lr: input should be less than or equal"),
    "decay beyond float32": Case("train --weight-decay 1e39", 2, "--weight-decay: input should be"),
    "negative seed": Case("train --seed -1", 2, "--seed: input should be greater than or equal"),
    "negative top-k": Case("hessian run --top-k -2", 2, "--top-k: input should be greater than"),
    "more eigenvalues than there are": Case(
        "hessian run --top-k 10000", 2, "10000 largest and 1 smallest eigenvalues are more than"
    ),
    "inverted range": Case("contour run --x-range 1 -1", 2, "--x-range: needs MIN < MAX, got 1 -1"),
    "one point": Case("contour run --resolution 1", 2, "--resolution: needs at least 2 points"),
    "bad resolution": Case("contour run --resolution 5by5", 2, "must be like 51 or 51x31"),
    "vast resolution": Case(
        "contour run --resolution 100000x3", 2, "along each axis, and at most 99,999"
    ),
    "one of three checkpoints": Case("contour run --to run", 2, "needs two: --to A --to B"),
    "to and direction": Case("interp run --to run --direction random", 2, "exclude each other"),
    "json and quiet": Case("interp run --json --quiet", 2, "--json and --quiet exclude"),
    "warm-up beyond the end": Case(
        "train --epochs 2 --warmup-epochs 3", 2, "--warmup-epochs 3 is more than the 2 epochs"
    ),
    "nesterov without momentum": Case(
        "train --nesterov --momentum 0", 2, "--nesterov needs a --momentum above 0"
    ),
    "momentum of adam": Case("train --optimizer adam --momentum 0.9", 2, "do not go with"),
    "no products to spend": Case("hessian run --max-matvecs 3", 2, "fewer than the 11"),
    # names and arguments
    "unknown model": Case("train --model resnet21", 2, "unknown model 'resnet21'; did you mean"),
    "unknown data set": Case("train --dataset cifra10", 2, "did you mean cifar10?"),
    "unknown argument": Case("train --model-arg hiden=3", 2, "did you mean hidden?"),
    "argument without value": Case("train --model-arg hidden", 2, "'hidden' is not KEY=VALUE"),
    "argument twice": Case(
        "train --model-arg hidden=3 --model-arg hidden=4", 2, "hidden is given twice"
    ),
    "argument out of range": Case("train --model-arg dropout=1.5", 2, "--model-arg dropout: "),
    "no image for a resnet": Case(f"train --model resnet20 {TINY}", 2, "resnet20"),
    # runs and checkpoints
    "no such run": Case("hessian nowhere", 3, "no such run or checkpoint: nowhere"),
    "directory that is no run": Case(
        "hessian empty", 3, "empty is no finished run", lambda place: (place / "empty").mkdir()
    ),
    "show what is no run": Case("show nowhere", 3, "no such run directory: nowhere"),
    "training state for weights": Case(
        "hessian run/state.pth", 3, "run/state.pth holds no weights alone"
    ),
    "log for weights": Case("interp run --to run/train.csv", 3, "holds no weights alone"),
    "weights without a run": Case(
        "hessian w.pth", 2, "comes with no train.json", _weights(lambda state: None)
    ),
    "manifest that is no JSON": Case(
        "hessian run", 3, "run/train.json is not a manifest", _write("run/train.json", b"{")
    ),
    "manifest of another version": Case(
        "hessian run", 3, "was written by a later version of lgo",
        _edit_manifest(lambda manifest: manifest.update(schema_version=2)),
    ),
    "manifest without locations": Case(
        "hessian run", 3, "is not a manifest that this lgo reads: it says nothing of data.npz",
        _edit_manifest(lambda m: m["request"]["inputs"].update(  # type: ignore[index]
            {"data.npz": {"sha256": "0" * 64, "produced_by": None}})),
    ),
    "manifest without its initialisation": Case(
        "interp run", 3, "it says nothing of init.pth",
        _edit_manifest(lambda manifest: manifest["outputs"].pop("init.pth")),  # type: ignore[attr-defined]
    ),
    "manifest without a field": Case(
        "hessian run", 3, "it says nothing of warmup_epochs",
        _edit_manifest(lambda m: m["request"]["config"].pop("warmup_epochs")),  # type: ignore[index]
    ),
    "manifest that was edited": Case(
        "verify run", 3, "the fingerprint is not that of the request",
        _edit_manifest(lambda manifest: manifest["request"]["config"].update(seed=7)),  # type: ignore[index]
    ),
    "manifest that names code": Case(
        "hessian run", 2, "runs only if you name it",
        _edit_manifest(lambda m: (m["request"]["config"].update(model="model.py:build"),  # type: ignore[index]
                                  m["locations"].update({"model.py": "../net.py"})),  # type: ignore[attr-defined]
                       forge=True),
    ),
    "manifest that names installed code": Case(
        "hessian run", 2, "this run's model is code, torch.nn:Linear, which runs only if you name",
        _edit_manifest(lambda m: m["request"]["config"].update(model="torch.nn:Linear"),  # type: ignore[index]
                       forge=True),
    ),
    "weights changed": Case(
        "hessian run", 3, "model.pth is not the file that", _write("run/model.pth", b"x")
    ),
    "output changed": Case(
        "verify run", 3, "train.csv is not what lgo train wrote", _write("run/train.csv", b"x")
    ),
    "truncated weights": Case(
        f"hessian w.pth {FOREIGN}", 3, "w.pth is not a readable checkpoint",
        lambda place: (_weights(lambda state: None)(place), _cut("w.pth", 700)(place))[0],
    ),
    "weights that are text": Case(
        f"hessian w.pth {FOREIGN}", 3, "w.pth", _write("w.pth", b"not a checkpoint")
    ),
    "empty weights": Case(f"hessian w.pth {FOREIGN}", 3, "w.pth", _write("w.pth", b"")),
    "malicious weights": Case(
        f"hessian w.pth {FOREIGN}", 3, "holds more than tensors and plain values", _bomb
    ),
    "checkpoint with more than weights": Case(
        f"hessian w.pth {FOREIGN}", 3, "is not a plain state_dict: it also holds epoch",
        _weights(lambda state: {**state, "epoch": 3}),
    ),
    "weights that are a list": Case(
        f"hessian w.pth {FOREIGN}", 3, "holds a list, not a state_dict",
        _weights(lambda state: list(state.values())),
    ),
    "NaN weights": Case(
        f"hessian w.pth {FOREIGN}", 3, "linear1.weight has values that", _weights(_nan)
    ),
    "weights of another architecture": Case(
        f"hessian w.pth {FOREIGN} --model-arg hidden=8,8", 3,
        "does not fit the model: linear2.weight is missing", _weights(lambda state: None),
    ),
    "other end of another shape": Case(
        "interp run --to w.pth", 3, "linear1.weight has shape (2, 2), the model wants (8, 20)",
        _weights(lambda state: {**state, "linear1.weight": torch.zeros(2, 2)}),
    ),
    "plane of one line": Case("contour run --to run --to run", 3, "span no plane"),
    # data
    "data not on disk": Case("train --dataset mnist", 3, "looked in data/mnist, data/MNIST/raw"),
    "npz not there": Case("train --dataset d.npz", 3, "no such data file: d.npz"),
    "npz lacks an array": Case("train --dataset d.npz", 3, "lacks y_test", _npz(y_test=None)),
    "npz is text": Case("train --dataset d.npz", 3, "d.npz", _write("d.npz", b"text")),
    "npz truncated": Case(
        "train --dataset d.npz", 3, "d.npz",
        lambda place: (_npz()(place), _cut("d.npz", 300)(place))[0],
    ),
    "npz with a pickle": Case(
        "train --dataset d.npz", 3, "d.npz", _npz(x_train=np.array([_Bomb()] * 8, dtype=object))
    ),
    "NaN in data": Case(
        "train --dataset d.npz", 3, "x_train", _npz(x_train=np.full((8, 3), np.nan))
    ),
    "negative label": Case("train --dataset d.npz", 3, "y_train", _npz(y_train=np.arange(8) - 1)),
    "label out of range": Case(
        "hessian w.pth --model mlp --model-arg hidden=8 --dataset d.npz --out o", 3, "w.pth does",
        lambda place: (_weights(lambda state: None)(place),
                       _npz(x_train=np.zeros((8, 20)), x_test=np.zeros((4, 20)))(place))[0],
    ),
    "shapes that disagree": Case(
        "train --dataset d.npz", 3, "x_test", _npz(x_test=np.zeros((4, 2)))
    ),
    "counts that disagree": Case("train --dataset d.npz", 3, "y_train", _npz(y_train=np.arange(3))),
    "no samples": Case(
        "train --dataset d.npz", 3, "x_train",
        _npz(x_train=np.zeros((0, 3)), y_train=np.zeros(0, dtype=int)),
    ),
    "truncated IDX": Case("train --dataset mnist", 3, "data/train-images-idx3-ubyte", _idx),
    "CIFAR of another md5": Case(
        "train --dataset cifar10", 3, "data_batch_1", _cifar(pickle.dumps({}))
    ),
    "malicious CIFAR": Case(
        "train --dataset cifar10 --dataset-arg verify=false", 3, "data_batch_1",
        _cifar(pickle.dumps({b"data": _Bomb(), b"labels": []})),
    ),
    # one's own code
    "no such file of code": Case("train --model net.py:build", 3, "no such Python file: net.py"),
    "no such factory": Case(
        "train --model net.py:build", 3, "net.py has no callable 'build'", _write("net.py", FACTORY)
    ),
    "factory that raises": Case(
        "train --model net.py:raises", 3, "ZeroDivisionError: in the user's own code",
        _write("net.py", FACTORY),
    ),
    "factory of no model": Case(
        "train --model net.py:number", 3, "returned an int, not an nn.Module",
        _write("net.py", FACTORY),
    ),
    "factory that wants more": Case(
        "train --model net.py:needs", 2, "missing a required argument: 'width'",
        _write("net.py", FACTORY),
    ),
    "model for other inputs": Case(
        f"train --model net.py:small {TINY}", 3, "cannot take inputs of shape (20,)",
        _write("net.py", FACTORY),
    ),
    "model of no classes": Case(
        f"train --model net.py:flat {TINY}", 2, "no trainable parameter", _write("net.py", FACTORY)
    ),
    "model of frozen parameters": Case(
        f"train --model net.py:frozen {TINY}", 2, "no trainable parameter",
        _write("net.py", FACTORY),
    ),
    "package that raises": Case(
        "train --model pkg.net:build", 3, "importing pkg.net failed: ValueError: no",
        _write("pkg/__init__.py", b"raise ValueError('no')"),
    ),
    "code with a syntax error": Case(
        "train --model net.py:build", 3, "SyntaxError", _write("net.py", b"def build(:")
    ),
    # the numbers
    "diverging training": Case(
        f"train --lr 1e20 --loss squared_error {TINY}", 4, "with learning rate 1e+20"
    ),
    "not converged and strict": Case(
        "hessian run --max-matvecs 11 --strict", 4, "eigenvalues did not converge"
    ),
    # the machine and the disk
    "no GPU": Case("hessian run --device cuda:7", 5, "there is no cuda:7 on this machine"),
    "no such device": Case("hessian run --device tpu", 2, "no device is called 'tpu'"),
    "device without its number": Case("hessian run --device cpu:", 2, "no device is called 'cpu:'"),
    "name too long for the disk": Case(f"train --out {'x' * 300}", 3, "File name too long"),
    "file in place of the directory": Case(
        "train --out file", 3, "file is a file, not a directory", _write("file", b"somebody's")
    ),
    "read-only place": Case("train --out closed/run", 3, "cannot write closed/run", _read_only),
    "somebody's file": Case(
        f"train --out mine {TINY}", 3, "mine/model.pth was not written by lgo train",
        _write("mine/model.pth", b"somebody's"),
    ),
    # --config
    "config not there": Case("train --config c.toml", 3, "cannot read c.toml"),
    "config not TOML": Case("train --config c.toml", 3, "is not TOML", _write("c.toml", b"a = ")),
    "config with a number that is too long": Case(
        "train --config c.toml", 3, "is not TOML", _write("c.toml", b"seed = " + b"9" * 5000)
    ),
    "config with unknown key": Case(
        "train --config c.toml", 2, "c.toml: epoch is no option of lgo train; did you mean epochs?",
        _write("c.toml", b"epoch = 3"),
    ),
    "config of another command": Case(
        "hessian --config run/train.json", 2, "is a manifest of lgo train, not lgo hessian"
    ),
    "run with a stray table": Case(
        "run --config c.toml", 2, "hesian is not a table of a command; did you mean hessian?",
        _write("c.toml", b"[hesian]\ntop_k = 3"),
    ),
}  # fmt: skip


def _files(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): hashlib.sha256(
            path.read_bytes() if path.is_file() else b""
        ).hexdigest()
        for path in sorted(place.rglob("*"))
        if "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("name", list(CASES))
def test_bad_input(name: str, lgo: Lgo, small_run: Path, tmp_path: Path) -> None:
    case = CASES[name]
    small_run.rename(tmp_path / "run")
    case.setup(tmp_path)
    before = _files(tmp_path)
    result = lgo(*case.line.split(), code=case.code)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning:")]
    assert lines[0].startswith("lgo: error: ")
    assert case.message in lines[0]
    assert len(lines) == 2 or (len(lines) == 1 and case.code > 2), result.stderr
    for hint in lines[1:]:
        assert hint.startswith("hint: ")
        assert len(hint) > len("hint: ")
        assert case.code == 2 or not hint.endswith(" --help")
    assert result.stdout == ""
    after = _files(tmp_path)
    if name == "diverging training":  # its last finite weights are kept, and no manifest
        kept = ("", "/model.pth", "/init.pth", "/.lgo", "/.lgo/train.claim")
        after = {k: v for k, v in after.items() if k not in [f"outputs{name}" for name in kept]}
    if name == "not converged and strict":
        assert "run/hessian.json" not in after
    assert after == before
    assert not (tmp_path / "EXPLODED").exists()
    assert not list(tmp_path.rglob("*.lgo-tmp"))


def test_full_disk(lgo: Lgo, small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = _files(small_run)
    monkeypatch.setattr(os, "fsync", full)
    result = lgo("interp", small_run, "--num-points", 2, code=5)
    assert result.stderr.startswith("lgo: error: no space left to write ")
    assert _files(small_run) == before


@pytest.mark.parametrize(
    "error",
    [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), MemoryError()],
)
def test_out_of_memory(
    lgo: Lgo, small_run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("lgo_cli.objective.evaluate_model", fail)
    monkeypatch.setattr("lgo_cli.runs.steps.train.resolve_recipe", fail)
    hint = "lower --micro-batch-size or --batch-size or --analysis-samples or --memory"
    of_hessian = "lower --micro-batch-size or --analysis-samples or --memory or --max-basis"
    for line, expected in (
        (("interp", small_run), hint),
        (("hessian", small_run), f"{of_hessian}, or --basis-device disk"),
        (("train", "--epochs", 1, "--out", "new"), "lower --batch-size"),
    ):
        said = lgo(*line, code=5).stderr
        assert said == f"lgo: error: out of memory\nhint: {expected}\n"


def test_grid_that_is_too_large(lgo: Lgo, small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _files(small_run)
    line = ("contour", small_run, "--resolution", "99999", "--tolerance", "0.1")
    error = lgo(*line, code=5).stderr
    # 1,533 bytes a cell.
    assert error.startswith("lgo: error: a grid of 99999 x 99999 cells would take 1.43e+04 GiB, mo")
    assert error.endswith("\nhint: lower --resolution\n")

    # Where the system promises more than it has, or a limit is set, allocation itself fails.
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("lgo_cli.landscape.surface.fill_surface", fail)
    error = lgo("contour", small_run, "--tolerance", "0.1", "--resolution", "1500", code=5).stderr
    assert error == (
        "lgo: error: out of memory for a grid of 1500 x 1500 cells\nhint: lower --resolution\n"
    )
    after = _files(small_run)  # with a journal, still empty
    assert {k: v for k, v in after.items() if not k.startswith(".lgo/cells")} == before


@pytest.mark.parametrize(
    ("more", "num_bytes", "what", "hint"),
    [
        ("", 460 + 33, "a grid", "lower --resolution"),
        ("--tolerance 0.1", 1500 + 33, "a grid", "lower --resolution"),
        # Beside the one that is measured: another surface, and the losses of each plane.
        ("--test", 460 + 66, "2 grids", "lower --resolution, or leave out --test"),
        ("--num-planes 2", 460 + 66 + 34, "2 grids", "lower --resolution or --num-planes"),
        (
            "--num-planes 3 --test --tolerance 0.1",
            1500 + 66 + 51,
            "4 grids",
            "lower --resolution or --num-planes, or leave out --test",
        ),
    ],
)
def test_all_that_is_held_counts(
    lgo: Lgo, small_run: Path, monkeypatch: pytest.MonkeyPatch,
    more: str, num_bytes: int, what: str, hint: str,
) -> None:  # fmt: skip
    def limit(total: int) -> None:
        monkeypatch.setattr("lgo_cli.memory.total_memory_bytes", lambda device: total)

    line = ("contour", small_run, "--resolution", "8x6", "--analysis-samples", "16", *more.split())
    limit(48 * num_bytes - 1)
    size = f"{48 * num_bytes / 2**30:.3g} GiB"
    assert lgo(*line, code=5).stderr == (
        f"lgo: error: {what} of 8 x 6 cells would take {size}, more than the {size} of memory\n"
        f"hint: {hint}\n"
    )
    limit(48 * num_bytes)
    lgo(*line, "--quiet")


def test_memory_that_ends_at_further_planes(
    lgo: Lgo, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("lgo_cli.landscape.statistics.plane_statistics", fail)
    line = ("contour", small_run, "--num-planes", "2", "--resolution", "5")
    error = lgo(*line, "--analysis-samples", "16", code=5).stderr
    assert error == (
        "lgo: error: out of memory for 2 grids of 5 x 5 cells\n"
        "hint: lower --resolution or --num-planes\n"
    )


def test_bug_keeps_its_traceback(
    lgo: Lgo, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("lgo_cli.runs.loaded.probe_warnings", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        lgo("interp", small_run)


def test_interrupt(lgo: Lgo, small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lgo_cli.runs.loaded.probe_warnings", interrupt)
    result = lgo("interp", small_run, code=130)
    assert result.stderr.startswith("lgo: error: interrupted\nhint: nothing is half-written")


def test_random_model_is_named(lgo: Lgo, small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_bytes(FACTORY)
    lgo("train", "--model", "net.py:Noisy", *TINY.split(), "--quiet")
    line = ["interp", "--model", "net.py:Noisy", "--num-points", "3"]
    result = lgo(*line, code=4)
    assert "the objective is not deterministic" in result.stderr
    assert "the module that differs is Noisy" in result.stderr
