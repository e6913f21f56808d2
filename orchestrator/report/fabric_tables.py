"""A calibration as tables: devices beside their data sheet, collectives beside the fit, and how the
GPUs are connected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.node import datasheet, fabric
from orchestrator.node.calibrate import Calibration
from orchestrator.report.text import three_digits
from workers.records import FABRIC, FabricRow
from workers.rows import grouped
from workers.units import format_bytes

if TYPE_CHECKING:
    from orchestrator.node.links import Pair

# kind of measurement -> the title of its rows.
TITLES = {"hbm": "memory", "gemm": "matrix product", "decode_gemm": "decode product"}
NOTE = (
    "latency and bandwidth: least squares on time = latency + bytes x factor / bandwidth, with the "
    "factor of nccl-tests' bus bandwidth; ±: the worst row's distance from that line. Data sheets "
    "give dense figures."
)
LOW = (
    "Rates measured like this are lower than the devices allow, and percentages of them are too "
    "high: nvidia-smi -q -d POWER,CLOCK,PERFORMANCE says why."
)
PEERS = {True: "", False: ", no peer access", None: ", peer access unknown"}


def as_data(found: Calibration) -> dict[str, object]:
    """Plain data for `json.dumps`."""
    rows = FABRIC.rows(found.table)
    sheet = datasheet.sheet(rows[0].device_name)
    return {
        "path": str(found.path),
        "statistic": fabric.statistic(rows),
        "warnings": fabric.warnings(rows),
        "left_out": fabric.without_peer_sums(rows),
        "rows": FABRIC.data(rows),
        "fits": fabric.FITS.data(fabric.fits(found.table)),
        "datasheet": asdict(sheet) if sheet else None,
        "links": [asdict(pair) for pair in found.pairs],
        "pairs": [asdict(pair) for pair in fabric.pairs(found.table)],
    }


def render(found: Calibration, console: Console) -> None:
    """Print what was measured."""
    rows = FABRIC.rows(found.table)
    sheet = datasheet.sheet(rows[0].device_name)
    ranks = max(max(one.rank + 1, one.group_size) for one in rows)
    nodes = max(one.nodes or 1 for one in rows)
    where = f" on {nodes} nodes" if nodes > 1 else ""
    heading = Text.assemble((rows[0].host, "bold"), f": {ranks} x {rows[0].device_name}{where}")
    console.print(heading, highlight=False)
    console.print(_devices(rows, sheet))
    collectives = [one for one in rows if one.kind == "collective" and fabric.is_first(one)]
    if collectives:
        console.print(_collectives(collectives))
        console.print(_fits(fabric.fits(found.table)))
    left_out = fabric.without_peer_sums(rows)
    said = (left_out,) if left_out else ()
    for line in (*said, *_pairs(found.table), *_links(found.pairs, sheet)):
        console.print(line, highlight=False)
    console.print(f"Times: {fabric.statistic(rows)}. {NOTE}", style="dim", highlight=False)
    for line in _warnings(rows):
        console.print(line, style="yellow", highlight=False)
    console.print(f"Written: {found.path}", soft_wrap=True, highlight=False)


def _devices(rows: Sequence[FabricRow], sheet: datasheet.Sheet | None) -> Table:
    """A line per thing measured, over the devices of all ranks; beside the data sheet, if any."""
    table = Table(box=SIMPLE_HEAD)
    for title in ("what", "of", "dtype"):
        table.add_column(title)
    rates = ("slowest device", "fastest device", *(("data sheet", "reached") if sheet else ()))
    for title in rates:
        table.add_column(title, justify="right")
    measured = (one for one in rows if one.kind in TITLES)
    for (kind, op, dtype), same in grouped(
        measured, lambda one: (one.kind, one.op, one.dtype)
    ).items():
        reached = [*_reached(kind, same, _limit(sheet, kind, dtype))][: len(rates)]
        table.add_row(TITLES[kind], op, dtype, *reached)
    return table


def _reached(kind: str, rows: Sequence[FabricRow], limit: float | None) -> Iterator[str]:
    """The slowest device, the fastest, the data sheet's figure and how much of it is reached."""
    unit = "TFLOP/s" if kind == "gemm" else "GB/s"
    rates = [(one.tflops if kind == "gemm" else one.algbw) or 0.0 for one in rows]
    yield f"{three_digits(min(rates))} {unit}"
    yield f"{three_digits(max(rates))} {unit}"
    yield f"{three_digits(limit)} {unit}" if limit else "-"
    yield f"{100 * max(rates) / limit:.0f}%" if limit else "-"


