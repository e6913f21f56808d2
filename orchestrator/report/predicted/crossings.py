"""What `orchestrator crossover` says: above which bandwidth one layout beats another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console

from orchestrator.predict.crossover import Crossover, marks

GB = 1e9


@dataclass(frozen=True, slots=True)
class Crossings:
    """Those of one model and load. engine: whose factors they are of; provenance: of these."""

    model: str
    scenario: str
    input_len: int
    output_len: int
    engine: str
    provenance: str
    found: tuple[Crossover, ...]


def render(all_of: Crossings, console: Console) -> None:
    """Print a sentence for each."""
    lengths = f"{all_of.scenario} ({all_of.input_len} in, {all_of.output_len} out)"
    console.print(f"{all_of.model}, {lengths}, {all_of.engine}", style="bold", highlight=False)
    for one in all_of.found:
        where = f"{one.gpu}, {one.max_concurrency} concurrent"
        console.print(f"{where}: {sentence(one)}.", highlight=False)
    for line in notes():
        console.print(line, highlight=False)
    console.print(f"Factors of {all_of.engine}: {all_of.provenance}.", highlight=False)


def sentence(one: Crossover) -> str:
    """Of two layouts, without an end."""
    if one.why is not None:
        return f"{one.first} and {one.second} cannot be compared: {one.why}"
    own = f"; its own link has {one.own / GB:.3g} GB/s" if one.own else ""
    if one.bandwidth is not None:
        above = f"above {one.bandwidth / GB:.3g} GB/s of bus bandwidth"
        return f"{one.first} beats {one.second} {above}{own}"
    best, other = (one.first, one.second) if one.best == one.first else (one.second, one.first)
    return f"{best} beats {other} at every bandwidth looked at{own}"


def notes() -> Iterator[str]:
    """What is varied, and what is not."""
    known = {name: rate / GB for name, rate in marks().items()}
    (first, low), (last, high) = min(known.items(), key=_rate), max(known.items(), key=_rate)
    yield (
        f"Looked at: {low:.3g} GB/s ({first}) to {high:.3g} GB/s ({last}), which collectives reach "
        "over these links. The latency of each GPU's own link is kept."
    )


def _rate(pair: tuple[str, float]) -> float:
    return pair[1]


def as_data(all_of: Crossings) -> dict[str, object]:
    """Plain data for `json.dumps`: bandwidths in bytes/s."""
    found: Sequence[Crossover] = all_of.found
    crossings = [{**asdict(one), "sentence": sentence(one)} for one in found]
    return {**asdict(all_of), "found": crossings, "links": marks()}
