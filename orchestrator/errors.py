"""How a command ends early: what a user is shown as a line, without a traceback, and signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from strategies.errors import Refused

__all__ = ["STOPPING", "ClusterLost", "Refused", "Stop", "UserError"]

AT_ONCE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WARNING = signal.SIGUSR1  # Slurm's, before it takes the node
STOPPING = (*AT_ONCE, WARNING, signal.SIGALRM)
NOTICE_S = 10.0  # for the run in flight, after a warning


class UserError(Refused):
    """Input that cannot be served."""


class ClusterLost(UserError):
    """A part of Ray that nothing works without has died."""


class Stop:
    """Inside, every signal that stops a command raises KeyboardInterrupt, as Ctrl-C does: SIGTERM
    and SIGHUP at once, SIGUSR1 after `NOTICE_S` seconds. A signal that is ignored stays so, as
    SIGHUP is under nohup.

    Ray turns whatever a handler raises into a plain KeyboardInterrupt, so what came is kept here.
    """

    def __init__(self) -> None:
        self._came: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """The exit status of a process that the signal ended."""
        return 128 + (self._came or signal.SIGINT)

    @property
    def is_near(self) -> bool:
        """Whether a signal has come: nothing is to be begun any more."""
        return self._came is not None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in AT_ONCE:
                self._handle(number, self._at_once)
            self._handle(WARNING, self._soon)
            self._handle(signal.SIGALRM, self._at_once)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before:  # the timer is ours
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        before = signal.getsignal(number)
        if before is not signal.SIG_IGN:
            self._before[number] = before
            signal.signal(number, handler)

    def _at_once(self, number: int, frame: FrameType | None) -> None:
        self._came = self._came or number
        signal.setitimer(signal.ITIMER_REAL, 0)  # nothing else interrupts the cleaning up
        raise KeyboardInterrupt

    def _soon(self, number: int, frame: FrameType | None) -> None:
        if self._came is None:
            self._came = number
            signal.setitimer(signal.ITIMER_REAL, NOTICE_S)
