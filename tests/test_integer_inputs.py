"""Inputs that are indices, such as tokens: they stay integers wherever samples go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Lgo
from torch import nn

from lgo_cli.data.arrays import from_arrays
from lgo_cli.data.loading import load_dataset
from lgo_cli.errors import InputError
from lgo_cli.loss import LossFunction
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples, check_outputs

MODEL = """
import torch
from torch import nn


class Tokens(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embedding = nn.Embedding(12, 4)
        self.hidden = nn.Linear(24, 8)
        self.output = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.output(torch.relu(self.hidden(self.embedding(x).flatten(1))))


def build(num_classes):
    return Tokens(num_classes)
"""


def _arrays(dtype: Any) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 96)
    x = (4 * y[:, None] + draw.integers(0, 4, (96, 6))).astype(dtype)
    return {"x_train": x[:64], "y_train": y[:64], "x_test": x[64:], "y_test": y[64:]}


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        ("int64", torch.int64),
        ("int32", torch.int64),
        (">i4", torch.int64),
        ("int16", torch.float32),
        ("int8", torch.float32),
        ("uint8", torch.float32),
        ("bool", torch.float32),
        ("float64", torch.float32),
    ],
)
def test_wide_integers_are_indices_and_pixels_are_not(dtype: str, kept: torch.dtype) -> None:
    arrays = _arrays(dtype)
    dataset = from_arrays("here", arrays).validate("here")
    tensors = {name: torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
               for name, array in arrays.items()}  # fmt: skip
    from_tensors = from_arrays("here", tensors).validate("here")
    for found in (dataset, from_tensors):
        assert found.x_train.dtype == found.x_test.dtype == kept
        assert np.array_equal(found.x_train.numpy(), arrays["x_train"])


def test_large_indices_are_exact() -> None:
    arrays = _arrays("int64")
    arrays["x_train"][0, 0] = 2**24 + 1  # the first integer that float32 cannot hold
    assert int(from_arrays("here", arrays).x_train[0, 0]) == 2**24 + 1


def test_splits_are_of_one_kind() -> None:
    arrays = _arrays("int64")
    arrays["x_test"] = arrays["x_test"].astype("float32")
    with pytest.raises(InputError, match="x_test has inputs of float32, x_train of int64") as error:
        from_arrays("here", arrays).validate("here")
    assert "float32" in str(error.value.hint)


def test_an_objective_casts_what_floats() -> None:
    samples = Samples(torch.arange(12).view(6, 2), torch.zeros(6, dtype=torch.int64))
    model = nn.Sequential(nn.Embedding(12, 3), nn.Flatten(), nn.Linear(6, 2))
    with Objective(model, samples, dtype=torch.float64) as objective:
        assert torch.equal(objective.samples.inputs, samples.inputs)
        assert objective.loss_and_gradient()[1].dtype == torch.float64


def test_a_model_of_numbers_is_refused_with_what_to_do() -> None:
    samples = Samples(torch.arange(12).view(6, 2), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(InputError, match=r"cannot take inputs of shape \(2,\)") as error:
        check_outputs(nn.Linear(2, 2), samples, LossFunction())
    assert error.value.hint == (
        "the inputs are integers, as embeddings take them; store numbers as float32"
    )


def test_tokens_of_few_bits_are_told_how_to_be_indices() -> None:
    data = from_arrays("own.npz", _arrays("uint16"))
    with pytest.raises(InputError, match="cannot take inputs") as error:
        check_outputs(nn.Embedding(12, 3), Samples(data.x_train, data.y_train), LossFunction())
    assert error.value.hint == 'store indices, such as tokens, as int64: x.astype("int64")'


def test_a_factorys_tokens_stay_integers(tmp_path: Path) -> None:
    source = tmp_path / "data.py"
    source.write_text(
        "import torch\n"
        "def tokens():\n"
        "    x = torch.arange(12, dtype=torch.int32).view(6, 2)\n"
        "    y = torch.tensor([0, 1] * 3)\n"
        "    return x, y, x, y\n"
    )
    dataset = load_dataset(f"{source}:tokens", {}, tmp_path)
    assert torch.equal(dataset.x_train, torch.arange(12).view(6, 2))


def test_a_model_that_begins_with_an_embedding_is_used_unchanged(tmp_path: Path, lgo: Lgo) -> None:
    Path("net.py").write_text(MODEL)
    np.savez("tokens.npz", **_arrays("int64"))
    named = ("--model", "net.py:build", "--quiet")
    for seed in (0, 1):
        options = ("--dataset", "tokens.npz", "--epochs", 20, "--batch-size", 16, "--lr", 0.2)
        lgo("train", *named, *options, "--seed", seed, "--out", f"run{seed}")
    lgo("hessian", "run0", *named, "--top-k", 2)
    lgo("interp", "run0", "--to", "run1", "--align", "--num-points", 5, *named)
    lgo("contour", "run0", "--resolution", 5, "--test", *named)
    found = {
        step: json.loads(Path("run0", f"{step}.json").read_text())["results"]
        for step in ("train", "hessian", "interp", "contour")
    }
    # The classes have tokens of their own: nothing is lost on the way.
    assert found["train"]["test_accuracy"] == 1.0
    assert found["hessian"]["audit"]["clean"]
    alignment = found["interp"]["alignment"]
    # The width of the embedding may be permuted, its rows are the tokens'.
    assert alignment["num_units"] == 8 + 4
    assert alignment["output_difference"] < 1e-13
    losses = [found[step][key] for step, key in (
        ("hessian", "loss"), ("interp", "loss_at_start"), ("contour", "loss_at_center"),
    )]  # fmt: skip
    assert len(set(losses)) == 1
    # Exact in float64 too, where only what floats is cast.
    lgo("hessian", "run0", *named, "--top-k", 1, "--dtype", "float64", "--out", "double")
    double = json.loads(Path("double", "hessian.json").read_text())["results"]
    assert double["loss"] == pytest.approx(losses[0], rel=1e-5)
    refused = lgo("train", "--dataset", "tokens.npz", "--model", "mlp", "--out", "mlp", code=3)
    assert "store numbers as float32" in refused.stderr
