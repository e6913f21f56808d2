"""The step taken apart: from the spans of all ranks to compute, transfer, wait, bubble and launch gap.

Each stretch of a rank's time is booked once, by the first that fits:
compute        a kernel that is no communication runs (on a CPU: the host is not in a collective);
transfer       data of a collective or a hand-over moves, and nothing computes;
wait           a collective is there but waits for its last rank, and nothing computes;
bubble         a hand-over between pipeline stages waits for the other stage, and nothing computes;
launch gap     nothing runs at all.

A communication call takes at least as long as its data need, and longer on the ranks that came early. So the shortest of
its durations over the ranks that took part in it is the transfer, at the end of it on every rank; what it took longer is
waiting. Calls are matched by their order within their group, not by clocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from strategies.placement import Placement
from workers.intervals import Span, intersect, length, subtract, union
from workers.records import COMPUTE, SPANS, bus_factor, column, table_schema

HANDOVER = frozenset({"send", "recv", "broadcast"})
EXCERPT = 5  # steps of a phase, the first of which is left out
PARTS = ("compute", "exposed_transfer", "exposed_wait", "bubble", "launch_gap")

# One row per phase and rank of an observed run; milliseconds per step, the five parts sum to step_ms.
PARTS_FIELDS = (
    column("rank", pa.int32(), "1"),
    column("phase", pa.string()),
    column("steps", pa.int32(), "1"),
    column("step_ms", pa.float64(), "ms"),
    *(column(f"{part}_ms", pa.float64(), "ms") for part in PARTS),
    column("comm_busy_ms", pa.float64(), "ms"),
)
# One row per (phase, operation, axis) and rank of an observed run: what its calls took, mean over the calls.
TIMED_FIELDS = (
    column("rank", pa.int32(), "1"),
    column("phase", pa.string()),
    column("op", pa.string()),
    column("axis", pa.string()),
    column("group_size", pa.int32(), "1"),
    column("calls", pa.int64(), "1"),
    column("bytes", pa.int64(), "B"),
    column("transfer_us", pa.float64(), "us"),
    column("wait_us", pa.float64(), "us"),
    column("algbw", pa.float64(), "GB/s"),
    column("busbw", pa.float64(), "GB/s"),
)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One communication call of one rank, and for how long of it (us) its data moved."""

    rank: int
    phase: str
    step: int
    op: str
    axis: str | None
    bytes: int | None
    start: float
    end: float
    transfer: float

    @property
    def moving(self) -> Span:
        return self.end - self.transfer, self.end

    @property
    def waiting(self) -> Span:
        return self.start, self.end - self.transfer


def account(spans: pa.Table | None, placement: Placement) -> dict[str, pa.Table]:
    """The tables of an observed run: spans as they came, `parts` and `timed_collectives`; empty where nothing was seen."""
    seen = SPANS.empty_table() if spans is None else spans
    timed = pa.Table.from_pylist(timed_collectives(seen, placement), table_schema("timed_collectives", TIMED_FIELDS))
    rows = pa.Table.from_pylist(parts(seen, placement), table_schema("parts", PARTS_FIELDS))
    return {"spans": excerpt(seen), "timed_collectives": timed, "parts": rows}


def excerpt(spans: pa.Table) -> pa.Table:
    """The spans of the first steps of each phase beyond its very first: enough to look at, small enough to keep."""
    rows = spans.select(["rank", "phase", "step"]).to_pylist()
    steps: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        steps[row["phase"]].add(row["step"])
    kept = {(phase, step) for phase, found in steps.items() for step in sorted(found)[1:EXCERPT]}
    if not kept:
        return spans
    return spans.filter(pa.array([(row["phase"], row["step"]) in kept for row in rows]))


def match(spans: pa.Table, placement: Placement) -> list[Transfer]:
    """Every communication call in a table of the schema SPANS, matched with those of the other ranks."""
    calls = sorted((row for row in spans.to_pylist() if row["kind"] != COMPUTE), key=lambda row: row["start_us"])
    order: dict[tuple[Any, ...], int] = defaultdict(int)
    keys = []
    for row in calls:
        channel = _channel(row, placement)
        mine = (row["rank"], channel)
        keys.append((channel, order[mine]))
        order[mine] += 1
    shortest: dict[tuple[Any, ...], float] = {}
    for key, row in zip(keys, calls, strict=True):
        took = row["end_us"] - row["start_us"]
        shortest[key] = min(took, shortest.get(key, took))
    return [
        Transfer(
            row["rank"], row["phase"], row["step"], row["kind"], row["axis"], row["bytes"],
            row["start_us"], row["end_us"], shortest[key],
        )
        for key, row in zip(keys, calls, strict=True)
    ]  # fmt: skip


def _channel(row: Mapping[str, Any], placement: Placement) -> tuple[Any, ...]:
    """What a call's counterparts on other ranks have in common with it: group and operation; a send and its receive are one."""
    rank, axis, op = row["rank"], row["axis"], row["kind"]
    if axis is None:
        return (rank, op)
    group = placement.group(axis, rank)
    if op == "send":
        return ("hand", rank, group[group.index(rank) + 1])
    if op == "recv":
        return ("hand", group[group.index(rank) - 1], rank)
    return (op, group)


