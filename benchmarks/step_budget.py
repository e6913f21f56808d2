"""Where a decode step of tensor parallelism goes, kernel by kernel.

    python benchmarks/step_budget.py docs/results/4xh200/qwen2.5-32b --cell tp4.c1 --cell tp4.c32

Reads all spans of observed runs (`orchestrator submit --save-spans`) of the engine `torch`. They
have no names of kernels. But two all-reduces over tp enclose the kernels of one half of a layer,
which are launched in an order that is known (`HALVES`). The reduction of a product's split-K
follows it more closely than any other kernel, and counts as part of it. Where spans of a half touch
and are one, it is not told apart.

Figures are means over the settled steps and over ranks. A call's transfer is its shortest duration
over the ranks, with the norm where it is in the same kernel; the rest of it is waiting. Bytes are
those of the weights, and for attention of the KV of the prompts alone; their efficiency is against
`--bandwidth`.
"""

from __future__ import annotations

import argparse
import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pyarrow.compute as pc

from orchestrator.analysis.observed.matching import Transfer, match
from orchestrator.analysis.observed.steps import Steps, steps_of
from orchestrator.errors import UserError
from orchestrator.plan import planning
from orchestrator.store import folders
from orchestrator.store.schema import START_KEYS, StartKey, places
from orchestrator.store.store import Store
from strategies.placement import Placement
from strategies.shapes import DTYPE_BYTES, ModelShape
from workers.intervals import Span, intersect, length, subtract, union
from workers.records import COMPUTE, DECODE, SPANS, SpanRow
from workers.rows import grouped

TOUCH_US = 0.2
ATTENTION = ("add and norm", "qkv", "rope and cache", "attention", "join of splits", "output")
MLP = ("add and norm 2", "gate and up", "silu", "down")
WHOLE = tuple(name for name in ATTENTION if name != "join of splits")  # of a context in one
HALVES = {"attention half": (ATTENTION, WHOLE), "mlp half": (MLP,)}
WEIGHTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate and up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
BEFORE, AFTER, HEAD = "before the first layer", "after the last layer", "head"
UNTOLD = "{}, not told apart"
TRANSFER, WAIT = "all-reduce: transfer", "all-reduce: wait"
OTHER, GAPS, BETWEEN = "other calls, exposed", "gaps between kernels", "gap between steps"
ORDER = (
    BEFORE,
    *(name for half, names in HALVES.items() for name in (*names[0], UNTOLD.format(half))),
    *(AFTER, HEAD, TRANSFER, WAIT, OTHER, GAPS, BETWEEN),
)


@dataclass(frozen=True, slots=True)
class Segment:
    """The blocks, in us, that a rank computes between two all-reduces. half: see `HALVES`; else
    BEFORE or AFTER. normed: its first norm is in the kernel of the all-reduce before."""

    half: str
    blocks: tuple[Span, ...]
    normed: bool = False


@dataclass(slots=True)
class Budget:
    """Microseconds and calls by name, summed over `steps` steps of all ranks."""

    steps: int = 0
    us: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, us: float, calls: int = 1) -> None:
        """Enter `us` microseconds."""
        self.us[name] += us  # type: ignore[assignment]  # a Counter of floats
        self.calls[name] += calls


@dataclass(frozen=True, slots=True)
class Seen:
    """The decode steps of one rank: its blocks of compute, all-reduces over tp and other calls, by
    step. has_head: it makes logits."""

    steps: Mapping[int, Span]
    compute: Mapping[int, Sequence[Span]]
    reduces: Mapping[int, Sequence[Transfer]]
    others: Mapping[int, Sequence[Span]]
    has_head: bool


def seen_by(rank: int, spans: Sequence[SpanRow], calls: Sequence[Transfer], steps: Steps) -> Seen:
    """What `rank` did in the steps that count. One that sends nothing on has the head."""
    own = [(span, when) for span in spans if span.step in steps.counted and (when := span.when)]
    compute, others = defaultdict(list), defaultdict(list)
    for span, when in own:
        if span.kind == COMPUTE:
            compute[span.step].append(when)
        elif (span.kind, span.axis) != ("all_reduce", "tp"):
            others[span.step].append(when)
    mine = (one for one in calls if (one.rank, one.op, one.axis) == (rank, "all_reduce", "tp"))
    has_head = all(span.kind != "send" for span, _ in own)
    return Seen(steps.counted, compute, grouped(mine, lambda one: one.step), others, has_head)


