"""Strike a driver in a phase, see what it leaves, and give the same command again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from cases import FOLDERS_GO, HUP, TERM, Case
from fake_engine import PAUSES
from kept import kept
from process_lists import below
from variables import without_ray
from victim import FULL

from orchestrator.cluster import guard
from orchestrator.cluster.session import PREFIX

HERE = Path(__file__).parent
INTO_S = 0.3  # from the beginning of a phase to the strike
LONGEST_S = 90.0
NAMES = {"gcs": "gcs_server", "raylet": "raylet", "actor": "ray::"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """status: of the driver. gone_s: from the strike to the end of the driver and all its
    processes, for a strike that ends it. lost: what `Kept.lost` counts, of the
    `compared` parts, lines and fields. left: processes and
    session folders. resumed: the same command finished what was missing. said: its
    last line on stderr or its note. traceback: one was printed."""

    event: str
    phase: str
    status: int
    gone_s: float
    lost: int
    left: int
    resumed: bool
    said: str
    traceback: bool
    compared: int

    def faults(self, case: Case) -> list[str]:
        """What is not as it has to be."""
        found = {
            f"status {self.status}, not {case.status}": self.status != case.status,
            f"gone after {self.gone_s:.1f} s": case.status and self.gone_s > case.within_s,
            f"{self.lost} finished files lost": self.lost,
            f"{self.left} processes or folders left": self.left,
            "the same command did not finish": not self.resumed,
            "a traceback": self.traceback,
            f"said: {self.said}": case.event.removeprefix("joined ") in NAMES
            and case.event != "actor"
            and "died" not in self.said,
        }
        return [fault for fault, is_so in found.items() if is_so]

    def as_data(self) -> dict[str, object]:
        return dataclasses.asdict(self)


def strike(case: Case, site: str, folder: Path) -> Outcome:
    """Do what `case` says, in an empty `folder`."""
    results, sessions = folder / "results", folder / "s"
    sessions.mkdir()
    environment = _environment(sessions, full=case.event == "full disk")
    with _head(case, site, folder / "h") as (address, servers):
        driver = _start(site, results, environment, case.phase, address)
        said = _wait_for(driver, case.phase)
        before = kept(results)
        other = _strike(case, driver, servers, (site, results, environment, case.phase))
        struck = time.monotonic()
        rest, errors = _ended(driver)
        left = _left(sessions, driver.pid, case)
        gone_s = time.monotonic() - struck
    lost = len(before.lost(kept(results)))
    resumed = _resumes(site, results, _environment(sessions), case.phase)
    text = [*said, *rest.splitlines(), *errors.splitlines(), *other]
    return Outcome(
        case.event,
        case.phase,
        driver.returncode,
        round(gone_s, 2),
        lost,
        len(left),
        resumed,
        next((line for line in text if "died" in line or "error" in line or "Stopped" in line), ""),
        any("Traceback" in line for line in text),
        before.count,
    )


def _environment(sessions: Path, full: bool = False) -> dict[str, str]:
    return {**without_ray(), "RAY_TMPDIR": str(sessions), **({FULL: "1"} if full else {})}


def _start(
    site: str, results: Path, environment: dict[str, str], phase: str, address: str | None = None
) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "victim.py"), site, str(results), phase]
    return subprocess.Popen(
        [*command, *([address] if address else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def _wait_for(driver: subprocess.Popen[str], phase: str) -> list[str]:
    """The lines up to the beginning of `phase`."""
    assert driver.stdout is not None
    lines = []
    for line in driver.stdout:
        lines.append(line.rstrip())
        if lines[-1] == f"phase {phase}":
            break
    time.sleep(INTO_S)
    return lines


def _strike(
    case: Case,
    driver: subprocess.Popen[str],
    servers: dict[str, psutil.Process],
    again: tuple[str, Path, dict[str, str], str],
) -> list[str]:
    """What another driver said, if the strike is one."""
    if case.event in (TERM, HUP):
        driver.send_signal(signal.Signals[case.event])
    elif case.event == "driver":
        driver.kill()
    elif case.event in NAMES:
        _child(driver.pid, NAMES[case.event]).kill()
    elif case.event.startswith("joined "):
        servers[case.event.removeprefix("joined ")].kill()
    elif case.event == "second driver":
        second = _start(*again)
        said, errors = second.communicate(timeout=LONGEST_S)
        assert second.returncode == 2, said
        assert "is writing here" in errors, errors
        return errors.splitlines()
    return []


def _child(parent: int, name: str) -> psutil.Process:
    """A process of that name below `parent`; it may be about to start. Of actors, the busy one."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        for child, its, words in below(parent):
            title = " ".join(words) or its
            is_it = title.startswith("ray::") and "Worker" in title
            if is_it if name == "ray::" else its == name:
                return child
        time.sleep(0.05)
    raise TimeoutError(f"no {name} below {parent}")


def _ended(driver: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return driver.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        driver.kill()
        return driver.communicate()


def _left(sessions: Path, driver: int, case: Case) -> list[str]:
    """Processes of any session below `sessions`, after they have had the time they may have; and
    session folders, but for those kept after a failure or left by a driver that was killed."""
    deadline = time.monotonic() + case.within_s
    while True:
        running = [str(pid) for one in sessions.iterdir() for pid in guard.marked(str(one))]
        if not running or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    folders = [
        str(one) for one in sessions.glob(f"{PREFIX}*") if case.event in FOLDERS_GO and one.is_dir()
    ]
    return running + folders


def _resumes(site: str, results: Path, environment: dict[str, str], phase: str) -> bool:
    """Whether the same command ends well, with both runs completed. Nothing strikes it, so that it
    needs no pauses."""
    driver = _start(site, results, {**environment, PAUSES: "0"}, phase)
    _ended(driver)
    runs = list(results.rglob("summary/*.arrow"))
    failed = list(results.rglob("failures/*.r0.txt"))
    return driver.returncode == 0 and len(runs) == 2 and not failed


@contextlib.contextmanager
def _head(
    case: Case, site: str, sessions: Path
) -> Iterator[tuple[str | None, dict[str, psutil.Process]]]:
    """A cluster to be joined, and its servers, where the case asks for one."""
    if not case.event.startswith("joined "):
        yield None, {}
        return
    sessions.mkdir()
    environment = _environment(sessions)
    path = os.pathsep.join([site, *filter(None, sys.path)])  # workers of a head get it from there
    head = subprocess.Popen(
        [sys.executable, str(HERE / "head.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": path},
    )
    assert head.stdout is not None
    try:
        address = head.stdout.readline().strip()
        yield address, {name: _child(head.pid, NAMES[name]) for name in ("gcs", "raylet")}
    finally:
        head.kill()
        head.wait()
