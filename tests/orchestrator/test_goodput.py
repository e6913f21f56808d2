"""Goodput as vLLM's serving benchmark counts it."""

import pytest
from request_tables import request, requests
from summaries import summary

from orchestrator.analysis.comparing.compare import compare
from orchestrator.analysis.goodput import Goodput, Slo, goodput_of, slo_of, slo_sentences, text
from orchestrator.experiment import Experiment
from orchestrator.store.identity import identity_of
from workers.rows import nothing

# TTFT 100, 300 and 100 ms; TPOT 50, 50 and 200 ms; E2EL 200, 400 and 500 ms. The last token comes
# at 0.5 s.
THREE = requests(request([0.1, 0.15, 0.2]), request([0.3, 0.35, 0.4]), request([0.1, 0.3, 0.5]))


@pytest.mark.parametrize(
    ("levels", "good"),
    [
        ({"ttft": 200.0}, 2),
        ({"ttft": 200.0, "tpot": 100.0}, 1),
        ({"e2el": 450.0}, 2),
        ({"tpot": 1.0}, 0),
        ({"ttft": 1e4}, 3),
    ],
)
def test_a_request_is_good_if_it_meets_every_level(levels, good):
    found = goodput_of(THREE, levels, 3)
    assert found.request_goodput == pytest.approx(good / 0.5)
    assert found.slo_attainment_pct == pytest.approx(100 * good / 3)
    assert found.goodput == text(levels)


def test_a_request_without_tokens_is_not_good_and_one_token_has_no_gap():
    found = goodput_of(requests(request([0.1]), request([])), {"tpot": 1.0}, 2)
    assert (found.request_goodput, found.slo_attainment_pct) == (pytest.approx(10.0), 50.0)


def test_latency_counts_from_the_arrival():
    late = requests(request([1.0], arrival_s=0.9))
    assert goodput_of(late, {"ttft": 101.0}, 1).slo_attainment_pct == 100.0


def test_without_levels_there_is_no_goodput():
    assert goodput_of(THREE, {}, 3) == nothing(Goodput)


def test_nothing_served_is_nothing_good():
    found = goodput_of(requests(), {"ttft": 1.0}, 2)
    assert (found.request_goodput, found.slo_attainment_pct) == (None, 0.0)


WAYS = [
    "ttft:2000 tpot:200",
    ["ttft:2000", "tpot:200"],
    "ttft:2000,tpot:200",
    {"ttft": 2000, "tpot": 200},
]


@pytest.mark.parametrize("given", WAYS)
def test_levels_can_be_written_in_several_ways(given):
    assert Experiment(goodput=given).goodput == {"ttft": 2000.0, "tpot": 200.0}
    assert text(Experiment(goodput=given).goodput) == "ttft:2000 tpot:200"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("ttft", "METRIC:MILLISECONDS"),
        ("itl:5", "no metric 'itl'; use ttft, tpot, e2el"),
        ("ttft:0", "above 0"),
        ("ttft:fast", "found 'ttft:fast'"),
    ],
)
def test_levels_that_are_none_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Experiment(goodput=given)


def test_other_levels_belong_in_the_same_folder():
    assert identity_of(Experiment(goodput="ttft:1")) == identity_of(Experiment())


# -- an SLO: limits on percentiles of a run


@pytest.mark.parametrize(
    ("levels", "met", "ratio", "limiting"),
    [
        ({"ttft:p99": 400.0}, True, 0.74, "ttft:p99:400"),  # p99 of 100, 100, 300 is 296
        ({"ttft:p50": 100.0}, True, 1.0, "ttft:p50:100"),  # a limit that is reached is met
        ({"ttft:p99": 200.0}, False, 1.48, "ttft:p99:200"),
        ({"ttft:p99": 200.0, "tpot:p100": 100.0}, False, 2.0, "tpot:p100:100"),
        ({"itl:p0.1": 50.0}, True, 1.0, "itl:p0.1:50"),
        ({"e2el:p99": 1000.0, "ttft:p99": 1000.0}, True, 0.498, "e2el:p99:1000"),
    ],
)
def test_a_run_meets_an_slo_if_every_percentile_is_within_its_limit(levels, met, ratio, limiting):
    found = slo_of(THREE, levels, 3)
    assert (found.slo_met, found.slo_limiting) == (met, limiting)
    assert found.slo_ratio == pytest.approx(ratio)


