"""IDX files, CIFAR batches, the user's arrays and factories, whole and damaged."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lgo_cli.data.cifar import MD5, read_batch
from lgo_cli.data.dataset import Dataset
from lgo_cli.data.idx import read_idx
from lgo_cli.data.loading import load_dataset
from lgo_cli.errors import InputError

RNG = np.random.default_rng(0)
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def _random_bytes(*shape: int) -> Bytes:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


# --- IDX


def _idx(array: Bytes) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def _write_idx_files(folder: Path, labels: list[int], compress: bool = False) -> Bytes:
    images = _random_bytes(len(labels), 28, 28)
    for split in ("train", "t10k"):
        for kind, content in (
            ("images-idx3", _idx(images)),
            ("labels-idx1", _idx(np.array(labels, dtype=np.uint8))),
        ):
            path = folder / f"{split}-{kind}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(content) if compress else content)
    return images


@pytest.mark.parametrize("compress", [True, False])
def test_idx_normalised(tmp_path: Path, compress: bool) -> None:
    images = _write_idx_files(tmp_path, list(range(10)), compress)
    data = load_dataset("mnist", {}, tmp_path)
    assert data.input_shape == (1, 28, 28)
    assert data.y_test.tolist() == list(range(10))
    assert data.normalization == {"mean": [0.1307], "std": [0.3081]}
    expected = (torch.from_numpy(images).double()[:, None] / 255 - 0.1307) / 0.3081
    # Three roundings of float32, eps = 6e-8, of values up to 2.9 and differences up to 1.
    assert torch.allclose(data.x_train.double(), expected, rtol=0, atol=1e-6)


def test_idx_padded_to_three_channels(tmp_path: Path) -> None:
    _write_idx_files(tmp_path, [3] * 4)
    plain = load_dataset("fashion-mnist", {}, tmp_path)
    data = load_dataset("fashion-mnist", {"image_size": 33, "channels": 3}, tmp_path)
    assert data.input_shape == (3, 33, 33)
    assert data.num_classes == 10
    assert data.normalization == {"mean": [0.286] * 3, "std": [0.353] * 3}
    for channel in range(3):
        assert torch.equal(data.x_train[:, channel, 2:30, 2:30], plain.x_train[:, 0])
    # What is around is black before normalisation.
    black = (torch.zeros(1) - 0.286) / 0.353
    assert torch.equal(data.x_train[:, :, 30:], black.expand(4, 3, 3, 33))


def test_the_other_data_set_under_the_same_names(tmp_path: Path) -> None:
    _write_idx_files(tmp_path, [9, 2, 1, 1, 6, 1, 4, 6, 5, 7])
    load_dataset("fashion-mnist", {}, tmp_path)
    with pytest.raises(InputError, match="belongs to fashion-mnist"):
        load_dataset("mnist", {}, tmp_path)


IMAGES = "train-images-idx3-ubyte"


def _truncated(content: bytes) -> bytes:
    return content[:-1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, "is truncated: it states 2x28x28 bytes of data and has 1567"),
        (lambda content: content + b"\0", "is too long"),
        (lambda content: content[:10], "ends inside its header"),
        (lambda content: b"", "no IDX file"),
        (lambda content: b"\0\0\x0d\3" + content[4:], "begins with 00000d03, not 00000803"),
        (lambda content: _idx(np.zeros((2, 27, 28), np.uint8)), "images of 27x28, not 28x28"),
        (lambda content: _idx(np.zeros((1, 28, 28), np.uint8)), r"y_train has shape \[2\]"),
        (lambda content: _idx(np.zeros((0, 28, 28), np.uint8)), "x_train is empty"),
    ],
)
def test_damaged_idx(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    _write_idx_files(tmp_path, [0, 1])
    path = tmp_path / IMAGES
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        load_dataset("mnist", {}, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        _truncated,
        lambda content: b"no gzip file at all",
        lambda content: content[:60] + bytes([content[60] ^ 0xFF]) + content[61:],
    ],
)
def test_damaged_gzip(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    _write_idx_files(tmp_path, [0, 1], compress=True)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="damaged gzip file"):
        load_dataset("mnist", {}, tmp_path)


def test_unreadable_idx(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_idx(tmp_path, num_dims=3)


def test_label_outside_the_classes(tmp_path: Path) -> None:
    _write_idx_files(tmp_path, [0, 10])
    with pytest.raises(InputError, match="y_train has label 10 in row 1"):
        load_dataset("mnist", {}, tmp_path)


FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_real_fashion_mnist() -> None:
    data = load_dataset("fashion-mnist", {}, FASHION_MNIST)
    assert data.x_train.shape == (60_000, 1, 28, 28)
    assert data.y_train.bincount().tolist() == [6000] * 10
    assert data.y_test.bincount().tolist() == [1000] * 10
    # Four digits of the constants: off by at most 5e-5 / 0.353, in each of the two.
    assert abs(float(data.x_train.mean(dtype=torch.float64))) < 3e-4
    assert abs(float(data.x_train.double().std()) - 1) < 3e-4
    with pytest.raises(InputError, match="belongs to fashion-mnist"):
        load_dataset("mnist", {}, FASHION_MNIST)


# --- CIFAR

NO_CHECK = {"verify": False}


def _cifar10(folder: Path, num_rows: int = 3, protocol: int = 2) -> Bytes:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    images = _random_bytes(6, num_rows, 3072)
    for index, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        batch = {
            b"batch_label": b"some text",
            b"data": images[index],
            b"labels": [(index + row) % 10 for row in range(num_rows)],
            b"filenames": [b"a.png"] * num_rows,
        }
        (batches / name).write_bytes(pickle.dumps(batch, protocol))
    return images


def _published(path: Path) -> dict[str, str]:
    """Digests of the batches in a folder, as if they were the published ones."""
    return {
        file.name: hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        for file in path.iterdir()
    }


@pytest.mark.parametrize("protocol", range(6))
def test_cifar10(tmp_path: Path, protocol: int) -> None:
    images = _cifar10(tmp_path, protocol=protocol)
    data = load_dataset("cifar10", dict(NO_CHECK), tmp_path)
    assert data.x_train.shape == (15, 3, 32, 32)
    assert data.y_train.tolist() == [(i + row) % 10 for i in range(5) for row in range(3)]
    assert data.y_test.tolist() == [5, 6, 7]
    assert data.num_classes == 10
    assert data.normalization is not None
    mean, std = (torch.tensor(data.normalization[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = (torch.from_numpy(images[5]).view(3, 3, 32, 32) / 255 - mean) / std
    assert torch.allclose(data.x_test, expected, rtol=0, atol=2e-6)
    assert data.x_train.is_contiguous()


def test_cifar_as_python_2_wrote_it(tmp_path: Path) -> None:
    """Byte strings for all text, and NumPy's names of that time, as in the published files."""
    state = b"".join(
        [
            b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n",
            b"(cnumpy\nndarray\np3\n(I0\ntS'b'\ntRp4\n(I1\n(I2\nI3072\ntcnumpy\ndtype\np5\n",
            b"(S'u1'\nI0\nI1\ntRp6\n(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'",
            codecs.encode(bytes(6144), "hex").replace(b"00", b"\\x01"),
            b"'\ntbsS'labels'\n(lp7\nI4\naI2\nas.",
        ]
    )
    path = tmp_path / "batch"
    path.write_bytes(state)
    images, labels = read_batch(path, "labels", None)
    assert torch.equal(images, torch.ones(2, 3, 32, 32, dtype=torch.uint8))
    assert labels.tolist() == [4, 2]


