"""What each operation moves, and how fast: columns of the summary, and the table of collectives.

Calls and bytes are of the timed run. The bandwidths are of the observed run of its cell and start,
which is kept once and put beside each of its runs when the results are read.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from orchestrator.analysis.observed.accounting import NCCL_TESTS, CallTiming, CellTimed, TimedRow
from orchestrator.analysis.observed.communication import mean
from orchestrator.store.schema import RunKey
from strategies.placement import Placement
from strategies.traffic import sent_factor
from workers.messages import RankReport
from workers.records import COLLECTIVES, DECODE, PREFILL, CollectiveRow
from workers.rows import Table, column, columns, group, nothing, row, widened


@row
class Traffic:
    """Every collective of the timed run, summed over ranks; null where one cannot count them."""

    comm_calls: int | None = column("communication calls", "1", over_runs="first", better="lower")
    comm_bytes: int | None = column(
        "their message sizes", "B", source=NCCL_TESTS, over_runs="first", better="lower"
    )


@row
class Links:
    """Between which nodes the bytes of the timed run went."""

    nodes: Sequence[str] | None = column(
        "address of the node of each rank, in rank order; null where it is not known"
    )
    sent_inside_nodes_bytes: int | None = column(
        "bytes that ranks sent to others of their node, each collective as along a ring",
        "B",
        source=NCCL_TESTS,
        over_runs="first",
        better="lower",
    )
    sent_across_nodes_bytes: int | None = column(
        "the same, to ranks of other nodes",
        "B",
        source=NCCL_TESTS,
        over_runs="first",
        better="lower",
    )
    sent_on_busiest_link_bytes: int | None = column(
        "the most of it that went between two nodes, both ways together",
        "B",
        source=NCCL_TESTS,
        over_runs="first",
        better="lower",
    )


@row
class Operation:
    """One operation over one mesh axis; null in a layout that does not have it."""

    calls: int | None = column(
        "{about}: calls of the timed run", "1", over_runs="first", better="lower"
    )
    bytes: int | None = column(
        "{about}: message sizes of the timed run",
        "B",
        source=NCCL_TESTS,
        over_runs="first",
        better="lower",
    )
    algbw: float | None = column(
        "{about}: bytes over transfer, of the observed run, mean over ranks",
        "GB/s",
        source=NCCL_TESTS,
        over_runs="mean",
        better="higher",
    )
    busbw: float | None = column(
        "{about}: algbw times the bus factor, mean over ranks",
        "GB/s",
        source=NCCL_TESTS,
        over_runs="mean",
        better="higher",
    )


@row
class PhaseOperations:
    """The collectives of the engines that are here; those of others are in their table alone."""

    tp_all_reduce: Operation = group("tp_all_reduce_{}", "all-reduce over tp")
    tp_all_gather: Operation = group("tp_all_gather_{}", "all-gather over tp")
    pp_send: Operation = group("pp_send_{}", "send to the next stage")
    pp_recv: Operation = group("pp_recv_{}", "receive from the stage before")
    pp_broadcast: Operation = group("pp_broadcast_{}", "broadcast of tokens from the last stage")
    dp_all_gather: Operation = group("dp_all_gather_{}", "all-gather over dp")
    dp_all_reduce: Operation = group("dp_all_reduce_{}", "all-reduce over dp")


@row
class Operations:
    """Calls belong to the phase of the tokens that they carry."""

    decode: PhaseOperations = group()
    prefill: PhaseOperations = group("prefill_{}")


@row
class RunCollective(CollectiveRow, RunKey):
    """A row of the table `collectives`, as it is kept."""


RUN_COLLECTIVES = Table("collectives", RunCollective)


@row
class JoinedCollective(CallTiming, RunCollective):
    """A row of `collectives` with what the observed run says of the same calls beside it."""


CALL_TIMING = tuple(one.name for one in columns(CallTiming))
JOINED_COLLECTIVES = Table("collectives", JoinedCollective)


# Each share of a step -> the parts that it is the sum of.
def traffic_of(reports: Sequence[RankReport]) -> Traffic:
    """Calls and bytes of a run, over all ranks; None where an engine cannot count them."""
    counted = [report.collectives for report in reports if report.collectives is not None]
    if len(counted) < len(reports) or not reports:
        return nothing(Traffic)
    return Traffic(
        comm_calls=sum(sum(table.column("calls").to_pylist()) for table in counted),
        comm_bytes=sum(sum(table.column("bytes").to_pylist()) for table in counted),
    )


def links_of(reports: Sequence[RankReport], placement: Placement, nodes: Sequence[str]) -> Links:
    """What all ranks of a run sent, inside nodes and across them. nodes: rank -> its node, empty
    where that is not known. Null where an engine counts no bytes, or an operation is not known."""
    known = replace(nothing(Links), nodes=tuple(nodes) or None)
    tables = [report.collectives for report in reports if report.collectives is not None]
    if len(tables) < len(reports) or not nodes:
        return known
    sent = defaultdict[frozenset[str], float](float)  # nodes, one or two -> bytes
    for one in (one for table in tables for one in COLLECTIVES.rows(table)):
        factor = sent_factor(one.op, placement.degree(one.axis))
        if factor is None or one.bytes is None:
            return known
        edges = _edges(one, placement)
        for a, b in edges:
            sent[frozenset((nodes[a], nodes[b]))] += factor * one.bytes / len(edges)
    across = [count for pair, count in sent.items() if len(pair) > 1]
    return Links(
        nodes=known.nodes,
        sent_inside_nodes_bytes=round(sum(sent.values()) - sum(across)),
        sent_across_nodes_bytes=round(sum(across)),
        sent_on_busiest_link_bytes=round(max(across, default=0)),
    )


def _edges(one: CollectiveRow, placement: Placement) -> list[tuple[int, int]]:
    """Along which the ranks of its group send. A send goes to the next rank; a broadcast, from the
    last, along all edges of the ring but the one that leads back to it; others along all."""
    group = placement.group(one.axis, one.rank)
    edges = list(itertools.pairwise((*group, group[0])))
    if one.op == "send":
        return [edge for edge in edges if edge[0] == one.rank]
    if one.op == "broadcast" and len(edges) > 1:
        return [edge for edge in edges if edge[1] != group[-1]]
    return edges


def operations_of(collectives: Sequence[CollectiveRow], timed: Sequence[TimedRow]) -> Operations:
    """The columns of each operation: of the collectives of a run, and of its cell's timed ones.

    Calls and bytes are summed over ranks.
    """
    return Operations(
        decode=_phase_operations(collectives, timed, DECODE),
        prefill=_phase_operations(collectives, timed, PREFILL),
    )


def _phase_operations(
    collectives: Sequence[CollectiveRow], timed: Sequence[TimedRow], phase: str
) -> PhaseOperations:
    def of(axis: str, op: str) -> Operation:
        key = (phase, axis, op)
        counted = [one for one in collectives if (one.phase, one.axis, one.op) == key]
        ranks = {one.rank for one in counted}
        found = [one for one in timed if (one.phase, one.axis, one.op) == key]
        # Where an engine cannot count its calls, those that were observed are all that is known.
        seen = [one for one in found if one.rank in ranks or not collectives]
        return Operation(
            calls=sum(one.calls for one in counted) if counted else None,
            bytes=sum(one.bytes or 0 for one in counted) if counted else None,
            algbw=mean([one.algbw for one in seen if one.algbw is not None]),
            busbw=mean([one.busbw for one in seen if one.busbw is not None]),
        )

    return PhaseOperations(
        tp_all_reduce=of("tp", "all_reduce"),
        tp_all_gather=of("tp", "all_gather"),
        pp_send=of("pp", "send"),
        pp_recv=of("pp", "recv"),
        pp_broadcast=of("pp", "broadcast"),
        dp_all_gather=of("dp", "all_gather"),
        dp_all_reduce=of("dp", "all_reduce"),
    )


def with_timing(
    counted: Iterable[RunCollective], timed: Iterable[CellTimed]
) -> list[JoinedCollective]:
    """The collectives of runs with what the observed run of their cell says of the same calls."""
    found = {_call_key(one): one for one in timed}
    return [_joined(one, found.get(_call_key(one))) for one in counted]


def _call_key(one: RunCollective | CellTimed) -> tuple[object, ...]:
    return one.cell, one.start, one.rank, one.phase, one.op, one.axis


def _joined(counted: RunCollective, timed: CellTimed | None) -> JoinedCollective:
    timing = {name: getattr(timed, name, None) for name in CALL_TIMING}
    return widened(JoinedCollective, counted, **timing)
