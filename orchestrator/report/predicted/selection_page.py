"""What the page of `orchestrator matrix --out` holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

from orchestrator.predict.crossover import Crossover, marks
from orchestrator.predict.hardware import SHEET
from orchestrator.predict.matrix import MISSED, MOST_CONCURRENT, SELECTIONS, Load, Selection
from orchestrator.report.predicted.crossings import notes, sentence
from orchestrator.report.predicted.plan_table import counted
from orchestrator.report.predicted.selection_table import Selections, then
from workers.rows import grouped

SHOWN = "H200"  # kind of GPU whose curves are shown first, where it is there
HEATS = 5  # colours of fields, in the style of the page


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the matrix. heat: its colour, by the fewest GPUs."""

    layout: str
    then: str
    least: str
    heat: str
    reason: str


def data_of(
    found: Selections,
    crossings: Sequence[tuple[Load, Crossover]],
    looks: Callable[[Iterable[str], str], Sequence[object]],
) -> dict[str, object]:
    """The data of its chart, and of what can be downloaded. looks: of layouts under an engine."""
    layouts = {name for _, one in crossings for name in (one.first, one.second)}
    return {
        "shown": SHOWN,
        "links": marks(),
        "layouts": looks(layouts, found.load.case.factors.engine),
        "selection": SELECTIONS.data(found.rows),
        "crossover": [_crossing(*one) for one in crossings],
    }


def _crossing(load: Load, one: Crossover) -> dict[str, object]:
    about = {"model": load.model, "scenario": load.scenario, "sentence": sentence(one)}
    return {**about, **asdict(one)}


def texts_of(found: Selections) -> dict[str, object]:
    """What is said on it."""
    *fewer, most = map(str, found.asked.counts)
    counts = f"{', '.join(fewer)} or {most}" if fewer else most
    return {
        "title": found.heading,
        "how": (
            f"In each field: {found.best}, and from which concurrency on another one is best, up "
            f"to {MOST_CONCURRENT}. Below it, and in the field's colour: {found.fewest}, of "
            f"{counts}."
        ),
        "setup": _setup(found),
        "tables": [
            _table(found, rows) for rows in grouped(found.rows, lambda one: one.scenario).values()
        ],
        "crossover_how": " ".join(
            chain(("Tokens/s of two layouts of as many GPUs, over any bandwidth.",), notes())
        ),
        "notes": found.sources,
    }


def layouts_of(found: Selections) -> set[str]:
    """Those that are best anywhere."""
    return {layout for one in found.rows for layout in one.best_layouts}


def _setup(found: Selections) -> dict[str, str]:
    """What was asked, for the top of the page."""
    return {
        "Models": ", ".join(dict.fromkeys(one.model for one in found.rows)),
        "Data type": ", ".join(dict.fromkeys(one.precision for one in found.rows)),
        "Engine": found.load.case.factors.engine,
        "GPUs": _kinds(found),
    }


def _kinds(found: Selections) -> str:
    """How many, and where their rates come from."""
    kinds = found.asked.hardware
    sheets = sum(one.sources["rates"].startswith(SHEET) for one in kinds)
    said = {"from data sheets": sheets, "measured": len(kinds) - sheets}
    parts = [f"{count} {what}" for what, count in said.items() if count]
    return f"{counted(len(kinds), 'kind')}: {', '.join(parts)}"


def _table(found: Selections, rows: Sequence[Selection]) -> dict[str, object]:
    """The matrix of a scenario: a row for each kind of GPU, a field for each model."""
    first = rows[0]
    return {
        "title": f"{first.scenario} ({first.input_len} tokens in, {first.output_len} out)",
        "models": list(dict.fromkeys(one.model for one in rows)),
        "rows": {
            gpu: list(_fields(mine, found.asked.counts))
            for gpu, mine in grouped(rows, lambda one: one.gpu).items()
        },
    }


def _none(one: Selection) -> str:
    """Why there is nothing in a field, in two or three words; all of it is the field's title."""
    return "misses the limits" if one.reason == MISSED else "no layout"


def _fields(rows: Iterable[Selection], counts: Sequence[int]) -> Iterable[Field]:
    for one in rows:
        least = one.least_gpus
        yield Field(
            one.chosen.layout or "\u2013",
            then(one).removeprefix(", "),
            counted(least, "GPU") if least else _none(one),
            str(min(counts.index(least), HEATS - 1)) if least else "none",
            one.reason or "",
        )
