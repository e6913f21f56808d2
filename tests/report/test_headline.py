"""The verdict in one sentence, and how layouts look."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from summaries import CELL, comparison
from summaries import one_run as run
from tables import from_flat

from orchestrator.analysis.comparing.best import best
from orchestrator.analysis.comparing.verdicts import rulings
from orchestrator.report.charts import looks
from orchestrator.report.charts.headline import Headline, headlines
from orchestrator.store.schema import CellKey

STEADY = (100.0, 101.0, 99.0, 100.0)
Values = dict[str, tuple[float, ...]]


def said(*loads: tuple[int, Values]) -> Headline | None:
    """Of loads, each with the values of the starts of each layout."""
    runs = [
        run(name, x, i, max_concurrency=load)
        for load, values in loads
        for name, mine in values.items()
        for i, x in enumerate(mine)
    ]
    found = rulings(runs)
    verdicts = [verdict for ruling in found for verdict in ruling.verdicts]
    cells = [
        comparison(strategy=name, dtype="float32", max_concurrency=load, num_starts=len(mine))
        for load, values in loads
        for name, mine in values.items()
    ]
    return next(iter(headlines(cells, best(found), verdicts)), None)


def halved(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(x / 2 for x in values)


def test_a_layout_that_is_shown_to_be_best_is_named_with_its_lead_and_its_rounds() -> None:
    values = {"tp4": STEADY, "pp4": halved(STEADY)}
    found = said((8, values), (1, values))
    assert found is not None
    assert found.confidence == "shown"
    assert found.sentence == (
        "tp4 makes the most tokens per second at every load (1 and 8 concurrent), 2.00x the next: "
        "shown at 95% confidence over 4 rounds of starts."
    )


def test_means_alone_are_said_to_show_nothing() -> None:
    once = {"tp4": (100.0,), "pp4": (80.0,)}
    found = said((1, once), (8, {"tp4": (80.0,), "pp4": (100.0,)}))
    assert found is not None
    assert found.confidence == "mean"
    assert found.sentence == (
        "tp4 makes the most tokens per second at 1 concurrent, 1.25x the next; pp4 makes the most "
        "tokens per second at 8 concurrent, 1.25x the next: by the means alone, which shows "
        "nothing yet: each layout was started once."
    )


def test_layouts_that_are_not_told_apart_are_named_together() -> None:
    found = said((8, {"tp4": STEADY, "dp4": STEADY[::-1]}))
    assert found is not None
    assert (found.confidence, found.sentence) == (
        "equal",
        "tp4 and dp4 make the most tokens per second at 8 concurrent: not told apart at 95% "
        "confidence over 4 rounds of starts.",
    )


def test_layouts_that_took_no_turns_with_the_first_are_not_said_to_be_level_with_it() -> None:
    """Nothing excludes a layout of which nothing could be tested."""
    found = said((8, {"tp4": (100.0, 101.0), "pp4": (100.0, 99.0), "dp4": (50.0,)}))
    assert found is not None
    assert (found.confidence, found.sentence) == (
        "mean",
        "tp4 makes the most tokens per second at 8 concurrent, 1.01x the next: by the means alone, "
        "which shows nothing yet: too few of their starts are of the same rounds.",
    )


def test_the_weakest_load_says_how_sure_the_whole_is() -> None:
    shown, once = {"tp4": STEADY, "pp4": halved(STEADY)}, {"tp4": (100.0,), "pp4": (80.0,)}
    found = said((1, shown), (8, once))
    assert found is not None
    assert found.confidence == "mean"
    assert found.sentence.count("tp4") == 2
    assert "4 rounds of starts. tp4" in found.sentence


def test_one_layout_alone_has_no_verdict() -> None:
    assert said((8, {"tp4": STEADY})) is None


# -- looks


def of(*cells: tuple[str, str]) -> list[looks.Look]:
    """The looks of layouts, each a strategy and an engine."""
    keys = {
        from_flat(CellKey, {**CELL, "strategy": strategy, "engine": engine}): f"{strategy} {engine}"
        for strategy, engine in cells
    }
    return looks.looks(keys)


def test_a_layout_looks_the_same_whatever_stands_beside_it() -> None:
    (alone,) = of(("tp2pp2", "vllm"))
    beside = {one.name: one for one in of(("tp4", "torch"), ("tp2pp2", "vllm"), ("dp4", "torch"))}
    assert beside["tp2pp2 vllm"] == alone
    assert alone == looks.Look("tp2pp2 vllm", "tp-pp-0", "diamond", (7, 3))


def test_layouts_differ_in_colour_and_mark_and_engines_in_dash() -> None:
    strategies = ("tp1", "tp4", "pp4", "dp4", "tp2pp2", "tp2dp2", "pp2dp2", "tp2pp2dp2", "fsdp4")
    found = of(*((strategy, "torch") for strategy in strategies))
    assert len({one.colour for one in found}) == len(strategies)
    degrees = [(name, engine) for name in ("tp2", "tp4", "tp8") for engine in ("torch", "vllm")]
    for several in (found, of(*degrees)):
        assert len({(one.shape, one.dash) for one in several}) == len(several)
    assert len({one.colour for one in of(*degrees)}) == 3
    torch, vllm = of(("tp2", "torch"), ("tp2", "vllm"))
    assert (torch.colour, torch.shape) == (vllm.colour, vllm.shape)
    assert torch.dash != vllm.dash


def test_layouts_of_one_engine_that_share_a_colour_have_dashes_of_their_own() -> None:
    bf16, fp8 = (
        from_flat(CellKey, {**CELL, "quantization": quantization})
        for quantization in ("none", "fp8")
    )
    first, second = looks.looks({bf16: "tp2 bfloat16", fp8: "tp2 bfloat16/fp8"})
    assert (first.colour, first.dash) == (second.colour, ())
    assert second.dash


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_style_sheet_has_every_colour(theme: int) -> None:
    style = (files("orchestrator.report") / "static" / "report.css").read_text()
    part = style.split("@media screen and (prefers-color-scheme: dark)")[theme]
    hues = [hue for hue, _ in (*looks.HUES.values(), looks.OTHER)]
    names = [f"{hue}-{shade}" for hue in hues for shade in range(looks.SHADES)]
    colours = [re.search(rf"--{name}: (#[0-9a-f]{{6}});", part) for name in names]
    assert all(colours)
    assert len({found[1] for found in colours if found}) == len(names)
