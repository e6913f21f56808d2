"""The device's clock: events ahead of the host on a GPU, readings of the host's clock on a CPU."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest
import torch

from workers.clock import Clock, elapsed_ms, moment, passed, wait

CPU = torch.device("cpu")


@dataclass
class Event:
    """Stands for a CUDA event: a moment in ms that has passed or not."""

    ms: float
    is_past: bool = True
    waits: list[float] = field(default_factory=list)

    def query(self) -> bool:
        return self.is_past

    def synchronize(self) -> None:
        self.waits.append(self.ms)
        self.is_past = True

    def elapsed_time(self, other: Event) -> float:
        return other.ms - self.ms


def test_on_a_cpu_a_moment_is_a_reading_of_the_hosts_clock() -> None:
    before = time.perf_counter()
    at = moment(CPU)
    assert isinstance(at, float)
    assert before <= at <= time.perf_counter()
    assert passed(at)
    wait(at)


def test_on_a_gpu_a_moment_has_passed_when_its_event_has() -> None:
    event = Event(5.0, is_past=False)
    assert not passed(event)
    assert event.waits == []  # asking does not wait
    wait(event)
    assert passed(event)


def test_what_lies_between_two_moments_is_told_in_milliseconds() -> None:
    assert elapsed_ms(1.5, 1.75) == pytest.approx(250)
    assert elapsed_ms(Event(10.0), Event(17.5)) == 7.5


@pytest.mark.parametrize(("start", "end"), [(1.0, Event(2.0)), (Event(1.0), 2.0)])
def test_moments_of_two_kinds_have_nothing_between_them(
    start: Event | float, end: Event | float
) -> None:
    with pytest.raises(TypeError, match="one moment is of a CPU"):
        elapsed_ms(start, end)


def test_a_clock_counts_from_its_start() -> None:
    clock = Clock(CPU)
    assert clock.seconds(clock.start) == 0
    assert clock.began_s == pytest.approx(clock.start, abs=0.1)
    time.sleep(0.01)
    mark = clock.mark()
    assert 0.01 <= clock.seconds(mark) <= clock.now()
    assert clock.began_s + clock.now() == pytest.approx(time.perf_counter(), abs=0.1)


@pytest.mark.parametrize(("launched", "waited"), [(0, []), (1, []), (2, [0.0]), (5, [3.0])])
def test_keeping_up_waits_for_all_but_the_newest_steps(launched: int, waited: list[float]) -> None:
    waits: list[float] = []
    marks = [Event(float(i), is_past=False, waits=waits) for i in range(launched)]
    Clock(CPU).keep_up(marks, ahead=2)
    assert waits == waited


def test_it_imports_without_torch() -> None:
    program = "import sys, workers.clock, workers.progress; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
