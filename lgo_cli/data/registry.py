"""Data sets by name: what they are, what they take, which files they need.

Free of torch and numpy: names and arguments are checked before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lgo_cli.arguments import find_named, resolve_arguments
from lgo_cli.config import Strict
from lgo_cli.errors import InputError, UsageError
from lgo_cli.factories import parse_factory, source_files

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

DEFAULT_DATA = Path("data")
"""Where named data sets have their files, if nothing is said."""

Size = Annotated[int, Field(ge=1, le=10_000_000)]


class SyntheticArgs(Strict):
    """Arguments of `synthetic`."""

    num_classes: Annotated[int, Field(ge=2, le=10_000)] = Field(10, description="classes")
    dimension: Annotated[int, Field(ge=1, le=100_000)] = Field(20, description="inputs")
    num_clusters: Annotated[int, Field(ge=1, le=1_000)] = Field(
        4, description="Gaussian clusters that make up one class"
    )
    noise: Annotated[float, Field(ge=0, le=1_000, allow_inf_nan=False)] = Field(
        1.0, description="standard deviation within a cluster; the centres' own is 1"
    )
    num_train: Size = Field(2048, description="training samples")
    num_test: Size = Field(1024, description="test samples")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="seed of centres and samples"
    )


class DigitsArgs(Strict):
    """`digits` takes no arguments."""


class IdxArgs(Strict):
    """Arguments of `mnist` and `fashion-mnist`."""

    image_size: Annotated[int, Field(ge=28, le=512)] = Field(
        28, description="pixels along each side, zeros around the 28 there are"
    )
    channels: Literal[1, 3] = Field(1, description="1, or 3 equal ones")


class CifarArgs(Strict):
    """Arguments of `cifar10` and `cifar100`."""

    verify: bool = Field(True, description="compare each file with its published MD5")


@dataclass(frozen=True)
class FileLayout:
    """Where the files of a data set are, under `--data-root`.

    Attributes:
        folders: Places to look, the most particular first; "" is the root itself.
        names: Logical name of each file, and what it may be called on disk. All lie in one folder.
    """

    folders: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    Attributes:
        name: What the user says.
        summary: One line.
        args: Accepted arguments with their defaults.
        loader: `module:function`, called with the paths of the files and the arguments.
        layout: Where its files are; `None` if it needs none.
        torchvision: Its class in torchvision, by which `--download-data` fetches it.
    """

    name: str
    summary: str
    args: type[Strict]
    loader: str
    layout: FileLayout | None = None
    torchvision: str | None = None


def _idx_layout(*folders: str) -> FileLayout:
    names = [
        f"{split}-{kind}-ubyte"
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    return FileLayout((*folders, ""), {name: (name, f"{name}.gz") for name in names})


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            "synthetic",
            "Gaussian clusters, several to a class, overlapping; generated",
            SyntheticArgs,
            "lgo_cli.data.synthetic:load",
        ),
        DatasetSpec(
            "digits",
            "1,797 handwritten digits, 1x8x8, 10 classes; comes with lgo",
            DigitsArgs,
            "lgo_cli.data.digits:load",
        ),
        DatasetSpec(
            "fashion-mnist",
            "70,000 pictures of clothes, 1x28x28, 10 classes; four IDX files in --data-root",
            IdxArgs,
            "lgo_cli.data.idx:load_fashion_mnist",
            _idx_layout("fashion-mnist", "FashionMNIST/raw"),
            torchvision="FashionMNIST",
        ),
        DatasetSpec(
            "mnist",
            "70,000 handwritten digits, 1x28x28, 10 classes; four IDX files in --data-root",
            IdxArgs,
            "lgo_cli.data.idx:load_mnist",
            _idx_layout("mnist", "MNIST/raw"),
            torchvision="MNIST",
        ),
        DatasetSpec(
            "cifar10",
            "60,000 photographs, 3x32x32, 10 classes; cifar-10-batches-py in --data-root",
            CifarArgs,
            "lgo_cli.data.cifar:load_cifar10",
            FileLayout(
                ("cifar-10-batches-py", ""),
                {
                    name: (name,)
                    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
                },
            ),
            torchvision="CIFAR10",
        ),
        DatasetSpec(
            "cifar100",
            "60,000 photographs, 3x32x32, 100 classes; cifar-100-python in --data-root",
            CifarArgs,
            "lgo_cli.data.cifar:load_cifar100",
            FileLayout(
                ("cifar-100-python", ""), {"train_batch": ("train",), "test_batch": ("test",)}
            ),
            torchvision="CIFAR100",
        ),
    )
}


