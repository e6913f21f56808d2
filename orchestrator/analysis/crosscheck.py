"""Two measures of the same thing against each other: what the collectives of a run had to send
against what the NVLink counters saw, and sampled power against the energy counters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.analysis.energy import Joules, joules
from orchestrator.analysis.samples import TOLERANCE, Sampled, Trace
from strategies.peer_sums import way_of
from strategies.placement import Placement
from strategies.traffic import bus_factor, sent_factor
from workers.messages import EnginePlan, RankReport
from workers.records import COLLECTIVES, CollectiveRow
from workers.rows import column, nothing, row
from workers.units import format_bytes

COUNTER = "nvlink_tx_bytes"
# Bytes are compared where messages of this size and more carry most of them.
LARGE = 1 << 20
# What NCCL's protocols put on a link for each byte of a message, and below which size of message
# NCCL may choose them: LL has a flag of 4 bytes with every 4, LL128 one of 8 with every 120. The
# limits are generous: on two H200, NCCL 2.28.9 takes LL for an all-reduce of 1.6 MB and for none
# of 2.6 MB; the more GPUs, the larger.
PROTOCOLS = ((4 << 20, 2.0), (64 << 20, 128 / 120))
EDGE = 0.01  # of the run's duration: as much may be missing from the samples at either end
UNCOUNTED = 64 << 20  # bytes over NVLink that are not there by chance


@row
class Crosscheck:
    """Two measures of the same thing against each other; null where there is only one."""

    nvlink_over_counted: float | None = column(
        "bytes that the GPUs' NVLink counters saw, over those that the counted collectives had to "
        "send",
        "1",
        over_runs="mean",
    )
    nvlink_over_counted_limit: float | None = column(
        "what that ratio comes to where every message is sent by the most wasteful protocol that "
        "may be chosen for its size",
        "1",
        over_runs="mean",
    )
    nvlink_reasons: str | None = column("why the two were not compared", over_runs="first")
    energy_over_counter: float | None = column(
        "energy by sampled power, over that of the GPUs' own counters in the same time",
        "1",
        over_runs="mean",
    )
    crosscheck_reasons: str | None = column(
        "which of these are further apart than they may be; null where none is", over_runs="first"
    )


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes that the ranks of a run had to send. payload: of the messages. large: of messages of
    LARGE and more. most: that go over the links if every message is sent by the most wasteful
    protocol."""

    payload: float
    large: float
    most: float


def crosscheck_of(
    seen: Sampled | None, reports: Sequence[RankReport], plan: EnginePlan
) -> Crosscheck:
    """The cross-checks of a run, from what was sampled in it and the collectives it counted."""
    if seen is None:
        return replace(nothing(Crosscheck), nvlink_reasons="no GPU was sampled")
    sent, energy = _sent(reports, plan), joules(seen)
    why = next(_obstacles(seen, sent, plan), None)
    ratio = limit = None
    if sent is not None and why is None:
        ratio, limit = _nvlink_bytes(seen) / sent.payload, sent.most / sent.payload
    reasons = [*_uncounted(seen, sent), *_nvlink_apart(ratio, limit), *_energy_apart(energy)]
    return Crosscheck(
        nvlink_over_counted=ratio,
        nvlink_over_counted_limit=limit,
        nvlink_reasons=why,
        energy_over_counter=None if energy is None else energy.sampled / energy.counted,
        crosscheck_reasons="; ".join(reasons) or None,
    )


def sentences(of: Mapping[str, Crosscheck]) -> Iterator[str]:
    """Which two measures of the same thing disagree; nothing where all agree. of: the cross-checks
    of each layout by its name."""
    for name, one in of.items():
        if one.crosscheck_reasons:
            yield f"Cross-check of {name} failed in a run: {one.crosscheck_reasons}."


