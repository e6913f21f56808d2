"""How one replica serves a closed batch: its prompts first, then decode passes until all are done.

Requests of equal lengths that start together end together, so a closed loop of more requests than
seats is one such wave after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from orchestrator.predict.parts import Parts
from orchestrator.predict.passes import DECODE, PREFILL, Setting, Work

MOST_PASSES = 4096  # with prompts, of one wave: each is worked out by itself


class TooManyPasses(Exception):
    """The prompts of a wave take more passes than are worked out; says how many."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of each request in and out, and the most prompt tokens of a pass."""

    input_len: int
    output_len: int
    prefill_tokens: int

    @property
    def passes(self) -> int:
        """Decode passes of a request: its first token comes from its prefill."""
        return max(self.output_len - 1, 0)

    @property
    def context(self) -> float:
        """Mean tokens of KV that a decode pass reads for a request."""
        return self.input_len + (max(self.passes, 1) - 1) / 2


@dataclass(frozen=True, slots=True)
class Phase:
    """seconds: of the replica. parts: of all GPUs of it together; they sum to seconds x GPUs."""

    seconds: float
    parts: Parts


@dataclass(frozen=True, slots=True)
class Wave:
    """What a replica does for the requests of a closed batch.

    first_tokens: (seconds until then, requests whose first token comes then). round_s: from one
    token of a request to its next, while no prompt is read. overlap_s: how much earlier the prompts
    of a next wave begin, while the last decode passes of this one are in the later stages.
    """

    prefill: Phase
    decode: Phase
    first_tokens: tuple[tuple[float, int], ...]
    round_s: float
    overlap_s: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first prompt to the last token."""
        return self.prefill.seconds + self.decode.seconds


def wave(setting: Setting, lengths: Lengths, requests: int) -> Wave:
    """A closed batch of `requests` on one replica. Raises UnknownLink and TooManyPasses."""
    _check_passes(lengths, requests)
    prefill, first = _prefill(setting, lengths, requests)
    passes = _decode_passes(setting, lengths, requests)
    one = _round(setting, passes, micro_batches(setting, requests))
    decode = Phase(lengths.passes * one.seconds, one.parts.times(lengths.passes))
    joins = setting.factors.lanes and lengths.passes  # else no decode pass to be beside
    early = _overlap(setting, lengths, requests, passes) if joins else 0.0
    return Wave(prefill, decode, first, one.seconds, early)


def round_s(setting: Setting, lengths: Lengths, requests: int) -> float:
    """Seconds from one token of each of `requests` to its next, while no prompt is read. Raises
    UnknownLink."""
    passes = _decode_passes(setting, lengths, requests)
    return _round(setting, passes, micro_batches(setting, requests)).seconds


def _check_passes(lengths: Lengths, requests: int) -> None:
    number = -(-requests * lengths.input_len // lengths.prefill_tokens)
    if number > MOST_PASSES:
        raise TooManyPasses(
            f"the prompts of {requests} requests take {number} passes of {lengths.prefill_tokens} "
            f"tokens, and at most {MOST_PASSES} are worked out; ask for fewer requests at once, "
            "shorter prompts or a larger --chunked-prefill-size"
        )


def _overlap(setting: Setting, lengths: Lengths, requests: int, passes: Sequence[Parts]) -> float:
    """How much of the first pass with prompts fits beside the last decode pass, while that goes
    through the later stages."""
    works, _ = _prompt_passes(lengths, requests, micro_batches(setting, requests))
    return sum(
        min(one.seconds, setting.pass_of(index, works[0]).seconds)
        for index, one in enumerate(passes[:-1])
    )


def micro_batches(setting: Setting, requests: int) -> int:
    """How many of a pipeline are in flight: no more than stages or requests."""
    return min(len(setting.stages), requests) if setting.factors.lanes else 1


def _decode_passes(setting: Setting, lengths: Lengths, requests: int) -> list[Parts]:
    """The pass of a micro-batch through each stage, at the mean length of its requests."""
    batch = requests / micro_batches(setting, requests)
    work = Work(DECODE, batch, batch, read=batch * lengths.context)
    return [setting.pass_of(index, work) for index in range(len(setting.stages))]


def _round(setting: Setting, passes: Sequence[Parts], lanes: int) -> Phase:
    """One token more for each request.

    Each of m micro-batches goes through the p stages one after another, and each stage serves all
    of them: max(m x slowest stage, sum of stages + p x turn). So where m < p a stage is used for
    m/p of the time, and weights are streamed m times a round.
    """
    turns = len(passes) * setting.factors.turn_s if lanes > 1 else 0.0
    seconds = max(
        lanes * max(one.seconds for one in passes), sum(one.seconds for one in passes) + turns
    )
    return Phase(seconds, _all_gpus(setting, [one.times(lanes) for one in passes], seconds))


def _prefill(
    setting: Setting, lengths: Lengths, requests: int
) -> tuple[Phase, tuple[tuple[float, int], ...]]:
    """The passes of all prompts, micro-batch by micro-batch in turn: a flow shop, in which a pass
    starts on a stage when this is free and the stage before has done with it."""
    stages, start = range(len(setting.stages)), setting.factors.start_s
    done, first = [start] * len(stages), list[tuple[float, int]]()
    works, order = _prompt_passes(lengths, requests, micro_batches(setting, requests))
    each = [[setting.pass_of(index, work) for index in stages] for work in works]
    seconds = [[one.seconds for one in passes] for passes in each]
    for number in order:
        at = 0.0 if setting.factors.lanes else done[-1]
        for index, taken in enumerate(seconds[number]):
            done[index] = at = max(at, done[index]) + taken
        if sampled := works[number].sampled:
            first.append((at, int(sampled)))
    often = Counter(order)
    spent = [
        sum((each[number][index].times(n) for number, n in often.items()), Parts(gaps=start))
        for index in stages
    ]
    return Phase(done[-1], _all_gpus(setting, spent, done[-1])), tuple(first)


@lru_cache(maxsize=256)  # the same whatever GPUs run them
def _prompt_passes(
    lengths: Lengths, requests: int, lanes: int
) -> tuple[tuple[Work, ...], tuple[int, ...]]:
    """The passes over prompts that there are, of which most are alike, and the number of each in
    the order in which the first stage runs them."""
    shares = [requests // lanes + (lane < requests % lanes) for lane in range(lanes)]
    queues = [_chunks(lengths, share) for share in shares]
    turns = range(max(map(len, queues)))
    works = [queue[turn] for turn in turns for queue in queues if turn < len(queue)]
    numbers = {work: number for number, work in enumerate(dict.fromkeys(works))}
    return tuple(numbers), tuple(map(numbers.__getitem__, works))


def _chunks(lengths: Lengths, requests: int) -> list[Work]:
    """The prompts of a micro-batch, cut into passes of `prefill_tokens`."""
    total, size = requests * lengths.input_len, lengths.prefill_tokens
    edges = [*range(0, total, size), total]
    return [
        Work(
            PREFILL,
            tokens=end - start,
            sampled=end // lengths.input_len - start // lengths.input_len,
            pairs=_pairs(end, lengths.input_len) - _pairs(start, lengths.input_len),
        )
        for start, end in pairwise(edges)
    ]


def _pairs(tokens: int, input_len: int) -> float:
    """Tokens that the first `tokens` of prompts laid end to end attend to, themselves included."""
    whole, rest = divmod(tokens, input_len)
    return (whole * input_len * (input_len + 1) + rest * (rest + 1)) / 2


def _all_gpus(setting: Setting, stages: Sequence[Parts], seconds: float) -> Parts:
    """The parts of all GPUs of a replica: what a stage does not do in `seconds` is bubble."""
    total = Parts()
    for one in stages:
        total += one + Parts(bubble=seconds - one.seconds)
    placement = setting.placed.placement
    ranks = placement.num_ranks // placement.degree("dp")
    return total.times(ranks / len(stages))
