"""Products of few rows in Triton and Gluon against torch's, launched early and not, in graphs too.
Shapes are those of models, of each kind of tile, and ragged ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from ranks import BASE, FAMILIES, engine_plan, ragged_requests, tokens
from replays import replayed

from strategies.shapes import ModelShape
from workers.actor import Worker
from workers.engines.native.kernels.reference import Rope
from workers.messages import RankReport, Switches, Work

IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = pytest.mark.skipif(not IS_HOPPER, reason="needs a Hopper GPU")
if IS_HOPPER:
    from workers.engines.native.kernels import early, fused, products

# (output channels, inputs), with the width of the tile of 16 rows or fewer, and whether it is
# streamed: a width of 0 is cuBLAS's.
SHAPES = [
    ((27648, 5120), 128, True),
    ((33700, 256), 128, True),  # two tiles of outputs a program, each of fewer than stages
    ((55300, 256), 128, False),  # more than two
    ((12810, 128), 128, True),  # one tile of inputs, and fewer programs than may be
    ((12800, 8192), 128, True),
    ((5120, 13824), 64, True),
    ((8192, 4096), 64, True),
    ((10240, 8192), 64, False),
    ((3584, 5120), 64, True),
    ((5120, 384), 64, True),  # three tiles of inputs in six stages
    ((4100, 1024), 64, True),
    ((1792, 5120), 16, False),
    ((130, 1024), 16, False),
    ((5120, 1000), 0, False),
]
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 6400,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "architectures": ["LlamaForCausalLM"],
}
# qkv, and gate and up, are streamed.
SHAPE = ModelShape.from_config({**BASE, **FAMILIES["Llama"], **SIZES}, "llama")
WORK = Work(ragged_requests(SHAPE.vocab_size, count=20), max_concurrency=16)


@pytest.fixture(autouse=True, params=[True, False], ids=["early", "late"])
def is_early(request: pytest.FixtureRequest) -> Iterator[bool]:
    early.settle(request.param)
    yield request.param
    early.settle(False)


@pytest.mark.parametrize(("dtype", "bias"), [(torch.bfloat16, True), (torch.float16, False)])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 17, 33, 64, 65])
@pytest.mark.parametrize(("shape", "width", "is_streamed"), SHAPES)
def test_a_product_is_torchs(
    shape: tuple[int, int], width: int, is_streamed: bool, rows: int, bias: bool, dtype: torch.dtype
) -> None:
    x, weight, added = operands(shape, rows, dtype)
    check(x, weight, added if bias else None)
    tile = products.chosen(x, weight)
    if rows <= 16:
        assert (tile.outputs, tile.streamed) == (width, is_streamed) if tile else width == 0
    assert tile is None or rows <= products.FEW_ROWS


@pytest.mark.parametrize("shape", [(27648, 5120), (5120, 13824), (3584, 5120)])
def test_without_gluon_it_is_tritons_or_cublass(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "STREAMS", False)
    x, weight, _ = operands(shape, 7, torch.bfloat16)
    tile = products.chosen(x, weight)
    assert tile is None or not tile.streamed
    check(x, weight, None)


def operands(shape: tuple[int, int], rows: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Tokens, a matrix and a bias."""
    shapes = [(rows, shape[1]), shape, shape[:1]]
    x, weight, bias = (torch.randn(one, device="cuda", dtype=dtype) for one in shapes)
    return [x, weight * 0.02, bias]


def check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Our error is no larger than torch's."""
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    ours, theirs = products.linear(x, weight, bias), F.linear(x, weight, bias)
    error = (ours.double() - exact).norm() / exact.norm()
    assert error < 1.2 * (theirs.double() - exact).norm() / exact.norm() + 1e-5


@pytest.mark.parametrize("rows", [1, 7, 16, 33, 64])
@pytest.mark.parametrize("shape", [(27648, 5120), (33792, 256), (12800, 128), (5120, 384)])
def test_gate_and_up_are_multiplied_in_their_product(shape: tuple[int, int], rows: int) -> None:
    x, weight, _ = operands(shape, rows, torch.bfloat16)
    made = products.gated(x, weight)
    assert made is not None
    assert close(made, fused.silu_mul(products.linear(x, weight)))


def test_what_is_not_streamed_is_left_to_two_kernels() -> None:
    x, weight, _ = operands((55300, 256), 7, torch.bfloat16)
    assert products.gated(x, weight) is None
    x, weight, bias = operands((3584, 1024), 7, torch.bfloat16)
    assert products.gated(x[:, :1000].contiguous(), weight[:, :1000].contiguous()) is None
    norm = torch.ones(128, device="cuda", dtype=torch.bfloat16)
    for dim, norms in ((128, (norm, norm)), (96, (None, None))):
        assert products.queries(x, weight, bias, rope_of(7, 4, dim, torch.bfloat16, *norms)) is None


