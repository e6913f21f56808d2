"""Intervals against numbers worked out by hand and against scipy's own tests."""

import math

import numpy as np
import pytest
from scipy import stats

from orchestrator.analysis.comparing.confidence import (
    is_narrow,
    paired_ratio,
    ratio,
    spread,
    student_t,
)

OVER, UNDER = [210.0, 190.0, 205.0, 199.0], [101.0, 99.0, 104.0, 96.0]


def test_students_quantiles_are_those_of_the_tables():
    assert student_t(1) == pytest.approx(12.706, abs=1e-3)
    assert student_t(2) == pytest.approx(4.303, abs=1e-3)
    assert student_t(9) == pytest.approx(stats.t.ppf(0.975, 9))


def test_three_starts():
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


def test_one_start_has_no_spread_and_none_nothing():
    one = spread([7.0])
    assert (one.n, one.mean, one.std, one.ci_low, one.half_width) == (1, 7.0, None, None, None)
    assert spread([]) is None


def test_starts_that_agree_have_an_interval_of_no_width():
    assert spread([5.0, 5.0]).half_width == 0.0


# -- ratios


def test_a_ratio_is_of_arithmetic_means():
    assert paired_ratio([1.0, 3.0], [1.0, 1.0]).value == 2.0
    assert ratio([1.0, 3.0], [1.0, 1.0, 1.0]).value == 2.0


def test_the_interval_of_pairs_ends_where_students_paired_test_begins_to_reject():
    found = paired_ratio(OVER, UNDER)
    for end in (found.low, found.high):
        p = stats.ttest_1samp(np.array(OVER) - end * np.array(UNDER), 0.0).pvalue
        assert p == pytest.approx(0.05, abs=1e-9)


def test_the_interval_of_two_results_ends_where_welchs_test_rejects_with_the_freedom_it_has():
    found = ratio(OVER, UNDER[:3])
    va, vb = np.var(OVER, ddof=1) / 4, np.var(UNDER[:3], ddof=1) / 3
    scaled = found.value**2 * vb
    freedom = (va + scaled) ** 2 / (va**2 / 3 + scaled**2 / 2)
    for end in (found.low, found.high):
        error = math.sqrt(va + end**2 * vb)
        t = (np.mean(OVER) - end * np.mean(UNDER[:3])) / error
        assert abs(t) == pytest.approx(stats.t.ppf(0.975, freedom))
    same = stats.ttest_ind(OVER, np.array(UNDER[:3]) * found.value, equal_var=False)
    assert same.df == pytest.approx(freedom)


@pytest.mark.parametrize("of", [ratio, paired_ratio])
def test_a_ratio_turned_over_is_its_inverse(of):
    there, back = of(OVER, UNDER), of(UNDER, OVER)
    assert there.value == pytest.approx(1 / back.value)
    assert (there.low, there.high) == (pytest.approx(1 / back.high), pytest.approx(1 / back.low))


def test_what_slows_both_down_cancels_in_pairs():
    slower = [1.0, 0.9, 0.8]
    over = [200.0 * s * e for s, e in zip(slower, (1.0, 1.001, 0.999), strict=True)]
    paired = paired_ratio(over, [100.0 * s for s in slower])
    apart = ratio(over, [100.0 * s for s in slower])
    assert paired.high - paired.low < 0.02
    assert apart.high - apart.low > 0.5


@pytest.mark.parametrize("of", [ratio, paired_ratio])
def test_one_start_a_side_has_a_ratio_and_no_interval(of):
    assert (of([3.0], [2.0]).value, of([3.0], [2.0]).low) == (pytest.approx(1.5), None)


@pytest.mark.parametrize("of", [ratio, paired_ratio])
def test_an_interval_without_an_end_is_none(of):
    """The mean below the line is not told from 0, so that the ratio may be anything."""
    found = of([1.0, 1.1], [0.1, 2.0])
    assert found.value == pytest.approx(1.0)
    assert (found.low, found.high) == (None, None)


def test_no_ratio_is_below_0():
    assert paired_ratio([0.1, 3.0, 0.2], [10.0, 10.0, 10.0]).low == 0.0


def test_nothing_and_a_mean_of_0_have_no_ratio():
    for of in (ratio, paired_ratio):
        assert of([], []) is None
        assert of([1.0, 1.0], [0.0, 0.0]) is None
        assert of([0.0, 0.0], [1.0, 1.0]) is None
    assert paired_ratio([0.0, 9.0], [3.0, 3.0]).value == 1.5


def test_starts_without_any_spread_have_an_exact_ratio():
    for of in (ratio, paired_ratio):
        found = of([4.0, 4.0], [2.0, 2.0])
        assert (found.low, found.value, found.high) == (pytest.approx(2.0),) * 3


# -- when to stop


def test_a_narrow_interval_is_believed_when_six_more_starts_have_confirmed_it():
    agreeing = [100.0, 100.1, 99.9, 100.0, 100.1, 99.9, 100.0, 100.1]
    assert not any(is_narrow(agreeing[:n], 0.05) for n in range(8))
    assert is_narrow(agreeing, 0.05)


def test_an_interval_that_became_wide_again_is_not_narrow():
    lucky = [100.0, 100.0, *[80.0, 120.0] * 4]
    assert not is_narrow(lucky, 0.05)
    assert not is_narrow([100.0, 120.0] * 5, 0.05)


def test_the_first_narrow_interval_must_lie_six_starts_back():
    late = [90.0, 110.0, *[100.0] * 6]
    assert spread(late).half_width < 0.05
    assert not is_narrow(late, 0.05)
    assert is_narrow([*late, *[100.0] * 6], 0.05)
