"""User code by reference: `path/to/file.py:name` or `package.module:name`.

Naming a factory is the user's permission to run it; a reference that came out of a manifest is
checked by `runs` before it gets here.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lgo_cli.errors import InputError, LgoError, UsageError, raised_at
from lgo_cli.files import canonical_json, sha256_bytes, sha256_file
from lgo_cli.imports import imported_files, search_from

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping
    from types import ModuleType


@dataclass(frozen=True)
class Factory:
    """A callable in a Python file or in an importable module.

    Attributes:
        source: Path of the file, or dotted name of the module.
        name: The callable's name in it.
    """

    source: str
    name: str

    @property
    def is_file(self) -> bool:
        """Whether `source` is a path rather than a module's name."""
        return self.source.endswith(".py")


def parse_factory(reference: str) -> Factory | None:
    """Read `file.py:name` or `package.module:name`; `None` if it is no such reference."""
    source, separator, name = reference.rpartition(":")
    if not separator or not name.isidentifier() or not source:
        return None
    if source.endswith(".py") or all(part.isidentifier() for part in source.split(".")):
        return Factory(source, name)
    return None


def recorded_name(reference: str, role: str) -> str:
    """What requests and results call what the user named: code in a file by no path.

    Args:
        reference: Of a factory, or any other name.
        role: `model.py`, `data.py` or `loss.py`.
    """
    factory = parse_factory(reference)
    return f"{role}:{factory.name}" if factory is not None and factory.is_file else reference


def source_file(factory: Factory) -> Path:
    """Find the file that defines the factory, without running it.

    Raises:
        InputError: if there is no such file or module.
    """
    if factory.is_file:
        path = Path(factory.source)
        if not path.is_file():
            raise InputError(
                f"no such Python file: {path}",
                hint="say where it is: --model, --dataset or --loss "
                f"PATH/{path.name}:{factory.name}",
            )
        return path
    _forget_neighbours()
    # To find a module its parent packages are imported, which is the user's own code.
    with _users_code(f"importing {factory.source}"), search_from(None):
        try:
            spec = importlib.util.find_spec(factory.source)
        except ModuleNotFoundError as error:
            raise InputError(f"no module named {error.name!r}") from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise InputError(
            f"no module named {factory.source!r}",
            hint="name a file instead: path/to/file.py:factory",
        )
    return Path(spec.origin)


def source_files(factory: Factory, role: str) -> dict[str, Path]:
    """Find the files that define what the factory does, without running them.

    Args:
        factory: Whose.
        role: What to call its own file: `model.py`, `data.py` or `loss.py`.

    Returns:
        Path by name: the role, and of the files that it imports from beside it (`imported_files`)
        the role and their place there, such as `model.py/blocks/conv.py`.

    Raises:
        InputError: if there is no such file or module.
    """
    path = source_file(factory)
    imported = imported_files(path, None if factory.is_file else factory.source)
    return {role: path, **{f"{role}/{name}": file for name, file in imported.items()}}


ARGUMENTS = ("model_arg", "dataset_arg", "loss_arg")
"""Roles of the files that arguments of a factory name, such as `model_arg/weights`."""


def role_of(name: str) -> str:
    """Whose file an input is, as `source_files` names them: the first part of its name."""
    return name.partition("/")[0]


def _import_file(path: Path, imported: Mapping[str, Path]) -> ModuleType:
    """Import a Python file under a name of its place and of all that it is made of.

    So two files called `net.py` do not shadow each other, and one whose neighbour was edited since
    is imported again.
    """
    files = {str(file.resolve()): sha256_file(file) for file in (path, *imported.values())}
    name = f"lgo_factory_{sha256_bytes(canonical_json([str(path.resolve()), files]))[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def call_factory(
    reference: str, factory: Factory, arguments: Mapping[str, Any], offered: Mapping[str, Any]
) -> Any:
    """Call the factory with the user's arguments and what its signature asks for of `offered`.

    Args:
        reference: How the user named it, for error messages.
        factory: What to call.
        arguments: The user's `key=value` pairs; all are passed.
        offered: Values passed only where the signature names them (`input_shape`, ...).

    Raises:
        UsageError: if the signature does not take the arguments.
        InputError: if the file or module is missing, fails to import, lacks a callable of that
            name, or the callable fails.
    """
    with _imported(factory) as function:
        if hasattr(function, "state_dict") and not isinstance(function, type):
            raise InputError(
                f"{factory.source} has {factory.name!r} as a module that is made, not as what "
                "makes it",
                hint=f"name its class, {type(function).__name__}, or a function that returns a "
                "new one",
            )
        accepted = offered.keys() & inspect.signature(function).parameters
        given = {**{key: offered[key] for key in accepted}, **arguments}
        bound = _bound(reference, function, **given)
        with _users_code(f"calling {reference}"):
            return function(*bound.args, **bound.kwargs)


