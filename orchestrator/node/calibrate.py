"""Measure a node: a worker group that runs the engine `calibration`, and what it found on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import pyarrow as pa

from orchestrator.cluster import hardware
from orchestrator.cluster.address import address_of
from orchestrator.cluster.connection import Cluster, connect
from orchestrator.cluster.group import RunFailed, WorkerGroup
from orchestrator.errors import UserError
from orchestrator.node import fabric, links
from orchestrator.node.links import Pair
from orchestrator.store.arrow_files import write_part
from orchestrator.store.folders import DEFAULT_ROOT, check_writable
from strategies.placement import Placement
from strategies.shapes import ModelShape
from workers import engines
from workers.engines.calibration import CALIBRATION_LAYOUT, QUICK, SWEEP_OPTION
from workers.engines.calibration_parts import COLLECTIVES, PARTS, Part
from workers.messages import EnginePlan, RankReport
from workers.records import FABRIC

TIMEOUT_S = 300.0
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

    Raises UserError where there is no such cluster or device, or where the measurement fails.
    """
    kind, there = _device(device), address_of(address)
    check_writable(out or DEFAULT_ROOT, "the calibration", "--out")
    needed = ranks or (_on_this_machine(kind) if there is None else 0)
    tell("Connecting to Ray.")
    with connect(there, kind, needed, dashboard=False) as cluster:
        plan = calibration_plan(kind, ranks or _on_one_node(cluster, kind), quick)
        table = _measure(cluster, plan, tell)
    path = (out or fabric.folder(host=table.column("host")[0].as_py())) / fabric.FILE
    _write(path, table)
    return Calibration(path, table, links.pairs() if kind == "cuda" else [])


def calibration_plan(device: Device, ranks: int, quick: bool) -> EnginePlan:
    """A plan for the engine `calibration`: ranks and a device, and no model."""
    placement = Placement() if ranks == 1 else Placement().with_axis("tp", ranks)
    placement = placement.with_options(**{SWEEP_OPTION: QUICK}) if quick else placement
    dtype = "bfloat16" if device == "cuda" else "float32"
    return EnginePlan(
        NO_MODEL, CALIBRATION_LAYOUT, placement, None, dtype, device, 1, 1, 1, timeout_s=TIMEOUT_S
    )


def _measure(cluster: Cluster, plan: EnginePlan, tell: Callable[[str], None]) -> pa.Table:
    ranks = plan.placement.num_ranks
    parts = [part for part in PARTS if part != COLLECTIVES or ranks > 1]
    reports: list[RankReport] = []
    tell(f"Starting {ranks} x {plan.device}.")
    try:
        group = WorkerGroup.start(cluster, CALIBRATION_LAYOUT, plan, engines.CALIBRATION.name)
        try:
            group.build(TIMEOUT_S)
            for number, part in enumerate(parts, 1):
                tell(f"[{number}/{len(parts)}] {part}")
                reports += group.run(Part((), 1, part=part, is_last=part == parts[-1]), TIMEOUT_S)
            nodes = group.nodes
            group.close()
        finally:
            group.kill()
    except RunFailed as failure:
        raise UserError(f"the calibration failed: {failure.reason}") from failure
    found = pa.concat_tables(report.fabric for report in reports if report.fabric is not None)
    return with_nodes(found, nodes)


def with_nodes(table: pa.Table, nodes: Sequence[str]) -> pa.Table:
    """The measurements, each with the number of nodes that its ranks are on. nodes: rank -> its
    node."""
    rows = FABRIC.rows(table)
    spans = [len({nodes[rank] for rank in one.group or (one.rank,)}) for one in rows]
    return FABRIC.make([replace(one, nodes=n) for one, n in zip(rows, spans, strict=True)])


def _write(path: Path, table: pa.Table) -> None:
    """The measurements to `path`, and the lines fitted to them beside it."""
    fits = fabric.FITS.make(fabric.fits(table))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_part(path, table)
        write_part(path.with_name(fabric.FITS_FILE), fits)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; give another --out"
        ) from error


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
