"""Products of few rows whose weights are on their way before the kernel before has ended, in Gluon,
for Hopper, in 16 bits and in FP8: a kernel that is launched early can ask for them while it waits,
as no kernel writes them. Triton's own pipeline asks for weights and tokens together, and so only
after the wait.

Tiles of the matrix come by TMA into a ring in shared memory, each stage with a barrier that counts
bytes. Programs are persistent, one a multiprocessor at most: the ring runs on from one tile of
outputs into the next. What is made of a tile may be more than a product: see `paired`.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from workers.engines.native.kernels.early import at_once, in_turn, launched
from workers.engines.native.kernels.paired import (
    angles,
    hand_over,
    in_shared,
    keep,
    keep_gated,
    keep_heads,
    neighbours,
    outputs_of,
    paired,
)
from workers.engines.native.kernels.reference import FP8, Outbox, Rope
from workers.engines.native.kernels.tiles import Tile, height_of, pages_ahead

_FEWEST = 8  # requests, with which a layer takes up to 0.3% longer if attention is placed at once


class Product(NamedTuple):
    """x weight^T + bias, of `dtype`. x: [T, K], weight: [N, K], bias: [N]. In FP8 scales are of
    each token and of each channel. weight: written by no kernel that is launched early, nor by the
    one before."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    scales: tuple[()] | tuple[Tensor, Tensor] = ()


def linear(of: Product, tile: Tile) -> Tensor:
    """-> [T, N]."""
    out = torch.empty(of.x.shape[0], of.weight.shape[0], dtype=of.dtype, device=of.x.device)
    _multiply(of, tile, out)
    return out


