"""What the page of `orchestrator matrix --out` holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain

from orchestrator.predict.crossover import Crossover, marks
from orchestrator.predict.matrix import MOST_CONCURRENT, SELECTIONS, Load
from orchestrator.report.predicted.crossings import notes, sentence
from orchestrator.report.predicted.selection_table import Selections, then

SHOWN = "H200"  # kind of GPU whose curves are shown first, where it is there


def data_of(
    found: Selections, crossings: Sequence[tuple[Load, Crossover]], colour: Callable[[str], str]
) -> dict[str, object]:
    """The data of its charts. colour: of a layout, a variable of the style sheet."""
    rows = zip(found.rows, SELECTIONS.data(found.rows), strict=True)
    return {
        "shown": SHOWN,
        "counts": found.asked.counts,
        "links": marks(),
        "selection": [{**row, "then": then(one).removeprefix(", ")} for one, row in rows],
        "crossover": [
            {**_crossing(*one), "colours": [colour(one[1].first), colour(one[1].second)]}
            for one in crossings
        ],
    }


def _crossing(load: Load, one: Crossover) -> dict[str, object]:
    about = {"model": load.model, "scenario": load.scenario, "sentence": sentence(one)}
    return {**about, **asdict(one)}


def texts_of(found: Selections) -> dict[str, object]:
    """What is said on it."""
    _, *others = found.notes
    counts = ", ".join(map(str, found.asked.counts))
    return {
        "title": found.heading,
        "how": (
            f"In each field: the layout with the most tokens/s on all {found.asked.counts[-1]} "
            f"GPUs, and from which concurrency on another one is best, up to {MOST_CONCURRENT}. "
            f"The colour is the fewest GPUs that serve the load, of {counts}."
        ),
        "crossover_how": " ".join(
            chain(("Tokens/s of two layouts of as many GPUs, over any bandwidth.",), notes())
        ),
        "notes": others,
    }
