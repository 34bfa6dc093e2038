"""From a command's parameters to the configs that the library takes."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
import shlex
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from lgo_cli.arguments import did_you_mean
from lgo_cli.cli import MODULES
from lgo_cli.config import CONFIGS, Execution, FigureConfig, StepConfig
from lgo_cli.data.registry import FILE_NAMES
from lgo_cli.errors import InputError, UsageError
from lgo_cli.factories import ARGUMENTS, parse_factory, role_of
from lgo_cli.manifest import Manifest, read_manifest
from lgo_cli.parsing import flag_of, parse_config

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    import typer

C = TypeVar("C", bound=StepConfig)
M = TypeVar("M", bound=BaseModel)

CODE = ("model", "dataset", "loss")
"""What may be code of one's own."""

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
    if name in ARGUMENTS:
        return parse_arguments(value, flag_of(name))
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
    except (ValueError, RecursionError):  # no JSON, or a number or a nest that is too long for it
        return {"True": True, "False": False}.get(text, text)
    return text if isinstance(value, dict) else value


@dataclass(frozen=True)
class Options:
    """What a `--config` file says to one command.

    Attributes:
        values: Of fields of the command's config, and of those of `Execution` and `FigureConfig`
            that a file may set.
        where: What stands before a name in an error.
        run: The run to analyse, if a manifest names one.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    where: str = "--"
    run: Path | None = None

    @contextlib.contextmanager
    def named(self, command: str) -> Iterator[None]:
        """Say where an option stands that a step finds wrong when it knows its inputs."""
        try:
            yield
        except UsageError as error:
            flags = set(map(flag_of, self.values))
            if flags.isdisjoint(re.findall(r"--[\w-]+", error.message)):
                raise
            hint = error.hint or f"lgo {command} --help"
            raise UsageError(f"{self.where}{error.message}", hint=hint) from error


def asked(
    ctx: typer.Context, cls: type[StepConfig], run: Path | None, file: Path | None
) -> tuple[StepConfig, Path | None, Execution, FigureConfig, dict[str, str]]:
    """What one command was asked for, file and command line put together.

    Returns:
        The step's config; the run to analyse, if one was named; where and how; how figures are
        written; and the SHA-256, by name, of the inputs that a manifest given as `--config`
        recorded and nothing on the command line replaces.
    """
    said = explicit(ctx, cls)
    options = Options()
    inputs: dict[str, str] = {}
    if file is not None:
        named = {*said, *(() if run is None else ("run",))}
        trusted = {*named, *(CODE if ctx.params.get("trust_code") else ())}
        options = read_config_file(file, cls, trusted)
        if file.suffix == ".json":
            for role in (role for role in ARGUMENTS if role in said):
                # Beside a factory that is named they stand alone, else over the manifest's others.
                is_alone = role.removesuffix("_arg") in said
                of = (options.values if is_alone else said)[role]
                named |= {f"{role}/{key}" for key in of}
            inputs = _recorded_inputs(read_manifest(file), named)
    config, execution, figure = put_together(ctx, cls, options, said)
    return config, run or options.run, execution, figure, inputs


def put_together(
    ctx: typer.Context, cls: type[C], options: Options, said: Mapping[str, Any]
) -> tuple[C, Execution, FigureConfig]:
    """What a file says to a command, and over it what stands on the command line.

    Args:
        ctx: Of the command line.
        cls: Of the command's config.
        options: Of the file.
        said: Fields of that config on the command line.

    Raises:
        UsageError: naming what is wrong by its flag, or by the file and the table where it stands.
    """
    values = dict(options.values)
    where = options.where

    def over(model: type[M], said: Mapping[str, Any]) -> M:
        from_file = {name: values.pop(name) for name in model.model_fields if name in values}
        return parse_config(model, {**from_file, **said}, where, flags=said)

    figure = over(FigureConfig, explicit(ctx, FigureConfig))
    execution = over(Execution, explicit(ctx, Execution))
    arguments = {}
    for name in ARGUMENTS:
        if not isinstance(values.get(name, {}), dict):
            raise UsageError(
                f"{where}{name}: {values[name]!r} is no table",
                hint=f"arguments stand in one: {name} = {{KEY = VALUE}}",
            )
        if name in said and name.removesuffix("_arg") not in said:
            arguments[name] = {**values.get(name, {}), **said[name]}
    return over(cls, {**said, **arguments}), execution, figure


def read_config_file(path: Path, cls: type[StepConfig], trusted: Container[str]) -> Options:
    """Read options for one command from a TOML file or from a manifest.

    A TOML file holds the command's options, or one table for each command.

    Args:
        path: Of the file.
        cls: Of the command's config.
        trusted: Fields for which a manifest's code may be taken.

    Raises:
        InputError: if it cannot be read or parsed.
        UsageError: if it is a manifest of another command, names code that is not trusted, or says
            something that the command does not take.
    """
    if path.suffix == ".json":
        return _from_manifest(path, cls, trusted)
    values = read_toml(path)
    if any(name in CONFIGS for name in values):
        return _table(path, _tables(path, values, "either all at the top, or in"), cls.command)
    return _checked(Options(values, f"{path}: "), cls.command)


def _tables(path: Path, values: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """A file's tables, one for each command.

    Args:
        path: Of the file.
        values: What it holds.
        where: Where options stand, up to the names of the tables.

    Raises:
        UsageError: if it holds anything else.
    """
    for name, table in values.items():
        if name not in CONFIGS or not isinstance(table, dict):
            guess = "" if name in CONFIGS else did_you_mean(name, CONFIGS)
            raise UsageError(
                f"{path}: {name} is not a table of a command{guess}",
                hint=f"options stand {where} {', '.join(f'[{command}]' for command in CONFIGS)}",
            )
    return values


def _table(path: Path, tables: Mapping[str, dict[str, Any]], command: str) -> Options:
    return _checked(Options(tables.get(command, {}), f"{path}: [{command}] "), command)


def _checked(options: Options, command: str) -> Options:
    """The same options, if the command has them all, a file may set them and none is empty.

    Raises:
        UsageError: naming the first that is none, and the nearest that is one.
    """
    module = importlib.import_module(f"lgo_cli.cli.{MODULES[command]}")
    flags = set(inspect.signature(getattr(module, command)).parameters)
    fields = {*CONFIGS[command].model_fields, *FigureConfig.model_fields, *FILE_EXECUTION}
    for name, value in options.values.items():
        if name in fields & flags:
            if "" in (value if isinstance(value, list) else [value]):
                hint = "say what is meant, or leave it out"
                raise UsageError(f"{options.where}{name} is empty", hint=hint)
            continue
        if name in flags:
            raise UsageError(
                f"{options.where}{name} is not for a file", hint=f"say it to lgo {command} itself"
            )
        what, known = "option", sorted(fields & flags)
        if isinstance(value, dict):
            what, known = "table", [*CONFIGS, *(name for name in known if name.endswith("_arg"))]
        raise UsageError(
            f"{options.where}{name} is no {what} of lgo {command}{did_you_mean(name, known)}",
            hint=f"lgo {command} --help",
        )
    return options


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file into JSON values.

    Raises:
        InputError: if it cannot be read or parsed.
    """
    try:
        values = tomllib.loads(path.read_bytes().decode())
        return dict(json.loads(json.dumps(values)))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also of a number or a nest that is too long
        raise InputError(f"{path} is not TOML: {error}") from error
    except TypeError as error:
        raise InputError(f"{path}: {error}") from error


