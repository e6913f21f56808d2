"""Why a rank waits: what the rank that came last spent longer on."""

from __future__ import annotations

import pytest
from spans import figures, span

from workers.records import COMPUTE, SpanRow

STEPS = range(6)


def test_a_late_host_is_a_wait_for_a_launch_on_the_other_rank_not_for_communication() -> None:
    """Rank 1 does nothing for 6 of 10 ms, as its host is late: its launch gap is all of rank 0's
    wait, though rank 1 computes in the second half of it."""
    rows = []
    for number in STEPS:
        begin = 10.0 * number
        rows += [
            span(0, number, COMPUTE, begin, begin + 3),
            span(0, number, "all_reduce", begin + 3, begin + 10, "tp", 100),
            span(1, number, COMPUTE, begin + 6, begin + 9),
            span(1, number, "all_reduce", begin + 9, begin + 10, "tp", 100),
        ]
    found = figures(rows, "tp2")
    assert found[0] == {
        "step": 10,
        "compute": 3,
        "exposed_transfer": 1,
        "exposed_wait": 6,
        "wait_launch": 6,
        "comm_busy": 7,
    }
    assert found[1] == {
        "step": 10,
        "compute": 3,
        "exposed_transfer": 1,
        "launch_gap": 6,
        "comm_busy": 1,
    }


def test_gaps_that_both_ranks_have_are_no_cause_of_a_wait() -> None:
    """Both hosts are late by 2 ms, and rank 1 computes 3 ms longer."""
    rows = []
    for number in STEPS:
        begin = 10.0 * number
        for rank, busy in ((0, 3.0), (1, 6.0)):
            rows.append(span(rank, number, COMPUTE, begin + 2, begin + 2 + busy))
            rows.append(span(rank, number, "all_reduce", begin + 2 + busy, begin + 10, "tp", 100))
    found = figures(rows, "tp2")[0]
    assert (found["exposed_wait"], found["wait_compute"], found.get("wait_launch", 0)) == (3, 3, 0)


def test_a_wait_for_a_rank_in_another_call_is_for_communication() -> None:
    """Ranks 1 and 3 of a tp2dp2 gather over dp for 4 ms while ranks 0 and 2 wait for them."""
    rows = []
    for number in STEPS:
        begin = 10.0 * number
        for early, late in ((0, 1), (2, 3)):
            rows += [
                span(early, number, COMPUTE, begin, begin + 4),
                span(early, number, "all_reduce", begin + 4, begin + 10, "tp", 100),
                span(late, number, COMPUTE, begin, begin + 4),
                span(late, number, "all_gather", begin + 4, begin + 8, "dp", 100),
                span(late, number, "all_reduce", begin + 8, begin + 10, "tp", 100),
            ]
    found = figures(rows, "tp2dp2")[0]
    assert (found["exposed_wait"], found["wait_communication"]) == (4, 4)
    assert found["exposed_transfer"] == 2


@pytest.mark.parametrize("last", [1, 2, 3])
def test_each_wait_is_for_the_rank_that_came_last_in_its_own_call(last: int) -> None:
    """Of a tp4 one rank computes 2 ms more than the others, who wait for it."""
    rows = []
    for number in STEPS:
        begin = 10.0 * number
        for rank in range(4):
            busy = 7.0 + 2 * (rank == last)
            rows.append(span(rank, number, COMPUTE, begin, begin + busy))
            rows.append(span(rank, number, "all_reduce", begin + busy, begin + 10, "tp", 8))
    found = figures(rows, "tp4")
    assert [found[rank].get("wait_compute", 0) for rank in range(4)] == [
        0 if rank == last else 2 for rank in range(4)
    ]


# -- tp2pp2: ranks 0 and 1 are the first stage, 2 and 3 the second


def tp2pp2(late: float, ahead: float = 0.0) -> list[SpanRow]:
    """Steps of 12 ms. The second stage receives at 2, computes 4 ms and reduces 1 ms; the edge from
    rank 1 to rank 3 is `late` ms, so that rank 3 computes that much later. ahead: ms by which the
    clock of rank 3 is before the others."""
    rows = []
    for number in STEPS:
        begin = 12.0 * number
        for rank in (0, 1):
            held = late * rank
            rows += [
                span(rank, number, COMPUTE, begin, begin + 1),
                span(rank, number, "all_reduce", begin + 1, begin + 2, "tp", 8),
                # Sent without waiting: what goes on is beside the next step.
                span(rank, number, "send", begin + 2 + held, begin + 3 + held, "pp", 50),
                span(rank, number, COMPUTE, begin + 2, begin + 12),
            ]
        for rank, held, shift in ((2, 0.0, 0.0), (3, late, ahead)):
            start = begin + shift
            rows += [
                span(rank, number, "recv", start, start + 3 + held, "pp", 50),
                span(rank, number, COMPUTE, start + 3 + held, start + 7 + held),
                span(rank, number, "all_reduce", start + 7 + held, start + 8 + late, "tp", 8),
                span(rank, number, COMPUTE, start + 8 + late, start + 12),
            ]
    return rows


@pytest.mark.parametrize("ahead", [0.0, 5.0])
@pytest.mark.parametrize("late", [1.0, 3.0])
def test_a_late_hand_over_on_one_edge_is_a_bubble_on_the_neighbour_too(
    late: float, ahead: float
) -> None:
    """Rank 3 gets its activations late. Rank 2 waits for it in the all-reduce, while rank 3
    computes what it would have done long ago had its hand-over come in time."""
    found = figures(tp2pp2(late, ahead), "tp2pp2")
    expected = {"step": 12, "compute": 8 - late, "exposed_transfer": 2, "bubble": 2 + late}
    assert found[3] == {**expected, "comm_busy": 2}
    assert found[2] == {**expected, "comm_busy": 2 + late}


def test_without_a_late_edge_both_ranks_of_a_stage_are_alike() -> None:
    found = figures(tp2pp2(0.0), "tp2pp2")
    expected = {"step": 12, "compute": 8, "exposed_transfer": 2, "bubble": 2, "comm_busy": 2}
    assert found[2] == found[3] == expected


def test_what_the_late_rank_computes_longer_is_still_a_wait() -> None:
    """Rank 3 gets its activations 1 ms late and then computes 2 ms longer."""
    rows = []
    for number in STEPS:
        begin = 12.0 * number
        for rank, got, busy in ((2, 3.0, 2.0), (3, 4.0, 4.0)):
            sender = rank - 2
            rows += [
                span(sender, number, COMPUTE, begin, begin + 12),
                span(sender, number, "send", begin + got - 1, begin + got, "pp", 50),
                span(rank, number, "recv", begin, begin + got, "pp", 50),
                span(rank, number, COMPUTE, begin + got, begin + got + busy),
                span(rank, number, "all_reduce", begin + got + busy, begin + 9, "tp", 8),
                span(rank, number, COMPUTE, begin + 9, begin + 12),
            ]
    found = figures(rows, "tp2pp2")[2]
    assert (found["bubble"], found["exposed_wait"], found["wait_compute"]) == (3, 2, 2)
