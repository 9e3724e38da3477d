"""The command itself: what is common to all that it can do, errors and interruptions above all."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
import typing
from collections.abc import Sequence
from typing import Any

import click

from fedgs.errors import FedgsError, unknown_choice

__all__ = ["InterruptedByUserError", "cli", "main"]

_INTERRUPTED = 130
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|Cannot allocate memory|not enough memory")  # of torch
_LOOP = re.compile("Symlink loop from (.*)")  # of pathlib
_ADVICE = {
    errno.EACCES: "check its permissions",
    errno.EROFS: "choose another place",
    errno.EFBIG: "raise the limit on the size of files, and give the command again (train and predict: with --resume)",
    errno.ENOSPC: "make room, and give the command again (train and predict: with --resume)",
    errno.EDQUOT: "make room, and give the command again (train and predict: with --resume)",
}


class InterruptedByUserError(Exception):
    """Ctrl-C; holds the command that goes on, or nothing where it is the same again."""

    def __init__(self, *command: str) -> None:
        self.command = command


class _Commands(click.Group):
    """Commands whose mistakes list the choices."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command that is meant."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(str(unknown_choice("command", args[0], self.commands)), ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; Ctrl-C is kept from click, which would print a line of its own."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise InterruptedByUserError from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; errors of this package become one message, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        for argument in given:
            argument.encode()  # a name that is not UTF-8 could stand in no settings and on no page
        cli.main([argument for argument in given if argument != "--debug"], "fedgs", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        (_unknown_flag(error) if isinstance(error, click.NoSuchOption) else error).show()
        sys.exit(error.exit_code)
    except InterruptedByUserError as end:
        _say_how_to_go_on(end.command or ("fedgs", *given))
    except (KeyboardInterrupt, click.exceptions.Abort):
        _say_how_to_go_on(("fedgs", *given))
    except (FedgsError, OSError, MemoryError, RuntimeError, UnicodeEncodeError) as error:
        is_ours = not isinstance(error, RuntimeError) or _OUT_OF_MEMORY.search(str(error)) or _LOOP.match(str(error))
        if debug or not is_ours:
            raise
        click.echo(f"Error: {_in_words(error)}", err=True)
        sys.exit(1)


def _unknown_flag(error: click.NoSuchOption) -> click.UsageError:
    """Gives the error with all flags of the command; click alone names the nearest at most."""
    if error.ctx is None:
        return error
    known = [flag for option in error.ctx.command.get_params(error.ctx) for flag in option.opts if flag[:2] == "--"]
    kind = f"flag of '{error.ctx.command_path}'"
    return click.UsageError(str(unknown_choice(kind, error.option_name, [*known, "--debug"])), error.ctx)


def _say_how_to_go_on(command: Sequence[str]) -> typing.NoReturn:
    end = "\n" if sys.stderr.isatty() else ""  # behind the ^C of a terminal
    click.echo(f"{end}Interrupted; what is finished is kept. Go on with: {shlex.join(command)}", err=True)
    sys.stdout.flush()
    # Not sys.exit: an interrupt inside an import makes Python end by the signal whatever the code.
    os._exit(_INTERRUPTED)


def _in_words(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        name = ascii(error.object)[:200]
        return f"{name} cannot be written as {error.encoding}; rename it if it is not UTF-8, else set PYTHONUTF8=1"
    if loop := _LOOP.match(str(error)):
        return f"{loop[1]}: is a link that leads back to itself; give the folder itself"
    if isinstance(error, (MemoryError, RuntimeError)):
        return "there is not enough memory; choose a smaller --batch-size or --size, or close other programs"
    if isinstance(error, OSError) and error.strerror:
        parts = (error.filename, error.strerror)
        return "; ".join(filter(None, (": ".join(str(part) for part in parts if part), _ADVICE.get(error.errno or 0))))
    return str(error)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fedgs", message="%(prog)s %(version)s")
def cli() -> None:
    """Federated segmentation in which optimizer steps on small, hard lesions count more (FedGS).

    An error is one message; --debug, anywhere, shows its traceback as well.
    """
