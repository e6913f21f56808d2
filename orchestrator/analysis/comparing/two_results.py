"""Two results of the same work, cell by cell: what names a cell in both, and what its starts
say."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.analysis.comparing.confidence import Ratio, ratio
from orchestrator.analysis.comparing.rounds import (
    completed,
    held_to_one_level,
    held_to_one_slo,
    means,
    observed_once,
    whole,
    with_valid_power,
)
from orchestrator.analysis.comparing.surroundings import Surroundings, surroundings_of
from orchestrator.analysis.load import Results, load
from orchestrator.analysis.summary import Observed, Summary
from orchestrator.errors import UserError
from workers.rows import Column, column, columns, grouped, row

BASE, NEW = "base", "new"
# What is observed once a start, whatever the number of its runs.
OBSERVED = frozenset(one.path for one in columns(Observed))


class CellTwice(UserError):
    """A result that holds a cell twice, so that none of the two can be laid beside another."""


@row
class JoinedCell:
    """What a cell of two results must agree in: all that names it but the experiment, and how its
    requests arrive, which is part of the work."""

    model: str = column("name of the model")
    strategy: str = column("layout")
    engine: str = column("engine that executes it")
    dtype: str = column("type of weights and activations")
    quantization: str = column('what is FP8; "none"')
    scenario: str = column("name of the lengths")
    max_concurrency: int = column("requests in flight at most", "requests")
    request_rate: float | None = column(
        "requests that arrive a second, or conversations", "requests/s"
    )
    burstiness: float | None = column("shape of the gaps between them", "1")
    trace: str | None = column("of a trace, the part and the speed")

    @property
    def is_open(self) -> bool:
        """Whether requests arrive at times of their own."""
        return bool(self.request_rate or self.trace)

    @property
    def name(self) -> str:
        """The cell as a word, as in tiny.tp2.torch.float32.short.c8."""
        deployment = (self.model, self.strategy, self.engine, self.dtype, self.quantization)
        parts = (*deployment, self.scenario, f"c{self.max_concurrency}")
        name = ".".join(part for part in parts if part != "none")
        uneven = self.request_rate and self.burstiness not in (None, 1.0)
        rate = f".rate{self.request_rate:g}" if self.request_rate else ".trace" * self.is_open
        return name + rate + (f".burst{self.burstiness:g}" if uneven else "")

    @property
    def arrivals(self) -> str:
        """How requests arrive, in words."""
        if not self.is_open:
            return "a closed loop"
        if self.burstiness is None:
            rate = f", on average {self.request_rate:.3g}/s" if self.request_rate else ""
            trace = f" ({self.trace})" if self.trace else ""
            return f"an open loop at its own times{trace}{rate}"
        burstiness = f" with burstiness {self.burstiness:g}" if self.burstiness != 1.0 else ""
        return f"an open loop at a rate of {self.request_rate:g}/s{burstiness}"

    @property
    def closed(self) -> JoinedCell:
        """The same cell in a closed loop."""
        return replace(self, request_rate=None, burstiness=None, trace=None)

    @property
    def load(self) -> tuple[str, str, int, float, float, str]:
        """What its layouts are shown beside each other for; a closed loop comes first in order."""
        arrivals = self.request_rate or 0.0, self.burstiness or 0.0, self.trace or ""
        return self.model, self.scenario, self.max_concurrency, *arrivals


Runs = Mapping[JoinedCell, Sequence[Summary]]


@dataclass(frozen=True, slots=True)
class TwoResults:
    """base, new: the runs of each cell. surroundings: what the experiments that share a cell were
    made on."""

    base: Runs
    new: Runs
    surroundings: Surroundings

    @property
    def have_cells_in_common(self) -> bool:
        """Whether any cell is in both."""
        return not self.base.keys().isdisjoint(self.new)

    def check_common_cells(self) -> None:
        """Raise UserError where no cell is in both, with what would make the two comparable."""
        if not self.have_cells_in_common:
            raise UserError(
                "the two results have no cell in common; "
                f"{_what_to_give(list(self.base), list(self.new))}"
            )


@dataclass(frozen=True, slots=True)
class Sides:
    """A figure of one cell in both results: of each start, the mean of its runs.

    unlike: why the two are no measure of the same thing; empty where they are.
    """

    base: Sequence[float]
    new: Sequence[float]
    unlike: str = ""

    @property
    def ratio(self) -> Ratio | None:
        """New over base, its interval over starts. None where a side has none or a value that is
        not above 0, or the two are unlike."""
        return None if self.unlike else ratio(self.new, self.base)

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Of the base and of the new one."""
        return _mean(self.base), _mean(self.new)

    @property
    def with_few_starts(self) -> list[str]:
        """The sides that have too few starts for an interval."""
        return [name for name, side in ((BASE, self.base), (NEW, self.new)) if len(side) < 2]


