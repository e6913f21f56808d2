"""Goodput as vLLM's serving benchmark counts it."""

import pyarrow as pa
import pytest

from orchestrator.analysis import goodput
from orchestrator.analysis.metrics import SUMMARY
from orchestrator.experiment import Experiment
from workers.records import REQUESTS, to_table

# TTFT 100, 300 and 100 ms; TPOT 50, 50 and 200 ms; E2EL 200, 400 and 500 ms. The last token comes
# at 0.5 s.
TIMES = [(0.0, [0.1, 0.15, 0.2]), (0.0, [0.3, 0.35, 0.4]), (0.0, [0.1, 0.3, 0.5])]


def requests(times=TIMES):
    return to_table(
        [
            {"request_index": i, "arrival_s": a, "token_times_s": t}
            for i, (a, t) in enumerate(times)
        ],
        REQUESTS,
    )


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
    row = goodput.of_requests(requests(), levels, 3)
    assert row["request_goodput"] == pytest.approx(good / 0.5)
    assert row["slo_attainment_pct"] == pytest.approx(100 * good / 3)


def test_a_request_without_tokens_is_not_good_and_one_token_has_no_gap():
    row = goodput.of_requests(requests([(0.0, [0.1]), (0.0, [])]), {"tpot": 1.0}, 2)
    assert (row["request_goodput"], row["slo_attainment_pct"]) == (pytest.approx(10.0), 50.0)


def test_latency_counts_from_the_arrival():
    assert (
        goodput.of_requests(requests([(0.9, [1.0])]), {"ttft": 101.0}, 1)["slo_attainment_pct"]
        == 100.0
    )


def test_without_levels_there_is_no_goodput():
    assert goodput.of_requests(requests(), {}, 3) == {}


def test_nothing_served_is_nothing_good():
    row = goodput.of_requests(requests([]), {"ttft": 1.0}, 2)
    assert (row["request_goodput"], row["slo_attainment_pct"]) == (None, 0.0)


def test_kept_requests_tell_the_goodput_under_other_levels():
    name = {
        "experiment": "e",
        "model": "m",
        "strategy": "tp4",
        "engine": "torch",
        "dtype": "float32",
        "quantization": "none",
        "scenario": "short",
        "max_concurrency": 3,
    }
    rows = [
        {**name, "run": i, "num_prompts": 3, "goodput": "ttft:1", "request_goodput": 0.0}
        for i in range(2)
    ]
    kept = pa.Table.from_pylist([{**name, "run": 0, **row} for row in requests().to_pylist()])
    again = goodput.recomputed(
        pa.Table.from_pylist(rows, schema=SUMMARY), kept, {"ttft": 200.0}
    ).to_pylist()
    assert [row["goodput"] for row in again] == ["ttft:200", None]
    assert [row["request_goodput"] for row in again] == [pytest.approx(4.0), None]


WAYS = [
    "ttft:2000 tpot:200",
    ["ttft:2000", "tpot:200"],
    "ttft:2000,tpot:200",
    {"ttft": 2000, "tpot": 200},
]


@pytest.mark.parametrize("given", WAYS)
def test_levels_can_be_written_in_several_ways(given):
    assert Experiment(goodput=given).goodput == {"ttft": 2000.0, "tpot": 200.0}
    assert goodput.text(Experiment(goodput=given).goodput) == "ttft:2000 tpot:200"


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
    assert Experiment(goodput="ttft:1").identity == Experiment().identity
