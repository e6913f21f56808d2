"""The results in README.md: `scripts/readme_results.py` makes them of the published tables."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "readme_results", ROOT / "scripts/readme_results.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_every_sentence_and_figure_is_that_of_the_published_tables(script: ModuleType) -> None:
    text = script.README.read_text(encoding="utf-8")
    assert script.page(text) == text, "run `python scripts/readme_results.py`"


def test_a_sentence_that_the_tables_do_not_bear_out_is_not_written(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = script.Published(script.QWEN)
    list(script._three_layouts(found))
    worse = [replace(one, better=one.other, other=one.better) for one in found.findings.verdicts]
    turned = replace(found.findings, verdicts=worse)
    monkeypatch.setitem(found.__dict__, "findings", turned)
    with pytest.raises(AssertionError):
        list(script._three_layouts(found))


def test_parts_that_do_not_sum_to_their_total_are_not_written(script: ModuleType) -> None:
    script._check_sum({"total": 1.0, "weights": 0.6, "rest": 0.405})
    script._check_sum({"total": 1.0, "weights": 0.6, "rest": None})
    with pytest.raises(AssertionError):
        script._check_sum({"total": 1.0, "weights": 0.6, "rest": 0.3})
