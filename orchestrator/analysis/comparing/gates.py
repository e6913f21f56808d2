"""What may be asked of a new result: how far a column of the comparison may become worse."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from orchestrator.analysis.comparing.compare import COMPARED
from orchestrator.analysis.comparing.confidence import Ratio
from orchestrator.analysis.summary import SUMMARY
from orchestrator.errors import UserError
from workers.rows import Column

WITHIN, BEYOND, UNDECIDED = "within", "beyond", "undecided"
NAMED = 12  # columns that an error names


@dataclass(frozen=True, slots=True)
class Gate:
    """How far a column of the comparison may become worse. ratio: the limit of new / base, at least
    where higher is better, else at most."""

    column: Column
    ratio: float

    @property
    def name(self) -> str:
        """As it is asked for: output_throughput:0.95."""
        return f"{self.column.name}:{self.ratio:g}"

    def outcome(self, found: Ratio) -> str:
        """Where the interval lies: within, beyond, or undecided where it holds the limit."""
        if found.low is None or found.high is None:
            return UNDECIDED
        if self.column.better == "higher":
            is_within, is_beyond = found.low >= self.ratio, found.high < self.ratio
        else:
            is_within, is_beyond = found.high <= self.ratio, found.low > self.ratio
        if is_within:
            return WITHIN
        return BEYOND if is_beyond else UNDECIDED

    @property
    def sides(self) -> tuple[str, str]:
        """How the allowed and the other side of the limit are written."""
        wrong = "below" if self.column.better == "higher" else "above"
        return f"not {wrong} {self.ratio:g}", f"{wrong} {self.ratio:g}"


def gate_of(text: str) -> Gate:
    """A gate as it is asked for, METRIC:RATIO. Raises UserError where that is no gate."""
    name, _, limit = text.rpartition(":")
    if not name:
        raise UserError(f"--gate '{text}' is not METRIC:RATIO, as output_throughput:0.95 is")
    known = gateable()
    if name not in known:
        raise UserError(f"--gate '{text}': {_no_metric(name, list(known))}")
    return Gate(known[name], _ratio(text, limit))


def gateable() -> dict[str, Column]:
    """The columns of the comparison that can be gated, as columns of the summary: numbers of which
    one of two is the better one."""
    compared = {one.name for one in COMPARED.columns}
    return {
        one.name: one
        for one in SUMMARY.columns
        if one.better and one.name in compared and _is_number(one)
    }


def _ratio(text: str, limit: str) -> float:
    try:
        ratio = float(limit)
    except ValueError:
        ratio = math.nan
    if not (math.isfinite(ratio) and ratio > 0):
        raise UserError(f"--gate '{text}': the ratio '{limit}' is no number above 0, as 0.95 is")
    return ratio


def _no_metric(name: str, known: Sequence[str]) -> str:
    """Why there is no gate on a column, and which there are: the nearest ones first."""
    near = difflib.get_close_matches(name, known, n=3)
    shown = [*near, *(one for one in known if one not in near)][:NAMED]
    why = f"no metric '{name}'"
    if name in {one.name for one in COMPARED.columns}:
        why = f"neither a higher nor a lower '{name}' is better by itself"
    hint = f"; did you mean '{near[0]}'?" if near else "."
    more = f" and {len(known) - len(shown)} more, see `better` in docs/columns.md"
    return f"{why}{hint} There are {', '.join(shown)}{more}"


def _is_number(one: Column) -> bool:
    return bool(pa.types.is_integer(one.type) or pa.types.is_floating(one.type))
