"""Calls and bytes of collectives, counted where torch hands them to its process groups.

FSDP2, DTensor, DDP and pipelining communicate by themselves, each in its own way; all of it goes
through operators of `c10d`, which a dispatch mode sees, in the backward pass too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from strategies.placement import Placement
from workers.rows import grouped
from workers.training_records import TrainingCollectiveRow

# Operators of c10d, and of its functional form, -> what nccl-tests call them.
OPERATIONS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "all_reduce": "all_reduce",
    "all_reduce_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "broadcast_": "broadcast",
    "broadcast": "broadcast",
    "alltoall_base_": "all_to_all",
    "all_to_all_single": "all_to_all",
    "send": "send",
    "recv_": "recv",
}
resolve: Any = getattr(dist.distributed_c10d, "_resolve_process_group")  # noqa: B009
NAMESPACES = ("c10d", "_c10d_functional")
NUMBERS = 8  # bytes
ALONE = "alone"  # an axis of one rank: FSDP2 over (replicas, one) keeps whole parameters
SHARED_OUT = ("all_gather", "reduce_scatter")  # the larger of input and output is the whole tensor


class Issued(NamedTuple):
    """A call as it was made. axis: None for one that is not of the layout, as a norm; ALONE for a
    group of one rank, which communicates nothing."""

    op: str
    axis: str | None


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered. Receives are left out: their sends count. So is a number or two
    in which ranks agree, as a norm. A group of one rank communicates nothing. journal: every call
    in order, with those that are left out.
    """

    supports_higher_order_operators = True  # what is recomputed calls its attention in such a one

    def __init__(self, placement: Placement, rank: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._axes = axes_by_ranks(placement, rank)
        self.journal: list[Issued] = []
        self.calls: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled layers run as they do in other steps, and keep no more: they call what
        communicates through the same operators."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count an operator that communicates, and run it. What a DTensor communicates is seen
        when it calls operators on its local tensors."""
        if any(issubclass(one, DTensor) for one in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        if func.namespace in NAMESPACES:
            op = OPERATIONS.get(func._schema.name.partition("::")[2])
            if op is not None:
                self._count(op, args, kwargs or {}, out)
        return out

    def rows(self, rank: int) -> list[TrainingCollectiveRow]:
        """What was counted, of a rank."""
        return [
            TrainingCollectiveRow(
                rank=rank, op=op, axis=axis, calls=calls, bytes=self.bytes[op, axis]
            )
            for (op, axis), calls in sorted(self.calls.items())
        ]

    def _count(self, op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        ranks = _ranks((*args, *kwargs.values()))
        sizes = [_bytes(one) for one in (*args, *kwargs.values(), out)]
        key = op, self._axes.get(ranks, "world") if len(ranks) > 1 else ALONE
        is_of_layout = max(sizes) > NUMBERS
        self.journal.append(Issued(op, key[1] if is_of_layout else None))
        if op == "recv" or key[1] == ALONE or not is_of_layout:
            return
        self.calls[key] += 1
        self.bytes[key] += max(sizes) if op in SHARED_OUT else max(sizes[:1])


def axes_by_ranks(placement: Placement, rank: int) -> dict[tuple[int, ...], str]:
    """The ranks of each group of `rank`, sorted -> the axes that it spans, joined by "+"."""
    axes = [axis for axis, degree in placement.mesh if degree > 1]
    found: dict[tuple[int, ...], str] = {}
    for mask in range(1, 2 ** len(axes)):
        chosen = [axis for i, axis in enumerate(axes) if mask >> i & 1]
        found.setdefault(_group(placement, rank, chosen), "+".join(chosen))
    if placement.degree("pp") > 2:
        ends = placement.group("pp", rank)
        found.setdefault((ends[0], ends[-1]), "pp")
    return found


def axes_by_operation(journal: Iterable[Issued]) -> dict[str, set[str | None]]:
    """What each operation of a step is over, as `Issued` has it. Where it is one thing, the name of
    a kernel tells it."""
    calls = grouped(journal, lambda one: one.op)
    return {op: {one.axis for one in mine} for op, mine in calls.items()}


def _group(placement: Placement, rank: int, axes: list[str]) -> tuple[int, ...]:
    mine = placement.coordinates(rank)
    fixed = {axis: at for axis, at in mine.items() if axis not in axes}
    return tuple(
        other
        for other in range(placement.num_ranks)
        if fixed.items() <= placement.coordinates(other).items()
    )


def _ranks(values: tuple[Any, ...]) -> tuple[int, ...]:
    """The ranks of the group among an operator's arguments."""
    for value in values:
        group = value
        if isinstance(value, torch.ScriptObject):
            group = dist.ProcessGroup.unbox(value)
        elif isinstance(value, str) and value not in ("sum", "avg", "max", "min"):
            group = resolve(value)
        if isinstance(group, dist.ProcessGroup):
            return tuple(sorted(dist.get_process_group_ranks(group)))
    return ()


def _bytes(value: Any) -> int:
    """Bytes of all tensors in a value."""
    return sum(one.numel() * one.element_size() for one in _tensors(value))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
