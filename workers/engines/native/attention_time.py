"""How long the attention of a step takes when it runs by itself, and how much it computes.

A graph of a decode step has no names of operations, and attention in plain torch is made of the
same kernels as the rest. So after an observed run its attention is run once more, alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import torch

from workers.clock import elapsed_ms, moment
from workers.device import synchronize
from workers.engines.native.cache import PagedCache
from workers.engines.native.contexts import Context, DecodeContext, prefill_context, slots_of
from workers.engines.native.loading import Layer
from workers.engines.native.model import Decoder
from workers.engines.native.scheduler import Sequence as Served
from workers.engines.native.scheduler import Step
from workers.records import DECODE, PREFILL, AttentionTime

REPEATS = 5  # of which the mean is taken


def attention_times(
    decoder: Decoder, cache: PagedCache, steps: Sequence[Step], width: int
) -> tuple[AttentionTime, ...]:
    """Of the fullest step of each phase in `steps`, which are those of a whole run: that of most
    tokens, and of several such the last. width: pages that a row of the decoding tables has."""
    found: dict[str, Step] = {}
    for step in steps:
        if step.phase not in found or step.num_tokens >= found[step.phase].num_tokens:
            found[step.phase] = step
    return tuple(
        _timed(decoder, cache, found[phase], _seen(found[phase], steps), width)
        for phase in (PREFILL, DECODE)
        if phase in found
    )


def _seen(step: Step, steps: Sequence[Step]) -> list[tuple[Served, int, int]]:
    """Each sequence of a step, with its new tokens there and the length of its context, these
    included."""
    if step.chunks:
        return [(one.sequence, one.count, one.start + one.count) for one in step.chunks]
    before = (one.sampled for one in steps if one.index < step.index)
    made = Counter(chain.from_iterable(before))
    return [(one, 1, len(one.request.prompt) + made[one]) for one in step.sampled]


def _timed(
    decoder: Decoder,
    cache: PagedCache,
    step: Step,
    seen: Sequence[tuple[Served, int, int]],
    width: int,
) -> AttentionTime:
    device = next(iter(cache.keys.values())).device
    context = _prefill(seen, device) if step.chunks else _decode(seen, device, width)
    layers = decoder.layers[step.phase]
    first = next(iter(layers))
    queries = _queries(layers[first], cache, first, seen)  # every layer has as many heads

    def once() -> None:
        for index, layer in layers.items():
            keys, values = cache.keys[index], cache.values[index]
            context.attend(decoder.attention, queries, keys, values, layer.window)

    # A decode step is short: without a graph the host would be what takes the time.
    call = _captured(once) if device.type == "cuda" and not step.chunks else once
    operations = sum(
        4 * queries.shape[1] * queries.shape[2] * _pairs(seen, layer.window)
        for layer in layers.values()
    )
    return AttentionTime(step.phase, _seconds(call, device), operations)


def _queries(
    layer: Layer, cache: PagedCache, index: int, seen: Sequence[tuple[Served, int, int]]
) -> torch.Tensor:
    """Ones: [new tokens, heads, D] of a layer."""
    kv_heads, dim = cache.keys[index].shape[2:]
    heads = layer.qkv.outputs // dim - 2 * kv_heads
    return layer.input_norm.new_ones(sum(new for _, new, _ in seen), heads, dim)


def _decode(seen: Sequence[tuple[Served, int, int]], device: torch.device, width: int) -> Context:
    tables = torch.zeros(len(seen), width, dtype=torch.int32)
    for table, (sequence, _, _) in zip(tables, seen, strict=True):
        table[: len(sequence.pages)] = torch.tensor(sequence.pages, dtype=torch.int32)
    lengths = torch.tensor([length for _, _, length in seen], dtype=torch.int32)
    return DecodeContext(tables.to(device), lengths.to(device))


def _prefill(seen: Sequence[tuple[Served, int, int]], device: torch.device) -> Context:
    counts = np.array([new for _, new, _ in seen])
    slots = [slots_of(sequence.pages)[:length] for sequence, _, length in seen]
    return prefill_context(counts, slots, lambda array: torch.from_numpy(array).to(device))


def _pairs(seen: Sequence[tuple[Served, int, int]], window: int | None) -> int:
    """Pairs of a new token and one that it sees."""
    lengths = (np.arange(length - new, length) + 1 for _, new, length in seen)
    return sum(int(np.minimum(one, window or one).sum()) for one in lengths)


def _captured(call: Callable[[], None]) -> Callable[[], None]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph.replay


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    call()
    synchronize(device)
    began = moment(device)
    for _ in range(REPEATS):
        call()
    ended = moment(device)
    synchronize(device)
    return elapsed_ms(began, ended) / 1e3 / REPEATS
