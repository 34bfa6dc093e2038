"""What errors advise: it is there, and it works."""

from __future__ import annotations

import json
import pickle
import random
import re
import shlex
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, Lgo

from lgo_cli import checkpoint
from lgo_cli.errors import InputError

MODELS = """
import torch
from torch import nn

class Few(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, number))
        drawn = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
        self.register_buffer("matrix", drawn)
    def forward(self, x):
        return (x @ self.matrix) * self.scale.repeat(12 // len(self.scale))

def one(): return Few(1)
def six(): return Few(6)

class Odd(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.linear = nn.Linear(20, 10)
        self.kind = kind
    def forward(self, x):
        y = self.linear(x)
        return {"nan": y * torch.nan, "tuple": (y, y), "dict": {"logits": y}}[self.kind]
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(MODELS)
    return path


def _hint(stderr: str) -> str:
    """The one hint of a failed command."""
    (hint,) = [line for line in stderr.splitlines() if line.startswith("hint: ")]
    return hint.removeprefix("hint: ")


@pytest.mark.parametrize("place", ["run", "a run"])
def test_changed_weights_are_trained_again_as_they_were(
    lgo: Lgo, small_run: Path, tmp_path: Path, place: str
) -> None:
    run = small_run.rename(tmp_path / place)
    weights = (run / "model.pth").read_bytes()
    (run / "model.pth").write_bytes(weights[:100])
    hint = _hint(lgo("hessian", place, code=3).stderr)
    command = hint.removeprefix("put the old one back, or train the same again: lgo ")
    assert shlex.split(command) == [
        "train", "--config", f"{place}/train.json", "--force", "--out", place,
    ]  # fmt: skip
    lgo(*shlex.split(command), "--quiet")
    assert (run / "model.pth").read_bytes() == weights


@pytest.mark.parametrize("place", ["run", "a run"])
def test_lost_weights_are_trained_again_as_they_were(
    lgo: Lgo, small_run: Path, tmp_path: Path, place: str
) -> None:
    run = small_run.rename(tmp_path / place)
    weights = (run / "model.pth").read_bytes()
    lines = {
        "hessian": "put the old one back, or train the same again: lgo ",
        "verify": "put the old one back, or compute it again: lgo ",
    }
    for command, words in lines.items():
        (run / "model.pth").unlink()
        hint = _hint(lgo(command, place, code=3).stderr)
        assert hint.startswith(words)
        lgo(*shlex.split(hint.removeprefix(words)), "--quiet")
        assert (run / "model.pth").read_bytes() == weights


@pytest.mark.parametrize("place", ["run", "a run"])
@pytest.mark.parametrize("step", ["train", "interp"])
def test_a_manifest_in_the_wrong_place_is_run_by_its_own_command(
    lgo: Lgo, small_run: Path, tmp_path: Path, place: str, step: str
) -> None:
    """As a RUN, and as the `--config` of another command: the advice does what that step did."""
    small_run.rename(tmp_path / place)
    lgo("interp", place, "--analysis-samples", 64, "--num-points", 5, "--quiet")
    for line, code in (((), 3), (("--config",), 2)):
        error = lgo("hessian", *line, f"{place}/{step}.json", code=code).stderr
        command = _hint(error).partition("again: lgo ")[2]
        assert f"{step}: up to date" in lgo(*shlex.split(command)).stderr


def test_a_file_that_is_no_manifest_is_not_run_again(lgo: Lgo, small_run: Path) -> None:
    (small_run / "data.json").write_text("{}")
    assert _hint(lgo("hessian", small_run / "data.json", code=3).stderr) == f"name {small_run}"


@pytest.mark.parametrize(
    ("number", "asked", "advice"),
    [
        ("one", "", "--top-k 1 --bottom-k 0"),
        ("one", "--top-k 0 --bottom-k 3", "--top-k 0 --bottom-k 1"),
        ("six", "", "--top-k 5 --bottom-k 1"),
        ("six", "--top-k 2 --bottom-k 9", "--top-k 1 --bottom-k 5"),
    ],
)
def test_fewer_parameters_than_eigenvalues(
    lgo: Lgo, models: Path, number: str, asked: str, advice: str
) -> None:
    lgo("train", "--model", f"net.py:{number}", *SMALL[2:], "--out", "run", "--quiet")
    line = ("hessian", "run", "--trust-code", "--analysis-samples", "64")
    assert _hint(lgo(*line, *asked.split(), code=2).stderr) == advice
    shown = lgo(*line, *advice.split()).stdout
    assert "one copy of a repeated eigenvalue is listed" not in shown
    assert f"{number}, {'1 parameter' if number == 'one' else '6 parameters'}\n" in shown
    if number == "six":
        assert "one copy of a repeated" in lgo(*line, "--top-k", 1, "--bottom-k", 0).stdout


def test_one_parameter_has_a_line_and_no_plane(lgo: Lgo, models: Path) -> None:
    lgo("train", "--model", "net.py:one", *SMALL[2:], "--out", "run", "--quiet")
    code = ("run", "--trust-code", "--analysis-samples", "64")
    for plane in ("random", "gradient", "eigen"):
        error = lgo("contour", *code, "--plane", plane, code=2).stderr
        assert "a plane needs two parameters, and the model has one" in error
        assert _hint(error) == "measure its line: lgo interp --direction eigen"
    assert "--direction eigen" in _hint(
        lgo("interp", *code, "--direction", "random", code=2).stderr
    )
    lgo("interp", *code, "--direction", "eigen", "--num-points", 3, "--quiet")


def test_model_without_filters_has_an_eigen_plane(lgo: Lgo, models: Path) -> None:
    lgo("train", "--model", "net.py:six", *SMALL[2:], "--out", "run", "--quiet")
    code = ("run", "--trust-code", "--analysis-samples", "64", "--resolution", "3")
    assert "--plane eigen" in _hint(lgo("contour", *code, code=2).stderr)
    lgo("contour", *code, "--plane", "eigen", "--quiet")


def test_a_loss_that_is_not_finite_from_the_start_blames_no_learning_rate(
    lgo: Lgo, models: Path
) -> None:
    line = ("train", "--model", "net.py:Odd", "--model-arg", "kind=nan", *SMALL[2:])
    assert lgo(*line, code=4).stderr == (
        "lgo: error: training loss is nan before the first step\n"
        "hint: see what the model puts out for these data as it is initialised\n"
    )


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_a_model_that_returns_more_than_logits(lgo: Lgo, models: Path, kind: str) -> None:
    line = ("train", "--model", "net.py:Odd", "--model-arg", f"kind={kind}", *SMALL[2:])
    error = lgo(*line, code=3).stderr
    assert f"it returned a {kind}\n" in error
    assert _hint(error) == "return the logits alone, a tensor [samples, classes]"


def _data(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    np.savez(path, x_train=x, y_train=y, x_test=np.zeros((4, 3)), y_test=np.arange(4) % 2)


@pytest.mark.parametrize(
    ("number", "samples", "text"),
    [
        (1, 1024, "the one training sample is measured, not 1024"),
        (1, 1024, "the training sample misses 1 of 2 classes"),
        (9, 1, "the first training sample misses 1 of 2 classes: raise --analysis-samples"),
        (9, 9, "the training samples miss 1 of 2 classes"),
        (9, 4, "the first 4 training samples miss 1 of 2 classes: raise --analysis-samples"),
    ],
)
def test_more_samples_are_advised_where_there_are_more(
    lgo: Lgo, tmp_path: Path, number: int, samples: int, text: str
) -> None:
    _data(tmp_path / "d.npz", np.zeros((number, 3)), np.ones(number, dtype=int))
    lgo("train", "--dataset", "d.npz", "--model-arg", "hidden=2", "--epochs", 0, "--quiet")
    line = ("hessian", "--top-k", 1, "--bottom-k", 0, "--analysis-samples", samples)
    assert f"warning: {text}\n" in lgo(*line).stderr


def test_moved_run_without_its_data(lgo: Lgo, tmp_path: Path) -> None:
    _data(tmp_path / "d.npz", np.eye(3)[np.arange(12) % 3], np.arange(12) % 2)
    lgo("train", "--dataset", "d.npz", "--model-arg", "hidden=2", "--epochs", 1, "--quiet")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "outputs").rename(tmp_path / "elsewhere" / "outputs")
    line = ("hessian", "elsewhere/outputs", "--top-k", 1, "--bottom-k", 0, "--quiet")
    error = lgo(*line, code=3).stderr
    assert _hint(error) == "say where the file is: --dataset FILE.npz"
    lgo(*line, "--dataset", "d.npz")


def test_moved_run_without_its_code(lgo: Lgo, models: Path, tmp_path: Path) -> None:
    lgo("train", "--model", "net.py:six", *SMALL[2:], "--quiet")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "outputs").rename(tmp_path / "elsewhere" / "outputs")
    error = lgo("hessian", "elsewhere/outputs", "--trust-code", code=3).stderr
    assert _hint(error) == "say where it is: --model, --dataset or --loss PATH/net.py:six"


def test_code_of_a_run_is_named_as_it_is_seen_from_here(
    lgo: Lgo, models: Path, tmp_path: Path
) -> None:
    """Also behind a link to a directory, whose `..` is not where the link is."""
    lgo("train", "--model", "net.py:six", *SMALL[2:], "--quiet")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link").symlink_to(tmp_path / "outputs")
    for run, place in (("outputs", "net.py"), ("sub/link", "sub/link/../net.py")):
        hint = _hint(lgo("interp", run, "--num-points", 3, code=2).stderr)
        assert hint.startswith(f"say --model {place}:six, or --trust-code")
        lgo("interp", run, "--num-points", 3, "--model", f"{place}:six", "--quiet")


def test_a_wrong_choice_is_told_in_our_words(lgo: Lgo) -> None:
    assert lgo("train", "--optimizer", "lbfgs", code=2).stderr == (
        "lgo: error: invalid value for '--optimizer': "
        "'lbfgs' is not one of 'sgd', 'adam', 'adamw'\n"
        "hint: lgo train --help\n"
    )


def test_any_bytes_are_no_checkpoint_in_words(small_run: Path, tmp_path: Path) -> None:
    """What the unpickler stumbles over is no reason to a user (`101`), and never a bug of lgo's."""
    draw = random.Random(0)
    path = tmp_path / "w.pth"
    alphabet = b"abcdefghijklmnopqrstuvwxyz().\n ]}RIN012"
    contents = [b"", b"hello\n", b"e", b"0", b"a" * 40]
    contents += [bytes(draw.choices(alphabet, k=draw.randrange(1, 30))) for _ in range(600)]
    contents += [draw.randbytes(draw.randrange(1, 40)) for _ in range(200)]
    reasons = set()
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            checkpoint.load(path)
        reasons.add(re.sub(r" \([\w.]+\)", "", caught.value.message))  # a class's name
        assert caught.value.hint is not None
    assert f"{path} is not a readable checkpoint: torch.save wrote no such bytes" in reasons
    assert len(reasons) <= 5


