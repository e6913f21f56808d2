"""The least time for a load: the longest way through it that cannot overlap with itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.analysis.roofline import Closed, Rates, Stage

# Engines whose passes hold prompts or one token a request, never both: prefill and decode cannot
# hide each other.
SEPARATE = frozenset({"torch", "transformers", "deepspeed"})


@dataclass(frozen=True, slots=True)
class Bound:
    """The least seconds for a load, and how they come about with the best `micro_batches`.

    prefill_passes: passes with prompts alone. prefill_s: what prompts add to the seconds of decode.
    """

    prefill_passes: int
    prefill_s: float
    decode_s: float
    micro_batches: int

    @property
    def seconds(self) -> float:
        """Prefill and decode."""
        return self.prefill_s + self.decode_s


@dataclass(frozen=True, slots=True)
class _Way:
    """Seconds along one way through a load, which cannot overlap with themselves.

    stream: of weights, for prompts. prompts: computing them. decode: passes with decoded tokens.
    decode_flops: what these take to compute.
    """

    stream: float
    prompts: float
    decode: float
    decode_flops: float

    def prefill_s(self, separate: bool) -> float:
        """What prompts add to the decode passes, which may compute them while they read."""
        hidden = 0.0 if separate else self.decode - self.decode_flops
        return max(self.stream, self.prompts - hidden)


def least(stages: Sequence[Stage], load: Closed, rates: Rates, separate: bool = True) -> Bound:
    """The least seconds in which one replica can serve `load`, over every number of micro-batches.

    With n micro-batches a stage streams its weights n times a round, and a micro-batch passes the
    stages one after another, so a round takes max(n x slowest stage, sum of stages) of a pass with
    1/n of the requests. All prompts go through the slowest stage; a micro-batch waits for its own.
    And no request is done before its own passes, one after another.

    Prompts stream the weights too. separate: no pass holds both prompts and decoded tokens, so each
    wave of requests takes a pass of prompts alone. Else only the first pass of all must do without
    decoded tokens, and decode passes can compute prompts for as long as they read.
    """
    one = _Replica(stages, load, rates, load.waves if separate else 1)

    def bound(micro_batches: int) -> Bound:
        bounds = (
            Bound(one.prefill_passes, way.prefill_s(separate), way.decode, micro_batches)
            for way in one.ways(micro_batches)
        )
        return max(bounds, key=lambda one: one.seconds)

    best = bound(1)
    for number in range(2, load.in_flight + 1):
        found = bound(number)
        if found.seconds >= best.seconds:
            break  # more of them make a stage's passes longer, and shorten only the other ways
        best = found
    return best


def least_decode_s(stages: Sequence[Stage], load: Closed, rates: Rates) -> float:
    """The least seconds of the decode passes of `load` alone, over every number of micro-batches.

    More of them than stages only stream weights again, unless a cache holds the weights of a stage.
    """
    one = _Replica(stages, load, rates, 0)
    cached = any(stage.weight_bytes < rates.cache_bytes for stage in stages)
    most = load.in_flight if cached else min(len(stages), load.in_flight)
    return min(
        max(way.decode for way in one.ways(micro_batches)) for micro_batches in range(1, most + 1)
    )


class _Replica:
    """The ways through a load that take longest, whatever else overlaps. prefill_passes: with
    prompts alone."""

    def __init__(
        self, stages: Sequence[Stage], load: Closed, rates: Rates, prefill_passes: int
    ) -> None:
        self.load, self.rates, self.prefill_passes = load, rates, prefill_passes
        self._reading = [(stage, stage.context(load)) for stage in stages]
        self._weights = [stage.weights_s(rates) for stage in stages]
        self._prompts = [stage.prefill_flops(load) / rates.flops for stage in stages]

    def ways(self, micro_batches: int) -> Iterator[_Way]:
        """All of them."""
        yield from self.of_stages(micro_batches)
        yield self.of_a_micro_batch(micro_batches)
        yield self.of_longest()

    def of_stages(self, micro_batches: int) -> Iterator[_Way]:
        """All passes of each stage. As many as the longest request takes, or the longest
        conversation, are made in any case."""
        load, longest = self.load, self.load.least_passes
        passes, requests = micro_batches * load.rounds, load.in_flight / micro_batches
        if passes < longest:
            passes, requests = longest, load.decoded / longest
        for (stage, context), weights, prompts in zip(
            self._reading, self._weights, self._prompts, strict=True
        ):
            decode, flops = self._decode(stage, context, passes, requests)
            yield _Way(self.prefill_passes * weights, prompts, decode, flops)

    def of_a_micro_batch(self, micro_batches: int) -> _Way:
        """The passes of the fullest one. Of requests that differ it may have the lightest: weighed
        by their seats, micro-batches have at least one part in `in_flight` of all."""
        load = self.load
        alike = len(load.kinds) == 1
        requests = load.in_flight / micro_batches if alike else 1.0
        share = micro_batches if alike else load.in_flight
        streams: float = self.prefill_passes
        if not alike:
            streams = min(streams, load.requests / load.in_flight)
        found = [
            self._decode(stage, context, load.rounds, requests) for stage, context in self._reading
        ]
        decode, flops = (sum(each) for each in zip(*found, strict=True))
        return _Way(streams * sum(self._weights), max(self._prompts) / share, decode, flops)

    def of_longest(self) -> _Way:
        """The passes of the longest request, as if it were alone."""
        kind = self.load.longest
        found = [
            self._decode(stage, stage.context_of(kind), kind.passes, 1.0)
            for stage, _ in self._reading
        ]
        decode, flops = (sum(each) for each in zip(*found, strict=True))
        return _Way(sum(self._weights), 0.0, decode, flops)

    def _decode(
        self, stage: Stage, context: float, passes: float, requests: float
    ) -> tuple[float, float]:
        """Seconds that decode passes take, and of these what they compute."""
        computed = stage.decode_flops(requests, context) / self.rates.flops
        return passes * stage.pass_s(requests, context, self.rates), passes * computed
