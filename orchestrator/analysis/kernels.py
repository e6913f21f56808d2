"""What Nsight Compute counted of the kernels of one decode step: its text read into rows, and the
kernels that take most of the step."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.store.schema import CellKey, StartKey
from workers.records import COUNTERS, KernelRow
from workers.rows import Table, column, group, grouped, row

TOP = 10  # kernels that are shown of a cell
# Unit of Nsight Compute -> what it is in the unit of our columns (us, B, %).
UNITS = {
    **dict.fromkeys(("", "%", "register/thread", "byte", "us", "usecond"), 1.0),
    **dict.fromkeys(("ms", "msecond", "Kbyte"), 1e3),
    **dict.fromkeys(("s", "second", "Mbyte"), 1e6),
    **dict.fromkeys(("ns", "nsecond"), 1e-3),
    "Gbyte": 1e9,
}
ERROR = "==ERROR== "
# Part of a message of Nsight Compute -> what is true, and what to do.
REFUSALS = {
    "ERR_NVGPUCTRPERM": (
        "the driver keeps the counters for administrators (ERR_NVGPUCTRPERM); run as root or with "
        "CAP_SYS_ADMIN, or load the module nvidia with NVreg_RestrictProfilingToAdminUsers=0"
    ),
    "driver resource was unavailable": (
        "another tool holds the counters of the GPU, as DCGM does; pause it (`dcgmi profile "
        "--pause`) and give the same command again"
    ),
    "Failed to find metric": (
        "this Nsight Compute does not know a metric that is asked for on this GPU; the story in "
        "RESULTS/failures names it, and another version may"
    ),
}


@row
class CellKernel(KernelRow, StartKey):
    """A row of the table `kernels`, as it is kept."""


@row
class TopKernel:
    """One of the kernels that take most of a decode step of a layout: all launches of one name.

    Rates are means over the time of its launches, the hit rate over their bytes.
    """

    cell: CellKey = group()
    rank: int = column("rank that took the step", "1")
    num_requests: int = column("requests in the step", "requests")
    place: int = column("1 for the kernel that takes most of the step", "1")
    kernel: str = column("its name, demangled")
    calls: int = column("launches in the step", "1")
    total_us: float = column("time of all of them", "us")
    share_pct: float = column("the same, of the time of all kernels that were counted", "%")
    dram_pct: float | None = column("throughput of the GPU's memory, of its peak", "%")
    l2_pct: float | None = column("throughput of L2, of its peak", "%")
    l2_hit_pct: float | None = column("accesses to L2 that found their sector there", "%")
    registers: int | None = column("registers of a thread, the most of any launch", "1")
    occupancy_pct: float | None = column("active warps, of the most there can be", "%")
    tensor_pct: float | None = column("cycles in which tensor cores were at work", "%")


KERNELS = Table("kernels", KernelRow)
CELL_KERNELS = Table("kernels", CellKernel)
TOP_KERNELS = Table("top_kernels", TopKernel)


# -- from the text of Nsight Compute


def read_kernels(text: str, rank: int, num_requests: int) -> list[KernelRow]:
    """The kernels in what `ncu --csv --page raw` wrote: a row of names, one of units, and a row
    for each kernel, among messages. rank, num_requests: of the step."""
    lines = csv.reader(line for line in text.splitlines() if line.startswith('"'))
    names, units = next(lines, []), next(lines, [])
    unit_of = dict(zip(names, units, strict=False))
    found = (dict(zip(names, values, strict=False)) for values in lines)
    return [_kernel(one, unit_of, rank, num_requests, number) for number, one in enumerate(found)]


def refusal(text: str) -> str | None:
    """Why Nsight Compute counted nothing, as far as its text says so."""
    for part, reason in REFUSALS.items():
        if part in text:
            return reason
    errors = (line.removeprefix(ERROR) for line in text.splitlines() if line.startswith(ERROR))
    return next(errors, None)


def unknown(kernels: Sequence[KernelRow]) -> list[str]:
    """The metrics that no kernel has a value of."""
    return [
        metric
        for name, metric in COUNTERS.items()
        if all(getattr(one, name) is None for one in kernels)
    ]


def _kernel(
    values: Mapping[str, str], units: Mapping[str, str], rank: int, num_requests: int, number: int
) -> KernelRow:
    counted: dict[str, Any] = {
        name: _value(values.get(metric, ""), units.get(metric, ""))
        for name, metric in COUNTERS.items()
    }
    for name in ("dram_bytes", "l2_bytes", "registers"):
        counted[name] = None if counted[name] is None else round(counted[name])
    return KernelRow(
        rank=rank,
        num_requests=num_requests,
        number=number,
        kernel=values["Kernel Name"],
        grid=values["Grid Size"],
        block=values["Block Size"],
        **counted,
    )


def _value(text: str, unit: str) -> float | None:
    """A number as it is printed, "1,234.5"; None for "n/a" and for a unit that is not known."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value * UNITS[unit] if unit in UNITS and math.isfinite(value) else None


# -- the kernels that take most of a step


def top_kernels(kernels: Iterable[CellKernel], cells: Iterable[CellKey]) -> list[TopKernel]:
    """Of each of `cells` that was counted the kernels with most time, that with most first."""
    found = grouped(kernels, lambda one: one.cell)
    return [one for cell in dict.fromkeys(cells) for one in _top(cell, found.get(cell, ()))]


def _top(cell: CellKey, kernels: Sequence[CellKernel]) -> Iterator[TopKernel]:
    timed = [one for one in kernels if one.time_us is not None]
    total = math.fsum(map(_time, timed))
    named = grouped(timed, lambda one: one.kernel).values()
    ordered = sorted(named, key=lambda mine: -math.fsum(map(_time, mine)))
    for place, mine in enumerate(ordered[:TOP], start=1):
        yield _summed(cell, mine, place, total)


def _summed(cell: CellKey, mine: Sequence[CellKernel], place: int, total: float) -> TopKernel:
    time = math.fsum(map(_time, mine))
    return TopKernel(
        cell=cell,
        rank=mine[0].rank,
        num_requests=mine[0].num_requests,
        place=place,
        kernel=mine[0].kernel,
        calls=len(mine),
        total_us=time,
        share_pct=100 * time / total if total else 0.0,
        dram_pct=_mean(mine, lambda one: one.dram_pct, _time),
        l2_pct=_mean(mine, lambda one: one.l2_pct, _time),
        l2_hit_pct=_mean(mine, lambda one: one.l2_hit_pct, lambda one: one.l2_bytes or 0),
        registers=max((one.registers for one in mine if one.registers is not None), default=None),
        occupancy_pct=_mean(mine, lambda one: one.occupancy_pct, _time),
        tensor_pct=_mean(mine, lambda one: one.tensor_pct, _time),
    )


def _time(one: CellKernel) -> float:
    return one.time_us or 0.0


def _mean(
    mine: Iterable[CellKernel],
    value: Callable[[CellKernel], float | None],
    weight: Callable[[CellKernel], float],
) -> float | None:
    """The mean of the known values, each counting as much as its weight."""
    known = [(found, weight(one)) for one in mine if (found := value(one)) is not None]
    weights = math.fsum(weight for _, weight in known)
    return math.fsum(found * weight for found, weight in known) / weights if weights else None
