"""All-reduces through memory of GPUs in a prediction: by what was measured of them, by latency and
bandwidth for a data sheet, and what is said where a calibration has none."""

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
from orchestrator.predict.hardware import GRAPH, Calibration, Hardware, Span, of_sheet
from orchestrator.predict.layouts import Case, candidates
from orchestrator.predict.load import Asked
from orchestrator.predict.passes import DECODE, Setting, Work
from orchestrator.predict.prediction import NOT_MEASURED, Prediction, predict
from orchestrator.predict.replica import Lengths
from orchestrator.run.foretold import foretold
from strategies import Topology
from strategies.precision import Precision
from strategies.traffic import FLAGGED, ONE_SHOT, TWO_SHOT
from workers.records import FABRIC

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
KNOWN = factors.load()
TORCH, VLLM = KNOWN.of("torch"), KNOWN.of("vllm")
SHORT = Lengths(256, 128, 2048)
KIB, MANY = 1 << 10, 100  # more requests than products hand sums over of


def calibrated(peer_sums: bool = True, small_us: float = 3.0) -> Calibration:
    """The one of 2 x H200, with times of sums through memory of GPUs, if asked."""
    rows = [{**one, "nodes": 1} for one in fabric.load(RESULTS / "2xh200").to_pylist()]
    like = next(one for one in rows if one["op"] == "all_reduce" and one["mode"] == "graph")
    one = [(ONE_SHOT, size, us) for size, us in ((4, small_us), (64, 3.3), (1536, 12.0))]
    two = [(TWO_SHOT, 4, 4.0), (TWO_SHOT, 2560, 16.0)]
    flagged = [(FLAGGED, 4, 3.2), (FLAGGED, 1536, 8.0), (FLAGGED, 32768, 130.0)]
    found = one + two + flagged
    more = [{**like, "op": op, "bytes": size * KIB, "time_us": us} for op, size, us in found]
    made = of_table(make(FABRIC, [*rows, *(more if peer_sums else [])]), "H200")
    assert made is not None
    return made


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
    for size, seconds in ((4, 3.0e-6), (64, 3.3e-6), (1536, 8.0e-6), (32768, 130.0e-6)):
        assert found.peer_sum_seconds("one-shot", Span(2), size * KIB) == pytest.approx(seconds)
    assert found.peer_sum_seconds("one-shot", Span(2), 32769 * KIB) is None
    assert found.peer_sum_seconds("nccl", Span(2), 4 * KIB) is None


def test_of_more_ranks_it_has_as_many_bytes_on_the_link() -> None:
    """Each rank sends its message three times as often, so a third is as slow, and the largest."""
    found = hardware(calibrated()).fabric
    assert found.peer_sum_seconds("one-shot", Span(4), 512 * KIB) == pytest.approx(12.0e-6)
    assert found.peer_sum_seconds("one-shot", Span(4), 513 * KIB) is None
    assert found.peer_sum_seconds("one-shot", Span(4, nodes=2), 4 * KIB) is None


def test_two_shot_has_one_shot_below_it_and_a_larger_message_at_most() -> None:
    """A message of n bytes over four ranks has 3 n on the link, and 2 n over two."""
    found = hardware(calibrated()).fabric
    in_one = found.peer_sum_seconds("one-shot", Span(4), 80 * KIB)
    assert found.peer_sum_seconds("two-shot", Span(4), 80 * KIB) == in_one
    larger = found.peer_sum_seconds("two-shot", Span(4), 2560 * 2 / 3 * KIB)
    assert larger == pytest.approx(16.0e-6)
    assert found.peer_sum_seconds("two-shot", Span(4), 2561 * KIB) is None
    assert found.peer_sum_seconds("two-shot", Span(2), 1536 * KIB) == pytest.approx(12.0e-6)


def test_a_decode_step_has_the_times_of_one_shot_and_a_large_one_those_of_nccl() -> None:
    small = setting("tp2", hardware(calibrated(small_us=3.0)))
    other = setting("tp2", hardware(calibrated(small_us=3.3)))
    nccl = Setting(replace(small.placed, allreduce="nccl"), TORCH)
    one, many = (Work(DECODE, rows, rows, rows * 300) for rows in (1, 4096))
    calls = 2 * small.placed.model.num_layers + 1

    def transfer(where: Setting, work: Work) -> float:
        return where.placed.transfer(0, work, GRAPH)[0]

    message = 16 * KIB  # of one token
    saved = nccl.placed.hardware.fabric.seconds("all_reduce", Span(2), message, GRAPH) or 0.0
    saved -= small.placed.hardware.fabric.peer_sum_seconds("one-shot", Span(2), message) or 0.0
    assert saved > 2e-6
    assert transfer(nccl, one) - transfer(small, one) == pytest.approx(calls * saved)
    assert transfer(other, one) > transfer(small, one)
    assert transfer(nccl, many) == transfer(small, many)  # 64 MiB


