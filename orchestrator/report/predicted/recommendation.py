"""What `orchestrator recommend` says: which hardware and layout, why, and what would change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.predict.kinds import unlooked
from orchestrator.predict.load import Asked
from orchestrator.predict.objectives import FASTEST, MOST_CONCURRENT, Limit, Margin
from orchestrator.predict.recommend import Choice, Offer, Recommendation, Refusal, nearest
from orchestrator.report.predicted.plan_table import estimated
from workers.units import significant

CERTAIN, LIKELY = "certain", "likely"


@dataclass(frozen=True, slots=True)
class Answer:
    """A recommendation, and what it was asked of. left_out: kind of GPU -> why it is not looked
    at."""

    model: str
    scenario: str
    left_out: Mapping[str, str]
    found: Recommendation

    @property
    def precision(self) -> str:
        """In what the model is kept."""
        kept = self.found.wanted.case.precision
        return kept.dtype if kept.name == "none" else f"{kept.dtype}, {kept.name}"

    @property
    def heading(self) -> str:
        """What was asked."""
        wanted = self.found.wanted
        asked = wanted.case.asked
        limits = ", ".join(f"{one.metric} at most {one.limit_ms:g} ms" for one in wanted.objectives)
        return (
            f"{self.model} in {self.precision}, {self.scenario} ({asked.lengths.input_len} in, "
            f"{asked.lengths.output_len} out), {_load(asked)}, "
            f"{wanted.case.factors.engine}: {limits}"
        )


def _load(asked: Asked) -> str:
    most = f"at most {asked.max_concurrency}" if asked.arrivals else f"{asked.max_concurrency}"
    return ", ".join(filter(None, (asked.arriving, f"{most} concurrent")))


def render(answer: Answer, console: Console) -> None:
    """Print a line for each kind of GPU, the choices, and where the figures come from."""
    found = answer.found
    console.print(answer.heading, style="bold", highlight=False)
    console.print(_table(found, _columns(found)))
    for line in _lines(answer):
        console.print(line, highlight=False)


def _lines(answer: Answer) -> Iterator[str]:
    found = answer.found
    yield from (_impossible if found.smallest is None else _choices)(found)
    yield _legend(found)
    unknown = [one.name for one in found.wanted.hardware if found.of(one) is None]
    yield from (f"{why(found, name)}." for name in unknown)
    if hidden := unlooked(found.wanted.hardware, found.wanted.counts[-1]):
        yield f"Not looked at: {'; '.join(hidden)}."
    if answer.left_out:
        reasons = [why.partition(";")[0] for why in answer.left_out.values()]
        yield f"Left out: {'; '.join(reasons)}."
    yield f"Factors of {found.wanted.case.factors.engine}: {found.wanted.case.factors.provenance}."


def _choices(found: Recommendation) -> Iterator[str]:
    assert found.smallest is not None, "there is something to choose"
    yield f"Smallest: {_named(found.smallest.offer)}."
    yield from _about(found.smallest)
    by = "cost of a token" if found.wanted.prices else "GPU-ms a token, as no prices are given"
    if found.cheapest is None:
        yield "Cheapest: none of the kinds with a price meets every limit."
    elif found.cheapest.offer is found.smallest.offer:
        yield f"Cheapest (by {by}): the same."
    else:
        yield f"Cheapest (by {by}): {_named(found.cheapest.offer)}."
        yield from _about(found.cheapest)


def _named(one: Offer) -> str:
    return f"{one.gpus} x {one.hardware.name}, {one.layout.name}"


def _about(choice: Choice) -> Iterator[str]:
    return (f"  {one}." for one in _facts(choice))


def _facts(choice: Choice) -> Iterator[str]:
    offer, limit = choice.offer, choice.limit
    for margin in offer.margins:
        yield _margin(margin)
    part, share = offer.bottleneck
    filled = offer.memory_share
    memory = f"; memory {filled:.0%} full" if filled is not None else ""
    yield (
        f"next bottleneck: {part}, {share:.0%} of GPU-ms{memory}; least margin: "
        f"{offer.least.objective.metric}"
    )
    yield _until(choice)
    if isinstance(choice.smaller, Offer):
        yield f"next smaller: {_named(choice.smaller)} {missed(choice.smaller)}"
    elif choice.smaller is not None:
        yield f"next smaller: {_refused(choice.smaller)}"
    if choice.fp8:
        yield f"in FP8 it would take {_named(choice.fp8)}: {_kept(choice.fp8)}"
    if offer.prediction.late:
        yield f"{offer.prediction.late} requests wait when the last one arrives"
    is_short = offer.prediction.in_flight < offer.prediction.max_concurrency
    if limit.closed_rate is None and limit.broken is None and is_short:
        yield f"at once are served {offer.prediction.in_flight} requests; the others wait"


def _margin(margin: Margin) -> str:
    said, left = margin.predicted, f"{margin.share:.0%}"
    far = CERTAIN if margin.far_share >= 0 else LIKELY
    limit = margin.objective
    return (
        f"{limit.metric} {significant(said.value, 4)} of {limit.limit_ms:g} ms, {left} left; at "
        f"the far end of 90% {significant(said.high, 4)} ms: {far}"
    )


def _until(choice: Choice) -> str:
    limit = choice.limit
    if limit.closed_rate is not None:
        return _until_rate(limit, limit.closed_rate)
    if limit.broken is None:
        looked = limit.concurrency >= MOST_CONCURRENT
        further = "further was not looked" if looked else "no TTFT is predicted of more"
        return f"holds up to {limit.concurrency} concurrent; {further}"
    broken, full = limit.broken, ", as KV has no room for it" if limit.is_full else ""
    return (
        f"holds up to {limit.concurrency} concurrent; with one more {broken.objective.metric} is "
        f"{significant(broken.predicted.value, 4)} ms{full}"
    )


def _until_rate(limit: Limit, most: float) -> str:
    served = (
        f"a closed loop completes {significant(most, 3)} requests/s, so of more, ever more wait"
    )
    if limit.rate is None:
        return f"holds for these requests alone and no longer stream at this rate: {served}"
    said, broken = f"holds up to {significant(limit.rate, 3)} requests/s", limit.broken
    if broken is None:
        return f"{said}; {served} (and {FASTEST} times the rate is the most looked at)"
    found = f"{broken.objective.metric} is {significant(broken.predicted.value, 4)} ms"
    return f"{said}; arriving a little faster {found}"


def missed(one: Offer) -> str:
    """Which limits an offer misses, and by how much; empty for none."""
    return ", ".join(
        f"misses {margin.objective.metric} by {-margin.share:.0%} "
        f"({significant(margin.predicted.value, 4)} of {margin.objective.limit_ms:g} ms)"
        for margin in one.margins
        if margin.share < 0
    )


def _impossible(found: Recommendation) -> Iterator[str]:
    """Which limit nothing meets, and how near the best comes."""
    alone = False
    for index, objective in enumerate(found.wanted.objectives):
        best = max(found.offers, key=lambda one: one.margins[index].share, default=None)
        if best is not None and best.margins[index].share < 0:
            alone = True
            yield (
                f"No hardware here meets {objective.metric} {objective.limit_ms:g} ms: the best is "
                f"{significant(best.margins[index].predicted.value, 4)} ms, of {_named(best)}."
            )
    near = nearest(found.offers)
    if near is None:
        yield "No hardware here holds it: why, is said below."
    elif not alone:
        yield f"Each limit is met by some hardware, and all of them by none: {_named(near)} comes "
        yield f"  nearest and {missed(near)}."


def _legend(found: Recommendation) -> str:
    counts = ", ".join(map(str, found.wanted.counts))
    return (
        f"Looked at {counts} GPUs of each kind, every tp x pp x dp of them. A line is the smallest "
        "that meets every limit, else the nearest. GPU-ms, cost/M: of a token, of a million. ±: "
        "the upper end of a 90% interval, or both ends, to a digit; "
        f"{CERTAIN}: it, too, meets every limit."
    )


def why(found: Recommendation, name: str) -> str:
    """Why nothing is predicted of a kind of GPU."""
    (hardware,) = (one for one in found.wanted.hardware if one.name == name)
    refusal = found.refusal(hardware)
    return _refused(refusal) if refusal else f"{name}: nothing was looked at"


def _refused(one: Refusal) -> str:
    return f"{one.gpus} x {one.gpu}, {one.refused.layout}: {one.refused.kind}: {one.refused.reason}"


def _columns(found: Recommendation) -> dict[str, Callable[[Offer], str]]:
    """Title of a figure -> what it is of an offer."""
    limits = {
        f"{one.metric.upper()} ms": partial(_of_limit, index)
        for index, one in enumerate(found.wanted.objectives)
    }
    cost: dict[str, Callable[[Offer], str]] = {
        "cost/M": lambda one: "" if one.cost is None else significant(one.cost, 3)
    }
    return {
        "tokens/s": lambda one: significant(one.prediction.output_throughput.value, 4),
        **limits,
        "GPU-ms": lambda one: significant(one.gpu_ms, 3),
        **(cost if found.wanted.prices else {}),
    }


def _of_limit(index: int, one: Offer) -> str:
    return estimated(one.margins[index].predicted)


def _table(found: Recommendation, columns: Mapping[str, Callable[[Offer], str]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for name in ("GPUs", "layout"):
        table.add_column(name, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("limits", no_wrap=True)
    for one in _best_of_each(found):
        figures = (show(one) for show in columns.values())
        gpus = f"{one.gpus} x {one.hardware.name}"
        table.add_row(gpus, one.layout.name, *figures, _kept(one).replace(", ", ",\n"))
    return table


def _kept(one: Offer) -> str:
    missed = [margin for margin in one.margins if margin.share < 0]
    if not missed:
        return CERTAIN if one.is_certain else LIKELY
    far = (f"{one.objective.metric} {-one.share:.0%}" for one in missed)
    return f"misses {', '.join(far)}"


def _best_of_each(found: Recommendation) -> list[Offer]:
    """Those that meet the objectives first, the smallest first; then the nearest."""
    each = [one for kind in found.wanted.hardware if (one := found.of(kind))]
    meeting = sorted((one for one in each if one.meets), key=lambda one: one.size)
    missing = sorted((one for one in each if not one.meets), key=lambda one: -one.least.share)
    return [*meeting, *missing]
