"""Names, arguments and files of data sets, without their content."""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Lgo

from lgo_cli.data.loading import download_dataset
from lgo_cli.data.registry import DATASETS, input_files, resolve_dataset
from lgo_cli.errors import InputError, LgoError, MachineError, OutputError, UsageError


def test_registries_import_nothing_heavy() -> None:
    code = (
        "import sys, pathlib, lgo_cli.data.registry as d, lgo_cli.models.registry as m\n"
        "d.resolve_dataset('synthetic', {}), m.resolve_model('mlp', {}), m.recipe_of('resnet20')\n"
        "d.input_files('synthetic', pathlib.Path())\n"
        "assert not {'torch', 'torchvision', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", DATASETS)
def test_resolved_arguments_are_complete_and_stable(name: str) -> None:
    arguments = resolve_dataset(name, {})
    assert set(arguments) == set(DATASETS[name].args.model_fields)
    assert resolve_dataset(name, arguments) == arguments
    assert all(field.description for field in DATASETS[name].args.model_fields.values())


def test_values_are_canonical() -> None:
    assert resolve_dataset("synthetic", {"noise": 2}) == resolve_dataset(
        "synthetic", {"noise": 2.0}
    )
    assert isinstance(resolve_dataset("synthetic", {"noise": 2})["noise"], float)
    assert resolve_dataset("data.py:make", {"anything": [1]}) == {"anything": [1]}
    assert resolve_dataset("some/data.npz", {}) == {}


