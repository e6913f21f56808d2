"""A worker that the kernel ended for lack of main memory is told from one that crashed."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster import main_memory as subject
from orchestrator.cluster.failures import UNKNOWN_END, RunFailed
from orchestrator.cluster.hardware import host

DIED = RunFailed(f"the worker of rank 1 died ({UNKNOWN_END})", "all of it")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a kernel that has ended two processes, and of a machine that has room."""
    monkeypatch.setattr(subject, "VMSTAT", tmp_path / "vmstat")
    monkeypatch.setattr(subject, "GROUP", tmp_path)
    (tmp_path / "vmstat").write_text("oom_kill 2\nswpin 9\n")
    use(monkeypatch, 0.5)
    return tmp_path


def use(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(subject, "used_memory", lambda: int(share * host().memory_bytes))


def watched() -> subject.MemoryWatch:
    watch = subject.MemoryWatch()
    watch.look()
    return watch


def test_a_worker_that_died_beside_free_memory_may_have_crashed(system: Path) -> None:
    assert DIED.ended_by(watched().lack) is DIED


def test_the_kernel_counts_those_that_it_ends(system: Path) -> None:
    watch = watched()
    (system / "vmstat").write_text("oom_kill 3\nswpin 9\n")
    found = DIED.ended_by(watch.lack)
    assert found.reason.startswith("the worker of rank 1 died (main memory ran out: ")
    assert found.detail == "all of it"


def test_memory_that_was_full_is_said_where_the_kernel_counts_nothing(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, 0.98)
    watch = watched()
    use(monkeypatch, 0.1)  # what died has given its memory back
    watch.look()
    assert "main memory ran out: " in DIED.ended_by(watch.lack).reason


def test_other_failures_stay_as_they_are(system: Path) -> None:
    watch, other = watched(), RunFailed("rank 0: ValueError: no")
    (system / "vmstat").write_text("oom_kill 3\n")
    assert other.ended_by(watch.lack) is other


def test_a_control_group_limits_memory_and_counts_too(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(subject, "VMSTAT", system / "none")
    monkeypatch.setattr(subject, "GROUP", system)
    (system / "memory.max").write_text("3000000000\n")
    (system / "memory.current").write_text("2999000000\n")
    assert subject.main_memory() == 3 * 10**9
    watch = watched()
    assert DIED.ended_by(watch.lack) is DIED  # files that were read are in it too
    (system / "memory.events").write_text("oom 1\noom_kill 1\n")
    assert "main memory ran out: 3.0 GB of 3.0 GB" in DIED.ended_by(watch.lack).reason
    (system / "memory.max").write_text("max\n")
    assert subject.main_memory() == host().memory_bytes
