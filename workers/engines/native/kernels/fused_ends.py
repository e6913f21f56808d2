"""What is before the first layer of a step and behind its last one, in Triton: four kernels where
plain torch has some forty, of 2 us each.

A name that ends in `_ptr` is a pointer to the tensor of that name; those marked `tl.constexpr` are
compiled in.
"""
# Triton's decorator has no types, and pointers have none either.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.native.kernels.early import in_turn, launched

_LOGITS = 4096  # that one program looks at


def begun(
    rows: Tensor, token: Tensor, position: Tensor, tables: Tensor, page: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One program a row."""
    count, pages = rows.shape[0], tables.shape[1]
    inputs, at, slots = (torch.empty_like(rows) for _ in range(3))
    mine = torch.empty(count, pages, dtype=tables.dtype, device=tables.device)
    lengths = torch.empty(count, dtype=torch.int32, device=tables.device)
    tensors = (rows, token, position, tables, inputs, at, slots, mine, lengths)
    sizes = (pages, min(triton.next_power_of_2(pages), 1024), page)
    _begin[(count,)](*tensors, position.shape[0] - 1, *sizes, num_warps=1, **launched(count))
    return inputs, at, slots, mine, lengths


@triton.jit
def _begin(
    rows_ptr, token_ptr, position_ptr, tables_ptr, inputs_ptr, at_ptr, slots_ptr, mine_ptr,
    lengths_ptr, padding, pages: tl.constexpr, block: tl.constexpr, page: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    in_turn(early)
    place = tl.program_id(0)
    row = tl.load(rows_ptr + place)
    at = tl.load(position_ptr + row)
    last = tl.load(tables_ptr + row * pages + at // page).to(tl.int64)
    tl.store(inputs_ptr + place, tl.load(token_ptr + row))
    tl.store(at_ptr + place, at)
    tl.store(slots_ptr + place, last * page + at % page)
    tl.store(lengths_ptr + place, (at + 1).to(tl.int32))
    if row < padding:  # several programs may have the row of padding
        tl.store(position_ptr + row, at + 1)
    for begin in range(0, pages, block):
        i = begin + tl.arange(0, block)
        copied = tl.load(tables_ptr + row * pages + i, mask=i < pages)
        tl.store(mine_ptr + place * pages + i, copied, mask=i < pages)


def embedded(tokens: Tensor, table: Tensor, first: int) -> Tensor:
    """One program for 1024 columns of a token."""
    count, width = tokens.shape[0], table.shape[1]
    out = torch.empty(count, width, dtype=table.dtype, device=table.device)
    grid = (count, triton.cdiv(width, 1024))
    _embed[grid](tokens, table, out, first, table.shape[0], width, 1024, **launched(count))
    return out


@triton.jit
def _embed(
    tokens_ptr, table_ptr, out_ptr, first, held, width, block: tl.constexpr, early: tl.constexpr
):
    in_turn(early)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    local = tl.load(tokens_ptr + row) - first
    mine = (local >= 0) & (local < held)
    found = tl.load(table_ptr + local * width + at, mask=(at < width) & mine, other=0.0)
    tl.store(out_ptr + row * width + at, found, mask=at < width)


def likeliest(logits: Tensor, first: int, checks: bool) -> Tensor:
    """A program for a part of a row, and one that joins the parts of a row."""
    count, width = logits.shape
    parts = triton.cdiv(width, _LOGITS)
    found = torch.empty(parts, count, 2, dtype=torch.float32, device=logits.device)
    at = (logits, found, first, logits.stride(0), width, _LOGITS, checks)
    _likeliest[(count, parts)](*at, **launched(count))
    out = torch.empty(count, 2, dtype=torch.float32, device=logits.device)
    block = triton.next_power_of_2(parts)
    _choose[(count,)](found, out, parts, block, checks, True, 0, num_warps=1, **launched(count))
    return out


def chosen(candidates: Tensor, broken: int | None) -> Tensor:
    """One program a row."""
    parts, count = candidates.shape[:2]
    out = torch.empty(count, dtype=torch.int64, device=candidates.device)
    block, tensors = triton.next_power_of_2(parts), (candidates.contiguous(), out)
    told = (broken is not None, False, broken or 0)
    _choose[(count,)](*tensors, parts, block, *told, num_warps=1, **launched(count))
    return out


@triton.jit
def _likeliest(
    logits_ptr, found_ptr, first, stride, width, block: tl.constexpr, checks: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    in_turn(early)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = part * block + tl.arange(0, block)
    inside = at < width
    x = tl.load(logits_ptr + row * stride + at, mask=inside, other=float("-inf")).to(tl.float32)
    best, place = tl.max(x, 0, return_indices=True)
    place = tl.minimum(place, width - 1 - part * block)  # NaN is no greater than what is outside
    if checks:
        # x - x is zero, and NaN where x is not finite.
        best += tl.sum(tl.where(inside, x - x, 0.0), 0)
    target = found_ptr + (part * tl.num_programs(0) + row) * 2
    tl.store(target, best)
    tl.store(target + 1, (first + part * block + place).to(tl.float32))


@triton.jit
def _choose(
    found_ptr, out_ptr, parts, block: tl.constexpr, checks: tl.constexpr, scored: tl.constexpr,
    broken: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    in_turn(early)
    row, part = tl.program_id(0), tl.arange(0, block)
    source = found_ptr + (part * tl.num_programs(0) + row) * 2
    score = tl.load(source, mask=part < parts, other=float("-inf"))
    best, place = tl.max(score, 0, return_indices=True)
    place = tl.minimum(place, parts - 1)  # as in `_likeliest`
    token = tl.load(found_ptr + (place * tl.num_programs(0) + row) * 2 + 1)
    if checks:
        best += tl.sum(tl.where(part < parts, score - score, 0.0), 0)
    if scored:
        tl.store(out_ptr + row * 2, best)
        tl.store(out_ptr + row * 2 + 1, token)
    else:
        wanted = token.to(tl.int64)
        if checks:
            wanted = tl.where(best == best, wanted, broken)
        tl.store(out_ptr + row, wanted)
