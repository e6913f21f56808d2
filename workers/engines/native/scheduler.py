"""Continuous batching: which requests go into which step. It has no clock of its own, so it decides
alike on every rank of a replica."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from workers.engines.native.pages import PagePool
from workers.line import Line
from workers.messages import Request
from workers.records import DECODE, PREFILL


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a scheduler.

    micro_batches: the most in flight. pages: KV pages that there are. prefill_tokens: most prompt
    tokens in one step. chunked: a prompt may be cut to fill them; otherwise prompts go whole, and
    one that is longer goes alone. static: requests are let in when none is being served any more,
    as many as there are seats.
    """

    micro_batches: int
    pages: int
    prefill_tokens: int
    chunked: bool = True
    static: bool = False


@dataclass(slots=True, eq=False)
class Sequence:
    """A request being served.

    seat: its place in the closed loop, which is its row of the runner's `State` too. pages: its KV
    pages in order. after: the sequence that had the seat before, None for the first. reply: the one
    that its request is after, None where it is after none. prefilled: prompt tokens that have gone
    into a step; generated: tokens made. stopped: an end-of-text token was made. admitted_s: when it
    was let in, in seconds since the start of the run; None in a closed loop.
    """

    request: Request
    seat: int
    pages: list[int]
    after: Sequence | None = None
    reply: Sequence | None = None
    prefilled: int = 0
    generated: int = 0
    stopped: bool = False
    admitted_s: float | None = None

    @property
    def done(self) -> bool:
        """Whether all its tokens are made."""
        return self.stopped or self.generated == self.request.output_len

    @property
    def prompt_left(self) -> int:
        """Prompt tokens that have not gone into a step."""
        return len(self.request.prompt) - self.prefilled


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` prompt tokens of a sequence, from token `start` on."""

    sequence: Sequence
    start: int
    count: int

    @property
    def is_last(self) -> bool:
        """Whether the prompt ends with it, so that a token is sampled."""
        return self.start + self.count == len(self.sequence.request.prompt)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a micro-batch: chunks of prompts, or one new token of each sequence.

    index: number of the step in the run. chunks: empty in a decode step. sampled: the sequences
    that get a token out of it.
    """

    index: int
    phase: str
    micro_batch: int
    chunks: tuple[Chunk, ...]
    sampled: tuple[Sequence, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model."""
        return sum(chunk.count for chunk in self.chunks) if self.chunks else len(self.sampled)

    @property
    def num_requests(self) -> int:
        """Requests that the step is for."""
        return len(self.chunks) or len(self.sampled)


@dataclass(slots=True)
class MicroBatch:
    """The sequences of one micro-batch.

    waiting: those whose prompts are still to be read. running: those that make tokens.
    prefilled_last: its last step was a prefill, so a decode is next in turn.
    """

    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    prefilled_last: bool = False

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def __iter__(self) -> Iterator[Sequence]:
        yield from (*self.waiting, *self.running)

    @property
    def is_idle(self) -> bool:
        """Whether none of its sequences needs another step."""
        return not self.waiting and all(sequence.done for sequence in self.running)

    def must_decode(self, begun: int) -> bool:
        """Whether a prompt has just been read and a sequence that has made more than `begun` tokens
        waits for its next one."""
        return self.prefilled_last and any(s.generated > begun for s in self.running)


class Scheduler:
    """Deals the requests of one replica out over micro-batches, and gives each its steps in turn.

    A request gets a seat, and all the pages that it can ever need, when it is let in; nothing is
    ever preempted. Prompts go first. With chunked prefill, a sequence in the middle of its output
    waits for no more than one prefill step at a time.
    """

    def __init__(
        self, requests: tuple[Request, ...], seats: int, limits: Limits, is_open: bool = False
    ) -> None:
        self._line = Line(requests, is_open)
        self._limits, self._pool = limits, PagePool(limits.pages)
        count = max(1, min(limits.micro_batches, seats))
        self._micro_batches = [MicroBatch() for _ in range(count)]
        self._seats = seats
        # Each free seat with the sequence that had it last.
        self._free: deque[tuple[int, Sequence | None]] = deque((i, None) for i in range(seats))
        self._replies: dict[int, Sequence] = {}  # by request: ended, and the next turn not let in
        self._turn = self._count = 0

    @property
    def queued(self) -> int:
        """Requests that have not been let in, arrived or not."""
        return len(self._line)

    @property
    def next_arrival_s(self) -> float | None:
        """When the next request arrives by the clock, in seconds since the start of the run."""
        return self._line.next_arrival_s

    def is_idle(self) -> bool:
        """Whether no request is being served, nor could be before the next one arrives by the
        clock."""
        goes_on = any(self._line.awaits(s.request.index) for m in self._micro_batches for s in m)
        idle = all(micro_batch.is_idle for micro_batch in self._micro_batches)
        return idle and not goes_on and self._line.next is None

    def arrive(self, now: float) -> None:
        """In an open loop: `now` seconds have passed since the start."""
        self._line.arrive(now)

    def next_micro_batch(self) -> int | None:
        """The micro-batch whose turn it is, or None when everything is served. Lets waiting
        requests in first.

        Raises ValueError where a request needs more pages than there are.
        """
        # Twice round, as what ends in the first round may let another one in.
        for _ in range(2 * len(self._micro_batches)):
            micro_batch, self._turn = self._turn, (self._turn + 1) % len(self._micro_batches)
            self._admit(micro_batch)
            if self._micro_batches[micro_batch]:
                return micro_batch
        if self._line.next is not None:
            raise ValueError(f"request {self._line.next.index} needs more KV pages than there are")
        return None

    def next_step(self, micro_batch: int) -> Step | None:
        """The next step of `micro_batch`, or None if it ran empty. Sequences that are done are
        removed first, and the tokens of the step are counted as made."""
        mine = self._micro_batches[micro_batch]
        self._release(mine, its_turn=True)
        if not mine:
            return None
        # In a closed loop all the first prompts are read before anyone decodes.
        begun = 1 if self._line.now is None else 0
        decodes = not mine.waiting or (self._limits.chunked and mine.must_decode(begun))
        step = self._decode(micro_batch) if decodes else self._prefill(micro_batch)
        mine.prefilled_last = not decodes
        for sequence in step.sampled:
            sequence.generated += 1
        self._count += 1
        return step

    def held(self) -> tuple[int, int, int]:
        """Requests that have a seat, requests that have arrived and wait for one, KV pages
        taken."""
        taken = self._limits.pages - len(self._pool)
        return self._seats - len(self._free), self._line.waiting, taken

    def _admit(self, turn: int) -> None:
        for place, micro_batch in enumerate(self._micro_batches):
            self._release(micro_batch, its_turn=place == turn)
        if self._limits.static and len(self._free) < self._seats:
            return
        while (request := self._line.next) is not None and self._free:
            pages = self._pool.take(len(request.prompt) + request.output_len)
            if pages is None:
                return
            self._seat(self._line.take(), pages)

    def _seat(self, request: Request, pages: list[int]) -> None:
        """Give a request a seat, in the micro-batch that has fewest."""
        micro_batch = min(self._micro_batches, key=len)
        seat, before = self._free.popleft()
        reply = None if request.after is None else self._replies.pop(request.after)
        micro_batch.waiting.append(
            Sequence(request, seat, pages, before, reply, admitted_s=self._line.now)
        )

    def _release(self, micro_batch: MicroBatch, its_turn: bool) -> None:
        """Remove every sequence that is done, and free its seat and pages.

        its_turn: of the micro-batch. A reply that another request waits for ends only then: by that
        time its tokens have come through all stages, so that none is held up by waiting for them.
        """
        for sequence in [s for s in micro_batch.running if s.done]:
            index = sequence.request.index
            awaited = self._line.awaits(index)
            if awaited and not its_turn:
                continue
            micro_batch.running.remove(sequence)
            self._pool.give_back(sequence.pages)
            self._free.append((sequence.seat, sequence))
            if awaited:
                self._replies[index] = sequence
                self._line.end(index)

    def _prefill(self, micro_batch: int) -> Step:
        mine, left = self._micro_batches[micro_batch], self._limits.prefill_tokens
        chunks: list[Chunk] = []
        while mine.waiting and left > 0:
            sequence = mine.waiting[0]
            count = sequence.prompt_left
            if count > left and self._limits.chunked:
                count = left
            elif count > left and chunks:
                break
            chunks.append(Chunk(sequence, sequence.prefilled, count))
            sequence.prefilled += count
            left -= count
            if not sequence.prompt_left:
                mine.running.append(mine.waiting.popleft())
        sampled = tuple(chunk.sequence for chunk in chunks if chunk.is_last)
        return Step(self._count, PREFILL, micro_batch, tuple(chunks), sampled)

    def _decode(self, micro_batch: int) -> Step:
        running = tuple(self._micro_batches[micro_batch].running)
        return Step(self._count, DECODE, micro_batch, (), running)
