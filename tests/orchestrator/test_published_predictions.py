"""What docs/predictions.md says of the figures that others published, and of curves."""

from __future__ import annotations

import csv
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator import cli

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"70b": "llama-70b", "8b": "llama-8b"}


def intervals() -> Iterator[tuple[float, float, float]]:
    """(measured, low, high) of each row in the table of the page."""
    with (ROOT / "benchmarks" / "published.csv").open(encoding="utf-8") as text:
        for row in csv.DictReader(text):
            if row["metric"] in ("latency_s", "tpot_ms"):
                yield float(row["value"]), *ends(row)


def ends(row: dict[str, str]) -> tuple[float, float]:
    """Those of the time, by `plan`; a latency is as uncertain as tokens/s."""
    asked = {
        "--model": MODELS[row["model"].rpartition("-")[2].lower()],
        "--gpu": row["hardware"].partition(" ")[0],
        "--gpus": row["gpus"],
        "--strategy": row["layout"].partition(" ")[0],
        "--engine": "vllm",
        "--input-len": row["input_len"],
        "--output-len": row["output_len"],
        "--max-concurrency": row["concurrency"],
        "--quantization": "fp8" if row["dtype"] == "fp8" else "none",
    }
    words = [word for pair in asked.items() for word in pair]
    done = CliRunner().invoke(cli.main, ["plan", *words, "--json"])
    (one,) = json.loads(done.stdout)["plans"][0]["rankings"][0]["layouts"]
    if row["metric"] == "tpot_ms":
        return one["tpot_ms"]["low"], one["tpot_ms"]["high"]
    speed = one["output_throughput"]
    tokens = one["duration_s"] * speed["value"]
    return tokens / speed["high"], tokens / speed["low"]


def test_the_page_says_how_many_published_figures_lie_in_their_interval() -> None:
    found = list(intervals())
    inside = [low <= measured <= high for measured, low, high in found]
    page = (ROOT / "docs" / "predictions.md").read_text(encoding="utf-8")
    said = re.search(r"(\d+) of these (\d+) lie in their 90% interval", page)
    assert said is not None
    assert [int(number) for number in said.groups()] == [sum(inside), len(inside)]
    assert not any(measured < low for measured, low, _ in found)  # outside are those too fast


@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_the_page_reaches_what_predictions_are_to_reach(engine: str) -> None:
    """Over all cells of an engine that nothing was fitted on."""
    page = (ROOT / "docs" / "predictions.md").read_text(encoding="utf-8")
    for metric, most in (("throughput", 10), ("TTFT", 20), ("TPOT", 10)):
        row = rf"\*\*{engine}, all\*\* \| {metric} \| (\d+) \| ([\d.]+) \| .*? \| (\d+) of (\d+) \["
        cells, error, inside, count = map(float, re.findall(row, page)[0])
        assert error <= most
        assert inside >= 0.9 * count == 0.9 * cells
    (communication,) = re.findall(rf"[:;]\s{engine} ([\d.]+)% of \d+,", page)
    assert float(communication) <= 15
    alone, pipelines = (
        float(re.findall(rf"\| {engine}, {kind} \| \d+ \| ([\d.]+)", page)[0])
        for kind in ("tp alone", "with pp")
    )
    # of vLLM's the page says what they are off by, and why
    assert pipelines <= alone or f"off by {pipelines}% of TPOT" in page


def test_the_lines_against_concurrency_are_those_of_now() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "curves_page.py"))["page"]()
    assert written == (ROOT / "docs" / "predictions.md").read_text(encoding="utf-8"), (
        "run `python scripts/curves_page.py`"
    )
