"""The kernels that take most of a decode step, layout by layout: a table on the page and in a
terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.analysis.kernels import TopKernel
from orchestrator.report.charts.views import layout_names, natural
from orchestrator.report.text import figure, percent, plural
from workers.rows import grouped

TITLES = ("calls", "us", "share", "DRAM", "L2 hit", "regs", "occ.", "tensor")
NAME_WIDTH = 60  # of a kernel: those of templates can have hundreds of characters
FIGURES_WIDTH = 57  # of the columns of these in a terminal
LEGEND = (
    "One decode step, its kernels one by one, those that communicate left out. share: of the time "
    "of all of them. DRAM: memory throughput, of its peak. regs: registers of a thread. occ.: "
    "active warps, of the most there can be. tensor: cycles in which tensor cores worked."
)


@dataclass(frozen=True, slots=True)
class KernelLine:
    """One kernel. name: without its arguments. full_name: with them. figures: under TITLES."""

    name: str
    full_name: str
    figures: Sequence[str]


@dataclass(frozen=True, slots=True)
class KernelTable:
    """The kernels of one cell, that with most time first."""

    heading: str
    rows: Sequence[KernelLine]


def kernel_tables(found: Sequence[TopKernel]) -> list[KernelTable]:
    """By cell: under one load beside each other, in the order of their layouts."""
    names = layout_names(dict.fromkeys(one.cell for one in found))
    cells = sorted(
        grouped(found, lambda one: one.cell).items(),
        key=lambda one: (one[0].scenario, one[0].max_concurrency, natural(names[one[0]])),
    )
    return [_table(names[cell], mine) for cell, mine in cells]


def render_kernels(found: Sequence[TopKernel], console: Console) -> None:
    """Print the kernels of each cell that was counted; nothing where none was."""
    for one in kernel_tables(found):
        console.print(one.heading, style="bold", highlight=False)
        table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, header_style="dim")
        table.add_column("kernel", no_wrap=True)
        for title in TITLES:
            table.add_column(title, justify="right", no_wrap=True)
        width = max(console.width - FIGURES_WIDTH, 16)
        for line in one.rows:
            table.add_row(_cut(line.name, width), *line.figures)
        console.print(table)
    if found:
        console.print(LEGEND, style="dim", highlight=False)


def short_name(kernel: str) -> str:
    """The name of a kernel without its type and arguments."""
    name = kernel.removeprefix("void ")
    for unnamed in ("(anonymous namespace)::", "<unnamed>::"):
        name = name.replace(unnamed, "")
    depth = list(accumulate((char == "<") - (char == ">") for char in name))
    begins = (at for at, char in enumerate(name) if char == "(" and not depth[at])
    return name[: next(begins, None)] or kernel


def _table(layout: str, mine: Sequence[TopKernel]) -> KernelTable:
    cell, first = mine[0].cell, mine[0]
    step = f"a decode step of {plural(first.num_requests, 'request')} on rank {first.rank}"
    load = f"{cell.model} · {cell.scenario} at {cell.max_concurrency} concurrent"
    return KernelTable(f"{layout} · {load} · {step}", list(map(_line, mine)))


def _line(one: TopKernel) -> KernelLine:
    figures = [
        str(one.calls),
        figure(one.total_us),
        percent(one.share_pct),
        *(percent(value, 0) for value in (one.dram_pct, one.l2_hit_pct)),
        "-" if one.registers is None else str(one.registers),
        *(percent(value, 0) for value in (one.occupancy_pct, one.tensor_pct)),
    ]
    return KernelLine(_cut(short_name(one.kernel), NAME_WIDTH), one.kernel, figures)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
