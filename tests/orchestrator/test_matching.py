"""Calls matched over ranks: what is lost, what does not agree, and clocks that do not."""

from __future__ import annotations

import pytest
from spans import decode, figures, parts, placed, span, timed

from orchestrator.analysis.observed.matching import match
from workers.records import COMPUTE, SpanRow

STEPS = range(8)
LATE_MS = {0: 3.0, 1: 0.0}  # by how much each rank of a tp2 waits in each of its steps


def tp2(*, ahead: float = 0.0) -> list[SpanRow]:
    """Steps of 10 ms: rank 1 computes 8 ms, rank 0 computes 5, then an all-reduce of 2 ms. ahead:
    ms by which the clock of rank 1 is before the other's."""
    rows = []
    for rank, busy, shift in ((0, 5.0, 0.0), (1, 8.0, ahead)):
        for number in STEPS:
            begin = 10.0 * number + shift
            rows.append(span(rank, number, COMPUTE, begin, begin + busy))
            rows.append(span(rank, number, "all_reduce", begin + busy, begin + 10, "tp", 100))
    return rows


def is_call(row: SpanRow, rank: int, number: int) -> bool:
    return (row.rank, row.step) == (rank, number) and row.kind != COMPUTE


WHOLE = figures(tp2(), "tp2")


def test_one_lost_span_leaves_out_its_step_and_shifts_no_other() -> None:
    rows = [row for row in tp2() if not is_call(row, 0, 3)]
    assert figures(rows, "tp2") == WHOLE
    for rank, found in decode(rows, "tp2").items():
        assert (found.steps, found.steps_unmatched) == (5, 2), rank
        assert found.reason is not None
        assert "ranks do not agree: 1 calls of all_reduce over tp on rank 1" in found.reason
    assert {row.calls for row in timed(rows, "tp2")} == {5}


def test_a_call_that_was_made_and_not_seen_leaves_out_its_step_on_every_rank() -> None:
    rows = [row for row in tp2() if not is_call(row, 0, 3)]
    rows.append(span(0, 3, "all_reduce", None, None, "tp", 100))
    assert figures(rows, "tp2") == WHOLE
    for found in decode(rows, "tp2").values():
        assert (found.steps, found.steps_unmatched) == (5, 2)
        assert found.reason is not None
        assert "1 calls of all_reduce over tp were made and not seen" in found.reason


def test_where_no_call_was_seen_there_are_no_parts_and_not_0() -> None:
    rows = [row for row in tp2() if row.kind == COMPUTE]
    rows += [
        span(rank, number, "all_reduce", None, None, "tp", 100)
        for rank in (0, 1)
        for number in STEPS
    ]
    for found in decode(rows, "tp2").values():
        assert (found.steps, found.steps_unmatched) == (0, 7)
        assert found.reason == "2 calls of all_reduce over tp were made and not seen"
        assert found.step_ms is found.compute_ms is found.exposed_transfer_ms is None
        assert found.exposed_wait_ms is found.comm_busy_ms is found.launch_gap_ms is None
    assert timed(rows, "tp2") == []


def test_ranks_that_called_a_different_number_of_times_are_left_out_for_that_step() -> None:
    rows = [*tp2(), span(1, 5, "all_reduce", 57.9, 58, "tp", 100)]
    found = decode(rows, "tp2")
    assert {one.steps_unmatched for one in found.values()} == {2}
    assert figures(rows, "tp2") == WHOLE


def test_a_kernel_that_fits_no_call_leaves_out_its_step() -> None:
    rows = [*tp2(), span(0, 5, "all_reduce", 52, 53)]
    found = decode(rows, "tp2")
    assert found[0].steps_unmatched == 2
    assert found[0].reason == "a kernel of all_reduce ran that fits none of the calls"


