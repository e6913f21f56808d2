"""What each rank held at its peak."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.analysis.building import Memory
from orchestrator.analysis.comparing.rounds import completed
from orchestrator.analysis.summary import Summary
from orchestrator.report.charts.views import Names, View, rounded, view
from workers.rows import grouped, widened


@dataclass(frozen=True)
class RankMemory(View):
    """One rank, in GB. weight, kv: None where a rank does not report them, or reports more than its
    peak, as of pages that it never touched. rest: what remains of the peak."""

    rank: int
    peak: float | None
    rest: float | None
    weight: float | None
    kv: float | None


def memory(runs: Iterable[Summary], names: Names) -> list[RankMemory]:
    """A row for each cell and rank, of the run of the cell with the highest peak."""
    known = [run for run in completed(runs) if run.cell in names and _peaks(run.memory)]
    return [
        widened(RankMemory, view(cell, names), **held)
        for cell, mine in grouped(known, lambda run: run.cell).items()
        for held in _ranks(max(mine, key=lambda run: max(_peaks(run.memory))).memory)
    ]


def _peaks(one: Memory) -> Sequence[int]:
    return one.peak_memory_bytes_per_rank or ()


def _ranks(one: Memory) -> Iterator[dict[str, object]]:
    for rank, peak in enumerate(_peaks(one)):
        weight, kv = _nth(one.weight_bytes_per_rank, rank), _nth(one.kv_bytes_per_rank, rank)
        if weight + kv > peak:
            weight = kv = 0
        yield {
            "rank": rank,
            "peak": rounded(peak / 1e9),
            "rest": rounded((peak - weight - kv) / 1e9),
            "weight": rounded(weight / 1e9) if weight else None,
            "kv": rounded(kv / 1e9) if kv else None,
        }


def _nth(values: Sequence[int] | None, index: int) -> int:
    return values[index] if values and index < len(values) else 0
