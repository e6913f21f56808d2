"""docs/commands.md, docs/config.md and docs/metrics.md: what the code says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference_pages
from click import Option

from orchestrator.cli import main
from orchestrator.experiment import Experiment
from workers.probes.gauges import METRICS


@pytest.mark.parametrize("path", reference_pages.PAGES, ids=lambda path: path.name)
def test_the_page_is_what_the_code_says(path: Path) -> None:
    made = reference_pages.PAGES[path]()
    assert path.read_text(encoding="utf-8") == made, "run `python scripts/reference_pages.py`"


def test_every_command_and_option_is_on_its_page() -> None:
    text = reference_pages.commands_page()
    for name, command in main.commands.items():
        assert f"\n## {name}\n" in text
        shown = [one for one in command.params if isinstance(one, Option) and not one.hidden]
        for option in (option for one in shown for option in one.opts):
            assert f"`{option}" in text or f", {option}" in text, (name, option)


def test_every_field_is_on_its_page_with_a_meaning() -> None:
    text = reference_pages.config_page()
    for field in Experiment.model_fields:
        assert f"| `{field}` |" in text
        assert reference_pages.meaning(field)
    with pytest.raises(LookupError, match="no_such_field"):
        reference_pages.meaning("no_such_field")


def test_every_metric_is_on_its_page_under_the_name_that_prometheus_sees() -> None:
    text = reference_pages.metrics_page()
    assert all(f"`{name}`" in text for one in METRICS for name in one.exported)
