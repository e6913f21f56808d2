"""What the driver takes for many ranks: time and memory against their number, without Ray's actors.

    python benchmarks/driver_scale.py
    python benchmarks/driver_scale.py --ranks 64,256,1024

Every rank is a stand-in in this process. What a rank would be sent is pickled, and what it reports
is unpickled from bytes that were made before the clock started: a run of llama-70b under
tp8pp4dpN, 32 requests of 256 tokens in and 128 out for each replica, its steps, collectives and
samples of the GPU. The driver's own code does the rest: it starts the group, gives out ranks,
builds, runs, works out the row of the summary and writes every table. Each number of ranks has a
process of its own, so that its peak memory is its own. Ray's servers and the network are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa

from orchestrator.analysis.summary import MEASURED, Attempt, Building, measured
from orchestrator.cluster import group as groups
from orchestrator.cluster import waiting
from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.group import WorkerGroup
from orchestrator.cluster.nodes import Node
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.plan import models
from orchestrator.run.workers import requests_of
from orchestrator.store.arrow_files import concat
from orchestrator.store.folders import now
from orchestrator.store.store import Store
from strategies import Load, Topology, plan_layout
from workers.messages import Built, EnginePlan, Process, RankReport, Request, Work
from workers.records import (
    COLLECTIVES,
    REQUESTS,
    STEPS,
    TELEMETRY,
    CollectiveRow,
    RequestRow,
    SampleRow,
    StepRow,
)
from workers.rows import nothing

ENGINE, TP, PP = "torch", 8, 4
INPUT_LEN, OUTPUT_LEN, SEATS = 256, 128, 32  # of a replica
STEP_S, SAMPLE_S = 0.02, 0.1
PREFILLS = INPUT_LEN * SEATS // 2048


@dataclass(frozen=True)
class Taken:
    """Seconds of each part, and bytes. reports: what all ranks reported of the run, pickled."""

    ranks: int
    start_s: float
    records_s: float
    write_s: float
    reports_bytes: int
    peak_bytes: int

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.start_s + self.records_s + self.write_s


def main() -> None:
    """Print a line for each number of ranks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", default="64,256,1024")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(asdict(taken(asked.one))))
        return
    for count in asked.ranks.split(","):
        command = [sys.executable, __file__, "--one", count]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(said(Taken(**json.loads(done.stdout))), flush=True)


def said(one: Taken) -> str:
    """One line."""
    return (
        f"{one.ranks:5} ranks: start {one.start_s:.2f} s, a run's records in {one.records_s:.2f} s "
        f"({one.reports_bytes / 1e6:.0f} MB), written in {one.write_s:.2f} s; "
        f"{one.total_s / one.ranks * 1e3:.1f} ms a rank; peak {one.peak_bytes / 1e9:.2f} GB"
    )


def taken(ranks: int) -> Taken:
    """What the driver takes for so many ranks. Raises LayoutError where they are no multiple of
    those of a replica."""
    plan, fakes = plan_for(ranks), Fakes(ranks)
    with driven(plan, fakes) as group:
        start_s, built = timed(lambda: started(group))
        asked = work(plan)
        fakes.prepare(plan)
        records_s, reports = timed(lambda: group.run(asked, 600.0))
        with tempfile.TemporaryDirectory() as folder:
            write_s, _ = timed(lambda: kept(Path(folder), plan, asked, built, group.nodes, reports))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Taken(ranks, start_s, records_s, write_s, fakes.reported, peak)


def timed(call: Any) -> tuple[float, Any]:
    """Seconds, and what it returns."""
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def started(group: WorkerGroup) -> list[Built]:
    """Give out ranks and build."""
    group._spawn()
    return group.build(600.0)


def kept(
    folder: Path,
    plan: EnginePlan,
    asked: Work,
    built: Sequence[Built],
    nodes: tuple[str, ...],
    reports: Sequence[RankReport],
) -> None:
    """Work the run out and write it, as `orchestrator.run` does."""
    deployment = Deployment(plan.model.name, plan.layout, ENGINE, plan.dtype)
    cell = Cell(deployment, Scenario("short", INPUT_LEN, OUTPUT_LEN), asked.max_concurrency)
    store, run = Store(folder / "results"), Run(cell, 0, 0)
    attempt = Attempt(store.run_key(run), plan, asked, now(), 0, "{}", {})
    requests = requests_of(reports)
    row = measured(attempt, Building(built, "GPU", 1.0, 2.0, nodes), reports, requests)
    names = ("steps", "collectives", "telemetry")
    found = {name: concat(getattr(one, name) for one in reports) for name in names}
    with store.opened():
        store.write_run(run, MEASURED.make([row]), {"requests": requests, **found})


