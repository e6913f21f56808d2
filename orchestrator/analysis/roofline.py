"""The least time that a placement needs for a load, whatever the engine: pure arithmetic.

A bound must be a bound. A pass over a stage streams its weights once and each request's keys and
values once, so it takes at least max(bytes / memory bandwidth, operations / arithmetic rate): the
roofline (Williams, Waterman, Patterson, 2009). What can stay in a cache from one pass to the next
is not counted, and communication takes no time at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from strategies.memory import kv_bytes_per_token, window_of
from strategies.placement import Placement
from strategies.shapes import DTYPE_BYTES, ModelShape

CALIBRATED, DATASHEET = "calibrated", "datasheet"
# Engines whose passes hold prompts or one token a request, never both: prefill and decode cannot
# hide each other.
SEPARATE = frozenset({"torch", "transformers", "deepspeed"})


@dataclass(frozen=True, slots=True)
class Rates:
    """What one device can do at most in one dtype.

    memory: bytes/s. flops: operations/s, dense. cache_bytes: what may stay in its caches.
    """

    memory: float
    flops: float
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What one device can do at most.

    hbm: bytes/s of its memory. flops: dtype -> operations/s, dense. cache_bytes: what may stay in
    its caches. source: calibrated or datasheet.
    """

    hbm: float
    flops: Mapping[str, float]
    cache_bytes: int
    source: str

    def rates(self, dtype: str) -> Rates | None:
        """The rates in `dtype` (float16 runs as bfloat16 does), None where they are unknown."""
        alias = {"float16": "bfloat16"}.get(dtype, dtype)
        flops = self.flops.get(dtype) or self.flops.get(alias)
        return Rates(self.hbm, flops, self.cache_bytes) if flops else None


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed batch: `requests` of `input_len` tokens in, `output_len` out, `seats` at a time."""

    input_len: int
    output_len: int
    requests: int
    seats: int

    @property
    def in_flight(self) -> int:
        """Most requests at a time."""
        return min(self.seats, self.requests)

    @property
    def output_tokens(self) -> int:
        """Tokens that are made."""
        return self.requests * self.output_len

    @property
    def waves(self) -> int:
        """Requests that the fullest seat serves, one after another."""
        return -(-self.requests // self.in_flight)

    @property
    def rounds(self) -> float:
        """Decode passes of the fullest seat; a request's first token comes from its prefill."""
        return (self.output_len - 1) * max(1.0, self.requests / self.in_flight)

    def context(self, window: int | None = None) -> float:
        """Mean tokens of KV that a decode pass reads for a request in a layer: input_len for the
        second token, one more for each next. With a window, no more than what it holds beside the
        pass's own token."""
        passes, first = max(self.output_len - 1, 1), self.input_len
        if window is None:
            return first + (passes - 1) / 2
        return _capped_sum(first, first + passes, window - 1) / passes

    def pairs(self, window: int | None = None) -> int:
        """Tokens that the tokens of a prompt attend to in a layer, themselves included."""
        n = self.input_len
        return _capped_sum(1, n + 1, n if window is None else window)


def _capped_sum(start: int, stop: int, cap: int) -> int:
    """The sum of min(i, cap) over start <= i < stop."""
    turn = min(max(cap, start), stop)
    return (start + turn - 1) * (turn - start) // 2 + (stop - turn) * cap


@dataclass(frozen=True, slots=True)
class Stage:
    """What one rank of a pipeline stage reads and computes at least.

    weight_bytes: in every pass. kv_bytes: of one token. token_flops, head_flops: of a token, of a
    sampled one (2 a parameter of a matrix). attention_flops: of a token and a token of its context.
    windows: (window, layers) of those that have it, None for all tokens.
    """

    weight_bytes: int
    kv_bytes: int
    token_flops: int
    head_flops: int
    attention_flops: int
    windows: tuple[tuple[int | None, int], ...] = ((None, 1),)

    def context(self, load: Closed) -> float:
        """Mean tokens of KV that a decode pass reads for a request, over its layers."""
        return self.over_layers(load.context)

    def over_layers(self, of_window: Callable[[int | None], float]) -> float:
        """The mean over its layers of a function of their windows."""
        layers = sum(count for _, count in self.windows)
        return sum(count * of_window(window) for window, count in self.windows) / layers

    def prefill_flops(self, load: Closed) -> float:
        """Operations of all prompts, with causal attention; one token of each is sampled."""
        attention = self.attention_flops * self.over_layers(load.pairs)
        return load.requests * (load.input_len * self.token_flops + self.head_flops + attention)

    def decode_flops(self, tokens: float, context: float) -> float:
        """Operations of `tokens` decoded tokens that attend to `context` tokens each."""
        return tokens * (self.token_flops + self.head_flops + context * self.attention_flops)

    def decode_bytes(self, requests: float, context: float) -> float:
        """Weights and KV that a decode pass of `requests` reads."""
        return self.weight_bytes + requests * context * self.kv_bytes

    def pass_s(self, requests: float, context: float, rates: Rates) -> float:
        """Seconds that a decode pass takes at least."""
        read = max(self.decode_bytes(requests, context) - rates.cache_bytes, 0.0)
        return max(read / rates.memory, self.decode_flops(requests, context) / rates.flops)

    def weights_s(self, rates: Rates) -> float:
        """Seconds that a pass takes at least to stream the weights, whatever else it holds."""
        return max(self.weight_bytes - rates.cache_bytes, 0) / rates.memory


