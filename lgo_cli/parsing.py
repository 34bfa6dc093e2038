"""Values into a config, and what is said of those that do not fit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from lgo_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

C = TypeVar("C", bound=BaseModel)


def flag_of(field: str) -> str:
    """What a config's field, or a parameter of a command, is called on the command line."""
    return f"--{field.replace('_', '-')}"


def parse_config(
    cls: type[C], values: Mapping[str, Any], where: str = "", flags: Container[str] = ()
) -> C:
    """Validate `values` into a config.

    Values pass through JSON, since strict mode refuses a list for a tuple in Python mode.

    Args:
        cls: `TrainConfig` and its like.
        values: Field values.
        where: What to put before each field's name in an error, such as `"--"` or a file's name.
        flags: Fields that stood on the command line, which are called by their flags.

    Raises:
        UsageError: naming each bad field, its value and what it must be.
    """
    try:
        return cls.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise UsageError("; ".join(describe(error, where, flags))) from error


def describe(error: ValidationError, where: str = "", flags: Container[str] = ()) -> list[str]:
    """One line per complaint of a `ValidationError`; arguments as in `parse_config`."""
    lines = []
    for detail in error.errors():
        names = [str(part) for part in detail["loc"]]
        message = detail["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if not names:
            lines.append(message)
            continue
        is_flag = where == "--" or names[0] in flags
        name = flag_of(names[0]) if is_flag else f"{where}{'.'.join(names)}"
        got = "" if detail["type"] in ("missing", "value_error") else f", got {detail['input']!r}"
        lines.append(f"{name}: {message}{got}")
    return lines
