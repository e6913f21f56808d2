"""An engine that does as it is told, to try what the driver does when something goes wrong.

Each request's prompt starts with an order, so that a test says with its work what should happen,
and on which rank.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pyarrow as pa

from workers.messages import Built, EnginePlan, RankReport, Request, Work
from workers.records import (
    COLLECTIVES,
    COMPUTE,
    REQUESTS,
    SPANS,
    STEPS,
    CollectiveRow,
    RequestRow,
    SpanRow,
    StepRow,
)

SERVE, RAISE, RAISE_OOM, DIE, DIE_AND_BREAK, HANG, HANG_OTHERS_WAIT, PAUSE = range(8)
TOKEN_S = 0.01
PAUSES = "FAKE_ENGINE_PAUSE_S"  # in the environment: how long it pauses
PAUSE_S = float(os.environ.get(PAUSES, "1.5"))  # long enough to be struck in


def install(folder: Path) -> Path:
    """Make `folder`, once on the path, a place where the engine 'fake' is installed."""
    (folder / "fake_engine.py").write_text(Path(__file__).read_text())
    return register(folder, "fake", "fake_engine:FakeEngine")


def register(folder: Path, name: str, where: str, group: str = "orchestrator.engines") -> Path:
    """Have `folder`, once on the path, tell of an engine: `name`, which is made at `where`.

    For entry points, an installed distribution is no more than a folder of metadata.
    """
    info = folder / f"{name}_engine-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-engine\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {where}\n")
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
    """Tokens come every TOKEN_S seconds from the last rank. `prefill_tokens` of the plan is the
    order for `build`; by its `temperature` x TOKEN_S each token takes longer."""

    processes = "per_rank"

    def supports(self, plan: EnginePlan) -> str | None:
        return None

    def build(self, context, plan: EnginePlan) -> Built:  # type: ignore[no-untyped-def]
        self.context = context
        self.rank, self.ranks = context.rank, plan.placement.num_ranks
        self.token_s = TOKEN_S * (1 + plan.temperature)
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
        if rank == self.rank or order == PAUSE:
            obey(order)
        elif order == DIE_AND_BREAK:
            raise RuntimeError("[gloo] Connection closed by peer")
        elif order == HANG_OTHERS_WAIT:
            self.context.barrier()
        reports = self.rank == self.ranks - 1
        return RankReport(
            self.rank,
            requests=served(work, self.token_s) if reports else None,
            steps=STEPS.make([step(self.rank)]),
            collectives=COLLECTIVES.make([sent(self.rank)]),
            peak_memory_bytes=100 + self.rank,
            spans=SPANS.make(seen(self.rank)) if work.observe else None,
        )

    def close(self) -> None:
        pass


def served(work: Work, token_s: float) -> pa.Table:
    """As if every request had come at once and its tokens one every `token_s` seconds."""
    return REQUESTS.make(
        RequestRow(
            request_index=request.index,
            replica=0,
            input_len=len(request.prompt),
            cached_tokens=0,
            output_len=request.output_len,
            arrival_s=0.0,
            admitted_s=None,
            token_times_s=[token_s * (i + 1) for i in range(request.output_len)],
            output_token_ids=list(range(request.output_len)),
        )
        for request in work.requests
    )


def step(rank: int) -> StepRow:
    return StepRow(
        rank=rank, step=0, phase="decode", micro_batch=0, num_requests=1, num_tokens=1, end_s=0.01
    )


def sent(rank: int) -> CollectiveRow:
    return CollectiveRow(rank=rank, phase="decode", op="all_reduce", axis="tp", calls=3, bytes=96)


def seen(rank: int) -> list[SpanRow]:
    """Two steps of 10 ms: compute until 7 ms on rank 0 and 6 ms on rank 1, then an all-reduce whose
    data take 3 ms."""
    rows = []
    for index in range(2):
        start, call, end = index * 1e4, index * 1e4 + 7e3 - 1e3 * rank, index * 1e4 + 1e4
        rows.append(span(rank, index, COMPUTE, start, call))
        rows.append(span(rank, index, "all_reduce", call, end, axis="tp", size=96))
    return rows


def span(
    rank: int,
    index: int,
    kind: str,
    start: float,
    end: float,
    axis: str | None = None,
    size: int | None = None,
) -> SpanRow:
    """A span of a decode step."""
    return SpanRow(
        rank=rank,
        phase="decode",
        step=index,
        kind=kind,
        fused=None,
        axis=axis,
        call_phase=None,
        call_step=None,
        bytes=size,
        start_us=start,
        end_us=end,
    )


def obey(order: int) -> None:
    if order == RAISE:
        raise ValueError("told to raise\nand to say more")
    elif order == RAISE_OOM:
        raise OutOfMemoryError("tried to allocate 20 GiB")
    elif order in (DIE, DIE_AND_BREAK):
        time.sleep(0.2 * (order == DIE_AND_BREAK))  # the others notice before Ray does
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == PAUSE:
        time.sleep(PAUSE_S)
    elif order in (HANG, HANG_OTHERS_WAIT):
        time.sleep(3600)
