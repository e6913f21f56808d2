"""The kernels before the layers of a step and behind them, against plain torch. Runs where there is
a GPU, or under Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/gpu/test_ends.py`."""

from __future__ import annotations

import math
import os

import pytest
import torch

from workers.engines.native.kernels import ends
from workers.engines.native.pages import PAGE
from workers.messages import BROKEN

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED), reason="Triton kernels need a GPU"
)
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("pages", [1, 7, 1500])
@pytest.mark.parametrize("rows", [[0], [3, 1, 8, 0], [2, 8, 8, 8]])  # 8: the padding
def test_a_step_begins(rows: list[int], pages: int) -> None:
    from workers.engines.native.kernels import fused_ends

    drawn = torch.Generator().manual_seed(pages)
    token = torch.randint(0, 150_000, (9,), generator=drawn)
    position = torch.randint(0, pages * PAGE, (9,), generator=drawn)
    tables = torch.randint(0, 5000, (9, pages), generator=drawn, dtype=torch.int32)
    position[8] = 0
    state, same = ([one.to(DEVICE) for one in (token, position.clone(), tables)] for _ in range(2))
    at = torch.tensor(rows, device=DEVICE)
    both = ((fused_ends, state), (ends, same))
    for _ in range(2):  # the second one goes on from the first
        state[1].clamp_(max=pages * PAGE - 1)
        same[1].clamp_(max=pages * PAGE - 1)
        found, expected = (m.begun(at, *s, PAGE) for m, s in both)
        assert [one.dtype for one in found] == [one.dtype for one in expected]
        assert all(map(torch.equal, found, expected))
        assert torch.equal(state[1], same[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [96, 5120])
def test_an_embedding_of_another_shard_is_zero(width: int, dtype: torch.dtype) -> None:
    from workers.engines.native.kernels import fused_ends

    table = torch.randn(50, width, device=DEVICE).to(dtype)
    tokens = torch.tensor([0, 99, 100, 149, 150, 151_000, 120], device=DEVICE)
    found = fused_ends.embedded(tokens, table, 100)
    assert torch.equal(found, ends.embedded(tokens, table, 100))
    assert torch.equal(found[2], table[0])
    assert not found[[0, 1, 4, 5]].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [5, 4096, 4097, 76_032])
def test_the_first_of_the_greatest_logits_is_found(width: int, dtype: torch.dtype) -> None:
    from workers.engines.native.kernels import fused_ends

    logits = torch.randn(6, width, device=DEVICE).to(dtype)
    logits[0] = 1.0  # the same everywhere
    logits[1, -1] = logits[1, width // 2] = 100.0
    logits[2] = -1e30
    found, expected = (one.likeliest(logits, 77, True) for one in (fused_ends, ends))
    assert torch.equal(found, expected)
    assert found[:2, 1].tolist() == [77, 77 + width // 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_told(value: float) -> None:
    from workers.engines.native.kernels import fused_ends

    logits = torch.randn(2, 3, 9000, device=DEVICE)  # of two shards
    logits[1, 1, 8999] = value
    for module in (fused_ends, ends):
        mine = torch.stack([module.likeliest(logits[r], 9000 * r, True) for r in range(2)])
        tokens = module.chosen(mine, BROKEN)
        assert (tokens == BROKEN).tolist() == [False, True, False]
        whole = logits[:, 0].flatten().argmax()
        assert tokens[0] == whole


@pytest.mark.parametrize("width", [5, 4097, 9000])
def test_a_token_of_nothing_but_nan_is_in_the_shard(width: int) -> None:
    from workers.engines.native.kernels import fused_ends

    logits = torch.full((2, width), math.nan, device=DEVICE)
    found = fused_ends.likeliest(logits, 100, False)[:, 1]
    assert ((found >= 100) & (found < 100 + width)).all()
    tokens = fused_ends.chosen(found[None, :, None].expand(3, 2, 2) * math.nan, BROKEN)
    assert (tokens == BROKEN).all()


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_the_token_of_the_greatest_logit_of_all_shards_is_chosen(shards: int) -> None:
    from workers.engines.native.kernels import fused_ends

    candidates = torch.randint(0, 4, (shards, 33, 2), device=DEVICE).float()  # with many ties
    candidates[..., 1] += 16_000_000 + 10 * torch.arange(shards, device=DEVICE)[:, None]
    for broken in (BROKEN, None):
        found = fused_ends.chosen(candidates, broken)
        assert found.dtype == torch.int64
        assert torch.equal(found, ends.chosen(candidates, broken))
