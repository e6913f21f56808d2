"""What a step costs without its collectives, or without peer-to-peer links: an independent check of
the profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from orchestrator.analysis.comparing.confidence import paired_ratio
from orchestrator.analysis.comparing.rounds import completed, means
from orchestrator.analysis.summary import Summary
from orchestrator.store.schema import CellKey
from workers.rows import Table, column, group, grouped, row


@row
class Effect:
    """An ablated cell beside the whole one."""

    cell: CellKey = group()
    decode_ms_per_step: float = column("decode step of the whole layout, mean over starts", "ms")
    decode_ms_per_step_without: float = column("the same without what is left out", "ms")
    saved_pct: float = column(
        "what the step is shorter by, over the rounds that both have, or all where there are none",
        "%",
        formula="100 x (1 - without / whole)",
    )
    saved_ci_low: float | None = column(
        "lower end of its 95% interval, from two rounds on", "%", source="Fieller 1954, of pairs"
    )
    saved_ci_high: float | None = column("upper end of it", "%", source="Fieller 1954, of pairs")
    comm_exposed_pct: float | None = column(
        "exposed communication by the profile of the whole layout, to be held against it", "%"
    )
    fused_pct: float | None = column(
        "kernels that communicate and compute, by the profile of the whole layout", "%"
    )
    fused_comm_pct: float | None = column(
        "the part of these that is communication, which no profile can see; null where none runs, "
        "and where anything but collectives is left out",
        "%",
        formula="saved_pct - comm_exposed_pct, from 0 to fused_pct",
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
    yield from (_effect(whole, ablated) for ablated in by_ablation.values() if whole)


def _effect(whole: Sequence[Summary], ablated: Sequence[Summary]) -> Effect:
    before, after = means(whole, _step_ms), means(ablated, _step_ms)
    shared = [at for at in before if at in after]
    sides = [after[at] for at in shared], [before[at] for at in shared]
    found = paired_ratio(*sides)
    exposed = _mean(whole, lambda run: run.step.decode.comm_exposed.pct)
    fused = _mean(whole, lambda run: run.step.decode.fused.pct)
    without = found.value if found else fmean(after.values()) / fmean(before.values())
    in_fused = _in_fused(_saved(without), exposed, fused)
    return Effect(
        cell=ablated[0].cell,
        decode_ms_per_step=fmean(before.values()),
        decode_ms_per_step_without=fmean(after.values()),
        saved_pct=_saved(without),
        saved_ci_low=_saved(found.high) if found and found.high is not None else None,
        saved_ci_high=_saved(found.low) if found and found.low is not None else None,
        comm_exposed_pct=exposed,
        fused_pct=fused,
        fused_comm_pct=in_fused if ablated[0].cell.ablation == "comm" else None,
    )


def _in_fused(saved: float, exposed: float | None, fused: float | None) -> float | None:
    """What is saved beyond the communication that the profile sees was in the fused kernels."""
    if not fused or exposed is None:
        return None
    return min(fused, max(0.0, saved - exposed))


def _mean(runs: Iterable[Summary], value: Callable[[Summary], float | None]) -> float | None:
    """Over starts."""
    found = means(runs, value).values()
    return fmean(found) if found else None


def _saved(without: float) -> float:
    return 100.0 * (1.0 - without)


def _step_ms(run: Summary) -> float | None:
    return run.throughput.decode_ms_per_step


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
    if effect.fused_pct and effect.fused_comm_pct is not None:
        profile += (
            f"; of the {effect.fused_pct:.1f}% in fused kernels {effect.fused_comm_pct:.1f}% is "
            "communication"
        )
    low, high = effect.saved_ci_low, effect.saved_ci_high
    between = "" if low is None or high is None else f" [{low:.1f}, {high:.1f}]"
    return f"Without collectives: {change}, {effect.saved_pct:.1f}%{between} less{profile}."
