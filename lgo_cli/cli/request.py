"""From a command's parameters to the configs that the library takes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lgo_cli.config import (
    CONFIGS,
    Execution,
    FigureConfig,
    StepConfig,
    parse_config,
)
from lgo_cli.errors import InputError, UsageError
from lgo_cli.factories import parse_factory
from lgo_cli.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    import typer
    from pydantic import BaseModel

C = TypeVar("C", bound=StepConfig)

FILE_EXECUTION = ("out", "device", "num_threads", "data_root", "memory", "basis_device")
"""What a `--config` file may say of where and how to run; permissions are not among it."""


def explicit(ctx: typer.Context, model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a config that stand on the command line itself, as JSON values."""
    values = {}
    for name in model.model_fields:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            values[name] = _json_value(name, ctx.params[name])
    return values


def _json_value(name: str, value: Any) -> Any:
    if name in ("model_arg", "dataset_arg"):
        return parse_arguments(value, "--" + name.replace("_", "-"))
    if isinstance(value, Path):
        return str(value)
    return value


def parse_arguments(pairs: list[str], flag: str) -> dict[str, Any]:
    """Read `key=value` pairs; a value is a JSON scalar or list if it parses as one, else text.

    Raises:
        UsageError: if a pair has no `=`, or a key stands twice.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise UsageError(f"{flag}: {pair!r} is not KEY=VALUE")
        if key in arguments:
            raise UsageError(f"{flag}: {key} is given twice")
        arguments[key] = _scalar(text)
    return arguments


def _scalar(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=str)
    except json.JSONDecodeError:
        return {"True": True, "False": False}.get(text, text)
    return text if isinstance(value, dict) else value


class Asked:
    """What one command was asked for, file and command line put together.

    Attributes:
        config: Of the step.
        execution: Where and how.
        figure: How figures are written.
        run: The run to analyse, if one was named.
        inputs: SHA-256, by name, of the inputs that a manifest given as `--config` recorded and
            nothing on the command line replaces.
    """

    def __init__(
        self,
        ctx: typer.Context,
        cls: type[StepConfig],
        run: Path | None = None,
        file: Path | None = None,
    ) -> None:
        values = explicit(ctx, cls)
        execution = explicit(ctx, Execution)
        figure = explicit(ctx, FigureConfig)
        self.run = run
        self.inputs: dict[str, str] = {}
        if file is not None:
            named = {*values, *(() if run is None else ("run",))}
            trusted = {*named, *(("model", "dataset") if ctx.params.get("trust_code") else ())}
            from_file = read_config_file(file, cls, trusted)
            if file.suffix == ".json":
                self.inputs = _recorded_inputs(read_manifest(file), named)
            located = from_file.pop("run", None)
            self.run = run or located
            figure = {**_take(from_file, FigureConfig.model_fields), **figure}
            execution = {**_take(from_file, FILE_EXECUTION), **execution}
            for name in ("model_arg", "dataset_arg"):
                if name in values and name[: -len("_arg")] not in values:
                    values[name] = {**_table(file, from_file, name), **values[name]}
            values = {**from_file, **values}
        self.config = parse_config(cls, values, "--" if file is None else f"{file}: ")
        self.execution = parse_config(Execution, execution, "--")
        self.figure = parse_config(FigureConfig, figure, "--")


def _table(path: Path, values: dict[str, Any], name: str) -> dict[str, Any]:
    """A table of a file's; empty if it has none of that name."""
    table = values.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {name} is no table")
    return table


def _take(values: dict[str, Any], names: Any) -> dict[str, Any]:
    return {name: values.pop(name) for name in names if name in values}


