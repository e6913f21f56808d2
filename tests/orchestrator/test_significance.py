"""Tests of pairs against scipy's own, Holm's correction against his example, and power against the
noncentral t."""

import numpy as np
import pytest
from scipy import stats

from orchestrator.analysis.comparing.significance import (
    DIFFERENT,
    EQUIVALENT,
    NOT_SHOWN,
    Pair,
    decide,
    holm,
    p_different,
    p_equivalent,
    starts_to_differ,
    starts_to_equal,
)

PAIR = Pair([101.0, 99.5, 102.0, 100.5], [99.0, 99.0, 99.5, 100.0])
SWAPPED = Pair(PAIR.under, PAIR.over)


def scattered(ratio: float, noise: float, rounds: int = 8) -> Pair:
    """Rounds whose differences scatter by `noise`, around a ratio that is exact."""
    signs = np.resize([1.0, -1.0], rounds) * noise * np.sqrt((rounds - 1) / rounds)
    return Pair(list(ratio * 100.0 * (1.0 + signs)), [100.0] * rounds)


def test_different_is_students_paired_test():
    assert p_different(PAIR) == pytest.approx(stats.ttest_rel(*PAIR).pvalue)
    assert p_different(SWAPPED) == pytest.approx(p_different(PAIR))


def test_equivalent_is_two_one_sided_tests():
    over, under = map(np.array, PAIR)
    low = stats.ttest_1samp(over - under / 1.02, 0.0, alternative="greater").pvalue
    high = stats.ttest_1samp(over - 1.02 * under, 0.0, alternative="less").pvalue
    assert p_equivalent(PAIR, 0.02) == pytest.approx(max(low, high))
    assert p_equivalent(SWAPPED, 0.02) == pytest.approx(p_equivalent(PAIR, 0.02))


def test_pairs_that_agree_exactly_are_the_same_or_not():
    same, apart = Pair([5.0, 5.0], [5.0, 5.0]), Pair([6.0, 6.0], [5.0, 5.0])
    assert (p_different(same), p_equivalent(same, 0.02)) == (1.0, 0.0)
    assert (p_different(apart), p_equivalent(apart, 0.02)) == (0.0, 1.0)


def test_holms_correction_is_that_of_his_paper():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_pair_alone_is_judged_by_its_own_p():
    assert [one.verdict for one in decide([scattered(1.1, 0.01)], 0.02)] == [DIFFERENT]
    assert [one.verdict for one in decide([scattered(1.0, 0.005)], 0.02)] == [EQUIVALENT]
    assert [one.verdict for one in decide([scattered(1.01, 0.03)], 0.02)] == [NOT_SHOWN]


def test_a_difference_that_is_smaller_than_matters_is_equivalent():
    (one,) = decide([scattered(1.004, 0.002)], 0.02)
    assert one.verdict == EQUIVALENT
    assert one.is_different
    (one,) = decide([scattered(1.004, 0.002)], 0.001)
    assert one.verdict == DIFFERENT


def test_an_interval_without_1_is_not_shown_where_its_pair_fails_holm():
    doubtful = scattered(1.02, 0.02)
    assert 0.01 < p_different(doubtful) < 0.05
    assert decide([doubtful], 0.001)[0].verdict == DIFFERENT
    family = [doubtful, *[scattered(1.0, 0.02)] * 17]
    assert decide(family, 0.001)[0].verdict == NOT_SHOWN


def test_two_identical_replicas_are_not_called_different():
    """Within a start runs agree to 0.1%, and two starts of the same layout differ by 1%: over 2000
    experiments of 3 starts at most one in twenty may be called different."""
    random = np.random.default_rng(0)
    drawn = 100.0 * (1.0 + 0.01 * random.standard_normal((2000, 2, 3)))
    wrong = sum(decide([Pair(*pair)], 0.02)[0].is_different for pair in drawn.tolist())
    assert wrong / 2000 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


# -- how many starts


def simulated_power(shown, ratio, noise, starts, experiments=4000):
    """How often one pair shows something, whose differences scatter by `noise`."""
    random = np.random.default_rng(1)
    noises = noise / np.sqrt(2) * random.standard_normal((2, experiments, starts))
    pairs = zip(ratio * (1 + noises[0]), 1 + noises[1], strict=True)
    return np.mean([shown(decide([Pair(list(a), list(b))], 0.02)[0]) for a, b in pairs])


@pytest.mark.parametrize("noise", [0.007, 0.0141, 0.02])
def test_as_many_starts_as_are_said_show_a_difference_at_80_percent_power(noise):
    needed = starts_to_differ(scattered(1.0, noise), 0.02, family=1)
    power = [
        simulated_power(lambda one: one.is_different, 1.02, noise, n) for n in (needed, needed - 1)
    ]
    assert power[0] > 0.8 - 0.02
    assert power[1] < 0.8 + 0.02


@pytest.mark.parametrize("noise", [0.0141, 0.02])
def test_as_many_starts_as_are_said_show_equivalence_at_80_percent_power(noise):
    needed = starts_to_equal(scattered(1.0, noise), 0.02, family=1)
    power = [
        simulated_power(lambda one: one.verdict == EQUIVALENT, 1.0, noise, n)
        for n in (needed, needed - 1)
    ]
    assert power[0] > 0.8 - 0.02
    assert power[1] < 0.8 + 0.02


def test_a_larger_family_takes_more_starts():
    alone, many = (starts_to_differ(scattered(1.0, 0.0141), 0.02, n) for n in (1, 54))
    assert (alone, many) == (7, 14)


def test_pairs_without_scatter_take_two_starts_and_hopeless_ones_no_number():
    assert starts_to_differ(Pair([1.0, 1.0], [1.0, 1.0]), 0.02, 1) == 2
    assert starts_to_differ(Pair([1.0, 90.0], [50.0, 1.0]), 1e-4, 1) is None
    assert starts_to_differ(Pair([0.0, 0.0], [1.0, 2.0]), 0.02, 1) is None
