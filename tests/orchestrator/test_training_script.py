"""`benchmarks/training_layouts.py` asks for what the command line knows, and leaves out what is
refused."""

from __future__ import annotations

import sys
import time

import pytest
import training_layouts as script

from orchestrator.cli import main as cli


def asked(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[tuple[str, ...]]:
    monkeypatch.setattr(sys, "argv", ["training_layouts.py", *words])
    return list(script.commands(script.parse()))


def test_every_call_is_one_that_the_command_line_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch)
    for name, *rest in calls:
        cli.commands[name].make_context(name, rest)
    layouts = {call[call.index("--strategy") + 1] for call in calls}
    assert layouts == {"fsdp2", "tp2", "pp2", "dp2", "dp2zero1", "dp2zero2", "dp2zero3"}
    assert {name for name, *_ in asked(monkeypatch, "--parts", "techniques")} == {"ablate"}


@pytest.mark.parametrize(("status", "goes_on"), [(0, True), (2, True), (1, False), (70, False)])
def test_a_layout_that_is_refused_is_left_out_and_other_failures_end_it(
    status: int, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("-c", f"raise SystemExit({status})")
    monkeypatch.setattr("all_layouts.ORCHESTRATOR", (sys.executable,))
    if goes_on:
        assert script.done(command, time.monotonic() + 60)
        return
    with pytest.raises(SystemExit, match=f"status {status}"):
        script.done(command, time.monotonic() + 60)


def test_after_the_time_the_rest_is_left() -> None:
    assert not script.done(("-c", "pass"), time.monotonic() - 1)
