"""Write docs/columns.md anew, with every column of every table, from the declarations at the fields
of the row types: `python scripts/columns_page.py`."""

from __future__ import annotations

import inspect
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from orchestrator.analysis.comparing.ablation import Effect, TechniqueEffect
from orchestrator.analysis.comparing.best import Best
from orchestrator.analysis.comparing.changes import Change
from orchestrator.analysis.comparing.compare import Standing
from orchestrator.analysis.comparing.curves import Curve
from orchestrator.analysis.comparing.drift import Drift
from orchestrator.analysis.comparing.gaps import Imported, Missing
from orchestrator.analysis.comparing.gate import Outcome
from orchestrator.analysis.comparing.spreads import Statistic, Unsettled
from orchestrator.analysis.comparing.verdicts import Verdict
from orchestrator.analysis.goodput import FoundRate
from orchestrator.analysis.kernels import TopKernel
from orchestrator.analysis.observed.accounting import PartsRow, TimedRow
from orchestrator.analysis.observed.operations import JoinedCollective
from orchestrator.analysis.outputs import KeptRequest
from orchestrator.analysis.recompute import Recomputed
from orchestrator.analysis.summary import Summary
from orchestrator.analysis.training.ablation import TrainingEffect
from orchestrator.analysis.training.comparison import TrainingStanding
from orchestrator.analysis.training.observed import TrainedOverlap, TrainedParts
from orchestrator.analysis.training.rows import Trained
from orchestrator.node.fabric import Fit
from orchestrator.predict.crossover import Crossing
from orchestrator.predict.matrix import Selection
from orchestrator.store.schema import CellKey, RunKey, StartKey
from workers.records import FabricRow, KernelRow, SampleRow, SpanRow, StepRow
from workers.rows import Column, columns, grouped
from workers.training_records import TrainingCollectiveRow, TrainingStepRow

PAGE = Path(__file__).resolve().parents[1] / "docs" / "columns.md"
WIDTH = 118  # of prose; the rows of a Markdown table cannot be wrapped
UNITLESS: Mapping[pa.DataType, str] = {pa.string(): "text", pa.bool_(): "true or false"}
# The headings beside the name, and the text of a column under each. A heading without any text is
# left out of its table.
SAID: Mapping[str, Callable[[Column], str]] = {
    "unit": lambda one: unit_of(one),
    "over runs": lambda one: one.over_runs or "",
    "better": lambda one: one.better or "",
    "meaning": lambda one: one.meaning,
    "formula": lambda one: f"`{one.formula}`" if one.formula else "",
    "source": lambda one: one.source,
}
INTRODUCTION = """
Every column of every table, with its unit, meaning, formula and source. This page is generated: the
columns are declared at the fields of the row types in `orchestrator/` and `workers/`, and
`python scripts/columns_page.py` writes them here.

In an Arrow file the unit of a number is in the metadata of its field, too. The unit `1` is that of
counts, numbers and ratios. A value that was not observed, or could not be, is null and never 0.
"""


@dataclass(frozen=True, slots=True)
class Section:
    """One table on the page.

    name: of the table. kind: the type of its rows. holds: what a row is. place: where it is found.
    keys: the row type of its key, whose columns come first; None: it has no key.
    """

    name: str
    kind: type[object]
    holds: str
    place: str
    keys: type[object] | None = None

    @property
    def own(self) -> list[Column]:
        """Its columns, without those of its keys."""
        named = set() if self.keys is None else {one.name for one in columns(self.keys)}
        return [one for one in columns(self.kind) if one.name not in named]


