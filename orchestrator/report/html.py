"""The comparison as one page that opens offline for ever: `report.html`, with its data, style and charting library inside."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from orchestrator import findings, outputs, results
from orchestrator.errors import UserError
from orchestrator.metrics import COMPLETED
from orchestrator.report import figures, sweep
from orchestrator.report.figures import Row
from orchestrator.report.terminal import CPU_NOTE
from orchestrator.results import Store
from orchestrator.units import format_bytes

REPORT = "report.html"
STATIC = files("orchestrator.report") / "static"
LIBRARIES = ("vega.min.js", "vega-lite.min.js")
COLOURS = 10  # layouts that are told apart by colour; the style sheet has as many


def render_html(folder: Path, out: Path | None = None) -> Path:
    """Write the report of the results at `folder`, an experiment's or one that holds several, to `out` [folder/report.html].

    Raises UserError where there are no results, or the page cannot be written.
    """
    context = describe(folder)
    loader = jinja2.FunctionLoader(lambda name: (STATIC / name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html.j2").render(
        **context,
        style=_static("report.css"),
        scripts=[*map(_static, LIBRARIES), _static("report.js")],
        licences=_static("LICENSES.txt"),
    )
    path = out or folder / REPORT
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}; give another --out") from error
    return path


def describe(folder: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    folders = results.find(folder)
    found = findings.of_folders(folders)
    comparison = found.comparison.to_pylist()
    names = figures.layout_names(comparison)
    data = _data(folders, comparison, names)
    return {
        "title": ", ".join(dict.fromkeys(row["model"] for row in comparison)) or folder.name,
        "data": _inline(data),
        "layouts": data["layouts"],
        "colours": {layout["name"]: layout["colour"] for layout in data["layouts"]},
        "experiments": data["experiments"],
        "hardware": _hardware(folders),
        "groups": _groups(comparison, names),
        "columns": [(column.title, column.help) for column in _columns(comparison)],
        "findings": _verdicts(found.verdicts.to_pylist()),
        "sweeps": _sweeps(found.curves.to_pylist()),
        "cpu_note": CPU_NOTE if any((row["device_name"] or "").lower() == "cpu" for row in comparison) else None,
        "environments": [_environment(path) for path in folders],
    }


# -- the data of the charts -------------------------------------------------------------------------------------


def _data(folders: Sequence[Path], comparison: Sequence[Row], names: dict[tuple[Any, ...], str]) -> dict[str, Any]:
    layouts = sorted(set(names.values()), key=figures.natural)
    return {
        "layouts": [{"name": name, "colour": index % COLOURS} for index, name in enumerate(layouts)],
        "experiments": _experiments(comparison),
        "cells": figures.cells(comparison, _rows(_read(folders, "parts"))),
        "latencies": _each(folders, "requests", figures.latencies, names),
        "timeline": _each(folders, "spans", figures.timeline, names),
        "memory": figures.memory(_rows(_read(folders, "summary")), names),
        "capacity_gb": _capacity(folders),
        "telemetry": _each(folders, "telemetry", figures.telemetry, names),
    }


def _each(folders: Sequence[Path], table: str, chart: Callable[..., list[Any]], names: dict[tuple[Any, ...], str]) -> list[Any]:
    return [row for folder in folders for row in chart(Store(folder).read(table), names)]


def _read(folders: Sequence[Path], table: str) -> pa.Table | None:
    return results.concat(Store(folder).read(table) for folder in folders)


def _rows(table: pa.Table | None) -> list[dict[str, Any]]:
    return table.to_pylist() if table is not None else []


def _experiments(comparison: Sequence[Row]) -> list[dict[str, Any]]:
    """What there is to select: experiments by their model, or by their whole name where two have the same."""
    models = {row["experiment"]: row["model"] for row in comparison}
    unique = len(set(models.values())) == len(models)
    return [
        {
            "name": experiment,
            "label": model if unique else f"{model} ({experiment})",
            "scenarios": [
                {"name": scenario, "label": _scenario(rows[0]), "concurrencies": sorted({row["max_concurrency"] for row in rows})}
                for scenario, rows in figures.grouped(
                    (row for row in comparison if row["experiment"] == experiment), lambda row: row["scenario"]
                ).items()
            ],
        }
        for experiment, model in models.items()
    ]


def _scenario(row: Row) -> str:
    known = row["input_len"] and row["output_len"]
    return f"{row['scenario']} ({row['input_len']} in / {row['output_len']} out)" if known else row["scenario"]


def _capacity(folders: Sequence[Path]) -> float | None:
    """Memory of one GPU, where all have the same."""
    found = {gpu.get("memory_bytes") for folder in folders for gpu in results.read_manifest(folder).get("gpus") or ()}
    return found.pop() / 1e9 if len(found) == 1 and None not in found else None


def _inline(data: Any) -> str:
    """JSON that may stand in a script element: no "<" in it can end one."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


