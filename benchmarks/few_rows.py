"""What the layers of one rank take in a decode step of few requests: with products of cuBLAS and of
Triton, and with kernels that are launched when the one before has ended, and earlier.

    python benchmarks/few_rows.py
    python benchmarks/few_rows.py --models llama-8b --tp 1 --rows 1,64 --out few_rows.arrow
    python benchmarks/few_rows.py --tp 2 --sums
    python benchmarks/few_rows.py --tp 2 --quantization fp8

One GPU stands for a rank of a layout: its matrices and heads are those that tensor parallelism over
so many ranks leaves it, and sums over them are left out. With --sums as many GPUs as share a layer
sum as the engine does by itself, and the slowest one's time counts. LAYERS layers with weights of
their own are a CUDA graph, so no cache of the GPU has what is read next. Beside each time is the
bound: what reading the weights and the KV of a layer takes at the rate that this GPU reaches,
measured first. A time is a median over samples.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from allreduce import on_each_gpu, slowest
from torch import Tensor

from orchestrator.plan import models
from orchestrator.store.arrow_files import write_part
from strategies.peer_sums import kind_for
from strategies.shapes import ModelShape
from workers.backends import GroupSum
from workers.device import device_name
from workers.engines.native.build import group_sums
from workers.engines.native.contexts import DecodeContext
from workers.engines.native.kernels import Kernels, kernels_of
from workers.engines.native.kernels.fp8 import Fp8Weight, Norm, made_fp8
from workers.engines.native.kernels.reference import Outbox, Rope
from workers.engines.native.matrices import InFp8, Matrix, Plain, Read, gated, queries
from workers.engines.native.pages import PAGE, pages_for
from workers.engines.node_sweep import memory
from workers.engines.node_timing import GPU_SWEEP, Sweep, captured, median_us, release
from workers.rows import Table, column, row

LAYERS, CONTEXT = 16, 320
# Products and pdl. FP8 is multiplied in Triton and Gluon, whatever --products says.
WAYS = {"none": tuple(product(("cublas", "triton"), ("off", "on")))}
WAYS["fp8"] = WAYS["none"][2:]
EPS = 1e-6
Row = TypeVar("Row")
Weights = Sequence[Sequence[Tensor | Fp8Weight]]  # by layer, as `Shard.matrices` has them


@row
class FewRowsRow:
    """One shape, computed in one way."""

    gpu: str = column("name of the GPU")
    model: str = column("whose layers these are")
    tp: int = column("ranks that share them", "1")
    requests: int = column("of a decode step, each with a context of 320 tokens", "1")
    products: str = column("what multiplies, as --products has it")
    pdl: str = column("whether kernels are launched early, as --pdl has it")
    quantization: str = column("of the matrices, as --quantization has it")
    sums: bool = column("whether the ranks sum, each a GPU; else one GPU stands for a rank")
    us: float = column("time of a layer", "us")
    bound_us: float = column("of reading its weights and KV", "us")


FEW_ROWS = Table("few_rows", FewRowsRow)


@dataclass(frozen=True, slots=True)
class Shard:
    """What one rank has of a layer. dim: of a head. columns: of the MLP."""

    model: str
    tp: int
    hidden: int
    heads: int
    kv_heads: int
    dim: int
    columns: int

    @classmethod
    def of(cls, model: ModelShape, tp: int) -> Shard:
        """Of a model over `tp` ranks."""
        heads, kv_heads = model.num_heads // tp, max(1, model.num_kv_heads // tp)
        columns = model.intermediate_size // tp
        return cls(model.name, tp, model.hidden_size, heads, kv_heads, model.head_dim, columns)

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of qkv, output, gate and up, and down."""
        seen = self.heads * self.dim
        qkv = seen + 2 * self.kv_heads * self.dim
        wide, hidden = self.columns, self.hidden
        return (qkv, hidden), (hidden, seen), (2 * wide, hidden), (hidden, wide)

    def bytes(self, requests: int, quantization: str = "none") -> int:
        """That a layer reads, KV in BF16."""
        weights = sum(outputs * inputs for outputs, inputs in self.matrices)
        weights *= 1 if quantization == "fp8" else 2
        return weights + 4 * requests * CONTEXT * self.kv_heads * self.dim


