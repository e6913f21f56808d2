"""Strike a driver in every way and phase, and write what came of it: `make chaos`.

Each outcome is a line of `results.jsonl`; docs/reliability.md is made of all of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import fake_engine
from cases import OTHERS, STRUCK, Case
from reliability import write_page
from strike import Outcome, strike

HERE = Path(__file__).parent

RESULTS = HERE / "results.jsonl"


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--repeats", type=int, default=10)
    asked.add_argument("--only", default="", help="a part of the names of the cases to try")
    asked.add_argument("--keep", action="store_true", help="add to what was found before")
    asked.add_argument(
        "--jobs", type=int, default=1, help="cases at a time; four cores each, or times are longer"
    )
    options = asked.parse_args()
    cases = [case for case in [*STRUCK, *OTHERS] if options.only in case.name]
    faults = 0
    with RESULTS.open("a" if options.keep else "w") as results:
        for case, outcome in outcomes(cases * options.repeats, options.jobs):
            found = outcome.faults(case)
            faults += bool(found)
            print(f"{case.name}: {'; '.join(found) or 'ok'}", flush=True)
            print(json.dumps(outcome.as_data() | {"faults": found}), file=results, flush=True)
    write_page(RESULTS)
    return 1 if faults else 0


def outcomes(cases: list[Case], jobs: int) -> Iterator[tuple[Case, Outcome]]:
    """What came of each case, as it comes. Each has a folder of its own, for its sessions too."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp", prefix="c") as top,
        ThreadPoolExecutor(jobs) as threads,
    ):
        (Path(top) / "site").mkdir()
        site = str(fake_engine.install(Path(top) / "site"))
        struck = {}
        for number, case in enumerate(cases):
            folder = Path(top) / str(number)
            folder.mkdir()
            struck[threads.submit(strike, case, site, folder)] = case
        for one in as_completed(struck):
            yield struck[one], one.result()


if __name__ == "__main__":
    raise SystemExit(main())
