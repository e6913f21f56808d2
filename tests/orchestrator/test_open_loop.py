"""Requests that arrive by the clock: against queueing theory, and against the closed form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from ideal import IDEAL
from test_predictions import H200, SHORT, TORCH, setting

from orchestrator import cli
from orchestrator.analysis.degradation import Point, fit
from orchestrator.commands.predicting import asked_of
from orchestrator.experiment import Experiment
from orchestrator.plan import models
from orchestrator.plan.arrival_times import arrival_times
from orchestrator.plan.open_loops import timed_requests
from orchestrator.plan.planning import choose_prefill_tokens
from orchestrator.plan.workload import Workload
from orchestrator.predict.load import Arrival, Asked
from orchestrator.predict.open_loop import Replica
from orchestrator.predict.prediction import Prediction, predict

MANY = 4000


def served(
    lengths: Sequence[tuple[int, int]], rate: float, seats: int = 1, layout: str = "tp1", **at: Any
) -> Replica:
    """Requests of these lengths, arriving as a Poisson process, on one replica."""
    room = at.pop("kv_tokens", 10**9)
    times = arrival_times(len(lengths), rate, 1.0, 1)
    one = Replica(setting(layout, "llama-8b", **at), seats, room, 2048)
    one.serve([Arrival(at_s, *both) for at_s, both in zip(times, lengths, strict=True)])
    return one


def alone_s(lengths: tuple[int, int], **at: Any) -> float:
    """From its arrival to its end, of a request that nobody else is beside."""
    (one,) = served([lengths], 1.0, **at).served
    return one.last_s - one.request.at_s


def waited_s(one: Replica, prefill_s: float) -> float:
    """Until requests were let in, mean."""
    return fmean(each.ttft_s - prefill_s for each in one.served)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_seat_and_equal_requests_wait_as_in_a_queue_m_d_1(load: float) -> None:
    lengths, prefill_s = (256, 16), alone_s((256, 1))
    service = alone_s(lengths)
    one = served([lengths] * MANY, load / service)
    # Pollaczek and Khinchine: load x service / (2 (1 - load))
    assert waited_s(one, prefill_s) == pytest.approx(load * service / (2 * (1 - load)), rel=0.12)


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_one_seat_and_lengths_without_memory_wait_as_in_a_queue_m_m_1(load: float) -> None:
    outputs = np.random.default_rng(3).geometric(1 / 64, MANY)
    lengths = [(8, int(made)) for made in outputs]  # of 8 tokens in, so decoding is all of it
    service = fmean(one.last_s - one.request.at_s for one in served(lengths, 1e-3).served)
    one = served(lengths, load / service)
    assert waited_s(one, alone_s((8, 1))) == pytest.approx(load * service / (1 - load), rel=0.2)


def test_requests_that_never_meet_take_as_long_as_one_that_is_alone() -> None:
    found = served([(256, 128)] * 50, 0.01, seats=100)
    (alone,) = served([(256, 128)], 1.0).served
    assert median(one.ttft_s for one in found.served) == pytest.approx(alone.ttft_s)
    assert median(one.tpot_s or 0 for one in found.served) == pytest.approx(alone.tpot_s or 0)
    assert (found.most, found.late) == (1, 0)


@pytest.mark.parametrize("rate", [5.0, 20.0, 40.0])
def test_requests_in_flight_are_those_of_the_closed_form(rate: float) -> None:
    # By Little's law n = rate x (L0 + L1 n), with the lines through closed loops: see docs.
    at = setting("tp1", "llama-8b", engine=TORCH, hardware=H200)
    closed = [predict(at, "tp1", Asked(SHORT, number)) for number in (1, 4, 16, 64)]
    points = [
        Point(
            one.max_concurrency, one.output_throughput.value, one.ttft_ms.value, one.tpot_ms.value
        )
        for one in closed
        if isinstance(one, Prediction) and one.ttft_ms
    ]
    line = fit(points, 128)
    each = (line.ttft_each_ms or 0) + 127 * (line.tpot_each_ms or 0)
    base = (line.ttft_base_ms or 0) + 127 * (line.tpot_base_ms or 0)
    expected = rate * base / 1e3 / (1 - rate * each / 1e3)
    found = served([(256, 128)] * 2000, rate, seats=256, engine=TORCH, hardware=H200)
    end = max(one.last_s for one in found.served)
    assert found.inside_s / end == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("layout", ["tp1", "tp2", "pp2"])
def test_requests_that_come_all_at_once_are_a_closed_loop(layout: str) -> None:
    at = setting(layout, "llama-8b", engine=TORCH, hardware=H200)
    closed = predict(at, layout, Asked(SHORT, 32, 320))
    burst = tuple(Arrival(0.0, 256, 128) for _ in range(320))
    opened = predict(at, layout, Asked.opened(burst, 32, 2048))
    assert isinstance(closed, Prediction)
    assert isinstance(opened, Prediction)
    reached = opened.output_throughput.value / closed.output_throughput.value
    assert reached == pytest.approx(1.0, abs=0.1)
    assert opened.late == 320 - 32


def test_an_open_loop_that_was_measured_is_within_its_intervals() -> None:
    # docs/results/2xh200/open-loop-llama-8b, on one H200: 2411 tokens/s, 16.8 and 6.05 ms
    arrivals = tuple(Arrival(at_s, 256, 128) for at_s in arrival_times(200, 20.0, 1.0, 0))
    at = setting("tp1", "llama-8b", engine=TORCH, hardware=H200)
    found = predict(at, "tp1", Asked.opened(arrivals, 100, 2048))
    assert isinstance(found, Prediction)
    assert found.output_throughput.value == pytest.approx(2411, rel=0.01)
    assert found.tpot_ms.value == pytest.approx(6.05, rel=0.02)
    assert found.ttft_ms is not None
    assert found.ttft_ms.low < 16.8 < found.ttft_ms.high
    assert "requests that arrive by the clock" in found.outside[-1]


def test_parts_and_idle_time_are_all_of_the_gpus() -> None:
    arrivals = tuple(Arrival(float(number), 256, 128) for number in range(20))
    for layout in ("tp2", "pp2", "dp2"):
        at = setting(layout, "llama-8b", engine=TORCH, hardware=H200)
        found = predict(at, layout, Asked.opened(arrivals, 8, 2048))
        assert isinstance(found, Prediction)
        whole = found.parts.seconds + found.outside_ms_per_token
        assert whole == pytest.approx(found.device_ms_per_token)
        assert found.device_ms_per_token == pytest.approx(1e3 * found.duration_s * 2 / (20 * 128))
        # a request a second: most of the time there is nothing to do
        assert found.outside_ms_per_token > 0.2 * whole
        assert (found.parts.bubble > 0) == (layout == "pp2")


def test_passes_that_are_taken_together_are_those_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = [(100 + 7 * (i % 13), 5 + 11 * (i % 17)) for i in range(100)]
    together = served(lengths, 15.0, seats=8, engine=TORCH, hardware=H200)
    monkeypatch.setattr(Replica, "_next_s", lambda self, line: 0.0)
    apart = served(lengths, 15.0, seats=8, engine=TORCH, hardware=H200)
    for one, other in zip(together.served, apart.served, strict=True):
        assert one.first_s == pytest.approx(other.first_s, rel=1e-3)
        assert one.last_s == pytest.approx(other.last_s, rel=1e-3)


def test_kv_lets_in_no_more_than_it_has_room_for() -> None:
    found = served([(256, 128)] * 40, 1e6, seats=40, kv_tokens=4 * 384 + 100)
    assert (found.most, found.most_tokens, found.late) == (4, 4 * 384, 36)


def test_micro_batches_without_requests_wait_for_one_that_has_some() -> None:
    room = {"seats": 8, "kv_tokens": 400}  # of one request at once
    found = served([(256, 128)] * 6, 1e6, layout="pp4", engine=TORCH, hardware=H200, **room)
    assert (len(found.served), found.most, found.late) == (6, 1, 5)
    assert all(one.done for one in found.served)


def test_a_request_that_comes_during_a_pass_and_has_a_seat_is_not_late() -> None:
    slow = replace(TORCH, start_s=0.005)  # so the second one is still to be let in at 5 ms
    one = Replica(setting("tp1", "llama-8b", engine=slow), 8, 10**6, 2048)
    one.serve([Arrival(at_s, 256, 128) for at_s in (0.0, 0.001)])
    assert (one.most, one.late) == (2, 0)


def test_requests_whose_seats_are_let_go_of_after_the_last_one_came_are_late() -> None:
    half_s = alone_s((256, 128)) / 2
    one = Replica(setting("tp1", "llama-8b"), 2, 10**6, 2048)
    one.serve([Arrival(at_s, 256, 128) for at_s in (0.0, 0.0, half_s, half_s)])
    assert (one.most, one.late) == (2, 2)


def test_an_engine_whose_passes_hold_prompts_and_tokens_is_done_sooner() -> None:
    lengths, rate = [(2048, 64)] * 60, 20.0
    apart = served(lengths, rate, seats=60, engine=TORCH, hardware=H200)
    mixing = replace(TORCH, separate=False)
    beside = served(lengths, rate, seats=60, engine=mixing, hardware=H200)
    assert max(one.last_s for one in beside.served) < max(one.last_s for one in apart.served)


@pytest.mark.parametrize(
    "asked",
    [
        {"input_len": "100:400", "output_len": "normal(60,20)", "num_prompts": 40},
        {"scenario": "short", "num_prompts": 10, "burstiness": 0.5},
        {"range_ratio": 0.5, "num_prompts": 12},
    ],
)
def test_the_requests_of_a_plan_are_those_of_a_run(asked: dict[str, Any]) -> None:
    experiment = Experiment(model="llama-8b", request_rate=4.0, max_concurrency=16, **asked)
    model = models.resolve("llama-8b", "dummy")
    (scenario,) = experiment.scenarios
    work = Workload(experiment, model).work(scenario, 16)
    expected = [(one.arrival_s, len(one.prompt), one.output_len) for one in work.requests]
    assert timed_requests(experiment, scenario, 16, model) == expected


def test_a_dataset_that_has_fewer_requests_than_are_asked_for_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = ({"prompt_token_ids": [1] * size, "output_len": size} for size in (5, 7, 9))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    experiment = Experiment(
        model="llama-8b", request_rate=4.0, dataset_path=str(path), num_prompts=8
    )
    model = models.resolve("llama-8b", "dummy")
    (scenario,) = experiment.scenarios
    work = Workload(experiment, model).work(scenario, 16)
    expected = [(one.arrival_s, len(one.prompt), one.output_len) for one in work.requests]
    assert len(expected) == 8
    assert timed_requests(experiment, scenario, 16, model) == expected


@pytest.mark.parametrize("size", ["off", 512, None])
@pytest.mark.parametrize("lengths", [{"input_len": "100:4000"}, {"input_len": 300}])
def test_passes_of_a_plan_have_as_many_prompt_tokens_as_those_of_a_run(
    size: str | int | None, lengths: dict[str, Any]
) -> None:
    experiment = Experiment(
        model="llama-8b",
        request_rate=4.0,
        num_prompts=5,
        output_len=8,
        chunked_prefill_size=size,
        **lengths,
    )
    longest = Workload(experiment, models.resolve("llama-8b", "dummy")).longest_prompt()
    asked = asked_of(experiment, 0, TORCH)
    expected = choose_prefill_tokens(experiment, longest)
    assert asked.lengths.prefill_tokens == expected
    its_own = replace(TORCH, separate=False, prefill_tokens=16384)  # as vLLM has it by itself
    found = asked_of(experiment, 0, its_own).lengths.prefill_tokens
    assert found == (16384 if size is None else expected)


# -- the commands


def run(*asked: str) -> Result:
    return CliRunner().invoke(cli.main, list(asked))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Mooncake's format: two requests a second of 500 tokens in and 50 out, for a minute."""
    path = tmp_path / "trace.jsonl"
    rows = ({"timestamp": 500 * i, "input_length": 500, "output_length": 50} for i in range(120))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


