"""Intervals against numbers worked out by hand and against scipy's own tests."""

import math

import pytest
from scipy import stats

from orchestrator.analysis.comparing.confidence import ratio, spread, student_t


def test_students_quantiles_are_those_of_the_tables():
    assert student_t(1) == pytest.approx(12.706, abs=1e-3)
    assert student_t(2) == pytest.approx(4.303, abs=1e-3)
    assert student_t(9) == pytest.approx(stats.t.ppf(0.975, 9))


def test_three_runs():
    found = spread([90.0, 100.0, 110.0])
    assert (found.n, found.mean, found.std, found.cv) == (
        3,
        100.0,
        pytest.approx(10.0),
        pytest.approx(0.1),
    )
    half = 4.30265 * 10 / math.sqrt(3)
    assert (found.ci_low, found.ci_high) == (
        pytest.approx(100 - half, abs=1e-3),
        pytest.approx(100 + half, abs=1e-3),
    )
    assert found.half_width == pytest.approx(half / 100, abs=1e-5)


def test_one_run_has_no_spread_and_none_nothing():
    one = spread([7.0])
    assert (one.n, one.mean, one.std, one.ci_low, one.half_width) == (1, 7.0, None, None, None)
    assert spread([]) is None


def test_runs_that_agree_have_an_interval_of_no_width():
    assert spread([5.0, 5.0]).half_width == 0.0


def test_a_ratio_has_welchs_interval():
    over, under = [200.0, 210.0, 190.0], [100.0, 104.0]
    found = ratio(over, under)
    logs = [[math.log(x) for x in side] for side in (over, under)]
    expected = stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx((200 * 210 * 190) ** (1 / 3) / math.sqrt(100 * 104))
    assert (found.low, found.high) == (
        pytest.approx(math.exp(expected.low)),
        pytest.approx(math.exp(expected.high)),
    )


def test_a_ratio_turned_over_is_its_inverse():
    there, back = ratio([2.0, 3.0], [1.0, 1.5]), ratio([1.0, 1.5], [2.0, 3.0])
    assert (there.value, there.low) == (pytest.approx(1 / back.value), pytest.approx(1 / back.high))


def test_a_ratio_of_single_runs_has_no_interval():
    assert (ratio([3.0], [2.0]).value, ratio([3.0], [2.0]).low) == (pytest.approx(1.5), None)
    assert ratio([3.0, 3.1], [2.0]).low is None


def test_nothing_is_no_ratio():
    assert ratio([], [1.0]) is None
    assert ratio([1.0], [0.0]) is None


def test_runs_without_any_spread_have_an_exact_ratio():
    found = ratio([4.0, 4.0], [2.0, 2.0])
    assert (found.low, found.value, found.high) == (pytest.approx(2.0),) * 3
