"""The closed form against concurrency, from loops whose lines are known."""

import math

import pytest
from summaries import comparison

from orchestrator.analysis.comparing.curves import curves
from orchestrator.analysis.degradation import Point, fit, line

OUTPUT_LEN = 101


def loop(concurrency, tpot=(10.0, 0.1), ttft=(20.0, 5.0)):
    """A point of a closed loop whose latencies lie on lines."""
    first, each = ttft[0] + ttft[1] * concurrency, tpot[0] + tpot[1] * concurrency
    made = 1e3 * OUTPUT_LEN * concurrency / (first + (OUTPUT_LEN - 1) * each)
    return Point(concurrency, made, first, each)


@pytest.mark.parametrize("at", [(1, 100), (1, 32, 100), (2, 4, 8, 16)])
def test_points_of_two_lines_give_these_lines_back(at):
    found = fit([loop(c) for c in at], OUTPUT_LEN)
    lines = found.tpot_base_ms, found.tpot_each_ms, found.ttft_base_ms, found.ttft_each_ms
    assert lines == pytest.approx((10.0, 0.1, 20.0, 5.0))
    assert found.error_pct == pytest.approx(0.0, abs=1e-9)


def test_the_limit_the_knee_and_the_decay_follow_from_the_lines():
    found = fit([loop(1), loop(32)], OUTPUT_LEN)
    # a request takes 20 + 5c + 100 x (10 + 0.1c) = 1020 + 15c ms
    assert found.max_throughput == pytest.approx(1e3 * OUTPUT_LEN / 15)
    assert found.knee == pytest.approx(1020 / 15)
    assert loop(found.knee).throughput == pytest.approx(found.max_throughput / 2)
    assert found.decay_pct == pytest.approx(100 * (1 - 10.1 / 20))
    assert found.formula == "tok/s = 99.02 c / (1 + c/68), TPOT = 10 + 0.1 c ms"


def test_the_best_point_is_where_throughput_times_user_speed_is_largest():
    found = fit([loop(1), loop(32)], OUTPUT_LEN)

    def power(concurrency):
        one = loop(concurrency)
        return one.throughput / one.tpot_ms

    assert found.best_point == pytest.approx(math.sqrt(1020 / 15 * 10 / 0.1))
    assert power(found.best_point) > max(power(0.99 * found.best_point), power(1.01 * 82.46))


def test_a_latency_that_falls_with_concurrency_is_taken_as_flat():
    found = line([1, 10, 100], [10.0, 10.0, 9.7])
    assert (found.base, found.each) == (pytest.approx(9.9, abs=0.05), 0.0)
    flat = fit([loop(c, (10.0, 0.0), (20.0, 0.0)) for c in (1, 8)], OUTPUT_LEN)
    assert (flat.knee, flat.best_point, flat.max_throughput) == (None, None, None)
    assert flat.decay_pct == 0.0
    assert flat.formula == "tok/s = 99.02 c, TPOT = 10 + 0 c ms"


def test_one_concurrency_or_one_token_out_has_no_closed_form():
    assert fit([loop(8), loop(8)], OUTPUT_LEN).formula is None
    assert fit([loop(1), loop(8)], 1).sentence(8) == ""


def test_the_error_is_the_greatest_of_any_point():
    bent = [loop(1), loop(32), loop(100)]
    slow = Point(100, bent[2].throughput / 1.1, bent[2].ttft_ms, bent[2].tpot_ms)
    found = fit([*bent[:2], slow], OUTPUT_LEN)
    assert found.error_pct == pytest.approx(10.0)
    assert found.formula


@pytest.mark.parametrize(
    ("points", "why"),
    [
        ([(1, 10, 10, 10), (8, 9, 100, 100), (64, 5, 2000, 1500)], "through TPOT, what no request"),
        ([(1, 90, 10, 10), (8, 700, 90, 11), (64, 3000, 900, 19)], "through TTFT, what no request"),
        ([(1, 90, 20, 10), (8, 900, 20, 7)], "through TPOT, what each request adds is below 0"),
        ([(1, 90, 20, 10), (8, 700, 12, 11)], "through TTFT, what each request adds is below 0"),
        ([(1, 100, 50, 10), (8, 400, 55, 12), (64, 900, 500, 30)], "% off the lines through them"),
    ],
)
def test_points_that_lie_on_no_lines_have_one_clause_and_no_closed_form(points, why):
    found = fit([Point(*one) for one in points], 64)
    assert (found.formula, found.max_throughput, found.knee) == (None, None, None)
    assert (found.best_point, found.decay_pct) == (None, None)
    assert why in found.misfit
    assert found.sentence(64) == f"no closed form: {found.misfit}"
    assert math.isfinite(found.error_pct)


def test_what_lies_beyond_the_points_is_said_to():
    found = fit([loop(1), loop(32)], OUTPUT_LEN)
    assert "knee at 68 (beyond 32), best point at 82.5 (beyond 32)" in found.sentence(32)
    assert "knee at 68, best point at 82.5, a user loses 49% from 1 to 100" in found.sentence(100)


def cell(concurrency, **more):
    one = loop(concurrency)
    latencies = {"median_ttft_ms": one.ttft_ms, "median_tpot_ms": one.tpot_ms}
    given = {"output_len": OUTPUT_LEN, "output_throughput": one.throughput, **latencies, **more}
    return comparison(max_concurrency=concurrency, **given)


def test_a_measured_sweep_has_its_closed_form():
    (curve,) = curves([cell(1), cell(32), cell(100)])
    assert curve.fitted.knee == pytest.approx(68)
    assert curve.fitted.error_pct < 1e-6


@pytest.mark.parametrize(
    "more",
    [{"request_rate": 2.0}, {"output_len": None}, {"median_ttft_ms": None}],
    ids=["open loop", "lengths that differ", "no time to a first token"],
)
def test_a_sweep_that_is_no_closed_loop_of_equal_lengths_has_none(more):
    (curve,) = curves([cell(1, **more), cell(32, **more)])
    assert curve.fitted.formula is None


@pytest.mark.parametrize(
    ("alone", "of_many", "best"), [(68.2, 9.9, 15.8), (132.4, 18.1, 14.7)], ids=["70B", "32B"]
)
def test_an_articles_speeds_at_1_and_at_100_put_its_best_point_at_half_of_its_32(
    alone, of_many, best
):
    # tokens/s of a request at 1 and at 100 in flight; without its TTFT the knee is the best point
    found = line([1, 100], [1e3 / alone, 1e3 / of_many])
    assert found.base / found.each == pytest.approx(best, abs=0.05)
