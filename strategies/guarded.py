"""Calls into code of others. A plug-in may raise anything, end the process, hang or print; none of
that may take the command with it, or stand in its output."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

LIMIT_S = 60.0  # an engine may import torch and more from a slow disk


class Ended(Exception):
    """A plug-in that would have ended the process, or that did not come to an end."""


def guarded(call: Callable[[], T], limit_s: float | None = None) -> T:
    """What `call` returns; what it prints to stdout goes to stderr.

    limit_s: seconds after which nobody waits for it any more; its thread is left behind. None: it
    is called in this thread, however long it takes. Raises Ended where it calls `sys.exit` or takes
    longer, else the exception that it raises.
    """
    with _stdout_to_stderr():
        try:
            return call() if limit_s is None else _within(limit_s, call)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit, GeneratorExit: they pass every other net
            raise Ended(f"it raised {type(error).__name__}: {error}") from error


def _within(limit_s: float, call: Callable[[], T]) -> T:
    """Raises what `call` raises, and Ended after `limit_s` seconds. An alarm could end the call
    too, but it is for one user, and only in the main thread."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # also SystemExit, which would end this thread in silence
            errors.append(error)

    thread = threading.Thread(target=run, name="plug-in", daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise Ended(f"it was not done after {limit_s:g} s")
    return results[0]


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Also of what is written to the file descriptor, by C or by another process."""
    with contextlib.ExitStack() as undo:
        with contextlib.suppress(OSError, ValueError):  # one of them is closed
            sys.stdout.flush()
            held = os.dup(1)
            undo.callback(os.close, held)
            undo.callback(os.dup2, held, 1)
            os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
