"""A new column that is computed from recorded data changes one source file: done here to a copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The new column in every place where a column can be seen.
SEEN = """
from columns_page import page
from test_summary import ATTEMPT, BUILDING, REPORTS, SERVED
from orchestrator.analysis.comparing.compare import COMPARED, compare
from orchestrator.analysis.summary import MEASURED, SUMMARY, Summary, measured
from workers.rows import nothing, widened
from orchestrator.analysis.summary import Observed

row = measured(ATTEMPT, BUILDING, REPORTS, SERVED)
print(MEASURED.make([row]).column("brand_new").to_pylist())
print(SUMMARY.schema.field("brand_new").metadata[b"unit"].decode())
cell = compare([widened(Summary, row, **vars(nothing(Observed)))])
print(COMPARED.make(cell).column("brand_new").to_pylist())
print("brand_new" in page())
"""
DECLARED = '    brand_new: int | None = column("made for a test", "things", over_runs="mean")\n'


@pytest.mark.parametrize(
    ("file", "before", "made_in", "value", "expected"),
    [
        ("latency.py", "    ttft: Statistics = group(\n", "    return Latency(\n", "7", 7),
        (
            "throughput.py",
            "    completed: int | None = column(",
            "    return Throughput(\n",
            "requests.num_rows",
            4,
        ),
        (
            "observed/operations.py",
            "    comm_calls: int | None = column(",
            "    return Traffic(\n",
            "sum(report.steps.num_rows for report in reports)",
            0,
        ),
        (
            "building.py",
            "    weight_bytes: int | None = column(",
            "    return Memory(\n",
            "len(built)",
            2,
        ),
    ],
)
def test_one_file_is_enough(
    tmp_path: Path, file: str, before: str, made_in: str, value: str, expected: int
) -> None:
    for package in ("orchestrator", "workers", "strategies"):
        ignored = shutil.ignore_patterns("presets", "static", "__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    source = tmp_path / "orchestrator" / "analysis" / file
    text = source.read_text()
    assert text.count(before) == 1
    text = text.replace(before, DECLARED + before)
    source.write_text(text.replace(made_in, f"{made_in}        brand_new={value},\n"))
    others = ("tests/support", "tests/orchestrator", "scripts")
    folders = [tmp_path, *(ROOT / folder for folder in others)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[*map(str, folders)]}\n{SEEN}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    shown = str([expected])
    assert done.stdout.split("\n")[:4] == [shown, "things", shown, "True"]
