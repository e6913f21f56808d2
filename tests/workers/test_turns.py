"""Conversations and open loops on the engine `torch`: each request at its time, on real ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ranks import Pool, engine_plan, plain, ragged_requests, read_shape, tokens

from workers.messages import RankReport, Request, Work

TURNS = {1: 0, 2: 1, 4: 3, 6: 5}  # request -> the one that it is after


def talks(vocab: int) -> tuple[Request, ...]:
    """Conversations of three, two and two turns."""
    return tuple(replace(one, after=TURNS.get(one.index)) for one in ragged_requests(vocab))


def rows(reports: list[RankReport]) -> dict[int, dict[str, Any]]:
    tables = [one.requests for one in reports if one.requests is not None]
    return {row["request_index"]: row for table in tables for row in table.to_pylist()}


def check_turns(found: dict[int, dict[str, Any]]) -> None:
    for index in TURNS.keys() & found:
        before = TURNS[index]
        turn, reply = found[index], found[before]
        assert turn["replica"] == reply["replica"]
        assert turn["arrival_s"] >= reply["token_times_s"][-1]
        assert turn["token_times_s"][0] > reply["token_times_s"][-1]


@pytest.mark.parametrize("layout", ["tp1", "pp2", "tp2pp2", "pp4", "dp2"])
def test_every_layout_makes_the_same_tokens_and_no_turn_comes_before_its_time(
    layout: str, pool: Pool, checkpoint: Callable[[str], Path]
) -> None:
    folder = checkpoint("Llama")
    shape = read_shape(folder)
    closed = Work(talks(shape.vocab_size), 2)
    at = {0: 0.05, 3: 0.1, 5: 0.3}
    open_ = replace(
        closed,
        requests=tuple(replace(one, arrival_s=at.get(one.index, 0.0)) for one in closed.requests),
    )
    until_end = replace(closed, ignore_eos=False)
    # fewer conversations than replicas or seats, and replies that may end early
    alone = replace(open_, requests=open_.requests[:3], max_concurrency=8, ignore_eos=False)
    planned = engine_plan(layout, shape, folder, replace(closed, max_concurrency=8))
    observed = replace(closed, observe=True)
    served = pool.serve(planned, closed, open_, until_end, alone, observed)
    whole = plain(folder, closed)
    assert [tokens(reports) for reports in served] == [
        whole,
        whole,
        plain(folder, until_end),
        plain(folder, alone),
        whole,
    ]
    for reports in served:
        check_turns(rows(reports))
    timed = rows(served[1])
    for index, when in at.items():
        assert timed[index]["arrival_s"] == when
    for index, before in TURNS.items():
        assert timed[index]["arrival_s"] == timed[before]["token_times_s"][-1]
        assert timed[index]["admitted_s"] >= timed[index]["arrival_s"]


@pytest.mark.parametrize("layout", ["tp1", "tp2pp2", "tp2dp2"])
def test_an_open_loop_makes_the_same_tokens_on_every_layout(
    layout: str, pool: Pool, checkpoint: Callable[[str], Path]
) -> None:
    shape = read_shape(checkpoint("Llama"))
    requests = ragged_requests(shape.vocab_size)
    late = tuple(replace(one, arrival_s=0.05 * (i + 1)) for i, one in enumerate(requests))
    closed, open_ = Work(requests, 4), Work(late, 4)
    reports = pool.serve(
        engine_plan(layout, shape, checkpoint("Llama"), closed), closed, open_, open_
    )
    assert tokens(reports[0]) == tokens(reports[1]) == tokens(reports[2])
    found = rows(reports[1])
    assert {index: row["arrival_s"] for index, row in found.items()} == {
        one.index: one.arrival_s for one in late
    }
    for row in found.values():
        moments = [row["arrival_s"], row["admitted_s"], *row["token_times_s"]]
        for earlier, later in pairwise(moments):
            assert later > earlier - 0.25  # ranks start within that
