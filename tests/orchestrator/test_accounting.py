"""The step taken apart: synthetic spans with known answers, in milliseconds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from spans import figures, parts, placed, span, step, timed

from orchestrator.analysis.observed.accounting import account
from workers.intervals import intersect, length, subtract, union
from workers.records import COMPUTE, DRAIN, PREFILL, SPANS, STALL


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
        "wait_compute": 3,
        "comm_busy": 5,
    }
    assert found[1] == {"step": 10, "compute": 8, "exposed_transfer": 2, "comm_busy": 2}


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
        "comm_busy": 6,
    }


def test_a_wait_that_compute_hides_is_none() -> None:
    """Rank 0 computes on beside its call while it waits 4 ms for rank 1, of which 1 ms is bare."""
    rows = [
        *(span(rank, 0, COMPUTE, 0, 1) for rank in (0, 1)),
        span(0, 1, COMPUTE, 1, 5),
        span(0, 1, "all_reduce", 2, 8, "tp", 100),
        span(1, 1, COMPUTE, 1, 6),
        span(1, 1, "all_reduce", 6, 8, "tp", 100),
    ]
    found = figures(rows, "tp2")[0]
    assert (found["compute"], found["exposed_wait"], found["exposed_transfer"]) == (4, 1, 2)
    assert found["comm_busy"] == 6


def test_waiting_for_another_stage_is_bubble_and_its_transfer_is_not() -> None:
    """Stage 1 waits 6 ms for what takes 1 ms to send; stage 0 sends beside its next compute."""
    rows = [
        *(span(rank, number, COMPUTE, number, number + 1) for rank in (0, 1) for number in (-1, 0)),
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
        "bubble": 6,
        "comm_busy": 1,
    }
    assert found[0] == {"step": 5, "compute": 5, "comm_busy": 0.5}


def test_a_stage_whose_host_waits_for_another_one_is_in_a_bubble_where_nothing_computes() -> None:
    """The host of stage 1 waits 6 ms before it launches its receive; 1 ms it computes meanwhile."""
    rows = [
        *(span(rank, 0, COMPUTE, 0, 1) for rank in (0, 1)),
        span(0, 1, COMPUTE, 1, 8),
        span(0, 1, "send", 8, 9, "pp", 100),
        span(1, 1, STALL, 1, 7),
        span(1, 1, COMPUTE, 2, 3),
        span(1, 1, "recv", 7.5, 9, "pp", 100),
        span(1, 1, COMPUTE, 9, 11),
    ]
    assert figures(rows, "pp2")[1] == {
        "step": 10,
        "compute": 3,
        "exposed_transfer": 1,
        "bubble": 5.5,
        "launch_gap": 0.5,
        "comm_busy": 1,
    }


def test_uneven_stages_make_the_faster_one_wait() -> None:
    """Stage 0 computes 2 ms a micro-batch and stage 1 5 ms; a message takes 0.5 ms. Stage 0 sends
    without waiting, then waits for the tokens of two steps before."""
    rows = []
    for number in range(8):
        begin = 6.0 * number
        if number >= 2:
            came = begin - 4.5
            rows.append(
                span(0, number, "broadcast", came, begin - 0.5, "pp", 8, carried=number - 2)
            )
        rows.append(span(0, number, COMPUTE, begin - 0.5, begin + 1.5))
        rows.append(span(0, number, "send", begin + 1.5, begin + 6, "pp", 50))
        rows.append(span(1, number, "recv", begin + 5.5, begin + 6, "pp", 50))
        rows.append(span(1, number, COMPUTE, begin + 6, begin + 11))
        rows.append(span(1, number, "broadcast", begin + 11, begin + 11.5, "pp", 8))
    for number in (6, 7):
        rows.append(span(0, 8, "broadcast", 43.5, 53.5, "pp", 8, DRAIN, carried=number))
    found = figures(rows, "pp2")
    assert found[1] == {"step": 6, "compute": 5, "exposed_transfer": 1, "comm_busy": 1}
    assert found[0] == {
        "step": 6,
        "compute": 2,
        "exposed_transfer": 0.5,
        "bubble": 3.5,
        "comm_busy": 1,
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
        span(0, number, COMPUTE, number, number + 1, phase="prefill" if number < 3 else "decode")
        for number in range(14)
    ]
    kept = account(SPANS.make(rows), placed("pp4"))["spans"]
    assert sorted({row.step for row in SPANS.rows(kept)}) == [1, 2, 7, 8, 9, 10]
    assert [row.steps for row in parts(rows, "pp4")] == [2, 7]


def test_all_spans_are_kept_where_that_is_asked_for() -> None:
    rows = [span(0, number, COMPUTE, number, number + 1) for number in range(14)]
    rows.append(span(0, 14, COMPUTE, 14, 15, phase=DRAIN))
    tables = account(SPANS.make(rows), placed("tp1"), whole=True)
    assert SPANS.rows(tables["spans"]) == rows
    assert tables["parts"].column("whole").to_pylist() == [True]
    assert account(SPANS.make(rows), placed("tp1"))["parts"].column("whole").to_pylist() == [False]


def test_tokens_that_come_after_the_last_step_are_of_no_phase() -> None:
    rows = [span(0, number, COMPUTE, number, number + 1) for number in range(3)]
    rows.append(span(0, 3, COMPUTE, 3, 90, phase=DRAIN))
    (found,) = parts(rows, "tp1")
    assert (found.phase, found.steps, found.step_ms) == ("decode", 2, 1)


def test_a_hand_over_is_between_two() -> None:
    rows = [
        span(rank, number, COMPUTE, number, number + 0.5) for rank in (0, 1) for number in range(6)
    ]
    rows += [span(0, number, "send", number + 0.5, number + 1, "pp", 8) for number in range(6)]
    rows += [span(1, number, "recv", number + 0.5, number + 1, "pp", 8) for number in range(6)]
    found = timed(rows, "pp4")
    assert {(row.rank, row.op, row.group_size) for row in found} == {(0, "send", 2), (1, "recv", 2)}


def test_a_call_belongs_to_the_phase_of_what_it_carries() -> None:
    """The first stage receives the tokens of the last prompts within a decode step."""
    carried = {"call_phase": PREFILL, "call_step": 0}
    rows = [
        span(0, 0, COMPUTE, 0, 1, phase="prefill"),
        *(span(0, number, COMPUTE, number, number + 1) for number in (1, 2)),
        replace(span(0, 3, "broadcast", 3, 4, "pp", 8), **carried),
        span(0, 3, COMPUTE, 4, 5),
        span(1, 0, COMPUTE, 0, 1, phase="prefill"),
        span(1, 0, "broadcast", 1, 2, "pp", 8, "prefill"),
    ]
    (broadcast,) = [row for row in timed(rows, "pp2") if row.rank == 0]
    assert (broadcast.phase, broadcast.calls) == ("prefill", 1)
    assert figures(rows, "pp2")[0]["step"] == 2


def test_when_nothing_runs_it_is_a_launch_gap() -> None:
    rows = [span(0, 0, COMPUTE, 0, 1), span(0, 1, COMPUTE, 3, 4), span(0, 1, COMPUTE, 6, 11)]
    assert figures(rows, "tp1")[0] == {"step": 10, "compute": 6, "launch_gap": 4}


def test_prefill_between_decode_steps_is_not_theirs() -> None:
    rows = [
        span(0, 0, COMPUTE, 0, 1),
        span(0, 1, COMPUTE, 1, 5, phase="prefill"),
        span(0, 2, COMPUTE, 5, 6),
        span(0, 3, COMPUTE, 6, 8),
    ]
    assert figures(rows, "tp1")[0]["step"] == pytest.approx(1.5)


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


# -- kernels that communicate and compute


def test_a_kernel_that_also_computes_is_neither_transfer_nor_compute() -> None:
    """An all-reduce with a norm takes 2 ms once both ranks are there; rank 0 waits 3 ms for that,
    which is known."""
    rows = []
    for rank, busy in ((0, 5.0), (1, 8.0)):
        rows += [span(rank, 0, COMPUTE, 0, 10), span(rank, 1, COMPUTE, 10, 10 + busy)]
        rows.append(span(rank, 1, "all_reduce", 10 + busy, 20, "tp", 100, fused=True))
    found = figures(rows, "tp2")
    assert found[0] == {
        "step": 10,
        "compute": 5,
        "exposed_wait": 3,
        "wait_compute": 3,
        "fused": 2,
        "comm_busy": 5,
    }
    assert found[1] == {"step": 10, "compute": 8, "fused": 2, "comm_busy": 2}
    first, _ = timed(rows, "tp2")
    assert (first.transfer_us, first.algbw, first.busbw) == (None, None, None)
    assert first.wait_us == pytest.approx(3000)


# -- the same work without a probe


def test_a_profiled_step_is_laid_beside_the_same_step_without_a_probe() -> None:
    """Steps of 3 ms with a probe and of 2 ms without; one hiccup on either side decides nothing."""
    ends, end = [], 0.0
    for length_ms in (9, 3, 3, 30, 3, 3):
        end += length_ms
        ends.append(end)
    rows = [
        span(0, number, COMPUTE, before, end)
        for number, (before, end) in enumerate(zip([0, *ends], ends, strict=False))
    ]
    without = [step(0, number, 2.0 * (number + 1) + 50 * (number > 3)) for number in range(6)]
    (found,) = parts(rows, "tp1", without)
    assert found.timed_step_ms == pytest.approx(2)
    assert found.profile_ratio == pytest.approx(1.5)
    assert found.step_ms == pytest.approx(42 / 5)


def test_what_the_probe_costs_is_unknown_where_nothing_was_served_without_it() -> None:
    rows = [span(0, number, COMPUTE, number, number + 1) for number in range(3)]
    for without in (None, [], [step(1, 1, 1.0)], [step(0, 1, 1.0, "prefill")]):
        (found,) = parts(rows, "tp1", without)
        assert (found.timed_step_ms, found.profile_ratio) == (None, None)


def test_sets_of_time() -> None:
    assert union([(3, 4), (0, 2), (1, 2.5), (5, 5)]) == [(0, 2.5), (3, 4)]
    assert subtract([(0, 10), (20, 30)], [(2, 3), (8, 22), (29, 40)]) == [(0, 2), (3, 8), (22, 29)]
    assert intersect([(0, 10)], [(2, 3), (8, 22)]) == [(2, 3), (8, 10)]
    assert length([(0, 2), (3, 8)]) == 7
