"""The results in README.md and docs/results.md, and the page on the article: made of the published
tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import article_page
import pytest
import readme_results
import results_two_gpus
from published import Published, check_sum


def test_every_sentence_and_figure_is_that_of_the_published_tables() -> None:
    for path, made in (
        (readme_results.README, readme_results.headline()),
        (readme_results.PAGE, readme_results.section()),
    ):
        text = path.read_text(encoding="utf-8")
        assert readme_results.page(text, made) == text, "run `python scripts/readme_results.py`"


def test_the_readme_says_how_long_its_experiments_took() -> None:
    text = " ".join(readme_results.README.read_text(encoding="utf-8").split())
    four, two = (readme_results.FOUR / "qwen2.5-32b", readme_results.TWO / "qwen2.5-32b")
    assert f"This took {minutes(four)} minutes on four H200." in text
    assert f"three layouts on two H100 took {minutes(two)} minutes." in text


def minutes(folder: Path) -> int:
    """From the first reservation of GPUs to the last run."""
    manifest = Published(folder).results.manifest
    began, ended = (
        datetime.fromisoformat(manifest[name]) for name in ("started_at", "finished_at")
    )
    return round((ended - began).total_seconds() / 60)


def test_the_article_is_held_against_the_published_tables() -> None:
    text = article_page.PAGE.read_text(encoding="utf-8")
    assert article_page.page() == text, "run `python scripts/article_page.py`"


def test_a_sentence_that_the_tables_do_not_bear_out_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Published(readme_results.TWO / "qwen2.5-32b")
    list(results_two_gpus.section(found))
    worse = [replace(one, better=one.other, other=one.better) for one in found.findings.verdicts]
    turned = replace(found.findings, verdicts=worse)
    monkeypatch.setitem(found.__dict__, "findings", turned)
    with pytest.raises(AssertionError):
        list(results_two_gpus.section(found))


def test_parts_that_do_not_sum_to_their_total_are_not_written() -> None:
    check_sum({"total": 1.0, "weights": 0.6, "rest": 0.405})
    check_sum({"total": 1.0, "weights": 0.6, "rest": None})
    with pytest.raises(AssertionError):
        check_sum({"total": 1.0, "weights": 0.6, "rest": 0.3})
