"""The least time for a load, against arithmetic done by hand."""

import contextlib
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
from driver_inputs import deployment
from summaries import summary
from tables import make

from orchestrator.analysis import bounds
from orchestrator.analysis.bounds import (
    Bounds,
    Ceilings,
    Closed,
    Rates,
    Stage,
    bounds_of,
    least,
    stages_of,
)
from orchestrator.analysis.comparing.compare import compare
from orchestrator.analysis.load import summaries
from orchestrator.analysis.throughput import Throughput
from orchestrator.experiment import Experiment
from orchestrator.node import datasheet, fabric
from orchestrator.plan import models
from orchestrator.run import driver
from orchestrator.store.arrow_files import write_part
from orchestrator.store.store import Store
from strategies import Load, Placement, Topology, plan_layout
from strategies.shapes import ModelShape
from workers.messages import EnginePlan
from workers.records import FABRIC
from workers.rows import nothing

HUGE = 1e30  # a rate that costs nothing
HBM = Rates(memory=4.2e12, flops=HUGE, cache_bytes=0)


def stages(layout, model="llama-70b", dtype="bfloat16"):
    shape = models.resolve(model, "dummy").shape
    return stages_of(
        plan_layout(layout, shape, Load(256, 128, 100), Topology.uniform(8)).placement, shape, dtype
    )


def one_token(layout, model="llama-70b", requests=1):
    """Seconds from the first to the second token, without the KV of a prompt."""
    return least(stages(layout, model), Closed(0, 2, requests, requests), HBM).decode_s


# -- what the reference of the project says


@pytest.mark.parametrize(("model", "weights"), [("llama-70b", 139.0e9), ("qwen2.5-32b", 64.0e9)])
def test_a_decode_step_streams_every_weight_but_the_embedding(model, weights):
    assert sum(s.weight_bytes for s in stages("tp4", model)) * 4 == pytest.approx(weights, rel=1e-3)
    assert sum(s.weight_bytes for s in stages("pp4", model)) == pytest.approx(weights, rel=1e-3)


@pytest.mark.parametrize(
    ("layout", "model", "milliseconds"),
    [
        ("tp4", "llama-70b", 8.3),
        ("pp4", "llama-70b", 33.1),
        ("tp2pp2", "llama-70b", 16.55),
        ("tp4", "qwen2.5-32b", 3.8),
        ("pp4", "qwen2.5-32b", 15.2),
    ],
)
def test_a_decode_step_at_4_2_terabytes_a_second(layout, model, milliseconds):
    assert 1e3 * one_token(layout, model) == pytest.approx(milliseconds, rel=5e-3)


@pytest.mark.parametrize("requests", [1, 2, 3, 4, 7, 100])
def test_a_round_through_a_pipeline_streams_all_weights_however_many_requests_there_are(requests):
    """Alone, the stages run one after another; in four micro_batches, each streams its weights four
    times."""
    assert (
        one_token("pp4", requests=requests)
        >= 0.999 * sum(s.weight_bytes for s in stages("pp4")) / 4.2e12
    )


def test_kv_is_320_kib_a_token_in_all():
    assert sum(s.kv_bytes for s in stages("pp4")) == 320 << 10
    assert stages("tp4")[0].kv_bytes == (320 << 10) // 4


def test_a_tied_head_is_read_by_the_last_stage_alone():
    first, last = stages("pp2", "tiny", "float32")
    assert (first.head_flops, last.head_flops) == (0, 2 * 2048 * 256)
    assert last.weight_bytes - first.weight_bytes == 4 * (2048 * 256 + 256)  # and the last norm


# -- the formula

UNIT = Rates(memory=1.0, flops=1.0, cache_bytes=0)  # a byte and an operation a second
READING = Rates(memory=1.0, flops=HUGE, cache_bytes=0)  # a byte a second, operations for nothing
STREAM = Stage(weight_bytes=100, kv_bytes=1, token_flops=0, head_flops=0, attention_flops=0)


def test_kv_is_read_once_for_each_token_of_each_request():
    """Tokens 2, 3, 4 of a prompt of 10 read 10, 11 and 12 tokens of KV; two requests share the
    weights."""
    assert least([STREAM], Closed(10, 4, 1, 1), READING).seconds == 3 * 100 + 10 + 11 + 12
    assert least([STREAM], Closed(10, 4, 2, 2), READING).seconds == 3 * 100 + 2 * (10 + 11 + 12)


def test_a_second_wave_of_requests_is_served_after_the_first():
    assert Closed(10, 4, 6, 2).rounds == 9
    assert (
        Closed(10, 4, 3, 2).rounds == 4.5
    )  # a full wave and half a one: no engine does with fewer passes
    assert Closed(10, 4, 1, 8).rounds == 3


