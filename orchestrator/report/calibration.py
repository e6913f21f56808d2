"""A calibration as tables: devices beside their data sheet, collectives beside the fit, and how the
GPUs are connected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.node import datasheet, fabric
from orchestrator.node.calibrate import Calibration
from orchestrator.node.links import Pair
from orchestrator.units import format_bytes

# kind -> what a row of it says first.
TITLES = {"hbm": "memory", "gemm": "matrix product", "decode_gemm": "decode product"}
NOTE = (
    "Medians of several samples. latency and bandwidth: least squares on time = latency + bytes x "
    "factor / bandwidth, with the "
    "factor of nccl-tests' bus bandwidth; ±: the worst row's distance from that line. Data sheets "
    "give dense figures."
)


def as_data(found: Calibration) -> dict[str, Any]:
    """Plain data for `json.dumps`."""
    rows, sheet = (
        found.table.to_pylist(),
        datasheet.sheet(found.table.column("device_name")[0].as_py()),
    )
    fits = [asdict(fit) for fit in fabric.fits(found.table)]
    sheets = {
        "datasheet": asdict(sheet) if sheet else None,
        "links": [asdict(pair) for pair in found.pairs],
        "pairs": [asdict(pair) for pair in fabric.pairs(found.table)],
    }
    return {"path": str(found.path), "rows": rows, "fits": fits, **sheets}


def render(found: Calibration, console: Console) -> None:
    """Print what was measured."""
    rows = found.table.to_pylist()
    name = rows[0]["device_name"]
    ranks = max(max(row["rank"] + 1, row["group_size"]) for row in rows)
    console.print(f"[bold]{rows[0]['host']}[/bold]: {ranks} x {name}", highlight=False)
    console.print(_devices(rows, datasheet.sheet(name)))
    collectives = [row for row in rows if row["kind"] == "collective" and fabric.is_first(row)]
    if collectives:
        console.print(_collectives(collectives))
        console.print(_fits(fabric.fits(found.table)))
    _print_pairs(fabric.pairs(found.table), console)
    _print_links(found.pairs, datasheet.sheet(name), console)
    console.print(NOTE, style="dim")
    console.print(f"Written: {found.path}", soft_wrap=True, highlight=False)


def _devices(rows: Sequence[dict[str, Any]], sheet: datasheet.Sheet | None) -> Table:
    """A line per thing measured, over the devices of all ranks."""
    table = Table(box=SIMPLE_HEAD)
    for title in ("what", "of", "dtype"):
        table.add_column(title)
    for title in ("slowest device", "fastest device", "data sheet", "reached"):
        table.add_column(title, justify="right")
    kinds = dict.fromkeys(
        (row["kind"], row["op"], row["dtype"]) for row in rows if row["kind"] in TITLES
    )
    for kind, op, dtype in kinds:
        unit, column = ("TFLOP/s", "tflops") if kind == "gemm" else ("GB/s", "algbw")
        values = [
            row[column]
            for row in rows
            if (row["kind"], row["op"], row["dtype"]) == (kind, op, dtype)
        ]
        limit = _limit(sheet, kind, dtype)
        reached = f"{100 * max(values) / limit:.0f}%" if limit else "-"
        shown = (
            f"{_round(min(values))} {unit}",
            f"{_round(max(values))} {unit}",
            f"{_round(limit)} {unit}" if limit else "-",
        )
        table.add_row(TITLES[kind], op, dtype, *shown, reached)
    return table


def _limit(sheet: datasheet.Sheet | None, kind: str, dtype: str) -> float | None:
    if sheet is None or kind != "gemm":
        return sheet.hbm if sheet else None
    return {"bfloat16": sheet.bf16, "float8_e4m3fn": sheet.fp8, "float32": sheet.fp32}.get(dtype)


def _collectives(rows: Sequence[dict[str, Any]]) -> Table:
    """Microseconds by size; a column per operation, group and mode would be too many, so groups and
    modes are lines."""
    sizes = sorted({row["bytes"] for row in rows})
    sizes = [
        size for index, size in enumerate(sizes) if index == 0 or size > 1.5 * sizes[index - 1]
    ]  # rounded to ranks
    table = Table(box=SIMPLE_HEAD, title="collectives, microseconds a call", title_justify="left")
    for title in ("operation", "ranks", "mode"):
        table.add_column(title)
    for size in sizes:
        table.add_column(_binary(size), justify="right")
    for op, group, mode in dict.fromkeys(
        (row["op"], row["group_size"], row["mode"]) for row in rows
    ):
        line = [
            row for row in rows if (row["op"], row["group_size"], row["mode"]) == (op, group, mode)
        ]
        times = [
            next((row["time_us"] for row in line if abs(row["bytes"] / size - 1) < 0.5), None)
            for size in sizes
        ]
        table.add_row(op, str(group), mode, *map(_round, times))
    return table


def _fits(fits: Sequence[fabric.Fit]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="fitted", title_justify="left")
    for title in ("operation", "ranks", "mode"):
        table.add_column(title)
    for title in ("latency", "bus bandwidth", "±"):
        table.add_column(title, justify="right")
    for fit in fits:
        figures = (
            f"{_round(fit.alpha_us)} us",
            f"{_round(fit.beta_gb_s)} GB/s",
            f"{100 * fit.worst:.0f}%",
        )
        table.add_row(fit.op, str(fit.group_size), fit.mode, *figures)
    return table


def _print_pairs(pairs: Sequence[fabric.PairRate], console: Console) -> None:
    if len(pairs) > 1:
        slow, fast = (
            (f"{pair.a}-{pair.b}", f"{_round(pair.busbw)} GB/s") for pair in (pairs[0], pairs[-1])
        )
        console.print(
            f"Pairs: slowest {slow[0]} with {slow[1]} each way, fastest {fast[0]} with {fast[1]}",
            highlight=False,
        )


def _print_links(pairs: Sequence[Pair], sheet: datasheet.Sheet | None, console: Console) -> None:
    groups: dict[str, list[str]] = {}
    for pair in pairs:
        what = f"{pair.nvlinks} NVLinks" if pair.nvlinks else f"PCIe ({pair.path})"
        peers = {True: "", False: ", no peer access", None: ", peer access unknown"}[pair.p2p]
        groups.setdefault(what + peers, []).append(pair.name)
    for what, names in groups.items():
        console.print(f"Links: {what} between GPUs {', '.join(names)}", highlight=False)
    if sheet and sheet.nvlink:
        console.print(
            f"Data sheet: {sheet.links} NVLinks, {sheet.nvlink:.0f} GB/s, both directions together",
            highlight=False,
        )


def _round(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _binary(size: int) -> str:
    for unit, power in (("MiB", 20), ("KiB", 10)):
        if size >= 0.9 * (1 << power):
            return f"{size / (1 << power):.0f} {unit}"
    return format_bytes(size)
