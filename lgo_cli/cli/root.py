"""The `lgo` command: its sub-commands and the one boundary where errors become exit codes."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from lgo_cli import __version__
from lgo_cli.cli import MODULES
from lgo_cli.config import CONFIGS
from lgo_cli.errors import ExitCode, LgoError, is_out_of_memory, no_room

_NO_TEXT = "[\ud800-\udfff]"
"""What Python has in a string in place of bytes that it could not decode."""


class ErrorBoundary(TyperGroup):
    """Prints what a user can mend as one error and one hint; a bug keeps its traceback."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        described: list[Any] = [each for c in self.commands.values() for each in (c, *c.params)]
        for each in described:
            if each.help:
                # Rich's markup, which help goes through, reads `[train]` as a style. Typer keeps
                # the lines of all paragraphs but the first.
                paragraphs = inspect.cleandoc(each.help).split("\n\n")
                text = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
                each.help = text.replace("[", "\\[")

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which one uses them, not of the alphabet."""
        del ctx
        return sorted(self.commands, key=list(MODULES).index)

    def make_context(self, info_name: Any, args: list[str], *more: Any, **extra: Any) -> Any:
        """Parse the options before the sub-command.

        Nothing that lgo takes is empty, and an empty path would be the current directory.
        """
        if any(re.fullmatch(r"(--[\w-]+=)?\s*", argument) for argument in args):
            hint = "say what is meant, or leave it out; a shell variable may not be set"
            _fail(f"an argument is empty: {shlex.join(['lgo', *args])}", hint, ExitCode.USAGE)
        # A manifest is JSON and records the command line: it has no place for such bytes.
        if args[:1] and args[0] in (*CONFIGS, "run") and re.search(_NO_TEXT, "".join(args)):
            message = f"an argument is not {sys.getfilesystemencoding()} text"
            _fail(f"{message}: {shlex.join(['lgo', *args])}", "use another name", ExitCode.USAGE)
        try:
            return super().make_context(info_name, args, *more, **extra)
        except typer.TyperException as error:
            _fail_usage(error, "lgo")
        except OSError as error:  # of `--help`, `--version` and `--install-completion`
            if error.filename is not None:
                from lgo_cli.files import write_error

                refused = write_error(Path(error.filename), error)
                hint = "lgo --show-completion prints what the shell is to read"
                _fail(refused.message, hint, refused.exit_code)
            _fail_disk(error)

    def invoke(self, ctx: Any) -> Any:
        """Run the sub-command."""
        try:
            return super().invoke(ctx)
        except LgoError as error:
            # The command's help says nothing of files, numbers or the machine.
            is_usage = error.exit_code is ExitCode.USAGE
            hint = error.hint or (f"{_command(ctx)} --help" if is_usage else None)
            _fail(error.message, hint, error.exit_code)
        except typer.TyperException as error:
            _fail_usage(error, _command(ctx))
        except KeyboardInterrupt:
            hint = "nothing is half-written; run the same again"
            if ctx.invoked_subcommand in ("train", "run"):
                hint += ", with --resume to go on from the last saved epoch"
            _fail("interrupted", hint, ExitCode.INTERRUPTED)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            _fail_memory(self.get_command(ctx, ctx.invoked_subcommand))
        except OSError as error:
            _fail_disk(error)


_COMMAND = re.compile(r"\b(lgo|python) ")
"""What a hint that is a command, or has one in it, is known by."""

_LESS_MEMORY = (
    "--micro-batch-size", "--batch-size", "--analysis-samples", "--memory", "--max-basis",
)  # fmt: skip
"""Options of which a lower number takes less."""


def _fail_memory(command: Any) -> None:
    """Say which of the command's own options make it take less."""
    flags = [flag for parameter in command.params for flag in parameter.opts]
    lower = [flag for flag in _LESS_MEMORY if flag in flags]
    hint = f"lower {' or '.join(lower)}" if lower else "close other programs"
    hint += ", or --basis-device disk" if "--basis-device" in flags else ""
    _fail("out of memory", hint, ExitCode.MACHINE)


def _fail_disk(error: OSError) -> None:
    refused = no_room(error, "on the disk")
    if refused is None:
        raise error
    _fail(refused.message, refused.hint, refused.exit_code)


def _fail(message: str, hint: str | None, code: int) -> None:
    lines = [f"lgo: error: {message}"] + ([f"hint: {hint}"] if hint else [])
    if sys.stderr.isatty():
        from lgo_cli.cli.talk import fitted, open_console

        # A command stays one line: of two, half a command would be run when they are pasted.
        console = open_console()
        lines = [
            line if line.startswith("hint: ") and _COMMAND.search(line) else fitted(line, console)
            for line in lines
        ]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    raise typer.Exit(int(code))


def _command(ctx: Any) -> str:
    """What asks for help: the sub-command, or `lgo` where there is none of that name."""
    return f"lgo {ctx.invoked_subcommand or ''}".rstrip()


def _fail_usage(error: typer.TyperException, command: str) -> None:
    """Say what is wrong with the command line, in the same two lines as every other error."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if not message or type(error).__name__ == "NoArgsIsHelpError":
        raise error
    message = message[:1].lower() + message[1:].rstrip(".")
    message = re.sub(r"\.?\s*\n\s*", " ", message)  # Typer lists choices one a line
    message = message.replace(": Value error, ", ": ")  # pydantic's words, by way of Typer
    message = message.replace(": Input should", ": input should")
    if isinstance(error.__cause__, ValidationError):
        got = error.__cause__.errors()[0]["input"]
        message = re.sub(r", unable to parse .*", lambda _: f", got {got!r}", message)
    hint = f"{command} --help"
    if command == "lgo interp" and "unexpected extra argument" in message:
        hint = "the other end is named by --to: lgo interp RUN --to OTHER"
    _fail(message, hint, ExitCode.USAGE)


app = typer.Typer(
    name="lgo",
    cls=ErrorBoundary,
    help="Loss-landscape geometry of neural networks: each number with its evidence.",
    epilog="Start with: lgo train, then lgo contour.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from lgo_cli.cli.output import write

        write(f"lgo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    del version