def read_config_file(path: Path, cls: type[StepConfig], trusted: Container[str]) -> dict[str, Any]:
    """Read options for one command from a TOML file or from a manifest.

    A TOML file holds the command's options, or one table for each command.

    Args:
        path: Of the file.
        cls: Of the command's config.
        trusted: Fields for which a manifest's code may be taken.

    Raises:
        InputError: if it cannot be read or parsed.
        UsageError: if it is a manifest of another command, or names code that is not trusted.
    """
    if path.suffix == ".json":
        return _from_manifest(path, cls, trusted)
    values = read_toml(path)
    has_tables = values and set(values) <= set(CONFIGS)
    return dict(_table(path, values, cls.command)) if has_tables else values


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file into JSON values.

    Raises:
        InputError: if it cannot be read or parsed.
    """
    try:
        values = tomllib.loads(path.read_text())
        return dict(json.loads(json.dumps(values)))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    except TypeError as error:
        raise InputError(f"{path}: {error}") from error


def _from_manifest(path: Path, cls: type[StepConfig], trusted: Container[str]) -> dict[str, Any]:
    """The config of an earlier manifest, its stand-ins for paths replaced by where things were."""
    manifest = read_manifest(path)
    request = manifest.request
    if request.command != cls.command:
        raise UsageError(f"{path} is a manifest of lgo {request.command}, not lgo {cls.command}")
    values: dict[str, Any] = dict(request.config)
    for key in ("model", "dataset"):
        values[key] = _named(manifest, path, key, trusted=key in trusted)
    if "data.npz" in request.inputs:
        values["dataset"] = _place(manifest, path, "data.npz")
    data = [name for name in request.inputs if name.endswith("ubyte") or "batch" in name]
    if data:
        values["data_root"] = str(Path(_place(manifest, path, data[0])).parent)
    for key in ("to", "directions"):
        if isinstance(values.get(key), list):
            values[key] = [
                "init" if name == "init" else _place(manifest, path, str(name))
                for name in values[key]
            ]
    if "warm_start.npz" in request.inputs:
        values["warm_start"] = str(Path(_place(manifest, path, "warm_start.npz")).parent)
    if "model.pth" in request.inputs:
        values["run"] = Path(_place(manifest, path, "model.pth"))
    return values


def _recorded_inputs(manifest: Manifest, named: Container[str]) -> dict[str, str]:
    """Digests of the inputs that are the manifest's to name, not the command line's.

    Eigenvectors of the run's own are left out: who has none, or others, computes what is missing.
    """
    return {
        name: ref.sha256
        for name, ref in manifest.request.inputs.items()
        if name != "hessian.npz" and _named_by(name, manifest) not in named
    }


def _named_by(name: str, manifest: Manifest) -> str:
    """The parameter that names an input."""
    if name in ("model.py", "warm_start.npz"):
        return name.partition(".")[0]
    if name.startswith("directions_"):
        return "directions"
    if name == "to" or name.startswith("to_"):
        named = manifest.request.config["to"]
        index = int(name.removeprefix("to").removeprefix("_") or 0)
        return "run" if isinstance(named, list) and named[index] == "init" else "to"
    return "run" if name.endswith(".pth") else "dataset"


def _named(manifest: Manifest, path: Path, key: str, *, trusted: bool) -> Any:
    recorded = str(manifest.request.config[key])
    factory = parse_factory(recorded)
    if factory is None:
        return recorded
    if not trusted:
        raise UsageError(
            f"{path} names code, {recorded}, which runs only if you name it",
            hint=f"say --{key} yourself, or --trust-code if you know where it comes from",
        )
    if not factory.is_file:
        return recorded
    return f"{_place(manifest, path, factory.source)}:{factory.name}"


def _place(manifest: Manifest, path: Path, name: str) -> str:
    return str(path.parent / manifest.locations[name])


def tables_for(file: Path | None) -> Mapping[str, dict[str, Any]]:
    """The tables of a `--config` file of `lgo run`, one for each command.

    Raises:
        UsageError: if it holds anything else.
    """
    if file is None:
        return {}
    values = read_toml(file)
    unknown = [key for key in values if key not in CONFIGS or not isinstance(values[key], dict)]
    if unknown:
        raise UsageError(
            f"{file}: {unknown[0]} is not a table of lgo run",
            hint=f"its tables are {', '.join(f'[{name}]' for name in CONFIGS)}",
        )
    return values
