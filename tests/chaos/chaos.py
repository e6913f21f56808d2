"""Strike a driver in every way and phase, and write what came of it: `make chaos`.

Each outcome is a line of `results.jsonl`; docs/reliability.md is made of all of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import fake_engine
from cases import OTHERS, STRUCK
from reliability import write_page
from strike import strike

HERE = Path(__file__).parent

RESULTS = HERE / "results.jsonl"


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--repeats", type=int, default=10)
    asked.add_argument("--only", default="", help="a part of the names of the cases to try")
    asked.add_argument("--keep", action="store_true", help="add to what was found before")
    options = asked.parse_args()
    cases = [case for case in [*STRUCK, *OTHERS] if options.only in case.name]
    faults = 0
    with (
        tempfile.TemporaryDirectory(dir="/tmp", prefix="c") as top,
        RESULTS.open("a" if options.keep else "w") as results,
    ):
        (Path(top) / "site").mkdir()
        site = str(fake_engine.install(Path(top) / "site"))
        for number in range(options.repeats):
            for index, case in enumerate(cases):
                folder = Path(top) / f"{number}-{index}"
                folder.mkdir()
                outcome = strike(case, site, folder)
                found = outcome.faults(case)
                faults += bool(found)
                print(f"{number + 1} {case.name}: {'; '.join(found) or 'ok'}", flush=True)
                print(json.dumps(outcome.as_data() | {"faults": found}), file=results, flush=True)
    write_page(RESULTS)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
