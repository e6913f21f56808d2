"""Several layouts of a model side by side: a column each, and a row for what can differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.report import explain
from orchestrator.report.explain import SLICES, UNKNOWN, Explanation
from orchestrator.report.text import EN_DASH, Sent, plural
from strategies.precision import PHASES
from workers.units import format_bytes

Row = tuple[str, list[str]]  # its heading, and a text a layout
S = TypeVar("S", bound=Sent)


class Explained(Protocol):
    """A layout, worked out for what it is to do."""

    @property
    def layout(self) -> str:
        """Its name."""
        ...

    @property
    def engine(self) -> str | None:
        """The only one that it runs on."""
        ...

    @property
    def replicas(self) -> int:
        """Copies of the model."""
        ...

    @property
    def ranks(self) -> Sequence[object]:
        """All of them."""
        ...


def render(explained: Sequence[Explanation], console: Console) -> None:
    """Print what a rank holds under each layout, what fits and what a decode step sends; of one
    alone, rank by rank."""
    first = explained[0]
    if len(explained) == 1:
        explain.render(first, console)
        return
    kept = ", ".join(one for one in (first.dtype, first.quantization) if one != "none")
    title = f"{first.model} in {kept}; a decode step of {plural(first.batch, 'request')}"
    show(title, explained, _rows(explained), console, is_known=first.budget is not None)


def show(
    title: str,
    explained: Sequence[Explained],
    rows: Iterable[Row],
    console: Console,
    is_known: bool,
) -> None:
    """Print a table of `rows`. is_known: whether the memory of a device is."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("of a rank")
    for one in explained:
        table.add_column(one.layout, justify="right")
    for heading, texts in (*_counts(explained), *rows):
        table.add_row(heading, *texts)
    console.print(title, highlight=False)
    console.print(table)
    if not is_known:
        console.print(UNKNOWN)
    console.print("Rank by rank: the same command with one layout.")


def sent(layouts: Iterable[Iterable[Sequence[S]]], figure: Callable[[S], str]) -> Iterator[Row]:
    """A row for each operation and axis, with that of the rank which sends most. layouts: of each
    its ranks, of each what it sends."""
    most: list[dict[tuple[str, str], S]] = []
    for ranks in layouts:
        in_order = sorted((one for rank in ranks for one in rank), key=lambda one: one.bytes)
        most.append({(one.op, one.axis): one for one in in_order})
    for operation in sorted({key for found in most for key in found}):
        texts = [figure(found[operation]) if operation in found else "-" for found in most]
        yield " over ".join(operation), texts


def between(values: Iterable[int], figure: Callable[[int], str] = str) -> str:
    """The least and the greatest, or what all are."""
    known = list(values)
    ends = dict.fromkeys(figure(end) for end in (min(known), max(known))) if known else ["-"]
    return EN_DASH.join(ends)


def _counts(explained: Sequence[Explained]) -> Iterator[Row]:
    yield "ranks of the layout", [str(len(one.ranks)) for one in explained]
    yield "replicas of the model", [str(one.replicas) for one in explained]
    if any(one.engine for one in explained):
        yield "engine", [one.engine or "any" for one in explained]


def _rows(explained: Sequence[Explanation]) -> Iterator[Row]:
    counted = ([_length(*rank.layers) for rank in one.ranks] for one in explained)
    yield "layers", [between(one) for one in counted]
    for name in (*(title for title, _ in SLICES), "vocabulary"):
        held = (
            [_length(rank.slices[name]) for rank in one.ranks if name in rank.slices]
            for one in explained
        )
        yield f"{name} of {explained[0].sizes[name]}", [between(one) for one in held]
    for name, attribute in (("weights", "weight_bytes"), ("KV a token", "kv_bytes_per_token")):
        held = ([getattr(rank, attribute) for rank in one.ranks] for one in explained)
        yield name, [between(one, format_bytes) for one in held]
    yield from _by_phase(explained)
    if any(one.gathered_bytes for one in explained):
        yield "brought in, every pass", [format_bytes(one.gathered_bytes) for one in explained]
    yield from _fitting(explained)
    ranks = ([rank.collectives for rank in one.ranks] for one in explained)
    yield from sent(ranks, lambda one: f"{one.calls} x {format_bytes(one.bytes // one.calls)}")


def _length(*stretches: tuple[int, int]) -> int:
    return sum(stop - start for start, stop in stretches)


def _by_phase(explained: Sequence[Explanation]) -> Iterator[Row]:
    """What is read, where the phases do not read the same weights."""
    if any(len(set(one.phase_bytes.values())) > 1 for one in explained):
        for phase in PHASES:
            read = (one.phase_bytes[phase] for one in explained)
            yield f"weights read in {phase}", list(map(format_bytes, read))


def _fitting(explained: Sequence[Explanation]) -> Iterator[Row]:
    budgets = [one.budget for one in explained if one.budget is not None]
    if not budgets:
        return
    yield "activations, fullest rank", [format_bytes(one.workspace) for one in budgets]
    yield "KV tokens, a replica", [str(max(one.kv_tokens, 0)) for one in budgets]
    for name in explained[0].requests:
        fit = [str(max(one.requests[name], 0)) for one in explained]
        yield f"requests of {name} at once", fit
