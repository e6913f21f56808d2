"""Tokens and requests per second, against numbers worked out by hand: over the whole run, and while
a closed loop is full."""

import pytest
from request_tables import request, requests

from orchestrator.analysis.throughput import first_token_s, steady_of, throughput_of
from workers.messages import RankReport
from workers.records import STEPS

TWO = requests(request([1.0, 1.1, 1.3]), request([2.0, 2.2, 2.4, 4.0], arrival_s=0.5))


def test_throughput_counts_generated_tokens_over_the_time_of_the_last_one():
    found = throughput_of(TWO, max_concurrency=2, num_prompts=2, num_gpus=4)
    assert found.duration == 4.0
    assert found.output_throughput == pytest.approx(7 / 4)
    assert found.total_token_throughput == pytest.approx(27 / 4)
    assert found.request_throughput == pytest.approx(0.5)
    assert found.output_throughput_per_gpu == pytest.approx(7 / 16)
    assert (found.total_input_tokens, found.total_output_tokens) == (20, 7)


def test_a_request_without_tokens_has_failed():
    found = throughput_of(requests(request([1.0, 2.0]), request([])), 2, 3, 1)
    assert (found.completed, found.failed) == (1, 2)
    assert found.total_input_tokens == 10


@pytest.mark.parametrize(("cached", "total"), [((0, 0), 0), ((4, 7), 11), ((4, None), None)])
def test_cached_tokens_are_known_where_those_of_every_request_are(cached, total):
    served = requests(*(request([1.0], cached_tokens=one) for one in cached), request([]))
    assert throughput_of(served, 2, 3, 1).total_cached_tokens == total
    older = served.drop_columns(["cached_tokens"])
    assert throughput_of(older, 2, 3, 1).total_cached_tokens is None


def test_nothing_served_gives_no_figures():
    found = throughput_of(requests(request([])), 1, 1, 1)
    assert (found.completed, found.duration) == (0, 0.0)
    assert found.output_throughput is found.prefill_s is found.decode_ms_per_step is None


def test_a_decode_step_is_a_gap_in_which_no_request_was_prefilled():
    """1.1 -> 3.1 holds the other request's prefill."""
    crowded = requests(request([1.0, 1.1, 3.1, 3.2]), request([3.1, 3.2]))
    assert throughput_of(crowded, 2, 2, 1).decode_ms_per_step == pytest.approx(100)


def test_a_prefill_on_another_replica_does_not_lengthen_a_decode_step():
    apart = requests(request([1.0, 1.1, 1.4]), request([1.2, 1.4], replica=1))
    found = throughput_of(apart, 2, 2, 1)
    assert found.decode_ms_per_step == pytest.approx(200)  # of 100, 300, 200


def test_prefill_ends_when_the_first_wave_has_its_tokens():
    waves = requests(request([1.0]), request([2.0]), request([5.0], arrival_s=2.0))
    assert throughput_of(waves, 2, 3, 1).prefill_s == 2.0


def talks(*turns):
    """Conversations of so many turns each, ten tokens a turn and 0.1 s a token, all at once from
    the start; and request -> the one that it is after."""
    rows, awaited = [], {}
    for count in turns:
        for turn in range(count):
            if turn:
                awaited[len(rows)] = len(rows) - 1
            end = rows[-1]["token_times_s"][-1] if turn else 0.0
            rows.append(request([end + 0.1 * (i + 1) for i in range(10)], end))
    return requests(*rows), awaited


def test_the_first_batch_of_conversations_is_of_their_first_turns():
    served, awaited = talks(2, 20)
    assert throughput_of(served, 2, 22, 1, awaited).prefill_s == 0.1
    late = requests(request([0.1]), request([0.4], 0.1), request([0.2]), request([0.9], 0.2))
    assert throughput_of(late, 2, 4, 1, {1: 0}).prefill_s == 0.2


def test_the_first_token_is_that_of_any_replica():
    tables = (requests(request([]), request([2.0, 3.0])), requests(request([1.5])), None)
    reports = [
        RankReport(rank, table, STEPS.make([]), None, 0) for rank, table in enumerate(tables)
    ]
    assert first_token_s(reports) == 1.5
    assert first_token_s(reports[2:]) == 0.0


# -- a closed loop while it is full


def steady(*rows):
    """Rows of (replica, arrival, times of the tokens)."""
    found = steady_of(requests(*(request(times, at, replica) for replica, at, times in rows)), {})
    return found.steady_output_throughput, found.steady_s


def test_a_batch_that_is_never_refilled_is_not_steady():
    """All that its full time holds is decode: faster than any stream of requests can go on."""
    assert steady(
        (0, 0.0, [1.0, 2.0, 3.0, 4.0, 5.0]), (0, 0.0, [2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    ) == (None, None)


def test_while_the_queue_refills_seats_the_window_goes_on():
    """Two seats, three requests: the third takes the place of the first, so the first empty seat is
    that of the second."""
    rows = (0, 0.0, [1.0, 2.0]), (0, 0.0, [1.0, 2.0, 3.0, 4.0]), (0, 2.0, [3.0, 4.0, 5.0, 6.0])
    assert steady(*rows) == (pytest.approx(6 / 3), 3.0)  # 2, 2 | 3, 3 | 4, 4


def test_two_that_end_together_with_one_left_in_the_queue_leave_a_seat_empty():
    rows = (0, 0.0, [1.0, 2.0, 3.0]), (0, 0.0, [1.0, 2.0, 3.0]), (0, 3.0, [4.0, 5.0])
    assert steady(*rows) == (None, None)  # and until then nothing was refilled


def test_a_seat_that_only_waiting_turns_could_take_is_empty():
    """Of two seats the first is empty from 2 s on, when the shorter conversation has ended."""
    found = steady_of(*talks(2, 20))
    assert found.steady_output_throughput == pytest.approx(20.0)
    assert found.steady_s == pytest.approx(1.9)  # from the first tokens at 0.1 s


def test_while_another_conversation_waits_no_seat_is_empty():
    """Three conversations of one turn, three and one on two seats: the third follows the first."""
    rows = [
        request([0.5, 1.0]),
        request([1.0, 2.0]),
        request([3.0, 4.0], 2.0),
        request([5.0, 6.0], 4.0),
        request([2.0, 3.0], 1.25),  # let in a moment after the seat was free
    ]
    found = steady_of(requests(*rows), {2: 1, 3: 2})
    assert (found.steady_s, found.steady_output_throughput) == (2.0, pytest.approx(4 / 2))


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