def test_without_times_of_one_shot_there_is_a_line_and_it_is_said() -> None:
    """By latency and bandwidth. The interval reaches to NCCL's times, and no further."""
    one = setting("tp2", hardware(calibrated(peer_sums=False)))
    line = replace(one.placed.hardware, fabric=one.placed.hardware.fabric.with_peer_sums())
    found, nccl, by_line = (
        predicted(Setting(placed, TORCH), MANY)
        for placed in (
            one.placed,
            replace(one.placed, allreduce="nccl"),
            replace(one.placed, hardware=line),
        )
    )
    assert found.tpot_ms.value == by_line.tpot_ms.value < nccl.tpot_ms.value
    ends = (by_line.tpot_ms.low, nccl.tpot_ms.high)
    assert (found.tpot_ms.low, found.tpot_ms.high) == pytest.approx(ends, rel=1e-12)
    speed = found.output_throughput
    ends = (nccl.output_throughput.low, by_line.output_throughput.high)
    assert (speed.low, speed.high) == pytest.approx(ends, rel=1e-12)
    assert found.outside == (*by_line.outside, NOT_MEASURED)
    assert NOT_MEASURED not in predicted(setting("tp2", hardware(calibrated()))).outside


def test_sums_that_products_hand_over_take_no_time_of_a_link() -> None:
    """Those between two ranks, of a step of few rows."""
    one = setting("tp2", hardware(calibrated(small_us=3.0)))
    other = setting("tp2", hardware(calibrated(small_us=3.3)))
    few, layers = TORCH.few, one.placed.model.num_layers
    assert few is not None
    assert few.sum_s is not None
    work = Work(DECODE, 1, 1, 300)
    for early in (True, False):
        took, longer = (
            Setting(replace(of.placed, early=early), TORCH).pass_of(0, work).transfer
            for of in (one, other)
        )
        assert (took == pytest.approx(longer, rel=1e-6)) == early
    slower = Setting(one.placed, replace(TORCH, few=replace(few, sum_s=few.sum_s + 1e-6)))
    more = slower.pass_of(0, work).transfer - one.pass_of(0, work).transfer
    assert more == pytest.approx((2 * layers + 1) * 1e-6)


def test_where_nothing_is_summed_in_one_shot_nothing_is_said_of_it() -> None:
    without = hardware(calibrated(peer_sums=False))
    for one in (setting("pp2", without), setting("tp2", without, VLLM), setting("tp16", without)):
        assert one.placed.allreduce in ("nccl", "custom")
        assert NOT_MEASURED not in predicted(one).outside


@pytest.mark.parametrize(
    ("gpu", "kind", "ranks", "kib", "us"),
    [
        ("h200", "one-shot", 2, 10, 2.8),
        ("h200", "one-shot", 2, 640, 5.1),
        ("h200", "two-shot", 2, 1000, 9.4),
        ("h200", "one-shot", 4, 10, 3.5),
        ("h200", "one-shot", 4, 160, 6.3),
        ("h200", "one-shot", 4, 480, 12.1),
        ("h100", "two-shot", 4, 80, 4.9),
        ("h100", "two-shot", 4, 320, 7.0),
        ("h100", "two-shot", 4, 1000, 12.2),
        ("h100", "two-shot", 4, 2560, 26.3),
    ],
)
def test_a_data_sheet_has_them_by_latency_and_bandwidth(
    gpu: str, kind: str, ranks: int, kib: int, us: float
) -> None:
    """Close to what was measured (docs/results/*/allreduce.arrow)."""
    fabric = hardware(gpu=gpu).fabric.with_peer_sums()
    found = fabric.peer_sum_seconds(kind, Span(ranks), kib * KIB)
    assert found == pytest.approx(us * 1e-6, rel=0.07 if kind == "one-shot" else 0.18)


@pytest.mark.parametrize(("layout", "concurrency"), [("tp2", MANY), ("tp4", 1)])
def test_gpus_that_nobody_measured_are_no_more_certain_than_those_that_were(
    layout: str, concurrency: int
) -> None:
    """Of a data sheet the times of sums through memory are by a line, too."""
    one = setting(layout, hardware(gpu="h800"))
    assert one.placed.allreduce in ("one-shot", "two-shot")
    found = predicted(one, concurrency)
    assert NOT_MEASURED in found.outside
    nccl = predicted(Setting(replace(one.placed, allreduce="nccl"), TORCH), concurrency)
    assert found.tpot_ms.high == pytest.approx(nccl.tpot_ms.high)


def test_gpus_on_pcie_have_none() -> None:
    assert not hardware(gpu="l40s").fabric.knows("one-shot", 2)


@pytest.mark.parametrize(
    ("layout", "gpu", "kind"),
    [
        ("tp2", "h200", "one-shot"),
        ("tp2pp2", "h200", "one-shot"),
        ("tp4", "h200", "two-shot"),
        ("tp8", "h200", "two-shot"),
        ("tp8pp2", "h200", "nccl"),  # two nodes
        ("pp2", "h200", "nccl"),
        ("tp2", "l40s", "nccl"),
        ("tp2", "h100 nvl", "one-shot"),
        ("tp4", "h100 nvl", "nccl"),  # two bridges
    ],
)
def test_the_engine_sums_through_memory_by_itself_where_nvlink_joins_all(
    layout: str, gpu: str, kind: str
) -> None:
    assert setting(layout, hardware(gpu=gpu), IDEAL).placed.allreduce == kind


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
