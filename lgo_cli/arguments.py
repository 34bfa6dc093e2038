"""Arguments of a named model or data set: checked against a schema, with the nearest name offered.

Torch-free, so that an unknown name fails before anything heavy is loaded.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from lgo_cli.config import describe
from lgo_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Arguments(BaseModel):
    """Base of the arguments that one model or data set takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _split(value: Any) -> Any:
    """Read `64,32`, a single number, or nothing at all as a list."""
    if isinstance(value, str):
        return [part for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


Widths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_split)]
"""Positive integers, written `64,32`, `[64, 32]` or, for none, as an empty text."""


def resolve_arguments(
    kind: str, name: str, schema: type[Arguments], given: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """Validate the arguments of a named thing and fill in its defaults.

    Args:
        kind: `model` or `dataset`; its flag is `--kind-arg`.
        name: Which one, for the error.
        schema: What it takes.
        given: What the user said.

    Returns:
        All arguments, as JSON values.

    Raises:
        UsageError: naming the argument, and those there are.
    """
    flag = f"--{kind}-arg"
    for key in given:
        if key not in schema.model_fields:
            raise UsageError(
                f"{flag}: {name} takes no argument {key!r}{did_you_mean(key, schema.model_fields)}",
                hint=(
                    f"it takes: {', '.join(schema.model_fields)}"
                    if schema.model_fields
                    else f"{name} takes none"
                ),
            )
    try:
        arguments = schema.model_validate(given)
    except ValidationError as error:
        raise UsageError(f"{flag}: {'; '.join(describe(error))}") from error
    return arguments.model_dump(mode="json")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean x?`, or nothing if no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