def joined(spans: Sequence[Span], count: int) -> list[float]:
    """Microseconds of `spans`, in order, as `count` blocks: those closest to each other are one."""
    gaps = [after[0] - before[1] for before, after in pairwise(spans)]
    closest = sorted(range(len(gaps)), key=gaps.__getitem__)[: max(len(spans) - count, 0)]
    out: list[float] = []
    for number, (start, end) in enumerate(spans):
        out.append(end - start + (out.pop() if number - 1 in closest else 0))
    return out


def touching(spans: Sequence[Span]) -> int:
    """How many of `spans` follow the one before in less than TOUCH_US."""
    return sum(after[0] - before[1] < TOUCH_US for before, after in pairwise(spans))


def segments_of(blocks: Sequence[Span], reduces: Sequence[Transfer]) -> Iterator[Segment]:
    """The blocks of a step cut at its all-reduces. A first stage sums its embedding too, so it has
    an odd number of them."""
    calls, halves = sorted(reduces, key=lambda one: one.start), tuple(HALVES)
    cut: list[list[Span]] = [[] for _ in range(len(calls) + 1)]
    for block in blocks:
        cut[bisect.bisect_right(calls, block[0], key=lambda one: one.start)].append(block)
    *layers, last = cut
    fused = [False, *(one.fused for one in calls)][len(calls) % 2 :]
    if len(calls) % 2:
        yield Segment(BEFORE, tuple(layers.pop(0)))
    elif layers:  # the activations that it was given are prepared in front of its first layer
        room = len(layers[2]) if len(layers) > 2 else len(layers[0])
        yield Segment(BEFORE, tuple(layers[0][:-room]))
        layers[0] = layers[0][-room:]
    for number, found in enumerate(layers):
        yield Segment(halves[number % 2], tuple(found), fused[number])
    yield Segment(AFTER, tuple(last))


def budget_of(ranks: Sequence[Seen]) -> Budget:
    """Of all settled decode steps of `ranks`."""
    budget = Budget()
    cut = [
        (one, step, list(segments_of(sorted(one.compute[step]), one.reduces.get(step, ()))))
        for one in ranks
        for step in one.steps
    ]
    names = names_of(segment for _, _, segments in cut for segment in segments)
    for one, step, segments in cut:
        budget.steps += 1
        for segment in segments:
            _enter(budget, segment, names, one.has_head)
        _enter_calls(budget, one, step)
    return budget


Names = Mapping[tuple[str, bool], tuple[str, ...]]


def names_of(segments: Iterable[Segment]) -> Names:
    """Half, and whether it is normed -> the names of its blocks, by the commonest number of them
    that do not touch; a half of which it says nothing is left out."""
    numbers: dict[tuple[str, bool], Counter[int]] = defaultdict(Counter)
    for one in segments:
        numbers[one.half, one.normed][len(one.blocks) - touching(one.blocks)] += 1
    return {
        (half, normed): known[normed:]
        for (half, normed), found in numbers.items()
        for known in HALVES.get(half, ())
        if len(known[normed:]) == found.most_common(1)[0][0]
    }


def _enter(budget: Budget, segment: Segment, names: Names, has_head: bool) -> None:
    known = names.get((segment.half, segment.normed), ())
    blocks = joined(segment.blocks, len(known) if segment.half in HALVES else len(segment.blocks))
    if segment.half in HALVES and len(blocks) != len(known):
        budget.add(UNTOLD.format(segment.half), length(segment.blocks))
        return
    if segment.half == AFTER and has_head and blocks:
        blocks.remove(longest := max(blocks))
        budget.add(HEAD, longest)
    for name, us in zip(known or [segment.half] * len(blocks), blocks, strict=True):
        budget.add(name, us)


def _enter_calls(budget: Budget, one: Seen, step: int) -> None:
    """The calls of a step, and its time in which nothing runs. Exposed: beside no compute."""
    compute, others = union(one.compute[step]), union(one.others.get(step, ()))
    reduces = one.reduces.get(step, ())
    for call in reduces:
        budget.add(TRANSFER, call.transfer)
        budget.add(WAIT, call.end - call.start - call.transfer)
    window = [one.steps[step]]
    called = union([*others, *((call.start, call.end) for call in reduces)])
    budget.add(OTHER, length(intersect(window, subtract(others, compute))), len(others))
    idle = subtract(subtract(window, compute), called)
    inner = [(min(start for start, _ in (*compute, *called)), window[0][1])]
    within = length(intersect(idle, inner))
    budget.add(GAPS, within, len(idle))
    budget.add(BETWEEN, length(idle) - within)


