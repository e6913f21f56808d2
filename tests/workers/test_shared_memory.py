"""Collectives through memory that ranks of one host share. Threads stand for the ranks: to the
semaphores it is all the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Pool, engine_plan, ragged_requests, read_shape, tokens
from torch.distributed import DistBackendError, HashStore

from workers import shared_memory
from workers.messages import Switches, Work
from workers.process import ProcessId, start_ticks
from workers.shared_memory import PIECE, PIECES, Exchange, Meeting, Ring

pytestmark = pytest.mark.skipif(not shared_memory.CAN_SHARE, reason="needs memfd, as Linux has it")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FOREVER_S = 30.0


def together(ranks: int, call: Callable[[Meeting], Any], timeout_s: float = FOREVER_S) -> list[Any]:
    """What each rank makes of `call`, all at once."""
    store = HashStore()
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(lambda rank: call(Meeting(store, rank, timeout_s)), range(ranks)))


def part(rank: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(rank)).to(dtype)


def in_rank_order(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    total = parts[0].float()
    for one in parts[1:]:
        total = total + one.float()
    return total.to(parts[0].dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_sum_has_the_same_bits_on_all_ranks_and_is_in_rank_order(
    ranks: int, dtype: torch.dtype
) -> None:
    """Of one element, of a few, and of more than go at once; many sums in a row."""
    counts = [1, 7, 2048, PIECE // 2 + 3, *range(1, 40)]

    def sums(meeting: Meeting) -> list[torch.Tensor]:
        exchange = meeting.exchange("tp", range(ranks))
        assert exchange is not None
        made = [part(meeting.rank, count, dtype) for count in counts]
        for x in made:
            exchange.all_reduce(x)
        return made

    made = together(ranks, sums)
    for number, count in enumerate(counts):
        expected = in_rank_order([part(rank, count, dtype) for rank in range(ranks)])
        assert all(torch.equal(of_rank[number], expected) for of_rank in made)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (PIECE // 8 + 1, 3)])
def test_every_rank_gathers_what_all_have(shape: tuple[int, ...]) -> None:
    def gathered(meeting: Meeting) -> torch.Tensor:
        exchange = meeting.exchange("tp", range(3))
        assert exchange is not None
        out = torch.empty(3, *shape)
        for factor in (1, 2):
            exchange.all_gather(torch.full(shape, float(factor * meeting.rank)), out)
        return out

    expected = torch.stack([torch.full(shape, 2.0 * rank) for rank in range(3)])
    assert all(torch.equal(one, expected) for one in together(3, gathered))


def test_messages_come_to_every_reader_in_order_and_as_they_were_written() -> None:
    """More of them than a writer may be ahead, and one larger than goes at once. The last rank
    writes, as the last stage of a pipeline does."""
    sizes = [*range(1, 3 * PIECES), PIECE // 4 + 5]

    def messages(meeting: Meeting) -> list[torch.Tensor]:
        ring = meeting.ring("tokens", range(3), writer=2)
        assert ring is not None
        made = [torch.empty(size) for size in sizes]
        for number, x in enumerate(made):
            if meeting.rank == 2:
                ring.write(x.fill_(number))
                x.fill_(-1)  # it is free again
            else:
                ring.read(x)
        return made

    first, second, _ = together(3, messages)
    for read in (first, second):
        assert [bool((x == number).all()) for number, x in enumerate(read)] == [True] * len(sizes)


def test_a_writer_goes_on_until_a_reader_is_far_behind() -> None:
    def ahead(meeting: Meeting) -> None:
        ring = meeting.ring("next", (0, 1), writer=0)
        assert ring is not None
        if meeting.rank == 0:
            for _ in range(PIECES):
                ring.write(torch.zeros(4))
            with pytest.raises(DistBackendError, match=r"waits for rank 1 in shared m.*not come"):
                ring.write(torch.zeros(4))

    together(2, ahead, timeout_s=0.1)


def test_a_rank_that_hangs_is_named_when_the_timeout_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_memory, "LOOK_S", 0.05)

    def late(meeting: Meeting) -> None:
        exchange = meeting.exchange("tp", (0, 1, 2))
        assert exchange is not None
        if meeting.rank != 1:
            why = "it waits for rank 1 in shared memory: it has not come within 0.2 s"
            with pytest.raises(DistBackendError, match=re.escape(why)):
                exchange.all_reduce(torch.ones(3))

    together(3, late, timeout_s=0.2)


def test_a_rank_that_has_died_is_named_long_before_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 1 is a process that has joined the others and ended since."""
    monkeypatch.setattr(shared_memory, "LOOK_S", 0.05)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = ProcessId.here()
    ticks = start_ticks(process.pid)
    assert ticks is not None
    store = HashStore()
    store.set("tp, 1/1", json.dumps(asdict(replace(here, pid=process.pid, ticks=ticks))))
    exchange = Meeting(store, 0, FOREVER_S).exchange("tp", (0, 1))
    assert exchange is not None
    process.kill()
    process.wait()
    began = time.monotonic()
    with pytest.raises(DistBackendError, match=r"rank 1 in shared memory: Connection closed"):
        exchange.all_reduce(torch.ones(3))
    assert time.monotonic() - began < FOREVER_S / 3


