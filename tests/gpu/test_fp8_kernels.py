"""FP8 on a GPU: each Triton kernel, and cuBLAS's product, against plain torch on the same tensors.
Needs compute capability 8.9 or more (Ada, Hopper). Shapes are random, ragged and at edges: sizes
that are no multiple of a block, a warp or 16, and those of the models that are measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from logits import prompt_logits
from ranks import engine_plan, ragged_requests
from replays import replayed

from orchestrator.plan import models
from workers.actor import Worker
from workers.engines.native.kernels import fp8, reference
from workers.engines.native.kernels.fp8 import Fp8, Fp8Weight
from workers.messages import Work

HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
IS_HOPPER = HAS_FP8 and torch.cuda.get_device_capability()[0] == 9
pytestmark = pytest.mark.skipif(not HAS_FP8, reason="needs a GPU with FP8")

CHANNELS, BLOCKS = "channels", (128, 128)
# (output channels, inputs), with the most rows that are streamed on Hopper.
SHAPES = [
    ((16, 32), 0),
    ((48, 96), 0),
    ((130, 200), 0),
    ((1000, 1000), 0),
    ((3584, 5120), 128),
    ((5120, 13824), 128),
    ((5120, 3328), 128),  # 512 do not divide the inputs
    ((14336, 8192), 64),
    ((34000, 512), 64),  # some programs have more tiles of outputs than others
]


def weight_of(shape: tuple[int, int], form: object, stored: float | None = None) -> Fp8Weight:
    """A random matrix in one of the two forms, made FP8 by the reference."""
    plain = torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02
    share = (1, shape[1]) if form == CHANNELS else BLOCKS
    scales = fp8.largest_of(plain, share) / reference.LARGEST
    inputs = None if stored is None else torch.tensor([stored], device="cuda")
    return Fp8Weight(fp8.made_fp8(plain, scales, share), scales, share, inputs)


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())


def same(ours: Fp8, theirs: Fp8, weight: Fp8Weight) -> bool:
    """Equal scales; values equal, but for those between two of e4m3, which may go to either."""
    real = [fp8.spread(one.values, one.scales, (1, weight.share[1])) for one in (ours, theirs)]
    differ = (ours.values.float() != theirs.values.float()).float().mean()
    return error(ours.scales, theirs.scales) < 1e-5 and error(*real) < 5e-3 and differ < 0.01


@pytest.mark.parametrize("stored", [None, 0.01])
@pytest.mark.parametrize("form", [CHANNELS, BLOCKS])
@pytest.mark.parametrize(("rows", "width"), [(1, 8192), (37, 5120), (3, 96), (5, 200), (2, 28672)])
def test_what_quantises_is_what_the_reference_makes(
    rows: int, width: int, form: object, stored: float | None
) -> None:
    from workers.engines.native.kernels import fused_fp8

    weight = weight_of((16, width), form, stored)
    x, residual = (torch.randn(rows, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    gate_up = torch.randn(rows, 2 * width, device="cuda", dtype=torch.bfloat16)
    norm = torch.randn(width, device="cuda", dtype=torch.bfloat16)
    assert same(fused_fp8.quantize(x, weight), fp8.quantize(x, weight), weight)
    for ours, theirs in (
        (fused_fp8.rms_norm(x, norm, 1e-5, weight), reference.rms_norm(x, norm, 1e-5)),
        (fused_fp8.silu_mul(gate_up, weight), reference.silu_mul(gate_up)),
    ):
        # Both round to bfloat16 before: where that differs, the scale may.
        real = fp8.spread(ours.values, ours.scales, (1, weight.share[1]))
        wanted = fp8.quantize(theirs, weight)
        assert error(real, fp8.spread(wanted.values, wanted.scales, (1, weight.share[1]))) < 2e-2
    mine, other = residual.clone(), residual.clone()
    fused_fp8.add_rms_norm(x, mine, norm, 1e-5, weight)
    fp8.add_rms_norm(x, other, norm, 1e-5, weight)
    assert torch.equal(mine, other)


def test_what_is_not_a_number_stays_none_and_zeros_stay_zeros() -> None:
    from workers.engines.native.kernels import fused_fp8

    x = torch.zeros(3, 256, device="cuda", dtype=torch.bfloat16)
    x[1, 5], x[2, 7] = float("nan"), float("inf")
    for form in (CHANNELS, BLOCKS):
        found = fused_fp8.quantize(x, weight_of((16, 256), form)).values.float()
        assert (found[0] == 0).all()
        assert found[1:].isnan().any(1).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", [CHANNELS, BLOCKS])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 17, 32, 33, 64, 100, 128, 257])
@pytest.mark.parametrize(("shape", "most"), SHAPES)
def test_products(shape: tuple[int, int], most: int, rows: int, form: object, bias: bool) -> None:
    """By our kernels, and else by cuBLAS, whose fast accumulation rounds sums."""
    from workers.engines.native.kernels import fused_fp8

    weight = weight_of(shape, form)
    x = fp8.quantize(torch.randn(rows, shape[1], device="cuda", dtype=torch.bfloat16), weight)
    added = torch.randn(shape[0], device="cuda", dtype=torch.bfloat16) if bias else None
    ours = fused_fp8.linear(x, weight, added, torch.bfloat16)
    assert ours.shape == (rows, shape[0])
    if form == CHANNELS and IS_HOPPER:
        assert (fused_fp8.chosen(x, weight) is not None) == (rows <= most)
    assert error(ours, fp8.linear(x, weight, added, torch.bfloat16)) < 1e-2


@pytest.mark.parametrize("rows", [4, 64])
def test_a_captured_product_reads_its_inputs_at_each_replay(rows: int) -> None:
    from workers.engines.native.kernels import fused_fp8

    weight = weight_of((512, 1024), CHANNELS)
    x = torch.randn(rows, 1024, device="cuda", dtype=torch.bfloat16)

    def product() -> torch.Tensor:
        return fused_fp8.linear(fused_fp8.quantize(x, weight), weight, None, torch.bfloat16)

    product()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = product()
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        wanted = fp8.linear(fp8.quantize(x, weight), weight, None, torch.bfloat16)
        assert error(out, wanted) < 1e-2


@pytest.mark.skipif(not IS_HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize("rows", [1, 40, 100])
def test_products_that_are_streamed_are_replayed_alike(rows: int) -> None:
    """Each reads what the one before wrote, over and over in the same memory."""
    from workers.engines.native.kernels import early, fused_fp8

    weights = [weight_of((5120, 5120), CHANNELS) for _ in range(4)]
    start = torch.randn(rows, 5120, device="cuda", dtype=torch.bfloat16)

    def chain() -> torch.Tensor:
        x = start.clone()
        for weight in weights * 10:
            x = fused_fp8.linear(fused_fp8.quantize(x, weight), weight, None, torch.bfloat16)
        return x

    expected = chain()
    early.settle(True)
    try:
        assert torch.equal(chain(), expected)
        assert torch.equal(replayed(chain), expected)
    finally:
        early.settle(False)


@pytest.mark.skipif(not IS_HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize("rows", [1, 7, 33, 64])
@pytest.mark.parametrize("shape", [(27648, 5120), (12800, 512), (5120, 768)])
@pytest.mark.parametrize("down", [None, CHANNELS, BLOCKS])
def test_gate_and_up_are_multiplied_in_their_product(
    shape: tuple[int, int], rows: int, down: object
) -> None:
    """And quantised by what the product has found, where a token has one scale."""
    from workers.engines.native.kernels import fused, fused_fp8

    weight = weight_of(shape, CHANNELS)
    reads = weight_of((256, shape[0] // 2), down) if down else None
    x = fp8.quantize(torch.randn(rows, shape[1], device="cuda", dtype=torch.bfloat16), weight)
    product = fused_fp8.linear(x, weight, None, torch.bfloat16)
    made = fused_fp8.gated(x, weight, torch.bfloat16, reads)
    assert made is not None
    if reads is None:
        assert error(made, fused.silu_mul(product)) < 2e-3
    else:
        wanted = fused_fp8.silu_mul(product, reads)
        assert error(made.scales, wanted.scales) < 2e-3
        assert error(made.values.float(), wanted.values.float()) < 1e-2


@pytest.mark.skipif(not IS_HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize("cached", [torch.bfloat16, reference.FP8])
@pytest.mark.parametrize("rows", [1, 7, 33, 64, 100])
@pytest.mark.parametrize(("shape", "dim"), [((3584, 5120), 128), ((3072, 512), 64)])
def test_queries_are_turned_and_keys_and_values_cached_in_their_product(
    shape: tuple[int, int], dim: int, rows: int, cached: torch.dtype
) -> None:
    from workers.engines.native.kernels import fused, fused_fp8

    weight, kv_heads = weight_of(shape, CHANNELS), 4
    x = fp8.quantize(torch.randn(rows, shape[1], device="cuda", dtype=torch.bfloat16), weight)
    bias = torch.randn(shape[0], device="cuda", dtype=torch.bfloat16)
    cos, sin = (torch.randn(64, dim // 2, device="cuda") for _ in range(2))
    positions = torch.randint(0, 64, (rows,), device="cuda")
    slots = torch.randperm(8 * 16, device="cuda")[:rows]
    caches = [
        [torch.zeros(8, 16, kv_heads, dim, device="cuda").to(cached) for _ in range(2)]
        for _ in range(2)
    ]
    one, other = (
        reference.Rope(cos, sin, positions, slots, *both, None, None, 1e-6) for both in caches
    )
    made = fused_fp8.queries(x, weight, bias, torch.bfloat16, one)
    assert made is not None
    product = fused_fp8.linear(x, weight, bias, torch.bfloat16)
    assert error(made, fused.rope_and_cache(product, *other)) < 2e-3
    assert error(one.keys.float(), other.keys.float()) < 2e-3
    assert error(one.values.float(), other.values.float()) < 2e-3


# -- the cache


@pytest.mark.parametrize("dim", [128, 64])
def test_keys_and_values_are_cached_in_e4m3(dim: int) -> None:
    from workers.engines.native.kernels import fused

    heads, kv_heads, rows = 10, 2, 19
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * dim, device="cuda", dtype=torch.bfloat16)
    qkv[3, -5] = 1e4  # beyond e4m3
    cos, sin = (torch.randn(64, dim // 2, device="cuda") for _ in range(2))
    positions = torch.randint(0, 64, (rows,), device="cuda")
    slots = torch.randperm(8 * 16, device="cuda")[:rows]
    caches = [
        [torch.zeros(8, 16, kv_heads, dim, device="cuda").to(reference.FP8) for _ in range(2)]
        for _ in range(2)
    ]
    outs = [
        module.rope_and_cache(qkv, cos, sin, positions, slots, *cache, None, None, 1e-6)
        for module, cache in zip((fused, reference), caches, strict=True)
    ]
    assert error(*outs) < 8e-3
    # The kernel rotates in float32, and rounds to bfloat16 on the way to e4m3.
    wide = [torch.zeros(8, 16, kv_heads, dim, device="cuda") for _ in range(2)]
    reference.rope_and_cache(qkv.float(), cos, sin, positions, slots, *wide, None, None, 1e-6)
    assert error(caches[0][0].float(), wide[0].bfloat16().to(reference.FP8).float()) < 2e-2
    assert torch.equal(caches[0][1].float(), caches[1][1].float())
    assert caches[0][1].float().max() == reference.LARGEST


@pytest.mark.parametrize("window", [None, 5, 64, 1000])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "page"), [(1, 16, 2, 64), (100, 10, 2, 64), (5, 4, 4, 16)]
)
def test_decoding_reads_a_cache_in_e4m3(
    batch: int, heads: int, kv_heads: int, page: int, window: int | None
) -> None:
    from workers.engines.native.kernels import paged

    pages = 24
    q = torch.randn(batch, heads, 128, device="cuda", dtype=torch.bfloat16)
    keys, values = (
        torch.randn(batch * pages + 1, page, kv_heads, 128, device="cuda").to(reference.FP8)
        for _ in range(2)
    )
    order = torch.randperm(batch * pages, device="cuda", dtype=torch.int32) + 1
    lengths = torch.randint(1, pages * page + 1, (batch,), device="cuda", dtype=torch.int32)
    lengths[0] = 1
    args = (q, keys, values, order.view(batch, pages), lengths, window)
    assert error(paged.decode_attention(*args), reference.decode_attention(*args)) < 8e-3


@pytest.mark.parametrize("window", [None, 7, 64])
def test_prompts_read_a_cache_in_e4m3(window: int | None) -> None:
    from workers.engines.native.kernels import paged

    query, context = (5, 64, 1), (5, 100, 17)
    q = torch.randn(sum(query), 16, 128, device="cuda", dtype=torch.bfloat16)
    keys, values = (torch.randn(8, 64, 2, 128, device="cuda").to(reference.FP8) for _ in range(2))
    slots = torch.randperm(512, device="cuda")[: sum(context)]
    ends = [torch.tensor([0, *lens], device="cuda").cumsum(0).int() for lens in (query, context)]
    args = (q, keys, values, slots, *ends, max(query), max(context), window)
    assert error(paged.prefill_attention(*args), reference.prefill_attention(*args)) < 8e-3


# -- the engine

FORMS = [("fp8", "auto"), ("none", "fp8"), ("fp8", "fp8"), ("fp8-prefill", "auto")]


@pytest.mark.parametrize(("quantization", "kv_cache_dtype"), FORMS)
def test_the_demos_model_has_the_logits_of_a_cpu_and_is_served(
    quantization: str, kv_cache_dtype: str
) -> None:
    """In bfloat16 on both, so sums are rounded otherwise, and so are inputs to FP8 from the second
    layer on: neither is nearer to what is lost by FP8 than the other."""
    model = models.resolve("tiny")
    assert isinstance(model.checkpoint, Path)
    work = Work(ragged_requests(model.shape.vocab_size, count=9), max_concurrency=4)
    plans = [
        engine_plan(
            "tp1", model.shape, model.checkpoint, work, device=device, dtype="bfloat16",
            quantization=quantization, kv_cache_dtype=kv_cache_dtype,
        )
        for device in ("cuda", "cpu")
    ]  # fmt: skip
    plain = engine_plan("tp1", model.shape, model.checkpoint, work)
    prompt = max((request.prompt for request in work.requests), key=len)
    ours, theirs, exact = (prompt_logits(plan, prompt).float().cpu() for plan in (*plans, plain))
    assert error(ours, exact) < 1.25 * error(theirs, exact)
    assert error(ours, theirs) < 1.25 * error(theirs, exact)
    worker = Worker()
    try:
        worker.build("torch", plans[0], None)
        report = worker.run(work)
    finally:
        worker.close()
    assert report.requests is not None  # type: ignore[union-attr]
    made = report.requests["output_len"].to_pylist()  # type: ignore[union-attr]
    assert made == [request.output_len for request in work.requests]
