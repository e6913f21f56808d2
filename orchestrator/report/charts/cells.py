"""A row per cell: throughput, what a user sees, and the step taken apart."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.analysis.bounds import Bounds
from orchestrator.analysis.comparing.compare import FUNCTIONS, Comparison
from orchestrator.analysis.observed.accounting import PARTS, CellParts
from orchestrator.analysis.observed.communication import PhaseParts
from orchestrator.analysis.predicted import Predicted
from orchestrator.analysis.summary import Summary
from orchestrator.report.charts.views import Names, View, rounded, view
from orchestrator.store.schema import CELL_KEYS, INVALID, CellKey
from workers.records import DECODE, PREFILL
from workers.rows import grouped, reduced, widened

PHASES = (DECODE, PREFILL)
Shares = Mapping[str, float | None]


@dataclass(frozen=True)
class CellFigures(View):
    """One cell. Measured values are None unless it has a completed run.

    low, high: the 95% interval of throughput. in_best_set: whether it is not shown to be worse than
    the best mean, None where nothing is shown. per_user: tokens/s, 1000 / tpot. bound: of
    throughput, with its source. predicted: figure (throughput, ttft, tpot) -> what was predicted of
    it before the run, and both ends of its 90% interval. timed_ms: decode step of the timed runs.
    parts: phase -> part -> percent of the step, only where it was observed; worst: the same of the
    worst rank. comm: phase -> all communication, hidden or not, in percent of the step. step_ms:
    phase -> length of a step. token_ms: from one token of a request to its next. micro_batches: how
    many a rank decodes in turn.
    """

    gpus: int | None
    throughput: float | None
    low: float | None
    high: float | None
    best: float | None
    in_best_set: bool | None
    starts: int
    runs: int
    per_gpu: float | None
    per_user: float | None
    ttft: float | None
    tpot: float | None
    status: str
    bound: float | None
    bound_pct: float | None
    bound_source: str | None
    predicted: Mapping[str, Sequence[float | None]]
    timed_ms: float | None
    parts: Mapping[str, Shares]
    worst: Mapping[str, Shares]
    comm: Mapping[str, Shares]
    step_ms: Mapping[str, float | None]
    token_ms: float | None
    micro_batches: int | None


def cells(
    comparison: Sequence[Comparison],
    names: Names,
    parts: Sequence[CellParts] = (),
    steps: pa.Table | None = None,
) -> list[CellFigures]:
    """A row per cell of the comparison.

    parts: the steps of the observed runs taken apart. steps: those of the timed runs, which show
    how many micro-batches are in flight.
    """
    lengths, in_flight = step_lengths(parts), micro_batches(steps)
    between = token_times(parts, in_flight)
    most: dict[CellKey, int] = {}
    for (cell, _), number in in_flight.items():
        most[cell] = max(number, most.get(cell, 0))
    return [
        _figures(
            one,
            names,
            step_ms={p: rounded(lengths[one.cell, p]) for p in PHASES if (one.cell, p) in lengths},
            token_ms=rounded(between.get(one.cell)),
            micro_batches=most.get(one.cell),
        )
        for one in comparison
    ]


def _figures(one: Comparison, names: Names, **of_steps: object) -> CellFigures:
    made, spread, tpot = one.throughput, one.spread, one.latency.tpot.median
    shares = {DECODE: _shares(one.step.decode), PREFILL: _shares(one.step.prefill)}
    return widened(
        CellFigures,
        view(one.cell, names),
        gpus=one.conditions.num_gpus,
        throughput=rounded(made.output_throughput),
        low=rounded(not_negative(spread.ci_low)),
        high=rounded(spread.ci_high),
        best=rounded(spread.best),
        in_best_set=one.in_best_set,
        starts=one.num_starts,
        runs=one.num_runs,
        per_gpu=rounded(made.output_throughput_per_gpu),
        per_user=rounded(one.latency.user_speed),
        ttft=rounded(one.latency.ttft.median),
        tpot=rounded(tpot),
        status=one.status,
        bound=rounded(one.bounds.bound_output_throughput),
        bound_pct=rounded(one.bounds.bound_pct),
        bound_source=one.bounds.bound_source,
        predicted=_predicted(one.predicted),
        timed_ms=rounded(made.decode_ms_per_step),
        parts={phase: mean for phase, (mean, _) in shares.items() if mean},
        worst={phase: worst for phase, (_, worst) in shares.items()},
        comm={DECODE: _comm(one.step.decode), PREFILL: _comm(one.step.prefill)},
        **of_steps,
    )


def _predicted(said: Predicted) -> dict[str, list[float | None]]:
    found = {
        "throughput": (said.output_throughput, said.output_throughput_ends),
        "ttft": (said.median_ttft_ms, said.median_ttft_ms_ends),
        "tpot": (said.median_tpot_ms, said.median_tpot_ms_ends),
    }
    return {
        name: [rounded(value), rounded(ends.low), rounded(ends.high)]
        for name, (value, ends) in found.items()
        if value is not None
    }


def not_negative(value: float | None) -> float | None:
    """The lower end of an interval, or 0 if it is negative: Student's t does not know that the
    value itself cannot be."""
    return None if value is None else max(0.0, value)


def with_bounds(comparison: Sequence[Comparison], runs: Sequence[Summary]) -> list[Comparison]:
    """The comparison in which cells without a valid run have the bound that their runs were checked
    against."""
    invalid = grouped((run for run in runs if run.status == INVALID), lambda run: run.cell)

    def bounded(one: Comparison) -> Comparison:
        bounds = [run.bounds for run in invalid.get(one.cell, ())]
        if one.status != INVALID or not bounds:
            return one
        return replace(one, bounds=reduced(Bounds, bounds, FUNCTIONS))

    return list(map(bounded, comparison))


def _shares(phase: PhaseParts) -> tuple[Shares, Shares]:
    """The parts of a step in percent, mean over ranks and of the worst one; a part that is not
    known is left out, all of them where the step was not observed."""
    found = {part: getattr(phase, part) for part in PARTS}
    shares = {part: share for part, share in found.items() if share.pct is not None}
    return (
        {part: rounded(share.pct) for part, share in shares.items()},
        {part: rounded(share.pct_worst) for part, share in shares.items()},
    )


def _comm(phase: PhaseParts) -> Shares:
    """All communication in percent of a step, as a mean over ranks and of the worst one."""
    return {
        "comm_exposed_pct": rounded(phase.comm_exposed.pct),
        "comm_exposed_pct_worst": rounded(phase.comm_exposed.pct_worst),
        "comm_busy_pct": rounded(phase.comm_busy.pct),
        "comm_busy_pct_worst": rounded(phase.comm_busy.pct_worst),
    }


# -- the length of a step


def step_lengths(parts: Iterable[CellParts]) -> dict[tuple[CellKey, str], float]:
    """(cell, phase) -> milliseconds of a step, mean over ranks."""
    known = ((one.cell, one.phase, one.step_ms) for one in parts if one.step_ms)
    groups = grouped(known, lambda one: one[:2])
    return {name: statistics.fmean(ms for *_, ms in rows) for name, rows in groups.items()}


def token_times(
    parts: Iterable[CellParts], in_flight: Mapping[tuple[CellKey, int], int]
) -> dict[CellKey, float]:
    """Cell -> milliseconds from one token of a request to its next, mean over ranks.

    A rank takes the micro-batches in flight in turn, so that time is as many of its decode steps. A
    cell is left out unless their number is known of every rank.
    """
    decode = (
        (one.cell, one.rank, one.step_ms) for one in parts if one.step_ms and one.phase == DECODE
    )
    return {
        cell: statistics.fmean(ms * in_flight[cell, rank] for _, rank, ms in rows)
        for cell, rows in grouped(decode, lambda one: one[0]).items()
        if all((cell, rank) in in_flight for _, rank, _ in rows)
    }


def micro_batches(steps: pa.Table | None) -> dict[tuple[CellKey, int], int]:
    """(cell, rank) -> micro-batches that it decodes in turn.

    steps: of the timed runs. There is one for each stage, or for each request of the replica where
    these are fewer.
    """
    if steps is None:
        return {}
    names = [column.name for column in CELL_KEYS.columns]
    decode = steps.filter(pc.equal(steps["phase"], DECODE))
    counted = decode.group_by([*names, "rank"]).aggregate([("micro_batch", "count_distinct")])
    ranks, numbers = counted["rank"].to_pylist(), counted["micro_batch_count_distinct"].to_pylist()
    found = zip(CELL_KEYS.rows(counted), ranks, numbers, strict=True)
    return {(cell, rank): number for cell, rank, number in found}
