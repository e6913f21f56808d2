"""All-reduces in one shot in a prediction: by what was measured of them, by latency and bandwidth
for a data sheet, and what is said where a calibration has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ideal import IDEAL
from tables import make

from orchestrator.experiment import Experiment
from orchestrator.node import fabric
from orchestrator.plan import models, planning
from orchestrator.predict import factors
from orchestrator.predict.calibrated import of_table
from orchestrator.predict.hardware import (
    GRAPH,
    ONE_SHOT_RANKS,
    ONE_SHOT_SENT,
    Calibration,
    Hardware,
    Span,
    of_sheet,
)
from orchestrator.predict.layouts import Case, candidates
from orchestrator.predict.load import Asked
from orchestrator.predict.passes import DECODE, Setting, Work
from orchestrator.predict.prediction import NOT_MEASURED, Prediction, predict
from orchestrator.predict.replica import Lengths
from orchestrator.run.foretold import foretold
from strategies import Topology
from strategies.precision import Precision
from strategies.traffic import ONE_SHOT
from workers.engines.native.support import SHARED_BY
from workers.records import FABRIC

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
KNOWN = factors.load()
TORCH, VLLM = KNOWN.of("torch"), KNOWN.of("vllm")
SHORT = Lengths(256, 128, 2048)
KIB = 1 << 10


def calibrated(one_shot: bool = True, small_us: float = 3.0) -> Calibration:
    """The one of 2 x H200, with times of one-shot up to 1.5 MiB if asked."""
    rows = [{**one, "nodes": 1} for one in fabric.load(RESULTS / "2xh200").to_pylist()]
    like = next(one for one in rows if one["op"] == "all_reduce" and one["mode"] == "graph")
    more = [
        {**like, "op": ONE_SHOT, "bytes": size * KIB, "time_us": us}
        for size, us in ((4, small_us), (64, 3.3), (1536, 12.0))
    ]
    found = of_table(make(FABRIC, [*rows, *(more if one_shot else [])]), "H200")
    assert found is not None
    return found


def hardware(measured: Calibration | None = None, gpu: str = "h200") -> Hardware:
    return of_sheet(gpu, KNOWN.attainable, measured)


def setting(layout: str, on: Hardware, engine: factors.EngineFactors = TORCH) -> Setting:
    asked = Asked(SHORT, 1)
    case = Case(
        models.resolve("llama-70b", "dummy").shape, Precision("bfloat16"), on, engine, asked
    )
    ((_, found),) = candidates(case, [layout], 16, 1).settings
    return found


def predicted(one: Setting, concurrency: int = 1) -> Prediction:
    found = predict(one, "it", Asked(SHORT, concurrency))
    assert isinstance(found, Prediction)
    return found


def test_a_message_that_is_small_enough_takes_what_was_measured_in_one_shot() -> None:
    found = hardware(calibrated()).fabric
    assert found.one_shot_seconds(Span(2), 4 * KIB) == pytest.approx(3.0e-6)
    assert found.one_shot_seconds(Span(2), 1536 * KIB) == pytest.approx(12.0e-6)
    assert found.one_shot_seconds(Span(2), 1537 * KIB) is None


def test_of_more_ranks_it_has_as_many_bytes_on_the_link() -> None:
    """Each rank sends its message three times as often, so a third is as slow, and the largest."""
    found = hardware(calibrated()).fabric
    assert found.one_shot_seconds(Span(4), 512 * KIB) == pytest.approx(12.0e-6)
    assert found.one_shot_seconds(Span(4), 513 * KIB) is None
    assert found.one_shot_seconds(Span(4, nodes=2), 4 * KIB) is None


def test_a_decode_step_has_the_times_of_one_shot_and_a_large_one_those_of_nccl() -> None:
    small = setting("tp2", hardware(calibrated(small_us=3.0)))
    other = setting("tp2", hardware(calibrated(small_us=3.3)))
    nccl = Setting(replace(small.placed, one_shot=False), TORCH)
    one, hundred = (Work(DECODE, rows, rows, rows * 300) for rows in (1, 128))
    calls = 2 * small.placed.model.num_layers + 1

    def transfer(where: Setting, work: Work) -> float:
        return where.placed.transfer(0, work, GRAPH)[0]

    message = 16 * KIB  # of one token
    saved = nccl.placed.hardware.fabric.seconds("all_reduce", Span(2), message, GRAPH) or 0.0
    saved -= small.placed.hardware.fabric.one_shot_seconds(Span(2), message) or 0.0
    assert saved > 2e-6
    assert transfer(nccl, one) - transfer(small, one) == pytest.approx(calls * saved)
    assert transfer(other, one) > transfer(small, one)
    assert transfer(nccl, hundred) == transfer(small, hundred)  # 2 MiB


def test_without_times_of_one_shot_those_of_nccl_are_taken_and_it_is_said() -> None:
    """The interval reaches down to one-shot by latency and bandwidth, and no higher."""
    one = setting("tp2", hardware(calibrated(one_shot=False)))
    found, nccl = predicted(one), predicted(Setting(replace(one.placed, one_shot=False), TORCH))
    by_line = replace(one.placed.hardware, fabric=one.placed.hardware.fabric.with_one_shot())
    faster = predicted(Setting(replace(one.placed, hardware=by_line), TORCH))
    assert found.tpot_ms.value == nccl.tpot_ms.value > faster.tpot_ms.value
    assert (found.tpot_ms.low, found.tpot_ms.high) == (faster.tpot_ms.low, nccl.tpot_ms.high)
    speed = found.output_throughput
    assert (speed.low, speed.high) == (nccl.output_throughput.low, faster.output_throughput.high)
    assert found.outside == (*nccl.outside, NOT_MEASURED)
    assert NOT_MEASURED not in predicted(setting("tp2", hardware(calibrated()))).outside


def test_where_nothing_is_summed_in_one_shot_nothing_is_said_of_it() -> None:
    without = hardware(calibrated(one_shot=False))
    for one in (setting("pp2", without), setting("tp2", without, VLLM), setting("tp16", without)):
        assert not one.placed.one_shot
        assert NOT_MEASURED not in predicted(one).outside


def test_a_data_sheet_has_one_shot_by_latency_and_bandwidth() -> None:
    """Close to what was measured on H200 (docs/results/*/allreduce.arrow)."""
    found = hardware().fabric
    for ranks, kib, us in (
        (2, 10, 2.8),
        (2, 640, 7.1),
        (4, 10, 3.5),
        (4, 160, 6.3),
        (4, 480, 12.1),
    ):
        assert found.one_shot_seconds(Span(ranks), kib * KIB) == pytest.approx(us * 1e-6, rel=0.07)
    assert not hardware(gpu="l40s").fabric.knows_one_shot  # PCIe


@pytest.mark.parametrize(
    ("layout", "gpu", "is_summed_so"),
    [
        ("tp2", "h200", True),
        ("tp2pp2", "h200", True),
        ("tp8", "h200", True),
        ("tp8pp2", "h200", False),  # two nodes
        ("pp2", "h200", False),
        ("tp2", "l40s", False),
        ("tp2", "h100 nvl", True),
        ("tp4", "h100 nvl", False),  # two bridges
    ],
)
def test_the_engine_sums_in_one_shot_by_itself_where_nvlink_joins_all(
    layout: str, gpu: str, is_summed_so: bool
) -> None:
    assert setting(layout, hardware(gpu=gpu), IDEAL).placed.one_shot is is_summed_so


def test_its_limits_are_those_of_the_kernels() -> None:
    assert SHARED_BY == ONE_SHOT_RANKS
    pytest.importorskip("triton")
    from workers.engines.native.kernels.symmetric import most_bytes

    assert [most_bytes(n) for n in (2, 4)] == [ONE_SHOT_SENT // (n - 1) for n in (2, 4)]


def said(kind: str, **fields: Any) -> str | None:
    """The remark on a run of tp2 on H200, on the node whose calibration has no one-shot."""
    asked = Experiment(
        model="llama-70b", load_format="dummy", scenario="short", strategy="tp2", **fields
    )
    one = planning.plan_experiment(asked, "cuda", Topology.uniform(2, 150 << 30, "NVIDIA H200"))[0]
    plan = replace(one.plan, switches=replace(one.plan.switches, allreduce=kind))
    table = fabric.load(RESULTS / "2xh200")
    found = foretold(one.cells[0].cell, asked, plan, one.cells[0].work, "NVIDIA H200", table)
    assert found.output_throughput is not None
    return found.reason


def test_a_run_in_one_shot_on_a_node_without_its_times_says_so() -> None:
    assert said("one-shot") == NOT_MEASURED
    assert said("nccl") is None
