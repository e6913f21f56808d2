"""The data of the page's charts, made of the rows of results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from driver_inputs import plan
from report_inputs import span
from summaries import CELL, comparison, summary
from tables import from_flat, make

from orchestrator.analysis.building import memory_of
from orchestrator.analysis.observed.accounting import CellParts, CellTimed
from orchestrator.analysis.outputs import KEPT_REQUESTS
from orchestrator.analysis.summary import Conditions
from orchestrator.report.charts import cells, memory, telemetry, timeline, views
from orchestrator.report.charts.choices import lengths_of
from orchestrator.report.charts.communication import communication
from orchestrator.report.charts.cost import cost
from orchestrator.report.charts.latencies import latencies
from orchestrator.store.schema import CellKey
from workers.messages import Built
from workers.records import SPANS, SpanRow
from workers.rows import columns, nothing

PP2 = from_flat(CellKey, {**CELL, "strategy": "pp2"})
NAMES = {PP2: "pp2"}
KEY = {**CELL, "strategy": "pp2", "start": 0}


def parts_of(rank: int, step_ms: float, phase: str = "decode") -> CellParts:
    none = {column.name: None for column in columns(CellParts)}
    return from_flat(CellParts, {**none, **KEY, "rank": rank, "phase": phase, "step_ms": step_ms})


def timed(rank: int, **took: float | None) -> CellTimed:
    call = {"phase": "decode", "op": "all_reduce", "axis": "tp", "group_size": 2, "calls": 4}
    return from_flat(CellTimed, {**KEY, **call, "rank": rank, **took})


def test_from_token_to_token_a_stage_takes_a_step_for_each_micro_batch() -> None:
    steps = [
        {**KEY, "rank": rank, "phase": "decode", "micro_batch": micro_batch}
        for rank in (0, 1)
        for micro_batch in (0, 1, 0, 1)
    ]
    steps += [{**KEY, "rank": 0, "phase": "prefill", "micro_batch": 2}]
    in_flight = cells.micro_batches(pa.Table.from_pylist(steps))
    assert in_flight == {(PP2, 0): 2, (PP2, 1): 2}
    parts = [parts_of(0, 9.0), parts_of(1, 10.0), parts_of(0, 99.0, "prefill")]
    assert cells.token_times(parts, in_flight) == {PP2: 19.0}
    assert cells.token_times(parts, {}) == {}
    assert cells.micro_batches(None) == {}


def test_a_cell_has_the_parts_of_the_phases_that_were_observed() -> None:
    shares = {
        "compute_pct": 80.0,
        "exposed_transfer_pct": 9.0,
        "exposed_wait_pct": 5.0,
        "bubble_pct": 0.0,
        "launch_gap_pct": 6.0,
        "bubble_pct_worst": 1.0,
        "comm_exposed_pct": 14.0,
    }
    one = comparison(strategy="pp2", median_tpot_ms=20.0, **shares)
    (found,) = cells.cells([one], NAMES, [parts_of(0, 9.0), parts_of(1, 10.0)])
    assert found.parts == {
        "decode": {
            "compute": 80.0,
            "exposed_transfer": 9.0,
            "exposed_wait": 5.0,
            "bubble": 0.0,
            "launch_gap": 6.0,
        }
    }
    assert found.worst["decode"]["bubble"] == 1.0
    assert found.worst["prefill"] == {}
    assert found.comm["decode"]["comm_exposed_pct"] == 14.0
    assert (found.step_ms, found.token_ms, found.per_user) == ({"decode": 9.5}, None, 50.0)


def test_calls_are_told_as_the_mean_over_ranks_and_of_the_worst_one() -> None:
    rows = [
        timed(0, bytes=400, transfer_us=5.0, wait_us=1.0, algbw=20.0, busbw=20.0),
        timed(1, bytes=400, transfer_us=5.0, wait_us=3.0, algbw=10.0, busbw=10.0),
    ]
    (found,) = communication(rows, NAMES)
    assert (found.calls, found.bytes_per_call) == (4, 100)
    assert (found.wait_us, found.wait_us_worst, found.busbw, found.busbw_worst) == (2, 3, 15, 10)
    unseen = timed(0, bytes=None, transfer_us=None, wait_us=None, algbw=None, busbw=None)
    (found,) = communication([unseen], NAMES)
    assert found.bytes_per_call is found.busbw_worst is None


def test_latencies_of_requests_need_as_many_tokens_as_they_span() -> None:
    rows = [
        {**KEY, "run": 0, "arrival_s": 1.0, "token_times_s": times}
        for times in ([1.5, 1.6, 1.8], [2.0], [], None)
    ]
    requests = make(KEPT_REQUESTS, rows)
    found = {one.metric: (one.requests, one.q[0], one.q[100]) for one in latencies(requests, NAMES)}
    assert found == {"ttft": (2, 500, 1000), "tpot": (1, 150, 150), "e2el": (2, 800, 1000)}
    assert latencies(requests, {}) == latencies(None, NAMES) == []


def steps_of(rank: int, numbers: Iterable[int], length: float, begin: float = 0.0) -> list[SpanRow]:
    """Steps of a rank, one after another: compute in two stretches, and a call."""
    return [
        span(rank, step, kind, begin + (place + at) * length, begin + (place + to) * length)
        for place, step in enumerate(numbers)
        for kind, at, to in (("compute", 0.0, 0.4), ("compute", 0.4, 0.9), ("send", 0.9, 1.0))
    ]


def drawn(**seen: list[SpanRow]) -> dict[str, timeline.Window]:
    return timeline.windows(
        {name: timeline.spans_of(SPANS.make(spans)) for name, spans in seen.items()}
    )


def test_a_timeline_shows_as_long_a_time_of_every_layout_with_compute_joined() -> None:
    found = drawn(tp2=steps_of(0, range(20), 100.0), dp2=steps_of(0, range(4), 300.0))
    assert {one.length for one in found.values()} == {900.0}  # three steps of the slower one
    assert found["dp2"].recorded == found["tp2"].recorded == [[0, 0.0, 900.0]]
    assert [bar[1] for bar in found["dp2"].bars] == [1, 1, 2, 2, 3, 3]
    assert found["dp2"].bars[0][3:] == [0.0, 270.0]
    assert len(found["tp2"].bars) == 2 * 9


def test_a_timeline_tells_time_that_was_not_recorded_from_idle_time() -> None:
    gap = steps_of(0, (5, 6), 100.0) + steps_of(0, (8, 9), 100.0, 300.0)
    idle = steps_of(1, (5,), 100.0) + steps_of(1, (6, 7, 8), 100.0, 200.0)
    (found,) = drawn(dp2=gap + idle).values()
    assert found.length == 400.0  # steps 6, 8 and 9 of rank 0, and what lies between
    assert found.recorded == [[0, 0.0, 100.0], [0, 200.0, 400.0], [1, 0.0, 400.0]]


def test_a_timeline_is_of_a_shorter_time_where_not_all_of_it_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timeline, "MAX_BARS", 10)
    found = drawn(tp2=steps_of(0, range(20), 100.0), pp2=steps_of(0, range(20), 50.0))
    assert len({one.length for one in found.values()}) == 1
    assert sum(len(one.bars) for one in found.values()) == 10


def test_a_timeline_without_a_call_that_was_seen_is_none() -> None:
    unseen = replace(span(0, 0, "send", 0.0, 1.0), start_us=None, end_us=None)
    assert timeline.spans_of(SPANS.make([unseen])).num_rows == 0


def test_samples_are_binned_so_that_each_bin_has_every_device() -> None:
    seconds, values = np.repeat(np.arange(10) / 10, 2), np.tile([400.0, 600.0], 10)
    found = telemetry.binned(seconds, values, 2)
    assert set(found.low) == {400.0}
    assert set(found.high) == {600.0}
    assert len(telemetry.binned(np.arange(1e4), np.ones(10000), 1).s) == telemetry.SAMPLES


def test_memory_is_that_of_the_run_with_the_highest_peak_and_its_parts_never_exceed_it() -> None:
    low, high = (
        summary(
            strategy="pp2",
            run=run,
            peak_memory_bytes_per_rank=[peak, 10**9],
            weight_bytes_per_rank=[3 * 10**9, 2 * 10**9],
        )
        for run, peak in enumerate((4 * 10**9, 5 * 10**9))
    )
    first, second = memory.memory([low, high, summary(strategy="pp2", status="failed")], NAMES)
    assert (first.rank, first.peak, first.weight, first.kv, first.rest) == (0, 5.0, 3.0, None, 2.0)
    assert (second.rank, second.peak, second.weight, second.rest) == (1, 1.0, None, 1.0)


def test_memory_of_a_rank_is_what_it_was_built_with() -> None:
    built = [
        Built(rank, 1.0, 1.0, weight_bytes=100 + rank, kv_tokens=64, device_name="cpu")
        for rank in (1, 0)
    ]
    held = memory_of(built, plan(2), [])
    assert held.weight_bytes_per_rank == [100, 101]
    keys_and_values, layers, heads, dim, size = 2, 2, 4, 2, 4
    assert held.kv_bytes_per_rank == [64 * keys_and_values * layers * heads * dim * size] * 2
    unpaged = memory_of([Built(0, 1.0, 1.0, 100, None, "cpu")], plan(1), [])
    assert unpaged.kv_bytes_per_rank is None


def test_rows_of_a_table_are_found_by_their_cell_in_the_order_of_the_first_of_each() -> None:
    tp2 = {**KEY, "strategy": "tp2"}
    table = pa.Table.from_pylist([KEY, tp2, KEY, {**tp2, "max_concurrency": 2}, tp2])
    found = {
        (cell.strategy, cell.max_concurrency): list(places)
        for cell, places in views.by_cell(table).items()
    }
    assert found == {("pp2", 8): [0, 2], ("tp2", 8): [1, 4], ("tp2", 2): [3]}
    assert list(found) == [("pp2", 8), ("tp2", 8), ("tp2", 2)]
    assert views.by_cell(table.slice(0, 0)) == {}


@pytest.mark.parametrize(
    ("value", "shown"), [(None, None), (float("nan"), None), (1.234567, 1.2346), (123456.7, 123460)]
)
def test_numbers_are_cut_to_what_is_known_of_them(value: float | None, shown: float | None) -> None:
    assert views.rounded(value) == shown


# Of a token's 10 ms: 7 in decode, 2 in prefill, half a millisecond each of ramp and outside.
COST = {
    "device_ms_per_token": 10.0,
    "outside_ms_per_token": 0.5,
    "ramp_ms_per_token": 0.5,
    "decode_device_ms_per_token": 7.5,
    "decode_ramp_ms_per_token": 0.5,
    "prefill_device_ms_per_token": 2.0,
    "prefill_ramp_ms_per_token": 0.0,
    "run_comm_exposed_pct": 15.0,
}
BESIDE = {"transfer": 1.0, "wait": 0.5, "bubble": 0.0, "launch_gap": 0.5}
DECODE = {"compute": 5.0, **BESIDE}
PREFILL = {"compute": 1.5, **BESIDE, "transfer": 0.5, "wait": 0.0, "launch_gap": -1e-12}


def costed(**given: object) -> dict[str, object]:
    """Columns of a cell's cost: those of decode and prefill by part."""
    cut = {
        f"{phase}_{part}_ms_per_token": value
        for phase, parts in given.items()
        for part, value in dict(parts).items()
    }
    return {**CELL, "strategy": "pp2", **COST, **cut}


