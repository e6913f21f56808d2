"""Timed runs for tests: what each rank's steps took, and what it was observed to do in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from request_tables import requests
from tables import make

from orchestrator.analysis.device_time import DeviceTime, device_time_of
from orchestrator.analysis.observed.accounting import PARTS_OF_STEP, PartsRow
from orchestrator.analysis.roofline import CALIBRATED, Ceilings
from orchestrator.analysis.throughput import throughput_of
from orchestrator.plan import models
from strategies import Load, Topology, plan_layout
from workers.messages import EnginePlan, RankReport
from workers.records import DECODE, PREFILL, STEPS

FAST = Ceilings(hbm=4e12, flops={"bfloat16": 8e14}, cache_bytes=0, source=CALIBRATED)


@dataclass(frozen=True)
class Step:
    """One step of a rank. took: seconds from the end of the step before."""

    phase: str
    took: float
    requests: int = 1
    tokens: int = 1
    micro_batch: int = 0


def prefills(took: float, tokens: int, count: int = 1, requests: int = 1) -> list[Step]:
    """Passes over `tokens` tokens of prompts each."""
    return [Step(PREFILL, took, requests, tokens) for _ in range(count)]


def decodes(took: float, count: int, requests: int = 1) -> list[Step]:
    """Passes that make a token for each of `requests`."""
    return [Step(DECODE, took, requests, requests) for _ in range(count)]


@dataclass(frozen=True)
class TimedRun:
    """A run of a layout that ended after `duration` seconds.

    ranks: the steps of each rank that reports, in rank order. lengths: (input, output) tokens of
    each request; the requests go to replica after replica. times: of each request admitted_s and
    the end, in an open loop.
    """

    layout: str
    duration: float
    ranks: Sequence[Sequence[Step]]
    lengths: Sequence[tuple[int, int]] = ((10, 4),)
    model: str = "tiny"
    ceilings: Ceilings | None = FAST
    times: Sequence[tuple[float, float]] = field(default=())

    @property
    def plan(self) -> EnginePlan:
        shape = models.resolve(self.model, "dummy").shape
        load = Load(256, 128, len(self.lengths))
        placement = plan_layout(self.layout, shape, load, Topology.uniform(8)).placement
        return EnginePlan(shape, self.layout, placement, None, "bfloat16", "cuda", 8, 512, 2048)

    @property
    def tokens(self) -> int:
        return sum(made for _, made in self.lengths)

    @property
    def requests(self) -> pa.Table:
        replicas = self.plan.placement.degree("dp")
        rows = []
        for index, (read, made) in enumerate(self.lengths):
            admitted, end = self.times[index] if self.times else (None, self.duration)
            served = {"replica": index % replicas, "input_len": read, "output_len": made}
            moments = {"arrival_s": admitted or 0.0, "admitted_s": admitted}
            rows.append({**served, **moments, "token_times_s": [end] * made})
        return requests(*rows)

    @property
    def device_time(self) -> DeviceTime:
        table = self.requests
        made = throughput_of(table, 8, len(self.lengths), self.plan.placement.num_ranks)
        reports = [report(rank, steps) for rank, steps in enumerate(self.ranks)]
        return device_time_of(self.plan, made, reports[::-1], table, self.ceilings)


def report(rank: int, steps: Sequence[Step]) -> RankReport:
    """What a rank reports of its steps."""
    return RankReport(rank, None, STEPS.make([]) if not steps else _table(rank, steps), None, 0)


def _table(rank: int, steps: Sequence[Step]) -> pa.Table:
    rows, end = [], 0.0
    for number, one in enumerate(steps):
        end += one.took
        counted = {"num_requests": one.requests, "num_tokens": one.tokens, "end_s": end}
        place = {"rank": rank, "step": number, "phase": one.phase, "micro_batch": one.micro_batch}
        rows.append({**place, **counted})
    return make(STEPS, rows)


def parts(rank: int, phase: str, step_ms: float = 10.0, **shares: float) -> dict[str, object]:
    """An observed step as a row of the table `parts`. shares: percent of it by part; what they
    leave is compute."""
    names = ("exposed_transfer", "exposed_wait", "bubble", "launch_gap")
    percents = {name: shares.get(name, 0.0) for name in names}
    percents["compute"] = 100.0 - sum(percents.values())
    cut = {f"{name}_ms": step_ms * percent / 100 for name, percent in percents.items()}
    busy = cut["exposed_transfer_ms"] + cut["exposed_wait_ms"] + cut["bubble_ms"]
    counted = {"steps": 5, "step_ms": step_ms, "comm_busy_ms": busy}
    return {"rank": rank, "phase": phase, **counted, **cut}


def observed(rows: Iterable[dict[str, object]]) -> list[PartsRow]:
    """Rows of the table `parts`; columns that are not given are None."""
    return PARTS_OF_STEP.rows(make(PARTS_OF_STEP, rows))
