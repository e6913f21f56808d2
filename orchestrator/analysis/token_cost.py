"""What a token costs, cut into parts: the shares of the observed steps, scaled to the timed ones.

A share is of a rank's own step, and ranks spend different times in a phase. So each rank's share
counts with that rank's own timed seconds: the parts of a phase sum to its device time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.analysis.device_time import DeviceTime, PhaseTime
from orchestrator.analysis.observed.accounting import PartsRow
from orchestrator.analysis.observed.communication import PhaseParts, StepParts
from workers.records import DECODE, PREFILL
from workers.rows import column, group, grouped, nothing, row

OPEN_LOOP = (
    "an open loop: the observed run has all its requests at once, so the shares of its steps are "
    "not those of the timed ones"
)

UNSHOWN = "the shares of its steps are not shown"


@row
class Parts:
    """The device time of steps, by what the devices did. These sum to it, without `compute`, which
    is weights, KV, arithmetic and rest together."""

    compute: float | None = column(
        "{about}: a kernel that is no communication runs", "ms", over_runs="mean"
    )
    rest: float | None = column(
        "{about}: compute beyond what the roofline asks for; below 0 where the devices were faster "
        "than the rates it is worked out with",
        "ms",
        formula="compute - weights - kv - arithmetic",
        over_runs="mean",
    )
    transfer: float | None = column(
        "{about}: data move, and nothing computes", "ms", over_runs="mean"
    )
    wait: float | None = column(
        "{about}: a collective waits for its last rank, and nothing computes",
        "ms",
        over_runs="mean",
    )
    fused: float | None = column(
        "{about}: kernels that communicate and compute, where they are told apart",
        "ms",
        over_runs="mean",
    )
    bubble: float | None = column(
        "{about}: a hand-over waits for another stage, and nothing computes", "ms", over_runs="mean"
    )
    launch_gap: float | None = column("{about}: nothing runs", "ms", over_runs="mean")


@row
class TokenCost:
    """What the devices did in the time that `DeviceTime` has. Prefill and decode together have the
    plain names: compute, transfer, wait, fused, bubble, launch gap, ramp and outside sum to
    device_ms_per_token."""

    parts: Parts = group("{}_ms_per_token", "prefill and decode, for each token")
    decode: Parts = group("decode_{}_ms_per_token", "decode, for each token")
    prefill: Parts = group("prefill_{}_ms_per_token", "prefill, for each token")
    decode_cost_reason: str | None = column(
        "why the parts of decode are unknown", over_runs="first"
    )
    prefill_cost_reason: str | None = column(
        "why the parts of prefill are unknown", over_runs="first"
    )
    run_comm_exposed_pct: float | None = column(
        "exposed communication of prefill and decode, share of the device time of the whole run",
        "%",
        formula="100 x (transfer + wait) / device_ms_per_token",
        over_runs="mean",
    )
    run_bubble_pct: float | None = column(
        "waiting for another pipeline stage, share of the device time of the whole run",
        "%",
        formula="100 x bubble / device_ms_per_token",
        over_runs="mean",
    )


# Part -> the column of PartsRow that it is a share of.
SHARES = {
    "compute": "compute_ms",
    "transfer": "exposed_transfer_ms",
    "wait": "exposed_wait_ms",
    "bubble": "bubble_ms",
    "launch_gap": "launch_gap_ms",
}
FUSED = "fused_ms"  # where it is told apart


def token_cost_of(
    time: DeviceTime, tokens: int | None, rows: Iterable[PartsRow], shown: StepParts, is_open: bool
) -> TokenCost:
    """The cost of a token of a run that made `tokens`.

    rows: of the table `parts`, of its start. shown: the columns made of them, which are null where
    the rows say nothing of the layout. is_open: whether its requests arrived by the clock.
    """
    total = time.device_ms_per_token
    if not total or not tokens:
        return nothing(TokenCost)
    seen = grouped(rows, lambda one: one.phase)
    reason = time.device_time_reason or (OPEN_LOOP if is_open else None)
    decode = _Observed.of(time.decode, seen.get(DECODE, ()), shown.decode, reason)
    prefill = _Observed.of(time.prefill, seen.get(PREFILL, ()), shown.prefill, reason)
    of_decode, of_prefill = decode.parts(1e3 / tokens), prefill.parts(1e3 / tokens)
    both = _added(of_decode, of_prefill)
    return TokenCost(
        parts=both,
        decode=of_decode,
        prefill=of_prefill,
        decode_cost_reason=decode.reason,
        prefill_cost_reason=prefill.reason,
        run_comm_exposed_pct=_percent(_plus(both.transfer, both.wait), total),
        run_bubble_pct=_percent(both.bubble, total),
    )


@dataclass(frozen=True, slots=True)
class _Observed:
    """A phase of a timed run with its observed steps.

    ranks: of those that had a step, the seconds and the observed step. reason: why these say
    nothing of it; None where they do.
    """

    time: PhaseTime
    ranks: Sequence[tuple[float, PartsRow]]
    reason: str | None

    @classmethod
    def of(
        cls, time: PhaseTime, rows: Iterable[PartsRow], shown: PhaseParts, reason: str | None
    ) -> _Observed:
        """reason: why the phase cannot be cut whatever was observed, None where it can."""
        known = {one.rank: one for one in rows if one.step_ms and _is_told(one, SHARES.values())}
        busy = [(rank, spent) for rank, spent in enumerate(time.steps_s_per_rank or ()) if spent]
        seen = [(spent, known[rank]) for rank, spent in busy if rank in known]
        if len(seen) < len(busy):
            missing = len(busy) - len(seen)
            unseen = f"the steps of {missing} of {len(busy)} ranks were not taken apart"
            reason = reason or shown.step_reason or unseen
        elif busy and shown.compute.pct is None:
            reason = reason or shown.step_reason or UNSHOWN
        return cls(time, seen, reason)

    def parts(self, per_token: float) -> Parts:
        """per_token: 1000 over the tokens that were made."""
        if self.reason:
            return nothing(Parts)
        found = {part: self._of(column) * per_token for part, column in SHARES.items()}
        least = self.time.roofline
        asked = _plus(_plus(least.weights, least.kv), least.arithmetic)
        return Parts(
            **found,
            rest=None if asked is None else found["compute"] - asked,
            fused=self._of(FUSED) * per_token if self._has(FUSED) else None,
        )

    def _of(self, column: str) -> float:
        """Seconds of a part: of each rank its share with its own time."""
        return float(sum(spent * getattr(one, column) / one.step_ms for spent, one in self.ranks))

    def _has(self, column: str) -> bool:
        return all(_is_told(one, [column]) for _, one in self.ranks)


def _is_told(one: PartsRow, columns: Iterable[str]) -> bool:
    """Whether a row has values in these columns: that of a step that was not to be taken apart has
    none."""
    return all(getattr(one, column) is not None for column in columns)


def _added(one: Parts, other: Parts) -> Parts:
    return Parts(**{part: _plus(value, getattr(other, part)) for part, value in vars(one).items()})


def _plus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _percent(part: float | None, whole: float) -> float | None:
    return None if part is None else 100 * part / whole