def test_cifar_in_fortran_order(tmp_path: Path) -> None:
    data = np.asfortranarray(_random_bytes(2, 3072))
    for protocol in (2, 5):
        path = tmp_path / f"batch{protocol}"
        path.write_bytes(pickle.dumps({"data": data, "labels": [0, 1]}, protocol))
        images, _ = read_batch(path, "labels", None)
        assert np.array_equal(images.flatten(1).numpy(), data)


def test_cifar100_takes_fine_labels(tmp_path: Path) -> None:
    for name in ("train", "test"):
        batch = {
            "data": _random_bytes(2, 3072),
            "fine_labels": [99, 7],
            "coarse_labels": [1, 2],
        }
        (tmp_path / name).write_bytes(pickle.dumps(batch, 2))
    data = load_dataset("cifar100", dict(NO_CHECK), tmp_path)
    assert data.y_train.tolist() == [99, 7]
    assert data.num_classes == 100


def test_cifar_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cifar10(tmp_path)
    with pytest.raises(InputError, match=r"data_batch_1 is not the published file: its MD5") as e:
        load_dataset("cifar10", {}, tmp_path)
    assert "--dataset-arg verify=false" in (e.value.hint or "")
    monkeypatch.setitem(MD5, "cifar10", _published(tmp_path / "cifar-10-batches-py"))
    assert len(load_dataset("cifar10", {}, tmp_path).y_train) == 15


