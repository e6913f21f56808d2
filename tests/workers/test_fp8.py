"""FP8 on a CPU: what is rounded and by how much, and that phases, pages and ranks agree."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from logits import prompt_logits
from ranks import engine_plan, ragged_requests, read_shape, tokens

from workers.actor import Worker
from workers.communicator import Communicator
from workers.engines.native.build import load_decoder
from workers.engines.native.kernels import fp8, reference
from workers.engines.native.kernels.fp8 import Fp8Weight
from workers.engines.native.loading import Layer
from workers.engines.native.support import refusal
from workers.messages import EnginePlan, Work
from workers.rank import RankContext

ROOT = Path(__file__).parents[2]
STEP = 2**-4  # half the distance of two neighbours of e4m3, at most, of the smaller one
SHARES = [(1, 96), (1, 32), (16, 32), (128, 128)]
WORK = Work(ragged_requests(128, count=5), max_concurrency=3)


def benchmark(name: str) -> Any:
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = benchmark("precision_error")


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def weight_of(
    plain: torch.Tensor, share: tuple[int, int], stored: float | None = None
) -> Fp8Weight:
    scales = fp8.largest_of(plain, share) / reference.LARGEST
    inputs = None if stored is None else torch.tensor([stored])
    return Fp8Weight(fp8.made_fp8(plain, scales, share), scales, share, inputs)


def real(x: fp8.Fp8, weight: Fp8Weight) -> torch.Tensor:
    return fp8.spread(x.values, x.scales, (1, weight.share[1]))


# -- kernels


@pytest.mark.parametrize("chunk", [1, 64 * 96, 2**24])
@pytest.mark.parametrize("share", SHARES)
def test_a_value_is_rounded_to_one_of_its_neighbours(
    share: tuple[int, int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp8, "CHUNK", chunk)
    plain, x = torch.randn(40, 96), torch.randn(7, 96) * torch.logspace(-6, 6, 7)[:, None]
    weight = weight_of(plain, share)
    for found, wanted in (
        (weight.plain(torch.float32), plain),
        (real(fp8.quantize(x, weight), weight), x),
    ):
        smallest = wanted.abs().amax() * 2**-15  # below are the subnormal numbers of its scale
        assert ((found - wanted).abs() <= (STEP * wanted.abs()).clamp(min=smallest)).all()


def test_zeros_stay_zeros_and_what_is_not_a_number_stays_none() -> None:
    x = torch.zeros(3, 96)
    x[1, 5], x[2, 7] = float("nan"), float("inf")
    found = real(fp8.quantize(x, weight_of(torch.randn(4, 96), (1, 96))), weight_of(x, (1, 96)))
    assert (found[0] == 0).all()
    assert found[1:].isnan().any(1).all()


def test_a_stored_scale_cuts_off_what_is_beyond_it() -> None:
    weight = weight_of(torch.randn(4, 96), (1, 96), stored=0.01)
    found = real(fp8.quantize(torch.full((2, 96), 7.0), weight), weight)
    assert torch.allclose(found, torch.tensor(4.48))


@pytest.mark.parametrize("share", SHARES)
def test_what_is_fused_is_the_same_as_one_after_the_other(share: tuple[int, int]) -> None:
    x, residual, norm = torch.randn(5, 96), torch.randn(5, 96), torch.randn(96)
    weight, gate_up = weight_of(torch.randn(40, 96), share), torch.randn(5, 192)
    summed = residual.clone()
    pairs = [
        (fp8.rms_norm(x, norm, 1e-5, weight), reference.rms_norm(x, norm, 1e-5)),
        (
            fp8.add_rms_norm(x, summed, norm, 1e-5, weight),
            reference.rms_norm(x + residual, norm, 1e-5),
        ),
        (fp8.silu_mul(gate_up, weight), reference.silu_mul(gate_up)),
    ]
    for found, wanted in pairs:
        assert torch.equal(real(found, weight), real(fp8.quantize(wanted, weight), weight))
    assert torch.equal(summed, x + residual)


@pytest.mark.parametrize("share", SHARES)
def test_a_product_is_that_of_the_real_values(share: tuple[int, int]) -> None:
    weight, bias = weight_of(torch.randn(40, 96), share), torch.randn(40)
    x = fp8.quantize(torch.randn(7, 96), weight)
    wanted = real(x, weight).double() @ weight.plain(torch.float64).T + bias
    torch.testing.assert_close(fp8.linear(x, weight, bias, torch.float32), wanted.float())
    assert fp8.linear(x, weight, None, torch.bfloat16).dtype == torch.bfloat16


def test_the_cache_cuts_off_what_e4m3_does_not_reach() -> None:
    keys, values = (torch.zeros(2, 4, 1, 8, dtype=reference.FP8) for _ in range(2))
    qkv = torch.full((1, 24), 1e4)
    at, cos, sin = torch.tensor([0]), torch.ones(1, 4), torch.zeros(1, 4)
    reference.rope_and_cache(qkv, cos, sin, at, torch.tensor([5]), keys, values, None, None, 1e-5)
    assert (keys[1, 1].float() == 448).all()
    assert (values.float().sum(), values[1, 1].float().sum()) == (8 * 448, 8 * 448)


# -- the engine


def plan_of(folder: Path, **fields: Any) -> EnginePlan:
    return engine_plan("tp1", read_shape(folder), folder, WORK, **fields)


def served(plan: EnginePlan) -> dict[int, list[int]]:
    worker = Worker()
    try:
        worker.build("torch", plan, None)
        return tokens([worker.run(WORK)])  # type: ignore[list-item]
    finally:
        worker.close()


FP8 = [
    {"quantization": "fp8"},
    {"kv_cache_dtype": "fp8"},
    {"quantization": "fp8", "kv_cache_dtype": "fp8"},
]


@pytest.mark.slow
def test_logits_of_the_demos_model_lie_within_a_bound_of_float32() -> None:
    """As the benchmark says it: the difference of all logits over what they are."""
    asked = argparse.Namespace(model="tiny", dtype="float32", device="cpu", tokens=24)
    found = {name: error for name, _, error in bench.measured(bench.plan_of(asked), 4, 24)}
    assert found["float32 none"] == bench.Error(0.0, 0.0, 1.0, 1.0)
    assert 0.01 < found["float32 kv-fp8"].error < 0.10
    assert 0.05 < found["float32 fp8"].error < 0.16
    assert found["float32 fp8+kv-fp8"].first_choice > 0.75
    assert found["float32 fp8-decode"].error < 1e-6 < found["float32 fp8-prefill"].error


@pytest.mark.parametrize("fields", FP8)
def test_decoding_makes_the_tokens_of_whole_prompts(
    fields: dict[str, str], checkpoint: Callable[[str], Path]
) -> None:
    """What was cached in e4m3 is what a prompt attends to as well."""
    plan, made = plan_of(checkpoint("Llama"), **fields), {}
    for request in WORK.requests:
        text = list(request.prompt)
        for _ in range(request.output_len):
            text.append(int(prompt_logits(plan, text)[-1].argmax()))
        made[request.index] = text[len(request.prompt) :]
    assert served(plan) == made


def test_each_phase_reads_its_own_weights(checkpoint: Callable[[str], Path]) -> None:
    """The first token is that of the prompt's phase, whatever the other one is."""
    folder = checkpoint("Llama")
    by_phase = {
        name: served(plan_of(folder, quantization=name))
        for name in ("none", "fp8", "fp8-prefill", "fp8-decode")
    }
    firsts = {name: [one[0] for one in made.values()] for name, made in by_phase.items()}
    assert firsts["fp8-prefill"] == firsts["fp8"] != firsts["none"] == firsts["fp8-decode"]
    assert by_phase["fp8-prefill"] != by_phase["fp8"]
    assert by_phase["fp8-decode"] != by_phase["none"]


