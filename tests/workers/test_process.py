"""Which process somebody was."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace

import psutil
import pytest

from workers import process
from workers.process import ProcessId, boot_id, start_ticks


def test_a_process_is_itself_whatever_becomes_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    me = ProcessId.read(asdict(ProcessId.here()))
    moved = psutil.boot_time() + 3600
    monkeypatch.setattr("psutil.boot_time", lambda: moved)
    monkeypatch.setattr("time.time", lambda: moved)
    assert me == ProcessId.here()
    assert me.may_run(of_this_machine=True)
    assert me.may_run(of_this_machine=False)


@pytest.mark.parametrize(
    ("changed", "here", "shared"),
    [
        ({"ticks": 1}, False, False),
        ({"boot": "another"}, False, True),
        ({"host": "elsewhere"}, True, True),
        ({"host": "elsewhere", "boot": "another"}, True, True),
    ],
)
def test_another_start_is_another_process_and_another_boot_one_only_on_this_machine(
    changed: dict[str, object], here: bool, shared: bool
) -> None:
    other = replace(ProcessId.here(), **changed)  # type: ignore[arg-type]
    assert (other.may_run(of_this_machine=True), other.may_run(of_this_machine=False)) == (
        here,
        shared,
    )


def test_a_process_that_has_ended_does_not_run_though_its_parent_has_not_asked() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(child.pid) is None
    child.wait()
    assert start_ticks(child.pid) is None


def test_without_proc_whoever_has_the_id_counts(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(process, "PROC", tmp_path)
    assert (start_ticks(os.getpid()), boot_id()) == (0, "")
    assert ProcessId.here().may_run(of_this_machine=True)


@pytest.mark.parametrize(
    "text", [None, [], 5, {"host": "x"}, {**asdict(ProcessId.here()), "pid": "x"}]
)
def test_what_is_no_process_is_an_error_that_readers_know(text: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        ProcessId.read(text)
