"""How tensors move between ranks: by NCCL or gloo, or through shared memory, of CPUs or GPUs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch.distributed as dist
from torch import Tensor

from workers.rank import RankContext


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
PEER_KERNELS = (
    CommunicationKernel(
        r"(one_shot|two_shot|flagged)_all_reduce_norm", ("all_reduce",), fused=True
    ),
    CommunicationKernel(r"(one_shot|two_shot|flagged)_all_reduce", ("all_reduce",)),
)


# Waits for a sum that was begun, on a GPU in its stream alone, and gives it.
Sum = Callable[[], Tensor]


class Backend(Protocol):
    """How tensors move; the seam for faster collectives.

    kernels: every kernel that it launches to communicate. One that is not declared, and that the
    profiler's registry does not know, leaves its calls unseen: then a step has no parts. name: what
    the manifest calls it.
    """

    @property
    def name(self) -> str:
        """What carries the tensors of this rank."""

    @property
    def kernels(self) -> Sequence[CommunicationKernel]:
        """What it launches; the first whose pattern fits a name counts."""

    def all_reduce(self, x: Tensor, axis: str) -> Tensor:
        """The sum over the ranks along a mesh axis; may be `x` itself, overwritten."""

    def start_all_reduce(self, x: Tensor, axis: str) -> Sum:
        """Begin to sum `x`, which nobody may touch until what is returned has given the sum."""

    def outbox(self, rows: int, axis: str) -> Any | None:
        """Where a product may put its part of a sum, for `all_reduce_norm`; None: nowhere."""

    def fuses(self, x: Tensor, axis: str) -> bool:
        """Whether it can sum `x` together with the residual and the norm behind the sum."""

    def all_reduce_norm(self, x: Any, residual: Tensor, norm: Any, axis: str) -> Any:
        """`residual` += the sum of `x` over the ranks along a mesh axis, in place; then its norm.
        x, residual: [T, H] -> [T, H]. Only where it `fuses` `x`, or `x` is an `outbox` with a
        product in it. norm, and what comes of it: as kernels of the engine have it."""

    def all_gather(self, x: Tensor, out: Tensor, axis: str) -> None:
        """Fill `out` [ranks along the axis, *shape of x] with the `x` of each."""

    def send_next(self, x: Tensor) -> None:
        """Hand `x`, which must not be written again, to the next stage. This waits only where the
        next one is far behind."""

    def receive_previous(self, out: Tensor) -> None:
        """Fill `out` with what the stage before sends. On a GPU the current stream waits for it,
        and the host does not."""

    def broadcast_last(self, x: Tensor) -> None:
        """`x` from the last stage, where nothing is waited for, to every other, where it is
        filled."""

    def flush(self) -> None:
        """Wait until everything sent has left."""


class LibraryBackend:
    """NCCL on GPUs, gloo on CPUs, whichever the groups were made with."""

    kernels: ClassVar[Sequence[CommunicationKernel]] = NCCL_KERNELS

    def __init__(self, context: RankContext) -> None:
        self._context = context
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()  # held until it has left

    @property
    def name(self) -> str:
        """The name of the library."""
        return "nccl" if self._context.device.type == "cuda" else "gloo"

    def all_reduce(self, x: Tensor, axis: str) -> Tensor:
        """In place."""
        dist.all_reduce(x, group=self._context.groups[axis])
        return x

    def start_all_reduce(self, x: Tensor, axis: str) -> Sum:
        """In place. NCCL has a stream of its own for it."""
        if self._shares(x, axis):
            out = self.all_reduce(x, axis)
            return lambda: out
        work = dist.all_reduce(x, group=self._context.groups[axis], async_op=True)
        assert work is not None

        def ended() -> Tensor:
            work.wait()
            return x

        return ended

    def _shares(self, x: Tensor, axis: str) -> bool:
        """Whether `x` goes through shared memory, at once."""
        return False

    def outbox(self, rows: int, axis: str) -> Any | None:
        """None."""
        return None

    def fuses(self, x: Tensor, axis: str) -> bool:
        """Never."""
        return False

    def all_reduce_norm(self, x: Any, residual: Tensor, norm: Any, axis: str) -> Any:
        """The library has none."""
        raise NotImplementedError(f"{self.name} sums without a norm")

    def all_gather(self, x: Tensor, out: Tensor, axis: str) -> None:
        """See `Backend`."""
        rows = out.flatten(0, 1) if x.dim() > 1 else out.view(-1)
        dist.all_gather_into_tensor(rows, x, group=self._context.groups[axis])

    def send_next(self, x: Tensor) -> None:
        """See `Backend`."""
        group, target = self._context.edges["next"]
        work = dist.isend(x, target, group=group)
        # A stage that runs far ahead would hold all it has made; gloo knows of a send's end only by
        # waiting for it.
        while len(self._sent) >= self._context.most_ahead:
            self._sent.popleft()[0].wait()
        self._keep(work, x)

    def receive_previous(self, out: Tensor) -> None:
        """See `Backend`."""
        group, source = self._context.edges["prev"]
        work = dist.irecv(out, source, group=group)
        assert work is not None
        work.wait()

    def broadcast_last(self, x: Tensor) -> None:
        """See `Backend`."""
        ranks = self._context.placement.group("pp", self._context.rank)
        work = dist.broadcast(x, ranks[-1], group=self._context.groups["pp"], async_op=True)
        if self._context.is_last_stage:
            self._keep(work, x)
        else:
            work.wait()

    def flush(self) -> None:
        """See `Backend`."""
        while self._sent:
            self._sent.popleft()[0].wait()

    def _keep(self, work: dist.Work | None, x: Tensor) -> None:
        """Hold a sent tensor until it has left."""
        assert work is not None
        while self._sent and self._sent[0][0].is_completed():
            self._sent.popleft()
        self._sent.append((work, x))


class SharedMemoryBackend(LibraryBackend):
    """Memory that ranks on CPUs share; gloo for a group that is not on one host."""

    def __init__(self, context: RankContext) -> None:
        super().__init__(context)
        self._exchanges, self._rings = context.exchanges, context.rings

    @property
    def name(self) -> str:
        """Each that is used."""
        groups = (*self._exchanges.values(), *self._rings.values())
        return " and ".join(sorted({"gloo" if one is None else "shm" for one in groups})) or "none"

    def all_reduce(self, x: Tensor, axis: str) -> Tensor:
        """In place."""
        if (exchange := self._exchanges.get(axis)) is None:
            return super().all_reduce(x, axis)
        exchange.all_reduce(x)
        return x

    def _shares(self, x: Tensor, axis: str) -> bool:
        return self._exchanges.get(axis) is not None

    def all_gather(self, x: Tensor, out: Tensor, axis: str) -> None:
        """See `Backend`."""
        if (exchange := self._exchanges.get(axis)) is None:
            super().all_gather(x, out, axis)
        else:
            exchange.all_gather(x, out)

    def send_next(self, x: Tensor) -> None:
        """`x` is copied, so it has left when this returns."""
        if (ring := self._rings["next"]) is None:
            super().send_next(x)
        else:
            ring.write(x)

    def receive_previous(self, out: Tensor) -> None:
        """See `Backend`."""
        if (ring := self._rings["prev"]) is None:
            super().receive_previous(out)
        else:
            ring.read(out)

    def broadcast_last(self, x: Tensor) -> None:
        """See `Backend`."""
        if (ring := self._rings["pp"]) is None:
            super().broadcast_last(x)
        elif self._context.is_last_stage:
            ring.write(x)
        else:
            ring.read(x)


class GroupSum(Protocol):
    """How the ranks of one group sum through memory that they share."""

    def takes(self, x: Any) -> bool:
        """Whether it sums `x`: a message, by its shape and dtype alone, or an `outbox` of its
        own."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the group: the same bits on every rank."""

    def outbox(self, rows: int) -> Any | None:
        """See `Backend`."""

    def fuses(self, x: Any) -> bool:
        """Whether the residual and the norm behind the sum can be with it: of what it takes."""

    def all_reduce_norm(self, x: Any, residual: Tensor, norm: Any) -> Any:
        """See `Backend`."""


