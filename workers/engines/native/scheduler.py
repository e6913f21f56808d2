"""Continuous batching without a clock of its own: which requests go into which step, alike on every
rank of a replica."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from workers.engines.native.cache import PagePool
from workers.messages import Request


@dataclass(slots=True, eq=False)
class Sequence:
    """A request being served. after: the sequence whose end made room for it, None for the first
    ones.

    admitted_s: when it was let in, as the scheduler was told; None in a closed loop.
    """

    request: Request
    slot: int
    micro_batch: int
    pages: list[int]
    after: Sequence | None = None
    prefilled: int = 0
    generated: int = 0
    stopped: bool = False
    admitted_s: float | None = None

    @property
    def done(self) -> bool:
        return self.stopped or self.generated == self.request.output_len

    @property
    def prompt_left(self) -> int:
        return len(self.request.prompt) - self.prefilled


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` prompt tokens of a sequence, from token `start` on."""

    sequence: Sequence
    start: int
    count: int

    @property
    def is_last(self) -> bool:
        return self.start + self.count == len(self.sequence.request.prompt)


@dataclass(frozen=True, slots=True)
class Step:
    """One micro-batch: chunks of prompts, or one token for each sequence. `sampled`: who gets a
    token out of it."""

    index: int
    phase: str
    micro_batch: int
    chunks: tuple[Chunk, ...]
    sampled: tuple[Sequence, ...]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks) if self.chunks else len(self.sampled)

    @property
    def num_requests(self) -> int:
        return len(self.chunks) or len(self.sampled)


@dataclass(slots=True)
class MicroBatch:
    """One micro-batch in flight. `prefilled_last`: its last step was a prefill, so decoding is next
    in turn."""

    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    prefilled_last: bool = False

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)


class Scheduler:
    """Deals the steps of a closed loop out over `micro_batches` micro-batches, in turn.

    A request gets all the pages it can ever need when it is let in, so nothing is ever preempted.
    Prompts go first; with `chunked`, a prompt may be cut to fill the budget of `prefill_tokens`,
    and sequences in the middle of their output are never kept waiting for more than one chunk.
    """

    def __init__(
        self,
        requests: tuple[Request, ...],
        max_concurrency: int,
        micro_batches: int,
        pages: int,
        prefill_tokens: int,
        chunked: bool,
    ) -> None:
        self._queue, self._total = deque(requests), len(requests)
        self._micro_batches = [
            MicroBatch() for _ in range(max(1, min(micro_batches, max_concurrency)))
        ]
        self._slots = max_concurrency
        self._free_slots = deque(range(max_concurrency))
        self._freed: deque[Sequence | None] = deque([None] * max_concurrency)
        self._pages, self._pool = pages, PagePool(pages)
        self._prefill_tokens, self._chunked = prefill_tokens, chunked
        self._turn = self._count = 0
        self._unarrived = 0
        self._now: float | None = None

    @property
    def queued(self) -> int:
        """Requests that have not been let in, arrived or not."""
        return len(self._queue)

    def is_idle(self) -> bool:
        """Whether nobody is being served."""
        return not any(
            micro_batch.waiting or not all(s.done for s in micro_batch.running)
            for micro_batch in self._micro_batches
        )

    def arrive(self, count: int, now: float) -> None:
        """In an open loop: the first `count` requests have arrived by `now`, in seconds since the
        start."""
        self._unarrived, self._now = self._total - count, now

    def next_micro_batch(self) -> int | None:
        """The micro_batch whose turn it is, or None when everything is served. Lets waiting
        requests in first."""
        self._admit()
        for _ in self._micro_batches:
            micro_batch, self._turn = self._turn, (self._turn + 1) % len(self._micro_batches)
            if self._micro_batches[micro_batch]:
                return micro_batch
        if self._queue:
            raise ValueError(f"request {self._queue[0].index} needs more KV pages than there are")
        return None

    def plan(self, micro_batch: int) -> Step | None:
        """The next step of `micro_batch`, or None if it ran empty. Counts its tokens as made; a
        sequence that is done leaves."""
        self._release(micro_batch)
        mine = self._micro_batches[micro_batch]
        if not mine:
            return None
        begun = (
            1 if self._now is None else 0
        )  # the first prompts of a closed loop are all read before anyone decodes
        in_the_middle = (
            self._chunked and mine.prefilled_last and any(s.generated > begun for s in mine.running)
        )
        step = (
            self._prefill(micro_batch)
            if mine.waiting and not in_the_middle
            else self._decode(micro_batch)
        )
        mine.prefilled_last = step.phase == "prefill"
        for sequence in step.sampled:
            sequence.generated += 1
        self._count += 1
        return step

    def release(self) -> None:
        """Let go of every sequence that is done."""
        for micro_batch in range(len(self._micro_batches)):
            self._release(micro_batch)

    def held(self) -> tuple[int, int, int]:
        """Requests that have a slot, requests that have arrived and wait for one, KV pages
        taken."""
        waiting = max(len(self._queue) - self._unarrived, 0)
        return self._slots - len(self._free_slots), waiting, self._pages - len(self._pool)

    def _admit(self) -> None:
        self.release()
        while len(self._queue) > self._unarrived and self._free_slots:
            request = self._queue[0]
            pages = self._pool.take(len(request.prompt) + request.output_len)
            if pages is None:
                return
            micro_batch = min(
                range(len(self._micro_batches)), key=lambda i: len(self._micro_batches[i])
            )
            after = self._freed.popleft()
            sequence = Sequence(
                self._queue.popleft(),
                self._free_slots.popleft(),
                micro_batch,
                pages,
                after,
                admitted_s=self._now,
            )
            self._micro_batches[micro_batch].waiting.append(sequence)

    def _release(self, micro_batch: int) -> None:
        running = self._micro_batches[micro_batch].running
        for sequence in [s for s in running if s.done]:
            running.remove(sequence)
            self._pool.give_back(sequence.pages)
            self._free_slots.append(sequence.slot)
            self._freed.append(sequence)

    def _prefill(self, micro_batch: int) -> Step:
        mine, left = self._micro_batches[micro_batch], self._prefill_tokens
        chunks: list[Chunk] = []
        while mine.waiting and left > 0:
            sequence = mine.waiting[0]
            count = sequence.prompt_left
            if count > left:
                if chunks and not self._chunked:
                    break
                count = left if self._chunked else count
            chunks.append(Chunk(sequence, sequence.prefilled, count))
            sequence.prefilled += count
            left -= count
            if not sequence.prompt_left:
                mine.running.append(mine.waiting.popleft())
        return Step(
            self._count,
            "prefill",
            micro_batch,
            tuple(chunks),
            tuple(c.sequence for c in chunks if c.is_last),
        )

    def _decode(self, micro_batch: int) -> Step:
        return Step(
            self._count, "decode", micro_batch, (), tuple(self._micro_batches[micro_batch].running)
        )
