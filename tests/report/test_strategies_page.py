"""docs/strategies.md says what the published tables and the arithmetic say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from orchestrator.experiment import Experiment
from orchestrator.plan.training import explained
from strategies.training import fullest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "strategies.md"
LOADS = (1, 32, 100)


def table_after(words: str) -> Iterator[list[str]]:
    """The cells of each row of the table behind some words, without its head."""
    text = PAGE.read_text(encoding="utf-8").partition(words)[2]
    table = text[text.index("\n|") + 1 :].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_throughputs_are_those_of_the_published_tables() -> None:
    folder, seen = "", 0
    for place, layout, *cells in table_after("closed\nloop."):
        folder = re.findall(r"\((.*)\)", place)[0] if place else folder
        with pa.memory_map(str(PAGE.parent / folder / "comparison.arrow")) as file:
            found = pa.ipc.open_file(file).read_all().to_pylist()
        for load, cell in zip(LOADS, cells, strict=True):
            (one,) = (
                row["output_throughput"]
                for row in found
                if (row["strategy"], row["engine"], row["max_concurrency"])
                == (layout, "torch", load)
            )
            assert cell == (f"{one:.1f}" if load == 1 else f"{one:.0f}"), (folder, layout, load)
            seen += 1
    assert seen == 54


def test_the_memory_of_training_is_what_the_arithmetic_gives() -> None:
    pytest.importorskip("deepspeed")
    asked = Experiment(workload="train", seq_len=4096, global_batch_size=16)
    for layout, *cells in table_after("this arithmetic:"):
        _, plan = explained(asked, layout.strip("`"), "llama-8b", 0)
        assert plan.training is not None
        one = fullest(plan.placement, plan.model, plan.training)
        parts = (one.weights, one.gradients, one.optimizer, one.activations + one.buffers)
        assert cells == [f"{size / 1e9:.1f} GB" for size in (*parts, one.total)], layout