def test_prefill_computes_every_token_and_attends_to_those_before():
    stage = Stage(0, 0, token_flops=5, head_flops=7, attention_flops=2)
    assert stage.prefill_flops(Closed(3, 1, 2, 2)) == 2 * (3 * 5 + 7 + 2 * (1 + 2 + 3))
    assert least([stage], Closed(3, 1, 2, 2), UNIT).seconds == 68


def test_a_pass_takes_the_longer_of_reading_and_computing():
    both = Stage(100, 0, token_flops=30, head_flops=0, attention_flops=0)
    assert both.pass_s(1, 0, UNIT) == 100
    assert both.pass_s(10, 0, UNIT) == 300


def test_what_a_cache_can_hold_is_not_read():
    for cache_bytes, seconds in ((60, 40), (500, 0)):
        rates = replace(READING, cache_bytes=cache_bytes)
        assert least([STREAM], Closed(0, 2, 1, 1), rates).seconds == seconds


def test_micro_batches_share_out_the_kv_of_a_pipeline():
    """Two stages, two requests with 50 tokens each: two micro_batches keep both stages busy for 2 x
    (100 + 50)."""
    found = least([STREAM, STREAM], Closed(50, 2, 2, 2), READING)
    assert (found.micro_batches, found.seconds) == (2, 300)
    assert (
        least([STREAM, STREAM], Closed(50, 2, 1, 1), READING).seconds == 300
    )  # alone: 150 in each stage


def test_engines_that_mix_prompts_and_tokens_are_held_to_the_longer_of_both():
    stage = Stage(100, 0, token_flops=5, head_flops=0, attention_flops=0)
    assert least([stage], Closed(4, 3, 1, 1), UNIT).seconds == 20 + 200
    assert least([stage], Closed(4, 3, 1, 1), UNIT, separate=False).seconds == 200


def test_replicas_share_out_requests_as_the_workers_do():
    """Of five seats the first replica has 0 and 4, and each serves two requests."""
    whole = Closed(8, 4, requests=10, seats=5)
    assert bounds.fullest_replica(Placement((("dp", 4),)), whole) == Closed(8, 4, 4, 2)


# -- columns

SHAPE = ModelShape("toy", "llama", 8, 2, 4, 4, 2, 16, 32, 128, 1e-6, 1e4)
PLAN = EnginePlan(SHAPE, "tp1", Placement.single(SHAPE), None, "bfloat16", "cuda", 2, 24, 64)
SLOW = Ceilings(1e6, {"bfloat16": 1e7}, 0, bounds.CALIBRATED)
# Matrices of a layer: 4 of 8 x 8 and 3 of 8 x 16; the head 32 x 8; norms: 2 a layer and one of 8.
LAYERS, HEAD, NORMS = 2 * (4 * 64 + 3 * 128), 256, 5 * 8
PREFILL = 2 * (16 * 2 * LAYERS + 2 * HEAD + 4 * 2 * 8 * 16 * 17 / 2)
DECODE_BYTES = 2 * (LAYERS + HEAD + NORMS) + 2 * 19 * (2 * 2 * 8 * 2)  # context: 16 + 6/2


LOAD = Closed(16, 8, requests=2, seats=2)


def made(throughput, **changes):
    """What a run of LOAD made at `throughput` tokens per second."""
    return replace(
        nothing(Throughput),
        total_output_tokens=16,
        output_throughput=throughput,
        duration=16 / throughput,
        decode_ms_per_step=10.0,
        **changes,
    )


def test_the_columns_of_a_run():
    assert 2 * 2 * (LAYERS + HEAD) > 0.1 * DECODE_BYTES / 10  # reading is what takes the time
    seconds = PREFILL / 1e7 + 7 * DECODE_BYTES / 1e6
    found, reason = bounds_of(PLAN, "torch", LOAD, made(100.0), SLOW)
    assert found.bound_output_throughput == pytest.approx(16 / seconds)
    assert found.bound_pct == pytest.approx(100 * 100 / (16 / seconds))
    assert (found.bound_source, reason) == ("calibrated", None)
    decode = 2 * 7 * (2 * LAYERS + 2 * HEAD + 19 * 4 * 2 * 8)
    assert found.model_flops_utilization == pytest.approx(100 * (PREFILL + decode) / (0.16 * 1e7))
    assert found.memory_bandwidth_utilization == pytest.approx(100 * DECODE_BYTES / 0.01 / 1e6)


def test_a_run_above_its_bound_says_how_the_bound_comes_about():
    found, reason = bounds_of(PLAN, "torch", LOAD, made(1e6), SLOW)
    assert found.bound_pct > 100
    for word in (
        "1000000.0 tok/s is above the bound of",
        "16 tokens in at least",
        "prefill",
        "7 rounds",
        "GB/s",
        "calibrated",
    ):
        assert word in reason