def test_a_run_in_which_a_request_made_no_token_meets_no_slo():
    found = slo_of(requests(request([0.1]), request([])), {"ttft:p50": 1e6}, 2)
    assert (found.slo_met, found.slo_ratio, found.slo_limiting) == (False, None, None)
    assert slo_of(requests(request([0.1])), {"ttft:p50": 1e6}, 2).slo_met is False


def test_goodput_and_an_slo_are_held_apart():
    both = {"ttft": 200.0, "ttft:p99": 400.0}
    assert goodput_of(THREE, both, 3) == goodput_of(THREE, {"ttft": 200.0}, 3)
    assert slo_of(THREE, both, 3) == slo_of(THREE, {"ttft:p99": 400.0}, 3)
    assert slo_of(THREE, {"ttft": 200.0}, 3) == nothing(Slo)
    assert goodput_of(THREE, {"ttft:p99": 400.0}, 3) == nothing(Goodput)


def test_a_cell_meets_an_slo_if_every_run_does():
    slo = {"slo": "ttft:p99:100", "slo_limiting": "ttft:p99:100"}
    runs = [
        summary(strategy=name, start=start, slo_met=ratio <= 1, slo_ratio=ratio, **slo)
        for name, ratios in {"tp2": (0.5, 0.9), "pp2": (0.5, 1.3)}.items()
        for start, ratio in enumerate(ratios)
    ]
    found = {one.cell.strategy: one.slo for one in compare(runs)}
    assert {name: (one.slo_met, one.slo_ratio) for name, one in found.items()} == {
        "tp2": (True, 0.9),
        "pp2": (False, 1.3),
    }
    (said,) = slo_sentences(dict(sorted(found.items(), reverse=True)))
    assert said == (
        "SLO ttft:p99:100: met by tp2; missed by pp2 (1.30x the limit of ttft:p99:100)."
    )


def test_runs_that_were_held_to_different_slos_have_none_together():
    runs = [
        summary(start=start, slo=f"ttft:p99:{limit}", slo_met=True, slo_ratio=0.5)
        for start, limit in enumerate((100, 200))
    ]
    assert compare(runs)[0].slo == nothing(Slo)


@pytest.mark.parametrize(
    "given",
    [
        "ttft:p99:2000 tpot:p95:50",
        ["ttft:p99:2000,tpot:p95:50"],
        {"ttft:p99": 2000, "tpot:p95": 50},
    ],
)
def test_an_slo_can_be_written_in_several_ways_and_belongs_in_the_same_folder(given):
    found = Experiment(slo=given)
    assert found.slo == {"ttft:p99": 2000.0, "tpot:p95": 50.0}
    assert identity_of(found) == identity_of(Experiment())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("ttft:2000", "METRIC:PERCENTILE:MILLISECONDS"),
        ("speed:p99:5", "no metric 'speed'; use ttft, tpot, itl, e2el"),
        ("ttft:p0:5", "above p0 and at most p100"),
        ("ttft:p101:5", "above p0 and at most p100"),
        ("ttft:50", "found 'ttft:50'"),
        ("ttft:p99:5 ttft:p99:6", "ttft:p99 is both 5 and 6; give one"),
        ("ttft:p99:0", "above 0"),
        ("ttft:p99:fast", "tpot:p95:50; found 'ttft:p99:fast'"),
        ("ttft:p99", "tpot:p95:50; found 'ttft:p99'"),
        ("ttft:99:5", "METRIC:PERCENTILE:MILLISECONDS"),
    ],
)
def test_an_slo_that_is_none_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Experiment(slo=given)
