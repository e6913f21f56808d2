"""How far a rank is with its run: plain values that an engine writes and another thread reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from workers.clock import Moment

IDLE, BUILDING, RUNNING, OBSERVING = range(4)


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


@dataclass(slots=True)
class Progress:
    """The progress of one rank. An engine calls `begin` where the clock of its run starts, and
    `step` once a step. Nothing else is added to a run.

    state: one of the four above. pages: KV pages there are, 0 without a paged cache. reports: this
    rank reports the requests of its replica, so summing over the ranks that do counts each token
    once. ends: of the run's steps so far, led by the moment at which it began; a new list for every
    run, so that a reader sees where one begins.
    """

    state: int = IDLE
    pages: int = 0
    reports: bool = False
    ends: list[StepEnd] = field(default_factory=list)

    def begin(self, at: Moment, pages: int = 0, reports: bool = True) -> None:
        """Enter the start of a run, at the moment `at`."""
        self.pages, self.reports = pages, reports
        self.ends = [StepEnd(at, "", 0, 0, 0, 0)]

    def step(
        self, at: Moment, phase: str, tokens: int, running: int, waiting: int, pages: int = 0
    ) -> None:
        """Enter a step that was launched and is over at the moment `at`; see `StepEnd`."""
        self.ends.append(StepEnd(at, phase, tokens, running, waiting, pages))

    def end(self) -> None:
        """Drop the steps. Call it when the run is over and all of them have been read."""
        self.ends = []
