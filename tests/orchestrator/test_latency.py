"""Latencies against numbers worked out by hand, in a closed loop and in an open one."""

import pytest
from request_tables import request, requests

from orchestrator.analysis.latency import Arrivals, Latency, TokenTimes, arrivals_of, latency_of
from workers.rows import nothing

TWO = requests(request([1.0, 1.1, 1.3]), request([2.0, 2.2, 2.4, 4.0], arrival_s=0.5))
OPEN = requests(
    request([2.0, 3.0], arrival_s=1.0, admitted_s=1.5),
    request([4.0], arrival_s=2.0, admitted_s=2.0),
    request([4.0], arrival_s=2.5, admitted_s=2.6),
)


def latency(table):
    return latency_of(TokenTimes.of(table))


def test_latencies_follow_vllm():
    found = latency(TWO)
    assert found.ttft.mean == pytest.approx((1000 + 1500) / 2)
    assert found.e2el.mean == pytest.approx((1300 + 3500) / 2)
    assert found.tpot.mean == pytest.approx((300 / 2 + 2000 / 3) / 2)  # without the first token
    assert found.itl.median == pytest.approx(200)  # of 100, 200, 200, 200, 1600, pooled
    assert found.ttft.std == pytest.approx(250)
    assert found.ttft.p99 == pytest.approx(1000 + 0.99 * 500)


def test_nothing_served_has_no_latency():
    assert latency(requests(request([]))) == nothing(Latency)
    assert latency(requests()) == nothing(Latency)


def test_single_tokens_have_no_time_per_token_and_no_gap():
    found = latency(requests(request([1.0])))
    assert found.tpot.mean is None
    assert found.itl.mean is None
    assert found.ttft.mean == 1000


def test_a_request_without_tokens_among_others_changes_nothing():
    served = request([1.0, 1.5]), request([2.0, 3.0], arrival_s=1.0)
    for place in range(3):
        rows = [*served[:place], request([]), *served[place:]]
        assert latency(requests(*rows)) == latency(requests(*served))


def test_no_gap_is_between_the_tokens_of_two_requests():
    gaps = TokenTimes.of(requests(request([1.0, 1.1]), request([5.0]), request([9.0, 9.2])))
    assert gaps.itl_ms().tolist() == [pytest.approx(100), pytest.approx(200)]


# -- open loops


def test_latency_counts_from_the_scheduled_arrival_and_the_delay_is_told():
    assert arrivals_of(OPEN, 4.0, 0.5) == Arrivals(
        request_rate=4.0,
        burstiness=0.5,
        trace=None,
        mean_schedule_delay_ms=pytest.approx(200.0),
        median_schedule_delay_ms=pytest.approx(100.0),
        p99_schedule_delay_ms=pytest.approx(492.0),
    )
    found = latency(OPEN)
    assert found.ttft.mean == pytest.approx(1500.0)  # of 1 s, 2 s and 1.5 s
    assert found.e2el.mean == pytest.approx(5500.0 / 3)


def test_a_closed_loop_has_no_schedule():
    assert arrivals_of(requests(request([1.0])), None, None) == nothing(Arrivals)
