"""What `explain` and a dry run say of a model's attention."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.plan import models

ROPE = (("rope_type", "yarn"), ("factor", 4.0), ("original_max_position_embeddings", 512.0))


@pytest.fixture(autouse=True)
def _tiny_with_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = models.resolve

    def windowed(*args: str) -> models.ResolvedModel:
        found = resolve(*args)
        sliding = {"sliding_window": 64, "sliding_layers": (False, True, True, True)}
        return replace(found, shape=replace(found.shape, rope_scaling=ROPE, **sliding))

    monkeypatch.setattr(models, "resolve", windowed)


@pytest.mark.parametrize(
    "command", ["explain pp2 --model tiny", "submit --strategy pp2,tp1 --device cpu --dry-run"]
)
def test_the_window_and_the_rope_are_said_once(command: str) -> None:
    said = CliRunner().invoke(main, command.split())
    assert said.exit_code == 0, said.output
    expected = (
        "Attention: to the newest 64 tokens in 3 of 4 layers, all KV kept; rope_type "
        "yarn, rope_theta 10000, factor 4, original_max_position_embeddings 512."
    )
    assert " ".join(said.output.split()).count(expected) == 1


def test_the_window_and_the_rope_are_data_too() -> None:
    said = CliRunner().invoke(main, ["explain", "pp2", "--model", "tiny", "--json"])
    (explanation,) = json.loads(said.output)
    assert explanation["attention"] == {
        "rope": {"rope_theta": 10000.0, **dict(ROPE)},
        "sliding_window": 64,
        "sliding_layers": 3,
        "num_layers": 4,
    }


@pytest.mark.parametrize("layouts", ["tp2 pp2", "tp2,pp2"])
def test_several_layouts_stand_side_by_side_in_one_table(layouts: str) -> None:
    said = CliRunner().invoke(main, ["explain", *layouts.split(), "--memory", "1GB"]).output
    table = [line.split() for line in said.splitlines()]
    assert ["of", "a", "rank", "tp2", "pp2"] in table
    assert ["heads", "of", "8", "4", "8"] in table
    assert ["all_reduce", "over", "tp", "9", "x", "512", "B", "-"] in table
    assert sum(line[:1] == ["weights"] for line in table) == 1
    assert [line[-2:] for line in table if line[:2] == ["KV", "tokens,"]] == [["0", "0"]]


def test_what_a_layout_of_several_needs_is_said() -> None:
    asked = ["explain", "dp2", "dp2zero3"]
    said = " ".join(CliRunner().invoke(main, asked).output.split())
    assert "engine any deepspeed" in said
    assert "brought in, every pass 0 B 3.5 MB" in said
    assert "What fits: unknown" in said
