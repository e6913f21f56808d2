"""Cut every file of a small result, and of a packed one, at every byte, flip every bit of it,
remove it, and see what is read.

`make corruption`, which is `corruption.py [STRIDE]`, tries all of it, or each STRIDE-th damage, in
a process a file; it prints what came of it and fails where a value was read differently, or was
missing, without a word, or where a process crashed. `corruption.py FOLDER STRIDE PATH...` is such a
process.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from stores import CELL, RUN, observed_tables, run_tables
from summaries import write_run
from tables import make

from orchestrator.analysis import load
from orchestrator.analysis.comparing.compare import COMPARED, compare
from orchestrator.analysis.load import summaries
from orchestrator.store import export, journal
from orchestrator.store.folders import is_experiment, manifest_text
from orchestrator.store.store import COMPARISON, OBSERVED_TABLES, RUN_TABLES, TABLES, Store
from workers.records import STEPS, TELEMETRY

SAME, NAMED, SILENT = "same", "named", "silent"


def small_result(folder: Path) -> list[str]:
    """A result with a row in every table. Returns its files: the parts, the comparison, the journal
    and the manifest."""
    store = Store(folder)
    store.create()
    store.update_manifest(cells=[CELL.name], blocks=[{"gpu_uuids": ["GPU-1"]}], device="cuda")
    rows = {"rank": 0, "step": 1, "phase": "decode"}
    tables = {
        **run_tables(),
        "steps": make(STEPS, [rows]),
        "telemetry": make(TELEMETRY, [{"rank": 0}]),
    }
    write_run(store, RUN, tables, output_throughput=5.0)
    store.write_observed(CELL, 0, observed_tables())
    parts = [f"{table}/{RUN.name}.arrow" for table in RUN_TABLES]
    parts += [f"{table}/{CELL.name}.s0.arrow" for table in OBSERVED_TABLES]
    store.write_comparison(COMPARED.make(compare(summaries(store))))
    return [*parts, COMPARISON, journal.CHECKSUMS, "manifest.json"]


def packed_result(folder: Path) -> list[str]:
    """The same, packed, with what it was made of beside it. Returns its files."""
    made_of = folder.with_name(f"{folder.name}-parts")
    small_result(made_of)
    files = export.pack(load.tables(made_of), manifest_text(made_of), folder)
    return [path.name for path in files]


RESULTS = (small_result, packed_result)


def judge(folder: Path, name: str, stride: int) -> Counter[str]:
    """What came of each damage to one file. A damage that hurts nothing leaves all as it was."""
    path, said, found = folder / name, io.StringIO(), Counter[str]()
    table = name.partition("/")[0].removesuffix(".arrow")
    tables: Collection[str] = {table, "summary" if table in RUN_TABLES else table} & {*TABLES}
    if not tables and name != COMPARISON:  # the journal and the manifest say something of each
        tables = TABLES
    with contextlib.redirect_stderr(said):
        before = _seen(folder, tables)
        assert not said.getvalue(), said.getvalue()
        for _ in _damages(path, stride):
            journal.told.cache_clear()
            after = _seen(folder, tables)
            kind = NAMED if "counts as missing" in said.getvalue() else SILENT
            found[SAME if after == before else kind] += 1
            said.seek(0)
            said.truncate()
        assert _seen(folder, tables) == before
    return found


def _seen(folder: Path, tables: Collection[str]) -> Mapping[str, object]:
    """What is read of some tables; where they are all or none, of the other files too."""
    store = Store(folder)
    found: dict[str, object] = {table: store.read(table) for table in tables}
    found["is listed"] = is_experiment(folder)
    whole = {"manifest": store.manifest, "comparison": store.comparison}
    only_some = tables and tables is not TABLES
    return found if only_some else found | {name: read() for name, read in whole.items()}


def _damages(path: Path, stride: int) -> Iterator[None]:
    """Damage the file, each time in another way, and mend it again."""
    content = path.read_bytes()
    flips = ((place, bit) for place in range(len(content)) for bit in range(8))
    with path.open("r+b", buffering=0) as file:
        for place, bit in itertools.islice(flips, 0, None, stride):
            os.pwrite(file.fileno(), bytes([content[place] ^ 1 << bit]), place)
            yield
            os.pwrite(file.fileno(), content[place : place + 1], place)
        for length in range(0, len(content), stride):
            file.truncate(length)
            yield
            os.pwrite(file.fileno(), content[length:], length)
    path.unlink()
    yield
    path.write_bytes(content)


def in_process(folder: Path, stride: int, names: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
    """What came of the damages to some files, tried in a process of their own. Raises
    CalledProcessError where that crashed."""
    command = [sys.executable, __file__, str(folder), str(stride), *names]
    found_in = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=found_in)
    found: Mapping[str, Mapping[str, int]] = json.loads(done.stdout)
    return found


def main(arguments: Sequence[str]) -> int:
    """See the top of this file."""
    if len(arguments) > 1:
        folder, stride, *names = arguments
        print(json.dumps({name: judge(Path(folder), name, int(stride)) for name in names}))
        return 0
    worst = 0
    stride = int(arguments[0]) if arguments else 1
    for make_result in RESULTS:
        with tempfile.TemporaryDirectory() as folder:
            for name in make_result(Path(folder) / "r"):
                worst = max(worst, _tried(Path(folder) / "r", stride, name))
    return int(worst > 0)


def _tried(folder: Path, stride: int, name: str) -> int:
    """Print what came of the damages to a file. Returns how many nobody was told of."""
    began = time.monotonic()
    try:
        found = in_process(folder, stride, [name])[name]
    except subprocess.CalledProcessError as error:
        found = {SILENT: 1, f"crashed with {error.returncode}": 1}
    print(f"{name}: {dict(found)} in {time.monotonic() - began:.0f} s", flush=True)
    return found.get(SILENT, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
