"""Every collective goes through here: one place that counts calls and bytes, times them, and can be
given another backend."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch.distributed as dist
from torch import Tensor

from workers.rank import RankContext
from workers.records import Call


@dataclass(slots=True)
class Recording:
    """Calls in the order they were captured in a graph: (operation, mesh axis, message bytes)."""

    events: list[tuple[str, str, int]] = field(default_factory=list)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, op: str, axis: str, size: int) -> None:
        """Enter one call of `size` bytes."""
        self.events.append((op, axis, size))
        self.calls[op, axis] += 1
        self.bytes[op, axis] += size


@dataclass(frozen=True, slots=True)
class CommunicationKernel:
    """A kernel that communicates, as a profiler shows it: one launch of it is one call.

    pattern: a regular expression that is found in its name, in upper or lower case. operations:
    what it may carry out; the last is what it is booked as where its call is not known. fused: it
    also computes, so that nobody can see where the transfer ends.
    """

    pattern: str
    operations: tuple[str, ...]
    fused: bool = False


ANY_OPERATION = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "send", "recv", "other")
# "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(...)", before 2.19 "ncclKernel_AllReduce_...", and on
# symmetric memory "ncclSymkDevKernel_AllReduce_...". The Generic kernels carry out any operation.
NCCL_KERNELS = (
    CommunicationKernel(r"nccl\w*Kernel_AllReduce", ("all_reduce",)),
    CommunicationKernel(r"nccl\w*Kernel_AllGather", ("all_gather",)),
    CommunicationKernel(r"nccl\w*Kernel_ReduceScatter", ("reduce_scatter",)),
    CommunicationKernel(r"nccl\w*Kernel_Broadcast", ("broadcast",)),
    CommunicationKernel(r"nccl\w*Kernel_SendRecv", ("send", "recv")),
    CommunicationKernel(r"nccl", ANY_OPERATION),
)


class Backend(Protocol):
    """How a tensor is summed over a group; the seam for faster all-reduces.

    kernels: every kernel that it launches to communicate. One that is not declared, and that the
    profiler's registry does not know, leaves its calls unseen: then a step has no parts.
    """

    @property
    def kernels(self) -> Sequence[CommunicationKernel]:
        """What it launches; the first whose pattern fits a name counts."""
        ...

    def all_reduce(self, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        """The sum over the ranks of `group`, in place or not."""
        ...


class LibraryBackend:
    """NCCL on GPUs, gloo on CPUs, whichever the group was made with."""

    kernels: ClassVar[Sequence[CommunicationKernel]] = NCCL_KERNELS

    def all_reduce(self, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        """In place."""
        dist.all_reduce(x, group=group)
        return x


@dataclass(slots=True)
class Communicator:
    """The collectives of one rank over its mesh.

    calls, bytes: counted by (phase, operation, axis); bytes are message sizes as nccl-tests counts
    them: the tensor of an all-reduce, a broadcast or a send, the gathered output of an all-gather.
    phase, step: of the tokens that are carried, set by the engine; step is None where nobody counts
    them. ablated: all-reduces and all-gathers are left out, to see
    what they cost; outputs are then wrong. journal: every call in order, while a probe watches;
    None otherwise.
    """

    context: RankContext
    backend: Backend = field(default_factory=LibraryBackend)
    ablated: bool = False
    phase: str = "prefill"
    step: int | None = None
    calls: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bytes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    journal: list[Call] | None = None
    _recording: Recording | None = None
    _sent: deque[tuple[dist.Work, Tensor]] = field(default_factory=deque)

    def all_reduce(self, x: Tensor, axis: str) -> Tensor:
        """The sum of `x` over the ranks along `axis`; may be `x` itself, overwritten."""
        if self.ablated:
            return x
        began = self._begin()
        out = self.backend.all_reduce(x, self.context.groups[axis])
        self._count("all_reduce", axis, nbytes(x), began)
        return out

    def all_gather(self, x: Tensor, axis: str) -> Tensor:
        """`x` of every rank along `axis`, stacked on a new first dim."""
        ranks = self.context.placement.degree(axis)
        if self.ablated:
            return x.expand(ranks, *x.shape)
        out = x.new_empty((ranks, *x.shape))
        began = self._begin()
        dist.all_gather_into_tensor(
            out.flatten(0, 1) if x.dim() > 1 else out.view(-1), x, group=self.context.groups[axis]
        )
        self._count("all_gather", axis, nbytes(out), began)
        return out

    @property
    def most_ahead(self) -> int:
        """Steps that a pipeline stage may be ahead of the ones behind it: enough for none to wait
        for work."""
        return 2 * self.context.placement.degree("pp")

    def send_next(self, x: Tensor) -> None:
        """Hand `x` to the next stage without waiting. `x` must not be written again."""
        group, target = self.context.edges["next"]
        began = self._begin()
        work = dist.isend(x, target, group=group)
        self._count("send", "pp", nbytes(x), began)
        # A stage that runs far ahead would hold all it has made; gloo knows of a send's end only by
        # waiting for it.
        while len(self._sent) >= self.most_ahead:
            self._sent.popleft()[0].wait()
        self._keep(work, x)

    def receive_previous(self, out: Tensor) -> None:
        """Fill `out` with what the stage before sends; on a GPU the current stream waits for it,
        and the host does not."""
        group, source = self.context.edges["prev"]
        began = self._begin()
        work = dist.irecv(out, source, group=group)
        assert work is not None
        work.wait()
        self._count("recv", "pp", nbytes(out), began)

    def broadcast_last(self, x: Tensor) -> None:
        """Tokens from the last stage to every other. On the last stage `x` is sent without waiting;
        elsewhere it is filled."""
        ranks = self.context.placement.group("pp", self.context.rank)
        last = self.context.is_last_stage
        began = self._begin()
        work = dist.broadcast(x, ranks[-1], group=self.context.groups["pp"], async_op=True)
        if not last:
            work.wait()
        self._count("broadcast", "pp", nbytes(x), began)
        if last:
            self._keep(work, x)

    def flush(self) -> None:
        """Wait until everything sent has left."""
        while self._sent:
            self._sent.popleft()[0].wait()

    def reset(self) -> None:
        """Forget what was counted."""
        self.calls.clear()
        self.bytes.clear()

    @contextmanager
    def recorded(self) -> Iterator[Recording]:
        """Record what is called inside instead of counting it: for the capture of a graph, to be
        counted at each replay."""
        self._recording = recording = Recording()
        try:
            yield recording
        finally:
            self._recording = None

    def count(self, recording: Recording) -> None:
        """Count recorded calls once, in the current phase."""
        for (op, axis), calls in recording.calls.items():
            self.calls[self.phase, op, axis] += calls
            self.bytes[self.phase, op, axis] += recording.bytes[op, axis]
        if self.journal is not None:
            self.journal += [
                Call(op, axis, size, self.phase, step=self.step)
                for op, axis, size in recording.events
            ]

    def _begin(self) -> float:
        """Enter a call; `_count` leaves it."""
        self.context.progress.standing.waits(True)
        return time.perf_counter()

    def _count(self, op: str, axis: str, size: int, began: float) -> None:
        """Enter a call that began at `began`. This is not a context manager, because one takes 13
        us a call and a forward pass of a 70B has 160 calls."""
        self.context.progress.standing.waits(False)
        if self._recording is not None:
            self._recording.add(op, axis, size)
            return
        self.calls[self.phase, op, axis] += 1
        self.bytes[self.phase, op, axis] += size
        if self.journal is not None:
            ended = time.perf_counter()
            self.journal.append(Call(op, axis, size, self.phase, began, ended, self.step))

    def _keep(self, work: dist.Work | None, x: Tensor) -> None:
        """Hold a sent tensor until it has left."""
        assert work is not None
        while self._sent and self._sent[0][0].is_completed():
            self._sent.popleft()
        self._sent.append((work, x))


def nbytes(x: Tensor) -> int:
    """Bytes of the elements of `x`."""
    return x.numel() * x.element_size()