@pytest.mark.parametrize(
    ("name", "arguments", "message", "hint"),
    [
        ("cifra10", {}, "'cifra10'; did you mean cifar10?", "file.npz, file.py:factory"),
        ("Fashion_MNIST", {}, "did you mean fashion-mnist?", "synthetic, digits"),
        ("zzz", {}, "'zzz'", "synthetic, digits, fashion-mnist, mnist, cifar10, cifar100"),
        ("data.py", {}, "names a file, but no function in it", "--dataset data.py:FUNCTION"),
        ("synthetic", {"nois": 1}, "nois: synthetic has no such argument; did you mean noise?", ""),
        ("synthetic", {"noise": -1}, "--dataset-arg noise: input should be greater", "noise=1.0"),
        (
            "synthetic",
            {"num_train": "x"},
            "num_train: input should be a valid integer, got 'x'",
            "",
        ),
        ("synthetic", {"num_classes": 1}, "num_classes: input should be greater", ""),
        ("digits", {"size": 8}, "size: digits has no such argument", "digits takes no arguments"),
        ("mnist", {"channels": 2}, "channels: input should be 1 or 3, got 2", "channels=1"),
        ("mnist", {"image_size": 27}, "image_size: input should be greater", ""),
        ("cifar10", {"verify": 0}, "verify: input should be a valid boolean, got 0", "verify=true"),
        ("x.npz", {"a": 1}, "--dataset-arg a: an .npz file takes no arguments", "exactly as given"),
    ],
)
def test_what_is_unknown_is_named(
    name: str, arguments: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_dataset(name, arguments)  # type: ignore[arg-type]
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


IDX_NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", ""),
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", ""),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_files_are_found(tmp_path: Path, name: str, folder: str, suffix: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for file in IDX_NAMES:
        (tmp_path / folder / f"{file}{suffix}").touch()
    assert input_files(name, tmp_path) == {
        file: tmp_path / folder / f"{file}{suffix}" for file in IDX_NAMES
    }


def test_the_plain_file_and_the_particular_folder_win(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for file in IDX_NAMES:
        for path in (tmp_path / file, tmp_path / f"{file}.gz", tmp_path / "mnist" / f"{file}.gz"):
            path.touch()
    found = input_files("mnist", tmp_path)
    assert set(found.values()) == {tmp_path / "mnist" / f"{file}.gz" for file in IDX_NAMES}
    for path in found.values():
        path.unlink()
    found = input_files("mnist", tmp_path)
    assert set(found.values()) == {tmp_path / file for file in IDX_NAMES}


@pytest.mark.parametrize("inside", [True, False])
def test_cifar_root_may_be_the_folder_itself(tmp_path: Path, inside: bool) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for file in ("train", "test"):
        (folder / file).touch()
    found = input_files("cifar100", folder if inside else tmp_path)
    assert found == {"train_batch": folder / "train", "test_batch": folder / "test"}


@pytest.mark.parametrize("name", [name for name, spec in DATASETS.items() if spec.layout])
def test_missing_files_name_folders_and_flags(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        input_files(name, tmp_path)
    assert f"{name} is not on disk" in caught.value.message
    layout = DATASETS[name].layout
    assert layout is not None
    for folder in layout.folders:
        assert str(tmp_path / folder) in caught.value.message
    assert "--data-root DIR" in (caught.value.hint or "")
    assert "--download-data" in (caught.value.hint or "")


def test_part_of_a_data_set_says_what_is_missing(tmp_path: Path) -> None:
    for file in IDX_NAMES[:3]:
        (tmp_path / file).touch()
    with pytest.raises(InputError, match=rf"{tmp_path} lacks t10k-labels-idx1-ubyte\.gz"):
        input_files("mnist", tmp_path)


def test_own_files(tmp_path: Path) -> None:
    npz, py = tmp_path / "d.npz", tmp_path / "d.py"
    for path in (npz, py):
        with pytest.raises(InputError, match="no such"):
            input_files(f"{path}:make" if path == py else str(path), tmp_path)
        path.touch()
    assert input_files(str(npz), tmp_path) == {"data.npz": npz}
    assert input_files(f"{py}:make", tmp_path) == {"data.py": py}
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        input_files(str(tmp_path / "folder.npz"), tmp_path)
    assert input_files("synthetic", tmp_path) == input_files("digits", tmp_path) == {}


def test_downloads_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    calls: list[tuple[str, str, bool]] = []
    names = [spec.torchvision for spec in DATASETS.values() if spec.torchvision is not None]
    for name in names:

        def fake(root: str, download: bool, name: str = name) -> None:
            calls.append((name, root, download))

        monkeypatch.setattr(torchvision.datasets, name, fake)
    for name in DATASETS:
        download_dataset(name, tmp_path)
    assert calls == [(name, str(tmp_path), True) for name in names]
    assert names == ["FashionMNIST", "MNIST", "CIFAR10", "CIFAR100"]
    for file in IDX_NAMES:
        (tmp_path / file).touch()
    calls.clear()
    download_dataset("mnist", tmp_path)
    assert not calls


def test_a_runs_own_data_are_downloaded_as_those_that_are_named(
    lgo: Lgo, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    def fake(root: str, download: bool) -> None:
        folder = Path(root, "MNIST", "raw")
        folder.mkdir(parents=True)
        for name in IDX_NAMES:
            shape = (20, 28, 28) if "images" in name else (20,)
            header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            content = bytes(i % 10 for i in range(math.prod(shape)))
            (folder / name).write_bytes(header + content)

    monkeypatch.setattr(torchvision.datasets, "MNIST", fake)
    few = ("--analysis-samples", 20, "--top-k", 1, "--bottom-k", 0, "--no-audit", "--quiet")
    there = ("--data-root", "there")
    lgo(
        "train", "--dataset", "mnist", "--download-data", *there, "--model-arg", "hidden=2",
        "--epochs", 0, "--quiet",
    )  # fmt: skip
    for place, named in (("there", there), ("data", ())):
        shutil.rmtree("there", ignore_errors=True)
        error = lgo("hessian", "outputs", *few, *named, code=3).stderr
        assert error.endswith("or download it: --download-data\n")
        lgo("hessian", "outputs", *few, *named, "--download-data", "--force")
        assert sorted(p.name for p in Path(place, "MNIST", "raw").iterdir()) == sorted(IDX_NAMES)
    fake("there", download=True)
    lgo("hessian", "outputs", *few, "--force")  # where the run had them
    error = lgo("hessian", "outputs", *few, "--data-root", "elsewhere", code=3).stderr
    assert "looked in elsewhere/mnist, " in error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("Error downloading it:\nTried there, got:\nnothing\n"), InputError),
        (ConnectionResetError(104, "Connection reset by peer"), InputError),
        (TimeoutError("The read operation timed out"), InputError),
        (OSError(28, "No space left on device"), MachineError),
        (PermissionError(13, "Permission denied"), OutputError),
    ],
)
def test_a_download_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[LgoError]
) -> None:
    import torchvision.datasets

    def fake(root: str, download: bool) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    with pytest.raises(kind) as caught:
        download_dataset("cifar10", tmp_path)
    assert "\n" not in caught.value.message
    assert kind is MachineError or "--data-root" in str(caught.value.hint)