def _from_manifest(path: Path, cls: type[StepConfig], trusted: Container[str]) -> Options:
    """What an earlier manifest says, its stand-ins for paths replaced by where things were."""
    manifest = read_manifest(path)
    request = manifest.request
    if request.command != cls.command:
        again = ["lgo", request.command, "--config", str(path)]
        raise UsageError(
            f"{path} is a manifest of lgo {request.command}, not lgo {cls.command}",
            hint=f"run it again: {shlex.join([*again, '--out', str(path.parent)])}",
        )
    values: dict[str, Any] = {**request.config, **manifest.figure.model_dump()}
    for key in CODE:
        values[key] = _named(manifest, path, key, trusted=key in trusted)

    def place(name: str) -> str:
        return str(manifest.place(name, path.parent))

    if "data.npz" in request.inputs:
        values["dataset"] = place("data.npz")
    data = [name for name in request.inputs if name in FILE_NAMES]
    if data:
        values["data_root"] = str(Path(place(data[0])).parent)
    for key in ("to", "directions"):
        if isinstance(values.get(key), list):
            values[key] = ["init" if name == "init" else place(str(name)) for name in values[key]]
    if values.get("init") is not None:
        values["init"] = place("init.pth")
    if "warm_start.npz" in request.inputs:
        values["warm_start"] = str(Path(place("warm_start.npz")).parent)
    run = Path(place("model.pth")) if "model.pth" in request.inputs else None
    return Options(values, f"{path}: ", run)


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
    """The parameter that names an input, or the argument of a factory, as `model_arg/weights`."""
    if role_of(name) in ARGUMENTS:
        return "/".join(name.split("/")[:2])
    if role_of(name) in ("model.py", "loss.py", "warm_start.npz"):
        return name.partition(".")[0]
    if name == "init.pth" and manifest.request.command == "train":
        return "init"
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
    if factory.is_file:
        recorded = f"{manifest.place(factory.source, path.parent)}:{factory.name}"
    if not trusted:
        raise UsageError(
            f"{path} names code, {recorded}, which runs only if you name it",
            hint=f"say --{key} yourself, or --trust-code if you know where it comes from",
        )
    return recorded


def options_of_run(file: Path | None) -> dict[str, Options]:
    """What the `--config` file of `lgo run` says to each of its commands.

    Raises:
        InputError: if it cannot be read or parsed.
        UsageError: if it holds anything but their tables, or a table what its command does not
            take, or a place of its own.
    """
    if file is None:
        return {command: Options() for command in CONFIGS}
    if file.suffix == ".json":
        raise UsageError(
            f"{file}: lgo run takes no manifest, which is of one step", hint="a TOML file of tables"
        )
    tables = _tables(file, read_toml(file), "in")
    found = {command: _table(file, tables, command) for command in CONFIGS}
    for options in found.values():
        if "out" in options.values:
            raise UsageError(
                f"{options.where}out: lgo run has one directory for all steps", hint="--out DIR"
            )
    return found
