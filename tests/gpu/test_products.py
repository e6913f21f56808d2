"""Products of few rows in Triton against torch's, launched early and not, in graphs too. Shapes are
those of models, of each kind of tile, and ragged ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from ranks import BASE, FAMILIES, engine_plan, ragged_requests, tokens

from strategies.shapes import ModelShape
from workers.actor import Worker
from workers.messages import RankReport, Switches, Work

IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = pytest.mark.skipif(not IS_HOPPER, reason="needs a Hopper GPU")
if IS_HOPPER:
    from workers.engines.native.kernels import early, fused, products

# (output channels, inputs), with the width of the tile of 16 rows or fewer: 0 is cuBLAS's.
SHAPES = [
    ((27648, 5120), 128),
    ((5120, 13824), 64),
    ((8192, 4096), 64),
    ((3584, 5120), 32),
    ((1792, 5120), 16),
    ((4100, 1024), 64),
    ((130, 1024), 16),
    ((5120, 1000), 0),
]
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "architectures": ["LlamaForCausalLM"],
}
SHAPE = ModelShape.from_config({**BASE, **FAMILIES["Llama"], **SIZES}, "llama")
WORK = Work(ragged_requests(SHAPE.vocab_size, count=20), max_concurrency=16)


@pytest.fixture(autouse=True, params=[True, False], ids=["early", "late"])
def is_early(request: pytest.FixtureRequest) -> Iterator[bool]:
    early.settle(request.param)
    yield request.param
    early.settle(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 17, 33, 64, 65])
@pytest.mark.parametrize(("shape", "width"), SHAPES)
def test_a_product_is_torchs(
    shape: tuple[int, int], width: int, rows: int, bias: bool, dtype: torch.dtype
) -> None:
    x = torch.randn(rows, shape[1], device="cuda", dtype=dtype)
    weight = torch.randn(shape, device="cuda", dtype=dtype) * 0.02
    added = torch.randn(shape[0], device="cuda", dtype=dtype) if bias else None
    exact = F.linear(x.double(), weight.double(), None if added is None else added.double())
    ours, theirs = products.linear(x, weight, added), F.linear(x, weight, added)
    error = (ours.double() - exact).norm() / exact.norm()
    assert error < 1.2 * (theirs.double() - exact).norm() / exact.norm() + 1e-5
    tile = products.tile_of(x, weight)
    if rows <= 16:
        assert (tile.outputs if tile else 0) == width
    assert tile is None or rows <= products.FEW_ROWS


def test_what_is_not_contiguous_or_wider_is_torchs() -> None:
    weight = torch.randn(5120, 1024, device="cuda")
    assert products.tile_of(torch.randn(4, 1024, device="cuda"), weight) is None
    narrow = torch.randn(4, 2048, device="cuda", dtype=torch.bfloat16)[:, ::2]
    assert products.tile_of(narrow, weight.bfloat16()) is None


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
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain()
    for _ in range(20):
        graph.replay()
    assert torch.equal(out, expected)


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
