"""Results as files for others: tables, pages and traces, and the list of what was run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.commands import training
from orchestrator.report.output import Output, say

if TYPE_CHECKING:
    from rich.console import Console

DIFFERS = 1


def pack(folder: Path, into: Path) -> None:
    """Pack the results at or below `folder`, and print the files."""
    from orchestrator.analysis.comparing.findings import tables
    from orchestrator.store.export import pack as write
    from orchestrator.store.folders import find, is_experiment, manifest_text
    from orchestrator.store.store import Store

    for one in find(folder):
        target = into if is_experiment(folder) else into / one.name
        for path in write(tables(one), manifest_text(one), target):
            say(path)
    rates = Store(folder).rates()
    if rates is not None:
        say(Store(into).write_rates(rates))


def unpack(packed: Sequence[Path], root: Path | None, **named: Sequence[str]) -> None:
    """Unpack the results at or below `packed` into a folder each below `root`, and print them.
    Those of one experiment are put together. named: of a key of runs, as engine, those to take."""
    from orchestrator.analysis.load import parts
    from orchestrator.store.export import unpack as write
    from orchestrator.store.folders import DEFAULT_ROOT, find, read_manifest
    from orchestrator.store.names import names_in, safe_name
    from orchestrator.store.pooling import Packed, only, pooled
    from orchestrator.store.store import Store

    by_name: dict[str, list[Packed]] = {}
    wanted = {key: names_in(texts) for key, texts in named.items()}
    for one in (one for root_of in packed for one in find(root_of)):
        found = Packed(str(one), parts(one), read_manifest(one))
        by_name.setdefault(safe_name(Store(one).name), []).append(only(found, wanted))
    for name, packs in by_name.items():
        whole = pooled(packs)
        text = json.dumps(whole.manifest, indent=2)
        say(write(whole.tables, f"{text}\n", (root or DEFAULT_ROOT) / name))


def trace(root: Path) -> None:
    """Write the traces of all results under `root`."""
    from orchestrator.store.folders import find

    for folder in find(root):
        write_traces(folder)


def recompute(folder: Path, as_json: bool) -> int:
    """Work out again what was kept of the observed runs at or below `folder`."""
    from orchestrator.analysis.recompute import DIFFERENT, of_folder
    from orchestrator.report.lists import recomputed_data, render_recomputed

    found = of_folder(folder)
    Output(as_json).show(
        lambda: recomputed_data(found), lambda console: render_recomputed(found, console)
    )
    return DIFFERS if any(one.status == DIFFERENT for one in found) else 0


def report(folder: Path, page: Path | None, open_: bool) -> None:
    """Write the page of results; `open_`: show it."""
    path = page_of(folder, page)
    say(path)
    if open_:
        click.launch(path.resolve().as_uri())


def runs(roots: Sequence[Path], as_json: bool) -> None:
    """What was run under `roots`."""
    from dataclasses import asdict

    from orchestrator.report.lists import render_runs
    from orchestrator.store.catalog import list_runs

    rows = list_runs(roots)
    Output(as_json).show(
        lambda: [asdict(row) for row in rows], lambda console: render_runs(rows, console)
    )


def write_report(folder: Path, console: Console) -> Path | None:
    """Write report.html and say where; a report that cannot be made is None and takes nothing from
    the results."""
    try:
        path = page_of(folder, None)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        say(f"note: the report could not be made: {why}.", err=True)
        return None
    console.print(f"Report: {path}", soft_wrap=True, highlight=False)
    return path


def page_of(folder: Path, out: Path | None) -> Path:
    """Write the page of results: of runs that train where there are any, else of those that
    serve."""
    from orchestrator.report import html

    if trained := training.trained_at([folder]):
        return training.page(trained, out or folder / html.REPORT)
    return html.render_html(folder, out)


def write_traces(folder: Path, to_stderr: bool = False) -> None:
    """Write the traces of results, and print the files."""
    from orchestrator.report.trace import write_traces

    for path in write_traces(folder):
        say(path, err=to_stderr)
