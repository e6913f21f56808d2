"""Where a command ends that cannot be carried out: always in one line on stderr, and an exit
status."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import IO, Any

import click

from orchestrator.errors import Refused, Stop
from orchestrator.store.names import broken, shortened, width_of_stderr

BAD_INPUT = 2  # the exit statuses
SEVERAL_LEVELS, LEVEL = ("--goodput", "--slo"), r"[a-z0-9]+(:p[0-9.]+)?:[0-9.]+"
UNFORESEEN = 70  # EX_SOFTWARE of sysexits.h
NO_ROOM = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)


class BadInput(click.ClickException):
    """Shown as one line on stderr."""

    exit_code = BAD_INPUT

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it."""
        line = shortened(" ".join(self.format_message().split()))
        click.echo(broken(f"error: {line}", width_of_stderr()), file=file, err=True)


class Unforeseen(BadInput):
    """A mistake of this program, or of what it is built on: what was raised, in one line, and where
    its traceback is."""

    exit_code = UNFORESEEN

    def __init__(self, error: BaseException) -> None:
        what = shortened(" ".join(str(error).split()), 300)
        super().__init__(
            f"this should not have happened: {type(error).__name__}: {what} ({_kept(error)}); "
            "please report it"
        )


class OneLineErrors(click.Group):
    """A group whose commands answer bad input with one line instead of a traceback or a usage
    text."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Read the arguments and run the command. What nobody foresaw becomes one line too, and so
        does a stdout that takes no more."""
        try:
            return super().main(args, *more, **options)
        except Exception as error:  # the last place where anything can be said of it
            if not options.get("standalone_mode", True):
                raise
            answer = _of_output(error) or Unforeseen(error)
            answer.show()
            raise SystemExit(answer.exit_code) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the whole first sentence of each."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, one.get_short_help_str(200)) for name, one in commands if one]
            )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. A signal that stops it gives the process a status of its own."""
        stop = Stop()
        try:
            with stop:
                return super().invoke(ctx)
        except click.UsageError as error:
            raise BadInput(error.format_message()) from error
        except Refused as error:
            raise BadInput(str(error)) from error
        except OSError as error:
            raise _of_file(error) from error
        except KeyboardInterrupt:
            raise SystemExit(stop.status) from None


class TakesLevels(click.Command):
    """A command whose --goodput and --slo take several words, as in vLLM's benchmark: `--goodput
    ttft:2000 tpot:200`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the option before each level that follows another one."""
        words: list[str] = []
        for word in args:
            option = words[-2] if len(words) > 1 else ""
            continues = option in SEVERAL_LEVELS and re.fullmatch(LEVEL, word)
            words.extend([option, word] if continues else [word])
        return super().parse_args(ctx, words)


def _of_file(error: OSError) -> Exception:
    """The line for a file that the system refuses, as one whose name is too long; any other error
    of the system as it is."""
    if error.filename is None or error.errno == errno.EPIPE:
        return error
    return BadInput(f"{os.fsdecode(error.filename)}: {error.strerror}")


def _of_output(error: Exception) -> BadInput | None:
    """The line for output that cannot be written; None for another error. What is still held back
    goes nowhere: Python would try it again at its end, and complain."""
    if not isinstance(error, OSError) or error.filename or error.errno not in NO_ROOM:
        return None
    with contextlib.suppress(OSError):  # a stdout that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return BadInput(f"the output cannot be written: {error.strerror or error}")


def _kept(error: BaseException) -> str:
    """Write the traceback to a file of its own and say where."""
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="orchestrator-", suffix=".traceback.txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return f"traceback: {path}"
    return "its traceback could not be saved"