def gated(of: Product, tile: Tile) -> tuple[Tensor, Tensor]:
    """silu(gate) x up of its halves, see `Pointwise.silu_mul` -> [T, N / 2]; and the largest of
    each token in parts of it, [T, parts] float32, which are empty where there are no scales."""
    rows, outputs = of.x.shape[0], of.weight.shape[0]
    out = torch.empty(rows, outputs // 2, dtype=of.dtype, device=of.x.device)
    parts = outputs // tile.outputs if of.scales else 0
    largest = torch.empty(rows, parts, dtype=torch.float32, device=of.x.device)
    _multiply(of, tile, out, outputs, largest)
    return out, largest


def queries(of: Product, tile: Tile, rope: Rope) -> Tensor:
    """`Pointwise.rope_and_cache` of it -> [T, heads, D]."""
    rows, outputs, (kv_heads, dim) = of.x.shape[0], of.weight.shape[0], rope.keys.shape[2:]
    heads = outputs // dim - 2 * kv_heads
    out = torch.empty(rows, heads, dim, dtype=of.dtype, device=of.x.device)
    _multiply(of, tile, out, dim, None, (heads, kv_heads), rope)
    return out


def handed(of: Product, tile: Tile, to: Outbox) -> None:
    """It goes `to` the ranks that sum it, and nowhere else."""
    _multiply(of, tile, of.x.new_empty(0, dtype=of.dtype), of.weight.shape[0], to=to)


def _multiply(
    of: Product,
    tile: Tile,
    out: Tensor,
    dim: int = 0,
    largest: Tensor | None = None,
    heads: tuple[int, int] = (0, 0),
    rope: Rope | None = None,
    to: Outbox | None = None,
) -> None:
    """dim: of what is cut in halves that belong together, or has neighbours that do; 0: nothing is.
    heads: of queries, and of keys or values."""
    rows, (outputs, inputs) = of.x.shape[0], of.weight.shape
    box = [tile.outputs, tile.inputs]
    if to is not None:
        tiled = neighbours(of.weight, box)
    else:
        tiled = paired(of.weight, dim, box) if dim else _tiled(of.weight, box)
    leads, programs = rope is not None and _leads(rope, rows), _multiprocessors(of.x.device)
    if of.scales or leads:  # else a step is shorter where programs without a tile are launched too
        programs = min(programs, triton.cdiv(outputs, tile.outputs))
    _streamed[(programs,)](
        _tiled(of.x, [height_of(rows), tile.inputs]), tiled, of.scales or (out, out),
        out if of.bias is None else of.bias, out, out if largest is None else largest,
        (out,) * 6 if rope is None else rope[:6], (out, out) if to is None else to[:2],
        0 if to is None else to.rank, rows, outputs, inputs, *box, tile.stages, dim, *heads,
        0 if to is None else to.ranks, bool(of.scales), of.bias is not None, leads,
        num_warps=tile.warps, **launched(rows),
    )  # fmt: skip


def _leads(rope: Rope, rows: int) -> bool:
    """Whether attention is placed at once, as it has pages ahead."""
    return rows > _FEWEST and pages_ahead(rows, rope.keys.shape, rope.keys.element_size()) > 0


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _tiled(matrix: Tensor, box: list[int]) -> Any:
    """What TMA is told of a contiguous matrix that it reads in tiles, which are zero beyond it."""
    rows, columns = matrix.shape
    layout = in_shared(tuple(box), matrix.dtype == FP8)
    return TensorDescriptor(matrix, [rows, columns], [columns, 1], box, layout)


@gluon.jit(do_not_specialize=["rank", "rows"])
def _streamed(
    x_desc, w_desc, scales, bias_ptr, out_ptr, largest_ptr, rope, outbox, rank, rows, outputs,
    inputs: gl.constexpr, width: gl.constexpr, depth: gl.constexpr, stages: gl.constexpr,
    dim: gl.constexpr, heads: gl.constexpr, kv_heads: gl.constexpr, ranks: gl.constexpr,
    scaled: gl.constexpr, has_bias: gl.constexpr, leads: gl.constexpr, early: gl.constexpr,
):  # fmt: skip
    height: gl.constexpr = x_desc.block_type.shape[0]
    layout: gl.constexpr = _of_sums(height, w_desc.dtype.primitive_bitwidth, gl.num_warps())
    m = gl.arange(0, height, gl.SliceLayout(0, layout))
    at = gl.arange(0, width, gl.SliceLayout(1, layout))
    if heads:  # contexts, as in `fused._rope`: a norm is in between
        positions, slots = gl.load(rope[2] + m, m < rows, 0), gl.load(rope[3] + m, m < rows, 0)
    if ranks:  # sums write them, and between a sum and the next product there is another kernel
        calls = gl.load(outbox[1] + m, m < rows, 0, cache_modifier=".cg") + 1
    ring = _ring(x_desc, w_desc, width, depth, stages)
    _begin(ring, outputs, inputs, dim, leads, early)
    count = 0  # tiles that are multiplied
    for tile in range(_first(0, outputs, width), _first(1, outputs, width)):
        out = outputs_of(tile * width, at, dim, ranks > 0)
        # On its way while tiles are multiplied.
        if heads:
            turn = angles(rope, positions, out, m < rows, dim)
        if scaled:
            of_x = gl.load(scales[0] + m, mask=m < rows, other=0.0)
            of_w = gl.load(scales[1] + out, mask=out < outputs, other=0.0)
        acc, count = _multiplied(ring, layout, count, outputs, inputs, dim)
        if scaled:
            acc = acc * of_w[:, None] * of_x[None, :]
        if has_bias:
            acc += gl.load(bias_ptr + out, mask=out < outputs, other=0.0).to(gl.float32)[:, None]
        made = acc.to(out_ptr.dtype.element_ty)
        if ranks:
            hand_over(made, outbox[0], calls, rank, ranks, out, at, m, rows, outputs)
        elif heads:
            head, to = tile * width // dim, (out_ptr, rope[4], rope[5])
            keep_heads(made, turn, to, head, out, at, m, slots, rows, dim, heads, kv_heads)
        elif dim:
            keep_gated(made, out_ptr, largest_ptr, out, at, m, rows, tile, dim, scaled)
        else:
            keep(made, out_ptr, out, m, rows, outputs)


@gluon.constexpr_function
def _of_sums(height, bits, warps):
    """How threads share the sums of a tile: a warp has 16 outputs of all tokens."""
    return gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, height, 256 // bits])


@gluon.constexpr_function
def _flat(dtype, width, depth):
    return gl.NVMMASharedLayout.get_default_for([width, depth], dtype)


@gluon.jit
def _ring(x_desc, w_desc, width: gl.constexpr, depth: gl.constexpr, stages: gl.constexpr):
    """What both are told TMA by, their stages in shared memory, and the barriers of those."""
    height: gl.constexpr = x_desc.block_type.shape[0]
    flat: gl.constexpr = _flat(w_desc.dtype, width, depth)
    w_ring = gl.allocate_shared_memory(w_desc.dtype, [stages, width, depth], flat)
    x_ring = gl.allocate_shared_memory(x_desc.dtype, [stages, height, depth], x_desc.layout)
    arrived = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    return x_desc, w_desc, x_ring, w_ring, arrived


@gluon.jit
def _begin(
    ring, outputs, inputs: gl.constexpr, dim: gl.constexpr, leads: gl.constexpr,
    early: gl.constexpr,
):  # fmt: skip
    """Ask for the first stages: for weights, and for tokens in turn."""
    stages: gl.constexpr = ring[3].shape[0]
    for s in gl.static_range(stages):
        mbarrier.init(ring[4].index(s), count=1)
    fence_async_shared()
    for s in gl.static_range(stages):
        _ask_weights(ring, s, s, outputs, inputs, dim)
    if leads:  # only tokens are of the kernel before
        at_once(early)
    else:
        in_turn(early)
    for s in gl.static_range(stages):
        _ask_tokens(ring, s, s, outputs, inputs)


@gluon.jit
def _multiplied(
    ring, layout: gl.constexpr, count, outputs, inputs: gl.constexpr, dim: gl.constexpr
):
    """A tile of outputs, and how many tiles of the ring are multiplied then."""
    stages: gl.constexpr = ring[3].shape[0]
    depth: gl.constexpr = ring[3].shape[2]
    width: gl.constexpr = ring[3].shape[1]
    height: gl.constexpr = ring[2].shape[1]
    acc = gl.zeros([width, height], gl.float32, layout)
    for _ in range(inputs // depth):
        slot = count % stages
        mbarrier.wait(ring[4].index(slot), (count // stages) & 1)
        acc = warpgroup_mma(ring[3].index(slot), ring[2].index(slot).permute((1, 0)), acc)
        _ask_weights(ring, slot, count + stages, outputs, inputs, dim)
        _ask_tokens(ring, slot, count + stages, outputs, inputs)
        count += 1
    return acc, count


@gluon.jit
def _first(more: gl.constexpr, outputs, width: gl.constexpr):
    """The first tile of this program, or of one that is `more` on. Programs that have a tile more
    than others are spread over all: neighbours share what they read through."""
    return (gl.program_id(0) + more) * gl.cdiv(outputs, width) // gl.num_programs(0)


@gluon.jit
def _place(ring, count, outputs, inputs: gl.constexpr):
    """Where this program's tile number `count` begins, output and input, and whether it has one."""
    width: gl.constexpr = ring[3].shape[1]
    depth: gl.constexpr = ring[3].shape[2]
    steps: gl.constexpr = inputs // depth
    tile = _first(0, outputs, width) + count // steps
    return tile * width, count % steps * depth, tile < _first(1, outputs, width)


@gluon.jit
def _ask_weights(ring, slot, count, outputs, inputs: gl.constexpr, dim: gl.constexpr):
    """Ask for the weights of a stage, which has arrived with all of its bytes, of tokens too."""
    w_desc, to, arrived = ring[1], ring[3].index(slot), ring[4].index(slot)
    values: gl.constexpr = (ring[2].shape[1] + ring[3].shape[1]) * ring[3].shape[2]
    n, k, is_there = _place(ring, count, outputs, inputs)
    mbarrier.expect(arrived, values * w_desc.dtype.primitive_bitwidth // 8, pred=is_there)
    if dim:
        to = to.reshape(w_desc.block_type.shape)
        place = [n // dim, n % dim // 16, 0, 0, k]
        tma.async_copy_global_to_shared(w_desc, place, arrived, to, pred=is_there)
    else:
        tma.async_copy_global_to_shared(w_desc, [n, k], arrived, to, pred=is_there)


@gluon.jit
def _ask_tokens(ring, slot, count, outputs, inputs: gl.constexpr):
    _, k, is_there = _place(ring, count, outputs, inputs)
    to, arrived = ring[2].index(slot), ring[4].index(slot)
    tma.async_copy_global_to_shared(ring[0], [0, k], arrived, to, pred=is_there)
