"""What a Python file imports from beside it, found by reading and without running it."""

from __future__ import annotations

import ast
import importlib
import sys
import warnings
from contextlib import contextmanager
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from lgo_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

Parts = tuple[str, ...]
"""A dotted name, taken apart."""

_INSTALLED = {"site-packages", "dist-packages"}
_INERT = (ast.expr, ast.expr_context, ast.operator, ast.arguments)
"""Parts of the syntax that hold no statement."""


@contextmanager
def search_from(directory: Path | None) -> Iterator[None]:
    """Let modules be found as a script does: in its own directory first.

    Those of the current directory are found last.

    Args:
        directory: Of the script; `None` where a module is imported by its name.
    """
    own = [str(directory)] if directory else []
    last = [str(Path.cwd())]
    sys.path[:] = [*own, *sys.path, *last]
    try:
        yield
    finally:
        # By identity: an equal entry may have been there, and what user code adds is to stay.
        added = {id(entry) for entry in (*own, *last)}
        sys.path[:] = [entry for entry in sys.path if id(entry) not in added]


def imported_files(path: Path, module: str | None = None) -> dict[str, Path]:
    """Find the Python files that a file imports, directly or through another of them.

    Those of its own and the current directory, that is: what is installed is left out, and so are
    empty files. Imports inside functions count. An import by a name that is computed is not seen.

    Args:
        path: Of the file.
        module: Its dotted name, if it is imported by that; its packages are imported with it.

    Returns:
        Path by place in the directory, such as `blocks/conv.py`, in the order of the places.

    Raises:
        InputError: if one of them cannot be read.
    """
    if _INSTALLED & set(path.parts):
        return {}
    path = path.absolute() if module else path.resolve()
    parts = tuple(module.split(".")) if module else ()
    root = path.parents[len(parts) - (path.name != "__init__.py")] if parts else path.parent
    found: dict[Path, Path] = {path: path.relative_to(root)} if parts else {}
    with search_from(None if parts else root):
        importlib.invalidate_caches()
        names = [parts] if parts else []
        names += _imports(_read(path), path.relative_to(root).parent.parts)
        seen: set[Parts] = set()
        while names:
            name = names.pop()
            if name in seen:
                continue
            seen.add(name)
            for base, file in _files_of(name, (root, Path.cwd())):
                if file not in found:
                    found[file] = file.relative_to(base)
                    names += _imports(_read(file), found[file].parent.parts)
    places = {place.as_posix(): file for file, place in found.items() if file.stat().st_size}
    return {place: places[place] for place in sorted(places) if not parts or places[place] != path}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


@lru_cache(maxsize=4096)
def _imports(source: bytes, package: Parts) -> tuple[Parts, ...]:
    """Names that a file of a package imports; none of one that is no Python."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of the user's syntax
            todo: list[ast.AST] = [ast.parse(source)]
    except (SyntaxError, RecursionError):  # importing it will say so
        return ()
    names: list[Parts] = []
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            names += (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            if node.level and not base:  # beyond the top: it cannot be imported
                continue
            base += tuple(node.module.split(".")) if node.module else ()
            names += ((*base, alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and _is_never_true(node.test):
            todo += node.orelse
        else:
            todo += (part for part in ast.iter_child_nodes(node) if not isinstance(part, _INERT))
    return tuple(names)


def _is_never_true(condition: ast.expr) -> bool:
    """Whether it is `TYPE_CHECKING` or `__name__ == "__main__"`, false in what is imported."""
    if isinstance(condition, ast.Compare):
        named = isinstance(condition.left, ast.Name) and condition.left.id == "__name__"
        return named and isinstance(condition.ops[0], ast.Eq)
    return getattr(condition, "attr", getattr(condition, "id", None)) == "TYPE_CHECKING"


def _files_of(name: Parts, roots: tuple[Path, ...]) -> Iterator[tuple[Path, Path]]:
    """The files that importing a name executes, each behind the root that it is found in."""
    if name[0] == __package__:  # lgo itself, which is known by its version
        return
    spec = PathFinder.find_spec(name[0])
    if spec is None:
        return
    found = spec.submodule_search_locations or [str(spec.origin)]
    places = {Path(place).parent for place in found}
    for root in roots:
        place = root
        for part in name if root in places else ():
            place /= part
            if (place / "__init__.py").is_file():
                yield root, place / "__init__.py"
            elif place.with_name(f"{part}.py").is_file():
                yield root, place.with_name(f"{part}.py")
                break
            elif not place.is_dir():
                break
