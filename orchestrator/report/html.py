"""The comparison as one page that opens offline for ever: `report.html`, with its data, style and
charting library inside."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from orchestrator.analysis import findings
from orchestrator.analysis.compare import run_order
from orchestrator.errors import UserError
from orchestrator.report import environment, figures, side_by_side, sweep
from orchestrator.report.figures import Row
from orchestrator.report.side_by_side import number
from orchestrator.report.terminal import CPU_NOTE
from orchestrator.store import results
from orchestrator.store.results import Store
from orchestrator.units import format_bytes

REPORT = "report.html"
STATIC = files("orchestrator.report") / "static"
LIBRARIES = ("vega.min.js", "vega-lite.min.js")
COLOURS = 10  # layouts that are told apart by colour; the style sheet has as many


def render_html(folder: Path, out: Path | None = None) -> Path:
    """Write the report of the results at `folder`, an experiment's or one that holds several, to
    `out` [folder/report.html].

    Raises UserError where there are no results, or the page cannot be written.
    """
    context = describe(folder)
    loader = jinja2.FunctionLoader(lambda name: (STATIC / name).read_text(encoding="utf-8"))
    templates = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = templates.get_template("report.html.j2").render(
        **context,
        style=_static("report.css"),
        scripts=[*map(_static, LIBRARIES), _static("report.js")],
        licences=_static("LICENSES.txt"),
    )
    path = out or folder / REPORT
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {path}: {error.strerror}; give another --out"
        ) from error
    return path


def describe(folder: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    folders = results.find(folder)
    found = findings.of_folders(folders)
    summary = _rows(_read(folders, "summary"))
    comparison = figures.with_bounds(found.comparison.to_pylist(), summary)
    names = figures.layout_names(comparison)
    communication = _each(folders, figures.COLLECTIVES, figures.communication, names)
    ablations = _named(found.ablations.to_pylist(), names)
    data = _data(folders, comparison, summary, names)
    data["tables"] = {
        "comparison": _table(_named(comparison, names)),
        "findings": _table(found.verdicts.to_pylist()),
        "sweep": _table(found.curves.to_pylist()),
        "ablations": _table(ablations),
        "communication": _table(communication),
    }
    return {
        "title": ", ".join(dict.fromkeys(row["model"] for row in comparison)) or folder.name,
        "data": _inline(data),
        "layouts": data["layouts"],
        "colours": {layout["name"]: layout["colour"] for layout in data["layouts"]},
        "experiments": data["experiments"],
        "hardware": environment.hardware(folders),
        "groups": side_by_side.groups(comparison, summary, names),
        "columns": [
            (column.title, column.help) for column in side_by_side.known_columns(comparison)
        ],
        "run_orders": _run_orders(comparison),
        "bound_sources": side_by_side.bound_sources(comparison),
        "findings": _verdicts(found.verdicts.to_pylist()),
        "sweeps": _sweeps(found.curves.to_pylist()),
        "ablations": _ablations(ablations),
        "communication": _communication(communication),
        "cpu_note": CPU_NOTE
        if any((row["device_name"] or "").lower() == "cpu" for row in comparison)
        else None,
        "environments": [environment.describe(path) for path in folders],
    }


# -- the data of the charts


def _data(
    folders: Sequence[Path],
    comparison: Sequence[Row],
    summary: Sequence[Row],
    names: dict[tuple[Any, ...], str],
) -> dict[str, Any]:
    layouts = sorted(set(names.values()), key=figures.natural)
    return {
        "layouts": [
            {"name": name, "colour": index % COLOURS} for index, name in enumerate(layouts)
        ],
        "experiments": _experiments(comparison),
        "cells": figures.cells(comparison, _rows(_read(folders, "parts")), _read(folders, "steps")),
        "latencies": _each(folders, "requests", figures.latencies, names),
        "timeline": _each(folders, "spans", figures.timeline, names),
        "memory": figures.memory(summary, names),
        "capacity_gb": _capacity(folders),
        "telemetry": _each(folders, "telemetry", figures.telemetry, names),
    }


def _each(
    folders: Sequence[Path],
    table: str,
    chart: Callable[..., list[Any]],
    names: dict[tuple[Any, ...], str],
) -> list[Any]:
    return [row for folder in folders for row in chart(Store(folder).read(table), names)]


def _read(folders: Sequence[Path], table: str) -> pa.Table | None:
    return results.concat(Store(folder).read(table) for folder in folders)


def _rows(table: pa.Table | None) -> list[dict[str, Any]]:
    return table.to_pylist() if table is not None else []


def _named(rows: Sequence[Row], names: dict[tuple[Any, ...], str]) -> list[dict[str, Any]]:
    """Rows with the name of their layout in front; that of an ablated cell is its whole one's."""
    return [{"layout": names[figures.key({**row, "ablation": None})], **row} for row in rows]


