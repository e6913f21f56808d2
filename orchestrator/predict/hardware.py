"""The hardware of a prediction: figures as data, each with where it comes from."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from orchestrator.analysis.roofline import Ceilings
from orchestrator.errors import UserError
from orchestrator.node.datasheet import SHEETS, Sheet, ceilings, entry
from strategies.peer_sums import RANKS, each_way, way_of, ways
from strategies.traffic import FLAGGED, TWO_SHOT, bus_factor

# Latency of NCCL's ring in its protocol for small messages: of a call, and of each step over a
# link. github.com/NVIDIA/nccl, src/graph/tuning.cc of 2.2x, baseLat and hwLat, Ring LL.
CALL_S = 6.6e-6
# Share of PCIe's rate that NCCL counts on: 12 GB/s of the 16 of 3.0 x16, and in proportion of later
# ones. github.com/NVIDIA/nccl, PCI_BW of src/graph/topo.h, and ncclTopoAddPci in topo.cc.
PCIE_SHARE = 0.75
STEP_S = {"nvlink": 0.6e-6, "pcie": 1.0e-6, "network": 2.7e-6}
# Latency of an all-reduce through memory of GPUs: of a call and of each rank that is heard, and
# beside it what a kernel has of its own: the second way in two shots, the fence before a flag (with
# the norm in it, less that of one-shot with it). Measured on two and four H200 and four H100:
# allreduce*.arrow of docs/results/2xh200, 4xh200 and 4xh100.
PEER_SUM_S, PEER_SUM_RANK_S = 2.1e-6, 0.35e-6
MORE_S = {TWO_SHOT: 0.9e-6, FLAGGED: 0.2e-6}
# What vLLM sums with by itself, and of so many ranks its largest message whose sum has the norm
# behind it in the same kernel: on Hopper, by allreduce_rms_fusion.py of vLLM 0.24.
CUSTOM = "custom"
FUSED_BYTES = {2: 64 << 20, 4: 2 << 20, 8: 1 << 19}
GRAPH, EAGER = "graph", "eager"
SHEET = "data sheet"

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Link:
    """What joins GPUs. bandwidth: bytes/s that one GPU sends, the other direction beside it.
    step_s: latency of a step of a ring over it."""

    bandwidth: float
    step_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Measured times of one operation over `ranks` GPUs of a node: (bytes, seconds), ascending."""

    op: str
    ranks: int
    mode: str
    points: tuple[tuple[float, float], ...]


class Span(NamedTuple):
    """A group of ranks, the nodes that it spans, and the islands inside a node that `Fabric.link`
    joins."""

    ranks: int
    nodes: int = 1
    islands: int = 1