def plan_for(ranks: int) -> EnginePlan:
    """Of llama-70b."""
    shape, layout = (
        models.resolve("llama-70b", "dummy").shape,
        f"tp{TP}pp{PP}dp{ranks // (TP * PP)}",
    )
    seats = SEATS * (ranks // (TP * PP))
    found = plan_layout(layout, shape, Load(INPUT_LEN, OUTPUT_LEN, seats), Topology.uniform(ranks))
    return EnginePlan(
        shape, found.name, found.placement, None, "bfloat16", "cuda", seats, 384, 2048
    )


def work(plan: EnginePlan) -> Work:
    """A closed batch."""
    prompts = (tuple(range(8, 8 + INPUT_LEN)) for _ in range(plan.max_concurrency))
    requests = (Request(index, prompt, OUTPUT_LEN) for index, prompt in enumerate(prompts))
    return Work(tuple(requests), plan.max_concurrency)


# -- stand-ins


@dataclass
class Fakes:
    """The ranks, on nodes of TP devices, and what stands in for the parts of `ray` that ask them.
    reports: of each rank, pickled; telemetry: the same of every one."""

    ranks: int
    actors: list[Actor] = field(default_factory=list)
    reports: list[bytes] = field(default_factory=list)
    telemetry: bytes = b""

    @property
    def reported(self) -> int:
        """Bytes of all reports."""
        return sum(map(len, self.reports)) + self.ranks * len(self.telemetry)

    def prepare(self, plan: EnginePlan) -> None:
        """Make the reports of a run."""
        self.reports = [pickle.dumps(report(plan, rank)) for rank in range(self.ranks)]
        self.telemetry = pickle.dumps(samples())

    def nodes(self) -> list[dict[str, object]]:
        """As `ray.nodes`."""
        names = [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(self.ranks // TP)]
        return [{"NodeID": name, "NodeManagerAddress": name} for name in names]

    def make(self, *_: object) -> Actor:
        """As `WorkerGroup._actor`."""
        self.actors.append(Actor(self, len(self.actors)))
        return self.actors[-1]

    @staticmethod
    def wait(
        refs: Sequence[Answer], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Answer], list[Answer]]:
        """As `ray.wait`: all of them have answered."""
        return list(refs[:num_returns]), list(refs[num_returns:])

    @staticmethod
    def put(value: object) -> Shared:
        """As `ray.put`: it is pickled once."""
        return Shared(len(pickle.dumps(value)))

    @staticmethod
    def get(ref: Answer) -> Any:
        """As `ray.get`."""
        return pickle.loads(ref.pickled)


@dataclass(frozen=True)
class Shared:
    """A reference to something of so many bytes."""

    size: int


@dataclass(eq=False)
class Answer:
    """What a rank answered."""

    pickled: bytes


@dataclass
class Actor:
    """A rank; number: in the order they were started."""

    fakes: Fakes
    number: int
    rank: int = 0

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *args: self.answer(method, pickle.dumps(args), *args))

    def answer(self, method: str, sent: bytes, *args: Any) -> Answer:
        """To a call; sent: what would go to the rank."""
        assert sent
        if method == "assign":
            self.rank = args[0]
        prepared = {
            "run": self.fakes.reports,
            "telemetry": [self.fakes.telemetry] * (self.rank + 1),
        }
        if method in prepared:
            return Answer(prepared[method][self.rank])
        return Answer(pickle.dumps(self.found(method)))

    def found(self, method: str) -> object:
        """The answer to a call of the start."""
        node, device = divmod(self.number, TP)
        names = self.fakes.nodes() if method == "process" else []
        return {
            "process": names and Process(str(names[node]["NodeID"]), device, 1000 + self.number),
            "open_store": ("10.0.0.1", 29500),
            "build": Built(self.rank, 1.0, 1.0, 17 << 30, 100_000, "GPU"),
        }.get(method)


@contextlib.contextmanager
def driven(plan: EnginePlan, fakes: Fakes) -> Iterator[WorkerGroup]:
    """A group whose ranks are stand-ins."""
    nodes = tuple(Node(str(one["NodeID"]), {"cuda": TP}) for one in fakes.nodes())
    there = Cluster(nodes, embedded=False, address="10.0.0.1:6379", dashboard=None)
    group = WorkerGroup(there, "scale", plan, ENGINE)
    bundles = {number: str(nodes[number // TP].address) for number in range(fakes.ranks)}
    group._reservation = SimpleNamespace(nodes=lambda: bundles)  # type: ignore[assignment]
    with (
        patch.object(groups, "ray", fakes),
        patch.object(waiting, "ray", fakes),
        patch.object(group, "_actor", fakes.make),
    ):
        yield group


# -- what a rank reports


def report(plan: EnginePlan, rank: int) -> RankReport:
    """Of a run; the first rank of the last stage has the requests of its replica."""
    at = plan.placement.coordinates(rank)
    reports = at["pp"] == PP - 1 and at["tp"] == 0
    return RankReport(
        rank,
        requests=requests_table(at["dp"]) if reports else None,
        steps=STEPS.make(list(steps(rank))),
        collectives=COLLECTIVES.make(list(collectives(rank, at["pp"]))),
        peak_memory_bytes=70 << 30,
    )


def requests_table(replica: int) -> pa.Table:
    """Of a replica."""
    first = RequestRow(
        request_index=0,
        replica=replica,
        input_len=INPUT_LEN,
        cached_tokens=0,
        output_len=OUTPUT_LEN,
        arrival_s=0.0,
        admitted_s=None,
        token_times_s=tuple(STEP_S * (PREFILLS + step) for step in range(1, OUTPUT_LEN + 1)),
        output_token_ids=tuple(range(OUTPUT_LEN)),
    )
    return REQUESTS.make(
        [replace(first, request_index=replica * SEATS + seat) for seat in range(SEATS)]
    )


def steps(rank: int) -> Iterator[StepRow]:
    """Those with prompts, then a step a token and micro-batch."""
    first = StepRow(
        rank=rank,
        step=0,
        phase="prefill",
        micro_batch=0,
        num_requests=SEATS // PREFILLS,
        num_tokens=2048,
        end_s=0.0,
    )
    for number in range(PREFILLS):
        yield replace(first, step=number, end_s=STEP_S * (number + 1))
    decode = replace(first, phase="decode", num_requests=SEATS // PP, num_tokens=SEATS // PP)
    for number in range((OUTPUT_LEN - 1) * PP):
        end_s = STEP_S * (PREFILLS + 1 + number / PP)
        yield replace(decode, step=PREFILLS + number, micro_batch=number % PP, end_s=end_s)


def collectives(rank: int, stage: int) -> Iterator[CollectiveRow]:
    """Of both phases."""
    hidden = 8192 * 2
    for phase, tokens in (("prefill", SEATS * INPUT_LEN), ("decode", SEATS * (OUTPUT_LEN - 1))):
        sizes = {("all_reduce", "tp"): 40 * tokens * hidden, ("broadcast", "pp"): 8 * tokens}
        if stage < PP - 1:
            sizes["send", "pp"] = tokens * hidden
        if stage > 0:
            sizes["recv", "pp"] = tokens * hidden
        for (op, axis), size in sizes.items():
            yield CollectiveRow(rank=rank, phase=phase, op=op, axis=axis, calls=500, bytes=size)


def samples() -> pa.Table:
    """Of a GPU, one each SAMPLE_S."""
    first = nothing(SampleRow)
    known = {"rank": 0, "process_id": 1, "gpu": 0, "power_w": 500.0, "memory_used_bytes": 70 << 30}
    count = int(STEP_S * (PREFILLS + OUTPUT_LEN) / SAMPLE_S)
    return TELEMETRY.make(
        [replace(first, **known, time_s=SAMPLE_S * number) for number in range(count)]
    )


if __name__ == "__main__":
    main()
