"""What is told of a command that makes runs, while it does."""

from __future__ import annotations

import io
import os
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from live_inputs import DEPLOYMENT, live
from summaries import one_run

from orchestrator.cli import main
from orchestrator.cluster import hardware
from orchestrator.errors import UserError
from orchestrator.report.live import LiveView, beginning, spark, summary
from orchestrator.report.output import console_of
from orchestrator.report.progress import RunProgress
from orchestrator.store.live import CLOCKS_S, LIVE, LiveLayout, latest, newer, read, write
from workers.device import DevicesNow, devices_now
from workers.units import duration

OTHER = LiveLayout("m.pp4.torch.bfloat16", "pp4 torch", 3)
BUSY = DevicesNow(utilization_pct=97.0, power_w=2412.0, memory_bytes=71_200_000_000)


def drawn(shown: object, width: int = 100) -> str:
    console = console_of(file=io.StringIO(), width=width)
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_row_fills_and_only_that_of_the_layout_at_work_has_its_devices(tmp_path: Path) -> None:
    one = live(tmp_path, 4, 0, OTHER).entered(DEPLOYMENT, f"{DEPLOYMENT}.short.c8", "warming up", 9)
    one = one.ended(DEPLOYMENT, 50.0, 9).ended(DEPLOYMENT, 100.0, 9)
    one = one.ended(DEPLOYMENT, None, 9)
    first, second = drawn(LiveView(one, 10.0, BUSY)).splitlines()[4:6]
    for word in (
        "3/4",
        "100.0",
        "\u2585\u2588",
        "short.c8  warming up",
        "97%",
        "2412 W",
        "71.2 GB",
    ):
        assert word in first
    assert "0/3" in second
    assert "waits" in second
    assert "W" not in second
    assert "GPU" not in drawn(LiveView(one, 10.0, None))


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_figure_of_it_is_cut_in_a_narrow_terminal(tmp_path: Path, width: int) -> None:
    one = live(tmp_path, 40, 0, OTHER).entered(
        DEPLOYMENT, f"{DEPLOYMENT}.short.c100", "start 1/3", 9
    )
    for n in range(24):
        one = one.ended(DEPLOYMENT, 10_000.0 + n, 9)
    lines = drawn(LiveView(one, 10.0, BUSY), width).splitlines()
    assert "\u2026" not in " ".join(lines)
    assert max(len(line.rstrip()) for line in lines[1:]) <= width
    for word in ("24/40", "10023", "short.c100  start 1/3"):
        assert any(word in line for line in lines)


def test_of_more_layouts_than_lines_that_at_work_is_shown(tmp_path: Path) -> None:
    many = [LiveLayout(f"m.tp{n}.torch", f"tp{n} torch", 1) for n in range(2, 40)]
    one = live(tmp_path, 1, 0, *many).entered("m.tp30.torch", "", "building", 9)
    console = console_of(file=io.StringIO(), width=80, height=24)
    console.print(LiveView(one, 10.0, None))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert len(text.splitlines()) <= 24
    assert "tp30 torch" in text
    assert "and 23 layouts beside the one at work." in text


def test_time_left_is_told_once_a_run_has_ended_at_the_pace_so_far(tmp_path: Path) -> None:
    one = live(tmp_path, 4).entered(DEPLOYMENT, "", "building", 100.0)
    assert one.seconds_left(130.0) is None
    assert "left" not in summary(one, 130.0)
    one = one.ended(DEPLOYMENT, 5.0, 130.0)
    assert one.seconds_left(130.0) == 90.0
    assert "1 of 4 runs, about 90 s left" not in summary(one, 130.0)
    assert "1 of 4 runs, about 2 min left" in summary(one, 130.0)


def test_time_left_gets_less_while_a_run_goes_on(tmp_path: Path) -> None:
    one = live(tmp_path, 4).entered(DEPLOYMENT, "", "building", 100.0).ended(DEPLOYMENT, 5.0, 130.0)
    assert [one.seconds_left(now) for now in (140.0, 150.0, 160.0)] == [80.0, 70.0, 60.0]
    assert one.seconds_left(180.0) == 80.0  # it takes longer than the first: so may the others
    last = live(tmp_path, 2).entered(DEPLOYMENT, "", "building", 100.0)
    last = last.ended(DEPLOYMENT, 5.0, 130.0)
    assert "about 10 s left" in summary(last, 150.0)
    assert "left" not in summary(last, 170.0)