def user_function(
    reference: str, factory: Factory, arguments: Mapping[str, Any], given: tuple[str, ...]
) -> Callable[..., Any]:
    """The user's own function, its arguments filled in; or an object that is called like one.

    Args:
        reference: How the user named it, for error messages.
        factory: The function; or a class, which is called with the arguments and makes one.
        arguments: The user's `key=value` pairs.
        given: What it is then called with, in words.

    Raises:
        UsageError: if the signature does not take them.
        InputError: if the file or module is missing, fails to import or lacks a callable of that
            name, or the class fails.
    """
    with _imported(factory) as function:
        if isinstance(function, type):
            bound = _bound(reference, function, **arguments)
            with _users_code(f"calling {reference}"):
                made: Callable[..., Any] = function(*bound.args, **bound.kwargs)
            return made
        _bound(reference, function, *given, **arguments)
        return partial(function, **arguments)


def _bound(
    reference: str, function: Callable[..., Any], *positional: Any, **named: Any
) -> inspect.BoundArguments:
    signature = inspect.signature(function)
    try:
        return signature.bind(*positional, **named)
    except TypeError as error:
        with_what = f" with ({', '.join(positional)})" if positional else ""
        raise UsageError(
            f"{reference} cannot be called{with_what}: {error}",
            hint=f"its signature is {signature}",
        ) from error


@contextmanager
def _imported(factory: Factory) -> Iterator[Callable[..., Any]]:
    """The factory's callable, and meanwhile what its file imports from beside it."""
    path = source_file(factory)
    directory = path.resolve().parent if factory.is_file else None
    imported = imported_files(path) if factory.is_file else {}
    with search_from(directory), _neighbours(imported):
        with _users_code(f"importing {factory.source}"):
            if factory.is_file:
                module = _import_file(path, imported)
            else:
                module = importlib.import_module(factory.source)
        yield _named(factory, module)


def _named(factory: Factory, module: ModuleType) -> Callable[..., Any]:
    """The factory's callable in its module."""
    function = getattr(module, factory.name, None)
    if not callable(function):
        named = sorted(
            key
            for key, value in vars(module).items()
            if callable(value)
            and key[0] != "_"
            # Not what a file imports; a package does so to offer it.
            and (not factory.is_file or getattr(value, "__module__", None) == module.__name__)
        )
        raise InputError(
            f"{factory.source} has no callable {factory.name!r}",
            hint=f"it has: {', '.join(named)}" if named else None,
        )
    return function  # type: ignore[no-any-return]


_NEIGHBOURS: dict[Path, tuple[dict[Path, str], dict[str, ModuleType]]] = {}
"""Modules that factories imported, by where their top-level module lies, with the digests of all
files that its factory imported."""


@contextmanager
def _neighbours(imported: Mapping[str, Path]) -> Iterator[None]:
    """Let what a file imports from beside it be that, whatever else goes by such names.

    Modules of the program itself are put back afterwards. Another factory's are not, since what the
    last one built may import its own when it runs; they come back with their factory.

    Args:
        imported: By place, from `imported_files`.
    """
    digests = {file: sha256_file(file) for file in imported.values()}
    bases = {}
    for name, file in imported.items():
        parts = PurePosixPath(name).parts
        bases[parts[0].removesuffix(".py")] = file.parents[len(parts) - 1] / parts[0]
    kept = {base: _NEIGHBOURS[base] for base in bases.values() if base in _NEIGHBOURS}
    if any(old.get(file, new) != new for old, _ in kept.values() for file, new in digests.items()):
        kept = {}  # edited since, as in a notebook
    factories = {id(module) for _, own in _NEIGHBOURS.values() for module in own.values()}
    before = _take_out(bases)
    for _, own in kept.values():
        sys.modules.update(own)
    try:
        yield
    finally:
        loaded = _take_out(bases)
        for top, base in bases.items():
            old, _ = kept.get(base, ({}, {}))
            own = {name: module for name, module in loaded.items() if _top(name) == top}
            _NEIGHBOURS[base] = ({**old, **digests}, own)
        programs = {name: module for name, module in before.items() if id(module) not in factories}
        replaced = {_top(name) for name in programs}
        stay = {name: module for name, module in loaded.items() if _top(name) not in replaced}
        sys.modules.update(programs | stay)


def _forget_neighbours() -> None:
    """Leave the names of files' neighbours to what is imported by its name; they come back."""
    for _, own in _NEIGHBOURS.values():
        for name, module in own.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _take_out(tops: Container[str]) -> dict[str, ModuleType]:
    """Remove the modules of top-level names, and return them."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if _top(name) in tops}


def _top(name: str) -> str:
    return name.partition(".")[0]


@contextmanager
def _users_code(action: str) -> Iterator[None]:
    """Turn whatever the user's own code raises into one error that names the line.

    A handler of `Exception`, as there is one in `outputs`, `second_derivatives` and
    `curvature.tracing`: what a stranger's code raises cannot be listed.
    """
    try:
        yield
    except LgoError:
        raise
    except Exception as error:
        raise InputError(
            f"{action} failed: {type(error).__name__}: {error}",
            hint=f"it was raised at {raised_at(error)}",
        ) from error
