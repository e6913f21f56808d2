"""How replicas share a load out, and what that takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.analysis.least import least
from orchestrator.analysis.roofline import Closed
from orchestrator.predict.parts import Parts
from orchestrator.predict.passes import DECODE, Setting
from orchestrator.predict.replica import Lengths, Wave, wave


@dataclass(frozen=True, slots=True)
class Asked:
    """The load of a prediction: a closed loop of requests of equal lengths.

    num_prompts: requests in all; None: max_concurrency, a closed batch. gpu_hour_cost: of one GPU,
    in whatever currency; None: not said.
    """

    lengths: Lengths
    max_concurrency: int
    num_prompts: int | None = None
    gpu_hour_cost: float | None = None

    @property
    def requests(self) -> int:
        """Requests in all."""
        return self.num_prompts or self.max_concurrency

    @property
    def seats(self) -> int:
        """Requests at once."""
        return min(self.max_concurrency, self.requests)

    @property
    def max_len(self) -> int:
        """Tokens of a request."""
        return self.lengths.input_len + self.lengths.output_len


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
            wave(setting, asked.lengths, held),
            wave(setting, asked.lengths, rest) if rest else None,
            _least_s(setting, asked.lengths, served, held),
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
        period, found, before = self.batch.seconds - self.overlap_s, [], 0
        for at, count in one.first_tokens:
            longer = min(max(left - before, 0), count)
            for n, waits in ((longer, whole + 1), (count - longer, whole)):
                early = self.overlap_s if number > waits else 0.0
                found.append((min(number, waits) * period + at - early, n))
            before += count
        return found


def _least_s(setting: Setting, lengths: Lengths, served: int, seats: int) -> float:
    rates = setting.placed.rates[DECODE]
    assert rates is not None, "checked before anything is predicted"
    load = Closed.equal(lengths.input_len, lengths.output_len, served, seats)
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
