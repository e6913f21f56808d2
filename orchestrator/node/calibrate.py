"""Measure a node: a worker group that runs the engine `calibration`, and what it found on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import pyarrow as pa

from orchestrator.cluster import hardware
from orchestrator.cluster.address import address_of
from orchestrator.cluster.connection import Cluster, connect
from orchestrator.cluster.group import RunFailed, WorkerGroup
from orchestrator.errors import ClusterLost, UserError
from orchestrator.node import links
from orchestrator.node.links import Pair
from orchestrator.node.partial import Partial
from orchestrator.store.folders import DEFAULT_ROOT, check_writable
from strategies.placement import Placement
from strategies.shapes import ModelShape
from workers import engines
from workers.engines.calibration import CALIBRATION_LAYOUT, QUICK, SWEEP_OPTION
from workers.engines.calibration_parts import Part, parts
from workers.messages import EnginePlan

BUILD_S = 300.0
NO_MODEL = ModelShape("none", "llama", 0, 0, 1, 1, 0, 0, 0, 1, 0.0, 1.0)

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured (schema FABRIC), where it is kept, and how the GPUs are connected."""

    path: Path
    table: pa.Table
    pairs: Sequence[Pair]


def calibrate(
    device: str = "auto",
    ranks: int | None = None,
    out: Path | None = None,
    address: str | None = None,
    quick: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Measure one node on `ranks` of its GPUs or CPU workers, or with more ranks than it has the
    network too, and write fabric.arrow and fits.arrow into `out`. tell: is given a line whenever
    something begins.

    Raises UserError where there is no such cluster or device, or where the measurement fails. What
    was measured until then is kept (`Partial`), and the message says where.
    """
    kind, there = _device(device), address_of(address)
    check_writable(out or DEFAULT_ROOT, "the calibration", "--out")
    needed = ranks or (_on_this_machine(kind) if there is None else 0)
    partial = Partial(out)
    tell("Connecting to Ray.")
    try:
        with connect(there, kind, needed, dashboard=False) as cluster:
            plan = calibration_plan(kind, ranks or _on_one_node(cluster, kind), quick)
            path = _measure(cluster, plan, partial, tell)
    except (RunFailed, ClusterLost) as failure:
        said = f"the calibration failed: {failure}", partial.told()
        raise UserError(". ".join(filter(None, said))) from failure
    except KeyboardInterrupt:
        if kept := partial.told():
            tell(kept)
        raise
    return Calibration(path, partial.table, links.pairs() if kind == "cuda" else [])


def calibration_plan(device: Device, ranks: int, quick: bool) -> EnginePlan:
    """A plan for the engine `calibration`: ranks and a device, and no model."""
    placement = Placement() if ranks == 1 else Placement().with_axis("tp", ranks)
    placement = placement.with_options(**{SWEEP_OPTION: QUICK}) if quick else placement
    dtype = "bfloat16" if device == "cuda" else "float32"
    limit_s = max(parts(ranks).values())
    return EnginePlan(
        NO_MODEL, CALIBRATION_LAYOUT, placement, None, dtype, device, 1, 1, 1, timeout_s=limit_s
    )


def _measure(
    cluster: Cluster, plan: EnginePlan, partial: Partial, tell: Callable[[str], None]
) -> Path:
    """Measure part after part; the file of the whole calibration. Raises RunFailed, which names the
    part."""
    ranks = plan.placement.num_ranks
    limits = parts(ranks)
    tell(f"Starting {ranks} x {plan.device}.")
    group = WorkerGroup.start(cluster, CALIBRATION_LAYOUT, plan, engines.CALIBRATION.name)
    try:
        group.build(BUILD_S)
        for number, (part, limit_s) in enumerate(limits.items(), 1):
            tell(f"[{number}/{len(limits)}] {part}")
            try:
                reports = group.run(Part((), 1, part=part), limit_s)
            except RunFailed as failure:
                raise failure.within(f"part {number} of {len(limits)}, {part}") from None
            partial.add(part, reports, group.nodes)
        path = partial.finish()
        group.close()
        return path
    finally:
        group.kill()


def _device(asked: str) -> Device:
    if asked != "auto":
        return cast(Device, asked)
    return "cuda" if hardware.gpus() else "cpu"


def _on_this_machine(device: Device) -> int:
    """Ranks where no number is asked for: all GPUs, or a few CPU workers."""
    return _some(len(hardware.gpus())) if device == "cuda" else _workers()


def _on_one_node(cluster: Cluster, device: Device) -> int:
    """All GPUs of the first node that has any, or a few CPU workers."""
    if device == "cpu":
        return _workers()
    devices = cluster.topology(device).devices
    return _some(sum(one.node == devices[0].node for one in devices))


def _some(gpus: int) -> int:
    if gpus == 0:
        raise UserError("there is no GPU to calibrate; use --device cpu")
    return gpus


def _workers() -> int:
    """How many CPU workers make sense on this machine: at least two, so that one has another to
    send to."""
    return max(2, min(4, os.cpu_count() or 1))