PLAN = ("plan", "--model", "llama-8b", "--gpu", "h200", "--gpus", "2")


def test_a_plan_of_a_rate_predicts_latencies_and_throughput_under_it() -> None:
    found = json.loads(run(*PLAN, "--request-rate", "20", "--json").stdout)["plans"][0]
    assert found["arrivals"] == "300 requests at 20 requests/s"
    assert found["against_concurrency"] == []
    (ranking,) = found["rankings"]
    assert ranking["max_concurrency"] == 256
    assert {one["layout"] for one in ranking["layouts"]} == {"tp2", "pp2", "dp2"}
    for one in ranking["layouts"]:
        assert 0.85 * 20 * 128 < one["output_throughput"]["value"] <= 20 * 128
    shown = run(*PLAN, "--request-rate", "20").stdout
    assert "300 requests at 20 requests/s, at most 256 concurrent" in " ".join(shown.split())


def test_requests_of_one_token_out_have_no_tpot() -> None:
    lengths = ("--input-len", "10", "--output-len", "1")
    asked = (*PLAN, "--strategy", "tp2", "--request-rate", "5", *lengths)
    (ranking,) = json.loads(run(*asked, "--json").stdout)["plans"][0]["rankings"]
    assert ranking["layouts"][0]["tpot_ms"] is None
    assert run(*asked).exit_code == 0


