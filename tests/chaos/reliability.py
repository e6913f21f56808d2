"""The table of docs/reliability.md, from the outcomes of `make chaos`: `python
tests/chaos/reliability.py` writes it again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cases import OTHERS, STRUCK, Case

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
HEAD = (
    "| what dies or comes | while | tried | finished results lost | left running or lying | "
    "longest until nothing ran | resumed |\n| --- | --- | --- | --- | --- | --- | --- |\n"
)


def table(outcomes: Iterable[dict[str, Any]], cases: Iterable[Case]) -> str:
    """A row for each of `cases`, also for those that were not tried."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {
        (case.event, case.phase): [] for case in cases
    }
    for outcome in outcomes:
        groups[outcome["event"], outcome["phase"]].append(outcome)
    return HEAD + "".join(_row(*key, found) for key, found in groups.items())


def _row(event: str, phase: str, found: Sequence[dict[str, Any]]) -> str:
    if not found:
        return f"| {event} | {phase} | not tried | | | | |\n"
    lost, left = (sum(one[name] for one in found) for name in ("lost", "left"))
    mark = "" if all("compared" in one for one in found) else " *"
    joined = event.startswith("joined")
    ended = [one["gone_s"] for one in found if joined or one["status"] != 0]
    longest = f"{max(ended):.1f} s" if ended else "goes on"
    resumed = sum(one["resumed"] for one in found)
    cells = (event, phase, len(found), f"{lost}{mark}", left, longest, f"{resumed} of {len(found)}")
    return f"| {' | '.join(map(str, cells))} |\n"


def page_with(text: str, results: Path) -> str:
    """The page, with the table of `results` in its place."""
    outcomes = [json.loads(line) for line in results.read_text().splitlines()]
    start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:start] + table(outcomes, [*STRUCK, *OTHERS]) + text[stop:]


def write_page(results: Path) -> None:
    """Bring the page up to date with `results`."""
    PAGE.write_text(page_with(PAGE.read_text(), results))


if __name__ == "__main__":
    write_page(HERE / "results.jsonl")
