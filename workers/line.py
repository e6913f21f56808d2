"""Requests that are not served yet: which of them may be let in, and which is the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from workers.messages import Request


class Line:
    """The requests of a replica until they are let in, in the order in which they arrive.

    One that is after another (`Request.after`) arrives when that one has ended. The others arrive
    by the clock in an open loop. In a closed one they are there from the start, but behind those
    whose turn has come: so a conversation goes on before another one begins, and no more are under
    way than there are seats.

    Raises ValueError where one is after a request that does not come before it, or that another one
    is after too.
    """

    def __init__(self, requests: Iterable[Request], is_open: bool = False) -> None:
        self._coming: deque[Request] = deque()
        self._ready: deque[Request] = deque()
        self._after: dict[int, Request] = {}
        there: set[int] = set()
        for one in requests:
            if one.after is None:
                self._coming.append(one)
            elif one.after in there and one.after not in self._after:
                self._after[one.after] = one
            else:
                raise ValueError(f"request {one.index} waits for {one.after}, and would for ever")
            there.add(one.index)
        # Seconds since the start of the run, in an open loop; None in a closed one.
        self.now: float | None = 0.0 if is_open else None

    def __len__(self) -> int:
        """Requests that have not been let in, arrived or not."""
        return len(self._coming) + len(self._ready) + len(self._after)

    @property
    def waiting(self) -> int:
        """Those of them that have arrived."""
        return len(self._ready) + (len(self._coming) if self.now is None else 0)

    @property
    def next(self) -> Request | None:
        """The one that may be let in, None where there is none."""
        line = self._ready or (self._coming if self.now is None else ())
        return line[0] if line else None

    @property
    def next_arrival_s(self) -> float | None:
        """When the next one arrives by the clock; None where none does."""
        is_open = self.now is not None
        return self._coming[0].arrival_s if is_open and self._coming else None

    def take(self) -> Request:
        """Let the next one in."""
        return (self._ready or self._coming).popleft()

    def arrive(self, now: float) -> None:
        """In an open loop: `now` seconds have passed since the start."""
        self.now = now
        while self._coming and self._coming[0].arrival_s <= now:
            self._ready.append(self._coming.popleft())

    def awaits(self, index: int) -> bool:
        """Whether a request waits for the end of request `index`."""
        return index in self._after

    def end(self, index: int) -> None:
        """Request `index` has ended."""
        if index in self._after:
            self._ready.append(self._after.pop(index))
