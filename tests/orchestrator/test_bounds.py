"""What a run is told of its hardware, and when it is refused."""

import random
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
from driver_inputs import deployment
from fake_group import installed
from request_tables import request, requests
from summaries import summary
from tables import make

from orchestrator.analysis import bounds
from orchestrator.analysis.bounds import Bounds, bounds_of
from orchestrator.analysis.comparing.compare import compare
from orchestrator.analysis.least import _Replica, least
from orchestrator.analysis.load import summaries
from orchestrator.analysis.roofline import (
    CALIBRATED,
    DATASHEET,
    Ceilings,
    Closed,
    Kind,
    Rates,
    Stage,
)
from orchestrator.analysis.throughput import Throughput
from orchestrator.experiment import Experiment
from orchestrator.node import datasheet, fabric
from orchestrator.run import driver
from orchestrator.store.arrow_files import write_part
from orchestrator.store.store import Store
from strategies import Placement
from strategies.shapes import ModelShape
from workers.messages import EnginePlan, Request, Work
from workers.records import FABRIC
from workers.rows import nothing


def test_the_loads_of_replicas_are_what_each_served_on_its_seats():
    """Of three seats the first of two replicas has 0 and 2."""
    served = requests(
        request([0.1, 0.2], input_len=8),
        request([0.1], input_len=5, replica=1),
        request([0.1, 0.2], input_len=8),
        request([0.1, 0.2], input_len=9),
    )
    alone = Work(tuple(Request(i, (1,), 1) for i in range(4)), 3)
    assert bounds.loads_of(served, Placement((("dp", 2),)), 3, alone.first_turns()) == [
        Closed((Kind(8, 2, 2), Kind(9, 2, 1)), 2, in_turn=1),
        Closed((Kind(5, 1, 1),), 1, in_turn=0),
    ]


def test_of_a_conversation_one_request_at_a_time_is_in_flight():
    """One conversation of four turns, and beside it one of two on the same replica: of eight seats
    two are taken, and the longer one takes its passes in any case."""
    turns = tuple(Request(i, (1,), 3, after=i - 1 if i not in (0, 4) else None) for i in range(6))
    served = requests(*[request([0.1, 0.2, 0.3], input_len=8)] * 6)
    one = bounds.loads_of(served.slice(0, 4), PLAN.placement, 8, Work(turns, 8).first_turns())
    assert one == [Closed((Kind(8, 3, 4),), seats=1, in_turn=8)]
    (both,) = bounds.loads_of(served, PLAN.placement, 8, Work(turns, 8).first_turns())
    assert both == Closed((Kind(8, 3, 6),), seats=2, in_turn=8)
    assert (both.in_flight, both.rounds, both.least_passes) == (2, 6.0, 8)
    stages = [Stage(100, 0, 0, 0, 0)]
    assert least(stages, both, Rates(1.0, 1e9, 0)).decode_s == 8 * 100


# -- columns

SHAPE = ModelShape("toy", "llama", 8, 2, 4, 4, 2, 16, 32, 128, 1e-6, 1e4)
PLAN = EnginePlan(SHAPE, "tp1", Placement.single(SHAPE), None, "bfloat16", "cuda", 2, 24, 64)
SLOW = Ceilings(1e6, {"bfloat16": 1e7}, 0, CALIBRATED)
SHEET = Ceilings(2e6, {"bfloat16": 4e7}, 0, DATASHEET)  # at least twice as fast
# Matrices of a layer: 4 of 8 x 8 and 3 of 8 x 16; the head 32 x 8; norms: 2 a layer and one of 8.
LAYERS, HEAD, NORMS = 2 * (4 * 64 + 3 * 128), 256, 5 * 8
PREFILL = 2 * (16 * 2 * LAYERS + 2 * HEAD + 4 * 2 * 8 * 16 * 17 / 2)
DECODE_BYTES = 2 * (LAYERS + HEAD + NORMS) + 2 * 19 * (2 * 2 * 8 * 2)  # context: 16 + 6/2


LOAD = Closed.equal(16, 8, requests=2, seats=2)


def made(throughput, **changes):
    """What a run of LOAD made at `throughput` tokens per second."""
    return replace(
        nothing(Throughput),
        failed=0,
        total_output_tokens=16,
        output_throughput=throughput,
        duration=16 / throughput,
        decode_ms_per_step=10.0,
        **changes,
    )


