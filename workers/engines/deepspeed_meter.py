"""Counts what DeepSpeed communicates: its collectives do not go through our Communicator."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from workers.engines.deepspeed_private import BACKEND_METHODS, BackendMethod
from workers.intervals import Span
from workers.records import COLLECTIVES, PREFILL, Call, CollectiveRow

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(slots=True)
class Meter:
    """Counts the collectives of DeepSpeed's backend by phase, and times them where a call blocks.

    axis: the mesh axis that all of them go over. timed: also time asynchronous calls to their end.
    calls, sizes: calls and message bytes by (phase, operation). timed_calls: each call from start
    to completion. blocked: when the caller was held up, starting a collective or waiting for one;
    both in seconds of `time.perf_counter`.
    """

    axis: str
    timed: bool
    phase: str = PREFILL
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    sizes: Counter[tuple[str, str]] = field(default_factory=Counter)
    timed_calls: list[Call] = field(default_factory=list)
    blocked: list[Span] = field(default_factory=list)

    def set_phase(self, phase: str) -> None:
        """Count under this phase from now on."""
        self.phase = phase

    @contextlib.contextmanager
    def attached(self, backend: Any) -> Iterator[None]:
        """Count what `backend` does inside; None: there is no communication."""
        found = {name: one for name, one in BACKEND_METHODS.items() if hasattr(backend, name)}
        for name, one in found.items():
            setattr(backend, name, self._counted(getattr(backend, name), one))
        try:
            yield
        finally:
            for name in found:
                delattr(backend, name)

    def table(self, rank: int) -> pa.Table:
        """The collectives table of a rank."""
        return COLLECTIVES.make(
            CollectiveRow(
                rank=rank,
                phase=phase,
                op=op,
                axis=self.axis,
                calls=calls,
                bytes=self.sizes[phase, op],
            )
            for (phase, op), calls in sorted(self.calls.items())
        )

    def _counted(self, method: Callable[..., Any], about: BackendMethod) -> Callable[..., Any]:
        """`method`, counted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start, phase = time.perf_counter(), self.phase
            size = message_bytes(args[0] if args else kwargs[about.message])
            self.calls[phase, about.op] += 1
            self.sizes[phase, about.op] += size
            work = method(*args, **kwargs)
            end = time.perf_counter()
            self.blocked.append((start, end))
            begun = Call(about.op, self.axis, size, phase, start, end)
            if not (self.timed and hasattr(work, "get_future")):
                self.timed_calls.append(begun)
                return work
            work.get_future().add_done_callback(lambda _: self._completed(begun))
            return WaitTimed(work, self)

        return call

    def _completed(self, begun: Call) -> None:
        """Enter an asynchronous call that has just ended."""
        self.timed_calls.append(replace(begun, end=time.perf_counter()))


@dataclass(slots=True)
class WaitTimed:
    """A collective under way, as torch returns it; waiting for it is entered in the meter."""

    work: Any
    meter: Meter

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Wait as torch's work does."""
        start = time.perf_counter()
        result = self.work.wait(*args, **kwargs)
        self.meter.blocked.append((start, time.perf_counter()))
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.work, name)


def message_bytes(message: Any) -> int:
    """Bytes of a tensor, or of all tensors of a list."""
    if isinstance(message, (list, tuple)):
        return sum(map(message_bytes, message))
    return int(message.numel() * message.element_size())
