"""What is done to a driver, when, and what has to come of it."""

from __future__ import annotations

from dataclasses import dataclass

PHASES = ("connecting", "building", "warm-up", "measuring", "observing", "writing")
TERM, HUP = "SIGTERM", "SIGHUP"
# After these no folder of a session may stay. After the others one is kept for its logs, or the
# next command removes it.
FOLDERS_GO = (TERM, HUP, "second driver")
STATUS = {TERM: 143, HUP: 129, "driver": -9}


@dataclass(frozen=True, slots=True)
class Case:
    """event: whom `kill -9` strikes ("driver", "actor", "raylet", "gcs"), a signal to the driver,
    or one of OTHERS. phase: of the second cell, but for connecting and building."""

    event: str
    phase: str

    @property
    def name(self) -> str:
        return f"{self.event} while {self.phase}"

    @property
    def status(self) -> int:
        """With which the driver has to end. A Ray that dies while it starts, or that was joined and
        cannot be started again, is an error of one line; of one that is ours, the sweep goes on."""
        if self.event in ("raylet", "gcs") and self.phase == "connecting":
            return 2
        return {**STATUS, "second driver": 0, "full disk": 2}.get(self.event, 0)

    @property
    def within_s(self) -> float:
        """By when nothing may run any more, where the event ends the driver."""
        return {TERM: 2.0, HUP: 2.0}.get(self.event, 15.0)


STRUCK = [
    Case(event, phase)
    for event in ("driver", "actor", "raylet", "gcs", TERM, HUP)
    for phase in PHASES
    if (event, phase) != ("actor", "connecting")  # there is none yet
]
OTHERS = [
    Case("second driver", "measuring"),
    Case("full disk", "writing"),
    Case("joined raylet", "measuring"),
    Case("joined gcs", "measuring"),
]
# One of each kind, for every change.
SHORT = [Case(TERM, "measuring"), Case("driver", "writing"), Case("gcs", "building")]
