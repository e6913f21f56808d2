"""What attention takes by its kind: a decode step's in a CUDA graph, and that of prompts.

    python benchmarks/attention.py
    python benchmarks/attention.py --models llama-70b --tp 2 --kv-cache-dtype fp8 --out a.arrow

Kinds are those of --attention on one GPU, with the heads that a rank of a layout has. Under
"triton" and "flashinfer" prompts go through torch's FlashAttention-2. "fa3" and "flashinfer" are
measured where they are installed, on the GPUs that they are for.

Decoding is a graph of several layers, whose contexts lie in pages of their own, so that no cache of
the GPU has them when the graph is replayed. Its share is that of the KV read, of what reading
reaches on this GPU; the share of prompts is that of the operations, of what a BF16 product of 8192
x 8192 x 8192 reaches. Both are measured first. A time is a median over samples. "sdpa" copies
contexts out of their pages, and is left out of decoding where they have more than 2 GiB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from orchestrator.plan import models
from orchestrator.plan.devices import ATTENTION_NEEDS
from orchestrator.store.arrow_files import write_part
from strategies.shapes import ModelShape
from workers.device import device_name
from workers.engines.native.contexts import Context, DecodeContext, prefill_context, slots_of
from workers.engines.native.kernels import Attention, kernels_of
from workers.engines.native.pages import PAGE, pages_for
from workers.engines.node_sweep import memory, products
from workers.engines.node_timing import (
    GIB,
    GPU_SWEEP,
    MIB,
    Sweep,
    captured,
    dtype_name,
    median_us,
    release,
)
from workers.records import DECODE, PREFILL
from workers.rows import Table, column, row

KINDS = ("triton", "sdpa", "fa3", "flashinfer")
SWEEP = replace(GPU_SWEEP, samples=3, calls=4)
APART = 128 * MIB  # of KV that is read before the same is read again: more than an L2 holds
FLOW = 2 * GIB  # of KV that a graph reads, about
MOST_LAYERS = 256  # of a graph
MOST_COPIED = 2 * GIB
# (prompts, tokens of each that are new, tokens of each in all)
PROMPTS = ((1, 256, 256), (100, 256, 256), (1, 16_000, 16_000), (1, 2048, 16_000))


@row
class AttentionRow:
    """One kind in one case."""

    gpu: str = column("name of the GPU")
    phase: str = column("decode, or prefill")
    kind: str = column("how attention is computed, as --attention has it")
    model: str = column("whose heads these are")
    tp: int = column("ranks that share them", "1")
    heads: int = column("of a rank", "1")
    kv_heads: int = column("of a rank", "1")
    kv_cache_dtype: str = column("of keys and values in the cache")
    requests: int = column("that are computed together", "1")
    new_tokens: int = column("of each request", "tokens")
    context: int = column("of each request, the new ones included", "tokens")
    us: float = column("time of a layer", "us")
    rate: float = column("bytes of KV read (decode), or operations (prefill), per second", "1/s")
    bound: float = column("what reading reaches, or a BF16 product", "1/s")
    share: float = column("rate / bound", "1")


ATTENTION = Table("attention", AttentionRow)


class Heads(NamedTuple):
    """Those of one rank."""

    model: str
    tp: int
    heads: int
    kv_heads: int
    dim: int

    @classmethod
    def of(cls, model: ModelShape, tp: int) -> Heads:
        """Of a model over `tp` ranks."""
        kv_heads = max(1, model.num_kv_heads // tp)
        return cls(model.name, tp, model.num_heads // tp, kv_heads, model.head_dim)


class Case(NamedTuple):
    """What is computed together: so many requests, with so many new tokens and tokens in all."""

    phase: str
    requests: int
    new: int
    context: int

    @property
    def operations(self) -> int:
        """Of a head and an element of it: two products for each pair of a token and one seen."""
        before = self.context - self.new
        return 4 * self.requests * (self.new * before + self.new * (self.new + 1) // 2)

    def kv_bytes(self, heads: Heads, dtype: torch.dtype) -> int:
        """Of a layer."""
        return 2 * self.requests * self.context * heads.kv_heads * heads.dim * dtype.itemsize


def main() -> None:
    """Measure, print, write."""
    asked = _asked()
    if not torch.cuda.is_available():
        sys.exit("attention is measured on a GPU, and this machine has none")
    device = torch.device("cuda", 0)
    kinds = dict(_available(asked.kinds))
    dtype = {"auto": torch.bfloat16, "fp8": torch.float8_e4m3fn}[asked.kv_cache_dtype]
    shapes = [models.resolve(name, "dummy").shape for name in asked.models.split(",")]
    decode = [Case(DECODE, n, 1, context) for n in asked.requests for context in asked.contexts]
    rows = []
    with torch.inference_mode():
        bounds = bounds_of(device)
        for heads in (Heads.of(shape, tp) for shape in shapes for tp in asked.tp):
            for case in (*decode, *(Case(PREFILL, *prompt) for prompt in PROMPTS)):
                rows += measured(device, kinds, heads, case, dtype, bounds)
    print(told(rows))
    if asked.out is not None:
        write_part(asked.out, ATTENTION.make(rows))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--models", default="qwen2.5-32b,llama-70b")
    parser.add_argument("--tp", type=_numbers, default="1,2,4")
    parser.add_argument("--requests", type=_numbers, default="1,32,100,256", help="that decode")
    parser.add_argument("--contexts", type=_numbers, default="384,4096,32768", help="of each")
    parser.add_argument("--kv-cache-dtype", default="auto", choices=["auto", "fp8"])
    parser.add_argument("--out", type=Path, help="an Arrow file")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def _available(names: Sequence[str]) -> Iterator[tuple[str, Attention]]:
    """Those that can be, by name."""
    major, _ = torch.cuda.get_device_capability()
    for name in (name for name in names if major in ATTENTION_NEEDS.get(name, (major,))):
        try:
            yield name, kernels_of(name, fusion=True).attention
        except RuntimeError as error:
            print(error, file=sys.stderr)


# -- on the GPU


def bounds_of(device: torch.device, sweep: Sweep = SWEEP) -> dict[str, float]:
    """By phase: bytes read, and operations in BF16, per second."""
    read = next(memory(device, sweep))
    release(device)
    product = next(products(device, sweep))
    release(device)
    assert read.time_us is not None
    assert product.time_us is not None
    return {DECODE: 1e6 * read.bytes / read.time_us, PREFILL: 1e6 * product.flop / product.time_us}


def measured(
    device: torch.device,
    kinds: Mapping[str, Attention],
    heads: Heads,
    case: Case,
    dtype: torch.dtype,
    bounds: Mapping[str, float],
) -> Iterator[AttentionRow]:
    """A row for each kind that the case has room for."""
    size = case.kv_bytes(heads, dtype)
    work = size if case.phase == DECODE else case.operations * heads.heads * heads.dim
    for kind, attention in kinds.items():
        if case.phase == DECODE and kind == "sdpa" and size > MOST_COPIED:
            continue
        try:
            us = layer_us(device, attention, heads, case, dtype)
        except torch.OutOfMemoryError:
            continue
        finally:
            release(device)
        rate, bound = 1e6 * work / us, bounds[case.phase]
        yield AttentionRow(
            gpu=device_name(device),
            phase=case.phase,
            kind=kind,
            model=heads.model,
            tp=heads.tp,
            heads=heads.heads,
            kv_heads=heads.kv_heads,
            kv_cache_dtype=dtype_name(dtype),
            requests=case.requests,
            new_tokens=case.new,
            context=case.context,
            us=us,
            rate=rate,
            bound=bound,
            share=rate / bound,
        )


def layer_us(
    device: torch.device, attention: Attention, heads: Heads, case: Case, dtype: torch.dtype
) -> float:
    """Microseconds of a layer. Raises torch.OutOfMemoryError."""
    size = case.kv_bytes(heads, dtype)
    layers = max(4, min(MOST_LAYERS, FLOW // size)) if case.phase == DECODE else 1
    apart = max(1, min(layers, -(-APART // size)))
    pages = apart * case.requests * pages_for(case.context)
    shape = (pages, PAGE, heads.kv_heads, heads.dim)
    keys, values = (_random(shape, device).to(dtype) for _ in range(2))
    q = _random((case.requests * case.new, heads.heads, heads.dim), device)
    tables = torch.randperm(pages).view(apart, case.requests, -1)
    contexts_of_step = _contexts(device, case, tables)

    def step() -> None:
        contexts = contexts_of_step()
        for layer in range(layers):
            contexts[layer % apart].attend(attention, q, keys, values, None)

    # Attention over prompts may wait for the device, so it is not captured.
    call = captured(device, step) if case.phase == DECODE else step
    return median_us(device, SWEEP, call, calls=1) / layers


def _random(shape: Sequence[int], device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_()


def _contexts(device: torch.device, case: Case, tables: Tensor) -> Callable[[], Sequence[Context]]:
    """What makes those of each layer, anew at each call: what layers share is of one step. tables:
    [layers, requests, pages]."""
    if case.phase == PREFILL:
        slots = [slots_of(table.tolist())[: case.context] for table in tables[0]]
        counts = np.full(case.requests, case.new)
        prompts = prefill_context(counts, slots, lambda x: torch.from_numpy(x).to(device))
        return lambda: [prompts]
    lengths = torch.full((case.requests,), case.context, dtype=torch.int32, device=device)
    of_layers = [table.int().to(device) for table in tables]

    def contexts() -> Sequence[Context]:
        first = DecodeContext(of_layers[0], lengths)
        return [replace(first, tables=table) for table in of_layers]

    return contexts


# -- in words


def told(rows: Sequence[AttentionRow]) -> str:
    """A line a case, a column a kind, and what each kind takes beside the first."""
    first = rows[0]
    lines = [f"{first.gpu}, KV in {first.kv_cache_dtype}: us of a layer, and share of the bound"]
    for phase, unit in ((DECODE, "TB/s"), (PREFILL, "TFLOP/s")):
        if of_phase := [one for one in rows if one.phase == phase]:
            lines += ["", f"{phase}; the bound is {of_phase[0].bound / 1e12:.3g} {unit}"]
            lines += _told(of_phase)
    return "\n".join(lines)


def _told(rows: Sequence[AttentionRow]) -> Iterator[str]:
    kinds = list(dict.fromkeys(one.kind for one in rows))
    cases: dict[str, dict[str, AttentionRow]] = {}
    for one in rows:
        numbers = f"{one.requests:8} {one.new_tokens:5} {one.context:7}"
        cases.setdefault(f"{one.model:14}{one.tp:2} {numbers}", {})[one.kind] = one
    yield "model         tp requests   new context " + " ".join(f"{kind:>17}" for kind in kinds)
    for name, found in cases.items():
        yield f"{name} {' '.join(_cell(found.get(kind)) for kind in kinds)}".rstrip()
    for kind in kinds[1:]:
        yield _beside(kind, kinds[0], list(cases.values()))


def _cell(one: AttentionRow | None) -> str:
    return f"{one.us:11.1f} {one.share:5.0%}" if one else " " * 17


def _beside(kind: str, first: str, cases: Sequence[dict[str, AttentionRow]]) -> str:
    """How long a kind takes beside the first one, where both were measured."""
    both = [found for found in cases if kind in found and first in found]
    ratios = [found[kind].us / found[first].us for found in both]
    if not ratios:
        return f"{kind} was measured nowhere beside {first}"
    slower = sum(ratio > 1 for ratio in ratios)
    return (
        f"{kind} takes {exp(fmean(map(log, ratios))):.2f} of the time of {first} (geometric mean "
        f"of {len(ratios)}), {min(ratios):.2f} to {max(ratios):.2f}, longer in {slower}"
    )


if __name__ == "__main__":
    main()
