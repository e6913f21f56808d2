"""The libraries of attention in plain torch, on CPUs, with their own signatures and checks.

FlashAttention-3 has its plan of a decode step too, which is of the lengths that it was made for and
no others.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
# As the library registers them.
FWD = (
    "fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new=None, Tensor(v_new!)? v_new=None, "
    "Tensor? q_v=None, Tensor(out!)? out=None, Tensor? cu_seqlens_q=None, Tensor? "
    "cu_seqlens_k=None, Tensor? cu_seqlens_k_new=None, Tensor? seqused_q=None, Tensor? "
    "seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None, Tensor? page_table=None, "
    "Tensor? kv_batch_idx=None, Tensor? leftpad_k=None, Tensor? rotary_cos=None, Tensor? "
    "rotary_sin=None, Tensor? seqlens_rotary=None, Tensor? q_descale=None, Tensor? "
    "k_descale=None, Tensor? v_descale=None, float? softmax_scale=None, bool is_causal=False, "
    "int window_size_left=-1, int window_size_right=-1, int attention_chunk=0, float softcap=0., "
    "bool is_rotary_interleaved=False, Tensor? scheduler_metadata=None, int num_splits=0, bool? "
    "pack_gqa=None, int sm_margin=0, Tensor? sinks=None) -> (Tensor(out!), Tensor, Tensor, Tensor)"
)
PLAN = (
    "get_scheduler_metadata(int batch_size, int max_seqlen_q, int max_seqlen_k, int num_heads, "
    "int num_heads_k, int headdim, int headdim_v, ScalarType qkv_dtype, Tensor seqused_k, "
    "Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? cu_seqlens_k_new=None, Tensor? "
    "seqused_q=None, Tensor? leftpad_k=None, int? page_size=None, int max_seqlen_k_new=0, bool "
    "is_causal=False, int window_size_left=-1, int window_size_right=-1, int attention_chunk=0, "
    "bool has_softcap=False, int num_splits=0, bool? pack_gqa=None, int sm_margin=0) -> Tensor"
)
CALLS: Counter[str] = Counter()  # of each operator, since `fa3` was entered


@contextmanager
def fa3() -> Iterator[Counter[str]]:
    """Inside, `flash_attn_3` can be imported. Counts the calls of each operator."""
    CALLS.clear()
    is_there = importlib.util.find_spec("flash_attn_3") is not None
    package = ModuleType("flash_attn_3")
    package._C = ModuleType("flash_attn_3._C")  # type: ignore[attr-defined]
    modules = {} if is_there else {"flash_attn_3": package, "flash_attn_3._C": package._C}
    if is_there:
        import flash_attn_3._C  # noqa: F401
    kind = "IMPL" if is_there else "DEF"
    with (
        mock.patch.dict(sys.modules, modules),
        torch.library._scoped_library("flash_attn_3", kind) as library,
    ):
        if not is_there:
            library.define(FWD)
            library.define(PLAN)
        for name, call in (("fwd", _forward), ("get_scheduler_metadata", _plan)):
            library.impl(name, _named(name, call), "CPU")
        yield CALLS


def _named(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same by position, as operators are called, with only what is not left as it is."""
    arguments = getattr(torch.ops.flash_attn_3, name).default._schema.arguments
    defaults = {one.name: one.default_value for one in arguments if one.has_default_value()}

    def counted(*args: Any, **named: Any) -> Any:
        CALLS[name] += 1
        given = {one.name: value for one, value in zip(arguments, args, strict=False)} | named
        changed = {
            key: value
            for key, value in given.items()
            if isinstance(value, Tensor) or key not in defaults or value != defaults[key]
        }
        return call(**changed)

    return counted


def _plan(
    batch_size: int,
    max_seqlen_q: int,
    max_seqlen_k: int,
    num_heads: int,
    num_heads_k: int,
    headdim: int,
    headdim_v: int,
    qkv_dtype: torch.dtype,
    seqused_k: Tensor,
    page_size: int | None = None,
    is_causal: bool = False,
    window_size_left: int = -1,
    num_splits: int = 0,
) -> Tensor:
    """As many numbers as the library has, of which the fake one needs the first ones: whom it is
    for."""
    assert (max_seqlen_q, headdim) == (1, headdim_v)
    heads = torch.empty(batch_size, 1, num_heads, headdim, dtype=qkv_dtype)
    kv_heads, pages = (num_heads_k, headdim), max_seqlen_k // page_size
    seen = (is_causal, window_size_left)
    return _marked(heads, kv_heads, pages, page_size, seqused_k, num_splits, seen)


