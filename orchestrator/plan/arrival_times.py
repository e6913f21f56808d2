"""When the requests of an open loop arrive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from orchestrator.errors import UserError
from orchestrator.experiment import Window
from orchestrator.plan.datasets.rows import Entry

STREAM = 2  # keeps these random numbers apart from those of the prompts


def arrival_times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """When `count` requests arrive, in seconds since the start, at `rate` a second; equal for equal
    arguments.

    As in vLLM's serving benchmark: gaps are gamma distributed with shape `burstiness` and scale
    1 / (rate x burstiness), so 1 is a Poisson process, less is burstier, more is more even. Then
    all are stretched so that the last request arrives at count / rate.
    """
    if count == 0:
        return []
    random = np.random.default_rng((seed, STREAM))
    arrivals = np.cumsum(random.gamma(burstiness, 1.0 / (rate * burstiness), count))
    return [float(at) for at in arrivals * (count / rate / arrivals[-1])]


def trace_in_words(window: str | None, speed: float) -> str:
    """The part of a trace that is served, and how much faster than it was."""
    unit = "s" if window and window[-1].isdigit() else ""
    return f"{window or 'all'}{unit} at speed {speed:g}"


def replayed(
    found: Iterable[Sequence[Entry]], asked_window: str | None, speed: float
) -> Iterator[Sequence[Entry]]:
    """The entries of a trace whose arrivals lie in the window, in seconds since its beginning, made
    `speed` times as fast. Others, turns of conversations among them, have no times and pass as they
    are.

    Raises UserError where a window or a speed is asked of what has no times, and where times go
    back.
    """
    window = Window.parse(asked_window) if asked_window else Window()
    first, before = None, 0.0
    for turns in found:
        entry = turns[0]
        if entry.arrival_s is None:
            if asked_window or speed != 1.0:
                raise UserError(
                    f"{entry.where}: the dataset has no times of arrival; leave --trace-window and "
                    "--trace-speed out"
                )
            yield turns
            continue
        first = entry.arrival_s if first is None else first
        at = entry.arrival_s - first
        if at < before:
            raise UserError(
                f"{entry.where}: it arrives before the row before it; sort the trace by time"
            )
        before = at
        if at >= window.stop:
            return
        if at >= window.start:
            yield (replace(entry, arrival_s=(at - window.start) / speed), *turns[1:])