def test_ranks_hold_the_parts_of_one_quantised_model(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank with a part of each row has the scales of whole rows: those of the larger part."""
    folder, seen = checkpoint("Llama"), []

    def loaded(layout: str, rank: int) -> Layer:
        plan = engine_plan(layout, read_shape(folder), folder, WORK, quantization="fp8")
        context = RankContext(rank, plan.placement, torch.device("cpu"))
        return load_decoder(context, plan, Communicator(context)).layers["decode"][0]

    monkeypatch.setattr(RankContext, "keep_largest", lambda _, x, axis: seen.append(x.clone()))
    for rank in range(2):
        loaded("tp2", rank)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    of_both = [torch.maximum(*pair) for pair in zip(first, second, strict=True)]
    told = iter(of_both * 2)
    monkeypatch.setattr(RankContext, "keep_largest", lambda _, x, axis: x.copy_(next(told)))
    halves = [loaded("tp2", rank) for rank in range(2)]
    whole = loaded("tp1", 0)
    for field in ("output", "down"):
        parts = [getattr(one, field).weight.plain(torch.float32) for one in (*halves, whole)]
        assert torch.equal(torch.cat(parts[:2], 1), parts[2])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "float16", "device": "cuda"}, "make bfloat16, and the dtype is float16"),
        ({"dtype": "bfloat16", "device": "cuda"}, None),
        ({"dtype": "float16", "device": "cpu"}, None),
    ],
)
def test_products_on_a_gpu_make_bfloat16(
    changes: dict[str, str], said: str | None, checkpoint: Callable[[str], Path]
) -> None:
    reason = refusal(replace(plan_of(checkpoint("Llama"), quantization="fp8"), **changes))
    assert reason is None if said is None else said in str(reason)
