"""The device's own clock: it records when work was done without making the host wait.

On a GPU a moment is an event recorded in the current stream, as the host runs ahead of the device.
On a CPU it is a reading of `time.perf_counter`. The two are never mixed within a run. The module
imports without torch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Event(Protocol):
    """The methods of `torch.cuda.Event` that are used."""

    def query(self) -> bool:
        """Whether the device has passed it."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has passed it."""
        ...

    def elapsed_time(self, end_event: Any, /) -> float:
        """Milliseconds from here to `end_event`."""
        ...


Moment = Event | float  # a float: seconds of `time.perf_counter`


def moment(device: torch.device) -> Moment:
    """This moment: on a GPU it comes when the work launched so far in the stream is done."""
    if device.type != "cuda":
        return time.perf_counter()
    import torch

    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def passed(moment: Moment) -> bool:
    """Whether a moment lies in the past; asking makes neither the host nor the GPU wait."""
    return isinstance(moment, float) or moment.query()


def wait(moment: Moment) -> None:
    """Have the host wait until the moment has passed. On a CPU it always has."""
    if not isinstance(moment, float):
        moment.synchronize()


def elapsed_ms(start: Moment, end: Moment) -> float:
    """Milliseconds between two moments of one kind. Raises RuntimeError where one has yet to come,
    and TypeError where one is of a CPU and the other of a GPU."""
    if isinstance(start, float) and isinstance(end, float):
        return 1e3 * (end - start)
    if isinstance(start, float) or isinstance(end, float):
        raise TypeError("one moment is of a CPU, the other of a GPU")
    return start.elapsed_time(end)


class Clock:
    """Times of one run, from when the clock is made. Make it where the device is idle.

    start: the moment at which its times are zero. began_s: the same in seconds of
    `time.perf_counter`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.start = self.mark()
        self.began_s = time.perf_counter()

    def mark(self) -> Moment:
        """This moment, see `moment`."""
        return moment(self._device)

    def seconds(self, mark: Moment) -> float:
        """Seconds from the start to `mark`, which must have passed (`wait`)."""
        return elapsed_ms(self.start, mark) / 1e3

    def now(self) -> float:
        """Seconds from the start to now, on the host."""
        return time.perf_counter() - self.began_s

    def keep_up(self, marks: Sequence[Moment], ahead: int) -> None:
        """Wait until the device has passed all but the newest `ahead` - 1 of `marks`, so that with
        the step that is launched next the host is at most `ahead` steps ahead."""
        if len(marks) >= ahead:
            wait(marks[-ahead])