# -- the comparison ---------------------------------------------------------------------------------------------


class Column:
    """A column of the comparison: its title, what it means, and what it shows of a row, "" where it is unknown."""

    def __init__(self, title: str, help: str, show: Callable[[Row], str]) -> None:
        self.title, self.help, self.show = title, help, show


def number(value: float | None) -> str:
    """With three digits or more: 2,111 or 211 or 21.1 or 2.11."""
    if not value:
        return "" if value is None else "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def _figure(name: str, unit: str = "") -> Callable[[Row], str]:
    return lambda row: "" if row.get(name) is None else number(row[name]) + unit


def _interval(row: Row) -> str:
    low, high = row["output_throughput_ci_low"], row["output_throughput_ci_high"]
    return "" if low is None or high is None else f"{number(low)}\u2013{number(high)}"


def _memory(row: Row) -> str:
    return format_bytes(row["peak_memory_bytes"]) if row["peak_memory_bytes"] else ""


# Columns of the summary -> how a verdict on them is headed.
METRICS = {
    "output_throughput": "most tokens/s",
    "output_throughput_per_gpu": "most tokens/s per GPU",
    "median_tpot_ms": "shortest time per token",
    "median_ttft_ms": "shortest time to first token",
    "request_goodput": "most goodput",
    "joules_per_output_token": "least energy per token",
}
COLUMNS = (
    Column("GPUs", "GPUs of the layout", lambda row: "" if row["num_gpus"] is None else str(row["num_gpus"])),
    Column("tok/s", "generated tokens per second, best of the runs", _figure("output_throughput")),
    Column("interval", "95% interval of the mean over the runs", _interval),
    Column("steady tok/s", "the same while all slots are busy: without ramp-up and drain", _figure("steady_output_throughput")),
    Column("tok/s/GPU", "the same per GPU", _figure("output_throughput_per_gpu")),
    Column("TTFT ms", "time to first token, median", _figure("median_ttft_ms")),
    Column("TPOT ms", "time per output token after the first, median", _figure("median_tpot_ms")),
    Column("p99 TPOT", "the same, 99th percentile, in ms", _figure("p99_tpot_ms")),
    Column("p99 delay", "from scheduled arrival to being let in, 99th percentile, ms", _figure("p99_schedule_delay_ms")),
    Column("comm", "transfer and wait in a decode step during which nothing computes", _figure("comm_exposed_pct", unit="%")),
    Column("bubble", "waiting for another pipeline stage in a decode step", _figure("bubble_pct", unit="%")),
    Column("goodput", "requests per second that met the objective", _figure("request_goodput")),
    Column("bound", "tokens per second that the hardware could do at most", _figure("bound_output_throughput")),
    Column("of bound", "throughput in percent of its bound", _figure("bound_pct", unit="%")),
    Column("MFU", "model FLOPs utilisation", _figure("model_flops_utilization", unit="%")),
    Column("MBU", "memory bandwidth utilisation", _figure("memory_bandwidth_utilization", unit="%")),
    Column("J/token", "energy per generated token", _figure("joules_per_output_token")),
    Column("memory", "peak of the fullest rank", _memory),
    Column("runs", "completed runs", lambda row: str(row["num_runs"])),
)


def _columns(comparison: Sequence[Row]) -> list[Column]:
    """The columns of which anything is known."""
    return [column for column in COLUMNS if any(column.show(row) for row in comparison)]


def _groups(comparison: Sequence[Row], names: dict[tuple[Any, ...], str]) -> list[dict[str, Any]]:
    """The table: rows by experiment, scenario and concurrency."""
    columns = _columns(comparison)
    groups = figures.grouped(comparison, lambda row: (row["experiment"], row["scenario"], row["max_concurrency"]))
    return [
        {
            "experiment": experiment, "scenario": scenario, "concurrency": concurrency,
            "title": f"{concurrency} concurrent",
            "tokens": outputs.sentence([names[figures.key(row)] for row in rows], rows),
            "rows": [_line(row, names[figures.key(row)], columns) for row in rows],
        }
        for (experiment, scenario, concurrency), rows in groups.items()
    ]  # fmt: skip


