"""What the cost model says of a run is kept beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from summaries import comparison

from orchestrator.analysis.latency import Latency
from orchestrator.analysis.predicted import Interval, Predicted, beside
from orchestrator.analysis.throughput import Throughput
from orchestrator.commands.predicting import predicted
from orchestrator.experiment import Experiment
from orchestrator.node import fabric
from orchestrator.plan import planning
from orchestrator.predict.plan import Machines
from orchestrator.report.shown_columns import known_columns
from orchestrator.report.terminal import FIGURES
from orchestrator.run.foretold import foretold
from strategies import Topology
from workers.messages import Switches
from workers.rows import nothing

H200 = 150_754_820_096
MODEL = {"model": "qwen2.5-32b", "load_format": "dummy", "scenario": "short"}
CALIBRATION = Path(__file__).resolve().parents[2] / "docs" / "results" / "2xh200"


def said(
    name: str | None = "NVIDIA H200",
    calibrated: bool = False,
    number: int = 0,
    run_by: str = "torch",
    **fields: Any,
) -> Predicted:
    """The prediction of the first run of a deployment on four GPUs."""
    asked = Experiment(**{**MODEL, "strategy": "tp4", "max_concurrency": "32", **fields})
    topology = Topology.uniform(4, H200, "NVIDIA H200")
    one = planning.plan_experiment(asked, "cuda", topology)[number]
    table = fabric.load(CALIBRATION) if calibrated else None
    work = one.cells[0].work
    cell = replace(one.cells[0].cell, deployment=replace(one.deployment, engine=run_by))
    return foretold(cell, asked, one.plan, work, name, table)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_run_on_gpus_is_predicted_before_it_is_made(calibrated: bool) -> None:
    found = said(calibrated=calibrated)
    assert found.reason is None
    assert found.output_throughput == pytest.approx(3234, rel=0.1)  # measured on 4 x H200
    assert found.median_tpot_ms == pytest.approx(8.65, rel=0.1)
    ends = found.output_throughput_ends
    assert ends.low is not None
    assert ends.high is not None
    assert ends.low < found.output_throughput < ends.high


def test_a_run_of_vllm_is_predicted_with_the_prompt_tokens_that_are_asked_for() -> None:
    own, same, small, whole = (
        said(run_by="vllm", max_concurrency="100", chunked_prefill_size=size)
        for size in (None, 8192, 2048, "off")
    )
    assert None not in (own.output_throughput, small.output_throughput)
    assert own == same
    assert small.median_tpot_ms != own.median_tpot_ms
    assert small == whole  # prompts of 256 tokens are whole in a pass of 2048


def test_a_run_of_an_open_loop_is_predicted_at_its_times_and_lengths() -> None:
    found = said(request_rate=4.0, num_prompts=40, range_ratio=0.5)
    assert found.reason is None
    assert found.output_throughput is not None
    assert 400 < found.output_throughput < 4 * 128 * 1.25
    assert found.median_tpot_ms == pytest.approx(8.65, rel=0.15)


@pytest.mark.parametrize("engine", ["torch", "vllm"])
@pytest.mark.parametrize(
    "asked",
    [
        {"max_concurrency": "1,32,100"},
        {"max_concurrency": "100", "num_prompts": 250, "quantization": "fp8"},
        {
            "max_concurrency": "32",
            "input_len": 5000,
            "output_len": 9,
            "chunked_prefill_size": "off",
        },
        {"max_concurrency": "100", "chunked_prefill_size": "off"},
        {"max_concurrency": "4,64", "request_rate": 5.0, "num_prompts": 50},
        {"max_concurrency": "4,64", "request_rate": 5.0, "num_prompts": 50, "range_ratio": 0.5},
    ],
)
def test_a_plan_says_of_each_load_what_is_kept_beside_its_run(
    asked: dict[str, Any], engine: str
) -> None:
    experiment = Experiment(
        model="qwen2.5-32b", load_format="dummy", strategy="tp4,tp2pp2", **asked
    )
    by_engine = experiment.model_copy(update={"engine": (engine,)})
    plan = predicted(by_engine, Machines("h200", 4), experiment.strategy)
    planned = {(one.layout, one.max_concurrency): one for one in plan.predictions}
    linked = Topology(
        tuple(
            replace(one, linked=True, capability=(9, 0))
            for one in Topology.uniform(4, H200, "NVIDIA H200").devices
        )
    )
    for one in planning.plan_experiment(experiment, "cuda", linked):
        for cell in one.cells:
            of = replace(cell.cell, deployment=replace(one.deployment, engine=engine))
            sums = one.plan if engine == "torch" else replace(one.plan, switches=Switches())
            found = foretold(of, experiment, sums, cell.work, "NVIDIA H200", None)
            expected = planned.pop((one.plan.layout, of.max_concurrency))
            assert found.output_throughput == pytest.approx(expected.output_throughput.value)
            assert found.output_throughput_ends.low == pytest.approx(expected.output_throughput.low)
            assert found.median_tpot_ms == pytest.approx(expected.tpot_ms.value)
            assert found.device_ms_per_token == pytest.approx(expected.device_ms_per_token)
    assert not planned


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"name": "cpu"}, "no rates of cpu are known"),
        ({"name": None}, "no rates of the device are known"),
        ({"run_by": "deepspeed"}, "no factors were fitted for the engine deepspeed"),
        ({"range_ratio": 0.5, "num_prompts": 64}, "requests of several lengths"),
        ({"fusion": "off"}, "not as it is by itself"),
        ({"ablate": "comm", "number": 1}, "without comm"),
        ({"ignore_eos": False}, "outputs may end early"),
    ],
)
def test_a_run_that_the_model_is_not_of_has_the_reason(given: dict[str, Any], why: str) -> None:
    found = said(**given)
    assert found.reason is not None
    assert why in found.reason
    assert found.output_throughput is None


def made(tokens_s: float, ttft_ms: float, tpot_ms: float) -> tuple[Throughput, Latency]:
    latency = nothing(Latency)
    latency = replace(
        latency,
        ttft=replace(latency.ttft, median=ttft_ms),
        tpot=replace(latency.tpot, median=tpot_ms),
    )
    return replace(nothing(Throughput), output_throughput=tokens_s), latency


GUESS = replace(
    nothing(Predicted),
    output_throughput=1100.0,
    output_throughput_ends=Interval(low=900.0, high=1300.0),
    median_ttft_ms=100.0,
    median_ttft_ms_ends=Interval(low=50.0, high=200.0),
    median_tpot_ms=10.0,
    median_tpot_ms_ends=Interval(low=9.0, high=11.0),
)


@pytest.mark.parametrize(
    ("measured", "missed"),
    [
        ((1000.0, 100.0, 10.0), ""),
        ((1000.0, 100.0, 12.0), "median_tpot_ms"),
        ((800.0, 201.0, 10.0), "output_throughput, median_ttft_ms"),
    ],
)
def test_what_came_of_a_run_is_held_to_its_intervals(
    measured: tuple[float, float, float], missed: str
) -> None:
    found = beside(GUESS, *made(*measured))
    assert found.missed == missed
    assert found.error_pct == pytest.approx(100 * (1100 / measured[0] - 1))


def test_a_run_without_a_prediction_or_a_result_misses_nothing() -> None:
    assert beside(GUESS, *made(0.0, 1.0, 1.0)) == GUESS
    assert beside(nothing(Predicted), *made(1.0, 1.0, 1.0)) == nothing(Predicted)


def test_a_cell_outside_of_its_interval_is_marked_where_it_is_shown() -> None:
    within = comparison(predicted_output_throughput=1100.0, predicted_missed="")
    beyond = comparison(predicted_output_throughput=1100.0, predicted_missed="median_tpot_ms")
    assert FIGURES["predicted"](within) == "1100"
    assert FIGURES["predicted"](beyond) == "1100!"
    (shown,) = [one for one in known_columns([beyond]) if one.title == "predicted"]
    assert shown.pair(beyond, {}) == ("1,100", "outside: median_tpot_ms")
