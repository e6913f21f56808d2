"""What is compared with what. Cells of one load are; of their starts, each a fresh group of workers
and the unit of repetition, those of one round are pairs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from orchestrator.analysis.summary import Summary
from orchestrator.store.schema import COMPLETED, CellKey
from workers.rows import column, grouped, row


class Surroundings(Protocol):
    """Where a run was made, as far as that counts."""

    @property
    def block(self) -> int:
        """Number of the command that made it."""
        ...

    @property
    def num_gpus(self) -> int:
        """Devices of its layout."""
        ...


class Repeat(Protocol):
    """A run as it is compared: one that serves, or one that trains."""

    @property
    def cell(self) -> CellKey:
        """What it is a run of."""
        ...

    @property
    def start(self) -> int:
        """Number of its start."""
        ...

    @property
    def status(self) -> str:
        """What became of it."""
        ...

    @property
    def conditions(self) -> Surroundings:
        """Where it was made."""
        ...


R = TypeVar("R", bound=Repeat)


class Load(NamedTuple):
    """What cells must agree in for their layouts to be compared."""

    experiment: str
    model: str
    scenario: str
    max_concurrency: int


@row
class LoadKey:
    """A load, as the rows that are of one name it."""

    experiment: str = column("name of the experiment")
    model: str = column("name of the model")
    scenario: str = column("name of the lengths")
    max_concurrency: int = column("requests in flight at most", "requests")

    @property
    def load(self) -> Load:
        """What the layouts are compared within."""
        return Load(self.experiment, self.model, self.scenario, self.max_concurrency)


class Round(NamedTuple):
    """In a round every layout has one start. Two starts of a layout are never of one round: what a
    later command adds is of another block."""

    block: int
    start: int


def load_of(cell: CellKey) -> Load:
    """What a cell is compared within."""
    return Load(cell.experiment, cell.model, cell.scenario, cell.max_concurrency)


def names_of(cells: Sequence[CellKey]) -> list[str]:
    """What to call cells that did the same work: the layout, with engine, dtype and quantization
    only where these differ."""
    several_engines = len({cell.engine for cell in cells}) > 1
    several_dtypes = len({dtype_of(cell) for cell in cells}) > 1

    def name(cell: CellKey) -> str:
        engine = [cell.engine] if several_engines else []
        return " ".join([cell.strategy, *engine, *([dtype_of(cell)] if several_dtypes else [])])

    return [name(cell) for cell in cells]


def dtype_of(cell: CellKey) -> str:
    """The dtype of a cell, with its quantization if there is any."""
    return cell.dtype if cell.quantization == "none" else f"{cell.dtype}/{cell.quantization}"


# -- the runs that count


def whole(runs: Iterable[R]) -> list[R]:
    """The runs that nothing was taken out of: those of an ablation are no results of their
    layout."""
    return [run for run in runs if run.cell.ablation == "none"]


def completed(runs: Iterable[R]) -> list[R]:
    """The runs that have a result."""
    return [run for run in runs if run.status == COMPLETED]


def with_valid_power(runs: Iterable[Summary]) -> list[Summary]:
    """The completed runs whose energy may be set against another's."""
    return [run for run in completed(runs) if run.energy.power_valid]


def held_to_one_level(runs: Iterable[Summary]) -> list[Summary]:
    """The completed runs, if all were held to the same service levels; else none."""
    done = completed(runs)
    return done if len({run.goodput.goodput for run in done}) == 1 else []


def held_to_one_slo(runs: Iterable[Summary]) -> list[Summary]:
    """The completed runs, if all were held to the same SLO; else none."""
    done = completed(runs)
    return done if len({run.slo.slo for run in done}) == 1 else []


def observed_once(runs: Iterable[Summary]) -> list[Summary]:
    """One completed run of each start of one cell: a start is observed once, and all of its runs
    have that beside them."""
    return list({run.start: run for run in completed(runs)}.values())


# -- starts, and the runs inside them


def round_of(run: Repeat) -> Round:
    """The round that a run was made in."""
    return Round(run.conditions.block, run.start)


def by_round(runs: Iterable[R]) -> dict[Round, list[R]]:
    """The runs of each start of one cell, starts in the order in which they were made: results are
    read by the names of their files, s10 before s2."""
    return dict(sorted(grouped(runs, round_of).items()))


def means(runs: Iterable[R], value: Callable[[R], float | None]) -> dict[Round, float]:
    """A figure of each start of one cell: the mean over its runs that know it. A start of which no
    run knows it is left out."""
    return {at: statistics.fmean(values) for at, values in _known(runs, value).items()}


def std_within(runs: Iterable[R], value: Callable[[R], float | None]) -> float | None:
    """How far the runs inside a start of one cell lie apart: their standard deviation, pooled over
    starts. None where each start has one run."""
    starts = _known(runs, value).values()
    freedom = sum(len(values) - 1 for values in starts)
    squares = (math.fsum((x - statistics.fmean(of)) ** 2 for x in of) for of in starts)
    return math.sqrt(math.fsum(squares) / freedom) if freedom else None


def _known(runs: Iterable[R], value: Callable[[R], float | None]) -> dict[Round, list[float]]:
    """The values of each start of which any run knows one."""
    found = {at: list(map(value, mine)) for at, mine in by_round(runs).items()}
    known = {at: [one for one in mine if one is not None] for at, mine in found.items()}
    return {at: values for at, values in known.items() if values}
