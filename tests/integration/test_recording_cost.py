"""The benchmark of what recording costs: its variants record what their names say, and waiting is
counted where it is timed. The published results of both benchmarks can be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import pytest
from benchmark_scripts import loaded
from ranks import BASE, FAMILIES, engine_plan, ragged_requests

from orchestrator.store.arrow_files import read_part
from strategies import ModelShape
from workers.actor import Worker
from workers.communicator import Recording
from workers.messages import Work
from workers.probes import gauges
from workers.rows import nothing

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "results" / "2xh200"
CHECKED = ROOT / "docs" / "results" / "2xh100" / "validation"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        yield loaded("recording_cost", patch)


def all_reduces(calls: int) -> Recording:
    """What a graph with so many all-reduces has recorded."""
    captured = Recording()
    for _ in range(calls):
        captured.add("all_reduce", "tp", 512)
    return captured


def test_the_variants_record_what_their_names_say(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "_of_ray", lambda metric: Mock())
    shape = ModelShape.from_config(
        {**BASE, **FAMILIES["Llama"], "architectures": ["LlamaForCausalLM"]}, "llama"
    )
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=4)
    setup = replace(nothing(bench.Setup), model="llama", rate_hz=10.0)
    worker = Worker()
    try:
        worker.build("torch", engine_plan("tp1", shape, None, work), None)
        with bench.counting(all_reduces(3)):
            rows = list(bench.measure(worker, work, setup, 2))
        after = worker.run(work)
    finally:
        worker.close()
    runs = [row.served for row in rows]
    assert [run.variant for run in runs] == [
        *bench.VARIANTS,
        "without sampler",
        "nothing",
        "everything",
    ]
    assert [row.round for row in rows] == [0, 0, 0, 1, 1, 1]
    assert {row.setup for row in rows} == {setup}
    steps = after.steps.num_rows
    for run in runs:
        recorded, sampled = run.variant != "nothing", run.variant == "everything"
        assert (run.steps, run.collectives) == ((steps, 3 * steps) if recorded else (0, 0))
        found = (run.readings > 0, run.samples > 0, run.sampler_cpu_s > 0)
        assert found == (recorded, sampled, sampled)
        assert run.output_throughput * run.loop_s == pytest.approx(
            sum(r.output_len for r in work.requests)
        )
    assert after.requests is not None  # the stand-ins are gone
    assert after.requests.num_rows == len(work.requests)


def test_calls_are_counted_inside_the_loop(bench: ModuleType) -> None:
    def event(name: str, category: str, start: float, duration: float = 1.0) -> dict[str, object]:
        return {"ph": "X", "name": name, "cat": category, "ts": start, "dur": duration}

    trace = {
        "traceEvents": [
            event(bench.LOOP, "user_annotation", 10, 100),
            event(bench.LOOP, "gpu_user_annotation", 12, 300),
            event("cudaDeviceSynchronize", "cuda_runtime", 5),
            event("cudaGraphLaunch", "cuda_runtime", 20),
            event("cudaEventSynchronize", "cuda_runtime", 30),
            event("aten::copy_", "cpu_op", 40),
            event("Memcpy HtoD (Pageable -> Device)", "gpu_memcpy", 200),
            event("Memcpy DtoH (Device -> Pinned)", "gpu_memcpy", 210),
            event("cudaDeviceSynchronize", "cuda_runtime", 111),
            {"ph": "M", "name": "process_name"},
        ]
    }
    calls = bench.calls_inside(trace)
    assert calls == Counter(
        ["cudaGraphLaunch", "cudaEventSynchronize", "Memcpy HtoD (Pageable -> Device)"]
    )
    assert [name for name in calls if bench.waits(name)] == [
        "cudaEventSynchronize",
        "Memcpy HtoD (Pageable -> Device)",
    ]


def test_a_cost_is_judged_by_its_whole_interval(bench: ModuleType) -> None:
    def judged(*ratios: float) -> str:
        unknown = nothing(bench.Served)
        sides = [
            [replace(unknown, output_throughput=value) for value in side]
            for side in (ratios, [1.0] * len(ratios))
        ]
        verdict: str = bench.verdict(bench.against(*sides))
        return verdict.split(",")[0]

    assert judged(0.998, 0.999, 1.0) == "yes"
    assert judged(0.95, 0.951, 0.952) == "no"
    assert judged(0.9, 1.0, 1.1) == "these rounds cannot tell"
    assert judged(1.0) == "one round cannot tell"


def test_the_published_runs_are_read_as_rows(bench: ModuleType) -> None:
    table = read_part(PUBLISHED / "recording_cost.arrow")
    assert table is not None
    assert sorted(table.column_names) == sorted(bench.COST.schema.names)
    rows = bench.COST.rows(table)
    assert Counter(row.served.variant for row in rows) == dict.fromkeys(bench.VARIANTS, 6)
    assert {row.setup.model for row in rows} == {"llama-8b"}


def test_the_published_checks_are_read_as_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    validation = loaded("validate_measurement", monkeypatch).VALIDATION
    table = read_part(CHECKED / "validation.arrow")
    assert table is not None
    assert sorted(table.column_names) == sorted(validation.schema.names)
    findings = [row.finding for row in validation.rows(table)]
    assert [(one.check[0], one.passed) for one in findings] == [
        *(("1", True), ("2", True), ("3", True), ("4", True)),
        *(("5", True), ("5", True), ("5", True), ("6", None), ("7", True)),
    ]