def test_the_next_layout_is_the_one_after_that_at_work_round_and_round(tmp_path: Path) -> None:
    one = live(tmp_path, 2, 0, OTHER)
    assert "next: tp4 torch" in summary(one, 0.0)
    assert "next: pp4 torch" in summary(one.entered(DEPLOYMENT, "", "building", 0.0), 0.0)
    assert "next: tp4 torch" in summary(one.entered(OTHER.deployment, "", "building", 0.0), 0.0)


def test_runs_that_are_added_until_means_agree_never_give_more_done_than_runs(
    tmp_path: Path,
) -> None:
    one = live(tmp_path, 1).ended(DEPLOYMENT, 1.0, 9).ended(DEPLOYMENT, 1.0, 9)
    assert (one.done, one.runs) == (2, 2)


def test_before_the_start_the_runs_and_the_predicted_time_are_told(tmp_path: Path) -> None:
    one = live(tmp_path, 2, 0, OTHER, replace(OTHER, runs=0))
    assert beginning(one) == "5 runs of 2 layouts: how long that takes is known after the first."
    told = beginning(replace(one, expected_s=720.0))
    assert told == "5 runs of 2 layouts: about 12 min as predicted, and the builds of the layouts."


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (89.4, "89 s"), (720, "12 min"), (5400, "1.5 h")]
)
def test_a_duration_is_told_to_a_digit_or_two(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_spark_line_has_a_bar_for_each_run_also_where_all_are_zero() -> None:
    assert spark([0.0, 50.0, 100.0]) == "\u2581\u2585\u2588"
    assert spark([0.0, 0.0]) == "\u2581\u2581"
    assert spark([]) == ""


def test_what_is_told_is_kept_beside_the_results_for_another_terminal(tmp_path: Path) -> None:
    with RunProgress(console_of(file=io.StringIO(), width=100)) as progress:
        progress.begin(live(tmp_path, 2))
        progress.phase(DEPLOYMENT, "", "building")
        progress.finished(one_run("tp4", 10.0))
        while_it_runs = latest([tmp_path.parent])
        assert while_it_runs.works
    assert (while_it_runs.done, while_it_runs.layouts[0].rates) == (1, (10.0,))
    after = read(tmp_path)
    assert after is not None
    assert (after.works, after.has_ended) == (False, True)
    assert "building" not in drawn(LiveView(after, 0.0, None))
    assert "it has ended" in summary(after, 0.0)
    assert "left" not in summary(after, 0.0)
    assert "next" not in summary(after, 0.0)


def test_a_command_that_has_begun_no_phase_leaves_the_word_of_another_as_it_is(
    tmp_path: Path,
) -> None:
    """As one that finds another driver writing there."""
    write(live(tmp_path, 5).entered(DEPLOYMENT, "", "building", 1.0))
    with RunProgress(console_of(file=io.StringIO(), width=100)) as progress:
        progress.begin(live(tmp_path, 0, 2))
    kept = read(tmp_path)
    assert kept is not None
    assert (kept.runs, kept.works) == (5, True)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_terminal_breaks_what_is_told_between_words_and_a_pipe_not_at_all(
    tmp_path: Path, width: int
) -> None:
    run = one_run("tp2pp2", 185.6, median_ttft_ms=114.7, median_tpot_ms=36.65)
    told = {}
    for is_terminal in (True, False):
        file = io.StringIO()
        console = console_of(file=file, width=width, force_terminal=is_terminal)
        progress = RunProgress(console)
        progress.begin(live(tmp_path, 4))
        progress.finished(run)
        told[is_terminal] = file.getvalue().splitlines()
    assert "TPOT 36.65 ms" in told[False][-1]
    words = [word for line in told[True] for word in line.split()]
    assert words == [word for line in told[False] for word in line.split()]
    assert max(map(len, told[True])) <= width


def test_runs_of_a_search_are_found_and_each_rate_ends_when_the_next_begins(tmp_path: Path) -> None:
    rates = [tmp_path / "tiny-1-rates" / rate for rate in ("1", "2")]
    with RunProgress(console_of(file=io.StringIO(), width=100)) as progress:
        for rate in rates:
            rate.mkdir(parents=True)
            progress.begin(live(rate))
            progress.phase(DEPLOYMENT, "", "building")
        assert Path(latest([tmp_path]).folder) == rates[1]
    assert [one.has_ended for one in map(read, rates) if one] == [True, True]


def test_results_that_were_moved_are_watched_where_they_are(tmp_path: Path) -> None:
    write(live(tmp_path))
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / LIVE).rename(moved / LIVE)
    assert latest([moved]).folder == str(moved)


