"""Which rank hangs, out of those that have not answered.

A collective waits for its last rank, so all ranks of a group are late where one hangs. It is the
one that is in no collective, or where the host does not wait for the device, the one that has
launched the fewest steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.ranks import Place
from workers.progress import Stand, stand_of

ANSWER_S = 5.0


def stands_of(places: Sequence[Place], embedded: bool) -> list[Stand | None]:
    """Where the processes at `places` stand: read on this machine, or by a task on their nodes.
    None of one that cannot be asked."""
    if embedded:
        return [stand_of(place.pid, place.progress_fd) for place in places]
    task = ray.remote(num_cpus=0, max_retries=0)(stand_of)
    refs = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node_id, soft=False)
        ).remote(place.pid, place.progress_fd)
        for place in places
    ]
    try:
        found: list[Stand | None] = ray.get(refs, timeout=ANSWER_S)
    except RayError:
        return [None] * len(places)
    return found


def hanging(stands: Mapping[int, Stand | None]) -> str:
    """Of ranks that have not answered, in words: for which the others wait."""
    known = {rank: stand for rank, stand in stands.items() if stand is not None}
    where = " and ".join(sorted({stand.collective for stand in known.values()} - {""}))
    late = f"waiting for {_named(list(stands))}{f' in {where}' if where else ''}"
    if len(stands) < 2 or len(known) < len(stands):
        return late
    outside = [rank for rank, stand in known.items() if not stand.waits]
    if 0 < len(outside) < len(known):
        return f"{_named(outside)} hangs: the others wait for it in {where or 'a collective'}"
    fewest = min(stand.steps for stand in known.values())
    behind = [rank for rank, stand in known.items() if stand.steps == fewest]
    if len(behind) < len(known):
        return f"{_named(behind)} hangs: after {fewest} steps, the others are ahead"
    return late


def _named(ranks: Sequence[int]) -> str:
    return f"rank {', '.join(map(str, ranks))}"
