"""The kernels of docs/techniques.md are those of the published tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.analysis.kernels import top_kernels
from orchestrator.analysis.load import load
from orchestrator.report.kernels import kernel_tables

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(("users", "shown"), [(0, 3), (1, 3), (2, 5)])
def test_what_takes_most_of_a_step_is_what_was_counted(users: int, shown: int) -> None:
    (found,) = load([DOCS / "results/1xh200/kernels-llama-8b"])
    tables = kernel_tables(top_kernels(found.kernels, [run.cell for run in found.runs]))
    text = (DOCS / "techniques.md").read_text(encoding="utf-8")
    for line in tables[users].rows[:shown]:
        assert f"| `{line.name}` | {' | '.join(line.figures)} |" in text
