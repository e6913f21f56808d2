"""What the engine `calibration` measures, and the rows that it makes of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from strategies.placement import Placement
from strategies.traffic import ONE_SHOT, TWO_SHOT, bus_factor
from workers.engines import node_collectives as collectives
from workers.engines import node_sweep
from workers.engines import node_timing as timing
from workers.engines.calibration_parts import PAIRS, parts
from workers.engines.node_sweep import Measurement
from workers.engines.node_timing import CPU_SWEEP, GPU_SWEEP, QUICK_SWEEP, Sweep, Timing
from workers.messages import RankReport
from workers.rank import RankContext
from workers.records import FABRIC, FabricRow

CPU = torch.device("cpu")
TINY = Sweep((4096,), 1 << 20, ((16, 16, 16),), (32, 16), samples=1, calls=1, rows=(1, 4))


def context(rank: int = 0) -> RankContext:
    return RankContext(rank, Placement(), CPU)


def measured(rank: int) -> list[FabricRow]:
    measurement = Measurement(context(rank), TINY)
    for part in parts(1):
        measurement.take(part)
    measurement.end()
    return measurement.found()


def test_group_sizes() -> None:
    assert [collectives.group_sizes(n) for n in (1, 2, 3, 4, 6, 8)] == [
        [],
        [2],
        [2, 3],
        [2, 4],
        [2, 4, 6],
        [2, 4, 8],
    ]


def test_bus_factors_are_those_of_nccl_tests() -> None:
    assert bus_factor(ONE_SHOT, 4) == 6.0  # to three others, each value with the number of its call
    assert {op: bus_factor(op, 4) for op in collectives.COLLECTIVE_OPS} == {
        "all_reduce": 1.5,
        "all_gather": 0.75,
        "reduce_scatter": 0.75,
        "send_recv": 1.0,
    }


def test_every_pair_of_ranks_is_measured_and_no_group_twice() -> None:
    found = [ranks for ranks, _, _ in collectives._group_cases(4, QUICK_SWEEP)]
    assert found == [(0, 1, 2, 3), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 8])
def test_the_ranks_of_a_group_have_shared_memory_equally_often_before(ranks: int) -> None:
    shared = dict.fromkeys(range(ranks), 0)
    for group, ops, _ in collectives._group_cases(ranks, QUICK_SWEEP):
        if "all_reduce" in ops:
            assert len({shared[rank] for rank in group}) == 1
            shared |= {rank: shared[rank] + 1 for rank in group}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8])
def test_parts_are_in_the_order_in_which_ranks_meet(ranks: int) -> None:
    cases = collectives._group_cases(ranks, QUICK_SWEEP)
    met = [collectives.part_of(group, ops) for group, ops, _ in cases]
    assert [*parts(ranks)] == [*parts(1), *dict.fromkeys(met)]
    assert met == sorted(met, key=[*parts(ranks)].index)  # the cases of a part are together


def test_of_pairs_the_more_there_are_the_more_time_they_have() -> None:
    assert [parts(ranks)[PAIRS] for ranks in (3, 4)] == [320.0, 350.0]
    assert PAIRS not in parts(2)


def test_a_part_reports_itself_and_those_before_it(calibrated: list[list[RankReport]]) -> None:
    found: list[set[tuple[str, tuple[int, ...]]]] = [set()]
    for reports in calibrated:
        rows = [row for one in reports for row in FABRIC.rows(one.fabric)]
        found.append({(row.kind, tuple(row.group or ())) for row in rows})
    assert all(before < after for before, after in itertools.pairwise(found))
    assert [after - before for before, after in itertools.pairwise(found)] == [
        {("cache", ()), ("hbm", ())},
        {("gemm", ())},
        {("decode_gemm", ())},
        {("collective", (0, 1, 2, 3))},
        {("collective", (0, 1))},
        {("collective", pair) for pair in itertools.combinations(range(4), 2) if pair != (0, 1)},
    ]


def test_a_median_leaves_the_first_sample_out(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([50.0, 1.0, 9.0, 2.0])
    monkeypatch.setattr(timing, "_elapsed_us", lambda device, call, calls: next(times))
    sweep = Sweep((), 0, (), (1, 1), samples=3, calls=1)
    assert timing.median_us(CPU, sweep, lambda: None) == 2.0


def test_a_sample_is_its_calls_after_one_that_is_not_timed() -> None:
    done: list[str] = []
    sweep = replace(TINY, samples=2, calls=3)
    us = timing.median_us(CPU, sweep, lambda: done.append("call"), renew=lambda: done.append("new"))
    assert done == ["new", *["call"] * 4] * 3  # the first sample is the one left out
    assert us > 0


def test_on_a_cpu_there_is_no_graph_to_time() -> None:
    assert timing.in_graph_us(CPU, TINY, lambda: None, lambda: None) is None


def test_rates_follow_from_bytes_and_time() -> None:
    one = Timing("collective", "all_reduce", 1_000_000, "float32", "eager", 100.0, (0, 1, 2, 3))
    row = one.row("node", "cpu", 0, samples=7)
    assert (row.algbw, row.busbw, row.tflops) == (10.0, 15.0, None)
    assert (row.group, row.group_size) == ((0, 1, 2, 3), 4)
    gemm = Timing("gemm", "1x1x1", 2_000_000, "float32", "eager", 200.0, flop=4_000_000)
    row = gemm.row("node", "cpu", 0, samples=7)
    assert (row.algbw, row.busbw, row.tflops) == (10.0, None, pytest.approx(0.02))
    assert (row.group, row.group_size) == (None, 1)


def test_what_has_no_time_has_no_rate() -> None:
    row = Timing("cache", "capacity", 1 << 20).row("node", "cpu", 0, samples=7)
    assert (row.time_us, row.algbw, row.busbw, row.tflops) == (None, None, None, None)
    assert row.percentile is row.samples is None
    assert row.bytes == 1 << 20


def test_a_time_says_that_it_is_the_median_and_of_how_many_samples() -> None:
    row = Timing("hbm", "copy", 1, "float32", "eager", 1.0).row("node", "cpu", 0, samples=7)
    assert (row.percentile, row.samples) == (50, 7)


def test_one_cpu_worker_measures_its_memory_and_its_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # To read more than real caches hold takes seconds.
    monkeypatch.setattr(node_sweep, "cache_bytes", lambda _: 1 << 20)
    rows = measured(0)
    assert [(row.kind, row.op, row.dtype) for row in rows] == [
        ("cache", "capacity", None),
        ("hbm", "read", "float32"),
        ("hbm", "copy", "float32"),
        ("gemm", "16x16x16", "float32"),
        ("gemm", "16x16x16", "bfloat16"),
        ("decode_gemm", "m1", "float32"),
        ("decode_gemm", "m4", "float32"),
    ]
    assert {(row.mode, row.group, row.device_name) for row in rows[1:]} == {("eager", None, "cpu")}
    copied, read = rows[2], rows[1]
    assert copied.bytes == 2 * read.bytes
    assert all(row.time_us is not None and row.time_us > 0 for row in rows[1:])
    assert {(row.percentile, row.samples, row.held_down) for row in rows[1:]} == {(50, 1, None)}


def test_cpu_workers_share_what_is_measured_so_the_first_one_measures_it() -> None:
    assert measured(1) == []


def test_how_much_is_measured_depends_on_the_device_and_on_what_is_asked() -> None:
    assert timing.sweep_for(torch.device("cuda"), quick=False) is GPU_SWEEP
    assert timing.sweep_for(CPU, quick=False) is CPU_SWEEP
    assert timing.sweep_for(torch.device("cuda"), quick=True) is QUICK_SWEEP


def test_two_ranks_measure_every_collective_and_the_first_one_reports(
    calibrated: list[list[RankReport]],
) -> None:
    rows = (row for report in calibrated[-1] for row in FABRIC.rows(report.fabric))
    found = [row for row in rows if row.group == (0, 1)]
    assert {(row.op, row.bytes) for row in found} == {
        (op, size) for op in collectives.COLLECTIVE_OPS for size in QUICK_SWEEP.messages
    }
    for row in found:
        assert (row.group, row.group_size, row.mode, row.rank) == ((0, 1), 2, "eager", 0)
        assert row.busbw == pytest.approx(row.algbw * bus_factor(row.op, 2))


# -- in one shot, which no CPU has: what sums is a stand-in


class Sums:
    """Notes the bytes that it is asked to sum."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.append(x.nbytes)
        return x


