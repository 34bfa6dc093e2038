"""From a data set's name to its tensors, and to its files where they must be fetched."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import ssl
import sys
import urllib.error
from typing import TYPE_CHECKING

from lgo_cli.data.arrays import from_factory, read_npz
from lgo_cli.data.registry import DATASETS, input_files, resolve_dataset
from lgo_cli.errors import InputError, OutputError, no_room
from lgo_cli.factories import call_factory, parse_factory
from lgo_cli.parsing import parse_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import JsonValue

    from lgo_cli.data.dataset import Dataset

_OF_THE_NETWORK = (
    urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError,
)  # fmt: skip
"""What a connection raises when it is made, or when it breaks in the middle of a file."""


def load_dataset(dataset: str, dataset_arg: Mapping[str, JsonValue], data_root: Path) -> Dataset:
    """Load a data set and check it.

    Args:
        dataset: A name in `DATASETS`, `file.npz`, or a factory's reference. Naming a factory
            permits its code to run.
        dataset_arg: Its arguments.
        data_root: Where named data sets have their files.

    Returns:
        Inputs and labels, on the CPU.

    Raises:
        UsageError: if the name or an argument is unknown.
        InputError: if a file is missing, corrupt or of another kind, or the data are not finite,
            empty, or mislabelled.
    """
    arguments = resolve_dataset(dataset, dataset_arg)
    factory = parse_factory(dataset)
    if factory is not None:
        returned = call_factory(dataset, factory, arguments, {})
        return from_factory(dataset, returned).validate(dataset)
    files = input_files(dataset, data_root)
    if dataset.endswith(".npz"):
        return read_npz(files["data.npz"]).validate(dataset)
    spec = DATASETS[dataset]
    module, _, function = spec.loader.partition(":")
    load = getattr(importlib.import_module(module), function)
    loaded: Dataset = load(files, parse_config(spec.args, arguments))
    return loaded.validate(dataset)


def download_dataset(dataset: str, data_root: Path) -> None:
    """Fetch a data set's files into `data_root` through torchvision, if they are not there.

    Does nothing for a data set that torchvision has not, so that a script may always allow it.

    Raises:
        InputError: if they cannot be had from the network.
        MachineError: if the disk is full.
        OutputError: if `data_root` cannot be written.
    """
    spec = DATASETS.get(dataset)
    if spec is None or spec.torchvision is None:
        return
    with contextlib.suppress(InputError):
        input_files(dataset, data_root)
        return
    import torchvision.datasets

    source = getattr(torchvision.datasets, spec.torchvision)
    try:
        # What torchvision says is talk, and stdout is for data.
        with contextlib.redirect_stdout(sys.stderr):
            source(str(data_root), download=True)
    except (*_OF_THE_NETWORK, RuntimeError) as error:
        raise InputError(
            f"cannot download {dataset}: {' '.join(str(error).split())}",
            hint="fetch its files some other way and say where they are: --data-root DIR",
        ) from error
    except OSError as error:
        raise no_room(error, f"to write {data_root}") or OutputError(
            f"cannot write {data_root}: {error.strerror or error}",
            hint="choose another directory with --data-root",
        ) from error
