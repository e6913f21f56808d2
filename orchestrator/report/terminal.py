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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from orchestrator import outputs
from orchestrator.compare import GROUP, grouped, names_of
from orchestrator.errors import UserError
from orchestrator.experiment import RUN_ORDER, layout_name
from orchestrator.units import format_bytes

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.cluster import Cluster

CPU_NOTE = (
    "On CPU, gloo on a few cores takes most of every step: this shows that the layouts work and give the same tokens. It is no "
    "ranking of them."
)
LEGEND = (
    "tok/s: generated tokens per second, best of the runs; ±: their standard deviation; steady: while every slot is taken, ramp-up "
    "and drain left out. x [low, high]: ratio of mean tok/s with its 95% interval. delay: mean, from the "
    "scheduled arrival to being let in. TTFT, TPOT: medians. comm: exposed "
    "communication, bubble: waiting for another stage; shares of a decode step, from a separate run. memory: of the fullest rank."
)
SVG_WIDTH = 110


# -- the comparison ---------------------------------------------------------------------------------------------


def render(comparison: pa.Table, console: Console, sentences: Mapping[tuple[Any, ...], Sequence[str]] | None = None) -> None:
    """Print a table for each model, scenario and concurrency, the best layout first; failed ones with their reason below.

    sentences: verdicts to go under a table, by (experiment, model, scenario, max_concurrency).
    """
    every = comparison.to_pylist()
    for rows in grouped(every, GROUP):
        _render_group(rows, console, (sentences or {}).get(tuple(rows[0][name] for name in GROUP), ()))
    console.print(Text(LEGEND, style="dim"))
    if any(row["num_runs"] > 1 for row in every):
        console.print(f"{RUN_ORDER[0].upper()}{RUN_ORDER[1:]}.", style="dim")
    if any((row["device_name"] or "").lower() == "cpu" for row in every):
        console.print(CPU_NOTE, style="yellow")


def export_svg(draw: Callable[[Console], None], path: Path, title: str = "orchestrator compare") -> None:
    """What `draw` prints, as a picture of a terminal. Raises UserError where it cannot be written."""
    console = Console(record=True, width=SVG_WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    draw(console)
    try:
        console.save_svg(str(path), title=title)
    except OSError as error:
        raise UserError(f"the picture cannot be written to {path}: {error.strerror}; give another --svg") from error


def _render_group(rows: list[dict[str, Any]], console: Console, sentences: Sequence[str]) -> None:
    dtypes = {_dtype(row) for row in rows}
    console.print(_title(rows[0]) + (f" · {dtypes.pop()}" if len(dtypes) == 1 else ""), style="bold")
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, header_style="dim")
    for name in ("layout", "engine", *(["dtype"] if dtypes else [])):
        table.add_column(name, no_wrap=True)
    hidden = {"steady" if rows[0]["request_rate"] else "delay ms", *(LEFT_OUT if console.width < NARROW else ())}
    figures = {name: show for name, show in FIGURES.items() if name not in hidden}
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        words = (row["strategy"], row["engine"], *([_dtype(row)] if dtypes else []))
        table.add_row(*words, *(show(row) for show in figures.values()), style=_style(row))
    console.print(table)
    same = outputs.sentence(names_of(rows), rows)
    for sentence in (*sentences, *([same] if same else [])):
        console.print(Text(sentence))
    for row in rows:
        if row["reason"]:
            what = "invalid" if row["status"] == "invalid" else "failed"
            console.print(Text(f"{row['strategy']} ({row['engine']}) {what}: {row['reason']}", style="red"))
    if sentences or same or any(row["reason"] for row in rows):
        console.print()


def _title(row: dict[str, Any]) -> str:
    lengths = f" ({row['input_len']} in / {row['output_len']} out)" if row["input_len"] and row["output_len"] else ""
    rate = f" · {row['request_rate']:g} requests/s, at most" if row["request_rate"] else " ·"
    return f"{row['model']} · {row['scenario']}{lengths}{rate} {row['max_concurrency']} concurrent"


def _style(row: dict[str, Any]) -> str:
    if row["status"] != "completed":
        return "red"
    return "bold green" if row["relative_to_best"] == 1.0 else ""


def _dtype(row: dict[str, Any]) -> str:
    return row["dtype"] if row["quantization"] == "none" else f"{row['dtype']}, {row['quantization']}"


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 1, of: float = 100.0) -> str:
    return "-" if value is None else f"{100.0 * value / of:.{digits}f}%"


# Title of a column -> what it shows of a row.
FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "GPUs": lambda row: _number(row["num_gpus"], 0),
    "tok/s": lambda row: _number(row["output_throughput"]) if row["status"] == "completed" else row["status"],
    "±": lambda row: _number(row["output_throughput_std"]),
    "steady": lambda row: _number(row["steady_output_throughput"]),
    "/GPU": lambda row: _number(row["output_throughput_per_gpu"]),
    "best": lambda row: "best" if row["relative_to_best"] == 1.0 else _percent(row["relative_to_best"], 0, of=1.0),
    "delay ms": lambda row: _number(row["mean_schedule_delay_ms"]),
    "TTFT ms": lambda row: _number(row["median_ttft_ms"]),
    "TPOT ms": lambda row: _number(row["median_tpot_ms"], 2),
    "comm": lambda row: _percent(row["comm_exposed_pct"]),
    "bubble": lambda row: _percent(row["bubble_pct"]),
    "memory": lambda row: format_bytes(row["peak_memory_bytes"]) if row["peak_memory_bytes"] else "-",
    "runs": lambda row: str(row["num_runs"]),
}
NARROW = 100  # a terminal of fewer columns does without
LEFT_OUT = ("±", "steady", "/GPU", "runs")


# -- progress ---------------------------------------------------------------------------------------------------


class RunProgress:
    """How far the driver is (`orchestrator.driver.Progress`): a live bar in a terminal, elsewhere a line per finished run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done = self._total = 0
        self._last = ""
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=12), MofNCompleteColumn(), TextColumn("runs"),
            TimeRemainingColumn(), TextColumn("left  {task.fields[last]}"),
            console=console, transient=True, disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, last="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
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
        name = f"{layout} {row['engine']} {row['scenario']} c{row['max_concurrency']} run {row['run'] + 1}"
        if row["status"] != "completed":
            text = Text(f"{row['status']}: {row['reason']}", style="red")
        else:
            self._last = f"{_number(row['output_throughput'])} tok/s"
            text = Text(f"{self._last}, TTFT {_number(row['median_ttft_ms'])} ms, TPOT {_number(row['median_tpot_ms'], 2)} ms")
        self._console.print(Text(f"[{self._done}/{self._total}] {name}: ").append(text), soft_wrap=True)
        self._bar.update(self._task, completed=self._done, total=self._total, last=self._last)

    def note(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)
