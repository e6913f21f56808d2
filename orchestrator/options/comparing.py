"""The options of `compare`."""

from __future__ import annotations

import math
from typing import Any

import click

from orchestrator.options.places import FILE

# Those of `analysis.comparing.verdicts`, which takes long to import; a test compares them.
OBJECTIVES = ("throughput", "latency", "per-gpu", "goodput", "energy")


class Finite(click.FloatRange):
    """A number in a range; NaN and infinities are in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read it."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


COMPARE_OPTIONS = (
    click.option(
        "--objective",
        type=click.Choice(OBJECTIVES),
        help="Of the verdicts, and of the order. [throughput]",
    ),
    click.option(
        "--goodput",
        multiple=True,
        metavar="LEVEL...",
        help="Service levels in ms, as in `ttft:2000 tpot:200`. [the runs']",
    ),
    click.option(
        "--slo",
        multiple=True,
        metavar="LIMIT...",
        help="Limits on percentiles, as in `ttft:p99:2000 tpot:p95:50`. [the runs']",
    ),
    click.option(
        "--difference",
        type=Finite(min=0, max=1, min_open=True, max_open=True),
        metavar="SHARE",
        help="The smallest difference that matters. [as was asked, 0.02]",
    ),
    click.option(
        "--gate",
        multiple=True,
        metavar="METRIC:RATIO",
        help="BASE NEW: how far NEW / BASE may go in a column of the comparison, as "
        "output_throughput:0.95 or median_ttft_ms:1.05. Repeat. Exit status: 0 if the 95% interval "
        "of every cell is on the allowed side, 1 if one is beyond it or a cell is missing or "
        "failed, 3 if undecided.",
    ),
    click.option(
        "--fail-below",
        type=Finite(min=0, min_open=True),
        metavar="RATIO",
        help="The same as --gate output_throughput:RATIO.",
    ),
    click.option(
        "--allow-missing", is_flag=True, help="Pass a gate though NEW lacks cells of BASE."
    ),
    click.option(
        "--html", type=FILE, metavar="FILE", help="BASE NEW: write them side by side as a page."
    ),
    click.option("--svg", type=FILE, metavar="FILE", help="As a picture of a terminal."),
)