def _limit(sheet: datasheet.Sheet | None, kind: str, dtype: str | None) -> float | None:
    if sheet is None or kind != "gemm":
        return sheet.hbm if sheet else None
    rates = {"bfloat16": sheet.bf16, "float8_e4m3fn": sheet.fp8, "float32": sheet.fp32}
    return rates.get(dtype or "")


def _collectives(rows: Sequence[FabricRow]) -> Table:
    """Microseconds by size. A column for each operation, group and mode would be too many, so
    groups and modes are lines."""
    sizes = _sizes(rows)
    table = Table(box=SIMPLE_HEAD, title="collectives, microseconds a call", title_justify="left")
    for title in ("operation", "ranks", "mode"):
        table.add_column(title)
    for size in sizes:
        table.add_column(_binary(size), justify="right")
    for (op, ranks, mode), line in grouped(
        rows, lambda one: (one.op, one.group_size, one.mode)
    ).items():
        times = [
            next((one.time_us for one in line if abs(one.bytes / size - 1) < 0.5), None)
            for size in sizes
        ]
        table.add_row(op, str(ranks), mode, *map(three_digits, times))
    return table


def _sizes(rows: Sequence[FabricRow]) -> list[int]:
    """Message sizes in rising order. Sizes that differ only by rounding to the number of ranks
    count once."""
    sizes = sorted({one.bytes for one in rows})
    return [size for index, size in enumerate(sizes) if index == 0 or size > 1.5 * sizes[index - 1]]


def _fits(fits: Sequence[fabric.Fit]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="fitted", title_justify="left")
    for title in ("operation", "ranks", "mode"):
        table.add_column(title)
    for title in ("latency", "bus bandwidth", "±"):
        table.add_column(title, justify="right")
    for fit in fits:
        figures = (
            f"{three_digits(fit.alpha_us)} us",
            f"{three_digits(fit.beta_gb_s)} GB/s",
            f"{100 * fit.worst:.0f}%",
        )
        table.add_row(fit.op, str(fit.group_size), fit.mode, *figures)
    return table


def _pairs(table: pa.Table) -> Iterator[str]:
    """The slowest pair of ranks and the fastest; those of one node and those of two apart, where
    some are of two. Nothing of the only pair of a node: the tables are of it."""
    pairs = fabric.pairs(table)
    if len(pairs) == 1 and (pairs[0].nodes or 1) == 1:
        return
    several = any((pair.nodes or 1) > 1 for pair in pairs)
    where = {1: " inside a node", 2: " across nodes"} if several else {}
    for nodes, same in grouped(pairs, lambda pair: pair.nodes).items():
        slow, *fast = (f"{one.a}-{one.b} with {three_digits(one.busbw)} GB/s" for one in same)
        among = f"slowest {slow} each way, fastest {fast[-1]}" if fast else f"{slow} each way"
        yield f"{'Pairs' if fast else 'Pair'}{where.get(nodes or 1, '')}: {among}"


def _links(pairs: Sequence[Pair], sheet: datasheet.Sheet | None) -> Iterator[str]:
    """Which GPUs are connected by what, and what the data sheet says of it."""
    for what, same in grouped(pairs, _link).items():
        yield f"Links: {what} between GPUs {', '.join(pair.name for pair in same)}"
    if sheet and sheet.nvlink:
        rate = f"{sheet.nvlink:.0f} GB/s, both directions together"
        yield f"Data sheet: {f'{sheet.links} NVLinks' if sheet.links else 'NVLink'}, {rate}"


def _warnings(rows: Sequence[FabricRow]) -> Iterator[str]:
    """What held clocks or power down, and what that means."""
    yield from (f"Warning: {one}" for one in fabric.warnings(rows))
    if any(one.held_down for one in rows):
        yield LOW


def _link(pair: Pair) -> str:
    links = f"{pair.nvlinks} NVLinks" if pair.nvlinks else f"PCIe ({pair.path})"
    return links + PEERS[pair.p2p]


def _binary(size: int) -> str:
    for unit, power in (("MiB", 20), ("KiB", 10)):
        if size >= 0.9 * (1 << power):
            return f"{size / (1 << power):.0f} {unit}"
    return format_bytes(size)
