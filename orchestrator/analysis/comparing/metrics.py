"""The figures of a run that layouts are judged by, by objective."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.comparing.rounds import (
    Round,
    completed,
    held_to_one_level,
    means,
    observed_once,
    std_within,
    with_valid_power,
)

Counted = Callable[[Iterable[Any]], list[Any]]  # runs of one workload


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a run. column: its name in the summary. of: its value. counted: the runs that
    count."""

    column: str
    unit: str
    of: Callable[[Any], float | None]
    counted: Counted = completed

    def starts(self, runs: Iterable[Any]) -> dict[Round, float]:
        """The figure of each start of one cell: the mean over its runs that count and know it."""
        return means(self.counted(runs), self.of)

    def cv_within(self, runs: Iterable[Any]) -> float | None:
        """The coefficient of variation of the runs inside a start; None where each has one run."""
        counted = self.counted(runs)
        std, starts = std_within(counted, self.of), means(counted, self.of)
        mean = statistics.fmean(starts.values()) if starts else 0.0
        return None if std is None or not mean else std / abs(mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Figure):
    """A figure that layouts are judged by.

    says: what the better one does to the other. subject: what else than throughput it is in. at:
    the load, in words.
    """

    objective: str
    says: str
    subject: str = ""
    at: str = "at {} concurrent"
    lower_is_better: bool = False


METRICS = (
    Metric(
        "output_throughput",
        "tokens/s",
        lambda run: run.throughput.output_throughput,
        objective="throughput",
        says="delivers {ratio} {other}",
    ),
    Metric(
        "median_tpot_ms",
        "ms",
        lambda run: run.latency.tpot.median,
        objective="latency",
        says="takes {ratio} the time per token of {other}",
        subject=" in time per token",
        lower_is_better=True,
    ),
    Metric(
        "median_ttft_ms",
        "ms",
        lambda run: run.latency.ttft.median,
        objective="latency",
        says="takes {ratio} the time to the first token of {other}",
        subject=" in time to the first token",
        lower_is_better=True,
    ),
    Metric(
        "output_throughput_per_gpu",
        "tokens/s",
        lambda run: run.throughput.output_throughput_per_gpu,
        objective="per-gpu",
        says="delivers {ratio} {other} per GPU",
        subject=" per GPU",
    ),
    Metric(
        "request_goodput",
        "requests/s",
        lambda run: run.goodput.request_goodput,
        counted=held_to_one_level,
        objective="goodput",
        says="serves {ratio} the good requests of {other}",
        subject=" in goodput",
    ),
    Metric(
        "joules_per_output_token",
        "J",
        lambda run: run.energy.joules_per_output_token,
        counted=with_valid_power,
        objective="energy",
        says="uses {ratio} the energy per token of {other}",
        subject=" in energy per token",
        lower_is_better=True,
    ),
)
THROUGHPUT, TPOT, TTFT = METRICS[:3]
OBJECTIVES = tuple(dict.fromkeys(metric.objective for metric in METRICS))
# What is described with an interval and not judged: a share of its own step cannot rank layouts.
SHARES = (
    Figure(
        "comm_exposed_pct", "%", lambda run: run.step.decode.comm_exposed.pct, counted=observed_once
    ),
    Figure("bubble_pct", "%", lambda run: run.step.decode.bubble.pct, counted=observed_once),
)
