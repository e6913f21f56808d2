"""The table of `orchestrator matrix`: the best layout of each load, model and kind of GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.predict.kinds import unlooked
from orchestrator.predict.matrix import MOST_CONCURRENT, SELECTIONS, Asked, Load, Selection
from orchestrator.report.predicted.plan_table import counted
from workers.rows import grouped


@dataclass(frozen=True, slots=True)
class Selections:
    """A matrix, and what it was asked of. left_out: kind of GPU -> why it is not looked at."""

    asked: Asked
    left_out: Mapping[str, str]
    rows: tuple[Selection, ...]

    @property
    def load(self) -> Load:
        """Any of them: the concurrency and the engine are those of all."""
        return self.asked.loads[0]

    @property
    def heading(self) -> str:
        """What it shows."""
        case, limits = self.load.case, self.asked.objectives
        within = ", ".join(f"{one.metric} at most {one.limit_ms:g} ms" for one in limits)
        return (
            f"Best of {counted(self.asked.counts[-1], 'GPU')} at {case.asked.max_concurrency} "
            f"concurrent, "
            f"{case.factors.engine}{f', with {within}' if within else ''}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """How to read it, and where the figures come from."""
        counts = ", ".join(map(str, self.asked.counts))
        none = "" if all(one.chosen.layout for one in self.rows) else " -: none; --json says why."
        return (
            f"In each field: {self.best}, from which concurrency on another one is best (looked "
            f"at: 1 to {MOST_CONCURRENT}), and in brackets {self.fewest} (looked at: {counts})."
            f"{none}",
            *self.sources,
        )

    @property
    def best(self) -> str:
        """What stands first in a field."""
        most, limits = self.asked.counts[-1], self.asked.objectives
        within = "of those that keep the limits, " if limits else ""
        whole = f"all {most} GPUs" if most > 1 else "one GPU"
        return f"{within}the layout with the most tokens/s on {whole}"

    @property
    def fewest(self) -> str:
        """What stands last in a field."""
        does = "keep the limits" if self.asked.objectives else "serve the load"
        return f"the fewest GPUs that {does}"

    @property
    def sources(self) -> tuple[str, ...]:
        """What is left out, and where the figures come from."""
        engine, found = self.load.case.factors, self.asked
        left = "; ".join(why.partition(";")[0] for why in self.left_out.values())
        hidden = "; ".join(unlooked(found.hardware, found.counts[-1]))
        return (
            *([f"Left out: {left}."] if left else []),
            *([f"Not looked at: {hidden}."] if hidden else []),
            f"Factors of {engine.engine}: {engine.provenance}.",
        )


def render(found: Selections, console: Console) -> None:
    """Print a table for each scenario: a row for each kind of GPU, a column for each model."""
    console.print(found.heading, style="bold", highlight=False)
    for scenario, rows in grouped(found.rows, lambda one: one.scenario).items():
        first = rows[0]
        title = f"{scenario} ({first.input_len} in, {first.output_len} out)"
        table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
        table.add_column("GPU")
        for model in dict.fromkeys(one.model for one in rows):
            table.add_column(model)
        for gpu, of_kind in grouped(rows, lambda one: one.gpu).items():
            table.add_row(gpu, *map(field, of_kind))
        console.print(table)
    for line in found.notes:
        console.print(line, highlight=False)


def field(one: Selection) -> str:
    """As in `tp8, 54: tp4dp2 (2)`."""
    least = f" ({one.least_gpus})" if one.least_gpus else ""
    return f"{one.chosen.layout or '-'}{then(one)}{least}"


def then(one: Selection) -> str:
    """From when on another layout is best."""
    if one.changes_at is None:
        return ""
    after = one.best_layouts[one.best_from.index(one.changes_at)]
    return f", {one.changes_at}: {after or 'none'}"


def as_data(found: Selections) -> dict[str, object]:
    """Plain data for `json.dumps`."""
    return {
        "objectives": {one.metric: one.limit_ms for one in found.asked.objectives},
        "gpu_counts": found.asked.counts,
        "engine": found.load.case.factors.engine,
        "factors": found.load.case.factors.provenance,
        "left_out": found.left_out,
        "selection": SELECTIONS.data(found.rows),
    }
