"""What a layout does under a load: of a closed loop in closed form, of an open one by events."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.predict.load import Asked, Share, least_s, median
from orchestrator.predict.open_loop import Replica
from orchestrator.predict.parts import Parts
from orchestrator.predict.passes import Setting
from orchestrator.predict.replica import TooManyPasses, round_s
from strategies.memory import Budget
from workers.messages import dealt

MOST_TOKENS = 500_000  # of an open loop: each may take a pass, and each pass is looked at


@dataclass(frozen=True, slots=True)
class Outcome:
    """seconds: until the last token. parts: GPU-seconds of all GPUs. ttft_s, tpot_s: medians.
    round_s: from one token to the next, while no prompt is read. in_flight: most requests at once;
    requests: of the fullest replica, on average. kept_tokens: for which it keeps KV at most.
    least_s: that hardware of these rates takes at least. late: see `Prediction`."""

    seconds: float
    parts: Parts
    ttft_s: float
    tpot_s: float
    round_s: float
    prefill_s: float
    in_flight: int
    requests: int
    kept_tokens: int
    least_s: float
    late: int = 0


def outcome(setting: Setting, asked: Asked, budget: Budget) -> Outcome:
    """Raises UnknownLink and TooManyPasses."""
    return (_opened if asked.arrivals else _closed)(setting, asked, budget)


def _closed(setting: Setting, asked: Asked, budget: Budget) -> Outcome:
    """Seats are dealt out one by one, so replicas are of two kinds at most, and of those without a
    request."""
    replicas = setting.placed.placement.degree("dp")
    room = budget.kv_tokens // asked.max_len if budget.kv_tokens >= 0 else asked.seats
    fuller = asked.seats % replicas
    kinds = [(0, fuller), (fuller, replicas - fuller)] if fuller else [(0, replicas)]
    shares = [
        Share.of(setting, asked, room, count, first)
        for first, count in kinds
        if first < asked.seats
    ]
    fullest, parts = shares[0], Parts()
    for share in shares:
        parts += share.parts
    return Outcome(
        seconds=max(share.seconds for share in shares),
        parts=parts,
        ttft_s=median(
            (at, count * share.replicas) for share in shares for at, count in share.first_tokens
        ),
        tpot_s=_tpot_s(fullest, asked),
        round_s=fullest.batch.round_s,
        prefill_s=fullest.batch.prefill.seconds,
        in_flight=sum(share.seats * share.replicas for share in shares),
        requests=fullest.seats,
        kept_tokens=fullest.seats * asked.max_len,
        least_s=fullest.least_s,
    )


def _tpot_s(fullest: Share, asked: Asked) -> float:
    """The median time for each further token: a request whose prompt was read early waits for the
    other prompts."""
    batch = fullest.batch
    blocked = batch.prefill.seconds - median(batch.first_tokens)
    return batch.round_s + blocked / max(asked.lengths.passes, 1)


def _opened(setting: Setting, asked: Asked, budget: Budget) -> Outcome:
    """Requests are dealt out over replicas as a run deals them."""
    if asked.tokens > MOST_TOKENS:
        raise TooManyPasses(
            f"{asked.requests} requests make {asked.tokens} tokens, and at most {MOST_TOKENS} are "
            "worked out; ask for fewer requests"
        )
    replicas = _served(setting, asked, budget)
    served = [one for replica in replicas for one in replica.served]
    tpots = [one.tpot_s for one in served if one.tpot_s is not None]
    seconds = max(one.last_s for one in served)
    requests = max(round(replicas[0].inside_s / seconds), 1)
    last_s, each_s = asked.arrivals[-1].at_s, round_s(setting, asked.lengths, requests)
    return Outcome(
        seconds=seconds,
        parts=_parts(setting, replicas),
        ttft_s=statistics.median(one.ttft_s for one in served),
        tpot_s=statistics.median(tpots) if tpots else each_s,
        round_s=each_s,
        prefill_s=max(one.prefill_s for one in replicas),
        in_flight=sum(one.most for one in replicas),
        requests=requests,
        kept_tokens=max(one.most_tokens for one in replicas),
        least_s=max(last_s, least_s(setting, replicas[0].load)),
        late=sum(one.late for one in replicas),
    )


def _served(setting: Setting, asked: Asked, budget: Budget) -> list[Replica]:
    """Those that have a request, the fullest first."""
    replicas, count = setting.placed.placement.degree("dp"), asked.requests
    room = budget.kv_tokens if budget.kv_tokens >= 0 else sum(one.tokens for one in asked.arrivals)
    found = []
    for number in range(min(replicas, asked.seats)):
        mine = dealt(count, asked.max_concurrency, number, replicas)
        one = Replica(setting, mine.seats, room, asked.lengths.prefill_tokens)
        one.serve([asked.arrivals[index] for index in mine.conversations])
        found.append(one)
    return found


def _parts(setting: Setting, replicas: Sequence[Replica]) -> Parts:
    """Of all GPUs: while a replica does something, a stage that does nothing waits for another."""
    placement, stages, parts = setting.placed.placement, len(setting.stages), Parts()
    for one in replicas:
        parts += one.parts + Parts(bubble=one.busy_s * stages - one.parts.seconds)
    ranks = placement.num_ranks // placement.degree("dp")
    return parts.times(ranks / stages).without_noise()
