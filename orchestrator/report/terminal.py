"""What is shown in a terminal: how far the runs are, and the comparison at the end."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from orchestrator.analysis import outputs
from orchestrator.analysis.compare import GROUP, grouped, names_of, run_order
from orchestrator.errors import UserError
from orchestrator.experiment import layout_name
from orchestrator.units import format_bytes

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.cluster.connection import Cluster

CPU_NOTE = (
    "On CPU, gloo on a few cores takes most of every step: this shows that the layouts work and "
    "give the same tokens. It is no "
    "ranking of them."
)
RATIO = "x [low, high]"  # no column: how verdicts write one
# Column -> what it says, to one who sees the table for the first time; those that are shown are
# explained below the tables.
LEGEND = {
    "tok/s": (
        "generated tokens per second of all requests together, reading the prompts included; "
        "mean of the runs"
    ),
    "±": "half of that mean's 95% interval, in percent of it",
    "steady": "tok/s while every slot is taken, ramp-up and drain left out",
    "/GPU": "tok/s per GPU",
    "of bound": (
        "tok/s in percent of what the GPUs' memory and arithmetic would allow this layout if "
        "communication took no time"
    ),
    "best": "in percent of the best layout's tok/s",
    "goodput": "requests per second that met every service level asked for",
    "delay ms": "median, from the scheduled arrival of a request to being let in",
    "TTFT ms": "time from a request's arrival to its first token, median",
    "TPOT ms": "time for each further token of a request, median",
    "comm": (
        "share of a decode step in which GPUs exchange data, or wait for the last of them to join "
        "in, and compute nothing"
    ),
    "bubble": (
        "share in which a GPU waits for another pipeline stage; both shares are from a separate run"
    ),
    "J/tok": "energy of the GPUs per generated token, in joules",
    "memory": "peak of the fullest device",
    RATIO: "ratio of means over runs, with its 95% interval",
}
SVG_WIDTH = 110


# -- the comparison


def render(
    comparison: pa.Table,
    console: Console,
    sentences: Mapping[tuple[Any, ...], Sequence[str]] | None = None,
) -> None:
    """Print a table for each model, scenario and concurrency, the best layout first; failed ones
    with their reason below.

    sentences: verdicts to go under a table, by (experiment, model, scenario, max_concurrency).
    """
    every = comparison.to_pylist()
    several = any(row["num_runs"] > 1 for row in every)
    tables = [
        table
        for rows in grouped(every, GROUP[:1])
        for table in _tables(grouped(rows, GROUP), console)
    ]
    for rows, table in zip(grouped(every, GROUP), tables, strict=True):
        _render_group(
            rows, table, console, (sentences or {}).get(tuple(rows[0][name] for name in GROUP), ())
        )
    console.print(_legend(tables, ratios=several and bool(sentences)))
    if order := run_order(every):
        console.print(order, style="dim")
    if any((row["device_name"] or "").lower() == "cpu" for row in every):
        console.print(CPU_NOTE, style="yellow")
    console.print()


def export_svg(
    draw: Callable[[Console], None], path: Path, title: str = "orchestrator compare"
) -> None:
    """What `draw` prints, as a picture of a terminal. Raises UserError where it cannot be
    written."""
    console = Console(
        record=True,
        width=SVG_WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    draw(console)
    try:
        console.save_svg(str(path), title=title)
    except OSError as error:
        raise UserError(
            f"the picture cannot be written to {path}: {error.strerror}; give another --svg"
        ) from error


def _render_group(
    rows: list[dict[str, Any]], table: Table, console: Console, sentences: Sequence[str]
) -> None:
    console.print(_title(rows), style="bold")
    console.print(table)
    same = outputs.sentence(names_of(rows), rows)
    for sentence in (*sentences, *([same] if same else [])):
        console.print(Text(sentence))
    for row in rows:
        if row["reason"]:
            what = "is invalid" if row["reason_status"] == "invalid" else "failed"
            which = ", one of its runs" if row["status"] == "completed" else ""
            console.print(
                Text(
                    f"{row['strategy']} ({row['engine']}){which} {what}: {row['reason']}",
                    style="red",
                )
            )
    if sentences or same or any(row["reason"] for row in rows):
        console.print()


def _tables(groups: Sequence[list[dict[str, Any]]], console: Console) -> list[Table]:
    """A table for each group of an experiment; all lack the same columns, as few of SPARED as it
    takes for each to fit."""
    tables: list[Table] = []
    for spared in range(len(SPARED) + 1):
        tables = [_table(rows, SPARED[:spared]) for rows in groups]
        if all(_width(table, console) <= console.width for table in tables):
            break
    return tables


def _table(rows: Sequence[dict[str, Any]], spared: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, header_style="dim")
    names = {name: show for name, show in NAMES.items() if name not in _shared(rows)}
    unknown = [
        name for name, column in WHERE_KNOWN.items() if all(row[column] is None for row in rows)
    ]
    figures = {name: show for name, show in FIGURES.items() if name not in (*spared, *unknown)}
    for name in (*names, *figures):
        table.add_column(name, justify="right" if name in figures else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            *(show(row) for show in (*names.values(), *figures.values())), style=_style(row)
        )
    return table


def _width(table: Table, console: Console) -> int:
    """Columns of a terminal that `table` takes if nothing of it is cut."""
    return Measurement.get(console, console.options.update(width=UNLIMITED), table).maximum


def _legend(tables: Sequence[Table], ratios: bool) -> Text:
    shown = {column.header for table in tables for column in table.columns} | (
        {RATIO} if ratios else set()
    )
    said = (
        Text.assemble((name, "bold"), f": {meaning}.")
        for name, meaning in LEGEND.items()
        if name in shown
    )
    return Text(" ", style="dim").join(said)


def _title(rows: Sequence[dict[str, Any]]) -> str:
    row = rows[0]
    lengths = (
        f" ({row['input_len']} in / {row['output_len']} out)"
        if row["input_len"] and row["output_len"]
        else ""
    )
    rate = f" · {row['request_rate']:g} requests/s, at most" if row["request_rate"] else " ·"
    work = f"{row['model']} · {row['scenario']}{lengths}{rate} {row['max_concurrency']} concurrent"
    return " · ".join([work, *_shared(rows).values()])


def _shared(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The engine and the dtype where all rows of a table have the same: these go into its title,
    not into a column."""
    shown = {name: {show(row) for row in rows} for name, show in NAMES.items() if name != "layout"}
    return {name: found.pop() for name, found in shown.items() if len(found) == 1}


