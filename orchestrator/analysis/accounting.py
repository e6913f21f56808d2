"""The step taken apart: from the spans of all ranks to compute, transfer, wait, bubble and launch
gap.

Each stretch of a rank's time is booked once, by the first that fits:
compute        a kernel that is no communication runs (on a CPU: the host is not in a collective);
transfer       data of a collective or a hand-over moves, and nothing computes;
wait           a collective is there but waits for its last rank, and nothing computes;
bubble         a hand-over between pipeline stages waits for the other stage, and nothing computes;
launch gap     nothing runs at all.

A communication call takes at least as long as its data need, and longer on the ranks that came
early. So the shortest of its durations over the ranks that took part in it is the transfer, at the
end of it on every rank; what it took longer is waiting. Calls are matched by their order within
their group, not by clocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from strategies.placement import Placement
from workers.intervals import Span, intersect, length, subtract, union
from workers.records import COLLECTIVES, COMPUTE, SPANS, bus_factor, column, table_schema

EDGES = frozenset({"send", "recv"})  # between two stages
HANDOVER = EDGES | {"broadcast"}
EXCERPT = 4  # steps of a phase
PARTS = ("compute", "exposed_transfer", "exposed_wait", "bubble", "launch_gap")

# One row per phase and rank of an observed run; milliseconds per step, the five parts sum to
# step_ms.
PARTS_FIELDS = (
    column("rank", pa.int32(), "1"),
    column("phase", pa.string()),
    column("steps", pa.int32(), "1"),
    column("step_ms", pa.float64(), "ms"),
    *(column(f"{part}_ms", pa.float64(), "ms") for part in PARTS),
    column("comm_busy_ms", pa.float64(), "ms"),
)
# What calls took in an observed run, mean over the calls of a row.
TIMING = (
    column("group_size", pa.int32(), "1"),
    column("transfer_us", pa.float64(), "us"),
    column("wait_us", pa.float64(), "us"),
    column("algbw", pa.float64(), "GB/s"),
    column("busbw", pa.float64(), "GB/s"),
)
OPERATION_KEY = ("rank", "phase", "op", "axis")
TIMED = table_schema(
    "timed_collectives", [*COLLECTIVES, *TIMING]
)  # of an observed run, its calls and bytes included
# Collectives of the engines that are here, by mesh axis; those of others are in the table alone.
OPERATIONS = (
    ("tp", "all_reduce"),
    ("tp", "all_gather"),
    ("pp", "send"),
    ("pp", "recv"),
    ("pp", "broadcast"),
    ("dp", "all_gather"),
    ("dp", "all_reduce"),
)

Step = TypeVar("Step")


@dataclass(frozen=True, slots=True)
class Transfer:
    """One communication call of one rank, and for how long of it (us) its data moved. phase: of the
    tokens it carried."""

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


@dataclass(frozen=True, slots=True)
class Seen:
    """What one rank did: rows of SPANS, its calls matched with those of the others, and the steps
    that count, by phase."""

    rank: int
    rows: Sequence[Mapping[str, Any]]
    calls: Sequence[Transfer]
    steps: Mapping[str, Mapping[int, Span]]


def account(spans: pa.Table | None, placement: Placement) -> dict[str, pa.Table]:
    """The tables of an observed run, from the spans of all ranks: an excerpt of these, `parts`
    (PARTS_FIELDS) and `timed_collectives` (TIMED); empty where nothing was seen. Of each phase its
    `settled` steps count.
    """
    seen = SPANS.empty_table() if spans is None else spans
    ranks = _by_rank(seen.to_pylist(), placement)
    timed = pa.Table.from_pylist(_timed_collectives(ranks, placement), TIMED)
    rows = pa.Table.from_pylist(
        [row for one in ranks for row in _parts(one)], table_schema("parts", PARTS_FIELDS)
    )
    return {"spans": excerpt(seen, placement), "timed_collectives": timed, "parts": rows}


def _by_rank(rows: Sequence[Mapping[str, Any]], placement: Placement) -> list[Seen]:
    mine: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    calls: dict[int, list[Transfer]] = defaultdict(list)
    for row in rows:
        mine[row["rank"]].append(row)
    for call in match(rows, placement):
        calls[call.rank].append(call)
    return [
        Seen(rank, mine[rank], calls[rank], counted_steps(mine[rank], placement))
        for rank in sorted(mine)
    ]


def excerpt(spans: pa.Table, placement: Placement) -> pa.Table:
    """The spans of the first steps of each phase that count: enough to look at, small enough to
    keep."""
    rows = spans.select(["rank", "phase", "step"]).to_pylist()
    steps: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        steps[row["phase"]].add(row["step"])
    kept = {
        (phase, step)
        for phase, found in steps.items()
        for step in settled(phase, sorted(found), placement)[:EXCERPT]
    }
    return spans.filter(
        pa.array([(row["phase"], row["step"]) in kept for row in rows], type=pa.bool_())
    )


def match(rows: Iterable[Mapping[str, Any]], placement: Placement) -> list[Transfer]:
    """Every communication call in rows of the schema SPANS, matched with those of the other
    ranks."""
    calls = sorted((row for row in rows if row["kind"] != COMPUTE), key=lambda row: row["start_us"])
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
            row["rank"],
            row["call_phase"] or row["phase"],
            row["step"],
            row["kind"],
            row["axis"],
            row["bytes"],
            row["start_us"],
            row["end_us"],
            shortest[key],
        )
        for key, row in zip(keys, calls, strict=True)
    ]


def _channel(row: Mapping[str, Any], placement: Placement) -> tuple[Any, ...]:
    """What a call's counterparts on other ranks have in common with it: group and operation; a send
    and its receive are one."""
    rank, axis, op = row["rank"], row["axis"], row["kind"]
    if axis is None:
        return (rank, op)
    group = placement.group(axis, rank)
    if op == "send":
        return ("hand", rank, group[group.index(rank) + 1])
    if op == "recv":
        return ("hand", group[group.index(rank) - 1], rank)
    return (op, group)


def _parts(seen: Seen) -> Iterator[dict[str, Any]]:
    booked, busy = _book(seen.rows, seen.calls)
    for phase, windows in seen.steps.items():
        steps, within = len(windows), union(windows.values())
        per_step = {
            part: length(intersect(booked[part], within)) / steps / 1e3 for part in PARTS[:-1]
        }
        step_ms = length(within) / steps / 1e3
        yield {
            "rank": seen.rank,
            "phase": phase,
            "steps": steps,
            "step_ms": step_ms,
            **{f"{part}_ms": value for part, value in per_step.items()},
            "launch_gap_ms": step_ms - sum(per_step.values()),
            "comm_busy_ms": length(intersect(busy, within)) / steps / 1e3,
        }


def _book(
    rows: Sequence[Mapping[str, Any]], calls: Sequence[Transfer]
) -> tuple[dict[str, list[Span]], list[Span]]:
    """One rank's time by part, without overlaps, and the time in which it communicated, hidden or
    not."""
    compute = union((row["start_us"], row["end_us"]) for row in rows if row["kind"] == COMPUTE)
    moving = union(call.moving for call in calls)
    waiting = union(call.waiting for call in calls if call.op not in HANDOVER)
    idle = union(call.waiting for call in calls if call.op in HANDOVER)
    booked = {"compute": compute, "exposed_transfer": subtract(moving, compute)}
    taken = union(compute + moving)
    booked["exposed_wait"] = subtract(waiting, taken)
    booked["bubble"] = subtract(idle, union(taken + waiting))
    return booked, union(moving + waiting)


def settled(phase: str, steps: Sequence[Step], placement: Placement) -> Sequence[Step]:
    """`steps` of a phase, in order, without the first ones; the last one alone where there are no
    others.

    The first step of prefill waits for ranks that began later. The first decode step of each
    micro-batch, of which there are as many as stages, waits until every other stage is done with
    prefill: of a phase's change, not of its steps.
    """
    return steps[placement.degree("pp") if phase == "decode" else 1 :] or steps[-1:]


def counted_steps(
    rows: Sequence[Mapping[str, Any]], placement: Placement
) -> dict[str, dict[int, Span]]:
    """phase -> step -> when it was, of the `settled` steps of one rank: from the end of the step
    before to its own."""
    return {
        phase: dict(settled(phase, list(found.items()), placement))
        for phase, found in _windows(rows).items()
    }


def _windows(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Span]]:
    """phase -> step -> when it was. What a rank sends goes on beside its next step, so it does not
    end one."""
    ends: dict[tuple[int, str], float] = {}
    starts: dict[tuple[int, str], float] = {}
    for row in rows:
        key = (row["step"], row["phase"])
        starts[key] = min(row["start_us"], starts.get(key, row["start_us"]))
        if row["kind"] != "send":
            ends[key] = max(row["end_us"], ends.get(key, row["end_us"]))
    out: dict[str, dict[int, Span]] = defaultdict(dict)
    before: float | None = None
    for step, phase in sorted(ends):
        begin = starts[step, phase] if before is None else before
        before = max(ends[step, phase], begin)
        out[phase][step] = (begin, before)
    return out


def _timed_collectives(ranks: Iterable[Seen], placement: Placement) -> list[dict[str, Any]]:
    """GB/s of 1e9 bytes: bytes over transfer, and that x the bus factor."""
    groups: dict[tuple[int, str, str, str], list[Transfer]] = defaultdict(list)
    for seen in ranks:
        kept = {step for windows in seen.steps.values() for step in windows}
        for call in seen.calls:
            if call.axis is not None and call.step in kept:
                groups[seen.rank, call.phase, call.op, call.axis].append(call)
    return [
        _timed(key, calls, 2 if key[2] in EDGES else placement.degree(key[3]))
        for key, calls in sorted(groups.items())
    ]


def _timed(key: tuple[int, str, str, str], calls: Sequence[Transfer], ranks: int) -> dict[str, Any]:
    rank, phase, op, axis = key
    sizes = [call.bytes for call in calls if call.bytes is not None]
    moved = sum(sizes) if len(sizes) == len(calls) else None
    took = sum(call.transfer for call in calls)
    waited = sum(call.end - call.start for call in calls) - took
    algbw = moved / took / 1e3 if took and moved is not None else None
    return {
        "rank": rank,
        "phase": phase,
        "op": op,
        "axis": axis,
        "group_size": ranks,
        "calls": len(calls),
        "bytes": moved,
        "transfer_us": took / len(calls),
        "wait_us": waited / len(calls),
        "algbw": algbw,
        "busbw": algbw and algbw * bus_factor(op, ranks),
    }


def shares(rows: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """The summary's columns of the step: each part in ms and in percent of it, mean over ranks,
    `_worst` the largest of a rank.

    comm_exposed is transfer and wait together. Decode has the plain names, prefill the prefix
    `prefill_`.
    """
    kept = list(rows)
    out: dict[str, float | None] = {}
    for phase, prefix in (("decode", ""), ("prefill", "prefill_")):
        ranks = [row for row in kept if row["phase"] == phase and row["step_ms"] > 0]
        out |= _over_ranks(f"{prefix}step_ms", [row["step_ms"] for row in ranks])
        for name, fields in SHARES.items():
            took = [sum(row[field] for field in fields) for row in ranks]
            out |= _over_ranks(f"{prefix}{name}_ms", took)
            out |= _over_ranks(
                f"{prefix}{name}_pct",
                [100.0 * ms / row["step_ms"] for ms, row in zip(took, ranks, strict=True)],
            )
    return out


def _over_ranks(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {
        name: sum(values) / len(values) if values else None,
        f"{name}_worst": max(values, default=None),
    }


def with_timing(collectives: pa.Table, timed: Iterable[Mapping[str, Any]]) -> pa.Table:
    """COLLECTIVES of a run with what an observed run says of the same calls beside it: TIMING, null
    where it says nothing."""
    found = {tuple(row[name] for name in OPERATION_KEY): row for row in timed}
    rows = [
        found.get(tuple(row[name] for name in OPERATION_KEY), {}) for row in collectives.to_pylist()
    ]
    for one in TIMING:
        collectives = collectives.append_column(
            one, pa.array([row.get(one.name) for row in rows], type=one.type)
        )
    return collectives


def operations(collectives: pa.Table | None) -> dict[str, Any]:
    """The summary's columns of each collective and group: of a table made by `with_timing`, rows
    summed over ranks.

    `{axis}_{op}_calls` and `_bytes` are of the timed run, as COLLECTIVES has them; `_algbw` and
    `_busbw` in GB/s are means over ranks. What a layout does not have is null. Prefill has the
    prefix `prefill_`.
    """
    rows = collectives.to_pylist() if collectives is not None else []
    out: dict[str, Any] = {}
    for phase, prefix in (("decode", ""), ("prefill", "prefill_")):
        for axis, op in OPERATIONS:
            mine = [
                row for row in rows if (row["phase"], row["axis"], row["op"]) == (phase, axis, op)
            ]
            for figure in ("calls", "bytes"):
                out[f"{prefix}{axis}_{op}_{figure}"] = (
                    sum(row[figure] for row in mine) if mine else None
                )
            for figure in ("algbw", "busbw"):
                values = [row[figure] for row in mine if row[figure] is not None]
                out[f"{prefix}{axis}_{op}_{figure}"] = sum(values) / len(values) if values else None
    return out


def exposed(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, str, float]]:
    """(rank, phase, exposed communication in percent of the step) of rows of PARTS_FIELDS."""
    fields = SHARES["comm_exposed"]
    steps = [row for row in rows if row["step_ms"] > 0]
    return [
        (row["rank"], row["phase"], 100.0 * sum(row[field] for field in fields) / row["step_ms"])
        for row in steps
    ]


SHARES = {
    **{part: (f"{part}_ms",) for part in PARTS},
    "comm_busy": ("comm_busy_ms",),
    "comm_exposed": ("exposed_transfer_ms", "exposed_wait_ms"),
}
SHARE_COLUMNS = tuple(name for name in shares(()) if "_pct" in name)
MS_COLUMNS = tuple(name for name in shares(()) if "_pct" not in name)
OPERATION_COLUMNS = tuple(operations(None))
_KINDS = {
    "calls": (pa.int64(), "1"),
    "bytes": (pa.int64(), "B"),
    "algbw": (pa.float64(), "GB/s"),
    "busbw": (pa.float64(), "GB/s"),
}
# Of the summary, and of the comparison: a cell is observed once.
FIELDS = (
    *(column(name, pa.float64(), "ms") for name in MS_COLUMNS),
    *(column(name, pa.float64(), "%") for name in SHARE_COLUMNS),
    *(column(name, *_KINDS[name.rpartition("_")[2]]) for name in OPERATION_COLUMNS),
)
COLUMNS = tuple(field.name for field in FIELDS)