def test_a_higher_rate_takes_longer_and_above_what_is_served_requests_are_late() -> None:
    found = [
        json.loads(run(*PLAN, "--strategy", "tp2", "--request-rate", rate, "--json").stdout)
        for rate in ("5", "50", "5000")
    ]
    ones = [one["plans"][0]["rankings"][0]["layouts"][0] for one in found]
    tpots = [one["tpot_ms"]["value"] for one in ones]
    assert tpots == sorted(tpots)
    assert [one["late"] > 0 for one in ones] == [False, False, True]


@pytest.mark.parametrize("rate", ["5", "5000"])
def test_the_columns_of_an_open_loop_are_explained_where_they_are_shown(rate: str) -> None:
    said = " ".join(run(*PLAN, "--strategy", "tp2", "--request-rate", rate).stdout.split())
    is_late = rate == "5000"
    assert (" late " in said, "late: requests that wait" in said) == (is_late, is_late)
    assert (" at once " in said, "at once: the most" in said) == (not is_late, not is_late)


def test_a_trace_brings_its_lengths_and_its_times(trace: Path) -> None:
    found = json.loads(run(*PLAN, "--dataset-path", str(trace), "--json").stdout)["plans"][0]
    assert (found["scenario"], found["input_len"], found["output_len"]) == ("trace", 500, 50)
    assert found["arrivals"] == (
        "120 requests of a trace (all at speed 1), 2.02 requests/s on average"
    )
    fast = run(*PLAN, "--dataset-path", str(trace), "--trace-speed", "4", "--json").stdout
    assert json.loads(fast)["plans"][0]["arrivals"] == (
        "120 requests of a trace (all at speed 4), 8.07 requests/s on average"
    )