def stages_of(placement: Placement, model: ModelShape, dtype: str) -> tuple[Stage, ...]:
    """The pipeline stages of one replica, each as its first rank sees it."""
    ranks = [placement.rank_at({"pp": index}) for index in range(placement.degree("pp"))]
    return tuple(_stage(placement, model, rank, DTYPE_BYTES[dtype]) for rank in ranks)


def _stage(placement: Placement, model: ModelShape, rank: int, dtype_bytes: int) -> Stage:
    read = dict(_parameters_read(placement, model, rank))
    shapes = dict(model.parameters())
    head = read.get(model.head_name, 0)
    matrices = sum(n for name, n in read.items() if len(shapes[name]) == 2) - head
    layers = [layer for stage in placement.stages_of(rank) for layer in stage.layers]
    q_shape = (model.num_heads * model.head_dim, model.hidden_size)
    q = placement.shard("model.layers.0.self_attn.q_proj.weight", q_shape, rank, stored=False)[0]
    return Stage(
        weight_bytes=sum(read.values()) * dtype_bytes,
        kv_bytes=kv_bytes_per_token(placement, model, rank, dtype_bytes),
        token_flops=2 * matrices,
        head_flops=2 * head,
        # queries times keys, and weights times values: 2 operations an element each
        attention_flops=4 * len(layers) * (q.stop - q.start),
        windows=tuple(Counter(window_of(model, layer) for layer in layers).items()),
    )


def _parameters_read(
    placement: Placement, model: ModelShape, rank: int
) -> Iterator[tuple[str, int]]:
    """(name, elements) of the parameters that a pass reads whole.

    The embedding counts where it is the head too: looking a token up reads a row of it alone.
    """
    is_last = any(stage.head for stage in placement.stages_of(rank))
    for name, shape in model.parameters():
        is_head = is_last and name == model.head_name
        if placement.holds(name, rank, model) and (name != "model.embed_tokens.weight" or is_head):
            box = placement.shard(name, shape, rank, stored=False)
            yield name, math.prod(side.stop - side.start for side in box)


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

    Prompts stream the weights too. separate: no pass holds both prompts and decoded tokens, so each
    wave of requests takes a pass of prompts alone. Else only the first pass of all must do without
    decoded tokens, and decode passes can compute prompts for as long as they read.
    """
    passes = load.waves if separate else 1
    streams = [passes * stage.weights_s(rates) for stage in stages]
    prompts = [stage.prefill_flops(load) / rates.flops for stage in stages]
    reading = [(stage, stage.context(load)) for stage in stages]

    def bound(micro_batches: int) -> Bound:
        requests = load.in_flight / micro_batches
        decodes = [load.rounds * stage.pass_s(requests, read, rates) for stage, read in reading]
        flops = [
            load.rounds * stage.decode_flops(requests, read) / rates.flops
            for stage, read in reading
        ]
        ways = [
            _Way(stream, prompt, micro_batches * decode, micro_batches * flop)
            for stream, prompt, decode, flop in zip(streams, prompts, decodes, flops, strict=True)
        ]
        ways.append(_Way(sum(streams), max(prompts) / micro_batches, sum(decodes), sum(flops)))
        bounds = (Bound(passes, way.prefill_s(separate), way.decode, micro_batches) for way in ways)
        return max(bounds, key=lambda one: one.seconds)

    return min(map(bound, range(1, load.in_flight + 1)), key=lambda one: one.seconds)