def parts(spans: pa.Table, placement: Placement) -> list[dict[str, Any]]:
    """Rows of PARTS_FIELDS. spans: of all ranks, in the schema SPANS.

    A step lasts from the end of the one before to its own end. The first step of a phase is left out where there are
    more: it waits for ranks that began later.
    """
    calls = match(spans, placement)
    rows = spans.to_pylist()
    out = []
    for rank in sorted({row["rank"] for row in rows}):
        mine = [row for row in rows if row["rank"] == rank]
        booked, busy = _book(mine, [call for call in calls if call.rank == rank])
        for phase, windows in _windows(mine).items():
            steps, within = len(windows), union(windows)
            per_step = {part: length(intersect(booked[part], within)) / steps / 1e3 for part in PARTS[:-1]}
            step_ms = length(within) / steps / 1e3
            out.append({
                "rank": rank, "phase": phase, "steps": steps, "step_ms": step_ms,
                **{f"{part}_ms": value for part, value in per_step.items()},
                "launch_gap_ms": step_ms - sum(per_step.values()),
                "comm_busy_ms": length(intersect(busy, within)) / steps / 1e3,
            })  # fmt: skip
    return out


def _book(rows: Sequence[Mapping[str, Any]], calls: Sequence[Transfer]) -> tuple[dict[str, list[Span]], list[Span]]:
    """One rank's time by part, without overlaps, and the time in which it communicated, hidden or not."""
    compute = union((row["start_us"], row["end_us"]) for row in rows if row["kind"] == COMPUTE)
    moving = union(call.moving for call in calls)
    waiting = union(call.waiting for call in calls if call.op not in HANDOVER)
    idle = union(call.waiting for call in calls if call.op in HANDOVER)
    booked = {"compute": compute, "exposed_transfer": subtract(moving, compute)}
    taken = union(compute + moving)
    booked["exposed_wait"] = subtract(waiting, taken)
    booked["bubble"] = subtract(idle, union(taken + waiting))
    return booked, union(moving + waiting)


def _windows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Span]]:
    """phase -> the steps of one rank. What it sends goes on beside the next step, so it does not end one."""
    ends: dict[tuple[int, str], float] = {}
    starts: dict[tuple[int, str], float] = {}
    for row in rows:
        step = (row["step"], row["phase"])
        starts[step] = min(row["start_us"], starts.get(step, row["start_us"]))
        if row["kind"] != "send":
            ends[step] = max(row["end_us"], ends.get(step, row["end_us"]))
    out: dict[str, list[Span]] = defaultdict(list)
    before: float | None = None
    for step in sorted(ends):
        begin = starts[step] if before is None else before
        before = max(ends[step], begin)
        out[step[1]].append((begin, before))
    return {phase: windows[1:] if len(windows) > 1 else windows for phase, windows in out.items()}


def timed_collectives(spans: pa.Table, placement: Placement) -> list[dict[str, Any]]:
    """Rows of TIMED_FIELDS. Bandwidths in GB/s of 1e9 bytes: bytes over transfer, and that x the bus factor."""
    groups: dict[tuple[int, str, str, str], list[Transfer]] = defaultdict(list)
    for call in match(spans, placement):
        if call.axis is not None:
            groups[call.rank, call.phase, call.op, call.axis].append(call)
    return [_timed(key, calls, placement.degree(key[3])) for key, calls in sorted(groups.items())]


def _timed(key: tuple[int, str, str, str], calls: Sequence[Transfer], ranks: int) -> dict[str, Any]:
    rank, phase, op, axis = key
    moved = sum(call.bytes or 0 for call in calls)
    took = sum(call.transfer for call in calls)
    waited = sum(call.end - call.start for call in calls) - took
    algbw = moved / took / 1e3 if took else None
    return {
        "rank": rank, "phase": phase, "op": op, "axis": axis, "group_size": ranks, "calls": len(calls), "bytes": moved,
        "transfer_us": took / len(calls), "wait_us": waited / len(calls),
        "algbw": algbw, "busbw": algbw and algbw * bus_factor(op, ranks),
    }  # fmt: skip


def shares(rows: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """The summary's columns: each part in percent of the step, mean over ranks, `_worst` the largest of a rank.

    comm_exposed is transfer and wait together. Decode has the plain names, prefill the prefix `prefill_`.
    """
    kept = list(rows)
    out: dict[str, float | None] = {}
    for phase, prefix in (("decode", ""), ("prefill", "prefill_")):
        ranks = [row for row in kept if row["phase"] == phase and row["step_ms"] > 0]
        for name, fields in SHARES.items():
            values = [100.0 * sum(row[field] for field in fields) / row["step_ms"] for row in ranks]
            out[f"{prefix}{name}_pct"] = sum(values) / len(values) if values else None
            out[f"{prefix}{name}_pct_worst"] = max(values, default=None)
    return out


def exposed(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, str, float]]:
    """(rank, phase, exposed communication in percent of the step) of rows of PARTS_FIELDS."""
    fields = SHARES["comm_exposed"]
    steps = [row for row in rows if row["step_ms"] > 0]
    return [(row["rank"], row["phase"], 100.0 * sum(row[field] for field in fields) / row["step_ms"]) for row in steps]


SHARES = {
    **{part: (f"{part}_ms",) for part in PARTS},
    "comm_busy": ("comm_busy_ms",),
    "comm_exposed": ("exposed_transfer_ms", "exposed_wait_ms"),
}
SHARE_COLUMNS = tuple(shares(()))
