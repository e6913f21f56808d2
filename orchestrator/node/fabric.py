"""What `orchestrator calibrate` keeps: where it lies, and what follows from it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.analysis.bounds import CALIBRATED, Ceilings
from orchestrator.errors import UserError
from orchestrator.node import datasheet
from orchestrator.store import results
from workers.records import column, table_schema

FILE = "fabric.arrow"
FITS_FILE = "fits.arrow"
FITS = table_schema(
    "fits",
    [
        column("op", pa.string()),
        column("group_size", pa.int32(), "1"),
        column("mode", pa.string()),
        column("alpha_us", pa.float64(), "us"),
        column("beta_gb_s", pa.float64(), "GB/s"),
        column("worst", pa.float64(), "1"),
    ],
)


@dataclass(frozen=True, slots=True)
class Fit:
    """time = alpha + bytes x factor / beta for one operation, mode and group size. worst: the
    greatest relative error of a row."""

    op: str
    group_size: int
    mode: str
    alpha_us: float
    beta_gb_s: float
    worst: float


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
    rows = (
        [row for row in table.to_pylist() if row["device_name"] == device_name]
        if table is not None
        else []
    )
    hbm = max((row["algbw"] for row in rows if row["kind"] in ("hbm", "decode_gemm")), default=None)
    if hbm is None:
        return datasheet.ceilings(device_name)
    flops: dict[str, float] = {}
    for row in rows:
        if row["tflops"] is not None:
            flops[row["dtype"]] = max(flops.get(row["dtype"], 0.0), row["tflops"] * 1e12)
    cache = max((row["bytes"] for row in rows if row["kind"] == "cache"), default=0)
    return Ceilings(hbm * 1e9, flops, cache, CALIBRATED)


def fits(table: pa.Table) -> list[Fit]:
    """Latency and bandwidth of every collective, group size and mode that has two sizes or more,
    over the first ranks."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        if row["kind"] == "collective" and is_first(row):
            groups.setdefault((row["op"], row["group_size"], row["mode"]), []).append(row)
    return [
        _fit(key, rows) for key, rows in groups.items() if len({row["bytes"] for row in rows}) > 1
    ]


def is_first(row: Mapping[str, Any]) -> bool:
    """Whether a row of a collective is of ranks 0 to n - 1, as all were before other pairs were
    looked at."""
    group = row.get("group")
    return group is None or group == list(range(len(group)))


def pairs(table: pa.Table) -> list[dict[str, Any]]:
    """Of every pair of ranks its greatest bus bandwidth in GB/s of what was sent both ways at once;
    the slowest pair first."""
    best: dict[tuple[int, ...], float] = {}
    for row in table.to_pylist():
        if row["op"] == "send_recv" and len(row.get("group") or ()) == 2:
            pair = tuple(row["group"])
            best[pair] = max(best.get(pair, 0.0), row["busbw"])
    return [
        {"a": a, "b": b, "busbw": busbw}
        for (a, b), busbw in sorted(best.items(), key=lambda item: item[1])
    ]


def _fit(key: tuple[str, int, str], rows: list[dict[str, Any]]) -> Fit:
    """Least squares on time = alpha + x / beta, x = bytes x factor, in *relative* errors: each
    equation is divided by its time, for the greatest messages would else drown the latency (10 us
    of 2 ms). A negative latency is 0, and beta fitted alone.
    """
    op, group_size, mode = key
    x = np.array([row["bytes"] * row["busbw"] / row["algbw"] for row in rows])
    time = np.array([row["time_us"] for row in rows])
    alpha, slope = np.linalg.lstsq(
        np.stack([1 / time, x / time], axis=1), np.ones(len(x)), rcond=None
    )[0]
    if alpha < 0 or slope <= 0:
        relative = x / time
        alpha, slope = 0.0, float(relative.sum() / (relative**2).sum())
    worst = float(np.abs((alpha + slope * x) / time - 1).max())
    return Fit(op, group_size, mode, float(alpha), float(1e-3 / slope), worst)