def test_checkpoint_cut_short_anywhere_is_called_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    checkpoint.save({f"layer{i}.weight": torch.ones(40) for i in range(20)}, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="is not a readable checkpoint"):
            checkpoint.load(path)


Save = Callable[[dict[str, torch.Tensor], Path], object]


def _saved(change: Callable[[dict[str, torch.Tensor]], Any]) -> Save:
    return lambda state, path: torch.save(change(state), path)


def _renamed(before: str) -> Save:
    return _saved(lambda state: {before + name: value for name, value in state.items()})


def _half(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


ODD = ("--model-arg", "hidden=8", "--dataset", "synthetic", "--out", "odd", "--quiet")
LINE = ("hessian", "odd.pth", "--model", "mlp", *ODD, "--top-k", 1, "--bottom-k", 0, "--no-audit")


@pytest.mark.parametrize(
    ("save", "error"),
    [
        (_renamed("module."), "does not fit the model: its names begin with module., as of"),
        (_renamed("module._orig_mod."), "its names begin with module._orig_mod., as of"),
        (_saved(lambda state: {"epoch": 3, "state_dict": state}), "holds one as 'state_dict'\n"),
        (_saved(lambda state: {"model": state, "optimizer": {}}), "holds one as 'model'\n"),
        (_saved(lambda state: {"ema": state, "model": state}), "holds several: 'ema', 'model'\n"),
        (
            _saved(lambda state: {"head": {"weight": torch.ones(10)}, "model": state}),
            "holds several: 'head', 'model'\n",
        ),
        (
            _saved(
                lambda state: {
                    "epoch": 3,
                    "state_dict": {f"model.{name}": value for name, value in state.items()},
                }
            ),
            "holds one as 'state_dict'\n",
        ),
        (
            _saved(
                lambda state: (
                    {"loss.weight": torch.ones(10)}
                    | {f"model.{name}": value for name, value in state.items()}
                )
            ),
            "does not fit the model: the model's names in it begin with model., as of a wrapped",
        ),
    ],
)
def test_weights_in_a_wrapper_are_taken_out_of_it(
    lgo: Lgo, small_run: Path, tmp_path: Path, save: Save, error: str
) -> None:
    save(torch.load(small_run / "model.pth", weights_only=True), tmp_path / "odd.pth")
    stderr = lgo(*LINE, code=3).stderr
    assert error in stderr
    python, option, script = shlex.split(_hint(stderr))
    assert (python, option) == ("python", "-c")
    exec(script, {})
    lgo("hessian", "odd_weights.pth", *LINE[2:])


def _safetensors(names: list[str]) -> bytes:
    header = json.dumps({name: {} for name in names}).encode()
    return len(header).to_bytes(8, "little") + header


def test_directions_in_another_dict_keep_their_own_names(lgo: Lgo, small_run: Path) -> None:
    state = torch.load(small_run / "model.pth", weights_only=True)
    torch.save({"state_dict": state}, "odd.pth")
    line = ("contour", small_run, "--resolution", 3, "--analysis-samples", 64, "--quiet")
    other = ("--directions", small_run / "init.pth")
    script = shlex.split(_hint(lgo(*line, "--directions", "odd.pth", *other, code=3).stderr))[2]
    exec(script, {})
    lgo(*line, "--directions", "odd_weights.pth", *other)


def test_an_average_beside_the_weights_is_not_advised_in_their_place(
    lgo: Lgo, small_run: Path, tmp_path: Path
) -> None:
    weights = torch.load(small_run / "model.pth", weights_only=True)
    torch.save(weights | {f"ema.{name}": weights[name] for name in weights}, tmp_path / "odd.pth")
    assert "ema.linear1.weight is unknown to the model" in lgo(*LINE, code=3).stderr


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_safetensors_are_rewritten_by_one_command(
    lgo: Lgo, small_run: Path, tmp_path: Path, prefix: str
) -> None:
    state = {
        prefix + name: value
        for name, value in torch.load(small_run / "model.pth", weights_only=True).items()
    }
    path = tmp_path / "odd.safetensors"
    path.write_bytes(_safetensors(["__metadata__", *state]))
    stderr = lgo("hessian", "odd.safetensors", *LINE[2:], code=3).stderr
    assert "odd.safetensors is a file of safetensors, not of torch.save\n" in stderr
    script = shlex.split(_hint(stderr))[2]
    read = 'import torch, safetensors.torch; state = safetensors.torch.load_file("odd.safetensors")'
    assert script.startswith(f"{read}; torch.save(")
    # The package of that name is no dependency, so that the file's reader is stood in for.
    exec(script.removeprefix(read).lstrip("; "), {"torch": torch, "state": state})
    lgo("hessian", "odd_weights.pth", *LINE[2:])


@pytest.mark.parametrize(
    "content",
    [
        b"", b"abc", b"\xff" * 40, _safetensors(["a"])[:-1], b"\2" + b"\0" * 7 + b"12",
        b"\0\x20" + b"\0" * 6 + b"9" * 8192,
    ],
)  # fmt: skip
def test_safetensors_cut_short_are_called_unreadable(
    lgo: Lgo, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "odd.safetensors").write_bytes(content)
    stderr = lgo("hessian", "odd.safetensors", *LINE[2:], code=3).stderr
    assert "odd.safetensors is not a readable file of safetensors\n" in stderr
    assert _hint(stderr) == "take another copy of it"


@pytest.mark.parametrize(
    ("save", "reason", "advice"),
    [
        (_half, "failed finding central directory\n", "take another copy of it"),
        (_saved(lambda state: list(state.values())), "holds a list", "torch.save(model.state"),
        (_saved(lambda state: state["linear1.bias"]), "holds a Tensor", "torch.save(model.state"),
        (
            _saved(lambda state: dict(enumerate(state.values()))),
            "is not a plain state_dict: it also holds 0, 1, 2, 3\n",
            "torch.save(model.state",
        ),
        (
            _saved(lambda state: {"weights": dict(enumerate(state.values()))}),
            "is not a plain state_dict: it also holds weights\n",
            "torch.save(model.state",
        ),
        (
            _saved(lambda state: {"state_dict": state, "hyper_parameters": Namespace(lr=1)}),
            "holds more than tensors and plain values (argparse.Namespace); it was not run\n",
            "torch.save(model.state",
        ),
        (
            lambda state, path: path.write_bytes(pickle.dumps(np.ones(3), protocol=4)),
            "holds more than tensors and plain values, or is no checkpoint; it was not run\n",
            "torch.save(model.state",
        ),
        (
            _saved(lambda state: {name: value * torch.nan for name, value in state.items()}),
            "has values that are not finite",
            "before the training diverged",
        ),
    ],
)
def test_no_weights_have_advice_of_their_own(
    lgo: Lgo, small_run: Path, tmp_path: Path, save: Save, reason: str, advice: str
) -> None:
    save(torch.load(small_run / "model.pth", weights_only=True), tmp_path / "odd.pth")
    stderr = lgo(*LINE, code=3).stderr
    assert reason in stderr
    assert advice in _hint(stderr)


def test_no_option_makes_two_models_one(lgo: Lgo, small_run: Path) -> None:
    lgo("train", "--out", "digits", "--dataset", "digits", "--epochs", 0, "--quiet")
    hint = _hint(lgo("interp", small_run, "--to", "digits", code=3).stderr)
    assert hint.endswith("; checkpoints that are compared are of one model")


def _first_as(change: Callable[[torch.Tensor], torch.Tensor]) -> Save:
    return _saved(lambda state: {**state, "linear1.weight": change(state["linear1.weight"])})


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # PyTorch's own
@pytest.mark.parametrize(
    ("save", "kind"),
    [
        (_first_as(lambda weight: weight.to_sparse()), "is sparse, not plain numbers"),
        (_first_as(lambda weight: weight.to("meta")), "is a tensor without numbers (on PyTorch's"),
        (_first_as(lambda weight: weight.to(torch.float8_e5m2)), "is quantised, not plain numbers"),
        (_first_as(lambda weight: weight.to(torch.complex64)), "holds complex64, the model wants"),
        (_first_as(lambda weight: weight.long()), "holds int64, the model wants float32"),
    ],
)
def test_weights_that_are_no_plain_floats_are_refused(
    lgo: Lgo, small_run: Path, tmp_path: Path, save: Save, kind: str
) -> None:
    save(torch.load(small_run / "model.pth", weights_only=True), tmp_path / "odd.pth")
    assert f"linear1.weight {kind}" in lgo(*LINE, code=3).stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(
    lgo: Lgo, small_run: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    state = torch.load(small_run / "model.pth", weights_only=True)
    cast = {name: value.to(dtype) for name, value in state.items()}
    losses = {}
    for name, weights in (
        ("odd", cast),
        ("cast", {key: value.float() for key, value in cast.items()}),
        ("own", state),
    ):
        torch.save(weights, tmp_path / f"{name}.pth")
        lgo("hessian", f"{name}.pth", *LINE[2:], "--out", name)
        losses[name] = json.loads((tmp_path / name / "hessian.json").read_text())["results"]["loss"]
    assert losses["odd"] == losses["cast"]
    assert (losses["odd"] == losses["own"]) == (dtype == torch.float64)


def test_other_weights_show_what_lacks_and_what_is_too_much(lgo: Lgo, tmp_path: Path) -> None:
    torch.save({"weight": torch.eye(3), "bias": torch.ones(3)}, tmp_path / "odd.pth")
    error = lgo(*LINE, code=3).stderr
    assert "linear1.weight is missing; weight is unknown to the model; " in error


CENTERED = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a, self.b = nn.Linear(20, 6), nn.Linear(6, num_classes)
    def forward(self, x):
        x = self.a(x).tanh()
        return self.b(x - x.mean(0))
"""


def test_every_analysis_says_that_samples_see_each_other(lgo: Lgo) -> None:
    Path("net.py").write_text(CENTERED)
    lgo("train", "--model", "net.py:Net", *SMALL[2:], "--out", "run", "--quiet")
    for line in (
        ("contour", "run", "--resolution", 3),
        ("interp", "run", "--direction", "random", "--num-points", 3),
        ("interp", "run", "--to", "run/init.pth", "--num-points", 3),
        ("interp", "run", "--matrix", "--to", "run/init.pth", "--num-points", 3),
        ("hessian", "run", "--top-k", 1, "--bottom-k", 0),
    ):
        said = lgo(*line, "--trust-code").stderr
        assert said.count("samples see each other: the loss depends on which") == 1
        failed = lgo(*line, "--trust-code", "--strict", "--force", code=4)
        assert "samples see each other" in failed.stderr


def _arrays(**changed: np.ndarray) -> dict[str, np.ndarray]:
    x, y = np.zeros((4, 3), dtype=np.float32), np.arange(4) % 2
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y} | changed


@pytest.mark.parametrize(
    ("arrays", "hint"),
    [
        ({"X": np.zeros((4, 3)), "y": np.arange(4)}, "numpy.savez(path, x_train=..., y_train="),
        (_arrays(x_train=np.array([[1], [1, 2]], dtype=object)), "save arrays of numbers"),
        (
            _arrays(y_train=np.zeros((4, 1), dtype=np.float32)),
            'class indices are integers: y.ravel().astype("int64")',
        ),
        (_arrays(y_test=np.zeros((4, 1), dtype=int)), "y.squeeze(1)"),
    ],
)
def test_data_that_are_not_as_wanted(
    lgo: Lgo, tmp_path: Path, arrays: dict[str, np.ndarray], hint: str
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
    assert _hint(lgo("train", "--dataset", "d.npz", code=3).stderr).startswith(hint)


def test_a_module_is_no_factory_and_what_a_file_imports_is_not_named(
    lgo: Lgo, tmp_path: Path
) -> None:
    """One module serves once: its weights are of no seed, and later builds would be the same."""
    source = "from dataclasses import dataclass\nfrom torch import nn\nnet = nn.Linear(20, 10)\n"
    (tmp_path / "net.py").write_text(f"{source}def build(): return nn.Linear(20, 10)\n")
    said = lgo("train", "--model", "net.py:net", code=3).stderr
    assert _hint(said) == "name its class, Linear, or a function that returns a new one"
    assert _hint(lgo("train", "--model", "net.py:bild", code=3).stderr) == "it has: build"
    (tmp_path / "offers").mkdir()
    (tmp_path / "offers" / "__init__.py").write_text("from offers.nets import build\n")
    (tmp_path / "offers" / "nets.py").write_text("def build(): ...\n")
    assert _hint(lgo("train", "--model", "offers:bild", code=3).stderr) == "it has: build"


def test_help_of_a_command_is_no_advice_on_files(lgo: Lgo, small_run: Path) -> None:
    run = small_run.rename("run")
    (run / ".lgo" / "hessian.claim").write_text('["hessian.npz"]')
    assert lgo("verify", run, code=3).stderr == (
        "lgo: error: run: hessian: interrupted: run it again\n"
    )


def test_out_that_names_the_run_is_told_how_a_run_is_named(lgo: Lgo, small_run: Path) -> None:
    small_run.rename("run")
    hint = _hint(lgo("hessian", "--out", "run", code=3).stderr)
    command = hint.removeprefix("name the run that is there, and the same options: lgo ")
    lgo(*shlex.split(command), "--top-k", 1, "--bottom-k", 0, "--analysis-samples", 32, "--quiet")
    Path("run").rename("outputs")
    lgo("train", *SMALL, "--out", "run", "--quiet")
    assert "run/hessian.json" in lgo("hessian", "--out", "run", "--dry-run").stdout  # of outputs


def test_a_checkpoint_or_run_that_is_not_there_is_told_the_nearest(
    lgo: Lgo, small_run: Path
) -> None:
    error = lgo("hessian", small_run / "checkpoints" / "step-9.pth", code=3).stderr
    assert "step-9.pth; did you mean step-00000008.pth?\n" in error
    error = lgo("interp", small_run, "--to", "smal", code=3).stderr
    assert "no such run or checkpoint: smal; did you mean small?\n" in error
    assert "did you mean" not in lgo("interp", small_run, "--to", "other", code=3).stderr


def test_a_second_run_is_told_its_option(lgo: Lgo, small_run: Path) -> None:
    error = lgo("interp", small_run, small_run / "init.pth", code=2).stderr
    assert _hint(error) == "the other end is named by --to: lgo interp RUN --to OTHER"
    assert _hint(lgo("hessian", small_run, "other", code=2).stderr) == "lgo hessian --help"
