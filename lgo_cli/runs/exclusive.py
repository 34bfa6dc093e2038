"""Which options of `lgo interp` exclude each other, and which need another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgo_cli.config import RecipeConfig, StepConfig
from lgo_cli.errors import UsageError
from lgo_cli.parsing import flag_of

if TYPE_CHECKING:
    from lgo_cli.config import InterpConfig

_EXCLUSIVE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "direction",
        ("to", "matrix", "spherical", "align", "curve"),
        "a direction has no other end; leave out one of the two",
    ),
    (
        "matrix",
        ("align", "curve", "range"),
        "a matrix is of the paths between all ends, each from 0 to 1; give one --to for the rest",
    ),
    ("spherical", ("range",), "an arc goes from 0 to 1"),
    ("curve", ("spherical", "repair", "range"), "a curve is trained and measured from 0 to 1"),
    ("repair", ("range",), "statistics are restored between the ends, from 0 to 1"),
    ("repair", ("batchnorm",), "--repair looks after the statistics of batch norm itself"),
)
"""An option, others that it excludes, and what to do about it."""

_OF_A_CURVE = ("num_bends", *(RecipeConfig.model_fields.keys() - StepConfig.model_fields.keys()))


def refuse_exclusive(config: InterpConfig) -> None:
    """Refuse what makes no sense together.

    Raises:
        UsageError: naming the two, or what is missing.
    """
    fields = type(config).model_fields
    said = [name for name in fields if getattr(config, name) != fields[name].default]
    for name, others, hint in _EXCLUSIVE:
        for other in others:
            if name in said and other in said:
                both = f"{flag_of(name)} and {flag_of(other)}"
                raise UsageError(f"{both} exclude each other", hint=hint)
    if len(config.to) > 1 and not config.matrix:
        raise UsageError(
            f"a path has one other end, and --to was given {len(config.to)} times",
            hint="--matrix measures the barriers of all pairs",
        )
    if config.matrix and not config.to:
        raise UsageError("--matrix: there is one checkpoint only", hint="--to B --to C --matrix")
    if config.matrix and config.num_points == 2:
        raise UsageError(
            "--matrix with --num-points 2: no point between two ends is measured, so no barrier",
            hint="--num-points 11, or so",
        )
    if config.repair and not config.align:
        raise UsageError(
            "--repair goes with --align",
            hint="statistics alone are recomputed by --batchnorm recompute",
        )
    for name in said:
        if name in _OF_A_CURVE and config.curve is None:
            raise UsageError(f"{flag_of(name)} is for training a curve", hint="--curve bezier")