def _marked(
    q: Tensor,
    kv: tuple[int, ...],
    pages: int,
    page: int,
    lengths: Tensor,
    splits: int,
    seen: tuple[bool, int],
) -> Tensor:
    """[plan] int32: the lengths, four numbers for every request in the rest, and a counter."""
    what = (*q.shape, str(q.dtype), *kv, pages, page, splits, *seen)
    rounded = -(-len(lengths) // 4) * 4
    vectors = 4 if seen[1] < 0 or seen[1] >= pages * page - 1 else 3
    plan = torch.zeros(vectors * rounded + 1, dtype=torch.int32)
    plan[: len(lengths)] = lengths
    plan[-1] = hash(what) % (1 << 31)
    return plan


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    page_table: Tensor | None = None,
    is_causal: bool = False,
    window_size_left: int = -1,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(q, k, v)
    if page_table is None:
        assert cu_seqlens_q is not None
        assert cu_seqlens_k is not None
        assert num_splits == 1
        parts = _chunks(q, k, v, cu_seqlens_q, cu_seqlens_k, (max_seqlen_q, max_seqlen_k))
    else:
        assert seqused_k is not None
        pages, page = page_table.shape[1], k.shape[1]
        seen = (is_causal, window_size_left)
        expected = _marked(q, k.shape[2:], pages, page, seqused_k, num_splits, seen)
        assert scheduler_metadata is not None
        assert torch.equal(scheduler_metadata, expected), "the plan is of another step"
        assert 1 <= num_splits <= 256
        parts = _requests(q, k, v, page_table, seqused_k)
    outs = [_attend(*part, is_causal, window_size_left) for part in parts]
    out = torch.cat(outs).view(q.shape).to(torch.bfloat16 if q.dtype == FP8 else q.dtype)
    return out, *(torch.empty(0) for _ in range(3))


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    assert q.dtype in (torch.bfloat16, torch.float16, FP8)
    assert q.dtype == k.dtype == v.dtype
    assert q.shape[-1] <= 256
    assert q.shape[-1] % (16 if q.dtype == FP8 else 8) == 0
    assert q.shape[-2] % k.shape[-2] == 0
    assert all(x.stride(-1) == 1 for x in (q, k, v))


@contextmanager
def flashinfer() -> Iterator[None]:
    """Inside, `flashinfer.xqa` is this."""
    package, module = ModuleType("flashinfer"), ModuleType("flashinfer.xqa")
    module.xqa = _xqa  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, {"flashinfer": package, "flashinfer.xqa": module}):
        yield


def _xqa(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    seq_lens: Tensor,
    output: Tensor,
    workspace_buffer: Tensor,
    semaphores: Tensor,
    num_kv_heads: int,
    page_size: int,
    sinks: Tensor | None = None,
    q_scale: float = 1.0,
    kv_scale: float = 1.0,
    sliding_win_size: int = 0,
    kv_layout: str = "NHD",
    sm_count: int | None = None,
    enable_pdl: bool | None = None,
    rcp_out_scale: float = 1.0,
    q_seq_len: int = 1,
    mask: Tensor | None = None,
) -> None:
    """[requests, one, heads, dim] queries; the output is filled."""
    requests, beams, _, dim = q.shape
    assert (beams, seq_lens.shape, output.shape) == (1, (requests, 1), q.shape)
    assert q.dtype == output.dtype
    assert q.dtype in (torch.bfloat16, torch.float16)
    assert k_cache.dtype == v_cache.dtype
    assert k_cache.dtype in (q.dtype, FP8)
    assert page_size in (16, 32, 64, 128)
    assert k_cache.shape[1:] == (page_size, num_kv_heads, dim)
    assert dim % 16 == 0
    assert (page_table.dtype, seq_lens.dtype) == (torch.int32, torch.uint32)
    assert (workspace_buffer.dtype, semaphores.dtype) == (torch.uint8, torch.uint32)
    assert not semaphores.view(torch.int32).any()
    assert semaphores.numel() >= requests * num_kv_heads
    lengths = seq_lens.view(torch.int32)[:, 0]
    parts = _requests(q, k_cache, v_cache, page_table, lengths)
    for one, part in zip(output, parts, strict=True):
        one.copy_(_attend(*part, True, sliding_win_size - 1 if sliding_win_size else -1))


Part = tuple[Tensor, Tensor, Tensor]


def _chunks(
    q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, longest: Any
) -> Iterator[Part]:
    assert (q.ndim, k.ndim, v.ndim) == (3, 3, 3)
    assert ends_q.dtype == ends_k.dtype == torch.int32
    new, contexts = ends_q.diff().tolist(), ends_k.diff().tolist()
    assert max(new) <= longest[0]
    assert max(contexts) <= longest[1]
    yield from zip(q.split(new), k.split(contexts), v.split(contexts), strict=True)


def _requests(q: Tensor, k: Tensor, v: Tensor, tables: Tensor, lengths: Tensor) -> Iterator[Part]:
    assert (q.ndim, k.ndim, v.ndim) == (4, 4, 4)
    assert tables.dtype == lengths.dtype == torch.int32
    assert len(tables) == len(lengths) == len(q)
    for one, table, length in zip(q, tables, lengths.tolist(), strict=True):
        pages = table.long()[: -(-length // k.shape[1])]
        keys, values = (x.view(torch.uint8)[pages].view(x.dtype).flatten(0, 1) for x in (k, v))
        yield one, keys[:length], values[:length]


def _attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, left: int) -> Tensor:
    """The newest queries of a context, score by score."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * q.shape[-1] ** -0.5
    behind = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
    hidden = (behind < 0) & is_causal
    if left >= 0:
        hidden |= behind > left
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)
