"""A new column that is computed from recorded data changes one source file: done here to a copy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
# A new column in every place where a column can be seen.
SEEN = """
import json
import sys
from columns_page import page
from test_summary import ATTEMPT, BUILDING, REPORTS, SERVED
from orchestrator.analysis.comparing.compare import COMPARED, compare
from orchestrator.analysis.summary import MEASURED, SUMMARY, Summary, measured
from workers.rows import nothing, widened
from orchestrator.analysis.summary import Observed

row = measured(ATTEMPT, BUILDING, REPORTS, SERVED)
cell = compare([widened(Summary, row, **vars(nothing(Observed)))])
made, compared, columns = MEASURED.make([row]), COMPARED.make(cell), page()
found = {
    name: (
        made.column(name).to_pylist(),
        SUMMARY.schema.field(name).metadata[b"unit"].decode(),
        compared.column(name).to_pylist(),
        name in columns,
    )
    for name in sys.argv[1:]
}
print(json.dumps(found))
"""


class New(NamedTuple):
    """A column that one file gets. before: the line that it is declared above. made_in: the line
    below which it gets its value."""

    name: str
    file: str
    before: str
    made_in: str
    value: str
    expected: int


NEW = (
    New(
        "brand_new_latency",
        "latency.py",
        "    ttft: Statistics = group(\n",
        "    return Latency(\n",
        "7",
        7,
    ),
    New(
        "brand_new_throughput",
        "throughput.py",
        "    completed: int | None = column(",
        "    return Throughput(\n",
        "requests.num_rows",
        4,
    ),
    New(
        "brand_new_traffic",
        "observed/operations.py",
        "    comm_calls: int | None = column(",
        "    return Traffic(\n",
        "sum(report.steps.num_rows for report in reports)",
        0,
    ),
    New(
        "brand_new_memory",
        "building.py",
        "    weight_bytes: int | None = column(",
        "    return Memory(\n",
        "len(built)",
        2,
    ),
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """What is seen of each in a copy that has all of them: its imports take seconds."""
    copy = tmp_path_factory.mktemp("copy")
    for package in ("orchestrator", "workers", "strategies"):
        ignored = shutil.ignore_patterns("presets", "static", "__pycache__")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    for new in NEW:
        _add(new, copy / "orchestrator" / "analysis" / new.file)
    others = ("tests/support", "tests/orchestrator", "scripts")
    folders = [copy, *(ROOT / folder for folder in others)]
    code = f"import sys; sys.path[:0] = {[*map(str, folders)]}\n{SEEN}"
    done = subprocess.run(
        [sys.executable, "-c", code, *(new.name for new in NEW)],
        capture_output=True,
        text=True,
        cwd=copy,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[object]] = json.loads(done.stdout)
    return found


def _add(new: New, source: Path) -> None:
    text = source.read_text()
    assert text.count(new.before) == 1
    declared = f'{new.name}: int | None = column("made for a test", "things", over_runs="mean")'
    text = text.replace(new.before, f"    {declared}\n{new.before}")
    source.write_text(text.replace(new.made_in, f"{new.made_in}        {new.name}={new.value},\n"))


@pytest.mark.parametrize("new", NEW, ids=lambda new: new.file)
def test_one_file_is_enough(new: New, seen: dict[str, list[object]]) -> None:
    """Each of them is written in its own file alone."""
    assert seen[new.name] == [[new.expected], "things", [new.expected], True]
