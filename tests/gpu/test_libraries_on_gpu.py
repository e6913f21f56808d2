"""Libraries of attention against the reference. Each runs where it is installed, on Hopper.

FlashInfer compiles a kernel for each group of heads, head dim, dtype of KV and use of a window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest
import torch

from workers.engines.native.contexts import DecodeContext
from workers.engines.native.kernels import Attention, kernels_of, reference
from workers.engines.native.support import LIBRARIES

IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = pytest.mark.skipif(not IS_HOPPER, reason="the libraries are for Hopper GPUs")
PAGES, PAGE = 600, 64
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
HEADS = [(16, 2), (10, 2), (5, 1), (4, 4)]
WINDOWS = [None, 1, 64, 65, 1000, 10**6]
SLIDING = [((10, 2), window) for window in WINDOWS if window is not None]
# Ragged, a token, and the borders of pages and of blocks of two.
LENGTHS = [1, 2, 63, 64, 65, 127, 128, 129, 1000, 4096, 20_000]


Load = Callable[[str], Attention]


@pytest.fixture(scope="module")
def load() -> Load:
    """A kind by its name, once."""
    loaded: dict[str, Attention] = {}

    def of(kind: str) -> Attention:
        if find_spec(LIBRARIES[kind].module) is None:
            pytest.skip(f"{LIBRARIES[kind].name} is not installed")
        if kind not in loaded:
            loaded[kind] = kernels_of(kind, fusion=True).attention
        return loaded[kind]

    return of


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
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
    dtype: torch.dtype, heads: tuple[int, int], window: int | None, dim: int, load: Load
) -> None:
    check_decoding(load("fa3"), dtype, heads, window, dim)


@pytest.mark.parametrize(("heads", "window"), [((16, 2), None), ((10, 2), None), *SLIDING])
def test_decoding_by_flashinfer_whatever_the_lengths(
    heads: tuple[int, int], window: int | None, load: Load
) -> None:
    check_decoding(load("flashinfer"), BF16, heads, window, 128)


def check_decoding(
    attention: Attention, dtype: torch.dtype, heads: tuple[int, int], window: int | None, dim: int
) -> None:
    q = torch.randn(len(LENGTHS), heads[0], dim, device="cuda").to(dtype)
    where = (tables(len(LENGTHS), 320), int32(LENGTHS))
    args = (q, *caches(heads[1], dim, dtype), *where, window)
    assert_close(attention.decode_attention(*args), reference.decode_attention(*args))


@pytest.mark.parametrize("kind", LIBRARIES)
@pytest.mark.parametrize("rows", [1, 100, 256, 1000])
def test_decoding_of_few_and_many_requests(rows: int, kind: str, load: Load) -> None:
    lengths = torch.randint(1, 6 * PAGE + 1, (rows,), device="cuda").int()
    q, where = torch.randn(rows, 10, 128, device="cuda").to(BF16), (tables(rows, 6), lengths)
    args = (q, *caches(2, 128, BF16), *where, None)
    assert_close(load(kind).decode_attention(*args), reference.decode_attention(*args))


@pytest.mark.parametrize(("kind", "window"), [("fa3", None), ("fa3", 100), ("flashinfer", None)])
def test_decoding_over_a_cache_in_fp8(kind: str, window: int | None, load: Load) -> None:
    """Against the reference with the same queries in e4m3, whose probabilities are not: those are
    rounded to 2^-4 of themselves at most."""
    q = torch.randn(len(LENGTHS), 10, 128, device="cuda").to(BF16)
    args = (*caches(2, 128, FP8), tables(len(LENGTHS), 320), int32(LENGTHS), window)
    rounded = reference.narrowed(q, FP8).to(BF16)
    expected = reference.decode_attention(rounded, *args)
    assert_close(load(kind).decode_attention(q, *args), expected, 2**-4)


@pytest.mark.parametrize("kind", ["fa3", "fa3-prefill"])
@pytest.mark.parametrize("cache", [BF16, FP8])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
def test_chunks_of_prompts(
    heads: tuple[int, int], window: int | None, cache: torch.dtype, kind: str, load: Load
) -> None:
    """A whole prompt, the end of a longer one, a chunk of one token, and one that fills a page."""
    new, whole = (300, 90, 1, PAGE), (300, 2500, 129, PAGE)
    slots = torch.randperm(PAGES * PAGE, device="cuda")[: sum(whole)]
    ends = [int32([0, *lens]).cumsum(0).int() for lens in (new, whole)]
    q = torch.randn(sum(new), heads[0], 128, device="cuda").to(BF16)
    args = (q, *caches(heads[1], 128, cache), slots, *ends, max(new), max(whole), window)
    assert_close(load(kind).prefill_attention(*args), reference.prefill_attention(*args))


@pytest.mark.parametrize(("kind", "cache"), [("fa3", BF16), ("fa3", FP8), ("flashinfer", BF16)])
def test_a_captured_step_of_two_kinds_of_layers_follows_the_lengths(
    kind: str, cache: torch.dtype, load: Load
) -> None:
    """Each replay works out anew how the contexts are cut, and the layers after the first use
    that."""
    rows, width = 5, 320
    q, kv = torch.randn(rows, 10, 128, device="cuda").to(BF16), caches(2, 128, cache)
    where = (tables(rows, width), int32([1] * rows))
    rounded = reference.narrowed(q, cache).to(BF16)

    def step() -> list[torch.Tensor]:
        context = DecodeContext(*where)
        return [context.attend(load(kind), q, *kv, window) for window in (None, 700, None, 700)]

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


def test_a_captured_prefill_follows_the_prompts(load: Load) -> None:
    """There is room for 256 tokens of four prompts; those that are not there have no token."""
    q, kv = torch.randn(256, 10, 128, device="cuda").to(BF16), caches(2, 128, BF16)
    slots, ends = torch.randperm(PAGES * PAGE, device="cuda")[:256], int32([0, *[256] * 5])
    args = (q, *kv, slots, ends, ends, 256, 256, None)
    attention = load("fa3")
    attention.prefill_attention(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention.prefill_attention(*args)
    for now in ([0, 70, 71, 200, 256, 256], [0, 1, 2, 3, 4, 256], [0, *[256] * 5]):
        ends.copy_(int32(now))
        graph.replay()
        assert_close(out, reference.prefill_attention(*args))