class PeerBackend(LibraryBackend):
    """Sums through memory that GPUs share where a message is small enough for it; NCCL for all
    else, and for sums that are begun beside other work, as it has a stream of its own. kind: what
    it is called. sums: by mesh axis; of several the first that takes a message."""

    kernels: ClassVar[Sequence[CommunicationKernel]] = (*PEER_KERNELS, *NCCL_KERNELS)

    def __init__(
        self, context: RankContext, kind: str, sums: Mapping[str, Sequence[GroupSum]]
    ) -> None:
        super().__init__(context)
        self._kind, self._sums = kind, sums

    @property
    def name(self) -> str:
        """Both that are used."""
        return f"{self._kind} and {super().name}"

    def all_reduce(self, x: Tensor, axis: str) -> Tensor:
        """See `Backend`."""
        found = self._sum_of(x, axis)
        return super().all_reduce(x, axis) if found is None else found.all_reduce(x)

    def _sum_of(self, x: Any, axis: str) -> GroupSum | None:
        return next((one for one in self._sums.get(axis, ()) if one.takes(x)), None)

    def outbox(self, rows: int, axis: str) -> Any | None:
        """See `Backend`."""
        boxes = (one.outbox(rows) for one in self._sums.get(axis, ()))
        return next((box for box in boxes if box is not None), None)

    def fuses(self, x: Tensor, axis: str) -> bool:
        """See `Backend`."""
        found = self._sum_of(x, axis)
        return found is not None and found.fuses(x)

    def all_reduce_norm(self, x: Any, residual: Tensor, norm: Any, axis: str) -> Any:
        """See `Backend`."""
        found = self._sum_of(x, axis)
        assert found is not None, "ask `fuses` or `outbox` first"
        return found.all_reduce_norm(x, residual, norm)


def backend_for(context: RankContext) -> Backend:
    """That by which the ranks of `context` are connected."""
    return LibraryBackend(context) if context.meeting is None else SharedMemoryBackend(context)
