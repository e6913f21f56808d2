"""The order in which the schedules of torch.distributed.pipelining compute, played through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch.distributed.pipelining import schedules

SCHEDULES = {
    "gpipe": schedules.ScheduleGPipe,
    "1f1b": schedules.Schedule1F1B,
    "interleaved": schedules.ScheduleInterleaved1F1B,
}
KINDS = {"FORWARD": "F", "FULL_BACKWARD": "B"}
TICKS = {"F": 1, "B": 2}  # a backward pass is two forward passes of work


class Act(NamedTuple):
    """`kind`, "F" or "B", of a micro-batch through a stage."""

    kind: str
    stage: int
    micro_batch: int


def order_of(name: str, ranks: int, count: int) -> dict[int, list[Act]]:
    """What each rank computes, of `count` micro-batches; interleaved, of two stages a rank. Raises
    ValueError where the schedule refuses them."""
    chunks = 2 if name == "interleaved" else 1
    stages = [
        SimpleNamespace(
            num_stages=ranks * chunks, group_size=ranks, group_rank=0, is_last=False,
            has_backward=True, stage_index=ranks * chunk,
        )
        for chunk in range(chunks)
    ]  # fmt: skip
    schedule = SCHEDULES[name](stages if chunks > 1 else stages[0], count, loss_fn=sum)
    return {rank: list(acts_of(actions)) for rank, actions in schedule.pipeline_order.items()}


def acts_of(actions: Sequence[Any]) -> Iterator[Act]:
    """The passes of one rank. Micro-batches are counted here: torch's order of 1F1B has passes in
    the right places, and names some of them one micro-batch late."""
    seen: Counter[tuple[str, int]] = Counter()
    for action in filter(None, actions):
        kind = KINDS.get(action.computation_type.name)
        if kind:
            yield Act(kind, action.stage_index, seen[kind, action.stage_index])
            seen[kind, action.stage_index] += 1


def waiting_share(order: dict[int, list[Act]]) -> float:
    """The share of the whole time that rank 0 waits, where sending takes none."""
    done: dict[Act, int] = {}
    at, left = dict.fromkeys(order, 0), {rank: list(acts) for rank, acts in order.items()}
    last = max(act.stage for acts in order.values() for act in acts)
    while any(left.values()):
        before = len(done)
        for rank, acts in left.items():
            while acts and all(need in done for need in needed(acts[0], last)):
                act = acts.pop(0)
                start = max([at[rank], *(done[need] for need in needed(act, last))])
                at[rank] = done[act] = start + TICKS[act.kind]
        assert len(done) > before, f"ranks wait for each other: {left}"
    return 1 - sum(TICKS[act.kind] for act in order[0]) / max(at.values())


def needed(act: Act, last: int) -> list[Act]:
    """What must be computed before `act`; last: the last stage."""
    before = act.stage - 1 if act.kind == "F" else act.stage + 1
    found = [act._replace(stage=before)] if 0 <= before <= last else []
    return found if act.kind == "F" else [*found, act._replace(kind="F")]


def most_in_flight(acts: list[Act]) -> int:
    """The most micro-batches times stages that have gone forward and not yet back."""
    now, most = 0, 0
    for act in acts:
        now += 1 if act.kind == "F" else -1
        most = max(most, now)
    return most