def among_peers(made: object, monkeypatch: pytest.MonkeyPatch) -> list[Timing]:
    """What is measured over four ranks where the engine has `made` for them; in a graph a call
    takes as many us as it has KiB."""

    def in_graph_us(device: torch.device, sweep: Sweep, call: Any, renew: Any) -> float:
        renew()
        return float(call().nbytes / 1024)

    monkeypatch.setattr(collectives, "resolve_name", lambda _: lambda device, group: made)
    monkeypatch.setattr(collectives, "in_graph_us", in_graph_us)
    backend: Any = None
    group = collectives.Group(backend, (0, 1, 2, 3), 0, backend)
    return list(collectives.among_peers(CPU, QUICK_SWEEP, group))


def test_sums_through_memory_are_measured_in_graphs_up_to_their_largest_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums, sizes = Sums(), [4096, 65536, 524288]
    *found, other = among_peers([(ONE_SHOT, sums, 524288), (TWO_SHOT, Sums(), 4096)], monkeypatch)
    assert (other.op, other.bytes) == (TWO_SHOT, 4096)
    assert [one.bytes for one in found] == sizes
    # Once before it is captured: what compiles cannot be.
    assert sums.asked == [size for size in sizes for _ in range(2)]
    assert {(one.kind, one.op, one.dtype, one.mode, one.group) for one in found} == {
        ("collective", ONE_SHOT, "bfloat16", "graph", (0, 1, 2, 3))
    }
    row = found[-1].row("node", "NVIDIA H200", 0, samples=7)
    assert row.time_us == 512
    assert row.busbw == pytest.approx(6 * row.algbw)


def test_ranks_that_share_no_memory_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert among_peers([], monkeypatch) == []


def test_the_engine_says_what_sums_through_memory() -> None:
    from workers.engines.native import build

    group: Any = None
    assert collectives.resolve_name(collectives.PEER_SUMS) is build.peer_sums
    assert build.peer_sums(CPU, group) == []
