"""How many starts and runs a cell gets: what was asked for, and more until the starts agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from driver_inputs import deployment
from fake_engine import SERVE
from summaries import write_run

from orchestrator.experiment import Experiment, Run
from orchestrator.run.jobs import Job
from orchestrator.run.schedule import Schedule
from orchestrator.store.store import Store

Throughputs = Sequence[float | None]
Made = Callable[..., Schedule]


@pytest.fixture
def schedule(tmp_path: Path) -> Made:
    """Called with the throughputs of the starts of tp1 at 1 concurrent, tp1 at 2, tp2 at 1 and tp2
    at 2 (None: it failed), and the experiment's fields."""

    def with_starts(*throughputs: Throughputs, **fields: object) -> Schedule:
        store = Store(tmp_path)
        store.create()
        layouts = [deployment(name, [(SERVE, 0)] * 2) for name in ("tp1", "tp2")]
        cells = [cell.cell for layout in layouts for cell in layout.cells]
        for cell, starts in zip(cells, throughputs, strict=False):
            for start, reached in enumerate(starts):
                status = "failed" if reached is None else "completed"
                write_run(store, Run(cell, start, 0), status=status, output_throughput=reached)
        experiment = Experiment.model_validate(fields)
        jobs = [Job(layout, experiment, store) for layout in layouts]
        return Schedule(jobs, experiment, store)

    return with_starts


def left(schedule: Schedule, start: int) -> list[tuple[str, int]]:
    """Layout and concurrency of each run that is to be made in a start."""
    wanted = schedule.cells(start)
    return [
        (run.cell.deployment.strategy, run.cell.max_concurrency)
        for job in schedule.jobs
        for cell in job.deployment.cells
        if cell.cell in wanted
        for run in job.missing(cell, start)
    ]


ALL = [("tp1", 1), ("tp1", 2), ("tp2", 1), ("tp2", 2)]
AGREE, DIFFER = [100.0, 100.1] * 4, [100.0, 200.0] * 4  # as many as an interval is believed for


def test_without_an_interval_to_reach_there_are_as_many_starts_as_asked_for(schedule: Made) -> None:
    done = schedule([100.0, None], [100.0, 500.0], [100.0, 100.0], [100.0, 100.0], num_starts=2)
    assert (left(done, 0), left(done, 1)) == ([], [("tp1", 1)])
    assert done.left() == 1
    assert schedule(num_starts=3).left() == 1 + 4
    assert schedule(num_starts=2, num_runs=2).left() == 1 + 8


def test_a_start_whose_second_run_is_missing_lacks_it_alone(schedule: Made) -> None:
    more = schedule([100.0], [100.0], [100.0], [100.0], num_runs=2)
    assert left(more, 0) == ALL
    assert {run.index for run in more.jobs[0].missing(more.jobs[0].deployment.cells[0], 0)} == {1}


def test_one_start_has_no_interval_so_a_second_is_added(schedule: Made) -> None:
    assert left(schedule(until_ci=0.05), 0) == ALL
    assert left(schedule(until_ci=0.05), 1) == []  # the first comes first
    assert left(schedule(*[[100.0]] * 4, until_ci=0.05), 1) == ALL


def test_a_start_is_added_for_every_layout_of_a_load_and_for_no_other_load(schedule: Made) -> None:
    wide = schedule(AGREE, AGREE, AGREE, DIFFER, until_ci=0.05, num_starts=3)
    assert left(wide, 8) == [("tp1", 2), ("tp2", 2)]
    assert left(wide, 9) == []
    assert wide.left() == 2
    assert schedule(*[AGREE] * 4, until_ci=0.05, num_starts=3).left() == 0


def test_a_first_narrow_interval_is_confirmed_by_six_more_starts(schedule: Made) -> None:
    for made in (2, 7):
        assert left(schedule(*[AGREE[:made]] * 4, until_ci=0.05), made) == ALL
    assert schedule(*[AGREE] * 4, until_ci=0.05).left() == 0


def test_a_round_that_was_begun_is_completed_even_where_all_are_narrow(schedule: Made) -> None:
    begun = schedule([*AGREE, 100.0], AGREE, AGREE, AGREE, until_ci=0.05, num_starts=3)
    assert left(begun, 8) == [("tp2", 1)]
    assert left(schedule([*AGREE, 100.0], AGREE, AGREE, AGREE, num_starts=3), 8) == []


def test_no_more_starts_than_the_cap_are_added(schedule: Made) -> None:
    wide = [DIFFER[:3]] * 4
    assert schedule(*wide, until_ci=0.05, max_starts=4).left() == 4
    assert schedule(*wide, until_ci=0.05, max_starts=3).left() == 0
    assert schedule(*wide, until_ci=0.05, max_starts=2, num_starts=3).left() == 0


def test_a_failed_run_is_tried_again_before_a_start_is_added(schedule: Made) -> None:
    again = schedule([100.0, None, *DIFFER[2:]], *[DIFFER] * 3, until_ci=0.05, num_starts=3)
    assert left(again, 1) == [("tp1", 1)]
    assert left(again, 8) == [("tp1", 2), ("tp2", 2)]


def test_after_a_failure_of_this_command_a_cell_gets_no_start_and_asks_for_none(
    schedule: Made,
) -> None:
    """A run above its bound, and one that failed: more of the same would not narrow the
    interval."""
    tried = schedule([100.0, None], [100.0, 100.0], AGREE, DIFFER, until_ci=0.05, num_starts=2)
    job = tried.jobs[0]
    job.tried.add(Run(job.deployment.cells[0].cell, 1, 0))
    assert left(tried, 2) == left(tried, 7) == [("tp1", 2)]  # the starts that tp2 has
    assert left(tried, 8) == []
    job.give_up(job.deployment.cells)
    assert left(tried, 2) == []
    assert left(tried, 8) == [("tp2", 2)]


def test_runs_inside_a_start_are_one_value(schedule: Made) -> None:
    """Two runs that agree are still one start, and say nothing of another one."""
    made = schedule(*[[100.0]] * 4, until_ci=0.05, num_runs=2)
    for job in made.jobs:
        for cell in job.deployment.cells:
            write_run(made.store, Run(cell.cell, 0, 1), output_throughput=100.0)
    assert left(made, 1) == [one for one in ALL for _ in range(2)]


def test_starts_that_were_added_count_as_done_when_the_same_command_comes_again(
    schedule: Made,
) -> None:
    again = schedule(*[AGREE] * 4, until_ci=0.05)
    assert [job.completed(cell) for job in again.jobs for cell in job.deployment.cells] == [8] * 4
    assert not again.left()


def test_an_ablated_layout_shares_the_starts_that_are_added_and_asks_for_none(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    store.create()
    experiment = Experiment(until_ci=0.05, num_starts=3)
    jobs = [
        Job(deployment("tp2", [(SERVE, 0)], ablation=ablation), experiment, store)
        for ablation in ("none", "comm")
    ]
    schedule = Schedule(jobs, experiment, store)
    whole, without = (job.deployment.cells[0].cell for job in jobs)
    for start in range(9):
        write_run(store, Run(whole, start, 0), output_throughput=100.0 + 0.1 * start)
        write_run(store, Run(without, start, 0), output_throughput=100.0 + 90.0 * (start % 2))
    assert schedule.left() == 0
    write_run(store, Run(whole, 8, 0), output_throughput=900.0)
    assert schedule.cells(9) == {whole, without}
