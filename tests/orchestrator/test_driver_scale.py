"""The driver's work for a rank does not grow with the number of ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driver_scale as scale
import pytest

from orchestrator.cluster.group import WorkerGroup
from orchestrator.cluster.ranks import ranks_at, shared_out


def calls_of(work: Callable[[], Any]) -> int:
    """Calls of functions of Python and C while it works."""
    count = 0

    def seen(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def start(group: WorkerGroup, fakes: scale.Fakes, plan: Any, folder: Path) -> int:
    return calls_of(lambda: scale.started(group))


def records(group: WorkerGroup, fakes: scale.Fakes, plan: Any, folder: Path) -> int:
    built, asked = scale.started(group), scale.work(plan)
    fakes.prepare(plan)
    return calls_of(
        lambda: scale.kept(folder, plan, asked, built, group.nodes, group.run(asked, 600.0))
    )


@pytest.mark.parametrize("part", [start, records])
def test_the_calls_of_a_rank_are_as_many_for_64_ranks_as_for_256(part: Any, tmp_path: Path) -> None:
    each = {}
    for ranks in (64, 256):
        plan, fakes = scale.plan_for(ranks), scale.Fakes(ranks)
        with scale.driven(plan, fakes) as group:
            each[ranks] = part(group, fakes, plan, tmp_path / str(ranks)) / ranks
    assert each[256] < 1.1 * each[64]


def test_a_run_of_stand_ins_is_kept_with_every_rank(tmp_path: Path) -> None:
    plan, fakes = scale.plan_for(64), scale.Fakes(64)
    with scale.driven(plan, fakes) as group:
        built = scale.started(group)
        assert [one.rank for one in built] == list(range(64))
        fakes.prepare(plan)
        reports = group.run(scale.work(plan), 600.0)
        assert [one.rank for one in reports] == list(range(64))
        assert len(set(group.nodes)) == 8
        assert all(
            len({group.nodes[rank] for rank in tp}) == 1 for tp in plan.placement.groups("tp")
        )


def test_looking_up_ranks_and_bundles_is_linear() -> None:
    """What C does inside a list is no call: it is seen in what is compared."""
    compared = 0

    class Place(int):
        __hash__ = int.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return int(self) == other

    ranks_at([Place(number) for number in range(512)], 512)
    assert compared <= 2 * 512
    assert len(shared_out({number: str(number // 8) for number in range(512)}, 512)) == 512
