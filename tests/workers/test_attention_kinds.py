"""The ways to compute attention in plain torch: each against the reference, on ragged contexts; and
the attention of a step by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from workers.engines.native.attention_time import attention_times
from workers.engines.native.cache import PagedCache
from workers.engines.native.kernels import dense, kernels_of, reference
from workers.engines.native.matrices import Plain
from workers.engines.native.runner import fullest_decode
from workers.engines.native.scheduler import Chunk, Sequence, Step
from workers.messages import Request
from workers.records import DECODE, PREFILL

PAGES, PAGE, DIM = 12, 16, 8
KINDS = [dense.EAGER, dense.SDPA]
WINDOWS = [None, 1, 7, 16, 1000]
HEADS = [(4, 2), (5, 1), (3, 3)]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        torch.manual_seed(0)
        yield


def caches(kv_heads: int) -> list[torch.Tensor]:
    return [torch.randn(PAGES, PAGE, kv_heads, DIM) for _ in range(2)]


@pytest.mark.parametrize("kind", KINDS, ids=["eager", "sdpa"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("window", WINDOWS)
def test_decoding_is_that_of_the_reference_whatever_the_lengths(
    kind: dense.Dense, heads: tuple[int, int], window: int | None
) -> None:
    lengths = torch.tensor([1, 2 * PAGE, 17, 40], dtype=torch.int32)
    tables = torch.tensor([[9, 0, 0], [3, 5, 0], [1, 2, 0], [7, 4, 11]], dtype=torch.int32)
    args = (torch.randn(4, heads[0], DIM), *caches(heads[1]), tables, lengths, window)
    torch.testing.assert_close(kind.decode_attention(*args), reference.decode_attention(*args))


@pytest.mark.parametrize("kind", KINDS, ids=["eager", "sdpa"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("window", WINDOWS)
def test_chunks_of_prompts_are_those_of_the_reference(
    kind: dense.Dense, heads: tuple[int, int], window: int | None
) -> None:
    """A whole prompt, the end of a longer one, and a chunk of one token."""
    new, contexts = (5, 20, 1), (5, 50, 17)
    slots = torch.randperm(PAGES * PAGE)[: sum(contexts)]
    ends = [torch.tensor([0, *lens]).cumsum(0).int() for lens in (new, contexts)]
    q = torch.randn(sum(new), heads[0], DIM)
    args = (q, *caches(heads[1]), slots, *ends, max(new), max(contexts), window)
    torch.testing.assert_close(kind.prefill_attention(*args), reference.prefill_attention(*args))


def test_the_switches_choose_the_kernels() -> None:
    assert kernels_of("eager", fusion=False).attention is dense.EAGER
    assert kernels_of("sdpa", fusion=False).attention is dense.SDPA
    assert kernels_of("sdpa", fusion=False).pointwise is reference


class _Layer:
    def __init__(self, window: int | None) -> None:
        self.window, self.qkv = (
            window,
            Plain(torch.zeros((4 + 2 * 2) * DIM, 1), reference, F.linear),
        )
        self.input_norm = torch.zeros(1)


class _Decoder:
    attention = dense.SDPA

    def __init__(self, *windows: int | None) -> None:
        layers = dict(enumerate(map(_Layer, windows)))
        self.layers = {PREFILL: layers, DECODE: layers}


def test_the_arithmetic_of_attention_is_of_the_fullest_step_and_what_its_windows_show() -> None:
    """A prompt of 100 tokens in chunks of 60 and 40, and two decode steps, the second of two
    sequences."""
    shape = (4, 64, 2, DIM)
    cache = PagedCache(*({i: torch.zeros(shape) for i in range(2)} for _ in range(2)), pages=3)
    long, short = (
        Sequence(Request(i, (1,) * n, 9), i, pages)
        for i, (n, pages) in enumerate(((100, [1, 2]), (3, [3])))
    )
    steps = [
        Step(0, PREFILL, 0, (Chunk(long, 0, 60),), ()),
        Step(1, PREFILL, 0, (Chunk(long, 60, 40), Chunk(short, 0, 3)), (long, short)),
        Step(2, DECODE, 0, (), (long,)),
        Step(3, DECODE, 0, (), (long, short)),
    ]
    assert fullest_decode(steps) == steps[3]
    prefill, decode = attention_times(_Decoder(None, 10), cache, steps, width=2)  # type: ignore
    pairs = sum(range(1, 61)) + sum(min(at, 10) for at in range(1, 61))
    assert (prefill.phase, prefill.operations) == (PREFILL, 4 * 4 * DIM * pairs)
    # `long` has made two tokens before, `short` one.
    assert (decode.phase, decode.operations) == (DECODE, 4 * 4 * DIM * (102 + 10 + 4 + 4))
    assert min(prefill.seconds, decode.seconds) > 0
    # Of several such steps it is the last, with the longest contexts.
    more = [*steps, Step(4, DECODE, 0, (), (long, short))]
    assert fullest_decode(more) == more[4]
    _, decode = attention_times(_Decoder(None, 10), cache, more, width=2)  # type: ignore
    assert decode.operations == 4 * 4 * DIM * (103 + 10 + 5 + 5)


def test_a_cpu_reads_as_many_contexts_together_as_its_cache_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each as long as the longest of those that are read with it, in whole pages."""
    seen: list[tuple[int, int]] = []

    def attend(q: torch.Tensor, k: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        seen.append((k.shape[0], k.shape[2]))
        return q

    token = 2 * DIM * 4
    monkeypatch.setattr(dense, "AT_ONCE", 2 * 40 * token)
    tables, lengths = torch.ones(3, 3, dtype=torch.int32), torch.tensor([5, 17, 40])
    dense.Dense(attend).decode_attention(
        torch.zeros(3, 4, DIM), *caches(2), tables, lengths.int(), None
    )
    assert seen == [(2, 2 * PAGE), (1, 3 * PAGE)]