def test_ranks_of_several_hosts_do_not_share_and_all_of_them_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 2 is on another host: it sees another boot."""
    elsewhere = threading.local()
    boot = shared_memory.boot_id()
    monkeypatch.setattr(shared_memory, "boot_id", lambda: getattr(elsewhere, "boot", boot))

    def found(meeting: Meeting) -> tuple[Exchange | None, Exchange | None, Ring | None]:
        if meeting.rank == 2:
            elsewhere.boot = "another"
        near = meeting.exchange("near", (0, 1)) if meeting.rank < 2 else None
        return near, meeting.exchange("far", (0, 1, 2)), meeting.ring("ring", (0, 1, 2), 2)

    (near0, *far0), (near1, *far1), (_, *far2) = together(3, found)
    assert near0 is not None
    assert near1 is not None
    assert far0 == far1 == far2 == [None, None]


def test_memory_that_cannot_be_opened_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The id of the process is one of another namespace, so that something else is there."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    found = together(2, lambda meeting: meeting.exchange("tp", (0, 1)))
    assert found == [None, None]


def test_nothing_of_it_has_a_name_in_a_file_system() -> None:
    before = sorted(os.listdir("/dev/shm"))

    def shared(meeting: Meeting) -> list[str]:
        exchange = meeting.exchange("tp", (0, 1))
        assert exchange is not None
        exchange.all_reduce(torch.ones(3))
        maps = Path("/proc/self/maps").read_text().splitlines()
        return [line.split(maxsplit=5)[5] for line in maps if "collectives" in line]

    for mapped in together(2, shared):
        assert mapped
        assert all(name.startswith("/memfd:") and name.endswith("(deleted)") for name in mapped)
    assert sorted(os.listdir("/dev/shm")) == before


@pytest.mark.ranks
def test_tokens_and_counted_bytes_are_those_of_gloo(
    pool: Pool, checkpoint: Callable[[str], Path]
) -> None:
    shape = read_shape(checkpoint("Qwen2"))
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=4)
    made = []
    for allreduce in ("gloo", "shm"):
        switches = Switches(allreduce=allreduce)
        plan = engine_plan("tp2pp2", shape, checkpoint("Qwen2"), work, switches=switches)
        try:
            assert [one.settings for one in pool.build(plan)] == [{"collectives": allreduce}] * 4
            reports = pool.call("run", [(work,)] * 4)
        finally:
            pool.call("close", [()] * 4)
        counted = [one.collectives.to_pylist() for one in reports if one.collectives is not None]
        made.append((tokens(reports), counted))
    assert made[0] == made[1]