def _table(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows as they are downloaded: the columns of which anything is known, and the values in their
    order."""
    known = [
        name for name in (rows[0] if rows else ()) if any(row[name] is not None for row in rows)
    ]
    return {"columns": known, "rows": [[_plain(row[name]) for name in known] for row in rows]}


def _plain(value: Any) -> Any:
    """What JSON and CSV can hold: a list as its own JSON, and no number that is none."""
    if isinstance(value, list):
        return json.dumps(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _experiments(comparison: Sequence[Row]) -> list[dict[str, Any]]:
    """What there is to select: experiments by their model, or by their whole name where two have
    the same."""
    models = {row["experiment"]: row["model"] for row in comparison}
    unique = len(set(models.values())) == len(models)
    return [
        {
            "name": experiment,
            "label": model if unique else f"{model} ({experiment})",
            "scenarios": [
                {
                    "name": scenario,
                    "label": _scenario(rows[0]),
                    "concurrencies": sorted({row["max_concurrency"] for row in rows}),
                }
                for scenario, rows in figures.grouped(
                    (row for row in comparison if row["experiment"] == experiment),
                    lambda row: row["scenario"],
                ).items()
            ],
        }
        for experiment, model in models.items()
    ]


def _scenario(row: Row) -> str:
    known = row["input_len"] and row["output_len"]
    return (
        f"{row['scenario']} ({row['input_len']} in / {row['output_len']} out)"
        if known
        else row["scenario"]
    )


def _capacity(folders: Sequence[Path]) -> float | None:
    """Memory of one GPU, where all have the same."""
    found = {
        gpu.get("memory_bytes")
        for folder in folders
        for gpu in results.read_manifest(folder).get("gpus") or ()
    }
    return found.pop() / 1e9 if len(found) == 1 and None not in found else None


def _inline(data: Any) -> str:
    """JSON that may stand in a script element: no "<" in it can end one."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


# -- what is said of the layouts


# Columns of the summary -> how a verdict on them is headed.
METRICS = {
    "output_throughput": "most tokens/s",
    "output_throughput_per_gpu": "most tokens/s per GPU",
    "median_tpot_ms": "shortest time per token",
    "median_ttft_ms": "shortest time to first token",
    "request_goodput": "most goodput",
    "joules_per_output_token": "least energy per token",
}


def _verdicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """By experiment and scenario: for each concurrency and metric the best layout against the next,
    and all in words."""
    return [
        {"experiment": experiment, "scenario": scenario, **_matrix(found)}
        for (experiment, scenario), found in figures.grouped(
            rows, lambda row: (row["experiment"], row["scenario"])
        ).items()
    ]


def _run_orders(comparison: Sequence[Row]) -> list[dict[str, Any]]:
    """In which order the runs were made, by experiment and scenario; nothing where none was made
    twice."""
    groups = figures.grouped(comparison, lambda row: (row["experiment"], row["scenario"]))
    orders = {group: run_order(rows) for group, rows in groups.items()}
    return [
        {"experiment": group[0], "scenario": group[1], "sentence": order}
        for group, order in orders.items()
        if order
    ]


def _sweeps(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the sweep over concurrencies says of each layout, by experiment and scenario."""
    return [
        {
            "experiment": experiment,
            "scenario": scenario,
            "sentences": [sweep.line(dict(row)) for row in found],
        }
        for (experiment, scenario), found in figures.grouped(
            rows, lambda row: (row["experiment"], row["scenario"])
        ).items()
    ]


def _ablations(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What a step costs without its collectives or its links, by experiment and scenario, beside
    what the profile says."""
    return [
        {"experiment": experiment, "scenario": scenario, "rows": [_ablation(row) for row in found]}
        for (experiment, scenario), found in figures.grouped(
            rows, lambda row: (row["experiment"], row["scenario"])
        ).items()
    ]


ABLATIONS = {"comm": "collectives", "p2p": "peer-to-peer links"}


def _ablation(row: Row) -> dict[str, Any]:
    profile = (
        row["comm_exposed_pct"] if row["ablation"] == "comm" else None
    )  # without links there still is communication
    return {
        "layout": row["layout"],
        "figures": [
            str(row["max_concurrency"]),
            ABLATIONS.get(row["ablation"], row["ablation"]),
            number(row["decode_ms_per_step"]),
            number(row["decode_ms_per_step_without"]),
            f"{row['saved_pct']:.1f}%",
            "" if profile is None else f"{profile:.1f}%",
        ],
    }


def _communication(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """By experiment, scenario and concurrency what the calls of each operation took."""
    ordered = sorted(
        rows, key=lambda row: (figures.natural(row["layout"]), row["phase"], row["axis"], row["op"])
    )
    groups = figures.grouped(
        ordered, lambda row: (row["experiment"], row["scenario"], row["concurrency"])
    )
    return [
        {
            "experiment": experiment,
            "scenario": scenario,
            "concurrency": concurrency,
            "rows": [_operation(row) for row in found],
        }
        for (experiment, scenario, concurrency), found in groups.items()
    ]


def _operation(row: Row) -> dict[str, Any]:
    size = f" of {row['group_size']}" if row["group_size"] else ""
    return {
        "layout": row["layout"],
        "names": [row["phase"], row["op"].replace("_", "-"), f"{row['axis']}{size}"],
        "figures": [
            f"{row['calls']:,.0f}",
            _size(row["bytes_per_call"]),
            *(
                number(row[f"{name}{end}"])
                for name in ("transfer_us", "wait_us")
                for end in ("", "_worst")
            ),
            *(_rate(row[name]) for name in ("algbw", "busbw", "busbw_worst")),
        ],
    }


def _size(value: float | None) -> str:
    return "" if value is None else format_bytes(round(value))


def _rate(value: float | None) -> str:
    """What is next to nothing is said to be so."""
    return "<0.01" if value is not None and value < 0.005 else number(value)


def _matrix(rows: Sequence[Row]) -> dict[str, Any]:
    metrics = [name for name in METRICS if any(row["metric"] == name for row in rows)]
    lines = figures.grouped(rows, lambda row: row["max_concurrency"])
    return {
        "metrics": [METRICS[name] for name in metrics],
        "lines": [
            {
                "concurrency": concurrency,
                "winners": [
                    next((_winner(row) for row in line if row["metric"] == name), None)
                    for name in metrics
                ],
                "sentences": [row["sentence"] for row in line],
            }
            for concurrency, line in sorted(lines.items())
        ],
    }


def _winner(row: Row) -> dict[str, Any]:
    """The best layout and the next, and by how much, as far as the runs show it."""
    times = "" if row["ratio"] is None else f"{row['ratio']:.2f}x"
    interval = "" if row["ci_low"] is None else f"[{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
    return {
        "best": row["best"],
        "other": row["other"],
        "times": times,
        "interval": interval,
        "equal": row["different"] is False,
    }


def _static(name: str) -> str:
    """A file of the page, without the reference to a source map that would have to be fetched."""
    text = (STATIC / name).read_text(encoding="utf-8")
    return text.split("//# sourceMappingURL=")[0].strip()