def bytes_of(
    model: ModelShape, placement: Placement, element: int, context: float
) -> dict[str, float]:
    """Name -> bytes that a call of rank 0 has to read. context: tokens of KV of all requests."""
    shapes = dict(model.parameters())

    def held(name: str) -> int:
        box = placement.shard(name, shapes[name], 0)
        return element * math.prod(side.stop - side.start for side in box)

    weights = {
        name: sum(held(f"model.layers.0.{part}.weight") for part in parts)
        for name, parts in WEIGHTS.items()
    }
    columns = held("model.layers.0.self_attn.k_proj.weight") // model.hidden_size
    return {**weights, "attention": 2 * columns * context, HEAD: held(model.head_name)}


def _bytes(store: Store, key: StartKey, seen: Sequence[Seen]) -> dict[str, float]:
    """Those of a cell; none where its model is no preset or its weights are not in `--dtype`."""
    cell = key.cell
    requests = store.read("requests")
    if cell.quantization != "none" or requests is None:
        return {}
    try:
        layout, model = planning.sketch(cell.strategy, cell.model)
    except UserError:
        return {}
    element = DTYPE_BYTES[cell.dtype]
    rows = (c.bytes for one in seen for calls in one.reduces.values() for c in calls if c.bytes)
    tokens = max(rows, default=0) // (model.hidden_size * element)
    is_own = pc.equal(requests.column("max_concurrency"), cell.max_concurrency)
    prompt = pc.mean(requests.filter(is_own).column("input_len")).as_py()
    context = prompt * min(tokens, cell.max_concurrency)
    return bytes_of(model, layout.placement, element, context)


def ranks_of(spans: Sequence[SpanRow], placement: Placement) -> list[Seen]:
    """What each rank did in the decode steps that count."""
    matched = match(spans, placement)
    found = []
    for rank, mine in sorted(grouped(spans, lambda span: span.rank).items()):
        steps = steps_of(rank, mine, matched.unmatched, placement).get(DECODE)
        decode = [span for span in mine if span.phase == DECODE]
        if steps is not None:
            found.append(seen_by(rank, decode, matched.calls, steps))
    return found


def tables_of(
    store: Store, wanted: Sequence[str], bandwidth: float
) -> Iterator[tuple[StartKey, str]]:
    """The table of each start of the cells whose names have all parts of one of `wanted`."""
    spans, meshes = store.read(SPANS.name), store.manifest().get("meshes", {})
    for key, found in () if spans is None else places(spans, START_KEYS).items():
        name = key.cell.name.split(".")
        if key.cell.engine != "torch" or not any(set(w.split(".")) <= set(name) for w in wanted):
            continue
        mesh = tuple((axis, degree) for axis, degree in meshes[key.cell.strategy])
        seen = ranks_of(SPANS.rows(spans.take(found)), Placement(mesh=mesh))
        yield key, "\n".join(lines(budget_of(seen), _bytes(store, key, seen), bandwidth))


def lines(budget: Budget, size: Mapping[str, float], bandwidth: float) -> Iterator[str]:
    """The table in Markdown; bandwidth in TB/s."""
    whole = sum(budget.us.values())
    yield "| what | calls | us a call | us a step | share | MB a call | of the bandwidth |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, total in sorted(budget.us.items(), key=lambda one: ORDER.index(one[0])):
        calls = budget.calls[name]
        each, moved, least = f"{total / calls:.2f}" if calls else "", "", ""
        if name in size and calls:
            moved = f"{size[name] / 1e6:.2f}"
            least = f"{size[name] / bandwidth / 1e6 / (total / calls):.0%}"
        yield (
            f"| {name} | {calls / budget.steps:.1f} | {each} | {total / budget.steps:.0f} "
            f"| {total / whole:.1%} | {moved} | {least} |"
        )
    yield f"| step | | | {whole / budget.steps:.0f} | 100% | | |"


def main() -> None:
    """Print a table for every cell and start that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--cell", action="append", required=True, help='as "tp4.c1"')
    parser.add_argument("--bandwidth", type=float, default=4.2, help="of memory, read, TB/s")
    asked = parser.parse_args()
    tables = [
        (key, table)
        for folder in folders.find(asked.results)
        for key, table in tables_of(Store(folder), asked.cell, asked.bandwidth)
    ]
    if not tables:
        raise SystemExit(
            f"{asked.results} holds no spans of {', '.join(asked.cell)} under the engine torch; "
            "submit them with --save-spans"
        )
    for key, table in tables:
        print(f"\n{key.cell.name}, start {key.start}\n\n{table}")


if __name__ == "__main__":
    main()
