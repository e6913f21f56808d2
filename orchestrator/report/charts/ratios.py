"""Two results against each other: in a sentence, and the ratios of the chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.analysis.comparing.changes import (
    BETTER,
    FEW_STARTS,
    MAIN,
    NOT_SHOWN,
    WORSE,
    Change,
)
from orchestrator.report.charts.looks import looks
from workers.rows import grouped


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Both results in a sentence. word: better, worse, mixed, or equal where nothing is shown."""

    sentence: str
    word: str


def conclusion(changes: Sequence[Change]) -> Conclusion:
    """What became of tokens per second, over the cells that have them in both results."""
    found = [one for one in changes if one.metric == MAIN and one.ratio is not None]
    words = grouped(found, lambda one: one.change)
    shown = [f"{word} in {_counted(words[word])}" for word in (WORSE, BETTER) if word in words]
    open_ = [
        f"{said} in {len(words[word])}"
        for word, said in ((NOT_SHOWN, "not shown to differ"), (FEW_STARTS, "known of one start"))
        if word in words
    ]
    if not found:
        return Conclusion("No cell has tokens per second in both results.", "equal")
    cells = f"{len(found)} cells that both have" if len(found) > 1 else "the cell that both have"
    said = f"Of {cells}, the new result's tokens per second are {'; '.join((*shown, *open_))}"
    both = "mixed" if {WORSE, BETTER} <= words.keys() else ""
    word = both or next((word for word in (WORSE, BETTER) if word in words), "equal")
    return Conclusion(f"{said}: at 95% confidence over starts, each cell by itself.", word)


def _counted(alike: Sequence[Change]) -> str:
    """How many there are, and which one is furthest from no change."""
    first = max(alike, key=lambda one: abs((one.ratio or 1.0) - 1.0))
    where = f"{first.layout} at {first.joined.max_concurrency} concurrent: {first.ratio:.3f}"
    return f"{len(alike)} ({'most in ' * (len(alike) > 1)}{where})"


def data_of(changes: Sequence[Change], titles: Mapping[str, str]) -> dict[str, object]:
    """The data of the chart, and of what can be downloaded. titles: of the metrics that are
    shown."""
    betters = {one.metric: one.better or "neither" for one in changes}
    return {
        "layouts": looks({one.joined: one.layout for one in changes}),
        "metrics": [
            {"name": name, "title": title, "better": betters[name]}
            for name, title in titles.items()
        ],
        "changes": list(map(_ratio, changes)),
    }


def _ratio(one: Change) -> dict[str, object]:
    return {
        "load": title_of(one),
        "layout": one.layout,
        "concurrency": one.joined.max_concurrency,
        "metric": one.metric,
        "base": one.base,
        "new": one.new,
        "ratio": one.ratio,
        "low": one.ci_low,
        "high": one.ci_high,
        "base_starts": one.base_starts,
        "new_starts": one.new_starts,
        "change": one.change,
    }


def title_of(one: Change) -> str:
    """The load of a cell as a heading."""
    cell = one.joined
    work = f"{cell.model} · {cell.scenario} · {cell.max_concurrency} concurrent"
    return f"{work} · {cell.arrivals}" if cell.is_open else work
