"""Goodput as vLLM's serving benchmark counts it."""

import pytest
from request_tables import request, requests

from orchestrator.analysis.goodput import Goodput, goodput_of, text
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
        ("ttft:fast", "number"),
    ],
)
def test_levels_that_are_none_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Experiment(goodput=given)


def test_other_levels_belong_in_the_same_folder():
    assert identity_of(Experiment(goodput="ttft:1")) == identity_of(Experiment())
