"""An engine that does as it is told, to try what the driver does when something goes wrong.

Each request's prompt starts with an order, so that a test says with its work what should happen,
and on which rank.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from workers.messages import Built, EnginePlan, RankReport, Request, Work
from workers.records import COLLECTIVES, COMPUTE, REQUESTS, SPANS, STEPS, to_table

SERVE, RAISE, RAISE_OOM, DIE, DIE_AND_BREAK, HANG = range(6)
TOKEN_S = 0.01

# An installed distribution, as far as entry points are concerned: a folder beside the code.
ENTRY_POINTS = "[orchestrator.engines]\nfake = fake_engine:FakeEngine\n"
METADATA = "Metadata-Version: 2.1\nName: fake-engine\nVersion: 1\n"


def install(folder: Path) -> Path:
    """Make `folder`, once on the path, a place where the engine 'fake' is installed."""
    info = folder / "fake_engine-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "fake_engine.py").write_text(Path(__file__).read_text())
    return folder


def requests(
    count: int, order: int = SERVE, rank: int = 0, output_len: int = 4
) -> tuple[Request, ...]:
    """`count` requests; the first carries `order` to `rank`, the others none."""
    return tuple(
        Request(i, (order if i == 0 else SERVE, rank, 0), output_len) for i in range(count)
    )


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


class FakeEngine:
    """Tokens come every TOKEN_S seconds from the last rank; `prefill_tokens` of the plan is the
    order for `build`."""

    processes = "per_rank"

    def supports(self, plan: EnginePlan) -> str | None:
        return None

    def build(self, context, plan: EnginePlan) -> Built:  # type: ignore[no-untyped-def]
        self.rank, self.ranks = context.rank, plan.placement.num_ranks
        obey(plan.prefill_tokens)
        return Built(
            self.rank,
            load_s=0.1,
            capture_s=0.0,
            weight_bytes=1000,
            kv_tokens=64,
            device_name="fake",
            versions={},
        )

    def run(self, work: Work) -> RankReport:
        order, rank = work.requests[0].prompt[:2]
        if rank == self.rank:
            obey(order)
        elif order == DIE_AND_BREAK:
            raise RuntimeError("[gloo] Connection closed by peer")
        rows = [
            {
                "request_index": r.index,
                "replica": 0,
                "input_len": len(r.prompt),
                "output_len": r.output_len,
                "arrival_s": 0.0,
                "token_times_s": [TOKEN_S * (i + 1) for i in range(r.output_len)],
                "output_token_ids": list(range(r.output_len)),
            }
            for r in work.requests
        ]
        steps = [
            {
                "rank": self.rank,
                "step": 0,
                "phase": "decode",
                "micro_batch": 0,
                "num_requests": 1,
                "num_tokens": 1,
                "end_s": 0.01,
            }
        ]
        sent = [
            {
                "rank": self.rank,
                "phase": "decode",
                "op": "all_reduce",
                "axis": "tp",
                "calls": 3,
                "bytes": 96,
            }
        ]
        spans = to_table(seen(self.rank), SPANS) if work.observe else None
        requests = to_table(rows, REQUESTS) if self.rank == self.ranks - 1 else None
        return RankReport(
            self.rank,
            requests,
            to_table(steps, STEPS),
            to_table(sent, COLLECTIVES),
            100 + self.rank,
            spans=spans,
        )

    def close(self) -> None:
        pass


def seen(rank: int) -> list[dict[str, object]]:
    """Two steps of 10 ms: compute until 7 ms on rank 0 and 6 ms on rank 1, then an all-reduce whose
    data take 3 ms."""
    rows = []
    for step in range(2):
        start, talk, end = step * 1e4, step * 1e4 + 7e3 - 1e3 * rank, step * 1e4 + 1e4
        common = {"rank": rank, "phase": "decode", "step": step}
        rows.append(
            {
                **common,
                "kind": COMPUTE,
                "axis": None,
                "bytes": None,
                "start_us": start,
                "end_us": talk,
            }
        )
        rows.append(
            {
                **common,
                "kind": "all_reduce",
                "axis": "tp",
                "bytes": 96,
                "start_us": talk,
                "end_us": end,
            }
        )
    return rows


def obey(order: int) -> None:
    if order == RAISE:
        raise ValueError("told to raise\nand to say more")
    elif order == RAISE_OOM:
        raise OutOfMemoryError("tried to allocate 20 GiB")
    elif order in (DIE, DIE_AND_BREAK):
        time.sleep(0.2 * (order == DIE_AND_BREAK))  # the others notice before Ray does
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == HANG:
        time.sleep(3600)