def test_published_digests_are_torchvisions() -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    assert MD5["cifar10"] == dict([*CIFAR10.train_list, *CIFAR10.test_list])
    assert list(MD5["cifar100"].values()) == [CIFAR100.train_list[0][1], CIFAR100.test_list[0][1]]


class _Call:
    """Pickles as a call, as a malicious file would."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def _good(**change: object) -> dict[str, object]:
    return {"data": _random_bytes(2, 3072), "labels": [0, 1], **change}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_batch_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    path = tmp_path / "batch"
    for call in (
        _Call(os.system, f"rm {victim}"),
        _Call(eval, f"__import__('os').remove({str(victim)!r})"),
        _Call(os.remove, str(victim)),
        _Call(getattr, b"", "join"),
        _Call(codecs.encode, "aGFsbG8=", "rot13"),
    ):
        path.write_bytes(pickle.dumps(_good(labels=call), protocol))
        with pytest.raises(InputError, match="is not admitted") as caught:
            read_batch(path, "labels", None)
        assert caught.value.hint == "nothing in the file was executed"
        assert victim.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no CIFAR batch"),
        (b"not a pickle", "no CIFAR batch"),
        (pickle.dumps(_good(), 2)[:-100], "no CIFAR batch"),
        (b"\x80\x02cnumpy\ndtype\n)R.", "no CIFAR batch"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60), "no CIFAR batch"),
        (b"\x80\x02cnumpy\nndarray\n)R}b.", "no CIFAR batch"),
        (pickle.dumps([1, 2]), "holds a list, not a CIFAR batch"),
        (pickle.dumps({}), "it has nothing"),
        (pickle.dumps({"data": [1], "labels": [1]}), "lacks an array 'data'"),
        (pickle.dumps(_good(labels="ab")), "lacks an array 'data' or a list 'labels'"),
        (pickle.dumps(_good(data=np.zeros((2, 3072)))), "not of unsigned bytes"),
        (pickle.dumps(_good(data=_random_bytes(2, 3071))), r"shape \[2, 3071\], not \[N, 3072\]"),
        (pickle.dumps(_good(data=_random_bytes(3072))), r"shape \[3072\]"),
        (pickle.dumps(_good(labels=[0, -1])), "no class indices"),
        (pickle.dumps(_good(labels=[0, 1.5])), "no class indices"),
        (
            pickle.dumps(_good(data=_random_bytes(2, 3072)), 5).replace(
                struct.pack("<H", 3072), struct.pack("<H", 3073)
            ),
            "shape and content disagree|no CIFAR batch",
        ),
    ],
)
def test_damaged_cifar(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "batch"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_batch(path, "labels", None)


def test_unreadable_cifar(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_batch(tmp_path, "labels", None)


# --- the user's arrays


def _arrays(**change: object) -> dict[str, Any]:
    arrays = {
        "x_train": RNG.standard_normal((6, 4)),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": RNG.standard_normal((3, 4)),
        "y_test": np.array([3, 0, 1], dtype=np.uint8),
        **change,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _npz(folder: Path, **change: object) -> str:
    path = folder / "own.npz"
    np.savez(path, **_arrays(**change))
    return str(path)


def test_npz_is_used_as_given(tmp_path: Path) -> None:
    name = _npz(tmp_path)
    data = load_dataset(name, {}, tmp_path)
    with np.load(name) as archive:
        expected = archive["x_train"].astype(np.float32)
    assert np.array_equal(data.x_train.numpy(), expected)
    assert data.y_test.tolist() == [3, 0, 1]
    assert data.num_classes == 4  # one more than the largest label of both splits
    assert data.normalization is None
    assert data.x_train.dtype == torch.float32
    assert data.y_test.dtype == torch.int64


def test_soft_labels(tmp_path: Path) -> None:
    soft = np.full((6, 4), 0.25)
    data = load_dataset(_npz(tmp_path, y_train=soft.astype(">f8")), {}, tmp_path)
    assert data.y_train.dtype == torch.float32
    assert data.y_train.tolist() == soft.tolist()
    assert data.y_test.tolist() == [3, 0, 1]
    assert data.num_classes == 4


def _soft(row: int, *values: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    y = np.full((6, 4), 0.25)
    y[row, : len(values)] = values
    return y


@pytest.mark.parametrize("dtype", [">f8", "<f4", "f2", "u1", "i8", "?"])
def test_npz_number_types(tmp_path: Path, dtype: str) -> None:
    x = np.array([[0, 1], [1, 0]]).astype(dtype)
    zeros = np.zeros(2, dtype=">i2")
    data = load_dataset(
        _npz(tmp_path, x_train=x, x_test=x, y_train=zeros, y_test=zeros), {}, tmp_path
    )
    assert data.x_train.tolist() == [[0, 1], [1, 0]]
    assert data.num_classes == 2


def _with(row: int, value: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    x = np.zeros((6, 4))
    x[row, 2] = value
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": None, "x_test": None}, "lacks x_test, y_test; it has x_train, y_train"),
        ({"x_train": _with(4, np.nan)}, "x_train is not finite in row 4"),
        ({"x_train": _with(2, -np.inf)}, "x_train is not finite in row 2"),
        ({"x_train": _with(1, 1e300)}, "x_train is not finite in row 1"),
        ({"x_test": np.full((3, 4), np.nan)}, "x_test is not finite in row 0"),
        ({"y_train": np.array([0, 1, -1, 0, 0, 0])}, "y_train has label -1 in row 2"),
        ({"y_train": np.array([0, 2**63, 1, 0, 0, 0], np.uint64)}, "label 9223372036854775808 in"),
        (
            {"y_test": np.array([0.0, 1, 2])},
            r"y_test has shape \[3, 1\], but must be \[3, 3\],",
        ),
        ({"y_train": np.eye(6, dtype=int)}, r"y_test has shape \[3\], but y_train has shape \["),
        ({"y_train": np.full((5, 4), 0.25)}, r"y_train has shape \[5, 4\], but x_train has 6 rows"),
        (
            {"y_test": np.full((3, 5), 0.2), "y_train": _soft(0)},
            r"must be \[6, 5\], a dist",
        ),
        ({"y_train": _soft(3, 0.5, -0.25, 0.5)}, r"in row 3: the least entry is -0\.25, the sum 1"),
        (
            {"y_train": _soft(2, 0.251)},
            r"no distribution .* in row 2: .* the sum 1\.001",
        ),
        ({"y_train": _soft(5, np.nan)}, "y_train has no distribution over classes in row 5"),
        ({"y_train": np.full((6, 3), 1 / 3)}, r"y_train has shape \[6, 3\], but must be \[6, 4\]"),
        ({"y_train": np.zeros(5, int)}, r"y_train has shape \[5\], but x_train has 6 rows"),
        ({"x_train": np.zeros(6)}, r"x_train has shape \[6\], but must be"),
        ({"x_test": np.zeros((0, 4)), "y_test": np.zeros(0, int)}, "x_test is empty"),
        (
            {
                **{"x_train": np.zeros((0, 4)), "y_train": np.zeros(0, int)},
                **{"x_test": np.zeros((0, 4)), "y_test": np.zeros(0, int)},
            },
            "x_train is empty",
        ),
        ({"x_test": np.zeros((3, 5))}, r"x_test has samples of shape \[5\], x_train of \[4\]"),
        ({"x_train": np.array([["a"] * 4] * 6)}, "x_train is an array of <U1, not an array of num"),
        ({"x_train": np.zeros((6, 4), complex)}, "x_train is an array of complex128"),
        ({"x_train": np.array([[None] * 4] * 6)}, "cannot be read: Object arrays"),
    ],
)
def test_bad_npz(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(_npz(tmp_path, **change), {}, tmp_path)


def test_one_hot_integers_are_told_how_to_be_soft_labels(tmp_path: Path) -> None:
    one_hot = np.eye(4, dtype=int)[[0, 1, 2, 3, 0, 1]]
    with pytest.raises(InputError, match=r"y_test has shape \[3\], but y_train has") as caught:
        load_dataset(_npz(tmp_path, y_train=one_hot), {}, tmp_path)
    assert str(caught.value.hint).startswith(
        'y.astype("float32") makes soft labels of rows that are'
    )
    soft = one_hot.astype("float32")
    labels = {"y_train": soft, "y_test": soft[:3]}
    assert load_dataset(_npz(tmp_path, **labels), {}, tmp_path).y_train.shape == (6, 4)


def test_large_finite_values_are_fine(tmp_path: Path) -> None:
    """Their sum overflows, which is how validation first looks."""
    data = load_dataset(_npz(tmp_path, x_train=np.full((6, 4), 3e38)), {}, tmp_path)
    assert float(data.x_train.max()) == pytest.approx(3e38)


@pytest.mark.parametrize("size", [0, 10, 300, -1])
def test_truncated_npz(tmp_path: Path, size: int) -> None:
    name = Path(_npz(tmp_path))
    name.write_bytes(name.read_bytes()[:size])
    with pytest.raises(InputError, match=r"is no \.npz file, or a truncated one"):
        load_dataset(str(name), {}, tmp_path)


def test_npz_with_a_flipped_bit(tmp_path: Path) -> None:
    name = Path(_npz(tmp_path))
    content = bytearray(name.read_bytes())
    content[content.index(b"\x93NUMPY") + 140] ^= 1
    name.write_bytes(content)
    with pytest.raises(InputError, match="is damaged: Bad CRC-32"):
        load_dataset(str(name), {}, tmp_path)


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in _arrays():
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': oops} ")
    with pytest.raises(InputError, match="cannot be read"):
        load_dataset(str(path), {}, tmp_path)


FACTORY = """
import numpy as np, torch
rng = np.random.default_rng(0)
x, y = rng.standard_normal((5, 3)), np.arange(5)