FILE_NAMES = frozenset(
    name for spec in DATASETS.values() if spec.layout is not None for name in spec.layout.names
)
"""Logical names of all files of data sets by name."""

OTHERS = "file.npz, file.py:factory"


def resolve_dataset(dataset: str, dataset_arg: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Check a data set's name and complete its arguments.

    Args:
        dataset: A name in `DATASETS`, `file.npz`, or a factory's reference.
        dataset_arg: The user's `key=value` pairs, values as in JSON.

    Returns:
        All arguments, defaults filled in, as JSON values. A factory's pass through.

    Raises:
        UsageError: if the name or an argument is unknown, or a value is not accepted.
    """
    if parse_factory(dataset) is not None:
        return dict(dataset_arg)
    if dataset.endswith(".npz"):
        if dataset_arg:
            raise UsageError(
                f"--dataset-arg {next(iter(dataset_arg))}: an .npz file takes no arguments",
                hint="its arrays are used exactly as given",
            )
        return {}
    spec = find_named("dataset", dataset, DATASETS, OTHERS)
    return resolve_arguments("dataset", dataset, spec.args, dataset_arg)


def input_files(dataset: str, data_root: Path) -> dict[str, Path]:
    """Find, without reading them, the files on disk that determine the data.

    Args:
        dataset: A name in `DATASETS`, `file.npz`, or a factory's reference.
        data_root: Where named data sets are looked for.

    Returns:
        Path by logical name, which is the file's usual name without `.gz`; `data.npz`; `data.py`
        and, behind it, what that imports from beside it.

    Raises:
        InputError: if a file is missing, naming each folder that was looked in.
        UsageError: if the name is unknown.
    """
    factory = parse_factory(dataset)
    if factory is not None:
        return source_files(factory, "data.py")
    if dataset.endswith(".npz"):
        path = Path(dataset)
        if not path.is_file():
            raise InputError(
                f"{path} is a directory" if path.is_dir() else f"no such data file: {path}",
                hint="say where the file is: --dataset FILE.npz",
            )
        return {"data.npz": path}
    spec = find_named("dataset", dataset, DATASETS, OTHERS)
    return {} if spec.layout is None else _locate(spec, spec.layout, data_root)


def _locate(spec: DatasetSpec, layout: FileLayout, data_root: Path) -> dict[str, Path]:
    hint = "say where it is: --data-root DIR"
    if spec.torchvision is not None:
        hint += ", or download it: --download-data"
    folders = [data_root / folder for folder in layout.folders]
    for folder in folders:
        found = {
            logical: folder / name
            for logical, names in layout.names.items()
            for name in reversed(names)  # the plain file wins over the compressed one
            if (folder / name).is_file()
        }
        missing = [names[-1] for logical, names in layout.names.items() if logical not in found]
        if not missing:
            return {logical: found[logical] for logical in layout.names}
        if found:
            raise InputError(f"{spec.name}: {folder} lacks {', '.join(missing)}", hint=hint)
    places = ", ".join(str(folder) for folder in folders)
    files = ", ".join(names[-1] for names in layout.names.values())
    raise InputError(f"{spec.name} is not on disk; looked in {places} for {files}", hint=hint)