# Prefill computes for longer than it streams; a decode pass reads.
SLOW_S = PREFILL / 1e7 + 7 * DECODE_BYTES / 1e6
SHEET_S = PREFILL / 4e7 + 7 * DECODE_BYTES / 2e6
FLOPS = PREFILL + 2 * 7 * (2 * LAYERS + 2 * HEAD + 19 * 4 * 2 * 8)


def test_the_bound_is_of_what_was_measured_and_utilisation_of_the_data_sheet():
    assert 2 * 2 * (LAYERS + HEAD) > 0.1 * DECODE_BYTES / 10  # reading is what takes the time
    found, reason = bounds_of(PLAN, "torch", [LOAD], made(100.0), SLOW, SHEET)
    assert found.bound_output_throughput == pytest.approx(16 / SLOW_S)
    assert found.bound_pct == pytest.approx(100 * 100 / (16 / SLOW_S))
    assert (found.bound_source, reason) == ("calibrated", None)
    assert found.model_flops_utilization == pytest.approx(100 * FLOPS / (0.16 * 4e7))
    assert found.memory_bandwidth_utilization == pytest.approx(100 * DECODE_BYTES / 0.01 / 2e6)


def test_a_run_at_104_5_percent_of_a_calibration_is_completed_and_says_so():
    found, reason = bounds_of(PLAN, "torch", [LOAD], made(1.045 * 16 / SLOW_S), SLOW, SHEET)
    assert found.bound_pct == pytest.approx(104.5)
    assert (found.bound_source, reason) == ("calibrated", None)


def test_a_run_above_its_data_sheet_is_refused_with_the_arithmetic():
    reached = 1.01 * 16 / SHEET_S
    found, reason = bounds_of(PLAN, "torch", [LOAD], made(reached), SLOW, SHEET)
    assert found.bound_pct == pytest.approx(101 * SLOW_S / SHEET_S)
    for words in (
        f"{reached:.1f} tok/s is above the bound of {16 / SHEET_S:.1f} by the data sheet",
        f"16 tokens in at least {SHEET_S:.4g} s",
        f"prefill {PREFILL / 4e7:.4g} s (1 times {2 * (LAYERS + HEAD + NORMS) / 1e9:.4g} GB",
        f"{PREFILL:.4g} operations of a GPU at 4e-05 TFLOP/s",
        f"decode {7 * DECODE_BYTES / 2e6:.4g} s (7 rounds of",
        "at 0.002 GB/s",
    ):
        assert words in reason


def test_without_a_data_sheet_nothing_is_refused_and_utilisation_is_unknown():
    found, reason = bounds_of(PLAN, "torch", [LOAD], made(1e6), SLOW, None)
    assert reason is None
    assert found.bound_pct > 1000
    assert found.model_flops_utilization is found.memory_bandwidth_utilization is None


def test_without_a_calibration_the_bound_is_of_the_data_sheet():
    found, _ = bounds_of(PLAN, "torch", [LOAD], made(1.0), None, SHEET)
    assert (found.bound_output_throughput, found.bound_source) == (
        pytest.approx(16 / SHEET_S),
        "datasheet",
    )


def test_a_calibration_without_the_dtype_leaves_the_bound_to_the_data_sheet():
    other = replace(SLOW, flops={"float32": 1e6})
    assert bounds_of(PLAN, "torch", [LOAD], made(1.0), other, SHEET)[0].bound_source == "datasheet"


def test_a_sheet_without_the_dtype_still_says_how_much_of_its_memory_was_used():
    sheet = replace(SHEET, flops={})
    found, reason = bounds_of(PLAN, "torch", [LOAD], made(1e6), None, sheet)
    used = 100 * DECODE_BYTES / 0.01 / 2e6
    assert found == replace(nothing(Bounds), memory_bandwidth_utilization=pytest.approx(used))
    assert reason is None


@pytest.mark.parametrize("changes", [{"failed": 1}, {"output_throughput": None}])
def test_where_requests_failed_there_is_no_bound(changes):
    served = replace(made(1.0), **changes)
    assert bounds_of(PLAN, "torch", [LOAD], served, SLOW, SHEET) == (nothing(Bounds), None)


