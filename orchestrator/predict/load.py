"""How replicas share a load out, and what that takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from orchestrator.analysis.least import least
from orchestrator.analysis.roofline import Closed
from orchestrator.predict.parts import Parts
from orchestrator.predict.passes import DECODE, Setting
from orchestrator.predict.replica import MOST_PASSES, Lengths, Wave, wave
from workers.units import significant

FULL_WAVES = 16


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of an open loop: seconds since the start, and tokens in and out."""

    at_s: float
    input_len: int
    output_len: int

    @property
    def tokens(self) -> int:
        """In and out; for each of them KV is kept."""
        return self.input_len + self.output_len


@dataclass(frozen=True, slots=True)
class Asked:
    """The load of a prediction: a closed loop of requests of equal lengths, or an open one.

    num_prompts: requests in all; None: max_concurrency, a closed batch. gpu_hour_cost: of one GPU,
    in whatever currency; None: not said. arrivals: of an open loop, in which at most
    max_concurrency are served at once; lengths are their means then. trace: what of it they are,
    empty where they are of none.
    """

    lengths: Lengths
    max_concurrency: int
    num_prompts: int | None = None
    gpu_hour_cost: float | None = None
    arrivals: tuple[Arrival, ...] = ()
    trace: str = ""

    @classmethod
    def opened(
        cls,
        arrivals: tuple[Arrival, ...],
        max_concurrency: int,
        prefill_tokens: int,
        gpu_hour_cost: float | None = None,
    ) -> Asked:
        """An open loop."""
        mean = (
            round(fmean(one.input_len for one in arrivals)),
            round(fmean(one.output_len for one in arrivals)),
        )
        lengths = Lengths(*mean, prefill_tokens)
        return cls(lengths, max_concurrency, None, gpu_hour_cost, arrivals)

    @property
    def requests(self) -> int:
        """Requests in all."""
        return len(self.arrivals) or self.num_prompts or self.max_concurrency

    @property
    def seats(self) -> int:
        """Requests at once."""
        return min(self.max_concurrency, self.requests)

    @property
    def rate(self) -> float:
        """Requests that arrive a second until the last one, mean."""
        return len(self.arrivals) / max(self.arrivals[-1].at_s, 1e-9)

    @property
    def arriving(self) -> str:
        """How requests arrive, in words; empty in a closed loop."""
        if not self.arrivals:
            return ""
        count = f"{len(self.arrivals)} request{'s' * (len(self.arrivals) > 1)}"
        if not self.arrivals[-1].at_s:
            return f"{count} at the start"
        rate = f"{significant(self.rate, 3)} requests/s"
        if self.trace:
            return f"{count} of a trace ({self.trace}), {rate} on average"
        return f"{count} at {rate}"

    @property
    def closed(self) -> Asked:
        """A closed loop of requests of the mean lengths, in so many full waves that its first and
        last one weigh little: with as many seats as a prediction is made of."""
        passes = MOST_PASSES * self.lengths.prefill_tokens // self.lengths.input_len
        seats = max(min(self.max_concurrency, passes), 1)
        return replace(self, max_concurrency=seats, num_prompts=FULL_WAVES * seats, arrivals=())

    def faster(self, factor: float) -> Asked:
        """The same requests, arriving so many times as fast."""
        arrivals = tuple(replace(one, at_s=one.at_s / factor) for one in self.arrivals)
        return replace(self, arrivals=arrivals)

    @property
    def max_len(self) -> int:
        """Tokens of the longest request."""
        whole = self.lengths.input_len + self.lengths.output_len
        return max((one.tokens for one in self.arrivals), default=whole)

    @property
    def tokens(self) -> int:
        """That are made."""
        made = sum(one.output_len for one in self.arrivals)
        return made or self.requests * self.lengths.output_len