def test_what_a_rank_did_while_others_waited_must_be_known() -> None:
    """Rank 1 ran a kernel that nobody knows: what rank 0 waited for is not known either."""
    rows = [*tp2(), span(1, 5, "other", 52, 53)]
    assert {rank: one.steps_unmatched for rank, one in decode(rows, "tp2").items()} == {0: 2, 1: 2}


def test_a_replica_without_the_lost_span_keeps_its_steps() -> None:
    """Ranks 2 and 3 are the other replica of a tp2dp2."""
    other = [span(row.rank + 2, row.step, row.kind, *ms(row), row.axis, 100) for row in tp2()]
    rows = [row for row in tp2() if not is_call(row, 0, 3)] + other
    found = decode(rows, "tp2dp2")
    assert [found[rank].steps_unmatched for rank in range(4)] == [2, 2, 0, 0]


def ms(row: SpanRow) -> tuple[float, float]:
    assert row.when is not None
    return row.when[0] / 1e3, row.when[1] / 1e3


def test_a_step_whose_beginning_is_not_known_is_left_out() -> None:
    """Nothing of step 4 was seen: step 5 would look twice as long."""
    rows = [span(0, number, COMPUTE, number, number + 1) for number in (0, 1, 2, 3, 5, 6)]
    (found,) = parts(rows, "tp1")
    assert (found.steps, found.steps_unmatched, found.step_ms) == (4, 1, 1)


def test_the_tokens_of_an_earlier_step_are_matched_with_that_step() -> None:
    """Stage 0 gets the tokens of each step within the next but one. The broadcast of step 2 is lost
    on stage 0: the others stay where they are."""
    rows = []
    for number in STEPS:
        begin = 10.0 * number
        if 2 <= number != 4:
            late = begin + number / 10  # each has a length of its own
            rows.append(span(0, number, "broadcast", begin, late, "pp", 8, carried=number - 2))
        rows.append(span(0, number, COMPUTE, begin + 1, begin + 10))
        rows.append(span(1, number, COMPUTE, begin, begin + 9))
        rows.append(span(1, number, "broadcast", begin + 9, begin + 10, "pp", 8))
    found = match(rows, placed("pp2"))
    lengths = {(one.step, round(one.transfer / 1e3, 3)) for one in found.calls if one.rank == 0}
    assert lengths == {(2, 0.2), (3, 0.3), (5, 0.5), (6, 0.6), (7, 0.7)}
    assert {place for place in found.unmatched if place.rank == 0} == {(0, 2), (0, 6), (0, 7)}


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
    assert [found[rank].get("exposed_wait", 0) for rank in range(4)] == [3, 0, 2, 0]


@pytest.mark.parametrize("ahead", [5.0, -5.0, 3.6e6])
def test_a_clock_that_is_ahead_changes_nothing(ahead: float) -> None:
    """While rank 0 waits, rank 1 computes; by clocks 5 ms apart it would be in its all-reduce or in
    nothing."""
    found = figures(tp2(ahead=ahead), "tp2")
    assert found == WHOLE
    assert found[0]["wait_compute"] == LATE_MS[0]


def test_clocks_are_told_apart_by_the_median_and_over_ranks_in_between() -> None:
    """Ranks 0 and 3 of a tp2dp2 are in no group together; one call ends late on one rank."""
    rows = []
    for number in range(5):
        begin, late = 10.0 * number, 4.0 * (number == 2)
        for rank, ahead in ((0, 0.0), (1, 5.0)):
            end = begin + ahead + 1 + late * rank
            rows.append(span(rank, number, "all_reduce", begin + ahead, end, "tp", 8))
        for rank, ahead in ((1, 5.0), (3, 7.0)):
            rows.append(
                span(rank, number, "all_gather", begin + ahead + 6, begin + ahead + 8, "dp", 8)
            )
    clocks = match(rows, placed("tp2dp2")).clocks
    assert clocks == {0: 0, 1: pytest.approx(5000), 3: pytest.approx(7000)}
