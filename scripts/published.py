"""Published results and the words that pages are made of. A statement that the tables do not bear
out raises AssertionError instead of being written."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.comparing.findings import Findings, of_results
from orchestrator.analysis.comparing.spreads import Statistic
from orchestrator.analysis.comparing.verdicts import Verdict
from orchestrator.analysis.load import Results, load

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
WIDTH = 118
THROUGHPUT = "output_throughput"


@dataclass(frozen=True)
class Published:
    """One published result: a folder of packed tables, and what it says."""

    folder: Path

    @cached_property
    def results(self) -> Results:
        """The runs and the manifest."""
        (found,) = load([self.folder])
        return found

    @property
    def started(self) -> str:
        """When its experiment was, in ISO 8601."""
        return str(self.results.manifest["started_at"])

    @cached_property
    def findings(self) -> Findings:
        """Comparison, verdicts and statistics."""
        return of_results([self.results])

    @property
    def concurrencies(self) -> list[int]:
        """In order."""
        return sorted({one.cell.max_concurrency for one in self.findings.comparison})

    def at(self, strategy: str, concurrency: int, engine: str = "torch") -> Comparison | None:
        """The row of the comparison of a layout; None where it has no completed run."""
        return self._cells.get((strategy, concurrency, engine))

    def cell(self, strategy: str, concurrency: int, engine: str = "torch") -> Comparison:
        """The same; AssertionError where there is none."""
        found = self.at(strategy, concurrency, engine)
        assert found is not None, (self.folder, strategy, concurrency, engine)
        return found

    @cached_property
    def _cells(self) -> dict[tuple[str, int, str], Comparison]:
        return {
            (one.cell.strategy, one.cell.max_concurrency, one.cell.engine): one
            for one in self.findings.comparison
            if one.num_runs
        }

    def verdict(self, one: str, other: str, concurrency: int) -> Verdict:
        """The verdict on the throughput of two layouts."""
        (found,) = (
            verdict
            for verdict in self.findings.verdicts
            if verdict.metric == THROUGHPUT
            and verdict.max_concurrency == concurrency
            and {verdict.better, verdict.other} == {one, other}
        )
        return found

    def statistic(self, strategy: str, concurrency: int, metric: str) -> Statistic:
        """A figure of a cell over its starts."""
        (found,) = (
            one
            for one in self.findings.statistics
            if (one.cell.strategy, one.cell.max_concurrency) == (strategy, concurrency)
            and one.metric == metric
        )
        return found

    def values(self, of: Callable[[Comparison], float | None]) -> list[float]:
        """A figure of every cell that knows it."""
        found = map(of, self.findings.comparison)
        return [one for one in found if one is not None]


# -- what is said of every result


def model_of(found: Published) -> str:
    """The model that a result is of."""
    (name,) = {one.cell.model for one in found.findings.comparison}
    return name


def device(found: Sequence[Published]) -> str:
    """The name of the GPUs of some results."""
    (name,) = {one.conditions.device_name for one in completed_of(found)}
    assert name is not None
    return name


def completed_of(found: Sequence[Published]) -> list[Comparison]:
    """The cells that have a completed run."""
    return [one for each in found for one in each.findings.comparison if one.num_runs]


def kind(found: Sequence[Published]) -> str:
    """The same as `plan` calls it: h200 of "NVIDIA H200"."""
    return device(found).split()[1].lower()


def lengths(found: Sequence[Published]) -> str:
    """Of prompts and outputs, in words."""
    rows = (one.conditions for one in completed_of(found))
    ((read, made),) = {(one.input_len, one.output_len) for one in rows}
    return f"{read} tokens in and {made} out"


def reached(one: Comparison) -> float:
    """Generated tokens per second, the mean over starts."""
    return known(one.throughput.output_throughput)


def decode_comm(found: Published, layout: str) -> list[float]:
    """Share of communication in a decode step of `torch`, in percent, by concurrency."""
    return [known(found.cell(layout, n).step.decode.comm_exposed.pct) for n in found.concurrencies]


# -- words and tables


def known(value: float | None) -> float:
    """The value; AssertionError where it is null."""
    assert value is not None
    return value


def users(concurrency: int) -> str:
    """One user, in words."""
    assert concurrency == 1
    return "one user"


def between(values: Sequence[float], form: str, unit: str) -> str:
    """From the least to the most of some values."""
    low, high = (f"{value:{form}}" for value in (min(values), max(values)))
    return f"{low}{unit}" if low == high else f"{low}{unit} to {high}{unit}"


def listed(items: Iterable[object]) -> str:
    """Items in a sentence."""
    *head, last = map(str, items)
    return f"{', '.join(head)} and {last}" if head else last


def bold(text: str, yes: object) -> str:
    """Bold text, if it is to be."""
    return f"**{text}**" if yes else text


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in (titles, *rows)]
    return "\n".join([lines[0], "|---:" * len(titles) + "|", *lines[1:]])


def paragraph(*sentences: str, width: int = WIDTH) -> str:
    """Sentences as lines of a paragraph."""
    return textwrap.fill(" ".join(sentences), width, break_long_words=False, break_on_hyphens=False)


def bullets(*texts: str, width: int = WIDTH) -> str:
    """Texts as a list."""
    return "\n".join(bullet(text, width) for text in texts)


def bullet(text: str, width: int = WIDTH) -> str:
    """A text as an item of a list."""
    return textwrap.fill(
        text,
        width,
        initial_indent="* ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
