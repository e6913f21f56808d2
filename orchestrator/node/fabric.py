"""The files that `orchestrator calibrate` writes: where they are, and the rates that follow from
them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from orchestrator.analysis.roofline import CALIBRATED, Ceilings
from orchestrator.errors import UserError
from orchestrator.node import datasheet
from orchestrator.store.arrow_files import OtherVersion, read_part
from orchestrator.store.folders import DEFAULT_ROOT
from strategies.traffic import ONE_SHOT
from workers.records import FABRIC, FabricRow
from workers.rows import Table, column, grouped, row

FILE = "fabric.arrow"
FITS_FILE = "fits.arrow"


@row
class Fit:
    """A line through the times of one operation, mode and group size:
    time = alpha + bytes x factor / beta."""

    op: str = column("operation")
    group_size: int = column("ranks of the group", "1")
    mode: str = column("eager or graph")
    alpha_us: float = column("latency", "us")
    beta_gb_s: float = column("bus bandwidth", "GB/s", source="nccl-tests, PERFORMANCE.md")
    worst: float = column("the greatest relative error of a measurement", "1")


FITS = Table("fits", Fit)


def folder(root: Path | None = None, host: str | None = None) -> Path:
    """Where the calibration of a host is kept."""
    return (root or DEFAULT_ROOT) / f"fabric-{host or socket.gethostname()}"


def load(path: Path) -> pa.Table:
    """A calibration, or the one in a folder. Raises UserError where there is none that can be
    read."""
    file = path / FILE if path.is_dir() else path
    if file.exists() and not file.is_file():  # a device may have no end
        raise UserError(
            f"{file} is no regular file; give the one that `orchestrator calibrate` wrote"
        )
    try:
        table = read_part(file)
    except OtherVersion as error:
        again = "`orchestrator calibrate` makes a new one"
        raise OtherVersion(file, error.found, "a calibration", again) from None
    if table is None or not _is_calibration(table):
        raise UserError(
            f"{file} holds no calibration that can be read; `orchestrator calibrate` makes one"
        )
    return table


def _is_calibration(table: pa.Table) -> bool:
    """Whether it has the columns of FABRIC, in their types; one that may be null may be missing."""
    found = {field.name: field.type for field in table.schema}
    return all(
        found[one.name] == one.type if one.name in found else one.optional for one in FABRIC.columns
    ) and ("busbw" in found)


def look_up(asked: Path | None, root: Path | None) -> pa.Table | None:
    """The calibration asked for, else this host's under `root` or the usual folder; None where it
    was not calibrated."""
    if asked is not None:
        return load(asked)
    found = [file for place in (root, None) if (file := folder(place) / FILE).is_file()]
    return load(found[0]) if found else None


def ceilings(table: pa.Table | None, device_name: str | None) -> Ceilings | None:
    """The ceilings of a device: from the calibration if that is of this kind of device, else from
    the data sheet. None where neither is known.

    Each measurement is the median of its samples. Of those of several devices, shapes and ways to
    move bytes the fastest counts.
    """
    known = [] if table is None else FABRIC.rows(table)
    rows = [one for one in known if one.device_name == device_name]
    moved = [one.algbw for one in rows if one.kind in ("hbm", "decode_gemm") and one.algbw]
    if not moved:
        return datasheet.ceilings(device_name)
    flops: dict[str, float] = {}
    for one in rows:
        if one.tflops is not None and one.dtype is not None:
            flops[one.dtype] = max(flops.get(one.dtype, 0.0), one.tflops * 1e12)
    cache = max((one.bytes for one in rows if one.kind == "cache"), default=0)
    return Ceilings(max(moved) * 1e9, flops, cache, CALIBRATED)


def fp8_stream(table: pa.Table, device_name: str) -> float | None:
    """The rate at which products of few rows read weights in FP8, over that in bfloat16: of the
    most rows that were measured, and of several devices the fastest. None where it was not
    measured."""
    rates: dict[str, dict[int, float]] = {"bfloat16": {}, "float8_e4m3fn": {}}
    for one in FABRIC.rows(table):
        if (one.device_name, one.kind) == (device_name, "decode_gemm") and one.dtype in rates:
            of_dtype, rows = rates[one.dtype], int(one.op.removeprefix("m"))
            of_dtype[rows] = max(of_dtype.get(rows, 0.0), one.algbw or 0.0)
    plain, fp8 = rates.values()
    most = max(plain.keys() & fp8.keys(), default=None)
    return fp8[most] / plain[most] if most and plain[most] else None


def statistic(rows: Sequence[FabricRow]) -> str:
    """What of their samples the times of a calibration are, in words."""
    found = sorted({(one.percentile, one.samples) for one in rows if one.samples})
    named = [f"percentile {which:g} of {samples} samples" for which, samples in found]
    return " or ".join(named) if named else "medians of several samples"


def warnings(rows: Sequence[FabricRow]) -> list[str]:
    """What held clocks or power down while a calibration was made, a sentence for each rank; none
    for CPUs."""
    ranks = grouped((one for one in rows if one.device_name != "cpu"), lambda one: one.rank)
    held = {rank: same[0].held_down for rank, same in ranks.items()}
    return [f"rank {rank}: {_held(said)}" for rank, said in held.items() if said is None or said]


def _held(said: Sequence[str] | None) -> str:
    if said is None:
        return "not known whether clocks or power were held down"
    return f"held down while it was measured: {'; '.join(said)}"


def fits(table: pa.Table) -> list[Fit]:
    """Latency and bandwidth of every collective, group size and mode that has two sizes or more,
    over the first ranks."""
    collectives = [one for one in FABRIC.rows(table) if one.kind == "collective" and is_first(one)]
    groups = grouped(collectives, lambda one: (one.op, one.group_size, one.mode))
    return [_fit(rows) for rows in groups.values() if len({one.bytes for one in rows}) > 1]


def without_peer_sums(rows: Sequence[FabricRow]) -> str | None:
    """What is said where collectives were measured and none through memory of GPUs."""
    collectives = {one.op for one in rows if one.kind == "collective"}
    if not collectives or ONE_SHOT in collectives:
        return None
    return (
        "All-reduces through memory of GPUs are not measured: they are of two to eight GPUs of a "
        "node that reach each other's."
    )


def is_first(collective: FabricRow) -> bool:
    """Whether a collective is over ranks 0 to n - 1, and not over another pair whose link was
    measured."""
    members = collective.group
    return members is None or list(members) == list(range(len(members)))


def times(table: pa.Table) -> dict[tuple[str, int, str], tuple[tuple[float, float], ...]]:
    """(operation, ranks, mode) -> (bytes, seconds) of every size, over the first ranks, inside a
    node."""
    collectives = [
        one
        for one in FABRIC.rows(table)
        if one.kind == "collective" and is_first(one) and (one.nodes or 1) == 1
    ]
    groups = grouped(collectives, lambda one: (one.op, one.group_size, one.mode or ""))
    return {
        key: tuple(sorted({one.bytes: (one.time_us or 0.0) / 1e6 for one in rows}.items()))
        for key, rows in groups.items()
    }


def devices(table: pa.Table) -> list[str]:
    """The models of the devices that were measured."""
    return sorted({one.device_name for one in FABRIC.rows(table)})


@dataclass(frozen=True, slots=True)
class PairRate:
    """The greatest bus bandwidth in GB/s between ranks a and b, sending in both directions at
    once. nodes: that the two are on, None where it is not known."""

    a: int
    b: int
    busbw: float
    nodes: int | None = None


def pairs(table: pa.Table) -> list[PairRate]:
    """The bandwidth of every pair of ranks, the slowest pair first."""
    sent = [
        one
        for one in FABRIC.rows(table)
        if one.op == "send_recv" and one.group is not None and len(one.group) == 2
    ]
    found = [
        PairRate(a, b, max(one.busbw or 0.0 for one in same), same[0].nodes)
        for (a, b), same in grouped(sent, lambda one: tuple(one.group or ())).items()
    ]
    return sorted(found, key=lambda one: one.busbw)


def _fit(rows: Sequence[FabricRow]) -> Fit:
    """Least squares on time = alpha + x / beta, x = bytes x factor, in *relative* errors.

    Each equation is divided by its time; otherwise the largest messages would outweigh the latency
    (10 us of 2 ms). A negative latency is set to 0, and beta is then fitted alone.
    """
    x = np.array([one.bytes * (one.busbw or 0.0) / (one.algbw or 1.0) for one in rows])
    time = np.array([one.time_us for one in rows])
    equations = np.stack([1 / time, x / time], axis=1)
    alpha, slope = np.linalg.lstsq(equations, np.ones(len(x)), rcond=None)[0]
    if alpha < 0 or slope <= 0:
        relative = x / time
        alpha, slope = 0.0, float(relative.sum() / (relative**2).sum())
    return Fit(
        op=rows[0].op,
        group_size=rows[0].group_size,
        mode=rows[0].mode or "",
        alpha_us=float(alpha),
        beta_gb_s=float(1e-3 / slope),
        worst=float(np.abs((alpha + slope * x) / time - 1).max()),
    )