def test_requests_of_mixed_lengths_have_a_bound_by_their_own_tokens():
    """One reads and makes twice as much as the other: the same weights in twice the passes."""
    load = Closed.of([(16, 8), (32, 16)], seats=2)
    alone, both = (
        bounds_of(PLAN, "torch", [one], made(1.0), SLOW, SHEET)[0]
        for one in (Closed.equal(32, 16, requests=1, seats=1), load)
    )
    seconds = [16 / alone.bound_output_throughput, 24 / both.bound_output_throughput]
    assert seconds[0] < seconds[1] < seconds[0] + SLOW_S
    assert both.model_flops_utilization > alone.model_flops_utilization > 0
    assert both.memory_bandwidth_utilization > alone.memory_bandwidth_utilization > 0


def test_the_bound_is_that_of_the_slowest_replica():
    light, heavy = Closed.equal(16, 2, 1, 1), Closed.equal(16, 9, 1, 1)
    found, _ = bounds_of(PLAN, "torch", [light, heavy], made(1.0), SLOW, SHEET)
    alone, _ = bounds_of(PLAN, "torch", [heavy], made(1.0), SLOW, SHEET)
    assert found.bound_output_throughput / alone.bound_output_throughput == pytest.approx(11 / 9)


def test_of_an_unknown_device_there_is_no_bound():
    assert bounds_of(PLAN, "torch", [LOAD], made(1e9), None, None) == (nothing(Bounds), None)


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


@pytest.mark.parametrize(
    ("calibrated", "sheet", "status"),
    [
        pytest.param(1e15, None, "completed", id="below what was measured"),
        pytest.param(1e3, None, "completed", id="above what was measured, no sheet"),
        pytest.param(1e3, 1e15, "completed", id="above what was measured, below the sheet"),
        pytest.param(1e15, 1e3, "invalid", id="above the sheet"),
    ],
)
def test_the_driver_refuses_by_the_data_sheet_alone(
    monkeypatch, tmp_path, calibrated, sheet, status
):
    installed(monkeypatch)
    told = sheet and Ceilings(sheet, {"float32": 1e18}, 0, DATASHEET)
    monkeypatch.setattr(datasheet, "ceilings", lambda _: told)
    measured = {"device_name": "cpu", "dtype": "float32"}
    rows = [{"kind": "hbm", "algbw": calibrated / 1e9}, {"kind": "gemm", "tflops": 1e6}]
    write_part(tmp_path / "fabric.arrow", make(FABRIC, [measured | row for row in rows]))
    asked = Experiment(
        result_dir=tmp_path, fabric=tmp_path / "fabric.arrow", until_ci=0.5, max_starts=3
    )
    store = Store(driver.run_experiment([deployment("tp1", dtype="float32")], asked, MagicMock()))
    found = store.read("summary").to_pylist()
    assert {row["status"] for row in found} == {status}, [row["reason"] for row in found]
    assert {row["bound_source"] for row in found} == {"calibrated"}
    assert all((row["bound_pct"] > 100) == (calibrated == 1e3) for row in found)
    assert all(bool(row["reason"]) == (status == "invalid") for row in found)
    (compared,) = compare(summaries(store))
    assert compared.status == status
    assert (compared.throughput.output_throughput is None) == (status == "invalid")


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_no_number_of_micro_batches_is_better_than_the_one_that_is_found(seed, separate):
    draw = random.Random(seed)
    stages = [
        Stage(draw.choice([10**8, 10**10]), 10**5, 2 * 10**9, 10**8, 10**5)
        for _ in range(draw.choice([1, 2, 4]))
    ]
    lengths = [(draw.choice([8, 512]), draw.choice([2, 90])) for _ in range(draw.randint(1, 60))]
    alike = [lengths[0]] * len(lengths)
    rates = Rates(10 ** draw.uniform(10, 13), 10 ** draw.uniform(11, 15), 0)
    for kinds in (lengths, alike):
        load = Closed.of(kinds, draw.randint(1, len(kinds)))
        one = _Replica(stages, load, rates, load.waves if separate else 1)

        def seconds(number, one=one):
            ways = [*one.of_stages(number), one.of_a_micro_batch(number), one.of_longest()]
            return max(way.prefill_s(separate) + way.decode for way in ways)

        found = least(stages, load, rates, separate)
        every = range(1, load.in_flight + 1)
        assert found.seconds == pytest.approx(min(map(seconds, every)), rel=1e-12)