def sent_by(
    collectives: Iterable[CollectiveRow], placement: Placement, allreduce: str = "nccl"
) -> Sent | None:
    """What these collectives had to send; None where that is not known of one of them.

    The size of a message is the mean of its operation, axis, phase and rank. allreduce: what sums
    over tp, as `--allreduce` has it.
    """
    payload = large = most = 0.0
    for one in collectives:
        ranks = placement.degree(one.axis)
        factor = sent_factor(one.op, ranks)
        if factor is None or one.bytes is None or ranks < 2:
            return None
        bytes_, message = factor * one.bytes, one.bytes / max(one.calls, 1)
        payload += bytes_
        large += bytes_ if message >= LARGE else 0.0
        is_sum = (one.op, one.axis) == ("all_reduce", "tp")
        op = way_of(allreduce, ranks, message) if is_sum else None
        by_peers = one.bytes * bus_factor(op, ranks) if op else 0.0
        most += max(bytes_ * _most_wasteful(message), by_peers)
    return Sent(payload, large, most)


def _sent(reports: Sequence[RankReport], plan: EnginePlan) -> Sent | None:
    """What all ranks had to send; None where one did not count it."""
    tables = [report.collectives for report in reports if report.collectives is not None]
    if len(tables) < len(reports):
        return None
    rows = (one for table in tables for one in COLLECTIVES.rows(table))
    return sent_by(rows, plan.placement, plan.switches.allreduce or "nccl")


def _most_wasteful(message: float) -> float:
    """Bytes on a link, at most, for each byte of a message of so many bytes."""
    return next((wire for below, wire in PROTOCOLS if message < below), 1.0)


def _obstacles(seen: Sampled, sent: Sent | None, plan: EnginePlan) -> Iterator[str]:
    """Why the bytes that were counted cannot be set against the NVLink counters."""
    with_counters = sum(bool(len(trace.known(COUNTER)[0])) for trace in seen.traces)
    if sent is None:
        yield "what its collectives send was not counted"
    elif not sent.payload:
        yield "nothing was sent"
    elif sent.large < sent.payload / 2:
        share = 100 * sent.large / sent.payload
        yield (
            f"messages of {LARGE >> 20} MiB and more carry {share:.0f}% of the bytes; NCCL may "
            "double smaller ones"
        )
    if plan.ablation == "p2p":
        yield "NCCL was kept from using NVLink"
    if _several_nodes(seen):
        yield "its GPUs are in several nodes"
    if with_counters < seen.num_gpus:
        yield f"no NVLink counters on {seen.num_gpus - with_counters} of {seen.num_gpus} GPUs"
    elif not all(_covers(trace, seen.duration) for trace in seen.traces):
        yield "the samples do not cover the run"


def _uncounted(seen: Sampled, sent: Sent | None) -> Iterator[str]:
    """What went over NVLink while no collective was counted."""
    saw = _nvlink_bytes(seen)
    if sent is not None and not sent.payload and saw >= UNCOUNTED:
        yield f"NVLink counters saw {format_bytes(saw)}, and no collective was counted"


def _nvlink_apart(ratio: float | None, limit: float | None) -> Iterator[str]:
    if ratio is None or limit is None or 1 - TOLERANCE <= ratio <= limit * (1 + TOLERANCE):
        return
    expected = "1.00" if limit < 1.005 else f"1.00 to {limit:.2f}"
    yield f"NVLink counters saw {ratio:.2f} of the bytes counted, {expected} expected"


def _energy_apart(energy: Joules | None) -> Iterator[str]:
    if energy is not None and not energy.agree:
        yield str(energy)


def _nvlink_bytes(seen: Sampled) -> int:
    """Bytes that all GPUs sent, up to the last sample: that is taken when every rank has ended."""
    counts = [trace.known(COUNTER)[1] for trace in seen.traces]
    return sum(int(one[-1]) for one in counts if len(one))


def _covers(trace: Trace, duration: float) -> bool:
    """Whether the counter was read from the run's start to its end."""
    times, _ = trace.known(COUNTER)
    return bool(times[0] <= EDGE * duration and times[-1] >= (1 - EDGE) * duration)


def _several_nodes(seen: Sampled) -> bool:
    """Whether two GPUs have the same number, so that they cannot be in one node."""
    gpus = {one.gpu_uuid: one.gpu for one in seen.rows if one.gpu_uuid is not None}
    return len(set(gpus.values())) < len(gpus)