@pytest.mark.parametrize("cached", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 16, 33, 64])
@pytest.mark.parametrize(
    ("shape", "kv_heads", "dim"),
    [((3584, 5120), 4, 128), ((5120, 8192), 4, 128), ((3072, 256), 8, 64), ((3584, 384), 1, 256)],
)
def test_queries_are_turned_and_keys_and_values_cached_in_their_product(
    shape: tuple[int, int], kv_heads: int, dim: int, rows: int, has_bias: bool, cached: torch.dtype
) -> None:
    x, weight, added = operands(shape, rows, torch.bfloat16)
    bias = added if has_bias else None
    one, other = (rope_of(rows, kv_heads, dim, cached) for _ in range(2))
    made = products.queries(x, weight, bias, one)
    assert made is not None
    assert close(made, fused.rope_and_cache(products.linear(x, weight, bias), *other))
    assert close(one.keys, other.keys)
    assert close(one.values, other.values)


def rope_of(
    rows: int,
    kv_heads: int,
    dim: int,
    cached: torch.dtype,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
) -> Rope:
    """Alike whenever it is made."""
    torch.manual_seed(0)
    cos, sin = (torch.randn(99, dim // 2, device="cuda") for _ in range(2))
    positions = torch.randint(0, 99, (rows,), device="cuda")
    slots = torch.randperm(5 * 64, device="cuda")[:rows]
    keys, values = (torch.zeros(5, 64, kv_heads, dim, device="cuda").to(cached) for _ in range(2))
    return Rope(cos, sin, positions, slots, keys, values, q_norm, k_norm, 1e-6)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Both sum alike. What may differ is how a few values are rounded."""
    assert ours.shape == theirs.shape
    return bool((ours.float() - theirs.float()).norm() <= 2e-3 * theirs.float().norm())


def test_what_is_not_contiguous_or_wider_is_torchs() -> None:
    weight = torch.randn(5120, 1024, device="cuda")
    assert products.chosen(torch.randn(4, 1024, device="cuda"), weight) is None
    narrow = torch.randn(4, 2048, device="cuda", dtype=torch.bfloat16)
    assert products.chosen(narrow[:, ::2], weight.bfloat16()) is None
    assert products.chosen(narrow[:, :1024].contiguous(), weight.bfloat16().T[:, :1024]) is None


def test_what_tma_cannot_read_is_not_streamed() -> None:
    flat = torch.randn(5120 * 1024 + 1, device="cuda", dtype=torch.bfloat16)
    x, weight = flat[: 4 * 1024].view(4, 1024), flat[1:].view(5120, 1024)
    tile = products.chosen(x, weight)
    assert tile is not None
    assert not tile.streamed
    check(x, weight, None)


def test_a_chain_of_kernels_is_replayed_alike(is_early: bool) -> None:
    """Each reads what the one before wrote, over and over in the same memory, and writes what an
    earlier one has read."""
    torch.manual_seed(0)
    weights = [torch.randn(5120, 5120, device="cuda", dtype=torch.bfloat16) / 72 for _ in range(8)]
    norm = torch.ones(5120, device="cuda", dtype=torch.bfloat16)
    start = torch.randn(16, 5120, device="cuda", dtype=torch.bfloat16)

    def chain() -> torch.Tensor:
        x, residual = start.clone(), torch.zeros_like(start)
        for _ in range(20):
            for weight in weights:
                x = products.linear(fused.add_rms_norm(x, residual, norm, 1e-6), weight)
        return x

    early.settle(False)
    expected = chain()
    early.settle(is_early)
    assert torch.equal(chain(), expected)
    assert torch.equal(replayed(chain), expected)


@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_tokens_do_not_depend_on_when_kernels_are_launched(quantization: str) -> None:
    def made(worker: Worker) -> dict[int, list[int]]:
        report = worker.run(WORK)
        assert isinstance(report, RankReport)
        return tokens([report])

    def served(pdl: str) -> list[dict[int, list[int]]]:
        worker = Worker()
        try:
            plan = engine_plan(
                "tp1", SHAPE, None, WORK, device="cuda", dtype="bfloat16", capability=(9, 0),
                switches=Switches(pdl=pdl), quantization=quantization,
            )  # fmt: skip
            worker.build("torch", plan, None)
            return [made(worker) for _ in range(2)]
        finally:
            worker.close()

    late, soon = served("off"), served("on")
    assert late[0] == late[1] == soon[0] == soon[1]
