"""Names that are more than letters, on their way to a file, a terminal, a table and a page."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow as pa
import pytest
from tables import make

from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Deployment, Scenario
from orchestrator.report.output import console_of
from orchestrator.report.trace import write_traces
from orchestrator.store.export import write_tables
from orchestrator.store.names import as_path, cell, safe_name, shortened, shown
from orchestrator.store.store import Store
from workers.records import SPANS

SPAN = {"rank": 0, "phase": "decode", "step": 0, "kind": "compute", "start_us": 0.0, "end_us": 5.0}


@pytest.mark.parametrize("name", ["/etc/x", "../../x", "..", ".", "a/b", "x" * 300, "a\0b", "é☃"])
def test_a_name_becomes_a_file_of_its_folder(name: str) -> None:
    safe = safe_name(name)
    assert Path(safe).name == safe
    assert len(safe.encode()) <= 200
    assert safe_name(name + "!") != safe


def test_a_trace_stays_in_its_folder(tmp_path: Path) -> None:
    """The model of a table that somebody sent."""
    store = Store(tmp_path / "r" / "m-1")
    store.create()
    outside = Deployment(str(tmp_path / "outside"), "tp2", "torch", "float32")
    store.write_observed(
        Cell(outside, Scenario("../s", 1, 1), 1), 0, {"spans": make(SPANS, [SPAN])}
    )
    (path,) = write_traces(store.folder)
    assert path.parent == store.folder / "traces"
    assert [one.name for one in tmp_path.iterdir()] == ["r"]


def test_a_terminal_shows_a_name_as_it_is() -> None:
    out = io.StringIO()
    console = console_of(file=out, width=80, force_terminal=True, color_system="truecolor")
    console.print("exp[v2] a[/b] run[bold]3 :smile: \x1b]0;title\x07", highlight=False)
    assert out.getvalue() == "exp[v2] a[/b] run[bold]3 :smile: \\x1b]0;title\n"


def test_control_characters_are_written_out() -> None:
    assert shown("a\x1b[31m\n\u202e\x9b\udcff") == "a\\x1b[31m\\n\\u202e\\x9b\\udcff"
    assert shown("ü [b] 日本") == "ü [b] 日本"
    assert shortened("x" * 5000, 20) == f"{'x' * 10} ... {'x' * 10}"


def test_a_cell_of_csv_is_no_formula(tmp_path: Path) -> None:
    names = ["=cmd|'/c calc'!A0", "+1", "-x", "@sum", "tiny", None]
    table = pa.table({"model": names, "value": [-1.0] * 6, "list": [[1, 2]] * 6})
    (path,) = write_tables({"t": table}, "csv", tmp_path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["model"][:2] for row in rows] == ["'=", "'+", "'-", "'@", "ti", ""]
    assert {(row["value"], row["list"]) for row in rows} == {("-1", "[1, 2]")}
    assert cell("tiny") == "tiny"


@pytest.mark.parametrize("text", ["~nouser/x", "a\0b", "x" * 5000])
def test_a_path_that_no_file_can_have_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        as_path(text)