def two_results(base: Path, new: Path, levels: Mapping[str, float] | None = None) -> TwoResults:
    """The results at `base` and `new`, each an experiment's folder or one that holds several.

    levels: service levels in ms that goodput is worked out under; None or empty: those of the runs.
    Raises UserError where there are no results, CellTwice where one of them holds a cell twice.
    """
    sides = _cells(base, levels), _cells(new, levels)
    shared = [(sides[0][cell][0], sides[1][cell][0]) for cell in sides[0] if cell in sides[1]]
    pairs = {(one.folder, two.folder): (one.manifest, two.manifest) for one, two in shared}
    runs = [{cell: mine for cell, (_, mine) in side.items()} for side in sides]
    return TwoResults(runs[0], runs[1], surroundings_of(pairs.values()))


def cells_of(runs: Iterable[Summary]) -> dict[JoinedCell, list[Summary]]:
    """The runs of each cell, those of an ablation left out."""
    return grouped(whole(runs), _cell_of)


def sides_of(column: Column, base: Sequence[Summary], new: Sequence[Summary]) -> Sides:
    """A column of the summary in the runs of one cell, of each side. Of energy the runs whose power
    is valid count; of goodput and an SLO none where they were not all held to the same levels."""
    unlike = _levels_apart(column.path[0], base, new)
    return Sides(_figures(column, base), _figures(column, new), unlike)


def written(found: Ratio) -> str:
    """A ratio as the gate writes it: `0.953x [0.949, 0.957]`."""
    known = found.low is not None and found.high is not None
    return f"{found.value:.3f}x" + (f" [{found.low:.3f}, {found.high:.3f}]" if known else "")


def _levels_apart(of: str, base: Iterable[Summary], new: Iterable[Summary]) -> str:
    """Which levels of goodput or of an SLO the two sides were held to, where these are not the
    same; empty for any other group of columns."""
    held: Mapping[str, Callable[[Summary], str | None]] = {
        "goodput": lambda run: run.goodput.goodput,
        "slo": lambda run: run.slo.slo,
    }
    if of not in held:
        return ""
    asked = [{held[of](run) or "none" for run in completed(side)} for side in (base, new)]
    if asked[0] == asked[1]:
        return ""
    levels = [" or ".join(sorted(side)) for side in asked]
    return f"service levels of {levels[0]} against {levels[1]}: give --{of}"


def _figures(column: Column, runs: Iterable[Summary]) -> list[float]:
    """The figure of each start that knows it."""
    counted = {"energy": with_valid_power, "goodput": held_to_one_level, "slo": held_to_one_slo}
    mine = counted.get(column.path[0], completed)(runs)
    if column.path in OBSERVED:
        mine = observed_once(mine)
    return list(means(mine, column.of).values())


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _cell_of(run: Summary) -> JoinedCell:
    cell, arrivals = run.cell, run.arrivals
    return JoinedCell(
        model=cell.model,
        strategy=cell.strategy,
        engine=cell.engine,
        dtype=cell.dtype,
        quantization=cell.quantization,
        scenario=cell.scenario,
        max_concurrency=cell.max_concurrency,
        request_rate=arrivals.request_rate,
        burstiness=arrivals.burstiness,
        trace=arrivals.trace,
    )


def _cells(
    folder: Path, levels: Mapping[str, float] | None
) -> dict[JoinedCell, tuple[Results, list[Summary]]]:
    """The runs of each cell of the experiments at or below `folder`, and the experiment's
    results."""
    found: dict[JoinedCell, tuple[Results, list[Summary]]] = {}
    for results in load([folder], levels):
        for cell, runs in cells_of(results.runs).items():
            if cell in found:
                first = found[cell][1][0].cell.experiment
                raise CellTwice(
                    f"{folder} holds the same cell in {first} and {runs[0].cell.experiment}; "
                    "give one experiment's folder"
                )
            found[cell] = results, runs
    return found


def _what_to_give(base: Sequence[JoinedCell], new: Sequence[JoinedCell]) -> str:
    """What would make two results comparable that have no cell in common."""
    theirs = {cell.closed: cell for cell in new}
    for cell in base:
        if cell.closed in theirs:
            other = theirs[cell.closed].arrivals
            return (
                f"one is {cell.arrivals}, the other {other}; give two results of the same arrivals"
            )
    return "give two results of the same models, layouts and concurrencies"
