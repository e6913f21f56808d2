"""Pages of made-up results, made once for all tests of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from rate_inputs import write_search
from report_inputs import CONCURRENCIES, LAYOUTS, MadeUp, cell_of, write_results
from summaries import write_run

from orchestrator.experiment import Run
from orchestrator.report.html import render_html
from orchestrator.store.store import Store

SHORT = {"power_valid": False, "power_reasons": "run of 1.9 s is under 20 samples"}
SLOWED = {
    "power_capped_pct": 96.0,
    "clock_limited_pct": 96.0,
    "crosscheck_reasons": "NVLink counters saw 1.31 of the bytes counted, 1.00 expected",
    "power_valid": True,
    "joules_per_output_token": 1.5,
}
ABOVE = {"status": "invalid", "reason": "above its bound of 99"}


@pytest.fixture(scope="module")  # Playwright's loop would be in the way of other modules' loops
def chromium() -> Iterator[browser.Chromium]:
    if browser.executable() is None:
        pytest.skip("no Chromium is installed to open the page with")
    with browser.chromium() as one:
        yield one


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "tiny-0123456789"
    return write_results(path, LAYOUTS, CONCURRENCIES, failing=("dp4",), ablated=("tp4",))


@pytest.fixture(scope="session")
def page(folder: Path) -> Path:
    return render_html(folder)


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of rates."""
    return write_search(tmp_path_factory.mktemp("results") / "tiny-1-rates")


@pytest.fixture(scope="session")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results under one load of which something was predicted: nothing of the first token."""
    path = write_results(tmp_path_factory.mktemp("predicted") / "tiny", ("tp4", "pp4"), (1,))
    store = Store(path)
    said = {
        "predicted_output_throughput": 12.0,
        "predicted_output_throughput_low": 9.0,
        "predicted_output_throughput_high": 15.0,
        "predicted_median_tpot_ms": 90.0,
        "predicted_median_tpot_ms_low": 80.0,
        "predicted_median_tpot_ms_high": 110.0,
    }
    for layout in ("tp4", "pp4"):
        for index in (0, 1):
            figures = MadeUp().figures(10.0 + index, 1)
            write_run(store, Run(cell_of(layout, 1), 0, index), **{**figures, **said})
    return render_html(path)


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results that need a word: an interval that reaches below 0, runs too short for energy, one
    above its bound."""
    path = write_results(tmp_path_factory.mktemp("odd") / "tiny", ("tp4", "pp4", "dp4"), (8, 32))
    store = Store(path)
    for layout, index, changed in (
        ("tp4", 0, {"output_throughput": 1.0, **SHORT}),
        ("tp4", 1, SLOWED),
        ("pp4", 0, ABOVE),
        ("pp4", 1, ABOVE),
        ("dp4", 1, {"status": "failed", "reason": "a worker died"}),
    ):
        run = Run(cell_of(layout, 8), 0, index)
        write_run(store, run, **{**MadeUp().figures(50.0, 8), **changed})
    return render_html(path)
