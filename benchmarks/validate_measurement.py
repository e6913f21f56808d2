"""Can the step's parts be trusted? The same cell measured in independent ways, each laid beside the
profile.

    python benchmarks/validate_measurement.py --device cpu --strategy tp2
    python benchmarks/validate_measurement.py --device cuda --strategy tp2 --model qwen2.5-32b
    --load-format dummy \
        --max-concurrency 32 --fabric results/fabric-HOST/fabric.arrow

Checks: (1) the step gets shorter without collectives by the share the profile books for them; (2)
counted bytes are the analytic ones; (3) a microbenchmark's time x calls is the transfer; (4) the
parts sum to the step; (5) a delay on one rank is waiting on the others, not transfer; (6) what the
profiler slows down; (7) one device communicates nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.analysis import accounting, metrics
from orchestrator.cluster import hardware
from orchestrator.cluster.connection import Cluster, connect
from orchestrator.cluster.group import WorkerGroup
from orchestrator.experiment import Experiment
from orchestrator.node import fabric
from orchestrator.plan import planning
from orchestrator.plan.deployments import PlannedDeployment
from orchestrator.store.results import write_part
from strategies.traffic import decode_step
from workers.messages import EnginePlan, RankReport, Work
from workers.rows import Table, column, row

OBSERVED_TOKENS = 24
DELAY_S = {"cuda": 1e-3, "cpu": 50e-3}


@row
class CheckRow:
    """One check: what one way of measuring says, beside another."""

    check: str = column("number and name")
    expected: float = column("in `unit`")
    measured: float = column("in `unit`")
    unit: str = column("of both, and of the tolerance")
    tolerance: float | None = column("most that they may differ, in `unit`; null: no check")
    passed: bool | None = column("whether they differ by no more")
    model: str = column("name of the model")
    strategy: str = column("name of the layout")
    max_concurrency: int = column("most requests in flight", "requests")
    device_name: str = column("name of the device")


VALIDATION = Table("validation", CheckRow)


@dataclass(frozen=True)
class Seen:
    """Timed and observed runs of one deployment: decode ms a step, the parts of the observed step
    by rank, all reports."""

    step_ms: float
    parts: list[dict[str, Any]]
    timed: list[dict[str, Any]]
    reports: list[RankReport]

    def part(self, name: str, rank: int | None = None) -> float:
        return mean(row[f"{name}_ms"] for row in self.parts if rank is None or row["rank"] == rank)


def main() -> None:
    arguments = parse()
    fields = (
        "model",
        "strategy",
        "device",
        "load_format",
        "max_concurrency",
        "input_len",
        "output_len",
    )
    experiment = Experiment.model_validate({name: getattr(arguments, name) for name in fields})
    device, topology = planning.choose_device(experiment, hardware.local_topology(arguments.device))
    (deployment,) = planning.plan(experiment, device, topology)
    (alone,) = planning.plan(experiment.model_copy(update={"strategy": ("tp1",)}), device, topology)
    with connect(None, device, deployment.plan.placement.num_ranks, dashboard=False) as cluster:
        rows = list(
            checks(
                cluster,
                deployment,
                alone,
                fabric.load(arguments.fabric) if arguments.fabric else None,
            )
        )
    write_part(arguments.out, VALIDATION.make(rows))
    for done in rows:
        verdict = {True: "ok  ", False: "FAIL", None: "    "}[done.passed]
        print(
            f"{verdict} {done.check}: {done.measured:.3f}, expected {done.expected:.3f} {done.unit}"
        )
    print(f"Table: {arguments.out}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--strategy", default="tp2")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="auto")
    parser.add_argument("--max-concurrency", type=int, default=8)
    parser.add_argument("--input-len", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument(
        "--fabric", type=Path, help="the table of `orchestrator calibrate`, for check 3"
    )
    parser.add_argument("--out", type=Path, default=Path("validation.arrow"))
    return parser.parse_args()


def checks(
    cluster: Cluster,
    deployment: PlannedDeployment,
    alone: PlannedDeployment,
    table: pa.Table | None,
) -> Iterator[CheckRow]:
    """One check after another."""
    plan, work = deployment.plan, deployment.cells[0].work
    delay = (plan.placement.num_ranks - 1, DELAY_S[plan.device])
    whole, late = see(cluster, plan, work, None, delay)
    (without,) = see(cluster, replace(plan, ablation="comm"), work, None)
    (single,) = see(cluster, alone.plan, work, None)
    device_name = hardware.gpus()[0]["name"] if plan.device == "cuda" else "cpu"

    def checked(
        check: str, expected: float, measured: float, unit: str, tolerance: float | None
    ) -> CheckRow:
        passed = None if tolerance is None else bool(abs(measured - expected) <= tolerance)
        return CheckRow(
            check=check,
            expected=expected,
            measured=measured,
            unit=unit,
            tolerance=tolerance,
            passed=passed,
            model=plan.model.name,
            strategy=plan.layout,
            max_concurrency=work.max_concurrency,
            device_name=device_name,
        )

    share = 100 * (whole.part("exposed_transfer") + whole.part("exposed_wait")) / whole.part("step")
    saved = 100 * (1 - without.step_ms / whole.step_ms)
    yield checked(
        "1 ablation: step saved / profile's comm_exposed", share, saved, "% of the step", 3.0
    )
    yield checked(
        "2 counted bytes of a decode step / analytic",
        *decode_bytes(plan, work, whole.reports),
        "B",
        0.0,
    )
    if table is not None:
        expected, measured = transfer_us(table, whole)
        yield checked(
            "3 transfer of an all-reduce / microbenchmark",
            expected,
            measured,
            "us",
            0.15 * expected,
        )
    total = sum(whole.part(part) for part in accounting.PARTS)
    yield checked(
        "4 sum of the parts / step", whole.part("step"), total, "ms", 0.01 * whole.part("step")
    )
    held_up = DELAY_S[plan.device] * 1e3
    more = {
        part: late.part(part, 0) - whole.part(part, 0)
        for part in ("exposed_wait", "exposed_transfer")
    }
    yield checked(
        "5 delay on one rank: more wait on another",
        held_up,
        more["exposed_wait"],
        "ms",
        0.2 * held_up,
    )
    yield checked(
        "5 delay on one rank: more transfer on another",
        0.0,
        more["exposed_transfer"],
        "ms",
        0.2 * held_up,
    )
    yield checked("6 profiled step / timed step", whole.step_ms, whole.part("step"), "ms", None)
    yield checked(
        "7 communication of one device",
        0.0,
        100 * single.part("comm_busy") / single.part("step"),
        "% of the step",
        0.0,
    )


def see(
    cluster: Cluster, plan: EnginePlan, work: Work, *delays: tuple[int, float] | None
) -> list[Seen]:
    """One deployment: a warm-up and two timed runs, then an observed run for each of `delays`."""
    group = WorkerGroup.start(cluster, f"{plan.model.name}/{plan.layout}", plan, "torch")
    requests = tuple(
        replace(r, output_len=min(OBSERVED_TOKENS, r.output_len)) for r in work.requests
    )
    short = replace(work, requests=requests, observe=True)
    try:
        group.build(plan.timeout_s)
        reports = [group.run(work, plan.timeout_s) for _ in range(3)][1:]
        step_ms = min(decode_ms(run, work, plan) for run in reports)
        seen = [group.run(replace(short, delay=delay), plan.timeout_s) for delay in delays]
    finally:
        group.kill()
    out = []
    for run in seen:
        tables = accounting.account(
            pa.concat_tables([r.spans for r in run if r.spans is not None]), plan.placement
        )
        decode = [
            [row for row in tables[name].to_pylist() if row["phase"] == "decode"]
            for name in ("parts", "timed_collectives")
        ]
        out.append(Seen(step_ms, *decode, run))
    return out


def decode_ms(reports: list[RankReport], work: Work, plan: EnginePlan) -> float:
    requests = pa.concat_tables(
        [report.requests for report in reports if report.requests is not None]
    )
    figures = metrics.of_requests(
        requests, work.max_concurrency, len(work.requests), plan.placement.num_ranks
    )
    return float(figures["decode_ms_per_step"])


def decode_bytes(plan: EnginePlan, work: Work, reports: list[RankReport]) -> tuple[float, float]:
    """(analytic, counted) bytes of the decode phase on rank 0. Graphs pad a batch to their size; so
    does the analytic count."""
    size = {"bfloat16": 2, "float16": 2, "float32": 4}[plan.dtype]
    steps = [row for row in reports[0].steps.to_pylist() if row["phase"] == "decode"]
    expected = sum(
        t.bytes
        for row in steps
        for t in decode_step(plan.placement, plan.model, 0, row["num_requests"], size)
    )
    assert reports[0].collectives is not None
    counted = sum(
        row["bytes"] for row in reports[0].collectives.to_pylist() if row["phase"] == "decode"
    )
    return float(expected), float(counted)


def transfer_us(table: pa.Table, whole: Seen) -> tuple[float, float]:
    """(microbenchmark, profile) us of one all-reduce of this size over as many ranks, in a graph
    where there is one."""
    seen = next(row for row in whole.timed if row["op"] == "all_reduce" and row["rank"] == 0)
    size = seen["bytes"] / seen["calls"]
    rows = [
        r
        for r in table.to_pylist()
        if r["op"] == "all_reduce" and r["group_size"] == seen["group_size"]
    ]
    mode = "graph" if any(r["mode"] == "graph" for r in rows) else "eager"
    points = sorted((r["bytes"], r["time_us"]) for r in rows if r["mode"] == mode)
    return float(np.interp(size, *zip(*points, strict=True))), float(seen["transfer_us"])


if __name__ == "__main__":
    main()
