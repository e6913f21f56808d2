"""Two results to be set against each other: runs of cells, start by start, and their folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from summaries import summary, write_run

from orchestrator.analysis.summary import Summary
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.store.store import Store

GPU = {
    "index": 0,
    "name": "H200",
    "uuid": "GPU-aaaaaaaa-1",
    "memory_bytes": 141,
    "driver": "580",
    "max_sm_clock_mhz": 1980,
    "memory_clock_mhz": 3201,
    "power_limit_w": 700.0,
}
OTHER_GPU = {**GPU, "uuid": "GPU-cccccccc-2"}
MANIFEST: Mapping[str, object] = {
    "device": "cuda",
    "versions": {"torch": "2.11", "numpy": "2"},
    "gpus": [GPU],
    "host": {"name": "vm"},
    "driver_version": "580",
    "nccl_version": "2.28.9",
    "nvls": "off",
    "environment": {"NCCL_ALGO": "Ring"},
    "git_commit": "abc",
    "experiment": {"seed": 0},
}


def starts(
    throughputs: Sequence[float | None], strategy: str = "tp4", **given: object
) -> list[Summary]:
    """A cell of which every start has one run, failed where it has no throughput."""
    cell = {"model": "m", "strategy": strategy, "max_concurrency": 32}
    return [
        summary(
            **{
                **cell,
                "start": index,
                "run": index,
                "status": "failed" if value is None else "completed",
                "output_throughput": value,
                **given,
            }
        )
        for index, value in enumerate(throughputs)
    ]


def with_metric(metric: str, values: Iterable[float | None], **given: object) -> list[Summary]:
    """A cell of which every start has one completed run with a value of `metric`."""
    return [
        run
        for index, value in enumerate(values)
        for run in starts([100.0], **{metric: value, "start": index, "run": index, **given})
    ]


def write_result(
    folder: Path,
    cells: Mapping[tuple[str, int], Sequence[float | None]],
    manifest: Mapping[str, object] = MANIFEST,
    **given: object,
) -> Path:
    """A folder as `submit` leaves it. cells: output_throughput of each start, None where it failed,
    by layout and concurrency. given: columns of every run."""
    store = Store(folder)
    store.create()
    store.update_manifest(**manifest)
    for (strategy, concurrency), throughputs in cells.items():
        deployment = Deployment("m", strategy, "torch", "bfloat16")
        cell = Cell(deployment, Scenario("short", 256, 128), concurrency)
        for index, value in enumerate(throughputs):
            figures = {"output_throughput": value, "median_tpot_ms": 10.0, **given}
            status = "failed" if value is None else "completed"
            write_run(store, Run(cell, index, 0), status=status, **figures)
    return folder
