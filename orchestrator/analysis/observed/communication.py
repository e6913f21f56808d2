"""What communication costs a step: columns of the summary.

The parts of a step are of the observed run of a cell and start. They are kept once, and put beside
each of its runs when the results are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median

from orchestrator.analysis.observed.accounting import PARTS, PartsRow
from orchestrator.analysis.observed.booking import WAITS
from workers.records import DECODE, PREFILL, PROFILE_LIMIT
from workers.rows import column, group, grouped, nothing, row

UNSEEN = "no step was observed"
# Mean of the observed decode steps over their median, above which it tells of a step that was held
# up. Without such a step it is 1.20 at most in the results under docs/results, with one 1.53.
HELD_UP_LIMIT = 1.25
AWAITED_PCT = 10.0  # of a step, by which others wait longer than the rank that they wait for
KERNEL = "a kernel that is no communication runs"
TRANSFER = "data of a collective or a hand-over move, and nothing computes"
WAIT = "a collective waits for its last rank, and nothing computes"
WAIT_COMPUTE = "exposed wait for a rank that computed longer"
WAIT_LAUNCH = "exposed wait for a rank on which nothing ran for longer: its host was late"
WAIT_COMMUNICATION = (
    "exposed wait for a rank that communicated longer, or in a call that ended later here"
)
BUBBLE = "a hand-over waits for another pipeline stage, and nothing computes"
FUSED = "a kernel that communicates and computes runs, all of its ranks having come"
BUSY = "communication goes on, hidden by compute or not"
EXPOSED = "exposed transfer and exposed wait together; what fused kernels move is not in it"


@row
class Share:
    """A part of a step: the mean over ranks, and the rank that has most of it."""

    ms: float | None = column(
        "{about}: time of a step, mean over ranks", "ms", over_runs="mean", better="lower"
    )
    ms_worst: float | None = column(
        "{about}: most of a rank", "ms", over_runs="mean", better="lower"
    )
    pct: float | None = column(
        "{about}: share of a step, mean over ranks",
        "%",
        formula="100 x part / step, of each rank",
        over_runs="mean",
    )
    pct_worst: float | None = column("{about}: greatest share of a rank", "%", over_runs="mean")


@row
class PhaseParts:
    """A step of one phase, taken apart. compute, exposed transfer, exposed wait, bubble, fused and
    launch gap sum to it; wait_compute, wait_launch and wait_communication to the exposed wait."""

    step_ms: float | None = column(
        "a step of the observed run, mean over ranks", "ms", over_runs="mean", better="lower"
    )
    step_ms_worst: float | None = column(
        "the longest mean step of a rank", "ms", over_runs="mean", better="lower"
    )
    steps_unmatched: int | None = column(
        "steps left out, most of a rank: their calls do not agree over ranks or were not seen",
        "1",
        over_runs="max",
    )
    profile_ratio: float | None = column(
        "a profiled step over a timed one, median over steps, mean over ranks",
        "1",
        over_runs="mean",
    )
    attention_ms: float | None = column(
        "attention of its fullest step, all layers of a rank, run by itself, mean over ranks",
        "ms",
        over_runs="mean",
        better="lower",
    )
    attention_tflops: float | None = column(
        "arithmetic of that attention over its time, mean over ranks",
        "TFLOP/s",
        formula="4 x heads x head_dim x pairs of tokens / time",
        source="Dao et al. 2022",
        over_runs="mean",
        better="higher",
    )
    step_reason: str | None = column("why the parts of the step are null", over_runs="first")
    compute: Share = group("compute_{}", KERNEL)
    exposed_transfer: Share = group("exposed_transfer_{}", TRANSFER, better="lower")
    exposed_wait: Share = group("exposed_wait_{}", WAIT, better="lower")
    wait_compute: Share = group("wait_compute_{}", WAIT_COMPUTE, better="lower")
    wait_launch: Share = group("wait_launch_{}", WAIT_LAUNCH, better="lower")
    wait_communication: Share = group("wait_communication_{}", WAIT_COMMUNICATION, better="lower")
    bubble: Share = group("bubble_{}", BUBBLE, better="lower")
    fused: Share = group("fused_{}", FUSED)
    launch_gap: Share = group("launch_gap_{}", "nothing runs", better="lower")
    comm_busy: Share = group("comm_busy_{}", BUSY, better="lower")
    comm_exposed: Share = group("comm_exposed_{}", EXPOSED, better="lower")


@row
class StepParts:
    """The steps of the observed run. Decode has the plain names, prefill the prefix `prefill_`."""

    decode: PhaseParts = group()
    prefill: PhaseParts = group("prefill_{}")


@row
class SlowestRank:
    """The rank of a layout over several nodes that slows the others down."""

    awaited: str | None = column(
        "for which rank the others wait in decode steps, with its node; null where none stands "
        "out, or all are on one node",
        over_runs="first",
    )


ALONE = (*PARTS, *WAITS, "comm_busy")
SHARES = {part: (part,) for part in ALONE} | {"comm_exposed": ("exposed_transfer", "exposed_wait")}


# -- the step


def step_parts_of(rows: Sequence[PartsRow]) -> StepParts:
    """The columns of a cell's steps, from its rows of the table `parts`; without any, why."""
    if not rows:
        unseen = replace(nothing(PhaseParts), step_reason=UNSEEN)
        return StepParts(decode=unseen, prefill=unseen)
    return StepParts(decode=_phase_parts(rows, DECODE), prefill=_phase_parts(rows, PREFILL))


