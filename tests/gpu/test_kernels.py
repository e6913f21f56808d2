"""Every fused kernel against its plain-torch reference. Runs where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from workers.engines.native.kernels import reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton kernels need a GPU")
DTYPES = [torch.bfloat16, torch.float32]


def close(out: torch.Tensor, expected: torch.Tensor) -> bool:
    error = (out.double() - expected.double()).norm() / expected.double().norm()
    return bool(error < (8e-3 if out.dtype == torch.bfloat16 else 1e-3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8192), (37, 5120), (3, 96)])
def test_norms(shape: tuple[int, int], dtype: torch.dtype) -> None:
    from workers.engines.native.kernels import fused

    x, residual = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(2))
    weight = torch.randn(shape[1], device="cuda", dtype=dtype)
    assert close(fused.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    ours, theirs = residual.clone(), residual.clone()
    assert close(
        fused.add_rms_norm(x, ours, weight, 1e-5), reference.add_rms_norm(x, theirs, weight, 1e-5)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [7168, 100])
def test_silu_mul(width: int, dtype: torch.dtype) -> None:
    from workers.engines.native.kernels import fused

    x = torch.randn(33, 2 * width, device="cuda", dtype=dtype)
    assert close(fused.silu_mul(x), reference.silu_mul(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dim", [128, 96])
def test_rope_and_cache(dim: int, norm: bool, dtype: torch.dtype) -> None:
    from workers.engines.native.kernels import fused

    heads, kv_heads, rows = 10, 2, 19
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * dim, device="cuda", dtype=dtype)
    cos, sin = (torch.randn(64, dim // 2, device="cuda") for _ in range(2))
    positions = torch.randint(0, 64, (rows,), device="cuda")
    slot_mapping = torch.randperm(8 * 16, device="cuda")[:rows]
    weights = (
        [torch.randn(dim, device="cuda", dtype=dtype) for _ in range(2)] if norm else [None, None]
    )
    caches = [
        [torch.zeros(8, 16, kv_heads, dim, device="cuda", dtype=dtype) for _ in range(2)]
        for _ in range(2)
    ]
    outs = [
        module.rope_and_cache(qkv, cos, sin, positions, slot_mapping, *cache, *weights, 1e-6)
        for module, cache in zip((fused, reference), caches, strict=True)
    ]
    assert close(*outs)
    assert close(caches[0][0], caches[1][0])
    assert torch.equal(caches[0][1], caches[1][1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 5, 64, 65, 1000, 10**6])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "page"),
    # In 12, 2, 12, 12 and 3 parts: up to 4 are joined by the program that ends last.
    [(1, 16, 2, 64), (100, 16, 2, 64), (7, 10, 2, 64), (5, 4, 4, 16), (50, 8, 2, 64)],
)
def test_decode_attention(
    batch: int, heads: int, kv_heads: int, page: int, window: int | None, dtype: torch.dtype
) -> None:
    from workers.engines.native.kernels import paged

    pages = 24
    q = torch.randn(batch, heads, 128, device="cuda", dtype=dtype)
    keys, values = (
        torch.randn(batch * pages + 1, page, kv_heads, 128, device="cuda", dtype=dtype)
        for _ in range(2)
    )
    tables = (torch.randperm(batch * pages, device="cuda", dtype=torch.int32) + 1).view(
        batch, pages
    )
    lengths = torch.randint(1, pages * page + 1, (batch,), device="cuda", dtype=torch.int32)
    lengths[0] = 1
    args = (q, keys, values, tables, lengths, window)
    assert close(paged.decode_attention(*args), reference.decode_attention(*args))


@pytest.mark.parametrize("window", [None, 1, 7, 40, 64, 1000])
@pytest.mark.parametrize("heads", [(16, 2), (10, 2)])
def test_prefill_attention(heads: tuple[int, int], window: int | None) -> None:
    from workers.engines.native.kernels import paged

    query, context = (5, 64, 1), (5, 100, 17)
    q = torch.randn(sum(query), heads[0], 128, device="cuda", dtype=torch.bfloat16)
    keys, values = (
        torch.randn(8, 64, heads[1], 128, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    slot_mapping = torch.randperm(512, device="cuda")[: sum(context)]
    cu_seqlens = [
        torch.tensor([0, *lens], device="cuda").cumsum(0).int() for lens in (query, context)
    ]
    args = (q, keys, values, slot_mapping, *cu_seqlens, max(query), max(context), window)
    assert close(paged.prefill_attention(*args), reference.prefill_attention(*args))


def test_the_window_of_a_captured_decode_moves_with_the_positions() -> None:
    """What a graph has captured is read from `lengths` at each replay."""
    from workers.engines.native.kernels import paged

    q = torch.randn(2, 8, 64, device="cuda", dtype=torch.bfloat16)
    keys, values = (
        torch.randn(9, 64, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    tables = torch.tensor([[3, 1, 7, 5], [2, 8, 4, 6]], device="cuda", dtype=torch.int32)
    lengths = torch.ones(2, device="cuda", dtype=torch.int32)
    args = (q, keys, values, tables, lengths, 70)
    paged.decode_attention(*args)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = paged.decode_attention(*args)
    for now in ([1, 256], [70, 71], [200, 133]):
        lengths.copy_(torch.tensor(now, dtype=torch.int32))
        graph.replay()
        assert close(out, reference.decode_attention(*args))


def test_dummy_weights_are_the_same_on_gpu_and_cpu() -> None:
    from workers.weights import dummy_tensor

    box = (slice(3, 300), slice(64, 128))
    parts = [
        dummy_tensor("a.weight", (512, 256), box, torch.float32, device)
        for device in ("cuda", "cpu")
    ]
    assert torch.equal(parts[0].cpu(), parts[1])
