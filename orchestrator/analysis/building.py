"""What starting a deployment took, and what it holds in memory."""

from __future__ import annotations

from collections.abc import Sequence

from strategies.memory import kv_bytes_per_token
from workers.messages import Built, EnginePlan, RankReport
from workers.rows import column, row


@row
class Startup:
    """Seconds until the workers of a run served. The slowest rank counts."""

    build_s: float | None = column(
        "from the first build call to the last answer", "s", over_runs="mean", better="lower"
    )
    load_s: float | None = column("loading the weights", "s")
    capture_s: float | None = column("capturing graphs; null without any", "s")
    startup_s: float | None = column(
        "from asking for the actors to the first token", "s", over_runs="mean", better="lower"
    )


@row
class Memory:
    """Bytes on the devices."""

    weight_bytes: int | None = column(
        "weights of the fullest rank", "B", over_runs="first", better="lower"
    )
    kv_tokens: int | None = column(
        "tokens of KV that a replica has room for; null without a paged cache",
        "tokens",
        over_runs="first",
        better="higher",
    )
    peak_memory_bytes: int | None = column(
        "most that was allocated on any rank during the run; on a CPU, resident in its process",
        "B",
        over_runs="max",
        better="lower",
    )
    memory_swing_bytes: int | None = column(
        "most by which memory rose during the run on any rank: what is allocated, above what was "
        "before its first step; where an engine does not count it, the samples' greatest memory of "
        "the GPU, or on a CPU of the process, over their least",
        "B",
        over_runs="mean",
        better="lower",
    )
    peak_memory_bytes_per_rank: Sequence[int] | None = column("the same of each rank", "B")
    weight_bytes_per_rank: Sequence[int] | None = column("weights of each rank", "B")
    kv_bytes_per_rank: Sequence[int] | None = column("paged KV cache of each rank", "B")


def startup_of(built: Sequence[Built], build_s: float, startup_s: float | None) -> Startup:
    """What starting took, from what each rank says of building."""
    captures = [one.capture_s for one in built if one.capture_s is not None]
    return Startup(
        build_s=build_s,
        load_s=max(one.load_s for one in built),
        capture_s=max(captures, default=None),
        startup_s=startup_s,
    )


def memory_of(built: Sequence[Built], plan: EnginePlan, reports: Sequence[RankReport]) -> Memory:
    """What a run held, in rank order. There is no KV where an engine has no paged cache."""
    ranks = sorted(built, key=lambda one: one.rank)
    peaks = [one.peak_memory_bytes for one in sorted(reports, key=lambda one: one.rank)]
    rooms = [one.kv_tokens for one in ranks if one.kv_tokens is not None]
    return Memory(
        weight_bytes=max(one.weight_bytes for one in ranks),
        kv_tokens=min(rooms, default=None),
        peak_memory_bytes=max(peaks, default=None),
        memory_swing_bytes=max(
            (one for one in map(_swing, reports) if one is not None), default=None
        ),
        peak_memory_bytes_per_rank=peaks,
        weight_bytes_per_rank=[one.weight_bytes for one in ranks],
        kv_bytes_per_rank=_kv_bytes(ranks, plan),
    )


def _swing(report: RankReport) -> int | None:
    """By how much the memory of a rank rose in a run; None where nobody knows."""
    if report.memory_swing_bytes is not None or report.telemetry is None:
        return report.memory_swing_bytes
    for name in ("memory_used_bytes", "process_rss_bytes"):
        sizes = [one for one in report.telemetry[name].to_pylist() if one is not None]
        if len(sizes) > 1:
            return int(max(sizes) - min(sizes))
    return None


def _kv_bytes(ranks: Sequence[Built], plan: EnginePlan) -> list[int] | None:
    """tokens x bytes of a token, of each rank; None unless every rank has a paged cache."""
    held = []
    for one in ranks:
        if one.kv_tokens is None:
            return None
        per_token = kv_bytes_per_token(plan.placement, plan.model, one.rank, plan.precision)
        held.append(one.kv_tokens * per_token)
    return held
