"""Which layout is best for what, by how much, and whether the runs show it: the best one against
each other one.

Every interval is at 95% by itself; among many pairs one in twenty is too narrow by chance.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.analysis.comparing.compare import (
    Load,
    completed,
    held_to_one_level,
    load_of,
    names_of,
    whole,
    with_valid_power,
)
from orchestrator.analysis.comparing.confidence import Ratio, paired_ratio, ratio
from orchestrator.analysis.summary import Summary
from workers.rows import Table, column, grouped, row

Counted = Callable[[Iterable[Summary]], list[Summary]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a run that layouts are judged by.

    column: its name in the summary. of: its value in a run. says: what the best one does to the
    other. subject: what no difference is shown in. counted: the runs that count.
    """

    objective: str
    column: str
    unit: str
    of: Callable[[Summary], float | None]
    says: str
    subject: str = ""
    lower_is_better: bool = False
    counted: Counted = completed

    def values(self, runs: Iterable[Summary]) -> list[float]:
        """The figure of every run that counts and knows it."""
        known = [self.of(run) for run in self.counted(runs)]
        return [value for value in known if value is not None]


METRICS = (
    Metric(
        "throughput",
        "output_throughput",
        "tokens/s",
        lambda run: run.throughput.output_throughput,
        "delivers {ratio} {other}",
    ),
    Metric(
        "latency",
        "median_tpot_ms",
        "ms",
        lambda run: run.latency.tpot.median,
        "takes {ratio} the time per token of {other}",
        " in time per token",
        lower_is_better=True,
    ),
    Metric(
        "latency",
        "median_ttft_ms",
        "ms",
        lambda run: run.latency.ttft.median,
        "takes {ratio} the time to the first token of {other}",
        " in time to a first token",
        lower_is_better=True,
    ),
    Metric(
        "per-gpu",
        "output_throughput_per_gpu",
        "tokens/s",
        lambda run: run.throughput.output_throughput_per_gpu,
        "delivers {ratio} {other} per GPU",
        " per GPU",
    ),
    Metric(
        "goodput",
        "request_goodput",
        "requests/s",
        lambda run: run.goodput.request_goodput,
        "serves {ratio} the good requests of {other}",
        " in goodput",
        counted=held_to_one_level,
    ),
    Metric(
        "energy",
        "joules_per_output_token",
        "J",
        lambda run: run.energy.joules_per_output_token,
        "uses {ratio} the energy per token of {other}",
        " in energy per token",
        lower_is_better=True,
        counted=with_valid_power,
    ),
)
OBJECTIVES = tuple(dict.fromkeys(metric.objective for metric in METRICS))


@row
class Verdict:
    """The best layout for one metric against one of the others."""

    experiment: str = column("name of the experiment")
    model: str = column("name of the model")
    scenario: str = column("name of the lengths")
    max_concurrency: int = column("requests in flight at most", "requests")
    objective: str = column("what is judged: throughput, latency, per-gpu, goodput, energy")
    metric: str = column("the column of the summary that it is judged by")
    best: str = column("the layout with the best mean over its runs")
    other: str = column("the other layout")
    ratio: float | None = column(
        "best over other, of geometric means of the runs; null where a run has 0", "1"
    )
    ci_low: float | None = column(
        "lower end of its 95% interval, on logarithms: of pairs of runs where layouts took turns, "
        "else Welch's; null where a side has one run",
        "1",
    )
    ci_high: float | None = column("upper end of it", "1")
    best_runs: int = column("runs of the best that count", "1")
    other_runs: int = column("runs of the other that count", "1")
    different: bool | None = column("whether the interval leaves 1 out; null without one")
    sentence: str = column("the same in words")

    @property
    def load(self) -> Load:
        """What the two are compared within."""
        return Load(self.experiment, self.model, self.scenario, self.max_concurrency)


VERDICTS = Table("verdicts", Verdict)


@dataclass(frozen=True, slots=True)
class Side:
    """The runs of one cell: what it is called, and one figure of each run with the turn it was made
    in."""

    name: str
    num_gpus: int | None
    values: tuple[float, ...]
    turns: tuple[int, ...]

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
        """The figure of each turn; empty where a turn has two runs."""
        found = dict(zip(self.turns, self.values, strict=True))
        return found if len(found) == len(self.values) else {}