@dataclass(frozen=True, slots=True)
class Share:
    """Replicas that serve alike. wanted, seats: requests that each would serve, and does serve, at
    once; served: in all. batch: a full wave; rest: the last one, where that is not full. least_s:
    seconds that hardware of these rates takes at least (`analysis.least`)."""

    replicas: int
    wanted: int
    seats: int
    served: int
    batch: Wave
    rest: Wave | None
    least_s: float

    @classmethod
    def of(cls, setting: Setting, asked: Asked, room: int, replicas: int, first: int) -> Share:
        """Of `replicas` that are numbered from `first` on. room: requests for whose KV each has
        room."""
        total, seats = setting.placed.placement.degree("dp"), asked.seats
        lengths = asked.lengths
        wanted = len(range(first, seats, total))
        whole, left = divmod(asked.requests, seats)
        served = whole * wanted + len(range(first, left, total))
        held = min(wanted, room)
        rest = served % held
        return cls(
            replicas,
            wanted,
            held,
            served,
            wave(setting, lengths, held),
            wave(setting, lengths, rest) if rest else None,
            least_s(setting, Closed.equal(lengths.input_len, lengths.output_len, served, held)),
        )

    @property
    def waves(self) -> int:
        """Full ones."""
        return self.served // self.seats

    @property
    def _joints(self) -> int:
        """Of waves that follow each other."""
        return self.waves - 1 + (self.rest is not None)

    @property
    def _apart(self) -> float:
        """Seconds of all waves, if none began before the one before it ends."""
        return self.waves * self.batch.seconds + (self.rest.seconds if self.rest else 0.0)

    @property
    def overlap_s(self) -> float:
        """How much earlier a wave begins: no more than the least time for the load leaves, which
        lets a micro-batch end before its next prompts begin."""
        most = max(self._apart - self.least_s, 0.0) / max(self._joints, 1)
        return min(self.batch.overlap_s, most)

    @property
    def seconds(self) -> float:
        """Until its last token. In a pipeline waves follow each other without a drain."""
        return self._apart - self._joints * self.overlap_s

    @property
    def parts(self) -> Parts:
        """Of all GPUs of these replicas."""
        full = (self.batch.prefill.parts + self.batch.decode.parts).times(self.waves)
        last = self.rest.prefill.parts + self.rest.decode.parts if self.rest else Parts()
        early = Parts(bubble=-self._saved)
        return (full + last + early).times(self.replicas).without_noise()

    @property
    def _saved(self) -> float:
        """GPU-seconds of bubble that waves which follow each other do not have."""
        gpus = self.batch.prefill.parts.seconds / self.batch.prefill.seconds
        return self._joints * self.overlap_s * gpus

    @property
    def first_tokens(self) -> list[tuple[float, int]]:
        """(seconds from the time a request is sent, requests)."""
        steady = (self.wanted - 1) // self.seats + 1  # waves that are as all further ones
        first = [
            one
            for number in range(min(self.waves, steady))
            for one in self._first_tokens(self.batch, number)
        ]
        more = max(self.waves - steady, 0)
        first += [(at, n * more) for at, n in self._first_tokens(self.batch, steady) if more]
        return first + (self._first_tokens(self.rest, self.waves) if self.rest else [])

    def _first_tokens(self, one: Wave, number: int) -> list[tuple[float, int]]:
        """Those of the wave of that number. A request is sent when another one ends. Then
        wanted - seats are before it: it waits for as many waves as these fill, and those sent
        at the start for all waves before theirs."""
        whole, left = divmod(self.wanted - self.seats, self.seats)
        overlap_s, found, before = self.overlap_s, [], 0
        period = self.batch.seconds - overlap_s
        for at, count in one.first_tokens:
            longer = min(max(left - before, 0), count)
            for n, waits in ((longer, whole + 1), (count - longer, whole)):
                early = overlap_s if number > waits else 0.0
                found.append((min(number, waits) * period + at - early, n))
            before += count
        return found


def least_s(setting: Setting, load: Closed) -> float:
    """Seconds that hardware of these rates takes at least for what a replica serves."""
    rates = setting.placed.rates[DECODE]
    assert rates is not None, "checked before anything is predicted"
    return least(setting.stages, load, rates, setting.factors.separate).seconds


def median(times: Iterable[tuple[float, int]]) -> float:
    """The median of values that come so many times each: the mean of the two in the middle."""
    ordered = sorted((at, count) for at, count in times if count)
    total = sum(count for _, count in ordered)
    return (_nth(ordered, (total - 1) // 2) + _nth(ordered, total // 2)) / 2


def _nth(ordered: Sequence[tuple[float, int]], number: int) -> float:
    for at, count in ordered:
        if number < count:
            return at
        number -= count
    raise IndexError(number)
