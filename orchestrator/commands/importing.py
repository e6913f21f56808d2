"""Results of other tools, and exported ones, as an experiment to compare against."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.errors import UserError
from orchestrator.report.output import say

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.analysis.summary import Measured
    from orchestrator.commands.vllm_bench import Record
    from orchestrator.commands.vllm_import import Named

EXPORT = "orchestrator-export"
JSON = (".json", ".jsonl")


def import_results(
    files: Sequence[Path],
    named: Mapping[str, str | None],
    result_dir: Path | None,
    out: Path | None,
) -> None:
    """Write what is in `files` as one experiment, and print its folder. named: what the user says
    of runs of other tools; see `vllm_import.Named`."""
    from orchestrator.commands.vllm_import import Named
    from orchestrator.store.export import pack
    from orchestrator.store.folders import DEFAULT_ROOT
    from orchestrator.store.names import safe_name

    given = [path for one in files for path in _files(one)]
    folder = out or (result_dir or DEFAULT_ROOT) / f"imported-{safe_name(files[0].stem)}"
    is_json = {path.suffix.lower() in JSON for path in given}
    if len(is_json) > 1:
        raise UserError("files of other tools and exported tables are imported one by one")
    if is_json.pop():
        tables, format_ = _of_tools(given, folder.name, Named(**named))
    else:
        if said := [name for name, value in named.items() if value]:
            raise UserError(f"exported tables name their cells themselves; leave --{said[0]} out")
        tables, format_ = _of_export(given), EXPORT
    _check_cells(tables)
    pack(tables, _manifest(tables, given, folder.name, format_), folder)
    say(folder)


def _files(path: Path) -> list[Path]:
    from orchestrator.store.imported import SUFFIXES, exported

    found = exported(path)
    if not path.exists() or not found:
        raise UserError(f"there is nothing to import at {path}; give a file, or a folder of tables")
    unknown = [
        one for one in found if one.suffix.lower() not in JSON and one.suffix not in SUFFIXES
    ]
    if unknown:
        raise UserError(
            f"{unknown[0]} is not read; give the JSON of `vllm bench serve --save-result` or of "
            f"AIPerf, or the tables of `orchestrator export` ({', '.join(SUFFIXES)})"
        )
    return found


# -- other tools


class Told(NamedTuple):
    """What a tool says of a run, under the names of vLLM's benchmark, and in which file."""

    record: Record
    where: str
    tool: str
    format: str


def _of_tools(
    files: Sequence[Path], experiment: str, named: Named
) -> tuple[dict[str, pa.Table], str]:
    """The tables of the runs, and the formats that they were in."""
    from orchestrator.analysis.summary import MEASURED
    from orchestrator.commands.vllm_import import requests_of, run_of
    from orchestrator.store.arrow_files import concat

    told = [_told(record, path) for path in files for record in _records(path)]
    runs = _numbered([run_of(one.record, one.where, one.tool, experiment, named) for one in told])
    kept = [requests_of(one.record, one.where, run) for one, run in zip(told, runs, strict=True)]
    found = {"summary": MEASURED.make(runs), "requests": concat(kept)}
    tables = {name: table for name, table in found.items() if table is not None}
    return tables, " and ".join(dict.fromkeys(one.format for one in told))


def _told(record: Record, path: Path) -> Told:
    from orchestrator.commands import aiperf, aiperf_import, vllm_bench

    if not aiperf_import.is_record(record):
        return Told(record, path.name, "`vllm bench serve`", vllm_bench.FORMAT)
    where = f"{path.absolute().parent.name}/{path.name}"  # all files of AIPerf have one name
    return Told(aiperf_import.as_vllm(record, where), where, "AIPerf", aiperf.FORMAT)


def _records(path: Path) -> list[Record]:
    """The objects of a file: one, or with vLLM's --append-result one a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        try:
            found = [json.loads(text, parse_constant=lambda _: None)]
        except ValueError:
            lines = [line for line in text.splitlines() if line.strip()]
            found = [json.loads(line, parse_constant=lambda _: None) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON that can be read: {error}") from error
    if not found or not all(isinstance(one, dict) for one in found):
        raise UserError(
            f"{path} holds no JSON object; give what `vllm bench serve` or AIPerf wrote"
        )
    return found


def _numbered(runs: Sequence[Measured]) -> list[Measured]:
    """The runs with numbers of their own: those of a cell that say none are repeats of one start,
    for nobody knows whether their server was started again."""
    from dataclasses import replace

    taken: set[tuple[object, int, int]] = set()
    out = []
    for run in runs:
        number = run.run
        while (run.cell, run.start, number) in taken:
            number += 1
        taken.add((run.cell, run.start, number))
        out.append(replace(run, run=number))
    return out


def _check_cells(tables: Mapping[str, pa.Table]) -> None:
    """Raise UserError where a cell has runs that arrived differently: those are other work."""
    from orchestrator.analysis.summary import MEASURED

    ways: dict[object, str] = {}
    for run in MEASURED.rows(tables["summary"]):
        rate, trace = run.arrivals.request_rate, run.arrivals.trace
        way = f"{rate or 'no'} requests/s" + (f" of a trace ({trace})" if trace else "")
        if ways.setdefault(run.cell, way) != way:
            raise UserError(
                f"{run.cell.name} is there at {ways[run.cell]} and at {way}, which are different "
                "work; import them one by one"
            )


# -- our own tables


def _of_export(files: Sequence[Path]) -> dict[str, pa.Table]:
    from orchestrator.analysis.outputs import KEPT_REQUESTS
    from orchestrator.analysis.summary import MEASURED, SUMMARY
    from orchestrator.store.imported import read_table
    from orchestrator.store.store import TABLES

    schemas = {"summary": SUMMARY.schema, "requests": KEPT_REQUESTS.schema}
    known = [path for path in files if path.stem in TABLES]
    readable = [path for path in known if path.suffix != ".csv" or path.stem in schemas]
    tables = {path.stem: read_table(path, schemas) for path in readable}
    if "training" in {path.stem for path in files}:
        raise UserError(
            f"{files[0].parent} is of training, which is not imported; `compare` reads its results"
        )
    if "summary" not in tables:
        raise UserError(
            f"there is no table 'summary' among {', '.join(path.name for path in files)}; give the "
            "summary that `orchestrator export` wrote, or the folder it is in"
        )
    try:
        tables["summary"] = MEASURED.make(MEASURED.rows(tables["summary"]))
    except KeyError as error:
        raise UserError(f"the summary has no column {error}, which a run needs") from error
    return tables


def _manifest(
    tables: Mapping[str, pa.Table], files: Iterable[Path], name: str, format_: str
) -> str:
    """manifest.json of an import: what the runs say, and that they were imported."""
    from orchestrator.analysis.summary import MEASURED
    from orchestrator.store.folders import now

    runs = MEASURED.rows(tables["summary"])
    cells = [run.cell for run in runs]
    asked = {
        column: list(dict.fromkeys(getattr(cell, column) for cell in cells))
        for column in ("strategy", "scenario", "max_concurrency")
    }
    fields = {
        "schema_version": int(MEASURED.schema.metadata[b"schema_version"]),
        "name": cells[0].experiment if cells else name,
        "started_at": min((run.conditions.started_at for run in runs), default=""),
        "updated_at": now(),
        "experiment": asked,
        "cells": sorted({cell.name for cell in cells}),
        "imported": {
            "format": format_,
            "files": [str(path) for path in files],
            "imported_at": now(),
            "tables": sorted(tables),
        },
    }
    return json.dumps(fields, indent=2) + "\n"