def _style(row: dict[str, Any]) -> str:
    if row["status"] != "completed":
        return "red"
    return "bold green" if row["relative_to_best"] == 1.0 else ""


def _dtype(row: dict[str, Any]) -> str:
    return (
        row["dtype"] if row["quantization"] == "none" else f"{row['dtype']}, {row['quantization']}"
    )


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 1, of: float = 100.0) -> str:
    return "-" if value is None else f"{100.0 * value / of:.{digits}f}%"


def _half_width(row: dict[str, Any]) -> float | None:
    """Half the interval of tok/s over their mean; None below two runs."""
    mean, high = row["output_throughput"], row["output_throughput_ci_high"]
    return None if high is None or not mean else high / mean - 1.0


# Title of a column -> what it shows of a row.
NAMES: dict[str, Callable[[dict[str, Any]], str]] = {
    "layout": lambda row: row["strategy"],
    "engine": lambda row: row["engine"],
    "dtype": _dtype,
}
FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "GPUs": lambda row: _number(row["num_gpus"], 0),
    "tok/s": lambda row: (
        _number(row["output_throughput"]) if row["status"] == "completed" else row["status"]
    ),
    "±": lambda row: _percent(_half_width(row), of=1.0),
    "steady": lambda row: _number(row["steady_output_throughput"]),
    "/GPU": lambda row: _number(row["output_throughput_per_gpu"]),
    "of bound": lambda row: _percent(row["bound_pct"], 0),
    "best": lambda row: (
        "best" if row["relative_to_best"] == 1.0 else _percent(row["relative_to_best"], 0, of=1.0)
    ),
    "goodput": lambda row: _number(row["request_goodput"]),
    "delay ms": lambda row: _number(row["median_schedule_delay_ms"]),
    "TTFT ms": lambda row: _number(row["median_ttft_ms"]),
    "TPOT ms": lambda row: _number(row["median_tpot_ms"], 2),
    "comm": lambda row: _percent(row["comm_exposed_pct"]),
    "bubble": lambda row: _percent(row["bubble_pct"]),
    "J/tok": lambda row: _number(row["joules_per_output_token"], 2),
    "memory": lambda row: (
        format_bytes(row["peak_memory_bytes"]) if row["peak_memory_bytes"] else "-"
    ),
    "runs": lambda row: str(row["num_runs"]),
}
# Left out where no row of a table has it, by the column of the comparison that must be known.
WHERE_KNOWN = {
    "±": "output_throughput_ci_high",
    "steady": "steady_output_throughput",
    "of bound": "bound_pct",
    "goodput": "request_goodput",
    "delay ms": "median_schedule_delay_ms",
    "J/tok": "joules_per_output_token",
}
# A terminal that is too narrow for all of them does without these, the first ones first.
SPARED = (
    "J/tok",
    "/GPU",
    "runs",
    "steady",
    "memory",
    "±",
    "of bound",
    "delay ms",
    "bubble",
    "GPUs",
    "goodput",
)
UNLIMITED = 10_000  # columns


# -- progress


class RunProgress:
    """How far the driver is (`orchestrator.run.driver.Progress`): a live bar in a terminal,
    elsewhere a line per finished run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done = self._total = 0
        self._last = ""
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[last]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, last="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, runs: int, skipped: int) -> None:
        self._total = runs
        self._bar.update(self._task, total=runs)
        if skipped:
            self.note(f"{skipped} of {runs + skipped} runs have a result and are skipped.")

    def connected(self, cluster: Cluster) -> None:
        if cluster.dashboard:
            self.note(f"Ray dashboard: {cluster.dashboard}")

    def phase(self, deployment: str, cell: str, what: str) -> None:
        self._bar.update(self._task, description=escape(f"{cell or deployment}  {what}"))

    def finished(self, row: dict[str, Any]) -> None:
        self._done += 1
        self._total = max(self._total, self._done)  # runs may be added until they agree
        layout = layout_name(row["strategy"], row.get("ablation"))
        name = (
            f"{layout} {row['engine']} {row['scenario']} c{row['max_concurrency']} run "
            f"{row['run'] + 1}"
        )
        if row["status"] != "completed":
            text = Text(f"{row['status']}: {row['reason']}", style="red")
        else:
            self._last = f"{_number(row['output_throughput'])} tok/s"
            text = Text(
                f"{self._last}, TTFT {_number(row['median_ttft_ms'])} ms, TPOT "
                f"{_number(row['median_tpot_ms'], 2)} ms"
            )
        self._console.print(
            Text(f"[{self._done}/{self._total}] {name}: ").append(text), soft_wrap=True
        )
        self._bar.update(self._task, completed=self._done, total=self._total, last=self._last)

    def note(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)