def _phase_parts(rows: Sequence[PartsRow], phase: str) -> PhaseParts:
    ranks = [one for one in rows if one.phase == phase and one.step_ms != 0]
    steps = _known(ranks, "step")
    reason = why_unknown(ranks)
    left_out = [one.steps_unmatched for one in ranks if one.steps_unmatched is not None]
    shares = {
        part: nothing(Share) if reason else _share(ranks, steps, parts)
        for part, parts in SHARES.items()
    }
    return PhaseParts(
        step_ms=mean(steps),
        step_ms_worst=max(steps, default=None),
        steps_unmatched=max(left_out, default=None),
        profile_ratio=profile_ratio(ranks),
        attention_ms=mean([one.attention_ms for one in ranks if one.attention_ms is not None]),
        attention_tflops=mean(
            [one.attention_tflops for one in ranks if one.attention_tflops is not None]
        ),
        step_reason=reason,
        **shares,
    )


def profile_ratio(ranks: Sequence[PartsRow]) -> float | None:
    """A profiled step of a phase over a timed one, mean over its ranks; None where not known."""
    return mean([one.profile_ratio for one in ranks if one.profile_ratio is not None])


def why_unknown(ranks: Sequence[PartsRow]) -> str | None:
    """Why the parts of a step say nothing, from the rows of one phase; None where they do.

    A mean over some of the ranks, or of steps that the profiler has made longer, is none of the
    layout.
    """
    without = next((one for one in ranks if one.step_ms is None), None)
    if without is not None:
        return f"no step of rank {without.rank} is left: {without.reason}"
    ratio = profile_ratio(ranks)
    if ratio is not None and ratio > PROFILE_LIMIT:
        digits = next(digits for digits in range(2, 18) if round(ratio, digits) > PROFILE_LIMIT)
        return f"the profiled pass takes {ratio:.{digits}f} of the timed one"
    held_up = max(map(_mean_over_median, ranks), default=0.0)
    if held_up > HELD_UP_LIMIT:
        return f"a step was held up: a mean one takes {held_up:.2f} of a median one"
    return None


def _mean_over_median(one: PartsRow) -> float:
    """Of the observed decode steps, without bubbles, which may be as uneven; 0 where it is not
    known. Passes over prompts have as many tokens as come."""
    if one.phase != DECODE or not one.profile_ratio or one.timed_step_ms is None:
        return 0.0
    return ((one.step_ms or 0.0) - (one.bubble_ms or 0.0)) / (one.profile_ratio * one.timed_step_ms)


def _known(ranks: Sequence[PartsRow], *parts: str) -> list[float]:
    """Milliseconds of `parts` together, of each rank that knows them."""
    found = [[getattr(one, f"{part}_ms") for part in parts] for one in ranks]
    return [sum(values) for values in found if None not in values]


def _share(ranks: Sequence[PartsRow], steps_ms: Sequence[float], parts: Sequence[str]) -> Share:
    """The share of `parts` together; null where results are older than one of them."""
    took_ms = _known(ranks, *parts)
    if len(took_ms) < len(steps_ms):
        return nothing(Share)
    percents = [100.0 * took / step for took, step in zip(took_ms, steps_ms, strict=True)]
    return Share(
        ms=mean(took_ms),
        ms_worst=max(took_ms, default=None),
        pct=mean(percents),
        pct_worst=max(percents, default=None),
    )


def exposed(rows: Iterable[PartsRow]) -> list[tuple[int, str, float]]:
    """(rank, phase, exposed communication in percent of the step), for each row of a phase whose
    parts are known."""
    phases = grouped((one for one in rows if one.step_ms != 0), lambda one: one.phase)
    known = [one for ranks in phases.values() if not why_unknown(ranks) for one in ranks]
    return [
        (one.rank, one.phase, 100.0 * sum(_known([one], *SHARES["comm_exposed"])) / one.step_ms)
        for one in known
        if one.step_ms
    ]


def mean(values: Sequence[float]) -> float | None:
    """Of values; None without any."""
    return sum(values) / len(values) if values else None


def slowest_of(rows: Sequence[PartsRow], nodes: Sequence[str]) -> SlowestRank:
    """The column of a cell's slowest rank. rows: of all its ranks. nodes: rank -> its node."""
    idle = {
        one.rank: 100 * ((one.exposed_wait_ms or 0.0) + (one.bubble_ms or 0.0)) / one.step_ms
        for one in rows
        if one.phase == DECODE and one.step_ms
    }
    if len(idle) < 2 or len(set(nodes)) < 2:
        return nothing(SlowestRank)
    slow = min(idle, key=lambda rank: idle[rank])
    others = median(share for rank, share in idle.items() if rank != slow)
    if others - idle[slow] < AWAITED_PCT:
        return nothing(SlowestRank)
    said = (
        f"the others wait for rank {slow} on node {nodes[slow]}: they spend {others:.0f}% of a "
        f"decode step waiting, it {idle[slow]:.0f}%"
    )
    return SlowestRank(awaited=said)
