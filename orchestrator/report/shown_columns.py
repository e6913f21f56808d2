"""The columns of the comparison on the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.comparing.spreads import Statistic
from orchestrator.analysis.goodput import slo_text
from orchestrator.report.text import aligned, figure
from orchestrator.store.schema import CellKey
from workers.units import device_ms, format_bytes, is_cpu

Show = Callable[[Comparison], str]
Statistics = Mapping[tuple[CellKey, str], Statistic]  # by cell and column of the summary
INTERVAL = "half of the 95% interval of the mean over starts"


@dataclass(frozen=True, slots=True)
class ShownColumn:
    """A column of the comparison as it is shown.

    help: what it means. show: its text for a cell, "" where it is unknown. interval_of: the column
    of the summary whose interval stands below it in small print. below: what else does, and
    below_title: what that is called in what is downloaded.
    """

    title: str
    help: str
    show: Show
    interval_of: str | None = None
    below: Show | None = None
    below_title: str = ""

    def pair(self, one: Comparison, known: Statistics) -> tuple[str, str]:
        """What it says of a cell, and what stands below that."""
        if self.below is not None:
            return self.show(one), self.below(one)
        found = known.get((one.cell, self.interval_of or ""))
        return self.show(one), _interval(found) if found else ""

    @property
    def second(self) -> str:
        """What stands below the figures; empty where nothing does."""
        return self.below_title or (f"{self.title}, half interval" if self.interval_of else "")


def _interval(found: Statistic) -> str:
    """Half of it: of a share in points, else in percent of the mean."""
    if found.ci_high is None or not found.mean:
        return ""
    half, unit = found.ci_high - found.mean, ""
    if found.unit != "%":
        half, unit = 100 * half / found.mean, "%"
    return f"\u00b1{figure(half) if half >= 0.005 else '<0.01'}{unit}"


def _memory(one: Comparison) -> str:
    peak = one.memory.peak_memory_bytes
    return format_bytes(peak) if peak else ""


def _p99(one: Comparison) -> str:
    worst = one.latency.tpot.p99
    return "" if worst is None else f"p99 {figure(worst)}"


def _cost_in(unit: str) -> Show:
    """What a token costs, of the cells that have it in this unit."""

    def show(one: Comparison) -> str:
        known = one.device_time.device_ms_per_token
        is_mine = device_ms(one.conditions.device_name) == unit
        return aligned(known) if is_mine and known is not None else ""

    return show


def _cost(unit: str) -> ShownColumn:
    devices = "GPUs" if unit == "GPU-ms" else "workers"
    meaning = f"time of all {devices} of the layout for each generated token, prefill included"
    return ShownColumn(f"{unit}/token", meaning, _cost_in(unit))


def _bound(one: Comparison) -> str:
    bound = one.bounds.bound_output_throughput
    return "" if bound is None else f"of {figure(bound)}"


def _slowed_prefill(one: Comparison) -> str:
    ratio = one.step.prefill.profile_ratio
    return "" if ratio is None else f"{ratio:.2f} prefill"


def _fused(one: Comparison) -> str:
    """Empty where there are none of them, so that most results do without the column."""
    return figure(one.step.decode.fused.pct, "%") if one.step.decode.fused.pct else ""


def _missed(one: Comparison) -> str:
    return f"outside: {one.predicted.missed}" if one.predicted.missed else ""


def _devices(title: str, *, are_cpus: bool) -> ShownColumn:
    """How many devices a layout has, by what they are called."""

    def show(one: Comparison) -> str:
        number, is_mine = one.conditions.num_gpus, is_cpu(one.conditions.device_name) == are_cpus
        return str(number) if is_mine and number is not None else ""

    return ShownColumn(title, f"{title} of the layout", show)


def _per_gpu(one: Comparison) -> str:
    on_cpu = is_cpu(one.conditions.device_name)
    return "" if on_cpu else figure(one.throughput.output_throughput_per_gpu)


OF_BOUND = "of bound"
COLUMNS = (
    _devices("GPUs", are_cpus=False),
    _devices("workers", are_cpus=True),
    ShownColumn(
        "tok/s",
        f"generated tokens per second, reading the prompts included; below: {INTERVAL}",
        lambda one: figure(one.throughput.output_throughput),
        interval_of="output_throughput",
    ),
    ShownColumn(
        "steady tok/s",
        "tok/s while as many requests are in flight as may be: without ramp-up and drain",
        lambda one: figure(one.steady.steady_output_throughput),
    ),
    ShownColumn("tok/s/GPU", "tok/s per GPU", _per_gpu),
    _cost("GPU-ms"),
    _cost("worker-ms"),
    ShownColumn(
        "TTFT ms",
        f"time to first token, median; below: {INTERVAL}",
        lambda one: figure(one.latency.ttft.median),
        interval_of="median_ttft_ms",
    ),
    ShownColumn(
        "TPOT ms",
        "time per output token after the first, median; below: the 99th percentile",
        lambda one: figure(one.latency.tpot.median),
        below=_p99,
        below_title="p99 TPOT ms",
    ),
    ShownColumn(
        "p99 delay",
        "from scheduled arrival to being let in, 99th percentile, ms",
        lambda one: figure(one.arrivals.p99_schedule_delay_ms),
    ),
    ShownColumn(
        "comm, decode",
        "share of a decode step in which data move, or wait for the last rank, and nothing "
        f"computes; below: {INTERVAL}",
        lambda one: figure(one.step.decode.comm_exposed.pct, "%"),
        interval_of="comm_exposed_pct",
    ),
    ShownColumn(
        "comm, run",
        "the same share of the device time of the whole run, prefill and decode",
        lambda one: figure(one.cost.run_comm_exposed_pct, "%"),
    ),
    ShownColumn(
        "fused",
        "share of a decode step in kernels that exchange data and compute at once, such as a sum "
        f"with the norm behind it; below: {INTERVAL}",
        _fused,
        interval_of="fused_pct",
    ),
    ShownColumn(
        "bubble",
        f"share of a decode step spent waiting for another pipeline stage; below: {INTERVAL}",
        lambda one: figure(one.step.decode.bubble.pct, "%"),
        interval_of="bubble_pct",
    ),
    ShownColumn(
        "profiled / timed",
        "a profiled decode step over the same step without the profiler; below: of prefill. Shares "
        "of a start above 1.05 are left out",
        lambda one: figure(one.step.decode.profile_ratio),
        below=_slowed_prefill,
        below_title="profiled / timed, prefill",
    ),
    ShownColumn(
        "power cap",
        "share of the samples in which the power cap held clocks down",
        lambda one: figure(one.clocks.power_capped_pct, "%"),
    ),
    ShownColumn(
        "goodput",
        "requests per second that met the objective",
        lambda one: figure(one.goodput.request_goodput),
    ),
    ShownColumn(
        "SLO",
        "met, or the percentile that is furthest above its limit, over that limit; below: which",
        lambda one: slo_text(one.slo) if one.slo.slo else "",
        below=lambda one: one.slo.slo_limiting or "",
        below_title="limit",
    ),
    ShownColumn(
        OF_BOUND,
        "tok/s in percent of the bound: below, the tok/s that memory and arithmetic allow this "
        "layout if communication takes no time",
        lambda one: figure(one.bounds.bound_pct, "%"),
        below=_bound,
        below_title="bound, tok/s",
    ),
    ShownColumn(
        "predicted",
        "tok/s as predicted before the run; below: what lies outside of its predicted 90% interval",
        lambda one: figure(one.predicted.output_throughput),
        below=_missed,
        below_title="outside of predicted",
    ),
    ShownColumn(
        "MFU",
        "model FLOPs utilisation: the model's own operations, in percent of the arithmetic rate in "
        "the data sheet",
        lambda one: figure(one.bounds.model_flops_utilization, "%"),
    ),
    ShownColumn(
        "MBU",
        "memory bandwidth utilisation: weights and keys and values read in a decode step, in "
        "percent of the rate in the data sheet",
        lambda one: figure(one.bounds.memory_bandwidth_utilization, "%"),
    ),
    ShownColumn(
        "J/token",
        f"energy of the GPUs per generated token; below: {INTERVAL}",
        lambda one: figure(one.energy.joules_per_output_token),
        interval_of="joules_per_output_token",
    ),
    ShownColumn("memory", "peak of the fullest rank", _memory),
    ShownColumn("starts", "starts with a completed run", lambda one: str(one.num_starts)),
    ShownColumn("runs", "completed runs, of all starts", lambda one: str(one.num_runs)),
)


def known_columns(comparison: Sequence[Comparison]) -> list[ShownColumn]:
    """The columns that have a value for any cell."""
    return [column for column in COLUMNS if any(column.show(one) for one in comparison)]
