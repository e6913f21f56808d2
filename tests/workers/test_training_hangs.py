"""A rank that stops is told from those that wait for it, and these say in which collective."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ranks import Pool
from training_runs import FEW, curve, shape_of, training_plan

from orchestrator.cluster.hanging import hanging
from workers.messages import TrainingWork
from workers.progress import Stand, stand_of

pytestmark = pytest.mark.slow
LONGEST_S = 60.0


@pytest.mark.parametrize(
    ("layout", "where"),
    [
        ("dp2", "all_reduce over dp"),
        ("fsdp2", "all_gather over fsdp"),
        ("tp2", "all_reduce over tp"),  # by which gloo reduces and scatters the embedding's output
        ("pp2", "a send or a receive over pp"),
    ],
)
def test_the_rank_that_stops_is_named_with_the_collective_in_which_the_others_wait(
    layout: str, where: str, pool: Pool, tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    pool.build(training_plan(layout, shape_of("Llama"), None), "stuck")
    places = pool.call("standing", [(), ()])
    used = pool.connections[:2]
    for connection in used:
        connection.send(("run", (TrainingWork(FEW, save=str(gate)),)))
    expected = f"rank 1 hangs: the others wait for it in {where}"
    said, deadline = "", time.monotonic() + LONGEST_S
    while said != expected and time.monotonic() < deadline:  # a slow step stands for a while too
        time.sleep(0.1)
        said = hanging({rank: stand_of(*place) for rank, place in enumerate(places)})
    gate.touch()
    answers = [connection.recv() for connection in used]
    pool.call("close", [(), ()])
    assert said == expected
    assert [status for status, _ in answers] == ["ok", "ok"]
    assert len(curve([report for _, report in answers])) == FEW


def test_a_collective_without_a_name_is_named_as_one() -> None:
    stands = {0: Stand(True, 2), 1: Stand(False, 2), 2: Stand(True, 2, "all_gather over tp")}
    assert hanging(stands) == "rank 1 hangs: the others wait for it in all_gather over tp"
