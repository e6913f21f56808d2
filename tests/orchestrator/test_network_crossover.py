"""Where tp2 over two nodes overtakes pp2: `benchmarks/network_crossover.py`, and
the cost model's crossover over a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import network_crossover as script
import pytest

from orchestrator.predict.crossover import between_nodes, crossover

PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "cpu" / "network-crossover"
FACTS = script.Facts(memory=10e9, flops=100e9, step_s=1e-4, cpu="any", rounds=1)


def speeds(tp2: list[float], pp2: list[float]) -> dict[tuple[int, str], float]:
    rates = [10**place for place in range(len(tp2))]
    found = {(rate, "tp2"): speed for rate, speed in zip(rates, tp2, strict=True)}
    return found | {(rate, "pp2"): speed for rate, speed in zip(rates, pp2, strict=True)}


@pytest.mark.parametrize(
    ("tp2", "between"),
    [
        ([1.0, 2.0, 9.0], (10, 100)),
        ([9.0, 2.0, 9.0], (10, 100)),  # ahead for good, not once
        ([1.0, 2.0, 3.0], None),
        ([9.0, 9.0, 9.0], None),
    ],
)
def test_the_crossover_is_where_tp2_overtakes_for_good(
    tp2: list[float], between: tuple[int, int] | None
) -> None:
    assert script.crossing(speeds(tp2, [5.0, 5.0, 5.0])) == between


def test_the_least_time_of_all_rounds_counts_and_that_of_one_rank_alone_does_not() -> None:
    times = {("tp2", 10): (50.0, 20.0), ("pp2", 10): (40.0, 80.0), ("tp1", 0): (1.0, 2.0)}
    runs = [
        script.Run(number, mbit, layout, ms)
        for (layout, mbit), both in times.items()
        for number, ms in enumerate(both)
    ]
    assert script.undisturbed(runs) == {(10, "tp2"): 50.0, (10, "pp2"): 25.0}


def test_the_model_crosses_where_its_two_curves_do() -> None:
    foretold, found = script.predicted(FACTS)
    assert found.bandwidth is not None
    mbit = found.bandwidth / script.MBIT
    below, above = (
        [rate for rate in script.RATES if (rate > mbit) is is_above] for is_above in (False, True)
    )
    assert all(foretold[rate, "pp2"] > foretold[rate, "tp2"] for rate in below)
    assert all(foretold[rate, "tp2"] > foretold[rate, "pp2"] for rate in above)


def test_a_slower_link_never_helps_and_latency_moves_the_crossover_up() -> None:
    foretold, found = script.predicted(FACTS)
    for name in script.PAIR:
        curve = [foretold[rate, name] for rate in script.RATES]
        assert curve == sorted(curve)
    late = script.predicted(replace(FACTS, step_s=1e-3))[1]
    assert late.bandwidth is not None
    assert found.bandwidth is not None
    assert late.bandwidth > found.bandwidth


def test_without_a_network_the_crossover_says_what_is_not_known() -> None:
    case = script.case(FACTS)
    fabric = replace(case.hardware.fabric, network=None)
    alone = replace(case, hardware=replace(case.hardware, fabric=fabric))
    found = crossover(alone, script.PAIR, varied=between_nodes(1e6, 1e9))
    assert found.why == "the network between nodes of cpu is not known"


def test_what_was_measured_crosses_and_the_page_says_where() -> None:
    runs, facts = script.read(PUBLISHED)
    measured, (_, foretold) = script.undisturbed(runs), script.predicted(facts)
    page = " ".join((PUBLISHED.parents[2] / "cluster.md").read_text().split())
    assert script.said(script.crossing(measured), foretold) in page
