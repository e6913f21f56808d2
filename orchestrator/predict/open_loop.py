"""How a replica serves requests that arrive by the clock: a simulation by discrete events, with a
heap of the moments at which a micro-batch can take its next pass."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.analysis.roofline import Closed
from orchestrator.predict.load import Arrival
from orchestrator.predict.parts import Parts
from orchestrator.predict.passes import DECODE, PREFILL, Setting, Work


@dataclass(slots=True, eq=False)
class Seated:
    """A request that has a seat. left: tokens of its prompt still to be read. made: tokens out."""

    request: Arrival
    left: int
    made: int = 0
    first_s: float = 0.0
    last_s: float = 0.0

    @property
    def done(self) -> bool:
        """Whether its last token was made."""
        return self.made == self.request.output_len

    @property
    def ttft_s(self) -> float:
        """From its arrival."""
        return self.first_s - self.request.at_s

    @property
    def tpot_s(self) -> float | None:
        """Of each further token; None where there is none."""
        more = self.request.output_len - 1
        return (self.last_s - self.first_s) / more if more else None


@dataclass(slots=True)
class Lane:
    """A micro-batch. waiting: those whose prompts are still to be read."""

    waiting: deque[Seated] = field(default_factory=deque)
    running: list[Seated] = field(default_factory=list)
    read_last: bool = False

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)


@dataclass(slots=True)
class Replica:
    """One that serves arrivals in their order.

    seats, kv_tokens: of requests at once, and of what KV has room for. parts: seconds of one GPU of
    each stage; busy_s: while any of them does something; prefill_s: of passes with prompts. late:
    requests that there is no seat or no room for when the last one arrives. most, most_tokens:
    requests at once, and tokens that KV was kept for at once.
    """

    setting: Setting
    seats: int
    kv_tokens: int
    prefill_tokens: int
    served: list[Seated] = field(default_factory=list)
    parts: Parts = field(default_factory=Parts)
    busy_s: float = 0.0
    prefill_s: float = 0.0
    late: int = 0
    most: int = 0
    most_tokens: int = 0
    _until: float = 0.0
    _seated: int = 0
    _tokens: int = 0

    @property
    def load(self) -> Closed:
        """What it served, whenever it arrived."""
        lengths = ((one.request.input_len, one.request.output_len) for one in self.served)
        return Closed.of(lengths, self.seats)

    @property
    def inside_s(self) -> float:
        """From the arrivals of requests to their ends, of all together."""
        return sum(one.last_s - one.request.at_s for one in self.served)

    def serve(self, arrivals: Sequence[Arrival]) -> None:
        """Serve all of them, each of which has room by itself. Raises UnknownLink."""
        line, number = deque(arrivals), itertools.count()
        stages, factors = len(self.setting.stages), self.setting.factors
        lanes = [Lane() for _ in range(min(stages, self.seats) if factors.lanes else 1)]
        free, turn = [0.0] * stages, factors.turn_s * stages if len(lanes) > 1 else 0.0
        ready = [(0.0, next(number), lane) for lane in lanes]
        while ready:
            now, _, lane = heapq.heappop(ready)
            if line and line[-1].at_s + factors.start_s <= now:
                self.late = self.late or self._refused(line)
            self._release(lane)
            self._admit(line, lanes, now)
            if len(lane):
                alone = len(lane) == self._seated  # nobody is in another micro-batch
                end = self._pass(lane, now, free, self._next_s(line) if alone else None, turn)
                heapq.heappush(ready, (end + turn, next(number), lane))
            elif line:
                arrives = line[0].at_s + factors.start_s
                # Whoever has arrived has no room until a micro-batch with requests lets go of one.
                later = arrives if arrives > now else min(at for at, _, one in ready if len(one))
                heapq.heappush(ready, (later, next(number), lane))

    def _release(self, lane: Lane) -> None:
        done = [one for one in lane.running if one.done]
        for one in done:
            lane.running.remove(one)
            self._seated -= 1
            self._tokens -= one.request.tokens

    def _admit(self, line: deque[Arrival], lanes: Sequence[Lane], now: float) -> None:
        """Whoever has arrived gets a seat in the micro-batch that has fewest, and room for all KV
        that it will need."""
        start_s = self.setting.factors.start_s
        while line and line[0].at_s + start_s <= now and self._has_room(line[0]):
            one = Seated(line[0], line.popleft().input_len)
            min(lanes, key=len).waiting.append(one)
            self.served.append(one)
            self._seated += 1
            self._tokens += one.request.tokens
            self.most = max(self.most, self._seated)
            self.most_tokens = max(self.most_tokens, self._tokens)

    def _refused(self, line: Iterable[Arrival]) -> int:
        """Of those who have arrived, for how many there is no seat or no room."""
        seats, kept = self.seats - self._seated, self.kv_tokens - self._tokens
        kept_after = itertools.accumulate(one.tokens for one in line)
        return sum(n > seats or tokens > kept for n, tokens in enumerate(kept_after, 1))

    def _next_s(self, line: deque[Arrival]) -> float:
        """When the next request can be let in, as long as no other one ends."""
        can = bool(line) and self._has_room(line[0])
        return line[0].at_s + self.setting.factors.start_s if can else math.inf

    def _has_room(self, one: Arrival) -> bool:
        return self._seated < self.seats and self._tokens + one.tokens <= self.kv_tokens

    def _pass(
        self, lane: Lane, now: float, free: list[float], next_s: float | None, turn: float
    ) -> float:
        """Take a pass through the stages, each as soon as it is free; when its tokens are there.

        turn: seconds from there to the next pass. next_s: until when nobody else can come in or
        needs the stages; up to then, while no prompt waits, passes that decode are taken as one of
        as many times the length, with the mean KV. None: one pass.
        """
        work, sampled = self._next(lane)
        seconds, parts = self.setting.through(work)
        rounds = 1
        if work.phase == DECODE and next_s is not None and not lane.waiting:
            left = min(one.request.output_len - one.made for one in sampled)
            rounds = max(math.ceil(min((next_s - now) / (sum(seconds) + turn), left)), 1)
            work = replace(work, read=work.read + len(sampled) * (rounds - 1) / 2)
            seconds, parts = self.setting.through(work)
        at, self.parts = now, self.parts + parts.times(rounds)
        for index, one in enumerate(seconds):
            free[index] = at = max(at, free[index]) + rounds * one
        at += (rounds - 1) * turn
        self.prefill_s += at - now if work.phase == PREFILL else 0.0
        self.busy_s += at - min(max(now, self._until), at)
        self._until = max(self._until, at)
        for sequence in sampled:
            sequence.made += rounds
            sequence.first_s = sequence.first_s or at
            sequence.last_s = at
        return at

    def _next(self, lane: Lane) -> tuple[Work, list[Seated]]:
        """What comes next, and the requests that get a token of it. Prompts go first, and where
        they never share a pass with decoded tokens, in turns with these."""
        separate, decodes = self.setting.factors.separate, list(lane.running)
        if not lane.waiting or (separate and lane.read_last and decodes):
            lane.read_last = False
            count = len(decodes)
            return Work(DECODE, count, count, read=_read(decodes)), decodes
        lane.read_last, beside = True, [] if separate else decodes
        tokens, pairs, ended = 0, 0.0, list[Seated]()
        for sequence, count in _chunks(lane, self.prefill_tokens):
            begun = sequence.request.input_len - sequence.left
            sequence.left -= count
            tokens, pairs = tokens + count, pairs + _pairs(begun, count)
            if not sequence.left:
                ended.append(lane.waiting.popleft())
        lane.running += ended
        sampled = [*beside, *ended]
        rows = tokens + len(beside)
        return Work(PREFILL, rows, len(sampled), read=_read(beside), pairs=pairs), sampled


def _chunks(lane: Lane, most: int) -> list[tuple[Seated, int]]:
    """Prompts, or what is left of them, that are read in a pass of `most` tokens."""
    chosen: list[tuple[Seated, int]] = []
    for sequence in lane.waiting:
        count = min(sequence.left, most)
        if not count:
            break
        chosen.append((sequence, count))
        most -= count
    return chosen


def _read(sequences: Sequence[Seated]) -> float:
    """Tokens of KV that a decode pass reads."""
    return float(sum(one.request.input_len + one.made - 1 for one in sequences))


def _pairs(begun: int, count: int) -> float:
    """Tokens that `count` tokens after `begun` ones attend to, themselves included."""
    end = begun + count
    return (end * (end + 1) - begun * (begun + 1)) / 2
