"""The least time that a placement needs for a load, whatever the engine: pure arithmetic.

A bound must be a bound. A pass over a stage streams its weights once and each request's keys and
values once, so it takes at least max(bytes / memory bandwidth, operations / arithmetic rate): the
roofline (Williams, Waterman, Patterson, 2009). What can stay in a cache from one pass to the next
is not counted, and communication takes no time at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from strategies.memory import kv_bytes_per_token, window_of
from strategies.placement import Placement, needs
from strategies.precision import Precision
from strategies.shapes import ModelShape

CALIBRATED, DATASHEET = "calibrated", "datasheet"


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
class Kind:
    """`requests` of `input_len` tokens in, `output_len` out."""

    input_len: int
    output_len: int
    requests: int

    @property
    def passes(self) -> int:
        """Decode passes that each takes; a request's first token comes from its prefill."""
        return max(self.output_len - 1, 0)

    def context(self, window: int | None = None) -> float:
        """Mean tokens of KV that a decode pass reads for a request in a layer: input_len for the
        second token, one more for each next. With a window, no more than what it holds beside the
        pass's own token."""
        passes, first = max(self.passes, 1), self.input_len
        if window is None:
            return first + (passes - 1) / 2
        return _capped_sum(first, first + passes, window - 1) / passes

    def pairs(self, window: int | None = None) -> int:
        """Tokens that the tokens of a prompt attend to in a layer, themselves included."""
        n = self.input_len
        return _capped_sum(1, n + 1, n if window is None else window)


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed batch, `seats` requests at a time; those of equal lengths are one kind.

    in_turn: decode passes of the longest chain of requests that wait for one another.
    """

    kinds: tuple[Kind, ...]
    seats: int
    in_turn: int = 0

    @classmethod
    def equal(cls, input_len: int, output_len: int, requests: int, seats: int) -> Closed:
        """Requests that are all alike."""
        return cls((Kind(input_len, output_len, requests),), seats)

    @classmethod
    def of(cls, lengths: Iterable[tuple[int, int]], seats: int, in_turn: int = 0) -> Closed:
        """Requests of these tokens in and out."""
        counted = Counter(lengths)
        kinds = tuple(Kind(*both, requests) for both, requests in counted.items())
        return cls(kinds, seats, in_turn)

    @property
    def requests(self) -> int:
        """Of all kinds."""
        return sum(kind.requests for kind in self.kinds)

    @property
    def in_flight(self) -> int:
        """Most requests at a time."""
        return min(self.seats, self.requests)

    @property
    def output_tokens(self) -> int:
        """Tokens that are made."""
        return sum(kind.requests * kind.output_len for kind in self.kinds)

    @property
    def decoded(self) -> int:
        """Tokens that decode passes make."""
        return sum(kind.requests * kind.passes for kind in self.kinds)

    @property
    def waves(self) -> int:
        """Requests that the fullest seat serves, one after another."""
        return -(-self.requests // self.in_flight)

    @property
    def rounds(self) -> float:
        """Decode passes that it takes if each has all seats full."""
        return self.decoded / self.in_flight

    @property
    def longest(self) -> Kind:
        """That of which each request takes most decode passes."""
        return max(self.kinds, key=lambda kind: kind.passes)

    @property
    def least_passes(self) -> int:
        """Decode passes that it takes however many requests one serves."""
        return max(self.in_turn, self.longest.passes)


def _capped_sum(start: int, stop: int, cap: int) -> int:
    """The sum of min(i, cap) over start <= i < stop."""
    turn = min(max(cap, start), stop)
    return (start + turn - 1) * (turn - start) // 2 + (stop - turn) * cap


@dataclass(frozen=True, slots=True)
class Stage:
    """What one rank of a pipeline stage reads and computes at least.

    weight_bytes, prompt_weight_bytes: in every pass with decoded tokens, with prompts. kv_bytes: of
    one token. token_flops, head_flops: of a token, of a sampled one (2 a parameter of a matrix).
    attention_flops: of a token and a token of its context.
    windows: (window, layers) of those that have it, None for all tokens.
    """

    weight_bytes: int
    kv_bytes: int
    token_flops: int
    head_flops: int
    attention_flops: int
    windows: tuple[tuple[int | None, int], ...] = ((None, 1),)
    prompt_weight_bytes: int | None = None  # None: as in decoding

    def context(self, load: Closed) -> float:
        """Mean tokens of KV that a decode pass reads for a request, over its layers."""
        read = sum(kind.requests * kind.passes * self.context_of(kind) for kind in load.kinds)
        return read / load.decoded if load.decoded else 0.0

    def context_of(self, kind: Kind) -> float:
        """The same, of requests of one kind."""
        return self.over_layers(kind.context)

    def over_layers(self, of_window: Callable[[int | None], float]) -> float:
        """The mean over its layers of a function of their windows."""
        layers = sum(count for _, count in self.windows)
        return sum(count * of_window(window) for window, count in self.windows) / layers

    def prefill_flops(self, load: Closed) -> float:
        """Operations of all prompts, with causal attention; one token of each is sampled."""
        return sum(
            kind.requests
            * (
                kind.input_len * self.token_flops
                + self.head_flops
                + self.attention_flops * self.over_layers(kind.pairs)
            )
            for kind in load.kinds
        )

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
        """Seconds that a pass with prompts takes at least to stream the weights, whatever else it
        holds."""
        return max(self.streamed - rates.cache_bytes, 0) / rates.memory

    @property
    def streamed(self) -> int:
        """Bytes of weights in a pass with prompts."""
        mine = self.prompt_weight_bytes
        return self.weight_bytes if mine is None else mine


@lru_cache(maxsize=1024)
def stages_of(placement: Placement, model: ModelShape, precision: Precision) -> tuple[Stage, ...]:
    """The pipeline stages of one replica, each as its first rank sees it."""
    ranks = [placement.rank_at({"pp": index}) for index in range(placement.degree("pp"))]
    return tuple(_stage(placement, model, rank, precision) for rank in ranks)


def _stage(placement: Placement, model: ModelShape, rank: int, precision: Precision) -> Stage:
    slices = dict(_parameters_read(placement, model, rank))
    read = {name: math.prod(sizes) for name, sizes in slices.items()}
    shapes = dict(model.parameters())
    head = read.get(model.head_name, 0)
    matrices = sum(n for name, n in read.items() if len(shapes[name]) == 2) - head
    layers = [layer for stage in placement.stages_of(rank) for layer in stage.layers]
    q_shape = (model.num_heads * model.head_dim, model.hidden_size)
    q = placement.shard("model.layers.0.self_attn.q_proj.weight", q_shape, rank, stored=False)[0]
    decode, prefill = (
        sum(precision.bytes_of(model, *one, phase) for one in slices.items())
        for phase in ("decode", "prefill")
    )
    return Stage(
        weight_bytes=decode,
        prompt_weight_bytes=prefill,
        kv_bytes=kv_bytes_per_token(placement, model, rank, precision),
        token_flops=2 * matrices,
        head_flops=2 * head,
        # queries times keys, and weights times values: 2 operations an element each
        attention_flops=4 * len(layers) * (q.stop - q.start),
        windows=tuple(Counter(window_of(model, layer) for layer in layers).items()),
    )


def _parameters_read(
    placement: Placement, model: ModelShape, rank: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, sizes of the slice) of the parameters that a pass reads whole.

    The embedding counts where it is the head too: looking a token up reads a row of it alone.
    """
    stages = placement.stages_of(rank)
    is_last = any(stage.head for stage in stages)
    for name, shape in model.parameters():
        is_head = is_last and name == model.head_name
        if needs(stages, name, model) and (name != "model.embed_tokens.weight" or is_head):
            box = placement.shard(name, shape, rank, stored=False)
            yield name, tuple(side.stop - side.start for side in box)