def test_a_driver_that_died_is_told_from_one_that_ended(tmp_path: Path) -> None:
    one = live(tmp_path)
    gone = replace(
        one.ended(DEPLOYMENT, 1.0, 9), process=replace(one.process, pid=os.getppid(), ticks=1)
    )
    write(gone)
    assert "its driver is gone; the same command goes on" in summary(latest([tmp_path]), 0.0)


@pytest.mark.parametrize("host", [None, "another-node"])
def test_a_run_of_another_host_is_shown_with_its_name_and_without_the_gpus_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str | None
) -> None:
    monkeypatch.setattr(hardware, "watched_gpus", lambda: nullcontext(lambda: BUSY))
    one = live(tmp_path).entered(DEPLOYMENT, "", "building", 1.0)
    write(replace(one, process=replace(one.process, host=host)) if host else one)
    shown = CliRunner().invoke(main, ["watch", str(tmp_path), "--once"]).output
    assert shown.startswith(f"on {host}, 0 of 2 runs" if host else "0 of 2 runs")
    assert "building" in shown
    assert ("2412 W" in shown) == (host is None)


def test_a_driver_of_another_host_counts_as_gone_when_its_file_is_not_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.live.SILENT_S", 0.5)
    one = live(tmp_path).ended(DEPLOYMENT, 1.0, 9)
    away = replace(one, process=replace(one.process, host="elsewhere"))
    write(away)
    (*told, last) = newer(latest([tmp_path]), 0.05)
    assert all(found.works for found in told)
    assert not last.works
    assert "its driver on elsewhere shows no more that it lives" in summary(last, 0.0)
    done = CliRunner().invoke(main, ["watch", str(tmp_path)])
    assert done.exit_code == 0
    assert "1 of 2 runs, next: tp4 torch." in done.output.splitlines()[0]
    assert "shows no more that it lives" in done.output.splitlines()[1]


def test_word_of_another_host_that_is_old_is_of_a_driver_that_is_gone(tmp_path: Path) -> None:
    for name, age in (("old", 2 * CLOCKS_S), ("new", 0.0)):
        (tmp_path / name).mkdir()
        one = live(tmp_path / name)
        began = one.began_at + age  # that which began later is the one that is old
        write(replace(one, began_at=began, process=replace(one.process, host="elsewhere")))
        shown_at = time.time() - age
        os.utime(tmp_path / name / LIVE, (shown_at, shown_at))
    assert latest([tmp_path]).folder.endswith("new")
    old = read(tmp_path / "old")
    assert old is not None
    assert not old.works


def test_a_driver_shows_that_it_lives_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.live.RENEW_S", 0.02)

    def shown_at() -> float:
        found = read(tmp_path)
        assert found is not None
        assert found.shown_at is not None
        return found.shown_at

    with RunProgress(console_of(file=io.StringIO(), width=100)) as progress:
        progress.begin(live(tmp_path, 2))
        progress.phase(DEPLOYMENT, "", "building")
        began, deadline = shown_at(), time.monotonic() + 20
        while shown_at() == began:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    ended = shown_at()
    time.sleep(0.2)
    assert shown_at() == ended


def test_a_run_that_works_is_found_before_one_that_began_later(tmp_path: Path) -> None:
    for name, began, ended in (("works", 1.0, False), ("ended", 2.0, True)):
        (tmp_path / name).mkdir()
        write(replace(live(tmp_path / name), began_at=began, has_ended=ended))
    assert latest([tmp_path]).folder.endswith("works")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"folder": 1}'])
def test_a_file_that_is_something_else_is_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / LIVE).write_text(text)
    assert read(tmp_path) is None
    with pytest.raises(UserError, match="no run has left word in"):
        latest([tmp_path])


class Nvml:
    """Two GPUs, of which a process uses one; its driver tells no power."""

    class NVMLError(Exception):
        """As pynvml's."""

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[int]:
        return [1] * handle

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> object:
        return type("Rates", (), {"gpu": 40 + handle})

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        raise self.NVMLError

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> object:
        return type("Memory", (), {"used": 10**9 * handle})


def test_only_gpus_that_are_used_are_told_and_what_the_driver_does_not_say_is_unknown() -> None:
    assert devices_now(Nvml(), [0, 1]) == DevicesNow(41.0, None, 10**9)
    assert devices_now(Nvml(), [0]) is None
