"""How replicas share a load out, and what that takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.predict.parts import Parts
from orchestrator.predict.passes import Setting
from orchestrator.predict.replica import Lengths, Wave, wave

MOST_WAVES = 4  # of which first tokens are looked at; further ones are alike


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
    once; served: in all. batch: a full wave; rest: the last one, where that is not full."""

    replicas: int
    wanted: int
    seats: int
    served: int
    batch: Wave
    rest: Wave | None

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
        )

    @property
    def waves(self) -> int:
        """Full ones."""
        return self.served // self.seats

    @property
    def seconds(self) -> float:
        """Until its last token. In a pipeline waves follow each other without a drain."""
        last = self.rest.seconds if self.rest else 0.0
        joints = self.waves - 1 + (self.rest is not None)
        return self.waves * self.batch.seconds + last - joints * self.batch.overlap_s

    @property
    def parts(self) -> Parts:
        """Of all GPUs of these replicas."""
        full = (self.batch.prefill.parts + self.batch.decode.parts).times(self.waves)
        last = self.rest.prefill.parts + self.rest.decode.parts if self.rest else Parts()
        early = Parts(bubble=-self._saved)
        return (full + last + early).times(self.replicas)

    @property
    def _saved(self) -> float:
        """GPU-seconds of bubble that waves which follow each other do not have."""
        busy = self.waves * self.batch.seconds + (self.rest.seconds if self.rest else 0.0)
        gpus = self.batch.prefill.parts.seconds / self.batch.prefill.seconds
        return (busy - self.seconds) * gpus

    @property
    def first_tokens(self) -> list[tuple[float, int]]:
        """(seconds from the time a request is sent, requests): those that find no seat wait for a
        whole wave, and in waves after the first one the prompts begin earlier."""
        queued = -(-self.wanted // self.seats)
        waves = [self.batch] * min(self.waves, MOST_WAVES) + [self.rest] * (self.rest is not None)
        return [
            (number % queued * self.batch.seconds + at - min(number, 1) * self.batch.overlap_s, n)
            for number, one in enumerate(waves)
            for at, n in (one.first_tokens if one else ())
        ]


def median(times: Iterable[tuple[float, int]]) -> float:
    """The median of values that come so many times each: the mean of the two in the middle."""
    ordered = sorted(times)
    total = sum(count for _, count in ordered)
    return (_nth(ordered, (total - 1) // 2) + _nth(ordered, total // 2)) / 2


def _nth(ordered: Sequence[tuple[float, int]], number: int) -> float:
    for at, count in ordered:
        if number < count:
            return at
        number -= count
    raise IndexError(number)