KEYS: Mapping[type[object], str] = {CellKey: "cell", StartKey: "start", RunKey: "run"}
RUNS, OBSERVED = "a part a run", "a part for each start of a cell"
JSON, CALIBRATE = "`orchestrator compare DIR --json`", "`orchestrator calibrate`"
MATRIX = "`orchestrator matrix --out DIR`"
SECTIONS = (
    Section("summary", Summary, "a run", RUNS, RunKey),
    Section("requests", KeptRequest, "a request of a run", RUNS, RunKey),
    Section("steps", StepRow, "an engine step of a rank", RUNS, RunKey),
    Section("collectives", JoinedCollective, "an operation of a rank in one phase", RUNS, RunKey),
    Section("telemetry", SampleRow, "a sample of a rank and GPU", RUNS, RunKey),
    Section("spans", SpanRow, "a stretch of compute, or a call, of a rank", OBSERVED, StartKey),
    Section("parts", PartsRow, "the steps of a rank in one phase", OBSERVED, StartKey),
    Section(
        "timed_collectives", TimedRow, "an operation of a rank in one phase", OBSERVED, StartKey
    ),
    Section("kernels", KernelRow, "a kernel of a decode step", OBSERVED, StartKey),
    Section("training", Trained, "a run that trains", RUNS, RunKey),
    Section("training_steps", TrainingStepRow, "an optimizer step of a run", RUNS, RunKey),
    Section(
        "training_collectives",
        TrainingCollectiveRow,
        "an operation of a rank over one axis in an optimizer step",
        RUNS,
        RunKey,
    ),
    Section(
        "training_parts",
        TrainedParts,
        "the optimizer steps of a rank, taken apart",
        OBSERVED,
        StartKey,
    ),
    Section(
        "training_overlaps",
        TrainedOverlap,
        "an operation of a rank over one axis in an optimizer step",
        OBSERVED,
        StartKey,
    ),
    Section(
        "training_ablations",
        TrainingEffect,
        "a cell that trains with a change",
        f"{JSON} under `ablations`",
        CellKey,
    ),
    Section(
        "training_comparison",
        TrainingStanding,
        "a cell that trains",
        f"{JSON} under `comparison`",
        CellKey,
    ),
    Section("comparison", Standing, "a cell", f"`comparison.arrow`, {JSON}", CellKey),
    Section("best", Best, "a load and a metric: which layouts are best", JSON),
    Section("verdicts", Verdict, "two layouts under one load, by one metric", JSON),
    Section("curves", Curve, "a layout over its concurrencies", JSON),
    Section("ablations", Effect, "an ablated cell", JSON, CellKey),
    Section(
        "ablation",
        TechniqueEffect,
        "a cell and a technique that it was run without",
        f"`ablation.arrow` of `orchestrator ablate`, {JSON} under `techniques`",
        CellKey,
    ),
    Section(
        "top_kernels",
        TopKernel,
        "one of the kernels that take most of a decode step",
        f"{JSON} under `kernels`",
        CellKey,
    ),
    Section("statistics", Statistic, "a figure of a cell over its starts", JSON, CellKey),
    Section("unsettled", Unsettled, "a cell less certain than was asked for", JSON, CellKey),
    Section("changes", Change, "a metric of a cell of two results", f"{JSON} of two results"),
    Section("gate", Outcome, "a gate of a cell of two results", f"{JSON} with `--gate`"),
    Section("drifts", Drift, "a figure that changes from run to run", JSON, CellKey),
    Section("missing", Missing, "a cell that has not all the runs asked for", JSON),
    Section(
        "recomputed",
        Recomputed,
        "an observed cell of a start",
        "`orchestrator recompute DIR --json`",
        StartKey,
    ),
    Section("imported", Imported, "a result that was imported", JSON),
    Section("rates", FoundRate, "a cell", "`rates.arrow` of `submit --find-rate`", CellKey),
    Section("fabric", FabricRow, "a measurement of a node", f"`fabric.arrow` of {CALIBRATE}"),
    Section("fits", Fit, "a collective of a node", f"`fits.arrow` of {CALIBRATE}"),
    Section("selection", Selection, "a load on a kind of GPU", f"`selection.arrow` of {MATRIX}"),
    Section("crossover", Crossing, "two layouts of a load", f"`crossover.arrow` of {MATRIX}"),
)
# What the row type does not say of its table.
NOTES = {
    "summary": """
The part of a run is kept without the groups [step](#step) and [operations](#operations). These are
worked out when results are read, from the observed run of the cell. `orchestrator export` and
`orchestrator pack` write them beside each run. *over runs* says how the runs of a start become one
value, and then the starts of a cell, in the [comparison](#comparison). *better* says which of two
values is the better one, where one is: `orchestrator compare --gate` takes these columns.
""",
    "collectives": """
The part of a run is kept without the timing: `group_size` and all that follows it. `orchestrator
export` and `orchestrator pack` take the timing from [timed_collectives](#timed_collectives) and
write it beside the calls of each run.
""",
    "comparison": """
Besides the columns below it has those columns of the [summary](#summary) that name a function
under *over runs*, by the same names. That function makes one value of the completed runs of each
start that know one, and then one of the starts: `mean`, `max`, `min`, or `first`, for what is the
same in all of them. Energy is over the runs whose power is valid. Goodput is null unless all runs
were held to the same service levels, and so is what is said of an SLO.
""",
}