def verdicts(runs: Iterable[Summary]) -> list[Verdict]:
    """For each load and metric that was measured, the best layout against each of the others."""
    loads = grouped(completed(whole(runs)), lambda run: load_of(run.cell))
    return [verdict for load, mine in loads.items() for verdict in _of_load(load, mine)]


def _of_load(load: Load, runs: Sequence[Summary]) -> Iterator[Verdict]:
    cells = grouped(runs, lambda run: run.cell)
    names = names_of(list(cells))
    levels = {run.goodput.goodput for run in runs if run.goodput.goodput}
    for metric in METRICS:
        if metric.objective == "goodput" and len(levels) > 1:
            continue  # held to different levels
        sides = [
            _side(name, mine, metric) for name, mine in zip(names, cells.values(), strict=True)
        ]
        for best, other in _pairs([side for side in sides if side.values], metric):
            yield _verdict(load, metric, best, other)


def _side(name: str, runs: Sequence[Summary], metric: Metric) -> Side:
    known = [run for run in metric.counted(runs) if metric.of(run) is not None]
    turns = tuple(run.conditions.block for run in known)
    return Side(name, runs[0].conditions.num_gpus, tuple(metric.values(known)), turns)


def _pairs(sides: list[Side], metric: Metric) -> Iterator[tuple[Side, Side]]:
    """The best side with each other, the next best first; none where even the best has nothing."""
    sign = 1 if metric.lower_is_better else -1
    ranked = sorted(sides, key=lambda side: sign * side.centre)
    if ranked and ranked[0].centre > 0:
        yield from ((ranked[0], other) for other in ranked[1:])


def _verdict(load: Load, metric: Metric, best: Side, other: Side) -> Verdict:
    found = best.over(other)
    low, high = (found.low, found.high) if found else (None, None)
    different = None if low is None or high is None else not low <= 1.0 <= high
    return Verdict(
        **load._asdict(),
        objective=metric.objective,
        metric=metric.column,
        best=best.name,
        other=other.name,
        ratio=found.value if found else None,
        ci_low=low,
        ci_high=high,
        best_runs=len(best.values),
        other_runs=len(other.values),
        different=different,
        sentence=_sentence(load, metric, best, other, different),
    )


def _sentence(load: Load, metric: Metric, best: Side, other: Side, different: bool | None) -> str:
    found = best.over(other)
    where = f"at {load.max_concurrency} concurrent{_per_gpu(metric, best, other, found)}"
    if found is None:
        zero = next(side.name for side in (other, best) if min(side.values) <= 0)
        against = f"{best.name} against {other.name}"
        return f"{against} {where}: no ratio{metric.subject}, a run of {zero} has 0"
    if different is False:
        between = f"between {best.name} and {other.name} {where}"
        return f"no difference{metric.subject} shown {between} ({times(found)})"
    said = metric.says.format(ratio=f"{found.value:.2f}x", other=other.name)
    return f"{best.name} {said}{interval(found)} {where}{_few_runs(best, other)}"


def interval(found: Ratio) -> str:
    """` [low, high]`, nothing where there is none."""
    known = found.low is not None and found.high is not None
    return f" [{found.low:.2f}, {found.high:.2f}]" if known else ""


def times(found: Ratio) -> str:
    """A ratio as it is written: `2.31x [2.24, 2.38]`."""
    return f"{found.value:.2f}x{interval(found)}"


def _per_gpu(metric: Metric, best: Side, other: Side, found: Ratio | None) -> str:
    """What a difference in throughput is worth where one side has more GPUs."""
    mine, theirs = best.num_gpus, other.num_gpus
    if metric.objective != "throughput" or not (found and mine and theirs) or mine == theirs:
        return ""
    return f" ({mine} GPUs against {theirs}: {found.value * theirs / mine:.2f}x per GPU)"


def _few_runs(best: Side, other: Side) -> str:
    single = [side.name for side in (best, other) if len(side.values) == 1]
    if not single:
        return ""
    both = len(single) == 2
    return f" (one run {'each' if both else f'of {single[0]}'}: no interval)"