@pytest.mark.parametrize(
    ("ceilings", "load", "changes"),
    [
        (None, LOAD, {}),
        (Ceilings(1e6, {}, 0, ""), LOAD, {}),
        (SLOW, replace(LOAD, input_len=0), {}),
        (SLOW, LOAD, {"total_output_tokens": 15}),
        (SLOW, LOAD, {"output_throughput": None}),
    ],
)
def test_without_ceilings_or_equal_requests_there_is_no_bound(ceilings, load, changes):
    served = replace(made(1.0), **changes)
    assert bounds_of(PLAN, "torch", load, served, ceilings) == (nothing(Bounds), None)


def test_ceilings_come_from_a_calibration_of_the_same_device_else_from_its_data_sheet():
    rows = [
        {
            "device_name": "NVIDIA H200",
            "kind": "hbm",
            "op": "read",
            "dtype": "float32",
            "algbw": 4200.0,
        },
        {
            "device_name": "NVIDIA H200",
            "kind": "decode_gemm",
            "op": "m32",
            "dtype": "bfloat16",
            "algbw": 4250.0,
            "tflops": 120.0,
        },
        {
            "device_name": "NVIDIA H200",
            "kind": "gemm",
            "op": "8192",
            "dtype": "bfloat16",
            "algbw": 1.0,
            "tflops": 791.0,
        },
        {"device_name": "NVIDIA H200", "kind": "cache", "op": "capacity", "bytes": 60 << 20},
    ]
    table = make(FABRIC, rows)
    assert fabric.ceilings(table, "NVIDIA H200") == Ceilings(
        4250e9, {"bfloat16": 791e12}, 60 << 20, "calibrated"
    )
    assert fabric.ceilings(table, "NVIDIA H100 80GB HBM3").source == "datasheet"
    assert fabric.ceilings(table, "cpu") is fabric.ceilings(None, None) is None
    assert fabric.ceilings(None, "NVIDIA H200").rates("float16").flops == 989.4e12


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("NVIDIA H200", 4800),
        ("NVIDIA H200 NVL", 4800),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100 80GB PCIe", 1935),
        ("NVIDIA H100 80GB HBM3", 3352),
        ("NVIDIA H100 PCIe", 2039),
        ("NVIDIA A100-SXM4-40GB", 1555),
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("NVIDIA L40S", 864),
        ("NVIDIA RTX 6000 Ada Generation", 960),
        ("Tesla T4", None),
    ],
)
def test_a_card_is_known_by_its_name(name, gigabytes):
    found = datasheet.ceilings(name)
    assert (found and found.hbm) == (gigabytes and gigabytes * 1e9)


def test_an_invalid_run_is_no_result():
    runs = [
        summary(
            strategy=strategy,
            run=index,
            status=status,
            reason=reason,
            output_throughput=speed,
            bound_pct=pct,
            bound_source="calibrated",
        )
        for strategy, index, status, reason, speed, pct in [
            ("tp4", 0, "invalid", "9.0 tok/s is above the bound", 9.0, 150.0),
            ("pp4", 0, "completed", None, 4.0, 60.0),
            ("dp4", 0, "invalid", "8.0 tok/s is above the bound", 8.0, 140.0),
            ("dp4", 1, "completed", None, 2.0, 30.0),
        ]
    ]
    found = {one.cell.strategy: one for one in compare(runs)}
    assert [found[s].status for s in ("pp4", "dp4", "tp4")] == ["completed", "completed", "invalid"]
    tp4, dp4 = found["tp4"], found["dp4"]
    assert tp4.throughput.output_throughput is tp4.relative_to_best is tp4.bounds.bound_pct is None
    assert tp4.bounds.bound_source == "calibrated"
    assert (dp4.throughput.output_throughput, dp4.bounds.bound_pct) == (2.0, 30.0)


@pytest.mark.parametrize(("gigabytes", "status"), [(1e6, "completed"), (1e-6, "invalid")])
def test_the_driver_sets_runs_beside_the_calibration(
    ray_cluster, monkeypatch, tmp_path, gigabytes, status
):
    monkeypatch.setattr(driver, "connect", lambda *_: contextlib.nullcontext(ray_cluster))
    measured = {"device_name": "cpu", "dtype": "float32"}
    rows = [{"kind": "hbm", "algbw": gigabytes}, {"kind": "gemm", "algbw": 1e-9, "tflops": 1e6}]
    calibrated = make(FABRIC, [measured | row for row in rows])
    write_part(tmp_path / "fabric.arrow", calibrated)
    asked = Experiment(
        result_dir=tmp_path, fabric=tmp_path / "fabric.arrow", until_ci=0.5, max_starts=3
    )
    store = Store(driver.run_experiment([deployment("tp1", dtype="float32")], asked, MagicMock()))
    found = store.read("summary").to_pylist()
    assert {row["status"] for row in found} == {status}
    assert {row["bound_source"] for row in found} == {"calibrated"}
    assert all(
        (row["bound_pct"] > 100) == (status == "invalid") == bool(row["reason"]) for row in found
    )
    (compared,) = compare(summaries(store))
    assert compared.status == status
    assert (compared.throughput.output_throughput is None) == (status == "invalid")