def arrays(scale=1.0):
    return x * scale, y, x, y
def tensors():
    test = torch.ones(2, 3).half(), torch.ones(2).long()
    return torch.from_numpy(x), torch.from_numpy(y).int(), *test
def mapping():
    return dict(x_train=x, y_train=y, x_test=x, y_test=y, num_classes=7)
def dataset():
    from lgo_cli.data.dataset import Dataset
    split = torch.zeros(2, 3), torch.zeros(2).long()
    return Dataset(*split, *split, 2)
def three():
    return x, y, x
def nothing():
    return None
def incomplete():
    return {"x_train": x}
def lists():
    return [[1.0]], y, x, y
def no_classes():
    return {**mapping(), "num_classes": 2.5}
def few_classes():
    return {**mapping(), "num_classes": 3}
def fails():
    raise KeyError("some")
"""


@pytest.fixture
def factory(tmp_path: Path) -> Callable[..., Dataset]:
    path = tmp_path / "factory.py"
    path.write_text(FACTORY)
    return lambda name, **arguments: load_dataset(f"{path}:{name}", arguments, tmp_path)


def test_factories(factory: Callable[..., Dataset]) -> None:
    assert factory("arrays").num_classes == 5
    # Exact: the same double doubled, then rounded once.
    assert torch.equal(factory("arrays", scale=2).x_train, 2 * factory("arrays").x_train)
    assert factory("tensors").x_test.tolist() == [[1, 1, 1]] * 2
    assert factory("mapping").num_classes == 7
    assert factory("dataset").input_shape == (3,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three", "returned a tuple of 3, not a data set"),
        ("nothing", "returned a NoneType, not a data set"),
        ("incomplete", "lacks y_train, x_test, y_test; it has x_train"),
        ("lists", "x_train is a list, not an array of numbers"),
        ("no_classes", "num_classes is 2.5"),
        ("few_classes", r"y_train has label 3 in row 3, outside \[0, 3\)"),
        ("fails", "KeyError"),
        ("absent", "no callable 'absent'"),
    ],
)
def test_bad_factories(factory: Callable[..., Dataset], name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        factory(name)


def test_head_keeps_the_stored_order() -> None:
    x, y = torch.arange(12.0).view(6, 2), torch.arange(6)
    data = Dataset(x, y, x, y, 6, {"mean": [0.0], "std": [1.0]})
    head = data.head(4)
    assert torch.equal(head.x_train, x[:4])
    assert torch.equal(head.y_train, y[:4])
    assert len(head.x_test) == 6
    assert head.normalization == data.normalization
    assert len(data.head(None).y_train) == len(data.head(100).y_train) == 6
