"""Synthetic spans with known answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.analysis.observed.accounting import (
    PARTS,
    PARTS_OF_STEP,
    TIMED,
    PartsRow,
    TimedRow,
    account,
)
from strategies import Load, ModelShape, Placement, Topology, plan_layout
from workers.intervals import intersect, length, subtract, union
from workers.records import COMPUTE, SPANS, SpanRow
from workers.rows import flat

MODEL = ModelShape("m", "llama", 64, 4, 4, 4, 16, 96, 128, 256, 1e-5, 1e4)


def placed(layout: str) -> Placement:
    return plan_layout(layout, MODEL, Load(8, 8, 4), Topology.uniform(4)).placement


def span(
    rank: int,
    step: int,
    kind: str,
    start: float,
    end: float,
    axis: str | None = None,
    size: int = 0,
    phase: str = "decode",
) -> SpanRow:
    """Times in milliseconds."""
    return SpanRow(
        rank=rank,
        phase=phase,
        step=step,
        kind=kind,
        axis=axis,
        call_phase=phase if axis else None,
        bytes=size if axis else None,
        start_us=start * 1e3,
        end_us=end * 1e3,
    )


def parts(rows: list[SpanRow], layout: str) -> list[PartsRow]:
    return PARTS_OF_STEP.rows(account(SPANS.make(rows), placed(layout))["parts"])


def figures(rows: list[SpanRow], layout: str) -> dict[int, dict[str, float]]:
    """rank -> the decode step's parts in ms, rounded to the nanosecond."""
    out = {}
    for row in parts(rows, layout):
        if row.phase == "decode":
            assert row.step_ms == pytest.approx(sum(getattr(row, f"{part}_ms") for part in PARTS))
            out[row.rank] = {
                key[:-3]: round(value, 6) for key, value in flat(row).items() if key[-3:] == "_ms"
            }
    return out


def timed(rows: list[SpanRow], layout: str) -> list[TimedRow]:
    return TIMED.rows(account(SPANS.make(rows), placed(layout))["timed_collectives"])


def test_the_rank_that_comes_last_moves_and_the_other_waits() -> None:
    """An all-reduce of 2 ms; rank 1 computes 3 ms longer; step 0 only sets the clock."""
    rows = []
    for rank, busy in ((0, 5.0), (1, 8.0)):
        rows += [span(rank, 0, COMPUTE, 0, 10), span(rank, 1, COMPUTE, 10, 10 + busy)]
        rows.append(span(rank, 1, "all_reduce", 10 + busy, 20, "tp", 100))
    found = figures(rows, "tp2")
    assert found[0] == {
        "step": 10,
        "compute": 5,
        "exposed_transfer": 2,
        "exposed_wait": 3,
        "bubble": 0,
        "launch_gap": 0,
        "comm_busy": 5,
    }
    assert found[1] == {
        "step": 10,
        "compute": 8,
        "exposed_transfer": 2,
        "exposed_wait": 0,
        "bubble": 0,
        "launch_gap": 0,
        "comm_busy": 2,
    }


def test_what_compute_hides_is_busy_but_not_exposed() -> None:
    rows = [
        row
        for rank in (0, 1)
        for row in (
            span(rank, 0, COMPUTE, 0, 1),
            span(rank, 1, COMPUTE, 1, 9),
            span(rank, 1, "all_reduce", 4, 10, "tp", 100),
        )
    ]
    assert figures(rows, "tp2")[0] == {
        "step": 9,
        "compute": 8,
        "exposed_transfer": 1,
        "exposed_wait": 0,
        "bubble": 0,
        "launch_gap": 0,
        "comm_busy": 6,
    }


def test_waiting_for_another_stage_is_bubble_and_its_transfer_is_not() -> None:
    """Stage 1 waits 6 ms for what takes 1 ms to send; stage 0 sends beside its next compute."""
    rows = [
        *(span(rank, step, COMPUTE, step, step + 1) for rank in (0, 1) for step in (-1, 0)),
        span(0, 1, COMPUTE, 1, 7),
        span(0, 1, "send", 7, 8, "pp", 50),
        span(0, 2, COMPUTE, 7, 11),
        span(1, 1, "recv", 1, 8, "pp", 50),
        span(1, 1, COMPUTE, 8, 11),
    ]
    found = figures(rows, "pp2")
    assert found[1] == {
        "step": 10,
        "compute": 3,
        "exposed_transfer": 1,
        "exposed_wait": 0,
        "bubble": 6,
        "launch_gap": 0,
        "comm_busy": 1,
    }
    assert found[0] == {
        "step": 5,
        "compute": 5,
        "exposed_transfer": 0,
        "exposed_wait": 0,
        "bubble": 0,
        "launch_gap": 0,
        "comm_busy": 0.5,
    }


