"""Which layout is best for what, by how much, and whether the runs show it: the best one against
each other one.

Every interval is at 95% by itself; among many pairs one in twenty is too narrow by chance.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from orchestrator.analysis.compare import GROUP, counted, grouped, names_of, whole
from orchestrator.analysis.confidence import Ratio, paired_ratio, ratio
from orchestrator.analysis.metrics import COMPLETED
from orchestrator.store.schema import CELL_KEY
from workers.records import column, table_schema


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of the summary. says: what the best one does to the other; of: what no difference is
    shown in."""

    objective: str
    column: str
    says: str
    of: str = ""
    lower_is_better: bool = False


METRICS = (
    Metric("throughput", "output_throughput", "delivers {ratio} {other}"),
    Metric(
        "latency",
        "median_tpot_ms",
        "takes {ratio} the time per token of {other}",
        " in time per token",
        True,
    ),
    Metric(
        "latency",
        "median_ttft_ms",
        "takes {ratio} the time to the first token of {other}",
        " in time to a first token",
        True,
    ),
    Metric("per-gpu", "output_throughput_per_gpu", "delivers {ratio} {other} per GPU", " per GPU"),
    Metric(
        "goodput", "request_goodput", "serves {ratio} the good requests of {other}", " in goodput"
    ),
    Metric(
        "energy",
        "joules_per_output_token",
        "uses {ratio} the energy per token of {other}",
        " in energy per token",
        True,
    ),
)
OBJECTIVES = tuple(dict.fromkeys(metric.objective for metric in METRICS))

VERDICTS = table_schema(
    "verdicts",
    [
        column("experiment", pa.string()),
        column("model", pa.string()),
        column("scenario", pa.string()),
        column("max_concurrency", pa.int32(), "requests"),
        column("objective", pa.string()),
        column("metric", pa.string()),
        column("best", pa.string()),
        column("other", pa.string()),
        column("ratio", pa.float64(), "1"),
        column("ci_low", pa.float64(), "1"),
        column("ci_high", pa.float64(), "1"),
        column("best_runs", pa.int32(), "1"),
        column("other_runs", pa.int32(), "1"),
        column("different", pa.bool_()),
        column("sentence", pa.string()),
    ],
)


@dataclass(frozen=True, slots=True)
class Side:
    """The runs of one cell: what it is called and one figure of each run, with the turn it was made
    in (None: not known)."""

    name: str
    num_gpus: int | None
    values: tuple[float, ...]
    turns: tuple[int | None, ...]

    @property
    def centre(self) -> float:
        """The mean, by which the comparison ranks too."""
        return statistics.fmean(self.values)

    def over(self, other: Side) -> Ratio | None:
        """This side's figures over the other's: in pairs where both have one run a turn, and two
        turns in common."""
        mine, theirs = self.by_turn(), other.by_turn()
        shared = [turn for turn in mine if turn in theirs]
        if len(shared) > 1:
            return paired_ratio([mine[turn] for turn in shared], [theirs[turn] for turn in shared])
        return ratio(self.values, other.values)

    def by_turn(self) -> dict[int, float]:
        """The figure of each turn; empty where a turn has two runs, or is not known."""
        found = {
            turn: value
            for turn, value in zip(self.turns, self.values, strict=True)
            if turn is not None
        }
        return found if len(found) == len(self.values) else {}


def verdicts(summary: pa.Table) -> pa.Table:
    """For each model, scenario, concurrency and metric that was measured, the best layout against
    each of the others.

    The best one has the best mean over its runs; which runs count, `compare.counted` says.
    ratio: best over other, of geometric means of the runs, with a 95% interval on logarithms: of
    pairs where layouts took turns, else Welch's; the interval is null where a side has one run, the
    ratio too where a run has 0. different: whether the interval leaves 1 out; null without one.
    """
    runs = [row for row in whole(summary) if row["status"] == COMPLETED]
    rows = [row for group in grouped(runs, GROUP) for row in _of_group(group)]
    return pa.Table.from_pylist(rows, schema=VERDICTS)


