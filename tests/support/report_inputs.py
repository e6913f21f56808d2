"""A folder of made-up results, as the driver would leave it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from summaries import write_run

from orchestrator.analysis.observed.accounting import (
    PARTS,
    PARTS_OF_STEP,
    TIMED,
    PartsRow,
    TimedRow,
)
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.store.store import Store
from workers.records import (
    COMPUTE,
    DECODE,
    PREFILL,
    REQUESTS,
    SPANS,
    STEPS,
    TELEMETRY,
    RequestRow,
    SampleRow,
    SpanRow,
    StepRow,
)
from workers.rows import nothing

LAYOUTS, CONCURRENCIES = ("tp4", "pp4", "tp2pp2", "dp4"), (1, 8, 32)
SHARES = {
    "compute": 80.0,
    "exposed_transfer": 9.0,
    "exposed_wait": 5.0,
    "bubble": 2.0,
    "fused": 0.0,
    "launch_gap": 4.0,
}
GIGABYTE = 10**9
GPU = {
    "name": "Test GPU",
    "memory_bytes": 80 * GIGABYTE,
    "max_sm_clock_mhz": 1980,
    "power_limit_w": 700.0,
}


@dataclass(frozen=True)
class MadeUp:
    """What every run is made of. served: requests of a run. calls: collectives of a step. samples:
    of a GPU."""

    device: str = "cuda"
    ranks: int = 4
    served: int = 20
    calls: int = 6
    samples: int = 30

    def figures(self, speed: float, concurrency: int) -> dict[str, object]:
        """Columns of the summary of a run that makes `speed` tokens a second. Its bound is a
        quarter above that."""
        return {
            "output_throughput": speed,
            "output_throughput_per_gpu": speed / self.ranks,
            "num_gpus": self.ranks,
            "device_name": "Test GPU" if self.device == "cuda" else "cpu",
            "median_tpot_ms": 1e3 * concurrency / speed,
            "median_ttft_ms": 50.0,
            "peak_memory_bytes": 50 * GIGABYTE,
            "peak_memory_bytes_per_rank": [50 * GIGABYTE] * self.ranks,
            "weight_bytes_per_rank": [30 * GIGABYTE] * self.ranks,
            "kv_bytes_per_rank": [15 * GIGABYTE] * self.ranks,
            "decode_ms_per_step": 10.0,
            "bound_output_throughput": 1.25 * speed,
            "bound_pct": 80.0,
            "bound_source": "calibrated",
            **self.device_time(speed),
        }

    def device_time(self, speed: float) -> dict[str, object]:
        """Columns of what a token costs: 80% decode, 12% prefill, 5% ramp, 3% outside of steps. The
        weights take half of decode and, as on devices faster than their rates, all of prefill."""
        total, tokens = 1e3 * self.ranks / speed, 1000
        percent = {
            "outside": 3.0,
            "ramp": 5.0,
            "decode_device": 84.0,
            "prefill_device": 13.0,
            "decode_ramp": 4.0,
            "prefill_ramp": 1.0,
            "decode_weights": 40.0,
            "decode_kv": 8.0,
            "decode_arithmetic": 0.0,
            "prefill_weights": 12.0,
            "prefill_kv": 0.0,
            "prefill_arithmetic": 30.0,
        }
        parts = {f"{part}_ms_per_token": total * share / 100 for part, share in percent.items()}
        each = total * tokens / 1e3 / self.ranks
        return {
            "device_ms_per_token": total,
            "total_output_tokens": tokens,
            "decode_steps_s_per_rank": [0.80 * each] * self.ranks,
            "prefill_steps_s_per_rank": [0.12 * each] * self.ranks,
            "roofline_source": "calibrated",
            **parts,
        }

    def tables(self, micro_batches: int) -> dict[str, pa.Table]:
        """The tables of a timed run."""
        return {
            "requests": self.requests,
            "telemetry": self.telemetry,
            "steps": self.steps[micro_batches],
        }

    @cached_property
    def observed(self) -> dict[str, pa.Table]:
        """The tables of an observed run."""
        ranks = range(self.ranks)
        each = [(rank, phase) for rank in ranks for phase in (DECODE, PREFILL)]
        return {
            "parts": PARTS_OF_STEP.make(_parts(rank, phase) for rank, phase in each),
            "spans": SPANS.make(span for rank in ranks for span in spans(rank, self.calls)),
            "timed_collectives": TIMED.make(self._timed(rank, phase) for rank, phase in each),
        }

    @cached_property
    def requests(self) -> pa.Table:
        firsts = np.random.default_rng(0).uniform(0.05, 0.5, self.served)
        return REQUESTS.make(_request(index, first) for index, first in enumerate(firsts))

    @cached_property
    def telemetry(self) -> pa.Table:
        random = np.random.default_rng(0)
        random.uniform(0.05, 0.5, self.served)
        watts = random.uniform(400, 600, self.samples)
        gpus = range(self.ranks) if self.device == "cuda" else [None]
        return TELEMETRY.make(
            _sample(i / 10, gpu, float(watts[i])) for i in range(self.samples) for gpu in gpus
        )

    @cached_property
    def steps(self) -> dict[int, pa.Table]:
        """Micro-batches in flight -> the steps of all ranks."""
        return {
            number: STEPS.make(
                _step(rank, step, step % number) for rank in range(self.ranks) for step in range(8)
            )
            for number in range(1, 5)
        }

    def _timed(self, rank: int, phase: str) -> TimedRow:
        return TimedRow(
            rank=rank,
            phase=phase,
            op="all_reduce",
            axis="tp",
            calls=3 * self.calls,
            bytes=3 * self.calls * 2_000_000,
            group_size=self.ranks,
            transfer_us=100.0,
            wait_us=10.0 * rank,
            algbw=20.0,
            busbw=30.0 - rank,
        )


def write_results(
    folder: Path,
    layouts: Sequence[str] = ("tp4", "pp4", "tp2pp2"),
    concurrencies: Sequence[int] = (1, 8, 32),
    failing: Sequence[str] = (),
    ablated: Sequence[str] = (),
    **made_up: object,
) -> Path:
    """Two runs of every layout at every concurrency. made_up: fields of `MadeUp`.

    The stages of pp4 have four micro-batches in flight, where there are as many requests. ablated:
    layouts that are run without collectives too.
    """
    made = MadeUp(**made_up)
    store = Store(folder)
    store.create()
    _write_manifest(store, made)
    for place, layout in enumerate(layouts):
        for concurrency in concurrencies:
            cell = cell_of(layout, concurrency)
            if layout in failing:
                _write_failed(store, cell, made)
                continue
            _write_runs(store, cell, made, concurrency**0.8 * (10 - place), layout in ablated)
            store.write_observed(cell, 0, made.observed)
    return folder


def cell_of(layout: str, concurrency: int, ablation: str = "none") -> Cell:
    """A cell of the made-up results."""
    deployment = Deployment("tiny", layout, "torch", "bfloat16", ablation=ablation)
    return Cell(deployment, Scenario("short", 256, 128), concurrency)


def _write_manifest(store: Store, made: MadeUp) -> None:
    ranks = range(made.ranks)
    store.update_manifest(
        device=made.device,
        gpus=[{**GPU, "index": index} for index in ranks] if made.device == "cuda" else [],
        topology=[
            {"node": "local", "index": index, "name": "Test GPU", "memory_bytes": 80 * GIGABYTE}
            for index in ranks
        ],
        host={"name": "here", "cpu_count": 4},
        versions={"torch": "2"},
    )


def _write_failed(store: Store, cell: Cell, made: MadeUp) -> None:
    reason = "out_of_memory: <rank 3>"
    for index in range(2):
        write_run(
            store,
            Run(cell, 0, index),
            status="failed",
            reason=reason,
            num_gpus=made.ranks,
            output_throughput=None,
            device_name=None,
        )


def _write_runs(store: Store, cell: Cell, made: MadeUp, speed: float, ablated: bool) -> None:
    layout, concurrency = cell.deployment.strategy, cell.max_concurrency
    micro_batches = min(4 if layout == "pp4" else 1, concurrency)
    for index in range(2):
        figures = made.figures(speed * (1 + 0.01 * index), concurrency)
        write_run(store, Run(cell, 0, index), made.tables(micro_batches), **figures)
        if ablated:
            bare = Run(cell_of(layout, concurrency, "comm"), 0, index)
            write_run(store, bare, **{**figures, "decode_ms_per_step": 8.0})


def _request(index: int, first: float) -> RequestRow:
    return RequestRow(
        request_index=index,
        replica=0,
        input_len=256,
        cached_tokens=0,
        output_len=3,
        arrival_s=0.0,
        admitted_s=None,
        token_times_s=[first, first + 0.01, first + 0.03],
        output_token_ids=None,
    )


def _sample(time_s: float, gpu: int | None, watts: float) -> SampleRow:
    common = {"rank": gpu or 0, "process_id": 1, "time_s": time_s, "process_cpu_pct": 99.0}
    if gpu is None:
        return replace(nothing(SampleRow), **common)
    seen = {"gpu": gpu, "gpu_utilization_pct": 90, "memory_used_bytes": 51 * GIGABYTE}
    return replace(nothing(SampleRow), **common, **seen, power_w=watts)


def _step(rank: int, step: int, micro_batch: int) -> StepRow:
    return StepRow(
        rank=rank,
        step=step,
        phase=DECODE,
        micro_batch=micro_batch,
        num_requests=1,
        num_tokens=1,
        end_s=step / 100,
    )


def _parts(rank: int, phase: str) -> PartsRow:
    """A step of 10 ms. All communication of it is exposed."""
    parts = {f"{part}_ms": SHARES[part] / 10 for part in PARTS}
    waits = {"wait_compute_ms": 0.3, "wait_launch_ms": 0.2, "wait_communication_ms": 0.0}
    return PartsRow(
        rank=rank,
        phase=phase,
        steps=3,
        steps_unmatched=0,
        reason=None,
        step_ms=10.0,
        comm_busy_ms=1.4,
        timed_step_ms=10.0,
        profile_ratio=1.0,
        whole=False,
        attention_ms=None,
        attention_tflops=None,
        **parts,
        **waits,
    )


def spans(rank: int, calls: int, steps: int = 3) -> Iterator[SpanRow]:
    """Steps of 10 ms: compute in two stretches, then an all-reduce, `calls` times over."""
    length = 1e4 / calls
    for call in range(calls * steps):
        start = 1e6 + call * length
        for kind, begin, end in (
            (COMPUTE, 0.0, 0.4),
            (COMPUTE, 0.4, 0.8),
            ("all_reduce", 0.8, 1.0),
        ):
            yield span(rank, call // calls, kind, start + begin * length, start + end * length)


def span(rank: int, step: int, kind: str, start_us: float, end_us: float) -> SpanRow:
    """A span of a decode step, of no axis."""
    return SpanRow(
        rank=rank,
        phase=DECODE,
        step=step,
        kind=kind,
        fused=None,
        axis=None,
        call_phase=None,
        call_step=None,
        bytes=None,
        start_us=start_us,
        end_us=end_us,
    )
