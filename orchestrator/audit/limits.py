"""What a deployment can do at most, from its bytes and operations and the card's data sheet.

A limit must be a limit: whatever is not known, or can be hidden, takes no time and no room.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from orchestrator.analysis.least import least_decode_s
from orchestrator.analysis.roofline import Ceilings, Closed, Rates, Stage, stages_of
from orchestrator.audit.claims import Claim
from strategies import Layout, ModelShape, Placement, memory, traffic
from strategies.precision import Precision

MOST_REQUESTS = 65536
FP8_BITS = 8.0


@dataclass(frozen=True, slots=True)
class Card:
    """One kind of GPU. memory: bytes. link: bytes/s that it sends to others at most. host_link:
    bytes/s that it reads from main memory at most. None: not known. bridge: cards that `link` joins
    where it is no more than a bridge; beyond them bytes go the way of `host_link`.
    """

    name: str
    ceilings: Ceilings
    memory: int | None
    link: float | None
    host_link: float | None = None
    bridge: int | None = None

    def link_of(self, ranks: int) -> float | None:
        """Bytes/s that it sends at most within a group of so many."""
        return self.host_link if self.bridge and ranks > self.bridge else self.link


@dataclass(frozen=True)
class Placed:
    """A model under a layout, in 16 or 32 bits as `dtype` says: what every card and every number of
    bits has in common."""

    layout: Layout
    model: ModelShape
    dtype: str

    @property
    def placement(self) -> Placement:
        """Of the layout."""
        return self.layout.placement

    @property
    def precision(self) -> Precision:
        """Of weights, activations and KV."""
        return Precision(self.dtype)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Of one replica."""
        return stages_of(self.placement, self.model, self.precision)

    @property
    def ranks(self) -> list[int]:
        """The first rank of each of these stages."""
        return [self.placement.rank_at({"pp": index}) for index in range(len(self.stages))]

    @cached_property
    def weights(self) -> tuple[int, ...]:
        """Bytes of weights on a GPU of each stage."""
        return tuple(
            memory.weight_bytes(self.placement, self.model, rank, self.precision)
            for rank in self.ranks
        )

    def brought_s(self, card: Card) -> float:
        """Seconds in which a rank gets from others what it reads in a pass and does not hold, as
        under ZeRO-3."""
        link = card.link_of(self.placement.num_ranks)
        read = zip(self.stages, self.weights, strict=True)
        missing = max(max(stage.weight_bytes - held, 0) for stage, held in read)
        return missing / link if link else 0.0

    def sent_s(self, card: Card, tokens: int, sampled: int, width: int) -> float:
        """Seconds that a rank has to send for at least in a forward pass, the most of any rank;
        width: bytes of an activation. Of an all-reduce it sends its own message once, as a switch
        may make the sum. A link of which nothing is known takes no time."""
        return max(sum(self._sent_s(card, rank, tokens, sampled, width)) for rank in self.ranks)

    def _sent_s(
        self, card: Card, rank: int, tokens: int, sampled: int, width: int
    ) -> Iterator[float]:
        for one in traffic.step(self.placement, self.model, rank, tokens, sampled, width):
            ranks = self.placement.degree(one.axis)
            factor, link = traffic.sent_factor(one.op, ranks) or 0.0, card.link_of(ranks)
            yield one.bytes * min(factor, 1.0) / link if link else 0.0


