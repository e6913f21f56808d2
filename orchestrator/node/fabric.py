"""What `orchestrator calibrate` keeps: where it lies, and what follows from it."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.analysis.bounds import CALIBRATED, Ceilings
from orchestrator.errors import UserError
from orchestrator.node import datasheet
from orchestrator.store import results
from workers.rows import Table, column, row

FILE = "fabric.arrow"
FITS_FILE = "fits.arrow"


@row
class Fit:
    """time = alpha + bytes x factor / beta, for one operation, size of the group and mode."""

    op: str = column("the collective")
    group_size: int = column("ranks that take part", "1")
    mode: str = column("eager, or graph: replayed from a CUDA graph")
    alpha_us: float = column("time of an empty message", "us")
    beta_gb_s: float = column("bus bandwidth of a message without end", "GB/s")
    worst: float = column("greatest relative error of a measurement", "1")


FITS = Table("fits", Fit)


@dataclass(frozen=True, slots=True)
class PairRate:
    """Two ranks, and the greatest bus bandwidth between them in GB/s, sending both ways at once."""

    a: int
    b: int
    busbw: float


@dataclass(frozen=True, slots=True)
class Message:
    """One measurement of a collective. bus_bytes: bytes x the factor of its bus bandwidth."""

    bytes: int
    bus_bytes: float
    time_us: float


def folder(root: Path | None = None, host: str | None = None) -> Path:
    """Where the calibration of a host is kept."""
    return (root or results.DEFAULT_ROOT) / f"fabric-{host or socket.gethostname()}"


def load(path: Path) -> pa.Table:
    """A calibration, or the one in a folder. Raises UserError where there is none that can be
    read."""
    file = path / FILE if path.is_dir() else path
    table = results.read_part(file)
    if table is None or "busbw" not in table.column_names:
        raise UserError(
            f"{file} holds no calibration that can be read; `orchestrator calibrate` makes one"
        )
    return table


def look_up(asked: Path | None, root: Path | None) -> pa.Table | None:
    """The calibration asked for, else this host's under `root` or the usual folder; None where it
    was not calibrated."""
    if asked is not None:
        return load(asked)
    found = [file for place in (root, None) if (file := folder(place) / FILE).is_file()]
    return load(found[0]) if found else None


def ceilings(table: pa.Table | None, device_name: str | None) -> Ceilings | None:
    """Of the calibration where it is one of this kind of device, else of its data sheet; None where
    neither is known.

    Of repeated measurements, and of the ways to move bytes, the fastest: a bound must not be too
    low.
    """
    every = table.to_pylist() if table is not None else []
    rows = [one for one in every if one["device_name"] == device_name]
    memory = [one["algbw"] for one in rows if one["kind"] in ("hbm", "decode_gemm")]
    if not memory:
        return datasheet.ceilings(device_name)
    flops: dict[str, float] = {}
    for one in rows:
        if one["tflops"] is not None:
            flops[one["dtype"]] = max(flops.get(one["dtype"], 0.0), one["tflops"] * 1e12)
    cache = max((one["bytes"] for one in rows if one["kind"] == "cache"), default=0)
    return Ceilings(max(memory) * 1e9, flops, cache, CALIBRATED)


def fits(table: pa.Table) -> list[Fit]:
    """Latency and bandwidth of every collective, group size and mode that has two sizes or more,
    over the first ranks."""
    groups: dict[tuple[str, int, str], list[Message]] = {}
    for one in table.to_pylist():
        if one["kind"] == "collective" and is_first(one):
            bus_bytes = one["bytes"] * one["busbw"] / one["algbw"]
            message = Message(one["bytes"], bus_bytes, one["time_us"])
            groups.setdefault((one["op"], one["group_size"], one["mode"]), []).append(message)
    return [
        _fit(key, messages)
        for key, messages in groups.items()
        if len({message.bytes for message in messages}) > 1
    ]


def is_first(measured: Mapping[str, Any]) -> bool:
    """Whether a row of a collective is of ranks 0 to n - 1; older tables have no other, and name no
    group."""
    group = measured.get("group")
    return group is None or group == list(range(len(group)))


def pairs(table: pa.Table) -> list[PairRate]:
    """The bandwidth between every pair of ranks, the slowest pair first."""
    best: dict[tuple[int, int], float] = {}
    for one in table.to_pylist():
        if one["op"] == "send_recv" and len(one.get("group") or ()) == 2:
            a, b = one["group"]
            best[a, b] = max(best.get((a, b), 0.0), one["busbw"])
    found = [PairRate(a, b, busbw) for (a, b), busbw in best.items()]
    return sorted(found, key=lambda pair: pair.busbw)


def _fit(key: tuple[str, int, str], messages: Sequence[Message]) -> Fit:
    """Least squares on time = alpha + x / beta, x = bytes x factor, in *relative* errors: each
    equation is divided by its time, for the greatest messages would else drown the latency (10 us
    of 2 ms). A negative latency is 0, and beta fitted alone.
    """
    x = np.array([message.bus_bytes for message in messages])
    time = np.array([message.time_us for message in messages])
    equations = np.stack([1 / time, x / time], axis=1)
    alpha, slope = np.linalg.lstsq(equations, np.ones(len(x)), rcond=None)[0]
    if alpha < 0 or slope <= 0:
        relative = x / time
        alpha, slope = 0.0, float(relative.sum() / (relative**2).sum())
    op, group_size, mode = key
    return Fit(
        op=op,
        group_size=group_size,
        mode=mode,
        alpha_us=float(alpha),
        beta_gb_s=float(1e-3 / slope),
        worst=float(np.abs((alpha + slope * x) / time - 1).max()),
    )
