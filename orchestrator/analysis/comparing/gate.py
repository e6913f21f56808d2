"""The gate: whether a new result is worse than a base by more than is allowed, cell by cell.

An interval over starts decides, never the plain ratio: where it holds the limit, or there is none,
the gate is undecided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.analysis.comparing.confidence import Ratio
from orchestrator.analysis.comparing.gates import BEYOND, UNDECIDED, WITHIN, Gate
from orchestrator.analysis.comparing.rounds import completed
from orchestrator.analysis.comparing.surroundings import Surroundings
from orchestrator.analysis.comparing.two_results import (
    JoinedCell,
    Runs,
    Sides,
    TwoResults,
    sides_of,
    written,
)
from orchestrator.analysis.summary import Summary
from orchestrator.store.schema import COMPLETED
from workers.rows import Table, column, group, grouped, row

MISSING, LOST = "missing", "failed"
NOT_GATED, ONLY_NEW, LOST_BEFORE = "not gated", "only in new", "failed in base"
PASSED, FAILED, OPEN = 0, 1, 3  # exit statuses; 2 is bad input
ENDINGS = {PASSED: "passed", FAILED: "failed", OPEN: UNDECIDED}
FEW_STARTS = 3  # that are proposed where there is one
NAMED = 6  # of what is undecided, in one line


@row
class Outcome:
    """One gate of one cell of two results; a cell that cannot be gated has one row without a
    metric."""

    cell: str = column("its name")
    joined: JoinedCell = group()
    metric: str | None = column("column of the comparison that is gated")
    limit: float | None = column("of new / base, as it was asked for", "1")
    better: str | None = column("which of two values of it is the better one: higher, lower")
    outcome: str = column(
        "within, beyond, undecided; not gated where the base does not know it; of the cell: "
        "missing, failed, only in new, failed in base"
    )
    base: float | None = column("mean over the base's starts, in the unit of the metric", "1")
    new: float | None = column("the same of the new result", "1")
    ratio: float | None = column("new / base", "1")
    ci_low: float | None = column("lower end of its 95% interval over starts", "1")
    ci_high: float | None = column("upper end of it", "1")
    base_starts: int | None = column("starts of the base that know it", "1")
    new_starts: int | None = column("starts of the new result that know it", "1")
    sentence: str = column("the same in words")


OUTCOMES = Table("gate", Outcome)


@dataclass(frozen=True, slots=True)
class Report:
    """What the gates say of two results."""

    gates: Sequence[Gate]
    surroundings: Surroundings
    outcomes: Sequence[Outcome]
    allow_missing: bool = False

    @property
    def failing(self) -> list[Outcome]:
        """What fails the gate: beyond a limit, or lost."""
        lost = (BEYOND, LOST) if self.allow_missing else (BEYOND, LOST, MISSING)
        return [one for one in self.outcomes if one.outcome in lost]

    @property
    def undecided(self) -> list[str]:
        """What could not be decided: a cell and gate, or a gate that no cell was held to."""
        judged = (WITHIN, BEYOND, UNDECIDED)
        held = {(one.metric, one.limit) for one in self.outcomes if one.outcome in judged}
        idle = [gate for gate in self.gates if (gate.column.name, gate.ratio) not in held]
        open_ = [one for one in self.outcomes if one.outcome == UNDECIDED]
        return [
            *map(_named, open_),
            *(f"{gate.name} (no cell could be held to it)" for gate in idle),
        ]

    @property
    def status(self) -> int:
        """The exit status: PASSED only if every interval lies on the allowed side."""
        if self.failing:
            return FAILED
        return OPEN if self.undecided else PASSED

    @property
    def conclusion(self) -> str:
        """The whole in a line."""
        said = [
            f"{len(mine)} {outcome}: {', '.join(map(_named, mine))}"
            for outcome, mine in grouped(self.failing, lambda one: one.outcome).items()
        ]
        if self.undecided:
            some, left = self.undecided[:NAMED], len(self.undecided) - NAMED
            more = f" and {left} more" if left > 0 else ""
            said.append(f"{len(self.undecided)} undecided: {', '.join(some)}{more}")
        missing = sum(one.outcome == MISSING for one in self.outcomes)
        if missing and self.allow_missing:
            said.append(f"{missing} missing, which is allowed")
        within = sum(one.outcome == WITHIN for one in self.outcomes)
        return f"Gate {ENDINGS[self.status]}: {'; '.join([*said, f'{within} within'])}."

    @property
    def advice(self) -> str:
        """What would decide more of it; empty where starts would not."""
        known = [
            starts
            for one in self.outcomes
            if one.outcome == UNDECIDED
            for starts in (one.base_starts, one.new_starts)
            if starts
        ]
        if not known:
            return ""
        more = max(FEW_STARTS, 2 * min(known))
        return (
            f"More starts make intervals narrower: run the same commands with --num-starts {more}."
        )

    def as_data(self) -> dict[str, object]:
        """Plain data for `json.dumps`."""
        return {
            "outcome": ENDINGS[self.status],
            "gates": [gate.name for gate in self.gates],
            "failing": [_named(one) for one in self.failing],
            "undecided": self.undecided,
            "advice": self.advice,
            **self.surroundings.as_data(),
            "cells": OUTCOMES.data(self.outcomes),
        }


def judge(results: TwoResults, gates: Sequence[Gate], allow_missing: bool = False) -> Report:
    """The new one of two results held against the base. Raises UserError where they share no
    cell."""
    results.check_common_cells()
    outcomes = judged(results.base, results.new, gates)
    return Report(gates, results.surroundings, outcomes, allow_missing)


def judged(base: Runs, new: Runs, gates: Sequence[Gate]) -> list[Outcome]:
    """A row for every cell of either side and gate, by load, then by the name of the cell."""
    cells = sorted({*base, *new}, key=lambda cell: (cell.load, cell.name))
    return [
        one
        for cell in cells
        for one in _of_cell(cell, base.get(cell, ()), new.get(cell, ()), gates)
    ]


def _of_cell(
    cell: JoinedCell, base: Sequence[Summary], new: Sequence[Summary], gates: Iterable[Gate]
) -> Iterator[Outcome]:
    known = _presence(base, new)
    if known is not None:
        yield _row(cell, *known)
        return
    for gate in gates:
        sides = sides_of(gate.column, base, new)
        yield _row(cell, *_held(gate, sides), gate, sides, _some_failed(base, new))


def _presence(base: Sequence[Summary], new: Sequence[Summary]) -> tuple[str, str] | None:
    """What became of a cell that not both sides have completed, and the same in words."""
    if not base:
        return ONLY_NEW, "only in the new result"
    if not completed(base):
        return LOST_BEFORE, f"failed in the base{', completed now' if completed(new) else ''}"
    if not new:
        return MISSING, "missing in the new result"
    if not completed(new):
        return LOST, f"failed, completed in the base: {new[-1].reason or new[-1].status}"
    return None


def _held(gate: Gate, sides: Sides) -> tuple[str, str]:
    """What a cell that both sides have completed is by a gate, and the same in words."""
    if not sides.base:
        return NOT_GATED, "unknown in the base, so not gated"
    if not sides.new:
        return UNDECIDED, "unknown in the new result, known in the base"
    if sides.unlike:
        return UNDECIDED, sides.unlike
    if sides.with_few_starts:
        return UNDECIDED, _few_starts(sides)
    if not any((*sides.base, *sides.new)):
        return WITHIN, "0 in every start of both"
    found = sides.ratio
    if found is None:
        return UNDECIDED, "no ratio, as a start has 0 or less"
    outcome = gate.outcome(found)
    return outcome, f"{written(found)} the base, {_against(gate, outcome, found)}"


def _against(gate: Gate, outcome: str, found: Ratio) -> str:
    if outcome != UNDECIDED:
        return gate.sides[outcome == BEYOND]
    has_ends = found.low is not None and found.high is not None
    return f"undecided: the interval {f'holds {gate.ratio:g}' if has_ends else 'has no ends'}"


def _few_starts(sides: Sides) -> str:
    """Which sides have one start, so that there is no interval."""
    found, few = sides.ratio, sides.with_few_starts
    ratio = f"{written(found)} the base, " if found else ""
    which = "each" if len(few) > 1 else f"of the {few[0]} result"
    return f"{ratio}undecided: one start {which}, so no interval"


def _some_failed(base: Sequence[Summary], new: Sequence[Summary]) -> str:
    """Which runs of a completed cell are left out, because they have no result."""
    said = []
    for name, runs in (("base", base), ("new", new)):
        lost = [run for run in runs if run.status != COMPLETED]
        if lost:
            why = lost[-1].reason or lost[-1].status
            said.append(f"{len(lost)} of {len(runs)} runs of the {name} result left out: {why}")
    return f" ({'; '.join(said)})" if said else ""


def _row(
    cell: JoinedCell,
    outcome: str,
    said: str,
    gate: Gate | None = None,
    sides: Sides | None = None,
    aside: str = "",
) -> Outcome:
    found = sides.ratio if sides else None
    base, new = sides.means if sides else (None, None)
    what = f"{cell.name} {gate.column.name}" if gate else cell.name
    return Outcome(
        cell=cell.name,
        joined=cell,
        metric=gate.column.name if gate else None,
        limit=gate.ratio if gate else None,
        better=gate.column.better if gate else None,
        outcome=outcome,
        base=base,
        new=new,
        ratio=found.value if found else None,
        ci_low=found.low if found else None,
        ci_high=found.high if found else None,
        base_starts=len(sides.base) if sides else None,
        new_starts=len(sides.new) if sides else None,
        sentence=f"{what}: {said}{aside}",
    )


def _named(one: Outcome) -> str:
    return f"{one.cell} {one.metric}" if one.metric else one.cell
