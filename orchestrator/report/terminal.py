"""The comparison in a terminal: a table for each load, the best layout first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.analysis import crosscheck, goodput, outputs, samples
from orchestrator.analysis.comparing.compare import Comparison, outputs_of, run_order
from orchestrator.analysis.comparing.rounds import Load, load_of, names_of
from orchestrator.report.charts import across_nodes, unshown
from orchestrator.report.charts.choices import labels_of, lengths_of, load_in_words
from orchestrator.report.charts.views import natural
from orchestrator.report.output import width_of
from orchestrator.report.progress import RunProgress
from orchestrator.report.text import aligned, figure, fixed, full, legend, percent
from orchestrator.store.schema import COMPLETED, INVALID
from workers.rows import grouped
from workers.units import device_ms, format_bytes, is_cpu

__all__ = ["CPU_NOTE", "FIGURES", "RunProgress", "on_cpu", "render"]

CPU_NOTE = (
    "On CPU, the ranks of a layout share a few cores: this shows that the layouts work and "
    "give the same tokens. It is no ranking of them."
)
GPU_MS, WORKER_MS = "GPU-ms/tok", "worker-ms/tok"
RATIO = "x [low, high]"  # not a column: how verdicts write a ratio
# Column -> what it means, for somebody who sees the table for the first time. The columns that are
# shown are explained below the tables.
LEGEND = {
    "tok/s": (
        "generated tokens per second of all requests together, reading the prompts included; "
        "mean of the starts"
    ),
    "±": "half of that mean's 95% interval, in percent of it",
    "steady": "tok/s while as many requests are in flight as may be: without ramp-up and drain",
    "/GPU": "tok/s per GPU",
    "of bound": (
        "tok/s in percent of what the GPUs' memory and arithmetic would allow this layout if "
        "communication took no time; more for an engine that reads prompts in passes that decode"
    ),
    "predicted": "tok/s as predicted before the run; !: something lies outside of its interval",
    GPU_MS: "time of all GPUs of the layout for each generated token, in milliseconds",
    WORKER_MS: "time of all workers of the layout for each generated token, in milliseconds",
    "best": "not shown to deliver less than the best mean; else in percent of that",
    "goodput": "requests per second that met every service level asked for",
    "SLO": "met, or how far above its limit the worst of its percentiles is",
    "delay ms": "median, from the scheduled arrival of a request to being let in",
    "TTFT ms": "time from a request's arrival to its first token, median",
    "TPOT ms": "time for each further token of a request, median",
    "comm": (
        "share of a decode step in which GPUs exchange data, or wait for the last of them to join "
        "in, and compute nothing"
    ),
    "of run": "the same, of the whole run, prefill and decode",
    "fused": "share of a decode step in kernels that exchange data and compute at once",
    "bubble": (
        "share of a decode step in which a GPU waits for another pipeline stage; the shares are "
        "from separate runs"
    ),
    "J/tok": "energy of the GPUs per generated token, in joules",
    "memory": "peak of the fullest device",
    RATIO: "ratio of means over starts, with its 95% interval by itself",
}
Show = Callable[[Comparison], str]


def render(
    comparison: Sequence[Comparison],
    console: Console,
    sentences: Mapping[Load, Sequence[str]] | None = None,
) -> None:
    """Print a table for each model, scenario and concurrency, the best layout first, on CPU devices
    by their names; failed ones with their reason below.

    sentences: verdicts to go under a table, by its load.
    """
    said = sentences or {}
    if on_cpu(comparison):  # the order is no ranking
        comparison = sorted(comparison, key=lambda one: natural(one.cell.layout))
    loads = grouped(comparison, lambda one: load_of(one.cell))
    experiments = grouped(loads, lambda load: load.experiment).values()
    tables = [
        table for mine in experiments for table in _tables([loads[load] for load in mine], console)
    ]
    ordered = [load for mine in experiments for load in mine]
    labels = labels_of(grouped(comparison, lambda one: one.cell.experiment))
    for load, table in zip(ordered, tables, strict=True):
        if (label := labels.pop(load.experiment, load.model)) != load.model:
            console.print(label, style="bold underline", highlight=False)
        _render_load(loads[load], table, console, said.get(load, ()))
    several = any(one.num_starts > 1 for one in comparison)
    device = "worker" if on_cpu(comparison) else "GPU"
    console.print(_legend(tables, several and bool(said), device))
    if left_out := _left_out(loads.values(), tables):
        text = f"For {', '.join(left_out)} the terminal is too narrow; --json has all."
        console.print(text, style="dim", highlight=False)
    if (order := run_order(comparison)) and not on_cpu(comparison):
        console.print(order, style="dim", highlight=False)
    if on_cpu(comparison):
        console.print(CPU_NOTE, style="yellow")
    console.print()


def on_cpu(comparison: Iterable[Comparison]) -> bool:
    """Whether any cell was run on CPU devices, whose figures are no ranking."""
    return any(is_cpu(one.conditions.device_name) for one in comparison)


def _render_load(
    cells: Sequence[Comparison], table: Table, console: Console, verdicts: Sequence[str]
) -> None:
    console.print(_title(cells), style="bold", highlight=False)
    console.print(table)
    same = outputs.sentence(outputs_of(cells))
    named = dict(zip(names_of([one.cell for one in cells]), cells, strict=True))
    seen = {name: one for name, one in named.items() if one.status == COMPLETED}
    held = samples.clock_sentences({name: one.clocks for name, one in named.items()})
    slos = goodput.slo_sentences({name: one.slo for name, one in seen.items()})
    doubts = crosscheck.sentences({name: one.crosscheck for name, one in named.items()})
    said = (*verdicts, *([same] if same else []), *held, *slos, *across_nodes.sentences(seen))
    styled = ((said, ""), (unshown.sentences(seen), "dim"), (doubts, "yellow"))
    lines = [Text(full(line), style=style) for mine, style in styled for line in mine]
    lines += [Text(line, style="red") for line in _reasons(cells)]
    for line in lines:
        console.print(line)
    if lines:
        console.print()


def _reasons(cells: Iterable[Comparison]) -> Iterator[str]:
    for one in cells:
        if one.reason:
            what = "is invalid" if one.reason_status == INVALID else "failed"
            which = ", one of its runs" if one.status == COMPLETED else ""
            yield f"{one.cell.strategy} ({one.cell.engine}){which} {what}: {one.reason}"


def _tables(loads: Sequence[Sequence[Comparison]], console: Console) -> list[Table]:
    """A table for each load of an experiment. All leave out the same columns: as few of SPARED as
    possible, so that every table fits."""
    tables: list[Table] = []
    for spared in range(len(SPARED) + 1):
        tables = [_table(cells, SPARED[:spared]) for cells in loads]
        if all(width_of(table, console) <= console.width for table in tables):
            break
    return tables


def _left_out(loads: Iterable[Sequence[Comparison]], tables: Iterable[Table]) -> list[str]:
    """The columns that have values and are in no table, as the terminal is too narrow."""
    known = _headings(_table(cells, ()) for cells in loads)
    shown = _headings(tables)
    return [name for name in SPARED if name in known - shown]


def _headings(tables: Iterable[Table]) -> set[str]:
    return {str(column.header) for table in tables for column in table.columns}


def _table(cells: Sequence[Comparison], spared: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, header_style="dim")
    shared, elsewhere = _shared(cells), OF_GPUS if on_cpu(cells) else OF_WORKERS
    names = {name: show for name, show in NAMES.items() if name not in shared}
    figures = {
        name: show
        for name, show in FIGURES.items()
        if name not in (*spared, *elsewhere)
        and (name not in WHERE_KNOWN or any(map(WHERE_KNOWN[name], cells)))
    }
    for name in (*names, *figures):
        table.add_column(name, justify="right" if name in figures else "left", no_wrap=True)
    for one in cells:
        texts = (show(one) for show in (*names.values(), *figures.values()))
        table.add_row(*texts, style=_style(one))
    return table


def _legend(tables: Iterable[Table], ratios: bool, device: str) -> Text:
    shown = _headings(tables) | ({RATIO} if ratios else set())
    meanings = {
        name: meaning.replace("GPU", device) for name, meaning in LEGEND.items() if name in shown
    }
    return legend(meanings)


def _title(cells: Sequence[Comparison]) -> str:
    cell, asked = cells[0].cell, cells[0].conditions
    lengths = lengths_of(asked)
    work = f"{cell.model} · {cell.scenario}{lengths} · {load_in_words(cells[0])}"
    return " · ".join([work, *_shared(cells).values()])


def _shared(cells: Sequence[Comparison]) -> dict[str, str]:
    """The engine and the dtype where all cells of a table have the same: these go into its title,
    not into a column."""
    shown = {name: {show(one) for one in cells} for name, show in NAMES.items() if name != "layout"}
    return {name: found.pop() for name, found in shown.items() if len(found) == 1}


def _style(one: Comparison) -> str:
    if one.status != COMPLETED:
        return "red"
    is_best = one.in_best_set and not is_cpu(one.conditions.device_name)
    return "bold green" if is_best else ""


def _dtype(one: Comparison) -> str:
    cell = one.cell
    return cell.dtype if cell.quantization == "none" else f"{cell.dtype}, {cell.quantization}"


def _throughput(one: Comparison) -> str:
    return fixed(one.throughput.output_throughput) if one.status == COMPLETED else one.status


def _half_width(one: Comparison) -> str:
    """Half the interval of tok/s over their mean; "-" below two starts."""
    mean, high = one.throughput.output_throughput, one.spread.ci_high
    return "-" if high is None or not mean else figure(100 * (high / mean - 1), "%")


def _of_best(one: Comparison) -> str:
    return "best" if one.in_best_set else percent(one.relative_to_best, 0, of=1.0)


def _device_ms(one: Comparison, title: str) -> float | None:
    """What a token costs, where the column of that title is the one for its devices."""
    is_mine = title == f"{device_ms(one.conditions.device_name)}/tok"
    return one.device_time.device_ms_per_token if is_mine else None


# Title of a column -> what it shows of a cell.
NAMES: dict[str, Show] = {
    "layout": lambda one: one.cell.strategy,
    "engine": lambda one: one.cell.engine,
    "dtype": _dtype,
}
FIGURES: dict[str, Show] = {
    "GPUs": lambda one: fixed(one.conditions.num_gpus, 0),
    "workers": lambda one: fixed(one.conditions.num_gpus, 0),
    "tok/s": _throughput,
    "±": lambda one: _half_width(one),
    "steady": lambda one: fixed(one.steady.steady_output_throughput),
    "/GPU": lambda one: fixed(one.throughput.output_throughput_per_gpu),
    "of bound": lambda one: percent(one.bounds.bound_pct, 0),
    "predicted": lambda one: fixed(one.predicted.output_throughput) + one.predicted.mark,
    "best": _of_best,
    GPU_MS: lambda one: aligned(_device_ms(one, GPU_MS)),
    WORKER_MS: lambda one: aligned(_device_ms(one, WORKER_MS)),
    "goodput": lambda one: fixed(one.goodput.request_goodput),
    "SLO": lambda one: goodput.slo_text(one.slo),
    "delay ms": lambda one: fixed(one.arrivals.median_schedule_delay_ms),
    "TTFT ms": lambda one: fixed(one.latency.ttft.median),
    "TPOT ms": lambda one: fixed(one.latency.tpot.median, 2),
    "comm": lambda one: percent(one.step.decode.comm_exposed.pct),
    "of run": lambda one: percent(one.cost.run_comm_exposed_pct),
    "fused": lambda one: percent(one.step.decode.fused.pct),
    "bubble": lambda one: percent(one.step.decode.bubble.pct),
    "J/tok": lambda one: fixed(one.energy.joules_per_output_token, 2),
    "memory": lambda one: format_bytes(n) if (n := one.memory.peak_memory_bytes) else "-",
    "starts": lambda one: str(one.num_starts),
    "runs": lambda one: str(one.num_runs),
}
# Title -> whether a cell has a value for it. A column without any value is left out of its table.
WHERE_KNOWN: dict[str, Callable[[Comparison], bool]] = {
    "±": lambda one: one.spread.ci_high is not None,
    "steady": lambda one: one.steady.steady_output_throughput is not None,
    "of bound": lambda one: one.bounds.bound_pct is not None,
    "predicted": lambda one: one.predicted.output_throughput is not None,
    GPU_MS: lambda one: _device_ms(one, GPU_MS) is not None,
    WORKER_MS: lambda one: _device_ms(one, WORKER_MS) is not None,
    "goodput": lambda one: one.goodput.request_goodput is not None,
    "SLO": lambda one: one.slo.slo is not None,
    "delay ms": lambda one: one.arrivals.median_schedule_delay_ms is not None,
    "of run": lambda one: one.cost.run_comm_exposed_pct is not None,
    "fused": lambda one: bool(one.step.decode.fused.pct),
    "J/tok": lambda one: one.energy.joules_per_output_token is not None,
    "starts": lambda one: one.num_starts > 1,
}
# On a CPU nothing is ranked.
OF_GPUS, OF_WORKERS = ("GPUs", "/GPU", "best"), ("workers",)
# A terminal that is too narrow for all of them does without these, the first ones first.
SPARED = (
    "J/tok",
    "/GPU",
    "runs",
    "starts",
    "predicted",
    "steady",
    "memory",
    "±",
    "of bound",
    "delay ms",
    "of run",
    "bubble",
    GPU_MS,
    WORKER_MS,
    "GPUs",
    "goodput",
)
