"""A layout that trains in words and numbers: what each rank takes, by what it is for, and what an
optimizer step sends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.report.explain import UNKNOWN
from orchestrator.report.explain_several import Row, between, sent, show
from orchestrator.report.text import collectives_table, percent, plural
from strategies import TrainingLoad, memory
from strategies.training import (
    TrainingMemory,
    TrainingTraffic,
    bubble_share,
    check_batches,
    flops_per_token,
    micro_batches,
    training_memory,
    training_traffic,
)
from strategies.training.host import PROCESS_BYTES, USABLE
from strategies.training.memory import likes
from workers.messages import EnginePlan
from workers.units import format_bytes

MOST_ROWS = 16  # of the table of ranks; more of them repeat the pattern
UNTOLD = "in buckets"  # how many calls an engine makes of them
HEADINGS = {"total": "all", "host": "in main memory"}
PARTS = ("weights", "gradients", "optimizer", "activations", "buffers")


@dataclass(frozen=True, slots=True)
class TrainingRank:
    """What one rank takes, in bytes, and communicates in an optimizer step."""

    rank: int
    coordinates: dict[str, int]
    layers: int
    memory: TrainingMemory
    total_bytes: int
    collectives: tuple[TrainingTraffic, ...]


@dataclass(frozen=True, slots=True)
class TrainingExplanation:
    """A layout that trains a model, worked out.

    engine: the one that trains it. micro_batches: of a replica in a step. bubble: the share of a
    step that a pipeline waits. warning: of the batches. memory_bytes: of a device, 0 where it is
    unknown. fits: whether the fullest rank does; None where memory is unknown. flops_per_token: of
    training, in all.
    """

    model: str
    layout: str
    engine: str
    load: TrainingLoad
    replicas: int
    micro_batches: int
    bubble: float
    warning: str | None
    ranks: tuple[TrainingRank, ...]
    memory_bytes: int
    fits: bool | None
    flops_per_token: float


def explain(engine: str, plan: EnginePlan, memory_bytes: int) -> TrainingExplanation:
    """Work out what a plan trains on devices of `memory_bytes` (0 = unknown). Raises LayoutError
    for batches that it cannot train on."""
    placement, model, load = plan.placement, plan.model, plan.training
    assert load is not None, "the plan trains"
    warning, count = check_batches(placement, load), micro_batches(placement, load)
    taken, alike = training_memory(placement, model, load), likes(placement)
    traffic = {rank: training_traffic(placement, model, load, rank) for rank in set(alike)}
    ranks = tuple(
        TrainingRank(
            rank=rank,
            coordinates=placement.coordinates(rank),
            layers=sum(len(stage.layers) for stage in placement.stages_of(rank)),
            memory=taken[rank],
            total_bytes=taken[rank].total,
            collectives=traffic[alike[rank]],
        )
        for rank in range(placement.num_ranks)
    )
    return TrainingExplanation(
        model=model.name,
        layout=plan.layout,
        engine=engine,
        load=load,
        replicas=placement.num_replicas,
        micro_batches=count,
        bubble=bubble_share(load.schedule, placement.degree("pp"), count, load.chunks),
        warning=warning,
        ranks=ranks,
        memory_bytes=memory_bytes,
        fits=all(one.fits(memory_bytes) for one in taken) if memory_bytes else None,
        flops_per_token=flops_per_token(model, load.seq_len),
    )


def as_data(explanation: TrainingExplanation) -> dict[str, object]:
    """Plain data for `json.dumps`."""
    return asdict(explanation)


def render(explained: Sequence[TrainingExplanation], console: Console) -> None:
    """Print what a rank takes under each layout, whether it fits and what a step sends; of one
    alone, rank by rank."""
    first, load = explained[0], explained[0].load
    if len(explained) == 1:
        _render_one(first, console)
        return
    title = (
        f"{first.model} trained in {_how(load)}; an optimizer step of "
        f"{load.global_batch_size} sequences of {load.seq_len} tokens"
    )
    show(title, explained, _rows(explained), console, is_known=first.fits is not None)
    for one in explained:
        if one.warning:
            console.print(f"Note on {one.layout}: {one.warning}", highlight=False)


def _rows(explained: Sequence[TrainingExplanation]) -> Iterator[Row]:
    yield "micro-batches", [str(one.micro_batches) for one in explained]
    if any(one.bubble for one in explained):
        yield "waits in the pipeline", [percent(one.bubble, of=1.0) for one in explained]
    yield "layers", [between(rank.layers for rank in one.ranks) for one in explained]
    host = (
        ["host"] if any(rank.memory.host.total for one in explained for rank in one.ranks) else []
    )
    for part in (*PARTS, "total", *host):
        held = ([_held(rank.memory, part) for rank in one.ranks] for one in explained)
        yield HEADINGS.get(part, part), [between(one, format_bytes) for one in held]
    if explained[0].fits is not None:
        yield "fits", ["yes" if one.fits else "no" for one in explained]
    ranks = ([rank.collectives for rank in one.ranks] for one in explained)
    yield from sent(ranks, lambda one: f"{one.calls or UNTOLD}, {format_bytes(one.bytes)}")


def _held(memory: TrainingMemory, part: str) -> int:
    return memory.host.total if part == "host" else int(getattr(memory, part))


def _render_one(explanation: TrainingExplanation, console: Console) -> None:
    """Print what each rank takes, whether that fits, and what a step sends."""
    title = (explanation.model, "bold"), " trained under ", (explanation.layout, "bold")
    console.print(Text.assemble(*title, f" in {_summary(explanation)}"))
    for line in _lines(explanation):
        console.print(line, highlight=False)
    console.print(_ranks_table(explanation))
    for line in (_fit_line(explanation), *_host_line(explanation)):
        console.print(line, highlight=False)
    console.print(_collectives_table(explanation))


def _summary(explanation: TrainingExplanation) -> str:
    ranks, replicas = len(explanation.ranks), explanation.replicas
    parts = [plural(ranks, "rank"), *([plural(replicas, "replica")] if replicas > 1 else [])]
    return f"{_how(explanation.load)}: {', '.join(parts)}, on the engine {explanation.engine}"


def _how(load: TrainingLoad) -> str:
    return f"{load.precision}, layers compiled" if load.compiles else load.precision


def _lines(explanation: TrainingExplanation) -> Iterator[str]:
    load = explanation.load
    yield (
        f"An optimizer step: {load.global_batch_size} sequences of {load.seq_len} tokens, "
        f"{explanation.micro_batches} x {load.micro_batch_size} a replica; "
        f"{explanation.flops_per_token / 1e9:.3g} GFLOP a token."
    )
    if explanation.bubble:
        share = percent(explanation.bubble, of=1.0)
        yield f"Schedule {load.schedule}: a rank of the pipeline waits {share} of a step."
    if explanation.warning:
        yield f"Note: {explanation.warning}"


def _ranks_table(explanation: TrainingExplanation) -> Table:
    table = Table(box=SIMPLE_HEAD)
    axes = list(reversed(explanation.ranks[0].coordinates))  # outermost first
    host = ["main\nmemory"] if any(one.memory.host.total for one in explanation.ranks) else []
    for title in ("rank", *axes, "layers", *PARTS, "all", *host):
        table.add_column(title, justify="right")
    for one in explanation.ranks[:MOST_ROWS]:
        parts = [getattr(one.memory, part) for part in PARTS]
        sizes = [*parts, one.total_bytes, *([one.memory.host.total] if host else [])]
        table.add_row(
            str(one.rank),
            *(str(one.coordinates[axis]) for axis in axes),
            str(one.layers),
            *map(format_bytes, sizes),
        )
    hidden = len(explanation.ranks) - MOST_ROWS
    if hidden > 0:
        table.caption = f"and {hidden} more ranks in the same pattern"
    return table


def _fit_line(explanation: TrainingExplanation) -> str:
    if explanation.fits is None:
        return UNKNOWN
    fullest = max(one.total_bytes for one in explanation.ranks)
    answer = "It fits" if explanation.fits else "It does not fit"
    return (
        f"{answer}: the fullest rank takes {format_bytes(fullest)} of "
        f"{format_bytes(explanation.memory_bytes)}, of which "
        f"{format_bytes(memory.RESERVE_BYTES)} are in reserve."
    )


def _host_line(explanation: TrainingExplanation) -> Iterator[str]:
    """What all ranks take of main memory, by what it is for; nothing where they keep nothing."""
    taken = [one.memory.host for one in explanation.ranks]
    most = max(taken, key=lambda one: one.total)
    if not most.total:
        return
    parts = ((getattr(most, part), part) for part in PARTS)
    split = ", ".join(f"{format_bytes(size)} of {part}" for size, part in parts if size)
    together = sum(one.total + PROCESS_BYTES for one in taken)
    yield (
        f"In main memory, all ranks take {format_bytes(together)}: each up to {split}, and "
        f"{format_bytes(PROCESS_BYTES)} of its process. One machine for all of them needs "
        f"{format_bytes(int(together / USABLE))}, of which {USABLE:.0%} may be used."
    )


def _collectives_table(explanation: TrainingExplanation) -> Table | str:
    return (
        collectives_table(
            "collectives of a step, per rank",
            ((one.rank, one.collectives) for one in explanation.ranks),
            {
                "calls": lambda one: UNTOLD if one.calls is None else str(one.calls),
                "bytes": lambda one: format_bytes(one.bytes),
            },
        )
        or "An optimizer step needs no collective."
    )
