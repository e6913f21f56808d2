"""The steady part of a closed loop, cut out by concurrency: numbers worked out by hand."""

import pytest

from orchestrator.analysis.steady import of_requests
from workers.records import REQUESTS, to_table


def requests(*rows):
    """Rows of (replica, arrival, times of the tokens)."""
    return to_table(
        [
            {"request_index": i, "replica": r, "arrival_s": a, "token_times_s": t}
            for i, (r, a, t) in enumerate(rows)
        ],
        REQUESTS,
    )


def steady(*rows):
    found = of_requests(requests(*rows))
    return found["steady_output_throughput"], found["steady_s"]


def test_a_batch_that_is_never_refilled_is_not_steady():
    """All that its full time holds is decode: faster than any stream of requests can go on."""
    assert steady(
        (0, 0.0, [1.0, 2.0, 3.0, 4.0, 5.0]), (0, 0.0, [2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    ) == (None, None)


def test_while_the_queue_refills_slots_the_window_goes_on():
    """Two slots, three requests: the third takes the place of the first, so the first empty slot is
    that of the second."""
    rows = (0, 0.0, [1.0, 2.0]), (0, 0.0, [1.0, 2.0, 3.0, 4.0]), (0, 2.0, [3.0, 4.0, 5.0, 6.0])
    assert steady(*rows) == (pytest.approx(6 / 3), 3.0)  # 2, 2 | 3, 3 | 4, 4


def test_two_that_end_together_with_one_left_in_the_queue_leave_a_slot_empty():
    rows = (0, 0.0, [1.0, 2.0, 3.0]), (0, 0.0, [1.0, 2.0, 3.0]), (0, 3.0, [4.0, 5.0])
    assert steady(*rows) == (None, None)  # and until then nothing was refilled


def test_the_window_is_that_in_which_every_replica_is_full():
    first = (0, 0.0, [1.0, 2.0, 3.0, 4.0]), (0, 4.0, [5.0, 6.0, 7.0, 8.0])
    second = (1, 0.0, [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    assert steady(*first, second) == (pytest.approx(12 / 6), 6.0)  # 3 to 8 of each


def test_a_batch_that_begins_a_moment_late_is_the_first_all_the_same():
    rows = (
        (0, 0.001, [1.0, 2.0, 3.0]),
        (0, 0.001, [1.0, 2.0, 3.0, 4.0, 5.0]),
        (0, 3.0, [4.0, 5.0, 6.0]),
    )
    assert steady(*rows) == (pytest.approx(8 / 4), 4.0)


def test_fewer_than_two_tokens_a_request_are_no_steady_state():
    assert steady((0, 0.0, [1.0]), (0, 0.0, [1.0, 2.0]), (0, 1.0, [2.0])) == (None, None)
    assert steady((0, 0.0, [1.0, 2.0]), (0, 0.0, [3.0, 4.0])) == (None, None)  # never full


def test_requests_without_tokens_are_left_out():
    assert steady((0, 0.0, [])) == (None, None)
    assert steady((0, 0.0, [1.0, 2.0]), (0, 2.0, [3.0, 4.0, 5.0]), (0, 0.0, [])) == (
        pytest.approx(1.0),
        4.0,
    )
