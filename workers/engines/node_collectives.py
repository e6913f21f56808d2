"""What the engine `calibration` measures between ranks: collectives, and transfers over links."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pkgutil import resolve_name

import torch
import torch.distributed as dist
from torch import Tensor

from workers.backends import Backend, backend_for
from workers.engines.calibration_parts import PAIRS, collectives_of, group_sizes, parts
from workers.engines.node_timing import (
    Operation,
    Ranks,
    Sweep,
    Timing,
    dtype_name,
    in_graph_us,
    median_us,
    release,
)
from workers.rank import RankContext
from workers.shared_memory import Meeting, Ring

COLLECTIVE_OPS = ("all_reduce", "all_gather", "reduce_scatter", "send_recv")
PAIR_OPS = ("send_recv",)
# Of our engine, found by name as engines are: it imports the engine, and Triton.
PEER_SUMS = "workers.engines.native.build:peer_sums"


AMONG = "among"  # the mesh axis along which the ranks of a group lie


@dataclass(frozen=True, slots=True)
class Group:
    """A process group, its ranks, and which of these this process is.

    backend: that of runs, along the axis AMONG. rings: through shared memory to the rank after this
    one and from the one before; None where they share none.
    """

    process_group: dist.ProcessGroup
    ranks: Ranks
    rank: int
    backend: Backend
    rings: tuple[Ring, Ring] | None = None

    @property
    def place(self) -> int:
        """Index of this rank in the group."""
        return self.ranks.index(self.rank)


def several_ranks(context: RankContext, sweep: Sweep, part: str) -> Iterator[Timing]:
    """A part of a calibration: collectives over the first so many ranks, or transfers between every
    other pair, so that a weak link shows. The first rank of a group reports."""
    num_ranks = context.placement.num_ranks
    limit = timedelta(seconds=parts(num_ranks)[part])
    for ranks, ops, messages in _group_cases(num_ranks, sweep):
        if part != part_of(ranks, ops):
            continue
        with context.progress.waiting(f"the start of a group of {len(ranks)}"):
            among = dist.new_group(list(ranks), limit)  # made by every rank, in the same order
            group = _group(context, among, ranks) if context.rank in ranks else None
        if group is not None:
            found = [one for op in ops for one in _operation(context, sweep, group, op, messages)]
            yield from found if context.rank == ranks[0] else ()
            release(context.device)


def part_of(ranks: Ranks, ops: tuple[str, ...]) -> str:
    """The part of a calibration in which these operations of a group are measured."""
    return PAIRS if ops == PAIR_OPS else collectives_of(len(ranks))


def _operation(
    context: RankContext, sweep: Sweep, group: Group, op: str, messages: tuple[int, ...]
) -> Iterator[Timing]:
    """One operation by size. Where a rank does not answer, others read what it was in."""
    for message in messages:
        with context.progress.waiting(f"{op} of {message} bytes"):
            yield from collective(context.device, sweep, group, op, message)
    if op == "all_reduce":
        with context.progress.waiting(f"{op} through memory of GPUs"):
            yield from among_peers(context.device, sweep, group)


def _group(context: RankContext, among: dist.ProcessGroup, ranks: Ranks) -> Group:
    """Every rank of it calls this."""
    own, meeting, rings = replace(context, groups={AMONG: among}), context.meeting, None
    if meeting is not None:
        own.exchanges = {AMONG: meeting.exchange(f"among {ranks}", ranks)}
        rings = _rings(meeting, ranks)
    return Group(among, ranks, context.rank, backend_for(own), rings)


def _rings(meeting: Meeting, ranks: Ranks) -> tuple[Ring, Ring] | None:
    """From this rank to the one after it, and to it from the one before."""
    made: dict[int, Ring | None] = {}  # by its writer
    for writer, reader in itertools.pairwise((*ranks, ranks[0])):
        if meeting.rank in (writer, reader):
            made[writer] = meeting.ring(f"from {writer} to {reader}", (writer, reader), writer)
    after, before = made.pop(meeting.rank), *made.values()
    return None if after is None or before is None else (after, before)


def _group_cases(
    ranks: int, sweep: Sweep
) -> Iterator[tuple[Ranks, tuple[str, ...], tuple[int, ...]]]:
    """(ranks of a group, operations, message sizes) of every group.

    torch 2.11 numbers what a process shares of its GPU's memory, and the ranks of a group find each
    other by that number. So the larger groups come first: then all ranks of a group have shared
    memory as often as each other, and else they would wait for ever.
    """
    for size in reversed(group_sizes(ranks)):
        yield tuple(range(size)), COLLECTIVE_OPS, sweep.messages
    for pair in itertools.combinations(range(ranks), 2):
        if pair != (0, 1):
            yield pair, PAIR_OPS, (sweep.messages[0], sweep.messages[-1])


def collective(
    device: torch.device, sweep: Sweep, group: Group, op: str, message: int
) -> Iterator[Timing]:
    """One operation with messages of about `message` bytes, eager and (on a GPU) inside a CUDA
    graph."""
    ranks = len(group.ranks)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    count = message // dtype.itemsize // ranks * ranks
    source = torch.randn(count, device=device, dtype=dtype)
    x = source.clone()
    call = _collective_call(op, x, group)

    def renew() -> None:
        x.copy_(source)  # sums of sums would overflow

    times = {
        "eager": median_us(device, sweep, call, renew=renew),
        "graph": in_graph_us(device, sweep, call, renew),
    }
    for mode, us in times.items():
        if us is not None:
            size = count * dtype.itemsize
            yield Timing("collective", op, size, dtype_name(dtype), mode, us, group.ranks)


def _collective_call(op: str, x: Tensor, group: Group) -> Operation:
    """One call over `x` [message]. send_recv is a ring: every rank sends to the next one and
    receives from the one before."""
    part = x.numel() // len(group.ranks)
    among = group.process_group
    if op == "all_reduce":
        return lambda: group.backend.all_reduce(x, AMONG)
    if op == "all_gather":
        mine = x[group.place * part : (group.place + 1) * part].clone()
        return lambda: group.backend.all_gather(mine, x.view(-1, part), AMONG)
    if op == "reduce_scatter":
        out = x.new_empty(part)
        return lambda: dist.reduce_scatter_tensor(out, x, group=among)
    return _ring_call(x, group)


def among_peers(device: torch.device, sweep: Sweep, group: Group) -> Iterator[Timing]:
    """All-reduces through memory that the GPUs of a group share, inside a CUDA graph as those of a
    decode step are, up to the largest message of the engine; nothing where they share none."""
    for op, sums, most in resolve_name(PEER_SUMS)(device, group.process_group):
        for message in (*(size for size in sweep.messages if size < most), most):
            source = torch.randn(message // 2, device=device, dtype=torch.bfloat16)
            x = source.clone()
            call, renew = functools.partial(sums.all_reduce, x), functools.partial(x.copy_, source)
            call()  # compiles, which cannot be captured
            us = in_graph_us(device, sweep, call, renew)
            if us is not None:
                name = dtype_name(x.dtype)
                yield Timing("collective", op, x.nbytes, name, "graph", us, group.ranks)


def _turn(after: Ring, before: Ring, x: Tensor, out: Tensor) -> None:
    after.write(x)
    before.read(out)


def _ring_call(x: Tensor, group: Group) -> Operation:
    out, among = x.new_empty(x.numel()), group.process_group
    if group.rings is not None:
        return functools.partial(_turn, *group.rings, x, out)
    after = group.ranks[(group.place + 1) % len(group.ranks)]
    before = group.ranks[group.place - 1]

    def ring() -> None:
        pair = [dist.P2POp(dist.isend, x, after, among), dist.P2POp(dist.irecv, out, before, among)]
        for work in dist.batch_isend_irecv(pair):
            work.wait()

    return ring