def _of_group(runs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    cells = grouped(runs, CELL_KEY)
    names = names_of([cell[0] for cell in cells])
    levels = {run["goodput"] for run in runs if run.get("goodput")}
    for metric in METRICS:
        if metric.objective == "goodput" and len(levels) > 1:
            continue  # held to different levels
        sides = [_side(name, cell, metric) for name, cell in zip(names, cells, strict=True)]
        for best, other in _pairs([side for side in sides if side.values], metric):
            yield {name: runs[0][name] for name in GROUP} | _verdict(
                metric, best, other, runs[0]["max_concurrency"]
            )


def _side(name: str, runs: Sequence[Mapping[str, Any]], metric: Metric) -> Side:
    known = counted(runs, metric.column)
    values, turns = (
        tuple(run[metric.column] for run in known),
        tuple(run.get("turn") for run in known),
    )
    return Side(name, runs[0]["num_gpus"], values, turns)


def _pairs(sides: list[Side], metric: Metric) -> Iterator[tuple[Side, Side]]:
    """The best side with each other, the next best first; none where even the best has nothing."""
    ranked = sorted(sides, key=lambda side: side.centre if metric.lower_is_better else -side.centre)
    if ranked and ranked[0].centre > 0:
        yield from ((ranked[0], other) for other in ranked[1:])


def _verdict(metric: Metric, best: Side, other: Side, concurrency: int) -> dict[str, Any]:
    found = best.over(other)
    low, high = (found.low, found.high) if found else (None, None)
    different = None if low is None or high is None else not low <= 1.0 <= high
    where = f"at {concurrency} concurrent{_per_gpu(metric, best, other, found)}"
    if found is None:
        zero = next(side.name for side in (other, best) if min(side.values) <= 0)
        sentence = (
            f"{best.name} against {other.name} {where}: no ratio{metric.of}, a run of {zero} has 0"
        )
    elif different is False:
        sentence = (
            f"no difference{metric.of} shown between {best.name} and {other.name} {where} "
            f"({times(found)})"
        )
    else:
        said = metric.says.format(ratio=f"{found.value:.2f}x", other=other.name)
        sentence = f"{best.name} {said}{interval(found)} {where}{_few_runs(best, other)}"
    return {
        "objective": metric.objective,
        "metric": metric.column,
        "best": best.name,
        "other": other.name,
        "ratio": found.value if found else None,
        "ci_low": low,
        "ci_high": high,
        "best_runs": len(best.values),
        "other_runs": len(other.values),
        "different": different,
        "sentence": sentence,
    }


def interval(found: Ratio) -> str:
    """` [low, high]`, nothing where there is none."""
    return (
        "" if found.low is None or found.high is None else f" [{found.low:.2f}, {found.high:.2f}]"
    )


def times(found: Ratio) -> str:
    """A ratio as it is written: `2.31x [2.24, 2.38]`."""
    return f"{found.value:.2f}x{interval(found)}"


def _per_gpu(metric: Metric, best: Side, other: Side, found: Ratio | None) -> str:
    """What a difference in throughput is worth where one side has more GPUs."""
    if (
        metric.objective != "throughput"
        or not found
        or not best.num_gpus
        or not other.num_gpus
        or best.num_gpus == other.num_gpus
    ):
        return ""
    return (
        f" ({best.num_gpus} GPUs against {other.num_gpus}: "
        f"{found.value * other.num_gpus / best.num_gpus:.2f}x per GPU)"
    )


def _few_runs(best: Side, other: Side) -> str:
    single = [side.name for side in (best, other) if len(side.values) == 1]
    if not single:
        return ""
    return (
        " (one run each: no interval)"
        if len(single) == 2
        else f" (one run of {single[0]}: no interval)"
    )
