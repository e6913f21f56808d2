"""Can the step's parts be trusted? The same cell measured in independent ways, each laid beside the
profile.

    python benchmarks/validate_measurement.py --device cpu --strategy tp2
    python benchmarks/validate_measurement.py --device cuda --strategy tp2 --model qwen2.5-32b \
        --load-format dummy --max-concurrency 32 --fabric results/fabric-HOST/fabric.arrow

Checks: (1) the step gets shorter without collectives by the share the profile books for them; (2)
counted bytes are the analytic ones; (3) a microbenchmark's time x calls is the transfer; (4) the
parts sum to the step; (5) a delay on one rank is waiting on the others, not transfer; (6) what the
profiler slows down; (7) one device communicates nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import pyarrow as pa

from orchestrator.analysis.observed import accounting
from orchestrator.analysis.observed.accounting import PartsRow, TimedRow
from orchestrator.analysis.throughput import throughput_of
from orchestrator.cluster import hardware
from orchestrator.cluster.connection import Cluster, connect
from orchestrator.cluster.group import WorkerGroup
from orchestrator.experiment import Experiment
from orchestrator.node import fabric
from orchestrator.plan import planning
from orchestrator.plan.deployments import PlannedDeployment
from orchestrator.store.arrow_files import concat, write_part
from strategies.shapes import DTYPE_BYTES
from strategies.traffic import decode_step
from workers.messages import EnginePlan, RankReport, Request, Work
from workers.records import COLLECTIVES, DECODE, FABRIC, STEPS
from workers.rows import Table, column, group, row

ASKED = ("model", "strategy", "device", "load_format", "max_concurrency", "input_len", "output_len")
OBSERVED_TOKENS = 24  # made for each request of an observed run
DELAY_S = {"cuda": 1e-3, "cpu": 50e-3}
VERDICTS = {True: "ok  ", False: "FAIL", None: "    "}
IN_ITS_UNIT = "see `unit`"


@row
class Finding:
    """What one check has found."""

    check: str = column("number of the check, and what is laid beside what")
    expected: float = column("what it should be", IN_ITS_UNIT)
    measured: float = column("what it is", IN_ITS_UNIT)
    unit: str = column("unit of expected, measured and tolerance")
    tolerance: float | None = column(
        "by how much they may differ; null where nothing is demanded", IN_ITS_UNIT
    )
    passed: bool | None = column("whether they differ by no more; null without a tolerance")


@row
class Subject:
    """What was measured, and on what."""

    model: str = column("name of the model")
    strategy: str = column("layout, in its canonical spelling")
    max_concurrency: int = column("requests in flight at most", "requests")
    device_name: str = column("name of a device")


@row
class ValidationRow:
    """One check of the measurement."""

    finding: Finding = group()
    subject: Subject = group()


VALIDATION = Table("validation", ValidationRow)


@dataclass(frozen=True)
class Seen:
    """Timed runs of one deployment and an observed one.

    step_ms: a timed decode step. parts, timed: of the observed decode steps, by rank. reports: of
    the observed run.
    """

    step_ms: float
    parts: Sequence[PartsRow]
    timed: Sequence[TimedRow]
    reports: Sequence[RankReport]

    def part(self, name: str, rank: int | None = None) -> float:
        """A part of the decode step in ms, or the whole ("step"); the mean over all ranks where
        none is given."""
        rows = [one for one in self.parts if rank is None or one.rank == rank]
        for one in rows:
            assert one.step_ms is not None, f"no step of rank {one.rank} is left: {one.reason}"
        return float(mean(getattr(one, f"{name}_ms") for one in rows))


@dataclass(frozen=True)
class Measured:
    """What the checks look at. late: one rank is held up by `delay_ms` a step. without: collectives
    are left out. single: the model on one device."""

    plan: EnginePlan
    work: Work
    delay_ms: float
    whole: Seen
    late: Seen
    without: Seen
    single: Seen


def main() -> None:
    arguments = parse()
    deployment, alone = plan_both(arguments)
    calibration = fabric.load(arguments.fabric) if arguments.fabric else None
    with connect(None, deployment.plan.device, ranks_of(deployment), dashboard=False) as cluster:
        measured = measure(cluster, deployment, alone)
    subject = subject_of(measured.plan, measured.work)
    findings = list(checks(measured, calibration))
    rows = [ValidationRow(finding=finding, subject=subject) for finding in findings]
    write_part(arguments.out, VALIDATION.make(rows))
    for finding in findings:
        say(finding)
    print(f"Table: {arguments.out}")


def plan_both(arguments: argparse.Namespace) -> tuple[PlannedDeployment, PlannedDeployment]:
    """The layout asked for, and one device."""
    experiment = Experiment.model_validate({name: getattr(arguments, name) for name in ASKED})
    device, topology = planning.choose_device(experiment, hardware.local_topology(arguments.device))
    single = experiment.model_copy(update={"strategy": ("tp1",)})
    (deployment,) = planning.plan_experiment(experiment, device, topology)
    (alone,) = planning.plan_experiment(single, device, topology)
    return deployment, alone


def ranks_of(deployment: PlannedDeployment) -> int:
    return deployment.plan.placement.num_ranks


def subject_of(plan: EnginePlan, work: Work) -> Subject:
    return Subject(
        model=plan.model.name,
        strategy=plan.layout,
        max_concurrency=work.max_concurrency,
        device_name=hardware.gpus()[0].name if plan.device == "cuda" else "cpu",
    )


def say(finding: Finding) -> None:
    print(
        f"{VERDICTS[finding.passed]} {finding.check}: {finding.measured:.3f}, expected "
        f"{finding.expected:.3f} {finding.unit}"
    )


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


# -- measuring


def measure(cluster: Cluster, deployment: PlannedDeployment, alone: PlannedDeployment) -> Measured:
    """Serve the first cell of `deployment` in the ways that the checks ask for."""
    plan, work = deployment.plan, deployment.cells[0].work
    delay_s = DELAY_S[plan.device]
    whole, late = see(cluster, plan, work, None, (ranks_of(deployment) - 1, delay_s))
    (without,) = see(cluster, replace(plan, ablation="comm"), work, None)
    (single,) = see(cluster, alone.plan, work, None)
    return Measured(plan, work, 1e3 * delay_s, whole, late, without, single)


def see(
    cluster: Cluster, plan: EnginePlan, work: Work, *delays: tuple[int, float] | None
) -> list[Seen]:
    """One deployment: a warm-up and two timed runs, then an observed run for each of `delays`."""
    short = replace(work, requests=shortened(work), observe=True)
    with built(cluster, plan) as workers:
        timed = [workers.run(work, plan.timeout_s) for _ in range(3)][1:]
        seen = [workers.run(replace(short, delay=delay), plan.timeout_s) for delay in delays]
    step_ms = min(decode_ms(reports, work, plan) for reports in timed)
    return [taken_apart(reports, plan, step_ms) for reports in seen]


def shortened(work: Work) -> tuple[Request, ...]:
    """The requests of an observed run."""
    return tuple(
        replace(request, output_len=min(OBSERVED_TOKENS, request.output_len))
        for request in work.requests
    )


@contextmanager
def built(cluster: Cluster, plan: EnginePlan) -> Iterator[WorkerGroup]:
    """The workers of a plan, built; they end with this context."""
    workers = WorkerGroup.start(cluster, f"{plan.model.name}/{plan.layout}", plan, "torch")
    try:
        workers.build(plan.timeout_s)
        yield workers
    finally:
        workers.kill()


def taken_apart(reports: Sequence[RankReport], plan: EnginePlan, step_ms: float) -> Seen:
    """The decode steps of an observed run."""
    tables = accounting.account(concat(report.spans for report in reports), plan.placement)
    parts = accounting.PARTS_OF_STEP.rows(tables["parts"])
    timed = accounting.TIMED.rows(tables["timed_collectives"])
    return Seen(
        step_ms,
        [one for one in parts if one.phase == DECODE],
        [one for one in timed if one.phase == DECODE],
        reports,
    )


def decode_ms(reports: Sequence[RankReport], work: Work, plan: EnginePlan) -> float:
    """A decode step of a timed run in ms."""
    requests = concat(report.requests for report in reports)
    assert requests is not None
    num_ranks = plan.placement.num_ranks
    made = throughput_of(requests, work.max_concurrency, len(work.requests), num_ranks)
    assert made.decode_ms_per_step is not None, "too few tokens for a decode step"
    return made.decode_ms_per_step


# -- the checks


def checks(measured: Measured, calibration: pa.Table | None) -> Iterator[Finding]:
    """What every check finds. calibration: table FABRIC, for the third, which is left out where it
    is None."""
    yield ablation(measured)
    yield counted_bytes(measured)
    if calibration is not None:
        yield transfer(measured.whole, calibration)
    yield sum_of_parts(measured.whole)
    yield from delayed(measured)
    yield profiled(measured.whole)
    yield one_device(measured.single)


def found(
    check: str, expected: float, measured: float, unit: str, tolerance: float | None
) -> Finding:
    return Finding(
        check=check,
        expected=expected,
        measured=measured,
        unit=unit,
        tolerance=tolerance,
        passed=None if tolerance is None else bool(abs(measured - expected) <= tolerance),
    )


def ablation(measured: Measured) -> Finding:
    whole = measured.whole
    exposed = whole.part("exposed_transfer") + whole.part("exposed_wait")
    share = 100 * exposed / whole.part("step")
    saved = 100 * (1 - measured.without.step_ms / whole.step_ms)
    check = "1 ablation: step saved / profile's comm_exposed"
    return found(check, share, saved, "% of the step", 3.0)


def counted_bytes(measured: Measured) -> Finding:
    """Bytes of the decode phase on rank 0. Graphs pad a batch to their size; so does the analytic
    count."""
    plan, (report, *_) = measured.plan, measured.whole.reports
    steps = [one for one in STEPS.rows(report.steps) if one.phase == DECODE]
    expected = sum(decode_bytes(plan, one.num_requests) for one in steps)
    assert report.collectives is not None
    counted = [one for one in COLLECTIVES.rows(report.collectives) if one.phase == DECODE]
    total = sum(one.bytes or 0 for one in counted)
    check = "2 counted bytes of a decode step / analytic"
    return found(check, float(expected), float(total), "B", 0.0)


def decode_bytes(plan: EnginePlan, batch: int) -> int:
    """What rank 0 communicates in a decode step of `batch` requests."""
    size = DTYPE_BYTES[plan.dtype]
    return sum(one.bytes for one in decode_step(plan.placement, plan.model, 0, batch, size))


def transfer(whole: Seen, calibration: pa.Table) -> Finding:
    """us of one all-reduce."""
    seen = next(one for one in whole.timed if one.op == "all_reduce" and one.rank == 0)
    assert seen.bytes is not None
    assert seen.group_size is not None
    assert seen.transfer_us is not None
    expected = all_reduce_us(calibration, seen.group_size, seen.bytes / seen.calls)
    check = "3 transfer of an all-reduce / microbenchmark"
    return found(check, expected, seen.transfer_us, "us", 0.15 * expected)


def all_reduce_us(calibration: pa.Table, group_size: int, size: float) -> float:
    """us of an all-reduce of `size` bytes over as many ranks, in a graph where that was measured;
    linear between the sizes of the microbenchmark."""
    rows = [
        one
        for one in FABRIC.rows(calibration)
        if one.op == "all_reduce" and one.group_size == group_size
    ]
    mode = "graph" if any(one.mode == "graph" for one in rows) else "eager"
    points = np.array(sorted((one.bytes, one.time_us) for one in rows if one.mode == mode))
    return float(np.interp(size, points[:, 0], points[:, 1]))


def sum_of_parts(whole: Seen) -> Finding:
    step, total = whole.part("step"), sum(whole.part(part) for part in accounting.PARTS)
    return found("4 sum of the parts / step", step, total, "ms", 0.01 * step)


def delayed(measured: Measured) -> Iterator[Finding]:
    """What rank 0 sees of another rank being held up."""
    held_up, tolerance = measured.delay_ms, 0.2 * measured.delay_ms
    wait, meanwhile, moved = (
        measured.late.part(part, 0) - measured.whole.part(part, 0)
        for part in ("exposed_wait", "wait_compute", "exposed_transfer")
    )
    yield found("5 delay on one rank: more wait on another", held_up, wait, "ms", tolerance)
    # The delay is a kernel that spins, or on a CPU a host that is in no collective.
    check = "5 delay on one rank: more wait for its kernel on another"
    yield found(check, held_up, meanwhile, "ms", tolerance)
    yield found("5 delay on one rank: more transfer on another", 0.0, moved, "ms", tolerance)


def profiled(whole: Seen) -> Finding:
    return found("6 profiled step / timed step", whole.step_ms, whole.part("step"), "ms", None)


def one_device(single: Seen) -> Finding:
    share = 100 * single.part("comm_busy") / single.part("step")
    return found("7 communication of one device", 0.0, share, "% of the step", 0.0)


if __name__ == "__main__":
    main()
