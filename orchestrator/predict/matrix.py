"""The selection matrix: for each load, model and kind of GPU the best layout, the fewest GPUs, and
the concurrency from which on another layout is best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.predict.hardware import Hardware
from orchestrator.predict.layouts import Candidates, Case, candidates
from orchestrator.predict.objectives import Objective, margins
from orchestrator.predict.prediction import Prediction
from strategies.registry import factorisations
from workers.rows import Table, column, group, nothing, row

MOST_CONCURRENT = 256  # up to which the best layout is looked for
MISSED = "no layout meets the limits"


@row
class Chosen:
    """The best layout of a field, as predicted."""

    layout: str | None = column(
        "The layout with the most tokens/s of those that meet the limits; null where none does"
    )
    output_throughput: float | None = column("Predicted of it", "tokens/s", better="higher")
    output_throughput_low: float | None = column("Low end of its 90% interval", "tokens/s")
    output_throughput_high: float | None = column("High end of its 90% interval", "tokens/s")
    median_ttft_ms: float | None = column("Predicted of it", "ms", better="lower")
    median_tpot_ms: float | None = column("Predicted of it", "ms", better="lower")


@row
class Selection:
    """What is best for one load of one model on one kind of GPU."""

    model: str = column("Name of the model")
    precision: str = column("In what it is kept")
    scenario: str = column("Name of the lengths")
    input_len: int = column("Prompt of each request", "tokens")
    output_len: int = column("Output of each request", "tokens")
    max_concurrency: int = column("Requests in flight", "1")
    gpu: str = column("Kind of GPU")
    num_gpus: int = column("GPUs that all layouts have", "1")
    chosen: Chosen = group()
    least_gpus: int | None = column(
        "The fewest GPUs of which a layout meets the limits, of 1, 2, 4 ... up to the most that "
        "are looked at",
        "1",
    )
    least_layout: str | None = column("The fastest layout of those")
    changes_at: int | None = column(
        "The first concurrency above max_concurrency with another best layout; null up to "
        f"{MOST_CONCURRENT}",
        "1",
    )
    best_from: tuple[int, ...] = column("From which concurrencies on a layout is the best", "1")
    best_layouts: tuple[str, ...] = column('Which one, for each of them; "" where none meets')
    reason: str | None = column("Why there is no layout")


SELECTIONS = Table("selection", Selection)


@dataclass(frozen=True, slots=True)
class Load:
    """A scenario of a model, whatever the GPUs. case: of any of them."""

    model: str
    scenario: str
    case: Case


@dataclass(frozen=True, slots=True)
class Asked:
    """What a matrix is of. counts: GPUs, ascending; layouts are compared on the last."""

    loads: tuple[Load, ...]
    hardware: tuple[Hardware, ...]
    counts: tuple[int, ...]
    objectives: tuple[Objective, ...] = ()


def selections(asked: Asked) -> Iterator[Selection]:
    """A row for each load and kind of GPU."""
    for load in asked.loads:
        placed = [_candidates(load.case, count) for count in asked.counts]
        for hardware in asked.hardware:
            case = replace(load.case, hardware=hardware)
            yield _selection(load, [one.on(case) for one in placed], asked.objectives)


def _candidates(case: Case, gpus: int) -> Candidates:
    return candidates(case, tuple(factorisations(gpus)), gpus, MOST_CONCURRENT)


def _selection(
    load: Load, found: Sequence[Candidates], objectives: Sequence[Objective]
) -> Selection:
    case, most = found[-1].case, found[-1]
    asked, lengths = case.asked, case.asked.lengths
    best = [best_of(one, objectives, asked.max_concurrency) for one in found]
    least = next((one for one in best if one), None)
    chosen, at = best[-1], asked.max_concurrency
    ladder = list(changes(lambda number: _name(best_of(most, objectives, number))))
    kept = case.precision
    return Selection(
        model=load.model,
        precision=kept.dtype if kept.name == "none" else f"{kept.dtype}, {kept.name}",
        scenario=load.scenario,
        input_len=lengths.input_len,
        output_len=lengths.output_len,
        max_concurrency=at,
        gpu=case.hardware.name,
        num_gpus=most.gpus,
        chosen=nothing(Chosen) if chosen is None else _chosen(chosen),
        least_gpus=None if least is None else least.num_gpus,
        least_layout=None if least is None else least.layout,
        changes_at=next((number for number, _ in ladder if number > at), None),
        best_from=tuple(number for number, _ in ladder),
        best_layouts=tuple(name for _, name in ladder),
        reason=None if chosen else _reason(most, at),
    )


def _chosen(one: Prediction) -> Chosen:
    speed = one.output_throughput
    return Chosen(
        layout=one.layout,
        output_throughput=speed.value,
        output_throughput_low=speed.low,
        output_throughput_high=speed.high,
        median_ttft_ms=one.ttft_ms.value if one.ttft_ms else None,
        median_tpot_ms=one.tpot_ms.value,
    )


def best_of(
    found: Candidates, objectives: Sequence[Objective], concurrency: int
) -> Prediction | None:
    """The first of the ranking that meets the objectives."""

    def meets(one: Prediction) -> bool:
        kept = margins(objectives, one, found.case.asked.lengths)
        return kept is not None and all(margin.share >= 0 for margin in kept)

    return next(filter(meets, found.ranking(concurrency).predictions), None)


def _name(one: Prediction | None) -> str:
    return one.layout if one else ""


def _reason(found: Candidates, concurrency: int) -> str:
    ranking = found.ranking(concurrency)
    return MISSED if ranking.predictions else ranking.refused[-1].reason


def changes(best: Callable[[int], str], most: int = MOST_CONCURRENT) -> Iterator[tuple[int, str]]:
    """(concurrency, the layout that is best from there on), from 1 to `most`: the best is looked
    for at every power of two, and between two that differ by bisection."""
    low, name = 1, best(1)
    yield low, name
    while low < most:
        high = min(2 * low, most)
        other = best(high)
        yield from _between(best, (low, name), (high, other))
        low, name = high, other


def _between(
    best: Callable[[int], str], low: tuple[int, str], high: tuple[int, str]
) -> Iterator[tuple[int, str]]:
    """Every change after `low` up to `high`, as far as halving finds them."""
    if low[1] == high[1]:
        return
    if high[0] - low[0] == 1:
        yield high
        return
    number = (low[0] + high[0]) // 2
    middle = number, best(number)
    yield from _between(best, low, middle)
    yield from _between(best, middle, high)