def page() -> str:
    """The whole page, as Markdown."""
    blocks = ["# Columns", *_paragraphs(INTRODUCTION), _contents(), *_keys()]
    blocks += [block for section in SECTIONS for block in _section(section)]
    return "\n\n".join(blocks) + "\n"


def unit_of(column: Column) -> str:
    """The unit of a number, or what kind of values there are in a column without a unit."""
    is_list = pa.types.is_list(column.type)
    unit = column.unit or UNITLESS.get(column.type.value_type if is_list else column.type, "")
    return f"list: {unit}" if is_list else unit


def _contents() -> str:
    rows = [(f"[{one.name}](#{one.name})", one.holds, one.place) for one in SECTIONS]
    return _markdown(("table", "a row is", "found in"), rows)


def _keys() -> Iterator[str]:
    yield "## Keys"
    yield "Most tables begin with the columns that say what a row is of."
    before: set[str] = set()
    for kind, name in KEYS.items():
        new = [one for one in columns(kind) if one.name not in before]
        yield f"A {name} has {'those of the key above and ' if before else ''}these columns:"
        yield _single(new)
        before |= {one.name for one in new}


def _section(section: Section) -> Iterator[str]:
    """The heading of a table, what is said of it, its columns, and a part for each group."""
    yield f"## {section.name}"
    yield from _paragraphs(inspect.getdoc(section.kind) or "")
    if section.keys is not None:
        yield f"It begins with the columns of a {KEYS[section.keys]}; see [keys](#keys)."
    yield from _paragraphs(NOTES.get(section.name, ""))
    groups = grouped(section.own, lambda one: one.path[0] if len(one.path) > 1 else "")
    if "" in groups:
        yield _single(groups.pop(""))
    hints = typing.get_type_hints(section.kind)
    for name, mine in groups.items():
        yield f"### {name}"
        yield from _paragraphs(inspect.getdoc(hints[name]) or "")
        twins = _twins(mine)
        yield _table(twins) if twins else _single(mine)


def _twins(found: Sequence[Column]) -> dict[str, list[Column]] | None:
    """The columns of a group by the group in it, where these differ in their names alone: the
    phases of a step. None for other groups."""
    if any(len(one.path) < 3 for one in found):
        return None
    inner = grouped(found, lambda one: one.path[1])
    same = {tuple(tuple(said(one) for said in SAID.values()) for one in g) for g in inner.values()}
    return inner if len(same) == 1 and len(inner) > 1 else None


def _single(found: Sequence[Column]) -> str:
    return _table({"name": found})


def _table(names: Mapping[str, Sequence[Column]]) -> str:
    """A Markdown table. names: heading -> columns, of which those in one line differ in their names
    alone."""
    lines = list(zip(*names.values(), strict=True))
    said = {title: [say(one) for one, *_ in lines] for title, say in SAID.items()}
    filled = {title: texts for title, texts in said.items() if any(texts)}
    named = [[f"`{one.name}`" for one in line] for line in lines]
    rows = [[*line[0], *line[1:]] for line in zip(named, *filled.values(), strict=True)]
    return _markdown([*names, *filled], rows)


def _markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, each wrapped."""
    parts = (" ".join(part.split()) for part in text.strip().split("\n\n"))
    return [textwrap.fill(part, WIDTH) for part in parts if part]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