def test_a_recommendation_for_a_trace_says_up_to_which_rate_it_holds(trace: Path) -> None:
    asked = ("recommend", "--model", "llama-8b", "--dataset-path", str(trace), "--gpu", "h200")
    limits = ("--slo", "ttft:500", "tpot:7", "--gpus-max", "2")
    found = json.loads(run(*asked, *limits, "--json").stdout)
    choice = found["smallest"]
    assert (choice["gpus"], choice["layout"], choice["meets"]) == (1, "tp1", True)
    assert found["arrivals"].startswith("120 requests of a trace (all at speed 1), 2.02 requests")
    assert 2 < choice["holds_up_to_rate"] < 40
    assert choice["then_misses"]["predicted_ms"]["value"] > choice["then_misses"]["limit_ms"]
    shown = " ".join(run(*asked, *limits).stdout.split())
    assert "holds up to" in shown
    assert "arriving a little faster" in shown


def test_a_rate_holds_only_where_throughput_keeps_up_with_arrivals(trace: Path) -> None:
    # a limit on TPOT alone, which no backlog breaks
    asked = ("recommend", "--model", "llama-8b", "--dataset-path", str(trace), "--gpu", "h200")
    limits = ("--slo", "tpot:1000", "--gpus-max", "1", "--concurrency", "2")
    choice = json.loads(run(*asked, *limits, "--json").stdout)["smallest"]
    assert choice["then_misses"] is None
    assert choice["holds_up_to_rate"] <= choice["closed_rate"] < 16 * 2.02
    assert choice["holds_up_to_rate"] + 2.02 / 8 > choice["closed_rate"]
    assert "requests/s, so of more, ever more wait" in " ".join(run(*asked, *limits).stdout.split())