def test_the_cost_of_a_token_is_cut_over_both_phases() -> None:
    roofline = {"weights": 4.0, "kv": 0.5, "arithmetic": 0.0}
    slow = {"weights": 0.5, "kv": 0.0, "arithmetic": 1.5}
    given = costed(
        decode={**DECODE, **roofline, "rest": 0.5}, prefill={**PREFILL, **slow, "rest": -0.5}
    )
    (row,) = cost([comparison(**given)], NAMES)
    assert row.parts == pytest.approx(
        {
            "weights": 4.5,
            "kv": 0.5,
            "arithmetic": 1.5,
            "rest": 0.0,
            "transfer": 1.5,
            "wait": 0.5,
            "bubble": 0.0,
            "launch_gap": 0.5,
            "ramp": 0.5,
            "outside": 0.5,
        }
    )
    assert sum(row.parts.values()) == pytest.approx(row.total)
    assert (row.layout, row.unit, row.comm, row.reasons) == ("pp2", "worker-ms", 15.0, [])


def test_without_rates_compute_is_one_part_of_the_cost() -> None:
    (row,) = cost([comparison(**costed(decode=DECODE, prefill=PREFILL))], NAMES)
    assert row.parts["compute"] == 6.5
    assert not {"weights", "kv", "arithmetic", "rest"} & row.parts.keys()
    assert sum(row.parts.values()) == pytest.approx(row.total)


