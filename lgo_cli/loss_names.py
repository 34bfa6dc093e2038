"""Losses by name, as there are models and data sets by name.

Free of torch: a name is checked before anything heavy is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgo_cli.arguments import find_named
from lgo_cli.errors import UsageError
from lgo_cli.factories import parse_factory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

LOSSES = {
    "cross_entropy": "nats",
    "binary_cross_entropy": "nats",
    "squared_error": "½ squared distance",
}
"""The unit of each of lgo's own."""


def resolve_loss(loss: str, loss_arg: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Check a loss's name.

    Args:
        loss: A name in `LOSSES`, or a reference to a function of one's own.
        loss_arg: The user's `key=value` pairs, values as in JSON.

    Returns:
        The arguments, which pass through.

    Raises:
        UsageError: if the name is unknown, or one of lgo's own is given arguments.
    """
    if parse_factory(loss) is None:
        find_named("loss", loss, LOSSES, "file.py:function, package.module:function")
        for key in loss_arg:
            raise UsageError(f"--loss-arg {key}: {loss} takes no arguments")
    return dict(loss_arg)
