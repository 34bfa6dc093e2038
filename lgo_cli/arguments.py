"""What can be named and with which arguments: lookup in a registry, and the nearest name offered.

Free of torch, so that an unknown name fails before anything heavy is imported.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, TypeVar

from lgo_cli.errors import UsageError
from lgo_cli.parsing import parse_config

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import JsonValue

    from lgo_cli.config import Strict

T = TypeVar("T")


def find_named(option: str, name: str, registry: Mapping[str, T], others: str) -> T:
    """Look a name up.

    Args:
        option: `model` or `dataset`.
        name: What the user said.
        registry: What there is.
        others: What else may be said, for the hint.

    Raises:
        UsageError: if there is no such name, with the nearest one and all there are.
    """
    if name in registry:
        return registry[name]
    if name.endswith(".py"):
        raise UsageError(
            f"--{option} {name} names a file, but no function in it",
            hint=f"--{option} {name}:FUNCTION",
        )
    raise UsageError(
        f"unknown {option} {name!r}{did_you_mean(name, registry)}",
        hint=f"{', '.join(registry)}, or {others}",
    )


def resolve_arguments(
    option: str, name: str, schema: type[Strict], given: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """Check the arguments of a named thing and fill in its defaults.

    Args:
        option: `model` or `dataset`; its arguments come by `--option-arg`.
        name: What they are for.
        schema: What it takes.
        given: What the user said, values as in JSON.

    Returns:
        All arguments, as JSON values.

    Raises:
        UsageError: naming the argument, and those there are.
    """
    flag = f"--{option}-arg"
    accepted = [f"{key}={shown(field.default)}" for key, field in schema.model_fields.items()]
    hint = f"{name} takes {', '.join(accepted) or 'no arguments'}"
    for key in given:
        if key not in schema.model_fields:
            guess = did_you_mean(key, schema.model_fields)
            raise UsageError(f"{flag} {key}: {name} has no such argument{guess}", hint=hint)
    try:
        return parse_config(schema, given, f"{flag} ").model_dump(mode="json")
    except UsageError as error:
        raise UsageError(error.message, hint=hint) from error


def shown(value: object) -> str:
    """A default as one would type it: `256,128`, `true`."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The nearest of some names as the end of a sentence; empty if none is near.

    Of those that differ by their number alone it is the one of the nearest number.
    """
    name, names = name.lower(), list(names)
    alike = [each for each in names if re.sub(r"\d", "", each) == re.sub(r"\d", "", name)]
    alike.sort(key=lambda each: abs(_number(each) - _number(name)))
    close = alike or difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _number(name: str) -> int:
    return int("0" + re.sub(r"\D", "", name))
