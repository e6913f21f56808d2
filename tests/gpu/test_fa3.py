"""FlashAttention-3 against the reference. Runs on a Hopper GPU where the library is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from workers.engines.native.contexts import DecodeContext
from workers.engines.native.kernels import fa3, reference

IS_HERE = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = pytest.mark.skipif(
    not IS_HERE or importlib.util.find_spec("flash_attn_3") is None,
    reason="FlashAttention-3 needs a Hopper GPU and its library",
)
PAGES, PAGE = 600, 64
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
HEADS = [(16, 2), (10, 2), (5, 1), (4, 4)]
WINDOWS = [None, 1, 64, 65, 1000, 10**6]
# Ragged, a token, and the borders of pages and of blocks of two.
LENGTHS = [1, 2, 63, 64, 65, 127, 128, 129, 1000, 4096, 20_000]


@pytest.fixture(autouse=True)
def _loaded() -> Iterator[None]:
    fa3.load()
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def caches(kv_heads: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(PAGES, PAGE, kv_heads, dim, device="cuda").to(dtype) for _ in range(2)]


def tables(rows: int, width: int) -> torch.Tensor:
    """Pages of which no request has two, and requests may have the same."""
    found = [torch.randperm(PAGES - 1, device="cuda")[:width] + 1 for _ in range(rows)]
    return torch.stack(found).int()


def int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, device="cuda", dtype=torch.int32)


def assert_close(out: torch.Tensor, expected: torch.Tensor, error: float = 1e-2) -> None:
    assert (out.dtype, out.shape) == (expected.dtype, expected.shape)
    for ours, theirs in zip(out.double(), expected.double(), strict=True):
        assert (ours - theirs).norm() < error * theirs.norm()


@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_decoding_whatever_the_lengths(
    dtype: torch.dtype, heads: tuple[int, int], window: int | None, dim: int
) -> None:
    q = torch.randn(len(LENGTHS), heads[0], dim, device="cuda").to(dtype)
    where = (tables(len(LENGTHS), 320), int32(LENGTHS))
    args = (q, *caches(heads[1], dim, dtype), *where, window)
    assert_close(fa3.decode_attention(*args), reference.decode_attention(*args))


@pytest.mark.parametrize("rows", [1, 100, 256, 1000])
def test_decoding_of_few_and_many_requests(rows: int) -> None:
    lengths = torch.randint(1, 6 * PAGE + 1, (rows,), device="cuda").int()
    q, where = torch.randn(rows, 10, 128, device="cuda").to(BF16), (tables(rows, 6), lengths)
    args = (q, *caches(2, 128, BF16), *where, None)
    assert_close(fa3.decode_attention(*args), reference.decode_attention(*args))


@pytest.mark.parametrize("window", [None, 100])
def test_decoding_over_a_cache_in_fp8(window: int | None) -> None:
    """Against the reference with the same queries in e4m3, whose probabilities are not: those are
    rounded to 2^-4 of themselves at most."""
    q = torch.randn(len(LENGTHS), 16, 128, device="cuda").to(BF16)
    args = (*caches(2, 128, FP8), tables(len(LENGTHS), 320), int32(LENGTHS), window)
    rounded = reference.narrowed(q, FP8).to(BF16)
    expected = reference.decode_attention(rounded, *args)
    assert_close(fa3.decode_attention(q, *args), expected, 2**-4)


@pytest.mark.parametrize("cache", [BF16, FP8])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
def test_chunks_of_prompts(heads: tuple[int, int], window: int | None, cache: torch.dtype) -> None:
    """A whole prompt, the end of a longer one, a chunk of one token, and one that fills a page."""
    new, whole = (300, 90, 1, PAGE), (300, 2500, 129, PAGE)
    slots = torch.randperm(PAGES * PAGE, device="cuda")[: sum(whole)]
    ends = [int32([0, *lens]).cumsum(0).int() for lens in (new, whole)]
    q = torch.randn(sum(new), heads[0], 128, device="cuda").to(BF16)
    args = (q, *caches(heads[1], 128, cache), slots, *ends, max(new), max(whole), window)
    assert_close(fa3.prefill_attention(*args), reference.prefill_attention(*args))


@pytest.mark.parametrize("cache", [BF16, FP8])
def test_a_captured_step_of_two_kinds_of_layers_follows_the_lengths(cache: torch.dtype) -> None:
    """Each replay works out anew how the contexts are cut, and the layers after the first use
    that."""
    rows, width = 5, 320
    q, kv = torch.randn(rows, 10, 128, device="cuda").to(BF16), caches(2, 128, cache)
    where = (tables(rows, width), int32([1] * rows))
    rounded = reference.narrowed(q, cache).to(BF16)

    def step() -> list[torch.Tensor]:
        context = DecodeContext(*where)
        return [context.attend(fa3, q, *kv, window) for window in (None, 700, None, 700)]

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = step()
    for lengths in ([1] * 5, [64, 65, 128, 1, 300], [20_000, 1, 1, 1, 1], [20_480] * 5, [7] * 5):
        where[1].copy_(int32(lengths))
        graph.replay()
        for out, window in zip(outs, (None, 700, None, 700), strict=True):
            expected = reference.decode_attention(rounded, *kv, *where, window)
            assert_close(out, expected, 2**-4 if cache == FP8 else 1e-2)


def test_a_captured_prefill_follows_the_prompts() -> None:
    """There is room for 256 tokens of four prompts; those that are not there have no token."""
    q, kv = torch.randn(256, 10, 128, device="cuda").to(BF16), caches(2, 128, BF16)
    slots, ends = torch.randperm(PAGES * PAGE, device="cuda")[:256], int32([0, *[256] * 5])
    args = (q, *kv, slots, ends, ends, 256, 256, None)
    fa3.prefill_attention(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fa3.prefill_attention(*args)
    for now in ([0, 70, 71, 200, 256, 256], [0, 1, 2, 3, 4, 256], [0, *[256] * 5]):
        ends.copy_(int32(now))
        graph.replay()
        assert_close(out, reference.prefill_attention(*args))