@dataclass(frozen=True, slots=True)
class Fabric:
    """What joins the GPUs of a node, and the nodes; None: not known.

    joined: GPUs that `link` joins, in the order of their numbers; None: all of a node. across: what
    joins those islands. nvlink: whether `link` is NVLink.
    """

    link: Link | None
    network: Link | None = None
    curves: tuple[Curve, ...] = ()
    joined: int | None = None
    across: Link | None = None
    nvlink: bool = False

    def knows(self, kind: str, ranks: int) -> bool:
        """Whether it has times of all that sums in a kind of `ways`."""
        measured = {one.op for one in self.curves}
        return all(op in measured for op, _ in ways(kind, ranks))

    def with_peer_sums(self) -> Fabric:
        """The same with times by latency and bandwidth in place of measured ones."""
        if self.link is None:
            return self
        lines = (self._line(op, ranks, most) for ranks in RANKS for op, most in each_way(ranks))
        return replace(self, curves=(*self.curves, *lines))

    def _line(self, op: str, ranks: int, most: int) -> Curve:
        assert self.link is not None, "the link is known"
        rate = self.link.bandwidth / bus_factor(op, ranks)
        latency = _one_shot_s(ranks) + MORE_S.get(op, 0.0)
        sizes = (most / 2**power for power in range(9, -1, -1))
        return Curve(op, ranks, GRAPH, tuple((size, latency + size / rate) for size in sizes))

    def peer_sum_seconds(self, kind: str, span: Span, size: float) -> float | None:
        """Seconds of one all-reduce by a kind of `ways`, or by vLLM's; None for a message that is
        too large for it, and where nothing is known of it."""
        if kind == CUSTOM:
            return self.fused_sum_seconds(kind, span, size)
        op = way_of(kind, span.ranks, size)
        measured = self._curve(op, span.ranks, GRAPH) if op and span.nodes == 1 else None
        if op is None or measured is None:
            return None
        like = size * bus_factor(op, span.ranks) / bus_factor(op, measured.ranks)
        return interpolated(measured.points, like)

    def fused_sum_seconds(self, kind: str, span: Span, size: float) -> float | None:
        """Seconds of one all-reduce of vLLM, without the norm that its kernel has: in one shot, as
        each rank sends its message to all others, and nothing with it. None where NCCL sums."""
        ranks, is_joined = span.ranks, span.nodes == span.islands == 1 and self.nvlink
        small = kind == CUSTOM and size <= FUSED_BYTES.get(ranks, -1)
        if not (small and is_joined and self.link):
            return None
        return _one_shot_s(ranks) + (ranks - 1) * size / self.link.bandwidth

    def seconds(self, op: str, span: Span, size: float, mode: str) -> float | None:
        """Seconds of one collective with a message of `size` bytes; None where a link is not known.

        Inside a node from the curve of as many ranks, else of the most that were measured, with the
        bytes that cross a link set equal and a ring's further steps added; else, and over nodes,
        latency + bytes / bandwidth.
        """
        ranks = span.ranks
        measured = self._curve(op, ranks, mode) if span.nodes == 1 else None
        if measured is not None and (span.islands == 1 or measured.ranks > (self.joined or 0)):
            like = size * bus_factor(op, ranks) / bus_factor(op, measured.ranks)
            more = steps(op, ranks) - steps(op, measured.ranks)
            slow = self.link.step_s if self.link else STEP_S["nvlink"]
            return interpolated(measured.points, like) + max(more, 0) * slow
        return self._by_line(op, span, size)

    def _curve(self, op: str, ranks: int, mode: str) -> Curve | None:
        name = "send_recv" if op in ("send", "broadcast") else op
        found = [one for one in self.curves if (one.op, one.mode) == (name, mode)]
        own = [one for one in found if one.ranks == ranks]
        pairs = [one for one in found if one.ranks == 2] if name == "send_recv" else own
        return next(iter(pairs or sorted(found, key=lambda one: -one.ranks)), None)

    def _by_line(self, op: str, span: Span, size: float) -> float | None:
        ranks, nodes = span.ranks, span.nodes
        inside, between = self.link if span.islands == 1 else self.across, self.network
        if inside is None or (nodes > 1 and between is None):
            return None
        far = steps(op, nodes) if nodes > 1 else 0
        latency = CALL_S + (steps(op, ranks) - far) * inside.step_s
        slowest = inside.bandwidth
        if between is not None and nodes > 1:
            latency += far * between.step_s
            # Each GPU of a node has a network card, and rings run through all of them at once.
            rails = 1 if op == "send" else max(ranks // nodes, 1)
            slowest = min(slowest, rails * between.bandwidth)
        return latency + size * bus_factor(op, ranks) / slowest


def _one_shot_s(ranks: int) -> float:
    """Latency of an all-reduce in one shot."""
    return PEER_SUM_S + ranks * PEER_SUM_RANK_S


def steps(op: str, ranks: int) -> int:
    """Steps of a ring, one after another: tuning.cc of NCCL."""
    ring = {"all_reduce": 2 * (ranks - 1), "all_gather": ranks - 1, "reduce_scatter": ranks - 1}
    return ring.get(op, 1)


def interpolated(points: Points, size: float) -> float:
    """The time for `size` bytes between measured ones, straight on logarithmic axes; below the
    first that one's, above the last at its rate."""
    if size <= points[0][0]:
        return points[0][1]
    if size >= points[-1][0]:
        return points[-1][1] * size / points[-1][0]
    after = next(i for i, (at, _) in enumerate(points) if at >= size)
    (low, fast), (high, slow) = points[after - 1], points[after]
    share = math.log(size / low) / math.log(high / low)
    return fast * math.exp(share * math.log(slow / fast))


@dataclass(frozen=True, slots=True)
class Hardware:
    """GPUs of one kind. ceilings: rates that are reached, not those of a data sheet. memory_bytes,
    power_w: None where no source is known. sources: figure -> where it comes from. fp8_stream: as
    in `Calibration`."""

    name: str
    ceilings: Ceilings
    memory_bytes: int | None
    power_w: float | None
    fabric: Fabric
    gpus_per_node: int = 8
    sources: Mapping[str, str] = field(default_factory=dict)
    fp8_stream: float = 1.0

    def with_network(self, bytes_s: float) -> Hardware:
        """The same with a network card of so many bytes a second for each GPU."""
        between = Link(bytes_s, STEP_S["network"], "as asked")
        sources = {**self.sources, "network": "as asked"}
        return replace(self, fabric=replace(self.fabric, network=between), sources=sources)


@dataclass(frozen=True, slots=True)
class Attainable:
    """Shares of a data sheet's rates that calibrations reach; of the memory, of arithmetic, of
    NVLink's one direction. fp8_stream: the mean of theirs."""

    memory: float
    flops: float
    link: float
    fp8_stream: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What `orchestrator calibrate` measured of one kind of GPU. fp8_stream: the rate at which the
    library's product of few rows reads weights in FP8, over that of bfloat16; None: not
    measured."""

    ceilings: Ceilings
    curves: tuple[Curve, ...]
    source: str
    fp8_stream: float | None = None


def find(gpu: str) -> tuple[str, Sheet]:
    """The name and the data sheet of a GPU, by the rule of `datasheet.entry`. Raises UserError for
    one that is not known."""
    found = entry(gpu)
    if found is not None:
        return found
    near = difflib.get_close_matches(gpu.lower(), map(str.lower, SHEETS), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"no data sheet of '{gpu}' is known; {hint}known are: {', '.join(SHEETS)}")


def of_sheet(
    gpu: str, attainable: Attainable, measured: Calibration | None, gpus_per_node: int | None = None
) -> Hardware:
    """GPUs by their data sheet, at the shares of it that others reach, or with what was measured
    of that kind. gpus_per_node: None: those of the maker's own server. Raises UserError where its
    rates are not known."""
    name, sheet = find(gpu)
    stated = ceilings(name)
    if stated is None:
        raise UserError(f"no memory bandwidth of {name} is known; use another --gpu")
    reached = measured.ceilings if measured else _at(stated, attainable)
    source = measured.source if measured else f"{SHEET}, at the share that calibrations reach"
    return Hardware(
        name=name,
        ceilings=reached,
        memory_bytes=sheet.usable_bytes,
        power_w=sheet.power,
        fabric=_fabric(sheet, attainable, measured),
        gpus_per_node=gpus_per_node or sheet.node,
        fp8_stream=(measured and measured.fp8_stream) or attainable.fp8_stream,
        sources={
            "rates": source,
            "memory": f"{SHEET}, as nvidia-smi gives it" if sheet.usable else SHEET,
            "power": SHEET,
            "link": _link_source(sheet, measured),
        },
    )


def _at(stated: Ceilings, attainable: Attainable) -> Ceilings:
    flops = {dtype: rate * attainable.flops for dtype, rate in stated.flops.items()}
    return replace(stated, hbm=stated.hbm * attainable.memory, flops=flops)


def _fabric(sheet: Sheet, attainable: Attainable, measured: Calibration | None) -> Fabric:
    rate, curves = sheet.host_link, measured.curves if measured else ()
    pcie = None if rate is None else Link(rate * PCIE_SHARE, STEP_S["pcie"], SHEET)
    nvlink, network = _nvlink(sheet, attainable), _network(sheet)
    if sheet.nvlink == 0:
        return Fabric(pcie, network, curves)
    across = pcie if sheet.bridge else None
    return Fabric(nvlink, network, curves, sheet.bridge, across, nvlink=True)


def _link_source(sheet: Sheet, measured: Calibration | None) -> str:
    """Where times of collectives come from: of one GPU alone, none were measured."""
    if measured and measured.curves:
        return measured.source
    return f"{SHEET}; latency: {_latency(sheet)}"


def _latency(sheet: Sheet) -> str:
    peers = ", of one-shot and two-shot as on H100 and H200" if sheet.nvlink else ""
    return f"NCCL's tuning.cc{peers}"


def _nvlink(sheet: Sheet, attainable: Attainable) -> Link | None:
    if not sheet.nvlink:
        return None
    return Link(sheet.nvlink / 2 * 1e9 * attainable.link, STEP_S["nvlink"], SHEET)


def _network(sheet: Sheet) -> Link | None:
    return Link(sheet.network * 1e9, STEP_S["network"], SHEET) if sheet.network else None
