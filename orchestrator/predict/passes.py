"""The time of one forward pass through one pipeline stage, in its parts."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from orchestrator.analysis.roofline import Rates, Stage, stages_of
from orchestrator.node import datasheet
from orchestrator.plan.precision import not_run
from orchestrator.predict.factors import EngineFactors, Few
from orchestrator.predict.hardware import EAGER, GRAPH, Hardware, Span
from orchestrator.predict.parts import Parts
from strategies.memory import Budget
from strategies.peer_sums import way_of
from strategies.placement import Placement
from strategies.precision import Precision
from strategies.shapes import ModelShape
from strategies.traffic import FLAGGED, ONE_SHOT, Traffic, step

DECODE, PREFILL = "decode", "prefill"
# What a rank waits for in these is another stage: bubble, and no transfer of its own.
OF_OTHERS = frozenset({"recv"})


class UnknownLink(Exception):
    """A collective crosses a link of which nothing is known; says which."""


class Moved(NamedTuple):
    """Of a pass. seconds: in which data move, with nothing in the way. calls: collectives that wait
    for a last rank. fused: of these, sums whose kernels have the norm behind them, and which take
    `fused_seconds`."""

    seconds: float
    calls: int
    fused: int
    fused_seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a pass does for one stage.

    tokens: rows that go through the layers. sampled: of these, those that logits are made of.
    read: tokens of KV that are read, of all its requests. pairs: (token, token that it attends to).
    """

    phase: str
    tokens: float
    sampled: float
    read: float = 0.0
    pairs: float = 0.0