@dataclass(frozen=True)
class Deployed:
    """What a claim is about, on cards of one kind.

    bits: of every weight. kv_bits: of an element of a key or a value. lengths: tokens in and out of
    each request; None: not known. prefix_hits: share of a prompt that is found in a cache, whose KV
    is then held and read once for all requests. tokens_per_pass: that a request gets of a decode
    pass; above 1 where tokens are guessed and verified.
    """

    placed: Placed
    card: Card
    bits: float
    kv_bits: float
    lengths: tuple[int, int] | None = None
    prefix_hits: float = 0.0
    tokens_per_pass: float = 1.0

    @classmethod
    def of(cls, claim: Claim, placed: Placed, card: Card) -> Deployed:
        """What `claim` is about, under one of the layouts and on one of the cards it may mean."""
        return cls(
            placed,
            card,
            bits=claim.weight_bits,
            kv_bits=claim.cache_bits,
            lengths=claim.lengths,
            prefix_hits=claim.prefix_hits,
            tokens_per_pass=claim.tokens_per_pass,
        )

    def with_bits(self, bits: float) -> Deployed:
        """The same in other weights."""
        return replace(self, bits=bits)

    # -- what is read and computed

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of a replica, in these bits; the cached part of prompts counts as weights."""
        return tuple(map(self._in_bits, self.placed.stages))

    def _in_bits(self, stage: Stage) -> Stage:
        kv_bytes = math.ceil(stage.kv_bytes * self.kv_bits / self._placed_bits)
        weights = self._weights_of(stage.weight_bytes)
        return replace(
            stage,
            kv_bytes=kv_bytes,
            weight_bytes=weights + self.cached * kv_bytes,
            prompt_weight_bytes=weights,
        )

    def _weights_of(self, placed: int) -> int:
        return math.ceil(placed * self.bits / self._placed_bits)

    @property
    def _placed_bits(self) -> int:
        return 8 * self.placed.precision.dtype_bytes

    @property
    def rates(self) -> Rates:
        """Of the card for weights of so many bits: arithmetic at the rate of BF16, from 8 bits down
        of FP8, and below 8 without a limit, as data sheets here have no such rates."""
        one = self.card.ceilings
        dtype = "bfloat16" if self.bits > FP8_BITS else "float8_e4m3fn"
        known = one.flops.get(dtype) if self.bits >= FP8_BITS else None
        return Rates(one.hbm, known or math.inf, one.cache_bytes)

    # -- tokens of a request

    @property
    def computed(self) -> int:
        """Tokens of a prompt that are computed: at least its last one."""
        prompt = self.lengths[0] if self.lengths else 0
        return prompt - self.cached

    @property
    def cached(self) -> int:
        """Tokens of a prompt that are found in a cache."""
        prompt = self.lengths[0] if self.lengths else 0
        return min(int(prompt * self.prefix_hits), max(prompt - 1, 0))

    @property
    def held(self) -> int:
        """Tokens of KV that one request holds at its end; its last token needs none."""
        return sum(self.lengths) - 1 if self.lengths else 0

    def load(self, requests: int) -> Closed:
        """Of one replica: as many requests as are at once. Without lengths of no context."""
        output = self.lengths[1] if self.lengths else 2
        return Closed.equal(self.computed, output, requests, requests)

    # -- memory

    @cached_property
    def held_by_stage(self) -> list[tuple[int, int]]:
        """Bytes of weights, and of KV of a token, on a GPU of each stage."""
        weights = map(self._weights_of, self.placed.weights)
        return list(zip(weights, (stage.kv_bytes for stage in self.stages), strict=True))

    @property
    def fullest(self) -> tuple[int, int]:
        """Bytes of weights, and of KV of one request, on the GPU that needs most for both."""
        of_request = ((weights, self.held * kv) for weights, kv in self.held_by_stage)
        return max(of_request, key=sum)

    @property
    def needed(self) -> int:
        """Bytes that one request needs on the fullest GPU, without a reserve."""
        return sum(self.fullest)

    @property
    def fits(self) -> bool:
        """Whether weights, the KV of one request and the reserve fit; true where the card's memory
        is not known."""
        card = self.card.memory
        return card is None or self.needed + memory.RESERVE_BYTES <= card

    @property
    def seats(self) -> int:
        """Most requests that a replica holds at once, evenly spread over their lives."""
        if self.card.memory is None or not self.lengths:
            return MOST_REQUESTS
        tokens = self.computed + (self.lengths[1] - 1) / 2
        usable = self.card.memory - memory.RESERVE_BYTES
        free = min((usable - weights) / kv for weights, kv in self.held_by_stage if kv)
        return max(1, min(int((free - self.cached) / tokens), MOST_REQUESTS))

    # -- time

    @property
    def replicas(self) -> int:
        """Of the model."""
        return self.placed.placement.degree("dp")

    def token_s(self, concurrency: int) -> float:
        """Least seconds from one token of a request to its next."""
        requests = max(min(concurrency // self.replicas, self.seats), 1)
        load = self.load(requests)
        if not load.rounds:
            load = Closed.equal(self.computed, 2, requests, requests)
        decode = least_decode_s(self.stages, load, self.rates) / load.rounds
        return max(decode, self.sent_s(requests, requests)) / self.tokens_per_pass

    def speed(self, concurrency: int) -> float:
        """Most tokens/s of one request."""
        seconds = self.token_s(concurrency)
        return 1 / seconds if seconds else math.inf

    def first_token_s(self) -> float:
        """Least seconds to the first token of a request that has the GPUs for itself: its prompt's
        last part passes all stages, and the slowest stage computes all of it."""
        streamed = sum(stage.weights_s(self.rates) for stage in self.stages)
        return max(streamed, self.prompt_s(1), self.sent_s(self.computed, 1))

    def prompt_s(self, requests: int) -> float:
        """Least seconds to compute the prompts of `requests`, in the slowest stage."""
        return max(self._prompt_flops(stage, requests) for stage in self.stages) / self.rates.flops

    def _prompt_flops(self, stage: Stage, requests: int) -> float:
        whole = Closed.equal(self.computed + self.cached, 1, requests, requests)
        cached = Closed.equal(self.cached, 1, requests, requests)
        computed = stage.prefill_flops(whole) - stage.prefill_flops(cached)
        return computed + requests * stage.head_flops

    def throughput(self, concurrency: int) -> float:
        """Most tokens/s of all replicas together in a steady state. Prompts are computed while
        decode passes read; they count where lengths are known."""
        share, more = divmod(concurrency, self.replicas)
        each = {share + 1: more, share: self.replicas - more}
        return sum(count * self._of_replica(seats) for seats, count in each.items() if count)

    def _of_replica(self, requests: int) -> float:
        requests = min(requests, self.seats)
        if not requests:
            return 0.0
        load = self.load(requests)
        seconds = max(
            least_decode_s(self.stages, load, self.rates) / self.tokens_per_pass,
            self._computed_s(load) if self.lengths else 0.0,
            self._sent_in_all_s(load),
        )
        tokens = load.output_tokens if self.lengths else load.decoded
        return tokens / seconds if seconds else math.inf

    def _computed_s(self, load: Closed) -> float:
        """Operations of prompts and decoded tokens together, in the slowest stage."""
        return (
            max(
                self._prompt_flops(stage, load.requests)
                + stage.decode_flops(load.decoded, stage.context(load))
                for stage in self.stages
            )
            / self.rates.flops
        )

    def _sent_in_all_s(self, load: Closed) -> float:
        prompts = load.requests * self.computed
        passes = load.rounds / self.tokens_per_pass
        decoded = passes * self.sent_s(load.requests, load.requests)
        return decoded + (self.sent_s(prompts, load.requests) if prompts else 0.0)

    def sent_s(self, tokens: int, sampled: int) -> float:
        """Least seconds that a forward pass keeps the busiest link of a GPU."""
        width = 1 if self.bits <= FP8_BITS else self.placed.precision.dtype_bytes
        brought_s = self.placed.brought_s(self.card) * self.bits / self._placed_bits
        return self.placed.sent_s(self.card, tokens, sampled, width) + brought_s
