"""User code by reference: `path/to/file.py:name` or `package.module:name`.

Naming a factory is the user's permission to run it; a reference that came out of a manifest is
checked by `runs` before it gets here.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgo_cli.errors import InputError, LgoError, UsageError
from lgo_cli.files import sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


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
                hint=f"say where it is: --model or --dataset PATH/{path.name}:{factory.name}",
            )
        return path
    # To find a module its parent packages are imported, which is the user's own code.
    with _users_code(f"importing {factory.source}"), _from_here():
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


def load_factory(factory: Factory) -> Callable[..., Any]:
    """Import the factory's file or module and return the callable.

    Raises:
        InputError: if the file or module is missing, fails to import, or lacks a callable of that
            name.
    """
    path = source_file(factory)
    with _users_code(f"importing {factory.source}"), _from_here():
        module = _import_file(path) if factory.is_file else importlib.import_module(factory.source)
    function = getattr(module, factory.name, None)
    if not callable(function):
        named = sorted(
            key for key, value in vars(module).items() if callable(value) and key[0] != "_"
        )
        raise InputError(
            f"{factory.source} has no callable {factory.name!r}",
            hint=f"it has: {', '.join(named)}" if named else None,
        )
    return function  # type: ignore[no-any-return]


def _import_file(path: Path) -> Any:
    """Import a Python file under a name that depends on its content.

    The name holds the digest, so that two files called `net.py` do not shadow each other, and the
    file's own directory is importable while it is executed, as it is for a script.
    """
    name = f"lgo_factory_{sha256_file(path)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.resolve().parent))
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
        InputError: if the factory cannot be loaded.
    """
    function = load_factory(factory)
    signature = inspect.signature(function)
    accepted = {key: value for key, value in offered.items() if key in signature.parameters}
    try:
        bound = signature.bind(**{**accepted, **arguments})
    except TypeError as error:
        raise UsageError(
            f"{reference} cannot be called: {error}", hint=f"its signature is {signature}"
        ) from error
    with _users_code(f"calling {reference}"):
        return function(*bound.args, **bound.kwargs)


@contextmanager
def _from_here() -> Iterator[None]:
    """Let modules of the current directory be found, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


@contextmanager
def _users_code(action: str) -> Iterator[None]:
    """Turn whatever the user's own code raises into one error that names the line.

    A handler of `Exception`, as `curvature.tracing` has the only other one: what a stranger's code
    raises cannot be listed.
    """
    try:
        yield
    except LgoError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"{action} failed: {type(error).__name__}: {error}",
            hint=f"it was raised at {frame.filename}:{frame.lineno}",
        ) from error
