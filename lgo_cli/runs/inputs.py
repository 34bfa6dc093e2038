"""Whether the inputs that were found are what was recorded."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lgo_cli.config import OBJECTIVE_FIELDS
from lgo_cli.data.registry import FILE_NAMES
from lgo_cli.errors import InputError
from lgo_cli.factories import ARGUMENTS, role_of
from lgo_cli.files import sha256_file
from lgo_cli.parsing import flag_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lgo_cli.manifest import InputRef, Request


def differing(inputs: Mapping[str, InputRef], wanted: Mapping[str, str]) -> list[str]:
    """Names of the inputs that are not what was recorded: others, missing ones, imported ones.

    Args:
        inputs: That were found. Those of other names do not count, unless a file that counts
            imports them.
        wanted: The recorded SHA-256 by name.
    """
    return [
        name
        for name in dict.fromkeys((*wanted, *inputs))
        if (name in wanted or role_of(name) in wanted)
        and (name not in inputs or inputs[name].sha256 != wanted.get(name))
    ]


def other_objective(asked: Request, run: Request) -> str | None:
    """The first option or input in which two requests' losses differ; `None` if they do not."""
    for name in OBJECTIVE_FIELDS:
        if asked.config[name] != run.config[name]:
            return flag_of(name)
    roles = ("model.py", "loss.py", "data.py", "data.npz", *ARGUMENTS, *sorted(FILE_NAMES))
    names = [name for name in {**asked.inputs, **run.inputs} if role_of(name) in roles]
    for name in sorted(names, key=lambda name: (roles.index(role_of(name)), name)):
        if asked.inputs.get(name) != run.inputs.get(name):
            return name
    return None


def not_given(named: Mapping[str, str], given: Mapping[str, object]) -> dict[str, str]:
    """Digests of the files that a run's arguments name, but of those that are said anew.

    Args:
        named: The recorded SHA-256 by name, such as `model_arg/weights`.
        given: Arguments that the command line says itself.
    """
    return {name: digest for name, digest in named.items() if name.split("/")[1] not in given}


def refuse_other(
    inputs: Mapping[str, InputRef],
    files: Mapping[str, Path],
    wanted: Mapping[str, str],
    recorded: str,
    hint: str,
) -> None:
    """Refuse inputs that are not what was recorded.

    Args:
        inputs: As for `differing`.
        files: Where they are.
        wanted: As for `differing`.
        recorded: What they are to be, in words; `{name}` stands for an input's name.
        hint: What to do.

    Raises:
        InputError: naming the first that is another one, or is imported by one of both alone.
    """
    for name in differing(inputs, wanted):
        if name not in inputs:
            gone = f"{name} is in the record, and is no input any more"
            if role_of(name) in ARGUMENTS:
                gone += ": its path counts from the current directory, and no file is there"
            raise InputError(gone, hint=hint)
        place = os.path.normpath(files[name])
        if name not in wanted:
            raise InputError(f"{place} is imported, and is not in the record", hint=hint)
        raise InputError(f"{place} is not {recorded.format(name=name)}", hint=hint)


def refuse_changed(inputs: Mapping[str, InputRef], files: Mapping[str, Path]) -> None:
    """Refuse inputs that are no longer what was planned with: what was read may be another's.

    Args:
        inputs: As planned.
        files: Where they are.

    Raises:
        InputError: naming the first that was written to meanwhile, or is gone.
    """
    for name, ref in inputs.items():
        if sha256_file(files[name]) != ref.sha256:
            raise InputError(
                f"{os.path.normpath(files[name])} changed while it was read",
                hint="run the same again when nothing writes to it",
            )