def test_the_first_decode_step_of_each_micro_batch_is_left_out() -> None:
    """Stage 0 has both micro-batches' last prompts done at 2 and waits for stage 1 until 200: no
    decode step is like that."""
    rows = [
        span(0, 0, COMPUTE, 0, 1, phase="prefill"),
        span(0, 1, COMPUTE, 1, 2, phase="prefill"),
        span(0, 2, "broadcast", 2, 100, "pp", 8),
        span(0, 2, COMPUTE, 100, 104),
        span(0, 3, "broadcast", 104, 200, "pp", 8),
        span(0, 3, COMPUTE, 200, 204),
        span(0, 4, "broadcast", 204, 205, "pp", 8),
        span(0, 4, COMPUTE, 205, 209),
        span(0, 5, COMPUTE, 209, 213),
        span(1, 2, "broadcast", 99, 100, "pp", 8),
        span(1, 3, "broadcast", 199, 200, "pp", 8),
        span(1, 4, "broadcast", 204.5, 205, "pp", 8),
    ]
    found = figures(rows, "pp2")[0]
    assert (found["step"], found["compute"], found["bubble"]) == (4.5, 4, 0.25)
    (broadcast,) = [row for row in timed(rows, "pp2") if row.rank == 0]
    assert (broadcast.calls, broadcast.wait_us) == (1, pytest.approx(500))


def test_what_is_kept_to_look_at_is_what_counts() -> None:
    rows = [
        span(0, step, COMPUTE, step, step + 1, phase="prefill" if step < 3 else "decode")
        for step in range(14)
    ]
    kept = account(SPANS.make(rows), placed("pp4"))["spans"]
    assert sorted({row.step for row in SPANS.rows(kept)}) == [1, 2, 7, 8, 9, 10]
    assert [row.steps for row in parts(rows, "pp4")] == [2, 7]


def test_a_hand_over_is_between_two() -> None:
    rows = [span(0, step, COMPUTE, step, step + 0.5) for step in range(6)]
    rows += [span(0, step, "send", step + 0.5, step + 1, "pp", 8) for step in range(6)]
    assert {row.group_size for row in timed(rows, "pp4")} == {2}


def test_a_call_belongs_to_the_phase_of_what_it_carries() -> None:
    """The first stage receives the tokens of the last prompts within a decode step."""
    rows = [
        span(0, 0, COMPUTE, 0, 1, phase="prefill"),
        *(span(0, step, COMPUTE, step, step + 1) for step in (1, 2)),
        replace(span(0, 3, "broadcast", 3, 4, "pp", 8), call_phase="prefill"),
        span(0, 3, COMPUTE, 4, 5),
    ]
    (broadcast,) = timed(rows, "pp2")
    assert (broadcast.phase, broadcast.calls) == ("prefill", 1)
    assert figures(rows, "pp2")[0]["step"] == 2


def test_when_nothing_runs_it_is_a_launch_gap() -> None:
    rows = [span(0, 0, COMPUTE, 0, 1), span(0, 1, COMPUTE, 3, 4), span(0, 1, COMPUTE, 6, 11)]
    assert figures(rows, "tp1")[0] == {
        "step": 10,
        "compute": 6,
        "exposed_transfer": 0,
        "exposed_wait": 0,
        "bubble": 0,
        "launch_gap": 4,
        "comm_busy": 0,
    }


def test_prefill_between_decode_steps_is_not_theirs() -> None:
    rows = [
        span(0, 0, COMPUTE, 0, 1),
        span(0, 1, COMPUTE, 1, 5, phase="prefill"),
        span(0, 2, COMPUTE, 5, 6),
        span(0, 3, COMPUTE, 6, 8),
    ]
    assert figures(rows, "tp1")[0]["step"] == pytest.approx(1.5)


def test_calls_are_matched_by_their_order_not_by_clocks() -> None:
    """Rank 1's clock runs an hour ahead; two groups of a tp2dp2 have nothing to do with each
    other."""
    hour = 3.6e6
    rows = []
    for rank, shift, took in ((0, 0.0, 4.0), (1, hour, 1.0), (2, 0.0, 9.0), (3, 0.0, 7.0)):
        rows += [
            span(rank, 0, COMPUTE, shift, shift + 1),
            span(rank, 1, "all_reduce", shift + 1, shift + 1 + took, "tp", 10),
        ]
    found = figures(rows, "tp2dp2")
    assert [found[rank]["exposed_transfer"] for rank in range(4)] == [1, 1, 7, 7]
    assert [found[rank]["exposed_wait"] for rank in range(4)] == [3, 0, 2, 0]


def test_bandwidths_are_those_of_nccl_tests() -> None:
    """1 MB over 4 ranks in 10 us: 100 GB/s, and x 2 (n - 1) / n on the bus."""
    rows = [
        span(rank, 0, "all_reduce", 0.0, 0.01 + 0.005 * (rank > 0), "tp", 1_000_000)
        for rank in range(4)
    ]
    first, *_, last = timed(rows, "tp4")
    assert (first.algbw, first.busbw) == (pytest.approx(100), pytest.approx(150))
    assert (first.transfer_us, first.wait_us) == (pytest.approx(10), pytest.approx(0))
    assert (last.transfer_us, last.wait_us) == (pytest.approx(10), pytest.approx(5))


def test_where_nothing_was_seen_the_tables_are_empty() -> None:
    assert {name: table.num_rows for name, table in account(None, placed("tp2")).items()} == {
        "spans": 0,
        "timed_collectives": 0,
        "parts": 0,
    }


def test_sets_of_time() -> None:
    assert union([(3, 4), (0, 2), (1, 2.5), (5, 5)]) == [(0, 2.5), (3, 4)]
    assert subtract([(0, 10), (20, 30)], [(2, 3), (8, 22), (29, 40)]) == [(0, 2), (3, 8), (22, 29)]
    assert intersect([(0, 10)], [(2, 3), (8, 22)]) == [(2, 3), (8, 10)]
    assert length([(0, 2), (3, 8)]) == 7
