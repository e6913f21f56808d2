"""How often the verdicts are wrong and intervals hold the truth, in short; the benchmark in full is
published, and its tables are in docs/measurement.md."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from orchestrator.analysis.comparing.significance import DIFFERENT, EQUIVALENT
from orchestrator.store.arrow_files import read_part

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "results" / "verdict_rates.arrow"
APART = (1.0, 1.02)


def loaded(name):
    """A script of benchmarks/ as a module, known under its name: its row types are looked up
    there."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


simulated = loaded("simulated_starts")
bench = loaded("verdict_rates")
Design, Noise = simulated.Design, simulated.Noise
USUAL, SHARED = Noise(0.002, 0.01), Noise(0.002, 0.005, shared=0.01)


@pytest.fixture
def counter():
    return bench.Counter(200, seed=3)


def is_at_most(rate, most):
    """Whether a share is at most so much, but for three standard errors of a share of that size."""
    return rate.share <= most + 3 * np.sqrt(most * (1 - most) / rate.trials)


@pytest.mark.parametrize("noise", [USUAL, SHARED])
@pytest.mark.parametrize("layouts", [2, 4])
def test_at_most_one_experiment_in_twenty_calls_equal_layouts_different(counter, noise, layouts):
    rate = counter.false_different(Design(noise, 3, (1.0,) * layouts))
    assert is_at_most(rate, 0.05)


def test_true_differences_do_not_make_equal_layouts_different(counter):
    assert is_at_most(counter.false_different(Design(USUAL, 5, (1.0, 1.0, 1.03))), 0.05)


def test_at_most_one_experiment_in_twenty_calls_equivalent_what_differs_by_as_much_as_matters(
    counter,
):
    assert is_at_most(counter.false_equivalent(Design(Noise(0.001, 0.002), 5, APART)), 0.05)


def test_the_same_holds_through_the_rows_of_runs(counter):
    """Which pairs are made, and how many are one family, is in it: 18 cells of two runs a start."""
    for rate in counter.through_rows(Design(USUAL, 3, (1.0, 1.0, 1.01), runs=2)):
        assert is_at_most(rate, 0.05), rate.question


def test_runs_taken_for_starts_would_call_equal_layouts_different(counter):
    """The simulation sees the mistake that it is there for: two starts, each with many runs."""

    def happens(drawn):
        pairs = [simulated.Pair(*(side[0] for side in cell)) for cell in drawn.tolist()]
        return [any(one.is_different for one in simulated.decide(pairs, 0.02))]

    design = Design(Noise(0.001, 0.01), 1, cells=1, runs=5)
    assert counter.rate("false_different", design, happens, 200).share > 0.7


@pytest.mark.parametrize("question", ["mean", "paired_ratio", "ratio"])
@pytest.mark.parametrize("starts", [3, 6])
def test_an_interval_holds_the_truth_in_95_percent(counter, question, starts):
    rate = counter.coverage(question, Design(USUAL, starts))
    off = 3 * np.sqrt(0.95 * 0.05 / rate.trials)
    above = 0.03 if question == "ratio" else 0.01  # Welch's is wide with few starts
    assert 0.94 - off <= rate.share <= 0.95 + above + off


@pytest.mark.parametrize("until_ci", [0.005, 0.01])
def test_an_interval_that_was_waited_for_holds_the_truth_in_94_percent(counter, until_ci):
    rate = counter.until_ci(Design(USUAL, 20, (1.0,)), until_ci)
    assert rate.share >= 0.94 - 3 * np.sqrt(0.94 * 0.06 / rate.trials)


def test_eight_starts_show_what_three_do_not_at_noise_of_one_percent(counter):
    few, many = (counter.power(Design(USUAL, n, cells=1), EQUIVALENT).share for n in (3, 8))
    assert few < 0.45
    assert many > 0.75
    few, many = (counter.power(Design(USUAL, n, APART, 1), DIFFERENT).share for n in (3, 8))
    assert few < 0.45
    assert many > 0.75


# -- what is published


def published():
    return bench.VERDICT_RATES.rows(read_part(PUBLISHED))


def test_every_published_rate_is_where_it_should_be():
    rates = published()
    assert {one.question for one in rates} == bench.RATES.keys()
    assert [one for one in rates if not one.holds] == []
    experiments = {one.trials for one in rates if one.question == "false_different"}
    assert max(experiments) >= 2000
    coverages = [one.trials for one in rates if one.question in (*simulated.HOLDS, "until_ci")]
    assert min(coverages) >= 10_000


def test_its_tables_are_those_of_the_documentation():
    page = (ROOT / "docs" / "measurement.md").read_text(encoding="utf-8")
    for line in bench.markdown(published()).splitlines():
        assert line in page


def test_the_figures_in_its_prose_are_those_of_the_tables():
    page = " ".join((ROOT / "docs" / "measurement.md").read_text(encoding="utf-8").split())
    rates = published()

    def of(question, **fields):
        return [
            one
            for one in rates
            if one.question == question
            and all(getattr(one, name) == value for name, value in fields.items())
        ]

    def reach(found):
        return f"{100 * min(found):.1f} to {100 * max(found):.1f}%"

    noise_alone = of("false_different", furthest=1.0, slow=0.0, drift=0.0, until_ci=None)
    wrong = np.mean([one.share for one in noise_alone])
    assert f"wrong in {wrong:.1%} of experiments with equal layouts" in page
    means, pairs = (
        [one.share for one in of(question, slow=0.0)] for question in ("mean", "paired_ratio")
    )
    assert f"{reach(means)} (means) and {reach(pairs)} (ratios of pairs)" in page
    waited = min(one.share for one in of("until_ci"))
    assert f"under `--until-ci` in at least {waited:.1%}" in page
    alone = {n: of("power_equivalent", between=0.01, cells=1, starts=n)[0] for n in (6, 8)}
    assert (
        f"within 2% in {alone[6].share:.0%} of cases, and 8 starts in {alone[8].share:.0%}" in page
    )
    (together,) = of("power_equivalent", between=0.01, cells=18, starts=10)
    (too_few,) = of("power_equivalent", between=0.01, cells=18, starts=8)
    assert too_few.share < 0.8 < together.share
    slow = [one.share for one in of("mean", slow=0.1)]
    assert f"that of a mean holds it in {reach(slow)}" in page
    wrong = max(one.share for one in of("false_different", slow=0.1))
    assert f"At most {wrong:.1%} of experiments have a wrong *different* there" in page
    uneven = [one.share for one in of("ratio_uneven")]
    assert f"holds their ratio in {reach(uneven)}" in page
