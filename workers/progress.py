"""How far a rank is with its run: plain values that an engine writes and another thread reads. And
names for stretches of the host's time, for Nsight Systems to show."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from workers.clock import Moment

IDLE, BUILDING, RUNNING, OBSERVING = range(4)
STANDING_BYTES = 128  # two numbers of 8, and the name of a collective


class StepEnd(NamedTuple):
    """The end of a step.

    at: the step is over once this moment has passed (`workers.clock.passed`). tokens: output tokens
    that it makes. running, waiting: requests that have a seat and requests that have none yet.
    pages: KV pages taken.
    """

    at: Moment
    phase: str
    tokens: int
    running: int
    waiting: int
    pages: int


class Stand(NamedTuple):
    """Where a rank stands: whether it is in a collective, how many steps of a run it has launched,
    and in which collective it is, "" where that is not known."""

    waits: bool
    steps: int
    collective: str = ""


class Standing:
    """Where this rank stands, in memory that another process of the node can read even while this
    one hangs: `stand_of`. No file is left of it. fd: its descriptor."""

    __slots__ = ("_bytes", "_numbers", "fd")

    def __init__(self) -> None:
        self.fd = os.memfd_create("standing")
        os.ftruncate(self.fd, STANDING_BYTES)
        self._bytes = mmap.mmap(self.fd, STANDING_BYTES)
        self._numbers = memoryview(self._bytes)[:16].cast("q")

    def waits(self, in_collective: bool, name: str = "") -> None:
        """Enter or leave a collective. name: as messages name it."""
        if name:
            size = STANDING_BYTES - 16
            self._bytes[16:] = name.encode()[:size].ljust(size, b"\0")
        elif in_collective:
            self._bytes[16] = 0  # the name of another one ends where it began
        self._numbers[0] = in_collective

    def steps(self, launched: int) -> None:
        """Tell how many steps of the run were launched."""
        self._numbers[1] = launched

    @property
    def launched(self) -> int:
        """How many steps of the run were launched."""
        return self._numbers[1]


class NoStanding:
    """Of a rank that nobody asks."""

    fd = -1
    launched = 0

    def waits(self, in_collective: bool, name: str = "") -> None:
        """Told to nobody."""

    def steps(self, launched: int) -> None:
        """Told to nobody."""


def standing_here() -> Standing | NoStanding:
    """Memory to be read by others, where the system has such (Linux)."""
    return Standing() if hasattr(os, "memfd_create") else NoStanding()


def stand_of(pid: int, fd: int) -> Stand | None:
    """Where the process `pid` of this machine stands, whose `Standing` has that descriptor; None
    where that cannot be read."""
    try:
        with open(f"/proc/{pid}/fd/{fd}", "rb") as file:
            content = file.read(STANDING_BYTES)
        waits, steps = memoryview(content)[:16].cast("q")
    except (OSError, TypeError, ValueError):
        return None
    name = content[16:].partition(b"\0")[0].decode(errors="replace")
    return Stand(bool(waits), steps, name if waits else "")


@dataclass(slots=True)
class Progress:
    """The progress of one rank. An engine calls `begin` where the clock of its run starts, and
    `step` once a step. Nothing else is added to a run.

    state: one of the four above. pages: KV pages there are, 0 without a paged cache. reports: this
    rank reports the requests of its replica, so summing over the ranks that do counts each token
    once. standing: what the driver reads where this rank does not answer.
    ends: of the run's steps so far, led by the moment at which it began; a new list for every
    run, so that a reader sees where one begins.
    """

    state: int = IDLE
    pages: int = 0
    reports: bool = False
    ends: list[StepEnd] = field(default_factory=list)
    standing: Standing | NoStanding = field(default_factory=NoStanding)

    @contextmanager
    def waiting(self, name: str = "") -> Iterator[None]:
        """Inside, this rank waits for others; name: in which collective."""
        self.standing.waits(True, name)
        try:
            yield
        finally:
            self.standing.waits(False)

    def begin(self, at: Moment, pages: int = 0, reports: bool = True) -> None:
        """Enter the start of a run, at the moment `at`."""
        self.pages, self.reports = pages, reports
        self.ends = [StepEnd(at, "", 0, 0, 0, 0)]
        self.standing.steps(0)

    def step(
        self, at: Moment, phase: str, tokens: int, running: int, waiting: int, pages: int = 0
    ) -> None:
        """Enter a step that was launched and is over at the moment `at`; see `StepEnd`."""
        self.ends.append(StepEnd(at, phase, tokens, running, waiting, pages))
        self.standing.steps(len(self.ends) - 1)

    def end(self) -> None:
        """Drop the steps. Call it when the run is over and all of them have been read."""
        self.ends = []


class Ranges(Protocol):
    """Marks what a rank is doing by named ranges, which nest."""

    def span(self, name: str, *values: object) -> AbstractContextManager[None]:
        """A range around the block, called `name`: a pattern for `str.format`, filled in with
        `values` only where Nsight Systems watches."""
        ...


class NoRanges:
    """For a run that Nsight Systems does not watch: does nothing."""

    def __init__(self) -> None:
        self._nothing = nullcontext()

    def span(self, name: str, *values: object) -> AbstractContextManager[None]:
        """No range."""
        return self._nothing


class PushedRanges:
    """Opens a range by one function and closes it by another."""

    def __init__(self, push: Callable[[str], object], pop: Callable[[], object]) -> None:
        self._push, self._pop = push, pop

    @contextmanager
    def span(self, name: str, *values: object) -> Iterator[None]:
        """A range, closed also where the block raises."""
        self._push(name.format(*values))
        try:
            yield
        finally:
            self._pop()


def ranges_for(watched: bool) -> Ranges:
    """NVTX ranges where Nsight Systems watches; none otherwise, and none where torch was built
    without CUDA and NVTX."""
    import torch

    if not (watched and torch.backends.cuda.is_built()):  # type: ignore[no-untyped-call]
        return NoRanges()
    return PushedRanges(torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop)
