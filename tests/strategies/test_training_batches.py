"""How the batch of an optimizer step is dealt out, and what cannot be dealt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from layouts_inputs import shape
from pipeline_orders import SCHEDULES, order_of, waiting_share

from strategies import LayoutError, Placement, Topology, TrainingLoad, plan_layout
from strategies.shapes import Schedule
from strategies.training import bubble_share, check_batches, micro_batches

LOAD = TrainingLoad(seq_len=16, global_batch_size=32, micro_batch_size=2)


def placed(name: str, load: TrainingLoad = LOAD) -> Placement:
    return plan_layout(name, shape(), load.load, Topology.uniform(16)).placement


@pytest.mark.parametrize(
    ("name", "count"), [("tp1", 16), ("dp4", 4), ("fsdp4", 4), ("dp2fsdp4", 2), ("tp2pp2dp2", 8)]
)
def test_micro_batches_are_the_global_batch_over_replicas_and_micro_batch_size(
    name: str, count: int
) -> None:
    assert micro_batches(placed(name), LOAD) == count
    assert check_batches(placed(name), LOAD) is None


@pytest.mark.parametrize(
    ("name", "batch", "micro", "message"),
    [
        (
            "dp4",
            30,
            2,
            "30 sequences does not divide over 4 replicas of micro-batch size 2; use 24 or 32$",
        ),
        ("dp4", 4, 2, "use 8, or a micro-batch size of 1$"),
        ("dp2", 12, 4, "use 8 or 16, or a micro-batch size of 1, 2, 3$"),
        ("tp2", 5, 2, "does not divide over 1 replica of micro-batch size 2; use 4 or 6, or .* 1$"),
        (
            "tp1",
            0,
            1,
            "a global batch of 0 and a micro-batch of 1 sequences; use 1 or more of each",
        ),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_those_that_would(
    name: str, batch: int, micro: int, message: str
) -> None:
    load = replace(LOAD, global_batch_size=batch, micro_batch_size=micro)
    with pytest.raises(LayoutError, match=message):
        check_batches(placed(name), load)


def test_1f1b_refuses_fewer_micro_batches_than_stages() -> None:
    load = replace(LOAD, global_batch_size=6)
    message = "3 micro-batches are fewer than the 4 stages, .* 1f1b needs; use a global .* of 8 or"
    with pytest.raises(LayoutError, match=message):
        check_batches(placed("pp4"), load)


def test_gpipe_warns_of_the_bubble_of_fewer_micro_batches_than_stages() -> None:
    load = replace(LOAD, global_batch_size=6, schedule="gpipe")
    said = check_batches(placed("pp4"), load)
    assert said is not None
    assert said.startswith("3 micro-batches are fewer than the 4 ranks of the pipeline: 50% of")


@pytest.mark.parametrize(("micro", "said"), [(1, False), (2, True)])
def test_a_smaller_micro_batch_is_advised_where_there_is_one(micro: int, said: bool) -> None:
    load = replace(LOAD, global_batch_size=2 * micro, micro_batch_size=micro)
    with pytest.raises(LayoutError) as refused:
        check_batches(placed("pp4"), load)
    warning = check_batches(placed("pp4"), replace(load, schedule="gpipe"))
    assert warning is not None
    for line in (str(refused.value), warning):
        assert ("smaller micro-batch" in line) == said


@pytest.mark.parametrize(
    ("ranks", "count", "fits"),
    [(2, 1, ""), (2, 4, ""), (2, 5, "8 or 12"), (2, 7, "12 or 16"), (3, 7, "12 or 16"), (3, 8, "")],
)
def test_interleaved_needs_a_multiple_of_its_rounds(ranks: int, count: int, fits: str) -> None:
    load = replace(LOAD, global_batch_size=2 * count, schedule="interleaved")
    if not fits:
        check_batches(placed(f"pp{ranks}", load), load)
        return
    message = f"{count} micro-batches are no multiple of .* use a global batch size of {fits}$"
    with pytest.raises(LayoutError, match=message):
        check_batches(placed(f"pp{ranks}", load), load)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("count", range(1, 11))
def test_what_is_refused_is_what_the_schedules_of_torch_refuse(
    schedule: Schedule, ranks: int, count: int
) -> None:
    load = replace(LOAD, global_batch_size=2 * count, schedule=schedule)
    placement = placed(f"pp{ranks}", load)
    try:
        order_of(schedule, ranks, count)
    except ValueError:
        with pytest.raises(LayoutError):
            check_batches(placement, load)
    else:
        check_batches(placement, load)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("ranks", "count"), [(2, 4), (3, 6), (4, 8), (4, 16)])
def test_the_bubble_is_that_of_the_order_in_which_torch_computes(
    schedule: Schedule, ranks: int, count: int
) -> None:
    waited = waiting_share(order_of(schedule, ranks, count))
    assert waited == pytest.approx(bubble_share(schedule, ranks, count, 2))


@pytest.mark.parametrize(
    ("schedule", "ranks", "count", "chunks", "share"),
    [
        ("gpipe", 1, 4, 1, 0.0),
        ("gpipe", 4, 4, 1, 3 / 7),
        ("1f1b", 4, 12, 1, 3 / 15),
        ("1f1b", 4, 12, 2, 3 / 15),  # it has one stage a rank
        ("interleaved", 4, 12, 2, 1.5 / 13.5),
    ],
)
def test_the_bubble_is_the_wait_of_p_minus_1_micro_batches(
    schedule: str, ranks: int, count: int, chunks: int, share: float
) -> None:
    assert bubble_share(schedule, ranks, count, chunks) == pytest.approx(share)
