"""How far a command is, in a file beside its results, for whoever watches it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.store.arrow_files import replace_file
from workers.process import ProcessId

LIVE = "live.json"
MOST_RATES = 24  # of a layout, kept for its spark line
RENEW_S = 10.0  # a driver shows that it lives so often
SILENT_S = 6 * RENEW_S  # after which it counts as gone: a shared folder shows what is new late
CLOCKS_S = 600.0  # the same by clocks, which another host may have set otherwise


@dataclass(frozen=True, slots=True)
class LiveLayout:
    """A deployment of this command.

    deployment: its name. layout: as people say it, "tp4 vllm". runs: that it is to make. done: that
    have ended. failed: of these. cell, phase: what it does; empty while it waits. rates: tokens per
    second of its completed runs, the newest last.
    """

    deployment: str
    layout: str
    runs: int
    done: int = 0
    failed: int = 0
    cell: str = ""
    phase: str = ""
    rates: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Live:
    """A command that makes runs.

    folder: of its results. process: its driver. began_at, first_at, ended_at: seconds since 1970
    when the command began, when its first phase did, and when its newest run ended; None where it
    has not come to that. skipped: runs that had a result. expected_s: how long its runs should
    take, without builds; None where nobody knows. has_ended: whether the driver said so. is_silent:
    whether that of another host has not shown for long that it lives. shown_at: when it last did;
    None before it is read.
    """

    folder: str
    process: ProcessId
    began_at: float
    layouts: tuple[LiveLayout, ...]
    skipped: int = 0
    expected_s: float | None = None
    first_at: float | None = None
    ended_at: float | None = None
    has_ended: bool = False
    is_silent: bool = False
    shown_at: float | None = None

    @property
    def runs(self) -> int:
        """That are to be made: starts may be added until the means agree."""
        return sum(max(one.runs, one.done) for one in self.layouts)

    @property
    def done(self) -> int:
        """That have ended."""
        return sum(one.done for one in self.layouts)

    @property
    def works(self) -> bool:
        """Whether its driver still does something, as far as this machine can tell."""
        over = self.has_ended or self.is_silent
        return not over and self.process.may_run(of_this_machine=False)

    def seconds_left(self, now: float) -> float | None:
        """At the pace so far, builds included, less what the run in flight has had of it; None
        before the first run has ended."""
        if self.first_at is None or not self.done or not self.works:
            return None
        ended_at = now if self.ended_at is None else self.ended_at
        longer = (now - self.first_at) / (self.done + 1)  # where the run in flight is a slow one
        pace = max((ended_at - self.first_at) / self.done, longer)
        return pace * (self.runs - self.done) - min(now - ended_at, pace)

    def entered(self, deployment: str, cell: str, phase: str, now: float) -> Live:
        """After a phase of a deployment began."""
        layouts = tuple(
            replace(one, cell=cell, phase=phase)
            if one.deployment == deployment
            else replace(one, cell="", phase="")
            for one in self.layouts
        )
        return replace(self, layouts=layouts, first_at=self.first_at or now)

    def finished(self) -> Live:
        """After the driver has ended: no layout is at work."""
        layouts = tuple(replace(one, cell="", phase="") for one in self.layouts)
        return replace(self, layouts=layouts, has_ended=True)

    def ended(self, deployment: str, rate: float | None, now: float) -> Live:
        """After a run of a deployment ended. rate: its tokens per second; None where it failed."""
        layouts = tuple(
            _after(one, rate) if one.deployment == deployment else one for one in self.layouts
        )
        return replace(self, layouts=layouts, ended_at=now)


def _after(one: LiveLayout, rate: float | None) -> LiveLayout:
    if rate is None:
        return replace(one, done=one.done + 1, failed=one.failed + 1)
    return replace(one, done=one.done + 1, rates=(*one.rates, rate)[-MOST_RATES:])


def beginning(
    folder: Path, layouts: Sequence[LiveLayout], skipped: int, expected_s: float | None
) -> Live:
    """A command of this process that is about to make runs."""
    there = str(folder.resolve())
    return Live(there, ProcessId.here(), time.time(), tuple(layouts), skipped, expected_s)


def write(live: Live) -> None:
    """Keep it beside the results. It takes nothing from them: what cannot be written is left."""
    folder = Path(live.folder)
    with contextlib.suppress(OSError):
        if folder.is_dir():
            text = json.dumps(asdict(live))
            replace_file(folder / LIVE, lambda path: path.write_text(text, encoding="utf-8"))


def read(folder: Path) -> Live | None:
    """What the last command on these results wrote; None where there is none that can be read."""
    try:
        with (folder / LIVE).open(encoding="utf-8") as file:
            found, shown_at = json.load(file), os.fstat(file.fileno()).st_mtime
        layouts = tuple(
            LiveLayout(**one | {"rates": tuple(one["rates"])}) for one in found["layouts"]
        )
        process = ProcessId.read(found["process"])
        told = {"layouts": layouts, "process": process, "folder": str(folder)}
        return Live(**found | told | _shown(process, shown_at))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _shown(process: ProcessId, shown_at: float) -> dict[str, object]:
    is_silent = not process.is_here and time.time() - shown_at > CLOCKS_S
    return {"shown_at": shown_at, "is_silent": is_silent}


class Pulse:
    """Shows that this driver lives while it has nothing to tell, by the time of its file: for who
    watches from another host, and sees no process."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder) / LIVE
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="pulse")
        self._thread.start()

    def end(self) -> None:
        """Show it no longer."""
        self._over.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._over.wait(RENEW_S):
            with contextlib.suppress(OSError):
                os.utime(self._file)


def newer(live: Live, wait_s: float) -> Iterator[Live]:
    """What a command tells, again and again, until it ends. One of another host whose driver shows
    nothing for SILENT_S is silent then: nobody can tell whether it still runs. wait_s: between two
    looks."""
    changed = time.monotonic()
    while live.works:
        time.sleep(wait_s)
        before, live = live, read(Path(live.folder)) or live
        if live.shown_at != before.shown_at:
            changed = time.monotonic()
        elif not live.process.is_here and time.monotonic() - changed > SILENT_S:
            live = replace(live, is_silent=True)
        yield live


def latest(roots: Iterable[Path]) -> Live:
    """Of the results at `roots`, or in them, the command that began last. Raises UserError where
    there is none."""
    asked = list(roots)
    # Those of a search of rates lie one level deeper.
    files = [
        file for root in asked for deep in ("", "*/", "*/*/") for file in root.glob(deep + LIVE)
    ]
    found = [live for file in files if (live := read(file.parent))]
    if not found:
        names = ", ".join(map(str, asked))
        raise UserError(
            f"no run has left word in {names}; give the folder of --result-dir, or of the results"
        )
    return max(found, key=lambda live: (live.works, live.began_at))
