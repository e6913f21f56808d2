"""`orchestrator` whose local Ray has no dashboard, which would compute for longer than a small run.
Usage: that of `orchestrator`."""

from __future__ import annotations

import functools

from orchestrator.cli import main
from orchestrator.run import driver

if __name__ == "__main__":
    driver.connect = functools.partial(driver.connect, dashboard=False)  # type: ignore[assignment]
    main(prog_name="orchestrator")
