"""What a sweep says, from curves whose answers are known."""

import pytest
from summaries import comparison

from orchestrator.analysis.comparing.curves import (
    best_point,
    curves,
    decay_pct,
    highest_within,
    knee,
)


def cell(strategy, concurrency, throughput, **fields):
    return comparison(
        strategy=strategy, max_concurrency=concurrency, output_throughput=throughput, **fields
    )


def test_the_knee_is_where_a_curve_turns_flat():
    assert knee([1, 2, 4, 8, 16, 32], [0, 100, 200, 300, 300, 300]) == 8
    assert (
        knee([1, 4, 16, 64], [10, 90, 100, 100]) == 4
    )  # above the chord by 0.56, then 0.33 of the range


def test_a_curve_that_still_grows_with_its_concurrency_has_no_knee():
    assert knee([1, 2, 4, 8], [1, 2, 4, 8]) is None
    assert knee([1, 2, 4, 8], [0, 100, 200, 300]) is None


def test_a_curve_that_falls_at_the_end_has_its_knee_at_the_top():
    assert knee([1, 2, 4, 8], [0, 50, 100, 90]) == 4


def test_two_points_or_no_growth_or_noise_make_no_knee():
    assert knee([1, 8], [1, 9]) is None
    assert knee([1, 2, 4], [5, 5, 5]) is None
    assert knee([1, 2, 4], [0, 52, 100]) is None


def test_the_best_point_has_the_largest_product_of_throughput_and_user_speed():
    assert best_point([1, 8, 64], [100, 400, 800], [100, 50, 20]) == 8  # 10000, 20000, 16000
    assert best_point([1, 8], [100, 400], [None, 10]) == 8
    assert best_point([1, 8], [100, 400], [None, None]) is None


def test_decay_is_of_the_first():
    assert decay_pct([100.0, 50.0, 20.0]) == pytest.approx(80.0)
    assert decay_pct([None, 20.0]) is None


def test_the_levels_must_hold_at_every_lower_concurrency_too():
    assert highest_within([1, 8, 32], [100.0, 99.0, 98.9]) == 8
    assert highest_within([1, 8, 32], [50.0, 100.0, 100.0]) is None
    assert highest_within([1, 8], [None, None]) is None


def test_a_row_for_each_layout_with_two_concurrencies():
    rows = [
        cell("tp4", 8, 400.0, median_tpot_ms=20.0, goodput="ttft:9", slo_attainment_pct=100.0),
        cell("tp4", 1, 100.0, median_tpot_ms=10.0, goodput="ttft:9", slo_attainment_pct=100.0),
        cell("pp4", 1, 50.0),
        cell("dp4", 1, None, status="failed"),
        cell("dp4", 8, 900.0),
    ]
    (curve,) = curves(rows)
    assert (curve.name, curve.max_concurrency, curve.output_throughput) == (
        "tp4",
        [1, 8],
        [100.0, 400.0],
    )
    assert curve.user_speed == [pytest.approx(100.0), pytest.approx(50.0)]
    assert (curve.best_point, curve.knee, curve.user_speed_decay_pct) == (
        8,
        None,
        pytest.approx(50.0),
    )
    assert (curve.goodput, curve.slo_max_concurrency) == ("ttft:9", 8)


def test_levels_that_differ_within_a_sweep_are_no_levels():
    rows = [cell("tp4", c, 1.0, goodput=f"ttft:{c}", slo_attainment_pct=100.0) for c in (1, 2)]
    (curve,) = curves(rows)
    assert (curve.goodput, curve.slo_max_concurrency) == (None, None)
