"""What communication costs a step and what each operation moves, as columns of the summary."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tables import make

from orchestrator.analysis.observed.accounting import CELL_TIMED, PARTS_OF_STEP, TIMED, PartsRow
from orchestrator.analysis.observed.communication import (
    UNSEEN,
    PhaseParts,
    Share,
    exposed,
    step_parts_of,
)
from orchestrator.analysis.observed.operations import (
    RUN_COLLECTIVES,
    Operations,
    Traffic,
    operations_of,
    traffic_of,
    with_timing,
)
from workers.messages import RankReport
from workers.records import COLLECTIVES, STEPS
from workers.rows import nothing


def parts(phase: str = "decode", **given: object) -> list[PartsRow]:
    """Two ranks of which one waits longer, and for another stage. given: of both."""
    base = {
        "phase": phase,
        "steps": 9,
        "steps_unmatched": 0,
        "step_ms": 10.0,
        "launch_gap_ms": 0.0,
        "fused_ms": 0.0,
        "comm_busy_ms": 4.0,
        **given,
    }
    rows = [
        {
            **base,
            "rank": 0,
            "compute_ms": 8.0,
            "exposed_transfer_ms": 1.0,
            "exposed_wait_ms": 1.0,
            "wait_compute_ms": 0.0,
            "wait_launch_ms": 1.0,
            "wait_communication_ms": 0.0,
            "bubble_ms": 0.0,
        },
        {
            **base,
            "rank": 1,
            "compute_ms": 5.0,
            "exposed_transfer_ms": 1.0,
            "exposed_wait_ms": 2.0,
            "wait_compute_ms": 1.5,
            "wait_launch_ms": 0.5,
            "wait_communication_ms": 0.0,
            "bubble_ms": 2.0,
        },
    ]
    return PARTS_OF_STEP.rows(make(PARTS_OF_STEP, rows))


def test_shares_are_means_over_ranks_with_the_worst_beside() -> None:
    found = step_parts_of(parts())
    step = found.decode
    assert (step.comm_exposed.pct, step.comm_exposed.pct_worst) == (
        pytest.approx(25),
        pytest.approx(30),
    )
    assert (step.bubble.pct, step.bubble.pct_worst) == (pytest.approx(10), pytest.approx(20))
    assert (step.comm_exposed.ms, step.comm_exposed.ms_worst) == (
        pytest.approx(2.5),
        pytest.approx(3),
    )
    assert found.prefill.compute.pct is None


def test_a_phase_without_steps_on_a_rank_takes_no_part_in_the_means() -> None:
    asleep = make(PARTS_OF_STEP, [{"rank": 2, "phase": "decode", "step_ms": 0.0}])
    rows = [*parts(), *PARTS_OF_STEP.rows(asleep)]
    assert step_parts_of(rows) == step_parts_of(parts())
    assert exposed(rows) == [(0, "decode", pytest.approx(20)), (1, "decode", pytest.approx(30))]


def test_a_wait_is_also_told_by_what_the_last_rank_did() -> None:
    step = step_parts_of(parts()).decode
    found = [step.wait_compute.ms, step.wait_launch.ms, step.wait_communication.ms]
    assert found == [0.75, 0.75, 0.0]
    assert step.exposed_wait.ms == pytest.approx(sum(found))
    assert (step.wait_launch.pct, step.wait_launch.pct_worst) == (7.5, 10.0)


def test_fused_kernels_have_a_share_that_is_not_in_exposed_communication() -> None:
    step = step_parts_of(parts(fused_ms=1.0)).decode
    assert (step.fused.ms, step.fused.pct) == (1.0, 10.0)
    assert step.comm_exposed == step_parts_of(parts()).decode.comm_exposed


@pytest.mark.parametrize(("ratios", "shown"), [((1.0, 1.1), True), ((1.02, 1.1), False)])
def test_shares_of_steps_that_the_profiler_made_longer_are_not_shown(
    ratios: tuple[float, float], shown: bool
) -> None:
    """The mean over ranks decides: 1.05 may be, 1.06 not."""
    rows = [replace(row, profile_ratio=ratio) for row, ratio in zip(parts(), ratios, strict=True)]
    step = step_parts_of(rows).decode
    assert step.profile_ratio == pytest.approx(sum(ratios) / 2)
    assert step.step_ms == 10.0
    if shown:
        assert step.step_reason is None
        assert step.compute.pct == pytest.approx(65)
        assert len(exposed(rows)) == 2
    else:
        assert step.step_reason == "the profiled pass takes 1.06 of the timed one"
        assert step.compute == step.comm_exposed == step.wait_launch == nothing(Share)
        assert exposed(rows) == []


@pytest.mark.parametrize(
    ("ratio", "said"), [(1.0528, "1.053"), (1.0501, "1.0501"), (1.056, "1.06"), (2.5, "2.50")]
)
def test_the_ratio_that_is_too_much_is_written_as_more_than_the_limit(
    ratio: float, said: str
) -> None:
    reason = step_parts_of(parts(profile_ratio=ratio)).decode.step_reason
    assert reason == f"the profiled pass takes {said} of the timed one"


@pytest.mark.parametrize(
    ("phase", "median", "bubble", "said"),
    [
        ("decode", 8.1, 0.0, None),
        ("decode", 6.5, 0.0, "a step was held up: a mean one takes 1.54 of a median one"),
        ("decode", 6.5, 2.0, None),  # which is as uneven as another stage's passes over prompts
        ("prefill", 6.5, 0.0, None),  # of as many tokens as come
    ],
)
def test_a_step_that_was_held_up_is_in_no_share(
    phase: str, median: float, bubble: float, said: str | None
) -> None:
    seen = parts(phase, timed_step_ms=median / 1.01, profile_ratio=1.01)
    rows = [replace(row, bubble_ms=bubble) for row in seen]
    found = step_parts_of(rows)
    step = found.decode if phase == "decode" else found.prefill
    assert step.step_reason == said
    assert (step.compute.pct is None) == (said is not None)
    assert bool(exposed(rows)) == (said is None)


def test_each_phase_is_shown_or_not_by_its_own_ratio() -> None:
    rows = [*parts(profile_ratio=1.01), *parts("prefill", profile_ratio=1.31)]
    found = step_parts_of(rows)
    assert found.decode.compute.ms == 6.5
    assert found.prefill.compute.ms is None
    assert found.prefill.step_reason == "the profiled pass takes 1.31 of the timed one"
    assert {phase for _, phase, _ in exposed(rows)} == {"decode"}


def test_without_the_same_work_unprofiled_the_ratio_is_unknown_and_shares_are_shown() -> None:
    step = step_parts_of(parts()).decode
    assert (step.profile_ratio, step.step_reason, step.compute.ms) == (None, None, 6.5)


def test_where_a_rank_has_no_step_left_the_phase_has_no_parts_but_a_reason() -> None:
    """A mean over the other ranks would not be one of the layout."""
    why = "2 calls of all_reduce over tp were made and not seen"
    left_out = {"rank": 1, "phase": "decode", "steps": 0, "steps_unmatched": 9, "reason": why}
    rows = [parts()[0], *PARTS_OF_STEP.rows(make(PARTS_OF_STEP, [left_out]))]
    step = step_parts_of(rows).decode
    assert step.step_reason == f"no step of rank 1 is left: {why}"
    assert (step.steps_unmatched, step.step_ms) == (9, 10.0)
    assert step.compute == step.exposed_transfer == step.comm_busy == nothing(Share)
    assert exposed(rows) == []


def test_shares_that_a_result_is_older_than_are_null_and_the_others_are_not() -> None:
    old = {"fused_ms": None, "wait_launch_ms": None, "steps_unmatched": None}
    step = step_parts_of([replace(row, **old) for row in parts()]).decode
    assert step.fused == step.wait_launch == nothing(Share)
    assert (step.compute.ms, step.steps_unmatched) == (6.5, None)


def test_prefill_has_columns_of_its_own() -> None:
    both = step_parts_of([*parts(), *parts("prefill")[:1]])
    assert (both.decode.compute.ms, both.prefill.compute.ms) == (6.5, 8.0)


def test_a_cell_that_was_not_observed_has_none_of_it_and_says_so() -> None:
    step = step_parts_of([])
    assert step.decode == step.prefill == replace(nothing(PhaseParts), step_reason=UNSEEN)
    assert operations_of([], []) == nothing(Operations)


def test_what_was_counted_and_what_was_timed_stand_in_one_row() -> None:
    cell = {"experiment": "e", "strategy": "tp2", "max_concurrency": 8, "start": 0}
    counted = [
        {
            **cell,
            "run": 1,
            "rank": rank,
            "phase": "decode",
            "op": op,
            "axis": "tp",
            "calls": 80,
            "bytes": 8000,
        }
        for rank in (0, 1)
        for op in ("all_reduce", "all_gather")
    ]
    timed = [
        {
            **cell,
            "rank": rank,
            "phase": "decode",
            "op": "all_reduce",
            "axis": "tp",
            "group_size": 2,
            "calls": 4,
            "bytes": 400,
            "transfer_us": 10.0,
            "wait_us": 1.0,
            "algbw": 4.0 + 2 * rank,
            "busbw": 4.0,
        }
        for rank in (0, 1)
    ]
    calls = RUN_COLLECTIVES.rows(make(RUN_COLLECTIVES, counted))
    seen = CELL_TIMED.rows(make(CELL_TIMED, timed))
    joined = with_timing(calls, seen)
    assert [one.calls for one in joined] == [80] * 4
    assert [one.algbw for one in joined] == [4.0, None, 6.0, None]
    found = operations_of(calls, seen)
    reduced, gathered = found.decode.tp_all_reduce, found.decode.tp_all_gather
    assert (reduced.calls, reduced.bytes, reduced.algbw) == (160, 16000, 5.0)
    assert (gathered.calls, gathered.algbw) == (160, None)
    assert found.decode.pp_send.calls is found.prefill.tp_all_reduce.calls is None


def test_calls_of_another_cell_are_not_timed_by_this_one() -> None:
    call = {"start": 0, "rank": 0, "phase": "decode", "op": "send", "axis": "pp"}
    counted = make(RUN_COLLECTIVES, [{**call, "max_concurrency": 8, "run": 0, "calls": 1}])
    timed = make(CELL_TIMED, [{**call, "max_concurrency": 9, "calls": 1, "algbw": 1.0}])
    joined = with_timing(RUN_COLLECTIVES.rows(counted), CELL_TIMED.rows(timed))
    assert [one.algbw for one in joined] == [None]


def test_bandwidth_is_of_the_ranks_that_counted_the_operation() -> None:
    """A rank that the run did not count it on says nothing of the run."""
    key = {"phase": "decode", "op": "all_reduce", "axis": "tp"}
    counted = COLLECTIVES.rows(make(COLLECTIVES, [{**key, "rank": 0, "calls": 1, "bytes": 8}]))
    timed = TIMED.rows(make(TIMED, [{**key, "rank": rank, "algbw": 4.0 + rank} for rank in (0, 1)]))
    assert operations_of(counted, timed).decode.tp_all_reduce.algbw == 4.0


def test_collectives_are_summed_over_ranks_and_unknown_if_one_rank_cannot_count() -> None:
    row = {"rank": 0, "phase": "decode", "op": "all_reduce", "axis": "tp", "calls": 3, "bytes": 96}
    sent, steps = make(COLLECTIVES, [row] * 2), STEPS.make([])
    counted = [RankReport(rank, None, steps, sent, 0) for rank in (0, 1)]
    assert traffic_of(counted) == Traffic(comm_calls=12, comm_bytes=384)
    uncounted = RankReport(2, None, steps, None, 0)
    assert traffic_of([*counted, uncounted]) == Traffic(comm_calls=None, comm_bytes=None)