def main() -> None:
    """Measure, print, write."""
    asked = parser_of(__doc__).parse_args()
    rows, ways = list[FewRowsRow](), len(WAYS[asked.quantization])
    for found in of_models(asked, of_model, slowest):
        for at in range(0, len(found), ways):
            print(told(found[at : at + ways]), flush=True)
        rows += found
    if asked.out is not None:
        write_part(asked.out, FEW_ROWS.make(rows))


def of_models(
    asked: argparse.Namespace,
    of_model: Callable[..., list[Row]],
    over: Callable[[list[list[Row]]], list[Row]],
) -> Iterator[list[Row]]:
    """What `of_model` finds of each model and layout that is asked for, on one GPU, or `over` its
    ranks."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        sys.exit("kernels of few rows are for Hopper GPUs, and this machine has none")
    for name, tp in product(asked.models.split(","), asked.tp):
        given = (name, tp, asked.rows, asked.quantization, asked.sums)
        if asked.sums:
            yield over(on_each_gpu(tp, of_model, *given, timeout_s=300))
        else:
            yield of_model(0, torch.device("cuda", 0), *given)


def of_model(
    rank: int,
    device: torch.device,
    name: str,
    tp: int,
    requests: Sequence[int],
    quantization: str,
    sums: bool,
) -> list[FewRowsRow]:
    """The rows of one rank."""
    shard = Shard.of(models.resolve(name, "dummy").shape, tp)
    with torch.inference_mode():
        read = next(memory(device, GPU_SWEEP))
        assert read.time_us is not None
        among = sums_of(device, shard, max(requests)) if sums else []
        rows = list[FewRowsRow]()
        for count in requests:
            bound = shard.bytes(count, quantization) * read.time_us / read.bytes
            rows += measured(device, shard, count, quantization, bound, among)
    return rows


def sums_of(device: torch.device, shard: Shard, rows: int) -> list[GroupSum]:
    """What sums up to so many rows over the default group, as the engine has it by itself."""
    group, dtype = dist.group.WORLD, torch.bfloat16
    assert group is not None
    most = rows * shard.hidden * dtype.itemsize
    return group_sums(kind_for(shard.tp), group, device, dtype, shard.hidden, most)


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Of what can be asked for. doc: the help."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="qwen2.5-32b,llama-70b")
    parser.add_argument("--tp", type=_numbers, default="2,4")
    parser.add_argument("--rows", type=_numbers, default="1,8,32,64", help="requests that decode")
    parser.add_argument("--quantization", choices=tuple(WAYS), default="none")
    parser.add_argument("--sums", action="store_true", help="over as many GPUs as share a layer")
    parser.add_argument("--out", type=Path, help="an Arrow file")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def measured(
    device: torch.device,
    shard: Shard,
    requests: int,
    quantization: str,
    bound: float,
    sums: Sequence[GroupSum],
) -> Iterator[FewRowsRow]:
    """A row for each way. sums: what sums over the ranks; empty: nothing does."""
    weights = weights_of(shard, quantization, device)
    for products, pdl in WAYS[quantization]:
        kernels = kernels_of("triton", True, products == "triton", pdl == "on")
        us = layer_us(device, kernels, shard, requests, weights, sums)
        yield FewRowsRow(
            gpu=device_name(device),
            model=shard.model,
            tp=shard.tp,
            requests=requests,
            products=products,
            pdl=pdl,
            quantization=quantization,
            sums=bool(sums),
            us=us,
            bound_us=bound,
        )
    release(device)


def weights_of(shard: Shard, quantization: str, device: torch.device) -> Weights:
    """Of LAYERS layers, drawn."""
    drawn = _random_fp8 if quantization == "fp8" else _random
    return [[drawn(shape, device) for shape in shard.matrices] for _ in range(LAYERS)]


def layer_us(
    device: torch.device,
    kernels: Kernels,
    shard: Shard,
    requests: int,
    weights: Weights,
    sums: Sequence[GroupSum] = (),
    sweep: Sweep = GPU_SWEEP,
) -> float:
    """Microseconds of a layer."""
    step = step_of(device, kernels, shard, requests, weights, sums)
    return median_us(device, sweep, captured(device, step), calls=1) / len(weights)


def step_of(
    device: torch.device,
    kernels: Kernels,
    shard: Shard,
    requests: int,
    weights: Weights,
    sums: Sequence[GroupSum] = (),
) -> Callable[[], Tensor]:
    """The layers of a decode step, as the decoder has them."""
    pages = pages_for(CONTEXT)
    cache = (len(weights), requests * pages, PAGE, shard.kv_heads, shard.dim)
    keys, values = _random(cache, device), _random(cache, device)
    tables = torch.arange(requests * pages, device=device, dtype=torch.int32).view(requests, -1)
    lengths = torch.full((requests,), CONTEXT, device=device, dtype=torch.int32)
    context = DecodeContext(tables, lengths)
    positions = torch.full((requests,), CONTEXT - 1, device=device)
    slots = torch.arange(requests, device=device) * pages * PAGE + CONTEXT - 1
    cos, sin = (torch.randn(CONTEXT, shard.dim // 2, device=device) for _ in range(2))
    norm = torch.ones(shard.hidden, device=device, dtype=torch.bfloat16)
    start = _random((requests, shard.hidden), device)
    layers = [[*_matrices(layer, kernels)] for layer in weights]

    to = next(filter(None, (one.outbox(requests) for one in sums)), None)

    def multiplied(matrix: Matrix[Read], x: Read) -> Tensor | Outbox:
        return matrix.times(x) if to is None or not matrix.handed(x, to) else to

    def normed(x: Tensor | Outbox, residual: Tensor, matrix: Matrix[Any]) -> Any:
        one = next((one for one in sums if one.takes(x)), None)
        if one is not None and one.fuses(x):
            return one.all_reduce_norm(x, residual, Norm(norm, EPS, matrix.in_fp8))
        x = x if one is None else one.all_reduce(x)
        return matrix.normed(x, residual, norm, EPS)[0]

    def step() -> Tensor:
        x, residual = start.clone(), torch.zeros_like(start)  # sums are in place
        for layer, (qkv, output, gate_up, down) in enumerate(layers):
            places = (positions, slots, keys[layer], values[layer])
            rope = Rope(cos, sin, *places, None, None, EPS)
            q = queries(qkv, normed(x, residual, qkv), None, rope, kernels.pointwise)
            x = context.attend(kernels.attention, q, keys[layer], values[layer], None)
            x = multiplied(output, output.input(x.flatten(1)))
            x = multiplied(down, gated(gate_up, normed(x, residual, gate_up), down))
        if isinstance(x, Outbox):
            normed(x, residual, layers[0][0])
            return residual
        return x + residual

    return step


def _matrices(layer: Iterable[Tensor | Fp8Weight], kernels: Kernels) -> Iterator[Matrix[Any]]:
    for weight in layer:
        if isinstance(weight, Fp8Weight):
            yield InFp8(weight, kernels.fp8, torch.bfloat16)
        else:
            yield Plain(weight, kernels.pointwise, kernels.products)


def _random(shape: Sequence[int], device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02)


def _random_fp8(shape: Sequence[int], device: torch.device) -> Fp8Weight:
    scales, share = torch.full((shape[0], 1), 2.0**-12, device=device), (1, shape[1])
    return Fp8Weight(made_fp8(_random(shape, device), scales, share), scales, share)


def told(rows: Sequence[FewRowsRow]) -> str:
    """A line for one shape, from its rows."""
    first = rows[0]
    ways = ", ".join(f"{one.products} {one.pdl} {one.us:.1f}" for one in rows)
    best = min(one.us for one in rows)
    sums = " with sums" if first.sums else ""
    fp8 = " fp8" if first.quantization == "fp8" else ""
    return (
        f"{first.model} tp{first.tp}{fp8}{sums}, {first.requests} requests: {ways} us a layer "
        f"(products, pdl); bound {first.bound_us:.1f}, {first.bound_us / best:.0%} of it reached"
    )


if __name__ == "__main__":
    main()