def test_a_phase_that_was_not_taken_apart_is_one_part_of_the_cost() -> None:
    given = {**costed(decode=DECODE), "prefill_cost_reason": "slowed down"}
    (row,) = cost([comparison(**given, device_name="NVIDIA H200")], NAMES)
    assert row.parts["prefill"] == 2.0
    assert row.parts["compute"] == 5.0
    assert sum(row.parts.values()) == pytest.approx(row.total)
    assert (row.unit, row.reasons) == ("GPU-ms", ["prefill is not taken apart (slowed down)"])


def test_a_run_without_steps_has_a_cost_in_one_piece_and_one_without_tokens_none() -> None:
    given = {"device_ms_per_token": 10.0, "device_time_reason": "no steps", "strategy": "pp2"}
    (row,) = cost([comparison(**given)], NAMES)
    assert (row.parts, row.reasons) == ({"uncut": 10.0}, ["no steps"])
    assert cost([comparison(strategy="pp2")], NAMES) == []


def test_the_interval_of_a_throughput_does_not_reach_below_0() -> None:
    spread = {"output_throughput_ci_low": -5.0, "output_throughput_ci_high": 20.0}
    (row,) = cells.cells([comparison(strategy="pp2", output_throughput=7.5, **spread)], NAMES)
    assert (row.low, row.high) == (0.0, 20.0)


def test_lengths_that_differ_are_shown_by_their_means() -> None:
    unknown = nothing(Conditions)
    equal = replace(unknown, input_len=8, output_len=4, mean_input_len=8.0, mean_output_len=4.0)
    assert lengths_of(equal) == " (8 in / 4 out)"
    assert lengths_of(replace(equal, input_len=None)) == " (mean 8 in / 4 out)"
    assert lengths_of(unknown) == ""
