"""The data sets that need no file: synthetic and digits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lgo_cli.data.dataset import Dataset
from lgo_cli.data.loading import load_dataset
from lgo_cli.data.synthetic import gaussians
from lgo_cli.models.building import build_model


def _load(name: str, **arguments: int | float) -> Dataset:
    return load_dataset(name, arguments, Path("nowhere"))


def _digest(data: Dataset) -> str:
    digest = hashlib.sha256()
    for tensor in (data.x_train, data.y_train, data.x_test, data.y_test):
        digest.update(tensor.numpy().astype(tensor.numpy().dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("name", "arguments", "digest"),
    [
        ("synthetic", {}, "817e8b03ebc65bacef87576e6887feac89cc07d4841408559eb62878cd48e13a"),
        (
            "synthetic",
            {
                "seed": 7,
                "num_classes": 3,
                "dimension": 5,
                "num_clusters": 2,
                "noise": 0.3,
                "num_train": 100,
                "num_test": 10,
            },
            "d43e49836cb2b79dc406d97c1595856964cbf37b0af659b1ebf550d69342ae6b",
        ),
        ("digits", {}, "f39d3f0ea4672ce1b5f47233a37a9506f55a145daea1fa3d405b50a9bbde0700"),
    ],
)
def test_bytes_are_the_same_everywhere(
    name: str, arguments: dict[str, int | float], digest: str
) -> None:
    assert _digest(_load(name, **arguments)) == digest


def test_gaussians_against_integer_arithmetic() -> None:
    bits = np.random.PCG64([3, 1])
    draws = [int(draw) for draw in bits.random_raw(3 * 50)]
    uniforms = [(draw >> shift) & 0xFFFF for draw in draws for shift in (0, 16, 32, 48)]
    expected = [(sum(uniforms[12 * i : 12 * i + 12]) - 6 * 65535) / 65536 for i in range(50)]
    assert gaussians(np.random.PCG64([3, 1]), 50).tolist() == expected


def test_gaussians_moments() -> None:
    n = 200_000
    z = gaussians(np.random.PCG64(1), n)
    # Standard errors: 1/√n of the mean and √((κ-1)/n) of the variance, κ = 2.9 for twelve uniforms.
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(1.9 / n)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _digest(_load("synthetic", num_train=50))
    monkeypatch.setattr("lgo_cli.data.synthetic.CHUNK", 7)
    assert _digest(_load("synthetic", num_train=50)) == whole


def test_synthetic_shapes_and_prefixes() -> None:
    data = _load("synthetic")
    assert data.input_shape == (20,)
    assert data.num_classes == 10
    assert len(data.y_train) >= 2048  # the default probe set of 1024 exists
    assert data.x_train.dtype == torch.float32
    assert data.y_train.dtype == torch.int64
    # Every prefix of a multiple of ten rows has each class equally often.
    assert data.y_train[:30].bincount().tolist() == [3] * 10
    longer = _load("synthetic", num_train=3000)
    assert torch.equal(longer.x_train[:2048], data.x_train)
    assert torch.equal(longer.x_test, data.x_test)
    assert not torch.equal(_load("synthetic", seed=1).x_train, data.x_train)


def test_synthetic_has_unit_variance_and_noise_widens_clusters() -> None:
    data = _load("synthetic", num_classes=500, num_train=20_000, noise=0.5)
    # Centres are 0.8 of the variance and dominate its error: there are 2000 × 20 of their entries.
    assert abs(float(data.x_train.var()) - 1) < 4 * 0.8 * (2 / 40_000) ** 0.5
    still = _load("synthetic", noise=0, num_classes=2, num_clusters=2, num_train=8)
    assert torch.equal(still.x_train[:4], still.x_train[4:])


def test_synthetic_is_neither_trivial_nor_hopeless() -> None:
    """The Bayes classifier, which knows the centres, is good but not perfect."""
    noise, shape = 1.0, (4, 10, 20)
    data = _load("synthetic")
    centers = gaussians(np.random.PCG64([0, 0]), 800).reshape(shape) / np.sqrt(1 + noise**2)
    x = data.x_test.double().numpy()
    squared = ((x[:, None, None] - centers) ** 2).sum(-1)
    density = np.exp(-squared * (1 + noise**2) / (2 * noise**2)).sum(axis=1)
    accuracy = (density.argmax(axis=1) == data.y_test.numpy()).mean()
    assert 0.92 < accuracy < 0.96  # 0.94 in the docstring, standard error 0.007


def test_linear_least_squares_is_far_from_bayes_on_synthetic() -> None:
    data = _load("synthetic")
    x, x_test = (
        torch.cat([part, torch.ones(len(part), 1)], dim=1).double()
        for part in (data.x_train, data.x_test)
    )
    targets = torch.nn.functional.one_hot(data.y_train).double()
    weights = torch.linalg.lstsq(x, targets).solution
    accuracy = ((x_test @ weights).argmax(dim=1) == data.y_test).double().mean()
    assert accuracy < 0.7


def test_digits_are_scikit_learns() -> None:
    data = _load("digits")
    assert data.input_shape == (1, 8, 8)
    assert (len(data.y_train), len(data.y_test)) == (1437, 360)
    assert data.normalization == {"mean": [0.3054], "std": [0.3755]}
    pixels = torch.cat([data.x_train, data.x_test]).flatten(1) * 0.3755 + 0.3054
    counts = (pixels * 16).round()
    # The multiples of 1/16 come back but for float32 rounding of values up to 1.85.
    assert torch.allclose(pixels * 16, counts, atol=1e-4)
    labels = torch.cat([data.y_train, data.y_test])
    content = counts.byte().numpy().tobytes() + labels.byte().numpy().tobytes()
    # Of sklearn.datasets.load_digits: data, then target, as unsigned bytes.
    known = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    assert hashlib.sha256(content).hexdigest() == known


def test_digits_are_normalised_and_balanced() -> None:
    data = _load("digits")
    # The constants have four digits: off by at most 5e-5 / 0.3755.
    assert abs(float(data.x_train.mean())) < 2e-4
    assert abs(float(data.x_train.std()) - 1) < 2e-4
    assert data.y_train.bincount().min() >= 141
    assert data.y_test.bincount().min() >= 33
    assert build_model("resnet20", {}, data.input_shape, 10, 0)(data.x_test[:2]).shape == (2, 10)


def test_licence_is_in_the_package() -> None:
    import lgo_cli.data

    text = (Path(lgo_cli.data.__file__).parent / "digits.LICENSE").read_text()
    assert "CC BY 4.0" in text
    assert "10.24432/C50P49" in text
