"""The results in README.md and docs/results.md, and the page on the article: made of the published
tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import article_page
import both_engines
import pytest
import readme_results
import results_costs
import results_engines
import results_headline
import results_two_gpus
from published import Published
from results_costs import check_sum

from orchestrator.report.text import EN_DASH


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


# -- both engines, for any number of starts


def two_more_starts(found: Published) -> Published:
    """The same with two more rounds of every cell, in which both engines start on one new node."""
    results, blocks = found.results, found.results.manifest["blocks"]
    first = {(run.cell, run.run): run for run in reversed(results.runs)}
    added = [
        replace(
            run,
            start=start,
            conditions=replace(run.conditions, block=len(blocks)),
            throughput=replace(
                run.throughput, output_throughput=pace * (run.throughput.output_throughput or 0.0)
            ),
        )
        for run in first.values()
        for start, pace in ((7, 1.001), (8, 0.999))
    ]
    node = {**blocks[0], "started_at": "2027-01-01T00:00:00+00:00", "gpu_uuids": list("abcd")}
    more = Published(found.folder)
    manifest = {**results.manifest, "blocks": [*blocks, node]}
    more.__dict__["results"] = replace(results, manifest=manifest, runs=[*results.runs, *added])
    return more


def without(found: Published, strategy: str, engine: str, concurrency: int) -> Published:
    """The same without the runs of a cell."""
    lost = (strategy, engine, concurrency)
    kept = [
        run
        for run in found.results.runs
        if (run.cell.strategy, run.cell.engine, run.cell.max_concurrency) != lost
    ]
    less = Published(found.folder)
    less.__dict__["results"] = replace(found.results, runs=kept)
    return less


def test_with_more_starts_means_have_intervals_and_pairs_have_verdicts() -> None:
    before = readme_results.both_engines(readme_results.FOUR)
    found = [two_more_starts(each) for each in before]
    (cell, told) = (each.at("tp2pp2", 32, "vllm") for each in (found[0], before[0]))
    assert cell is not None
    assert told is not None
    assert cell.num_starts == told.num_starts + 2
    ratio = both_engines.over(found[0], "tp2pp2", 32)
    assert ratio is not None
    assert ratio.rounds >= 2
    assert ratio.verdict == "different"
    assert None not in (ratio.ratio.low, ratio.ratio.high)
    page = "\n".join(results_engines.section(found))
    assert f"| {both_engines.speed(cell)} ({cell.num_starts}) | {ratio} |" in page
    assert "±" in both_engines.speed(cell)
    assert "Verdicts of" in page
    assert "There are no verdicts" not in page
    others = [readme_results.both_engines(readme_results.FOUR_H100)]
    headline = "\n".join(results_headline.section(found, others, others[0])).splitlines()
    assert max(map(len, headline)) <= 100
    list(results_costs.section(found))


def test_a_cell_that_was_not_run_is_a_dash_and_named_below() -> None:
    large, small = readme_results.both_engines(readme_results.FOUR_H100)
    found = [large, without(small, "pp4", "vllm", 100)]
    page = "\n".join(results_engines.section(found))
    assert "vLLM under tp2pp2 of llama-70b; vLLM under pp4 of qwen2.5-32b" in page
    cell = both_engines.speed(small.cell("pp4", 100))
    assert f"| 100 | pp4 | {cell} (3) | {EN_DASH} | {EN_DASH} |" in page
    assert "A (1 and 32)" in page
    list(results_costs.section(found))


def test_batches_in_flight_are_told_by_how_often_weights_are_streamed() -> None:
    large, small = readme_results.both_engines(readme_results.FOUR_H100)
    told = {
        (each.folder.name, engine): both_engines.batches(each, "pp4", 100, engine)
        for each in (large, small)
        for engine in both_engines.ENGINES
    }
    assert [round(many or 0.0, 1) for many in told.values()] == [4.0, 4.0, 4.0, 1.0]
    assert both_engines.batches(large, "tp2pp2", 100, "vllm") is None


def test_a_lead_that_an_engine_does_not_bear_out_is_not_written() -> None:
    _, small = readme_results.both_engines(readme_results.FOUR_H100)
    slower = replace(
        small.results,
        runs=[
            replace(run, throughput=replace(run.throughput, output_throughput=1.0))
            if (run.cell.strategy, run.cell.engine) == ("tp4", "vllm")
            else run
            for run in small.results.runs
        ],
    )
    turned = Published(small.folder)
    turned.__dict__["results"] = slower
    with pytest.raises(AssertionError):
        list(results_engines.section([turned]))
