"""Runs inside a start that become faster or slower, one after the other."""

import numpy as np
import pytest
from scipy import stats
from summaries import summary

from orchestrator.analysis.comparing.drift import drifts, trend

COLD = (98.0, 70.0, 53.0)


def runs(values_of_starts, metric="median_ttft_ms", **fields):
    return [
        summary(**{"start": start, "run": run, metric: value, "max_concurrency": 1, **fields})
        for start, values in enumerate(values_of_starts)
        for run, value in enumerate(values)
    ]


def noisy(values, starts, noise=0.005, seed=0):
    random = np.random.default_rng(seed)
    return [[v * (1 + noise * random.standard_normal()) for v in values] for _ in range(starts)]


def test_a_cold_start_is_found_and_what_to_do_is_said():
    (one,) = drifts(runs(noisy(COLD, 3)))
    assert (one.metric, one.starts, one.runs) == ("median_ttft_ms", 3, 9)
    assert one.change_per_run_pct == pytest.approx(-26.5, abs=0.5)
    assert one.p < 0.001
    assert one.sentence == (
        "TTFT of tp2 short at 1 falls by 27% from run to run: raise --num-warmups"
    )


def test_steady_noise_is_no_drift():
    found = [drifts(runs(noisy((70.0,) * 4, 4, seed=seed))) for seed in range(200)]
    assert sum(map(bool, found)) <= 200 * 0.05


def test_starts_that_lie_apart_are_no_drift():
    """Each start has a height of its own: only what changes inside them counts."""
    apart = [[98.0, 98.1, 97.9], [70.0, 70.1, 69.9], [53.0, 52.9, 53.1]]
    assert drifts(runs(apart)) == []


def test_a_drift_that_is_smaller_than_matters_is_not_said():
    slightly = noisy((100.0, 99.7, 99.4), 5, noise=0.0001)
    assert drifts(runs(slightly), difference=0.02) == []
    assert len(drifts(runs(slightly), difference=0.001)) == 1


def test_a_machine_that_becomes_slower_is_told_from_one_that_was_cold():
    (one,) = drifts(runs(noisy((100.0, 96.0, 92.0), 4), metric="output_throughput"))
    assert one.sentence == (
        "throughput of tp2 short at 1 falls by 4.1% from run to run: the machine becomes slower "
        "while it is measured"
    )
    (one,) = drifts(runs(noisy((92.0, 96.0, 100.0), 4), metric="output_throughput"))
    assert one.sentence.endswith("raise --num-warmups")


def test_one_run_a_start_and_one_start_of_two_cannot_tell():
    assert drifts(runs([[98.0], [70.0], [53.0]])) == []
    assert trend([[(0, 98.0), (1, 70.0)]]) is None
    assert trend([]) is None


def test_the_slope_is_that_of_a_regression_with_a_height_for_each_start():
    starts = [[(0, 98.0), (1, 72.0), (2, 53.0)], [(0, 90.0), (1, 71.0), (3, 41.0)]]
    found = trend(starts)
    x = np.array([[1, 0, n] for n, _ in starts[0]] + [[0, 1, n] for n, _ in starts[1]])
    y = np.log([v for start in starts for _, v in start])
    (*_, slope), (left,), *_ = np.linalg.lstsq(x, y, rcond=None)
    error = np.sqrt(left / 3 * np.linalg.inv(x.T @ x)[2, 2])
    assert found.slope == pytest.approx(slope)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(slope / error), 3))
    assert (found.starts, found.runs, found.reach) == (2, 6, 3)


def test_the_correction_is_for_every_cell_and_metric_of_the_experiment():
    cold = runs(noisy(COLD, 3, noise=0.05))
    steady = [
        run
        for c in range(2, 12)
        for run in runs(noisy((70.0,) * 3, 3, seed=c), max_concurrency=c, output_throughput=None)
    ]
    (alone,) = drifts([*cold])
    (among,) = drifts([*cold, *steady])
    assert among.p == pytest.approx(alone.p * 12 / 2)


def test_failed_and_ablated_runs_do_not_count():
    assert drifts(runs(noisy(COLD, 3), status="failed")) == []
    assert drifts(runs(noisy(COLD, 3), ablation="comm")) == []
