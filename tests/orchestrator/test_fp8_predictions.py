"""FP8 in a prediction: no factor was fitted on its kernels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tables import make

from orchestrator.node import fabric
from orchestrator.plan import models
from orchestrator.predict import factors
from orchestrator.predict.hardware import of_sheet
from orchestrator.predict.interval import half_width
from orchestrator.predict.load import Asked
from orchestrator.predict.passes import DECODE, Placed, Setting, Work
from orchestrator.predict.prediction import Prediction, predict
from orchestrator.predict.replica import Lengths
from strategies import Load, Topology, plan_layout
from strategies.precision import Precision
from workers.records import FABRIC

KNOWN = factors.load()
TORCH = KNOWN.of("torch")
H200 = of_sheet("h200", KNOWN.attainable, KNOWN.calibrations["H200"], 8)
FP8 = Precision("bfloat16", "fp8")
DEVICE = "NVIDIA H200"


def setting(precision: Precision = FP8, engine: factors.EngineFactors = TORCH) -> Setting:
    shape = models.resolve("qwen2.5-32b", "dummy").shape
    topology = Topology.uniform(1, H200.memory_bytes or 0)
    found = plan_layout("tp1", shape, Load(256, 128, 1), topology)
    return Setting(Placed(found.placement, shape, precision, H200, early=True), engine)


def predicted(one: Setting, concurrency: int) -> Prediction:
    found = predict(one, "tp1", Asked(Lengths(256, 128, 2048), concurrency))
    assert isinstance(found, Prediction)
    return found


def product(rows: int, dtype: str, rate: float) -> dict[str, object]:
    same = {"device_name": DEVICE, "kind": "decode_gemm", "op": f"m{rows}", "dtype": dtype}
    return {**same, "algbw": rate}


def test_a_calibration_says_how_fast_products_in_fp8_read_weights() -> None:
    """Of the most rows that both types have, and of two GPUs the faster one."""
    rows = [
        product(1, "bfloat16", 4000.0),
        product(1, "float8_e4m3fn", 2900.0),
        product(100, "bfloat16", 3900.0),
        product(100, "bfloat16", 4000.0),
        product(100, "float8_e4m3fn", 3300.0),
        product(100, "float8_e4m3fn", 3000.0),
        product(128, "bfloat16", 4000.0),
    ]
    assert fabric.fp8_stream(make(FABRIC, rows), DEVICE) == pytest.approx(0.825)
    assert fabric.fp8_stream(make(FABRIC, rows), "NVIDIA L4") is None
    assert fabric.fp8_stream(make(FABRIC, rows[:1]), DEVICE) is None


@pytest.mark.parametrize(("rows", "is_slower"), [(1, False), (64, False), (65, True), (100, True)])
def test_beyond_few_rows_products_are_the_librarys(rows: int, is_slower: bool) -> None:
    one, work = setting(), Work(DECODE, rows, rows, read=rows * 320)
    ideal = replace(one.placed, hardware=replace(H200, fp8_stream=1.0))
    assert H200.fp8_stream < 1
    found, least = one.pass_of(0, work).seconds, Setting(ideal, TORCH).pass_of(0, work).seconds
    assert (found > least) is is_slower
    plain = setting(Precision("bfloat16")).placed
    same = replace(plain, hardware=replace(H200, fp8_stream=1.0))
    assert Setting(plain, TORCH).pass_of(0, work) == Setting(same, TORCH).pass_of(0, work)


@pytest.mark.parametrize("concurrency", [1, 32, 100])
def test_an_interval_is_wider_by_what_kinds_of_kernels_differ_by(concurrency: int) -> None:
    found = predicted(setting(), concurrency)
    sure = predicted(setting(engine=replace(TORCH, kinds_s=0.0)), concurrency)
    assert found.tpot_ms.value == sure.tpot_ms.value
    few = TORCH.few
    assert few is not None
    longer = replace(
        TORCH,
        layer_s=TORCH.layer_s + TORCH.kinds_s,
        few=replace(few, layer_s=few.layer_s + TORCH.kinds_s),
    )
    pace = predicted(setting(engine=longer), concurrency).tpot_ms.value / found.tpot_ms.value
    width = half_width("tpot_ms", TORCH, found.outside)
    assert pace > 1.05
    assert found.tpot_ms.high / found.tpot_ms.value == pytest.approx(pace * math.exp(width))
    assert found.tpot_ms.low * found.tpot_ms.high == pytest.approx(found.tpot_ms.value**2)
    for mine, other in (
        (found.output_throughput, sure.output_throughput),
        (found.joules_per_output_token, sure.joules_per_output_token),
        (found.ttft_ms, sure.ttft_ms),
    ):
        assert mine is not None
        assert other is not None
        assert mine.low < other.low < other.high < mine.high


def test_kernels_that_were_fitted_on_are_as_certain_as_before() -> None:
    plain = setting(Precision("bfloat16"))
    sure = Setting(plain.placed, replace(TORCH, kinds_s=0.0))
    assert predicted(plain, 32).tpot_ms == predicted(sure, 32).tpot_ms
