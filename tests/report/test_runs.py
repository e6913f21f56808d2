"""The list of what was run."""

import io
from dataclasses import replace

from orchestrator.report.checks import render_listed
from orchestrator.report.output import console_of
from orchestrator.store.catalog import Listed

LISTED = Listed(
    name="tiny-1",
    folder="x/" * 200,
    started_at="2030-01-01",
    model="tiny",
    strategies=["tp4", "pp4"],
    completed=3,
    invalid=2,
    failed=1,
    schema_version=2,
)


def test_the_list_is_cut_at_no_width_outside_a_terminal():
    console = console_of(file=io.StringIO(), width=80)
    render_listed([LISTED], console)
    assert "x/" * 200 in console.file.getvalue()


def test_results_of_another_version_are_listed_without_counts():
    console = console_of(file=io.StringIO(), width=160)
    render_listed([replace(LISTED, folder="old", completed=0, schema_version=1)], console)
    shown = " ".join(console.file.getvalue().split())
    assert "tp4, pp4 - - - old (schema version 1: cannot be read)" in shown
