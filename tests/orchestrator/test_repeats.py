"""How many runs a cell gets: what was asked for, and more until they agree."""

import contextlib

import pytest
from driver_inputs import deployment
from recorder import Recorder
from summaries import write_run

from orchestrator.experiment import Experiment, Run
from orchestrator.run import driver
from orchestrator.run.jobs import Job
from orchestrator.store.store import Store


@pytest.fixture
def job(tmp_path):
    """A job of one cell; called with the throughputs of the runs that are done (None: failed) and
    the experiment's fields."""

    def with_runs(throughputs, **fields):
        store = Store(tmp_path)
        store.create()
        planned = deployment("tp1")
        for index, throughput in enumerate(throughputs):
            status = "failed" if throughput is None else "completed"
            run = Run(planned.cells[0].cell, index)
            write_run(store, run, status=status, output_throughput=throughput)
        return Job(planned, Experiment(**fields), store)

    return with_runs


def left(job):
    return [run.index for run in job.missing(job.deployment.cells[0])]


def test_without_an_interval_to_reach_there_are_as_many_as_asked_for(job):
    assert left(job([100.0, None], num_runs=3)) == [1, 2]
    assert left(job([100.0, 500.0], num_runs=2)) == []


def test_one_run_has_no_interval_so_a_second_is_added(job):
    assert left(job([], until_ci=0.05)) == [0]
    assert left(job([100.0], until_ci=0.05)) == [1]


def test_a_run_is_added_while_the_interval_is_too_wide(job):
    assert left(job([100.0, 101.0], until_ci=0.05)) == [2]  # 12.7 * 0.71 / sqrt(2) = 6.4 of 100.5
    assert left(job([100.0, 101.0], until_ci=0.07)) == []
    assert left(job([100.0, 101.0, 100.5], until_ci=0.05)) == []


def test_no_more_than_the_cap_are_added(job):
    assert left(job([100.0, 200.0, 100.0], until_ci=0.05, max_runs=4)) == [3]
    assert left(job([100.0, 200.0, 100.0], until_ci=0.05, max_runs=3)) == []
    assert left(job([100.0, 200.0, 100.0], until_ci=0.05, max_runs=2, num_runs=3)) == []


def test_a_failed_run_is_tried_again_before_another_is_added(job):
    assert left(job([100.0, None, 200.0], until_ci=0.05)) == [1]


def test_after_a_run_without_a_result_none_is_added(job):
    """A run above its bound, and one that failed: more of the same would not narrow the
    interval."""
    tried = job([100.0, None], until_ci=0.05, num_runs=2)
    cell = tried.deployment.cells[0]
    assert left(tried) == [1]
    tried.tried.add(Run(cell.cell, 1))
    assert left(tried) == []


def test_runs_that_were_added_count_as_done_when_the_same_command_comes_again(job):
    again = job([100.0, 101.0, 100.5], until_ci=0.05)
    assert len(again.throughputs(again.deployment.cells[0])) == 3


def test_the_driver_adds_runs_until_they_agree(tmp_path, ray_cluster, monkeypatch):
    """The fake engine is as fast every time, so the second run, the first to give an interval, is
    the last."""
    monkeypatch.setattr(driver, "connect", lambda *_: contextlib.nullcontext(ray_cluster))
    seen = Recorder()
    driver.run_experiment(
        [deployment("tp1")],
        Experiment(result_dir=tmp_path, num_warmups=0, until_ci=0.05, timeout=60),
        seen,
    )
    assert [(row.run, row.status) for row in seen.rows] == [(0, "completed"), (1, "completed")]
    again = Recorder()
    driver.run_experiment(
        [deployment("tp1")],
        Experiment(result_dir=tmp_path, num_warmups=0, until_ci=0.05, timeout=60),
        again,
    )
    assert (again.asked, again.rows) == ((0, 2), [])
