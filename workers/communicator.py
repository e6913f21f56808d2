"""Every collective goes through here: one place that counts calls and bytes, times them, and can be
given another backend."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from workers.backends import Backend, Sum, backend_for
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
    backend: Backend = field(init=False)
    ablated: bool = False
    phase: str = "prefill"
    step: int | None = None
    calls: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bytes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    journal: list[Call] | None = None
    _recording: Recording | None = None

    def __post_init__(self) -> None:
        self.backend = backend_for(self.context)

    def all_reduce(self, x: Tensor, axis: str) -> Tensor:
        """The sum of `x` over the ranks along `axis`; may be `x` itself, overwritten."""
        if self.ablated:
            return x
        began = self._begin()
        out = self.backend.all_reduce(x, axis)
        self._count("all_reduce", axis, nbytes(x), began)
        return out

    def start_all_reduce(self, x: Tensor, axis: str) -> Sum:
        """Begin to sum `x` over the ranks along `axis`; see `Backend`. The call counts when the sum
        is asked for, and takes as long as that waits."""
        if self.ablated:
            return lambda: x
        ended = self.backend.start_all_reduce(x, axis)

        def counted() -> Tensor:
            began = self._begin()
            out = ended()
            self._count("all_reduce", axis, nbytes(x), began)
            return out

        return counted

    def outbox(self, rows: int, axis: str) -> Any | None:
        """See `Backend`."""
        return None if self.ablated else self.backend.outbox(rows, axis)

    def fuses(self, x: Tensor, axis: str) -> bool:
        """Whether `all_reduce_norm` takes `x`."""
        return not self.ablated and self.backend.fuses(x, axis)

    def all_reduce_norm(self, x: Any, residual: Tensor, norm: Any, axis: str) -> Any:
        """`residual` += the sum of `x` over the ranks along `axis`, in place, then its norm; see
        `Backend`. It counts as an all-reduce."""
        began = self._begin()
        out = self.backend.all_reduce_norm(x, residual, norm, axis)
        self._count("all_reduce", axis, nbytes(residual), began)
        return out

    def all_gather(self, x: Tensor, axis: str) -> Tensor:
        """`x` of every rank along `axis`, stacked on a new first dim."""
        ranks = self.context.placement.degree(axis)
        if self.ablated:
            return x.expand(ranks, *x.shape)
        out = x.new_empty((ranks, *x.shape))
        began = self._begin()
        self.backend.all_gather(x, out, axis)
        self._count("all_gather", axis, nbytes(out), began)
        return out

    def send_next(self, x: Tensor) -> None:
        """Hand `x` to the next stage without waiting. `x` must not be written again."""
        began = self._begin()
        self.backend.send_next(x)
        self._count("send", "pp", nbytes(x), began)

    def receive_previous(self, out: Tensor) -> None:
        """Fill `out` with what the stage before sends."""
        began = self._begin()
        self.backend.receive_previous(out)
        self._count("recv", "pp", nbytes(out), began)

    def broadcast_last(self, x: Tensor) -> None:
        """Tokens from the last stage to every other. On the last stage `x` is sent without waiting;
        elsewhere it is filled."""
        began = self._begin()
        self.backend.broadcast_last(x)
        self._count("broadcast", "pp", nbytes(x), began)

    def flush(self) -> None:
        """Wait until everything sent has left."""
        self.backend.flush()

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Inside, it is ablated."""
        before, self.ablated = self.ablated, True
        try:
            yield
        finally:
            self.ablated = before

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


def nbytes(x: Tensor) -> int:
    """Bytes of the elements of `x`."""
    return x.numel() * x.element_size()
