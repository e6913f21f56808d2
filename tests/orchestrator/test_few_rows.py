"""Passes of few rows, whose products are Triton's and whose kernels are launched early."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ideal import IDEAL

from orchestrator.commands.predicting import predicted
from orchestrator.experiment import Experiment
from orchestrator.node import datasheet
from orchestrator.plan import models, planning
from orchestrator.predict import factors
from orchestrator.predict.factors import Few
from orchestrator.predict.hardware import of_sheet
from orchestrator.predict.passes import DECODE, PREFILL, Placed, Setting, Work
from orchestrator.predict.plan import Machines
from orchestrator.predict.prediction import Prediction
from orchestrator.run.foretold import foretold
from strategies import Load, Topology, plan_layout
from strategies.precision import Precision

KNOWN = factors.load()
H200 = of_sheet("h200", KNOWN.attainable, KNOWN.calibrations["H200"], 8)
FEW = Few(rows=64, stream=0.5, layer_s=1e-5, gap_s=2e-6, gpus=("H200",), provenance="")
WITHOUT = {"products": "cublas", "pdl": "off"}


def setting(early: bool = True, dtype: str = "bfloat16") -> Setting:
    shape = models.resolve("qwen2.5-32b", "dummy").shape
    found = plan_layout("tp1", shape, Load(256, 128, 1), Topology.uniform(1, 10**12))
    placed = Placed(found.placement, shape, Precision(dtype), H200, early=early)
    return Setting(placed, replace(IDEAL, few=FEW))


def test_a_pass_of_few_rows_has_factors_of_its_own() -> None:
    work = Work(DECODE, 1, 1, read=300)
    plain, few = (setting(early).pass_of(0, work) for early in (False, True))
    # twice as long for the weights, and 10 and 2 us for each of 64 layers
    assert few.compute - plain.compute == pytest.approx(plain.weights + 64e-5, rel=1e-3)
    assert few.gaps == pytest.approx(64 * 2e-6)
    assert plain.gaps == 0


@pytest.mark.parametrize(
    ("rows", "dtype", "has"),
    [(64, "bfloat16", True), (65, "bfloat16", False), (64, "float16", True), (1, "float32", False)],
)
@pytest.mark.parametrize("phase", [DECODE, PREFILL])
def test_up_to_64_rows_in_a_type_of_16_bits_are_few(
    rows: int, dtype: str, has: bool, phase: str
) -> None:
    work = Work(phase, rows, rows)
    plain, other = (setting(early, dtype).pass_of(0, work) for early in (False, True))
    assert (plain != other) == has


def planned(gpu: str, seats: int, engine: str = "torch", **more: str) -> Prediction:
    asked = {"model": "qwen2.5-32b", "engine": engine, "max_concurrency": seats, **more}
    (found,) = predicted(Experiment.model_validate(asked), Machines(gpu, 1), ["tp1"]).predictions
    return found


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_a_plan_has_both_switches_on_hopper(gpu: str) -> None:
    found, without = planned(gpu, 1), planned(gpu, 1, **WITHOUT)
    assert found.tpot_ms.value < without.tpot_ms.value
    assert found.ttft_ms == without.ttft_ms
    assert planned(gpu, 1, pdl="off") == planned(gpu, 1, products="cublas") == without


def test_without_the_switches_fp8_of_many_rows_stays_the_librarys() -> None:
    fp8 = {"quantization": "fp8"}
    assert planned("h200", 100, **fp8, **WITHOUT).tpot_ms == planned("h200", 100, **fp8).tpot_ms


@pytest.mark.parametrize(
    ("gpu", "seats", "engine"),
    [("a100", 1, "torch"), ("b200", 1, "torch"), ("h200", 65, "torch"), ("h200", 1, "vllm")],
)
def test_elsewhere_nothing_changes(gpu: str, seats: int, engine: str) -> None:
    assert planned(gpu, seats, engine) == planned(gpu, seats, engine, **WITHOUT)


def test_what_was_measured_lies_in_its_interval() -> None:
    """Steps of one H200: `neighbours-llama-8b/after`."""
    for seats, tpot_ms in ((1, 3.96), (32, 5.10)):
        found = planned("h200", seats, model="llama-8b").tpot_ms
        assert found.low < tpot_ms < found.high


def test_on_a_gpu_that_few_rows_were_not_fitted_on_the_step_is_less_certain() -> None:
    said = "few rows on H100, fitted on H200"
    assert said in planned("h100", 64).outside
    assert said not in planned("h100", 65).outside
    assert not any("few rows" in why for why in planned("h200", 1).outside)


def test_a_run_is_predicted_by_the_kernels_that_it_had() -> None:
    first, newest = (replace(FEW, since=since) for since in ("2026-11-01", "2026-11-30"))
    found = replace(IDEAL, few=newest, earlier=(first,))
    days = ("2026-10-30", "2026-11-01", "2026-11-29T23:59:00+00:00", "2026-11-30T08:50:41+00:00")
    assert [found.at(day).few for day in days] == [first, first, first, newest]
    assert replace(found, few=None).at("2026-11-30").few is None


def test_over_several_gpus_a_plan_has_them_too() -> None:
    """Passes of pp2 are of 43 requests, and of tp2 of 85."""
    asked = {"model": "qwen2.5-32b", "max_concurrency": 85}
    without, by_both = (
        {one.layout: one for one in plan.predictions}
        for plan in (
            predicted(
                Experiment.model_validate({**asked, **more}), Machines("h200", 2), ["pp2", "tp2"]
            )
            for more in ({"pdl": "off"}, {})
        )
    )
    assert not any("few rows" in why for why in by_both["pp2"].outside)
    assert by_both["pp2"].tpot_ms.value < without["pp2"].tpot_ms.value
    assert by_both["tp2"] == without["tp2"]
    four = Experiment.model_validate({"model": "qwen2.5-32b", "max_concurrency": 1})
    (found,) = predicted(four, Machines("h200", 4), ["tp4"]).predictions
    assert "few rows over 4 GPUs, fitted on 2 at most" in found.outside


def run(capability: tuple[int, int] | None, **asked: str) -> float | None:
    """Tokens/s that are predicted of a run on an H200 that tells its capability."""
    fields = {"model": "qwen2.5-32b", "load_format": "dummy", "strategy": "tp1", **asked}
    experiment = Experiment.model_validate({"max_concurrency": 1, **fields})
    one = Topology.uniform(1, 150_754_820_096, "NVIDIA H200").devices[0]
    topology = Topology((replace(one, capability=capability),))
    (deployment,) = planning.plan_experiment(experiment, "cuda", topology)
    (cell,) = deployment.cells
    found = foretold(cell.cell, experiment, deployment.plan, cell.work, one.name, None)
    assert found.reason is None
    return found.output_throughput


def test_a_run_has_the_switches_that_it_was_settled_to() -> None:
    speed = planned("h200", 1).output_throughput.value
    without = planned("h200", 1, **WITHOUT).output_throughput.value
    assert run((9, 0)) == pytest.approx(speed)
    for other in (run((8, 0)), run(None), run((9, 0), pdl="off"), run((9, 0), products="cublas")):
        assert other == pytest.approx(without)


def test_the_capability_of_every_gpu_of_cuda_is_known() -> None:
    known = {name: datasheet.capability(name) for name in datasheet.SHEETS}
    assert [name for name, one in known.items() if one is None] == ["MI300X"]
    assert known["A100 80GB PCIe"] == (8, 0)
    assert datasheet.capability("NVIDIA L40S") == known["L4"] == known["RTX 6000 Ada"] == (8, 9)
    assert known["H20-3e"] == datasheet.capability("NVIDIA H100 80GB HBM3") == (9, 0)
    assert known["B200"] == (10, 0)
    assert known["RTX PRO 6000 Blackwell Server"] == (12, 0)
    assert datasheet.capability("cpu") is datasheet.capability(None) is None
