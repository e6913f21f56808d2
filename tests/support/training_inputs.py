"""A folder of made-up runs that train, as the driver would leave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tables import make

from orchestrator.analysis.training.rows import TRAINED
from orchestrator.experiment import Cell, Deployment, Run, Scenario
from orchestrator.store.store import Store
from workers.records import TELEMETRY
from workers.rows import flat
from workers.training_records import (
    TRAINING_COLLECTIVES,
    TRAINING_OVERLAPS,
    TRAINING_PARTS,
    TRAINING_STEPS,
)

GIGABYTE = 10**9
H200 = "NVIDIA H200"
GPU = {"name": H200, "memory_bytes": 141 * GIGABYTE}
CONDITIONS = {
    "seq_len": 4096,
    "global_batch_size": 16,
    "micro_batch_size": 1,
    "micro_batches": 8,
    "steps": 3,
    "precision": "bf16",
    "activation_checkpointing": "selective",
    "offload": "none",
    "seed": 0,
    "num_gpus": 2,
    "started_at": "2030-01-01T00:00:00+00:00",
    "block": 0,
    "metadata": "{}",
}
MEMORY = {
    "weight_bytes": 8 * GIGABYTE,
    "gradient_bytes": 8 * GIGABYTE,
    "optimizer_bytes": 48 * GIGABYTE,
    "activation_bytes": 22 * GIGABYTE,
    "peak_memory_bytes": 86 * GIGABYTE,
}
PARTS = {
    "steps": 2,
    "step_ms": 1000.0,
    "forward_ms": 250.0,
    "backward_ms": 500.0,
    "optimizer_ms": 50.0,
    "other_ms": 20.0,
    "exposed_ms": 100.0,
    "handover_ms": 0.0,
    "agreement_ms": 30.0,
    "gap_ms": 50.0,
    "busy_ms": 400.0,
    "timed_step_ms": 980.0,
    "profile_ratio": 1.02,
}


def cell_of(layout: str) -> Cell:
    """A cell of the made-up results."""
    deployment = Deployment("llama-8b", layout, "torch", "bfloat16")
    return Cell(deployment, Scenario("train4096", 4096, 0), 16)


def write_training(
    folder: Path,
    speeds: Mapping[str, Sequence[float]],
    memory: Mapping[str, Mapping[str, int]] | None = None,
    parts: Mapping[str, Mapping[str, object]] | None = None,
    device: str = H200,
    steps: int = 3,
) -> Path:
    """A run of each layout for each of its tokens a second, a start each. memory: of layouts that
    have it another way. parts: of layouts that were observed, what is other in them."""
    store = Store(folder)
    store.create()
    store.update_manifest(
        experiment={"model": "llama-8b", "load_format": "dummy"},
        device="cuda" if device == H200 else "cpu",
        gpus=[{**GPU, "index": index} for index in range(2)] if device == H200 else [],
    )
    for layout, mine in speeds.items():
        held = {**MEMORY, **(memory or {}).get(layout, {}), "device_name": device}
        for start, speed in enumerate(mine):
            _write_run(
                store, Run(cell_of(layout), start, 0), speed, {**held, "device_name": device}, steps
            )
        if layout in (parts or {}):
            _write_observed(store, cell_of(layout), (parts or {})[layout])
    return folder


def _write_run(
    store: Store, run: Run, speed: float, held: Mapping[str, object], count: int
) -> None:
    steps = [
        {"step": i, "loss": 12.0 - i + 1e-6 * len(run.name), "grad_norm": 6.0, "end_s": 1.0 + i}
        for i in range(count)
    ]
    figures = {
        "status": "completed",
        "tokens_per_second": speed,
        "tokens_per_second_per_gpu": speed / 2,
        "step_time_ms": 1e3 * 16 * 4096 / speed,
        "loss": 10.0,
        "communication_calls": 10,
        "communication_bytes": GIGABYTE,
    }
    row = {**flat(store.run_key(run)), **CONDITIONS, **held, **figures}
    tables = {
        "training_steps": make(TRAINING_STEPS, steps),
        "training_collectives": make(TRAINING_COLLECTIVES, []),
        "telemetry": make(TELEMETRY, []),
    }
    store.write_run(run, make(TRAINED, [row]), tables)


def _write_observed(store: Store, cell: Cell, changes: Mapping[str, object]) -> None:
    is_piped = changes.get("bubble_share") is not None
    rows = [
        {**PARTS, "rank": rank, "stages": [rank if is_piped else 0], **changes} for rank in range(2)
    ]
    tables = {
        "training_parts": make(TRAINING_PARTS, rows),
        "training_overlaps": make(TRAINING_OVERLAPS, []),
    }
    store.write_observed(cell, 0, tables)
