"""What a step costs without its collectives, or without peer-to-peer links: an independent check of
the profile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import median

from orchestrator.analysis.comparing.compare import completed
from orchestrator.analysis.summary import Summary
from orchestrator.store.schema import CellKey
from workers.rows import Table, column, group, grouped, row


@row
class Effect:
    """An ablated cell beside the whole one."""

    cell: CellKey = group()
    decode_ms_per_step: float = column("decode step of the whole layout, median over runs", "ms")
    decode_ms_per_step_without: float = column("the same without what is left out", "ms")
    saved_pct: float = column(
        "what the step is shorter by", "%", formula="100 x (1 - without / whole)"
    )
    comm_exposed_pct: float | None = column(
        "exposed communication by the profile of the whole layout, to be held against it", "%"
    )


EFFECTS = Table("ablations", Effect)


def effects(runs: Iterable[Summary]) -> list[Effect]:
    """A row per ablated cell whose whole counterpart was run too.

    Outputs of one token have no decode step, and no row.
    """
    known = [run for run in completed(runs) if run.throughput.decode_ms_per_step]
    cells = grouped(known, lambda run: replace(run.cell, ablation="none"))
    return [effect for mine in cells.values() for effect in _of_cell(mine)]


def _of_cell(runs: Sequence[Summary]) -> Iterator[Effect]:
    by_ablation = grouped(runs, lambda run: run.cell.ablation)
    whole = by_ablation.pop("none", [])
    for ablated in by_ablation.values() if whole else ():
        before, after = _step_ms(whole), _step_ms(ablated)
        yield Effect(
            cell=ablated[0].cell,
            decode_ms_per_step=before,
            decode_ms_per_step_without=after,
            saved_pct=100.0 * (1.0 - after / before),
            comm_exposed_pct=whole[0].step.decode.comm_exposed.pct,
        )


def _step_ms(runs: Sequence[Summary]) -> float:
    return median(run.throughput.decode_ms_per_step or 0.0 for run in runs)


def sentence(effect: Effect) -> str:
    """One line on an effect."""
    cell = effect.cell
    name = f"{cell.strategy} {cell.scenario} at {cell.max_concurrency} concurrent"
    before, after = effect.decode_ms_per_step, effect.decode_ms_per_step_without
    change = f"{name}: {before:.2f} -> {after:.2f} ms a step"
    if cell.ablation != "comm":
        return f"Without peer-to-peer links: {change}, x {after / before:.2f}."
    by_profile = effect.comm_exposed_pct
    profile = "" if by_profile is None else f"; the profile says {by_profile:.1f}%"
    return f"Without collectives: {change}, {effect.saved_pct:.1f}% less{profile}."
