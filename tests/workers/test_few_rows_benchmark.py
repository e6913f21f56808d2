"""`benchmarks/few_rows.py`: the layers that it takes the time of, and what it says of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from benchmark_scripts import BENCHMARKS, ended, loaded

from workers.engines.native.kernels import kernels_of

SCRIPT = BENCHMARKS / "few_rows.py"
CPU = torch.device("cpu")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = loaded("few_rows", monkeypatch)
    with torch.inference_mode():
        yield module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would measure")
def test_without_a_gpu_it_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "kernels of few rows are for Hopper GPUs, and this machine has none"
    assert ended(SCRIPT, patch=monkeypatch) == said
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_shard_has_the_weights_of_a_rank(tp: int, script: ModuleType) -> None:
    shape = script.models.resolve("qwen2.5-32b", "dummy").shape
    shard = script.Shard.of(shape, tp)
    matrices = (
        columns * rows for name, (columns, rows) in _two_dimensional(shape.layer_parameters())
    )
    assert sum(a * b for a, b in shard.matrices) * tp == sum(matrices)
    more = shard.bytes(8) - shard.bytes(0)
    assert more == 8 * script.CONTEXT * 2 * shape.num_kv_heads * shape.head_dim * 2 // tp
    assert 2 * shard.bytes(0, "fp8") == shard.bytes(0)


def _two_dimensional(
    parameters: Iterator[tuple[str, tuple[int, ...]]],
) -> list[tuple[str, tuple[int, int]]]:
    return [(name, (shape[0], shape[1])) for name, shape in parameters if len(shape) == 2]


@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_layers_are_computed_one_after_the_other(quantization: str, script: ModuleType) -> None:
    """A step of two layers that end in zeros hands on what it began with."""
    shard = script.Shard("m", 1, 64, 4, 2, 16, 96)
    drawn = script._random_fp8 if quantization == "fp8" else script._random
    weights = [[drawn(shape, CPU) for shape in shard.matrices] for _ in range(2)]
    for one in (one for layer in weights for one in layer):
        if quantization == "fp8":
            one.scales.mul_(50)
        else:
            one.mul_(50)
    kernels = kernels_of("sdpa", fusion=False)
    torch.manual_seed(0)
    computed = script.step_of(CPU, kernels, shard, 3, weights)()
    for _, output, _, down in weights:
        for one in (output, down):
            (one.scales if quantization == "fp8" else one).zero_()
    torch.manual_seed(0)
    handed_on = script.step_of(CPU, kernels, shard, 3, weights)()
    assert handed_on.float().std() == pytest.approx(0.02, rel=0.2)  # what a step begins with
    assert computed.float().std() > 1
    sweep = replace(script.GPU_SWEEP, samples=1)
    assert script.layer_us(CPU, kernels, shard, 3, weights, sweep=sweep) > 0


def test_a_line_says_what_each_way_takes_and_how_near_the_best_is(script: ModuleType) -> None:
    rows = [
        script.FewRowsRow(
            gpu="H",
            model="m",
            tp=2,
            requests=8,
            products=products,
            pdl=pdl,
            quantization="none",
            sums=False,
            us=us,
            bound_us=90.0,
        )
        for (products, pdl), us in zip(
            script.WAYS["none"], (150.0, 140.0, 130.0, 120.0), strict=True
        )
    ]
    assert script.told(rows) == (
        "m tp2, 8 requests: cublas off 150.0, cublas on 140.0, triton off 130.0, triton on 120.0 "
        "us a layer (products, pdl); bound 90.0, 75% of it reached"
    )
    assert script.FEW_ROWS.make(rows).num_rows == 4