def test_a_rate_that_is_not_kept_up_with_holds_for_its_requests_alone(trace: Path) -> None:
    asked = ("recommend", "--model", "llama-8b", "--dataset-path", str(trace), "--gpu", "h200")
    limits = ("--slo", "tpot:1000", "--gpus-max", "1", "--concurrency", "2", "--trace-speed", "9")
    choice = json.loads(run(*asked, *limits, "--json").stdout)["smallest"]
    assert choice["holds_up_to_rate"] is None
    assert choice["closed_rate"] < 9 * 2
    assert choice["prediction"]["late"] > 0
    shown = " ".join(run(*asked, *limits).stdout.split())
    assert "holds for these requests alone and no longer stream at this rate" in shown


@pytest.mark.parametrize(
    ("rows", "asked", "why"),
    [
        ([{"prompt_token_ids": [1, 2]}], (), "has no times of arrival; give --request-rate"),
        (
            [{"timestamp": 0, "input_length": 5, "output_length": 5}],
            ("--request-rate", "3"),
            "a trace brings its own times of arrival",
        ),
        ([{"timestamp": 0, "input_length": 0, "output_length": 5}], (), "the prompt is empty"),
        (
            [{"timestamp": 0, "input_length": 5, "output_length": 5}] * 2,
            ("--num-prompts", "3"),
            "num_prompts asks for 3 requests of a trace that has 2",
        ),
    ],
)
def test_what_is_no_open_loop_is_refused_in_one_line(
    tmp_path: Path, rows: list[dict[str, Any]], asked: tuple[str, ...], why: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    done = run(*PLAN, "--dataset-path", str(path), *asked)
    assert done.exit_code
    (line,) = done.stderr.splitlines()
    assert why in line


def test_more_tokens_than_are_worked_out_have_no_prediction_and_the_reason() -> None:
    done = run(*PLAN, "--request-rate", "9", "--num-prompts", "9000")
    assert done.exit_code == 2
    assert "9000 requests make 1152000 tokens, and at most 500000 are worked out" in " ".join(
        done.stdout.split()
    )


def test_an_ideal_engine_reads_prompts_at_once_and_streams_weights_for_each_token() -> None:
    (one,) = served([(256, 128)], 1.0, engine=IDEAL).served
    weights = setting("tp1", "llama-8b").stages[0].weight_bytes / 4.2e12
    assert one.tpot_s == pytest.approx(weights, rel=0.01)
