"""Ranks that sampled their GPUs, with known answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tables import make

from workers.messages import RankReport
from workers.records import COLLECTIVES, STEPS, TELEMETRY


def report(
    rank: int,
    powers: Sequence[float | None],
    step_s: float = 0.1,
    collectives: Iterable[Mapping[str, object]] | None = (),
    **fields: Sequence[object],
) -> RankReport:
    """A rank whose GPU drew `powers` watts at 0, step_s, ... seconds.

    collectives: op, axis, calls and bytes of what it counted; None: it cannot count. fields: other
    columns of its samples, a value a sample.
    """
    rows = [
        {
            "rank": rank,
            "process_id": 100 + rank,
            "gpu": rank,
            "gpu_uuid": f"GPU-{rank}",
            "time_s": step_s * i,
            "power_w": power,
            **{name: values[i] for name, values in fields.items()},
        }
        for i, power in enumerate(powers)
    ]
    counted = None
    if collectives is not None:
        of_rank = {"rank": rank, "phase": "decode"}
        counted = make(COLLECTIVES, [{**of_rank, **one} for one in collectives])
    telemetry = make(TELEMETRY, rows)
    return RankReport(rank, None, STEPS.make([]), counted, 0, telemetry=telemetry)


def without_gpu(rank: int = 0) -> RankReport:
    """A rank on a CPU."""
    rows = [{"rank": rank, "process_id": 100, "time_s": 0.1, "process_cpu_pct": 99.0}]
    return RankReport(rank, None, STEPS.make([]), None, 0, telemetry=make(TELEMETRY, rows))
