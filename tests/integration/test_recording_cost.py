"""The benchmark of what recording costs: its variants record what their names say, and waiting is
counted where it is timed."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest
from ranks import BASE, FAMILIES, engine_plan, ragged_requests

from strategies import ModelShape
from workers.actor import Worker
from workers.communicator import Recording
from workers.messages import Work
from workers.probes import gauges


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "recording_cost.py"
    spec = importlib.util.spec_from_file_location("recording_cost", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_variants_record_what_their_names_say(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "_of_ray", lambda metric: Mock())
    shape = ModelShape.from_config(
        {**BASE, **FAMILIES["Llama"], "architectures": ["LlamaForCausalLM"]}, "llama"
    )
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=4)
    captured = Recording()
    for _ in range(3):
        captured.add("all_reduce", "tp", 512)
    worker = Worker()
    try:
        worker.build("torch", engine_plan("tp1", shape, None, work), None)
        with bench.counting(captured):
            rows = list(bench.measure(worker, work, 2))
        after = worker.run(work)
    finally:
        worker.close()
    assert [row.variant for row in rows] == [
        *bench.VARIANTS,
        "without sampler",
        "nothing",
        "everything",
    ]
    steps = after.steps.num_rows
    for row in rows:
        recorded, sampled = row.variant != "nothing", row.variant == "everything"
        assert (row.steps, row.collectives) == ((steps, 3 * steps) if recorded else (0, 0))
        assert (row.readings > 0, row.samples > 0, row.sampler_cpu_s > 0) == (
            recorded,
            sampled,
            sampled,
        )
        made = row.output_throughput * row.loop_s
        assert made == pytest.approx(sum(r.output_len for r in work.requests))
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
        rows = [
            [SimpleNamespace(output_throughput=value) for value in side]
            for side in (ratios, [1.0] * len(ratios))
        ]
        verdict: str = bench.verdict(bench.against(*rows))
        return verdict.split(",")[0]

    assert judged(0.998, 0.999, 1.0) == "yes"
    assert judged(0.95, 0.951, 0.952) == "no"
    assert judged(0.9, 1.0, 1.1) == "these rounds cannot tell"
    assert judged(1.0) == "one round cannot tell"
