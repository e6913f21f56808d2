"""Two engines under the same layouts: their cells, one over the other, and the nodes of their
starts. For any number of starts of a cell, none among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from published import Published, completed_of, listed, model_of, reached

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.comparing.confidence import Ratio, ratio
from orchestrator.analysis.comparing.metrics import THROUGHPUT as METRIC
from orchestrator.analysis.comparing.rounds import Round, round_of, whole
from orchestrator.analysis.summary import Summary
from orchestrator.report.text import EN_DASH, aligned
from orchestrator.store.schema import COMPLETED
from workers.rows import grouped

OURS, THEIRS = ENGINES = ("torch", "vllm")
NAMES = {OURS: "`torch`", THEIRS: "vLLM"}
# By the number of GPUs, as they are listed: tensor parallelism first, a pipeline last.
LAYOUTS = {4: ("tp4", "tp2pp2", "dp4", "pp4"), 2: ("tp2", "dp2", "pp2")}
WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}
APART = "†"  # marks a ratio of starts that are no pairs

Pair = tuple[Comparison, Comparison]


@dataclass(frozen=True, slots=True)
class Over:
    """`torch` over vLLM. rounds: of starts, that it is of; 0 where it is of all starts of each.
    verdict: what is shown; empty where too few rounds can show anything."""

    ratio: Ratio
    rounds: int
    verdict: str

    @property
    def short(self) -> str:
        """Without its interval."""
        return f"{self.ratio.value:.2f}x{'' if self.rounds else APART}"

    def __str__(self) -> str:
        low, high = self.ratio.low, self.ratio.high
        ends = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
        said = f", {self.verdict}" if self.verdict else ""
        return f"{self.short}{ends}{said}"


def gpus_of(found: Published) -> int:
    """How many GPUs the nodes of a result had."""
    (count,) = {len(block["gpu_uuids"]) for block in found.results.manifest["blocks"]}
    return count


def every_layout(found: Published) -> tuple[str, ...]:
    """The layouts of so many GPUs."""
    return LAYOUTS[gpus_of(found)]


def tensor(found: Published) -> str:
    """Tensor parallelism over all GPUs."""
    return every_layout(found)[0]


def pipeline(found: Published) -> str:
    """A pipeline over all GPUs."""
    return every_layout(found)[-1]


def layouts_of(found: Published) -> list[str]:
    """Those that an engine completed a run under."""
    there = {one.cell.strategy for one in found.findings.comparison if one.num_runs}
    return [name for name in every_layout(found) if name in there]


def loads_of(found: Published) -> list[tuple[str, int]]:
    """(layout, concurrency) of each, load by load."""
    return [(name, n) for n in found.concurrencies for name in layouts_of(found)]


def vllm_version(found: Sequence[Published]) -> str:
    """That of their vLLM."""
    (name,) = {each.results.manifest["versions"]["vllm"] for each in found}
    return str(name)


def pairs(found: Sequence[Published], layout: str) -> Iterator[Pair]:
    """The cells of a layout that both engines completed."""
    for each in found:
        for n in each.concurrencies:
            ours, theirs = (each.at(layout, n, engine) for engine in ENGINES)
            if ours and theirs:
                yield ours, theirs


def over(found: Published, layout: str, concurrency: int) -> Over | None:
    """`torch` over vLLM under one layout; None where one of them has no run. Of pairs where these
    have an interval, or nothing has one."""
    if not all(found.at(layout, concurrency, engine) for engine in ENGINES):
        return None
    ours, theirs = (f"{layout} {engine}" for engine in ENGINES)
    one = found.verdict(ours, theirs, concurrency)
    sides = [list(_values(found, layout, concurrency, engine)) for engine in ENGINES]
    if not one.rounds or (one.rounds < 2 <= min(map(len, sides))):
        apart = ratio(*sides)
        assert apart is not None
        return Over(apart, 0, "")
    assert one.ratio is not None
    shown = one.verdict if one.p_different is not None else ""
    if one.better == ours:
        return Over(Ratio(one.ratio, one.ci_low, one.ci_high), one.rounds, shown)
    low, high = (1 / end if end else None for end in (one.ci_high, one.ci_low))
    return Over(Ratio(1 / one.ratio, low, high), one.rounds, shown)


def _values(found: Published, layout: str, concurrency: int, engine: str) -> Iterator[float]:
    mine = [one for one in _runs(found, layout, engine) if one.cell.max_concurrency == concurrency]
    yield from METRIC.starts(mine).values()


def _runs(found: Published, layout: str, engine: str) -> list[Summary]:
    return [
        one
        for one in whole(found.results.runs)
        if (one.cell.strategy, one.cell.engine, one.status) == (layout, engine, COMPLETED)
    ]


def batches(found: Published, layout: str, concurrency: int, engine: str) -> float | None:
    """Into how many batches a pipeline shares its requests: how often a token's step streams the
    weights, over how often it does under tensor parallelism, which has one batch. None without a
    run of either."""
    one = found.at(layout, concurrency, engine)
    whole_ = (found.at(tensor(found), concurrency, name) for name in ENGINES)
    single = next((each for each in whole_ if each), None)
    if one is None or single is None:
        return None
    often, once = (x.device_time.decode.roofline.weights for x in (one, single))
    return often / once if often and once else None


def all_batches(found: Published, layout: str, engine: str) -> list[float]:
    """The same under every load of several requests, as far as it is known."""
    every = (batches(found, layout, n, engine) for n in found.concurrencies if n > 1)
    return [each for each in every if each]


def speed(one: Comparison | None) -> str:
    """Tokens per second, and half of the interval of the mean over starts where there is one."""
    if one is None:
        return EN_DASH
    high = one.spread.ci_high
    return aligned(reached(one)) + ("" if high is None else _half(high / reached(one) - 1))


def _half(share: float) -> str:
    return f" ±{100 * share:.{1 if share < 0.0995 else 0}f}%"


# -- starts and the nodes that they were made on


def num_starts(found: Sequence[Published]) -> list[int]:
    """How many starts cells have, in order, those that have none left out."""
    return sorted({one.num_starts for one in completed_of(found)})


class Nodes:
    """The nodes of several results, each called by a letter in the order of their commands."""

    def __init__(self, found: Sequence[Published]) -> None:
        blocks = [block for each in found for block in _used(each)]
        blocks.sort(key=lambda block: block["started_at"])
        nodes = dict.fromkeys(frozenset(block["gpu_uuids"]) for block in blocks)
        self._letters = {node: chr(ord("A") + place) for place, node in enumerate(nodes)}

    def __len__(self) -> int:
        return len(self._letters)

    def of(self, found: Published, layout: str, engine: str) -> str:
        """The node of each start, with its loads where it has not all: `A, B (1 and 32)`."""
        starts: dict[Round, list[Summary]] = grouped(_runs(found, layout, engine), round_of)
        said = [self._start(found, at, starts[at]) for at in sorted(starts)]
        return ", ".join(said) or EN_DASH

    def _start(self, found: Published, at: Round, runs: Sequence[Summary]) -> str:
        node = frozenset(found.results.manifest["blocks"][at.block]["gpu_uuids"])
        loads = sorted({one.cell.max_concurrency for one in runs})
        some = "" if loads == found.concurrencies else f" ({listed(loads)})"
        return self._letters[node] + some


def _used(found: Published) -> list[dict[str, Any]]:
    """The blocks that runs are of."""
    by = {round_of(one).block for one in whole(found.results.runs)}
    return [one for n, one in enumerate(found.results.manifest["blocks"]) if n in by]


def unrun(found: Sequence[Published], loads: Sequence[int]) -> list[str]:
    """What has no completed run of some loads, in words: `vLLM under tp4 and pp4 of llama-70b`,
    with those loads where it has others."""
    return [
        f"{NAMES[engine]} under {listed(names)} of {model_of(each)}{at}"
        for each in found
        for engine in ENGINES
        for at, names in grouped(layouts_of(each), partial(_lacking, each, engine, loads)).items()
        if at is not None
    ]


def _lacking(found: Published, engine: str, loads: Sequence[int], layout: str) -> str | None:
    """Which of the loads have no completed run, in words: "" for all of them, None for none."""
    lacking = [n for n in loads if found.at(layout, n, engine) is None]
    if not lacking:
        return None
    return "" if lacking == [*loads] else f" at {listed(lacking)} concurrent"