@dataclass(frozen=True)
class Placed:
    """A placement of a model on GPUs, and what follows from it whatever the engine. allreduce: what
    sums over tp, as `--allreduce` has it. early: whether `--products` is triton and `--pdl` on."""

    placement: Placement
    model: ModelShape
    precision: Precision
    hardware: Hardware
    allreduce: str = "nccl"
    early: bool = False

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Those of one replica."""
        return stages_of(self.placement, self.model, self.precision)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """How many each stage has."""
        return tuple(sum(count for _, count in stage.windows) for stage in self.stages)

    @cached_property
    def groups(self) -> dict[str, Span]:
        """Axis -> ranks of a group, and the most nodes and islands that one of its groups spans."""
        size, joined = self.hardware.gpus_per_node, self._joined
        return {
            axis: Span(degree, *(_span(self.placement, axis, each) for each in (size, joined)))
            for axis, degree in self.placement.mesh
            if degree > 1
        }

    @property
    def _joined(self) -> int:
        return self.hardware.fabric.joined or self.placement.num_ranks

    @cached_property
    def hops(self) -> tuple[Span, ...]:
        """Stage -> what a send from one of its ranks to the next stage spans at most."""
        far, apart = self._leaves(self.hardware.gpus_per_node), self._leaves(self._joined)
        return tuple(
            Span(2, 1 + (index in far), 1 + (index in apart)) for index in range(len(self.stages))
        )

    def _leaves(self, size: int) -> set[int]:
        """Stages of which a rank sends out of its `size` neighbours."""
        inner, total = _stride(self.placement, "pp"), self.placement.num_ranks
        senders = range(total - inner)
        return {
            rank // inner % len(self.stages)
            for rank in senders
            if rank // size != (rank + inner) // size
        }

    @cached_property
    def like(self) -> tuple[int, ...]:
        """Stage -> the first one that takes as long for the same work: itself for the first and the
        last one, which have the embedding and the head."""
        last, firsts = len(self.stages) - 1, dict[object, int]()
        return tuple(
            firsts.setdefault((stage, *where) if 0 < index < last else index, index)
            for index, (stage, *where) in enumerate(
                zip(self.stages, self.layers, self.hops, strict=True)
            )
        )

    @cached_property
    def kinds(self) -> Counter[int]:
        """The first stage of each kind -> how many of that there are."""
        return Counter(self.like)

    @cached_property
    def rates(self) -> dict[str, Rates | None]:
        """Phase -> what a GPU does at most, in the type of its matrices."""
        return {
            phase: self.hardware.ceilings.rates(
                "float8_e4m3fn" if self.precision.is_fp8(phase) else self.precision.dtype
            )
            for phase in (DECODE, PREFILL)
        }

    @cached_property
    def budgets(self) -> dict[int, Budget]:
        """Prompt tokens of a pass -> bytes on the fullest GPU, as far as they were worked out."""
        return {}

    @cached_property
    def _transfers(self) -> dict[tuple[int, int, int, str], Moved]:
        return {}

    def transfer(self, index: int, work: Work, mode: str) -> Moved:
        """What the collectives of a pass take. Raises UnknownLink."""
        tokens, sampled = max(round(work.tokens), 1), max(round(work.sampled), 1)
        key = (index, tokens, sampled, mode)
        if key not in self._transfers:
            self._transfers[key] = self._transfer(*key)
        return self._transfers[key]

    def _transfer(self, index: int, tokens: int, sampled: int, mode: str) -> Moved:
        rank, seconds, calls = self.placement.rank_at({"pp": index}), 0.0, 0
        fused, fused_seconds = 0, 0.0
        width = self.precision.dtype_bytes
        for one in step(self.placement, self.model, rank, tokens, sampled, width):
            if one.op not in OF_OTHERS:
                every = one.calls * self._each(index, one, mode)
                seconds += every
                calls += one.calls if one.axis == "tp" else 0
                if self._has_norm(one):
                    fused, fused_seconds = fused + one.calls, fused_seconds + every
        return Moved(seconds, calls, fused, fused_seconds)

    def _has_norm(self, one: Traffic) -> bool:
        """Whether it is a sum whose kernel has the norm behind it: one of vLLM's, and one-shot
        between two."""
        if not _is_sum(one):
            return False
        span, size = self.groups[one.axis], one.bytes / one.calls
        ours = span.ranks == 2 and way_of(self.allreduce, 2, size) in (ONE_SHOT, FLAGGED)
        theirs = self.hardware.fabric.fused_sum_seconds(self.allreduce, span, size)
        return ours or theirs is not None

    def _each(self, index: int, one: Traffic, mode: str) -> float:
        span = self.groups[one.axis]
        if one.op == "send":
            _, nodes, islands = self.hops[index]
            span = Span(span.ranks, nodes, islands)
        fabric, size = self.hardware.fabric, one.bytes / one.calls
        if _is_sum(one):
            found = fabric.peer_sum_seconds(self.allreduce, span, size)
            if found is not None:
                return found
        found = fabric.seconds(one.op, span, size, mode)
        if found is None:
            inside, between = "GPUs of a node; give a --fabric", "nodes; give its rate as --network"
            where = between if span.nodes > 1 and fabric.link else inside
            raise UnknownLink(
                f"nothing is known of the link of {self.hardware.name} between {where}"
            )
        return found


@dataclass(frozen=True)
class Setting:
    """What passes are worked out for: a placement on GPUs, under an engine."""

    placed: Placed
    factors: EngineFactors

    @cached_property
    def not_run(self) -> str | None:
        """See `precision.not_run`."""
        on, gpu = self.placed, self.placed.hardware.name
        engine, capability = self.factors.engine, datasheet.capability(gpu)
        return not_run(on.placement, on.model, on.precision, engine, gpu, capability)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those of one replica."""
        return self.placed.stages

    @cached_property
    def _passes(self) -> dict[tuple[int, Work], Parts]:
        return {}

    def pass_of(self, index: int, work: Work) -> Parts:
        """The parts of one pass through the stage `index`. Raises UnknownLink."""
        key = (index, work)
        if key not in self._passes:
            self._passes[key] = self._pass(index, work)
        return self._passes[key]

    def through(self, work: Work) -> tuple[list[float], Parts]:
        """Seconds of a pass through each stage, and the parts of all of them. Raises
        UnknownLink."""
        each, total = {}, Parts()
        for index, count in self.placed.kinds.items():
            one = self.pass_of(index, work)
            each[index], total = one.seconds, total + one.times(count)
        return [each[index] for index in self.placed.like], total

    def few(self, tokens: float) -> Few | None:
        """The factors of a pass of so few tokens that it has other kernels; None: it has not. These
        kernels are of types of 16 and 8 bits."""
        few, placed = self.factors.few, self.placed
        has = placed.early and placed.precision.dtype_bytes == 2
        return few if few and has and tokens <= few.rows else None

    def _library(self, work: Work) -> float:
        """By how much the library's products in FP8 stream slower than those in 16 bits. This
        project's own kernels read few rows of either alike; of vLLM's nothing is known."""
        few, placed = self.factors.few, self.placed
        is_its = few is not None and work.tokens > few.rows
        return placed.hardware.fp8_stream if is_its and placed.precision.is_fp8(work.phase) else 1.0

    def _pass(self, index: int, work: Work) -> Parts:
        factors = self.factors
        eager = work.phase == PREFILL and work.tokens > factors.graph_tokens
        moved = self.placed.transfer(index, work, EAGER if eager else GRAPH)
        few = self.few(work.tokens)
        gap_s = factors.eager_gap_s if eager else (few or factors).gap_s
        norms = sums = moved.fused * factors.norm_s
        others = moved.seconds
        if few is not None and few.sum_s is not None:  # products hand those with norms over
            others, sums = moved.seconds - moved.fused_seconds, moved.fused * few.sum_s
        around = Parts(
            transfer=others * factors.collective + sums,
            wait=moved.calls * factors.skew_s,
            gaps=self.placed.layers[index] * gap_s,
        )
        return self._compute(index, work, norms) + around

    def _compute(self, index: int, work: Work, norms: float) -> Parts:
        """Matrices, attention and small kernels, one after another, without `norms`: seconds of
        those that are in the kernels of sums.

        Streaming weights and computing with them overlap, but not wholly: (a^p + b^p)^(1/p), which
        is the roofline's maximum for a large p and the sum for p = 1.
        """
        stage, factors, rates = self.stages[index], self.factors, self.placed.rates[work.phase]
        assert rates is not None, "checked before anything is predicted"
        few = self.few(work.tokens) or factors
        read = stage.streamed if work.phase == PREFILL else stage.weight_bytes
        weights, kv = read / rates.memory, work.read * stage.kv_bytes / rates.memory
        products = (work.tokens * stage.token_flops + work.sampled * stage.head_flops) / rates.flops
        attention = work.pairs * stage.attention_flops / rates.flops
        power = factors.overlap
        streaming = weights / (few.stream * self._library(work))
        computing = products / factors.math
        matrices = (streaming**power + computing**power) ** (1 / power)
        spent = matrices + kv / factors.kv + attention / factors.math
        spent += max(self.placed.layers[index] * few.layer_s - norms, 0.0)
        arithmetic = max(products + attention - weights - kv, 0.0)
        return Parts(weights, kv, arithmetic, spent - weights - kv - arithmetic)


def _is_sum(one: Traffic) -> bool:
    return (one.op, one.axis) == ("all_reduce", "tp")


def _span(placement: Placement, axis: str, size: int) -> int:
    """The most nodes of `size` GPUs that a group spans: ranks fill them in order."""
    degree, total = placement.degree(axis), placement.num_ranks
    if total <= size:
        return 1
    stride = _stride(placement, axis)
    firsts = (rank for rank in range(total) if rank // stride % degree == 0)
    last = (degree - 1) * stride
    return max((r + last) // size - r // size + 1 for r in firsts)


def _stride(placement: Placement, axis: str) -> int:
    """From a rank to the next one along an axis of the mesh; 1 where it has no such axis."""
    names = [name for name, _ in placement.mesh]
    inner = placement.mesh[names.index(axis) + 1 :] if axis in names else ()
    return math.prod(number for _, number in inner)