def _line(row: Row, layout: str, columns: Sequence[Column]) -> dict[str, Any]:
    good = row["status"] == COMPLETED
    return {
        "layout": layout,
        "status": row["status"],
        "reason": row["reason"],
        "relative": row["relative_to_best"] if good else None,
        "figures": [column.show(row) for column in columns] if good else [],
    }


# -- the verdicts -----------------------------------------------------------------------------------------------


def _verdicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """By experiment and scenario: for each concurrency and metric the best layout against the next, and all in words."""
    return [
        {"experiment": experiment, "scenario": scenario, **_matrix(found)}
        for (experiment, scenario), found in figures.grouped(rows, lambda row: (row["experiment"], row["scenario"])).items()
    ]


def _sweeps(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the sweep over concurrencies says of each layout, by experiment and scenario."""
    return [
        {"experiment": experiment, "scenario": scenario, "sentences": [sweep.line(dict(row)) for row in found]}
        for (experiment, scenario), found in figures.grouped(rows, lambda row: (row["experiment"], row["scenario"])).items()
    ]


def _matrix(rows: Sequence[Row]) -> dict[str, Any]:
    metrics = [name for name in METRICS if any(row["metric"] == name for row in rows)]
    lines = figures.grouped(rows, lambda row: row["max_concurrency"])
    return {
        "metrics": [METRICS[name] for name in metrics],
        "lines": [
            {
                "concurrency": concurrency,
                "winners": [next((_winner(row) for row in line if row["metric"] == name), None) for name in metrics],
                "sentences": [row["sentence"] for row in line],
            }
            for concurrency, line in sorted(lines.items())
        ],
    }  # fmt: skip


def _winner(row: Row) -> dict[str, Any]:
    """The best layout and the next, and by how much, as far as the runs show it."""
    times = "" if row["ratio"] is None else f"{row['ratio']:.2f}x"
    interval = "" if row["ci_low"] is None else f"[{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
    return {"best": row["best"], "other": row["other"], "times": times, "interval": interval, "equal": row["different"] is False}


# -- the environment --------------------------------------------------------------------------------------------


def _hardware(folders: Sequence[Path]) -> str:
    manifests = [results.read_manifest(folder) for folder in folders]
    return "; ".join(dict.fromkeys(filter(None, map(_devices, manifests))))


def _devices(manifest: dict[str, Any]) -> str:
    gpus = [gpu["name"] for gpu in manifest.get("gpus") or () if gpu.get("name")]
    if manifest.get("device") == "cpu" or not gpus:
        return f"CPU, {manifest['host']['cpu_count']} cores" if manifest.get("host") else ""
    return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))


def _environment(folder: Path) -> dict[str, Any]:
    manifest = results.read_manifest(folder)
    asked = {name: value for name, value in (manifest.get("experiment") or {}).items() if value not in (None, [], {}, "", False)}
    asked.pop("result_dir", None)
    host = manifest.get("host") or {}
    facts = {
        "Devices": _devices(manifest),
        "Driver": manifest.get("driver_version"),
        "NCCL": manifest.get("nccl_version"),
        "Host": host.get("system"),
        "Processors": host.get("cpu_count"),
        "Main memory": format_bytes(host["memory_bytes"]) if host.get("memory_bytes") else None,
        "Commit": manifest.get("git_commit"),
        "Started": manifest.get("started_at"),
        "Finished": manifest.get("finished_at"),
    }
    return {
        "name": folder.resolve().name,
        "facts": {name: value for name, value in facts.items() if value},
        "versions": manifest.get("versions") or {},
        "asked": {name: _text(value) for name, value in asked.items()},
        "manifest": json.dumps(manifest, indent=2),
    }


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else json.dumps(value) if isinstance(value, dict) else str(value)


def _static(name: str) -> str:
    """A file of the page, without the reference to a source map that would have to be fetched."""
    text = (STATIC / name).read_text(encoding="utf-8")
    return text.split("//# sourceMappingURL=")[0].strip()
