"""Power, energy and utilization of a run, against traces with known answers."""

from __future__ import annotations

import pyarrow as pa
import pytest

from orchestrator.analysis.compare import compare
from orchestrator.analysis.energy import FIELDS, of_telemetry, other_processes
from orchestrator.analysis.metrics import SUMMARY
from workers.messages import RankReport
from workers.probes.telemetry import Sampler
from workers.records import STEPS, TELEMETRY, to_table


def report(rank, powers, step_s=0.1, **fields):
    """A rank whose GPU drew `powers` watts at 0, step_s, ... seconds."""
    rows = [
        {
            "rank": rank,
            "process_id": 100 + rank,
            "gpu": rank,
            "gpu_uuid": f"GPU-{rank}",
            "time_s": step_s * i,
            "power_w": power,
            **{name: values[i] for name, values in fields.items()},
        }
        for i, power in enumerate(powers)
    ]
    return RankReport(rank, None, to_table([], STEPS), None, 0, telemetry=to_table(rows, TELEMETRY))


def test_energy_is_the_trapezoid_of_power_summed_over_gpus():
    ramp = [100.0 + 10 * i for i in range(41)]  # 100 to 500 W in 4 s
    row = of_telemetry(
        [report(0, ramp), report(1, [200.0] * 41)], 4.0, output_tokens=1000, num_gpus=2
    )
    assert row["energy_j"] == pytest.approx(300 * 4 + 200 * 4)
    assert row["mean_power_w"] == pytest.approx(500)
    assert row["joules_per_output_token"] == pytest.approx(2.0)
    assert (row["power_valid"], row["power_reasons"], row["energy_counter_j"]) == (True, None, None)


def test_energy_is_that_of_the_run_alone():
    """From 0 to 2.05 s of a ramp that goes on; a sample lies on neither end."""
    ramp = [100.0 + 10 * i for i in range(41)]
    row = of_telemetry([report(0, ramp)], 2.05, 1, 1)
    assert row["energy_j"] == pytest.approx(2.05 * (100 + 305) / 2)


def test_the_summary_says_how_busy_and_how_hot_the_gpus_were():
    fields = {
        "gpu_utilization_pct": [90, 100] * 20,
        "temperature_c": [50] * 39 + [71],
        "throttle_reasons": [0x04] * 40,
    }
    row = of_telemetry(
        [report(0, [500.0] * 40, **fields), report(1, [500.0] * 40, gpu_utilization_pct=[55] * 40)],
        4.0,
        1,
        2,
    )
    assert (row["mean_gpu_utilization_pct"], row["peak_temperature_c"], row["throttled"]) == (
        75.0,
        71.0,
        True,
    )
    assert row["power_valid"]  # a power cap is how a GPU works at full load


def doubts(*reports, duration=4.0, num_gpus=1):
    row = of_telemetry(reports, duration, 10, num_gpus)
    assert row["power_valid"] is (row["power_reasons"] is None)
    return row["power_reasons"]


def test_power_is_doubted_for_a_reason():
    steady = [500.0] * 41
    assert doubts(report(0, steady)) is None
    assert doubts(report(0, steady[:5]), duration=0.4) == "run of 0.4 s is under 10 samples"
    assert doubts(report(0, steady[:31])) == "samples cover 75% of the run"
    assert (
        doubts(report(0, steady, throttle_reasons=[0] * 20 + [0x40] + [0] * 20))
        == "thermal throttling seen"
    )
    assert doubts(report(0, steady, throttle_reasons=[0x08] * 41)) == "hardware slowdown seen"
    assert (
        doubts(report(0, steady, gpu_process_ids=[[100, 7]] + [None] * 40))
        == "other processes on the GPU"
    )
    assert doubts(report(0, [None] * 41)) == "no power counter"
    assert (
        doubts(report(0, steady), report(1, [None] * 41), num_gpus=2)
        == "no power counter on 1 of 2 GPUs"
    )
    assert doubts(report(0, steady), num_gpus=4) == "no samples of 3 of 4 GPUs"


def test_the_energy_counter_is_heard():
    counted = [50_000 * i for i in range(41)]  # 50 J every 0.1 s
    assert of_telemetry([report(0, [500.0] * 41, energy_mj=counted)], 4.0, 1, 1)[
        "energy_counter_j"
    ] == pytest.approx(2000)
    assert doubts(report(0, [500.0] * 41, energy_mj=counted)) is None
    assert (
        doubts(report(0, [400.0] * 41, energy_mj=counted))
        == "1600 J by the samples, 2000 J by the energy counter"
    )


def test_part_of_the_energy_is_no_energy():
    row = of_telemetry(
        [report(0, [500.0] * 41), report(1, [None] * 41, temperature_c=[60] * 41)], 4.0, 10, 2
    )
    assert (row["energy_j"], row["mean_power_w"], row["joules_per_output_token"]) == (
        None,
        None,
        None,
    )
    assert (row["peak_temperature_c"], row["power_valid"]) == (60.0, False)


def test_a_gpu_that_two_processes_see_counts_once():
    twice = [report(0, [500.0] * 41), report(1, [500.0] * 41, gpu_uuid=["GPU-0"] * 41)]
    assert of_telemetry(twice, 4.0, 1, 1)["energy_j"] == pytest.approx(2000)


def test_processes_of_the_same_run_are_no_others():
    rows = [{"process_id": pid, "gpu_process_ids": [1, 2]} for pid in (1, 2)]
    assert other_processes(rows) == 0
    assert other_processes([*rows, {"process_id": 1, "gpu_process_ids": [9]}]) == 1
    in_a_container = [
        {"process_id": 1, "gpu_process_ids": [5001]},
        {"process_id": 2, "gpu_process_ids": [5002]},
    ]
    assert other_processes(in_a_container) == 0
    assert other_processes([*in_a_container, {"process_id": 1, "gpu_process_ids": [777]}]) == 1


def test_without_a_gpu_there_is_no_power_to_speak_of():
    recording = Sampler().start()
    recording.stop()
    on_cpu = RankReport(0, None, to_table([], STEPS), None, 0, telemetry=recording.table(0))
    row = of_telemetry([on_cpu], 1.0, 10, 1)
    assert row == {field.name: None for field in FIELDS}
    assert of_telemetry([RankReport(0, None, to_table([], STEPS), None, 0)], 1.0, 10, 1) == row


def test_the_comparison_takes_energy_from_runs_whose_power_is_valid():
    cell = {
        "experiment": "e",
        "model": "tiny",
        "strategy": "tp1",
        "engine": "torch",
        "dtype": "bfloat16",
        "quantization": "none",
        "scenario": "short",
        "max_concurrency": 8,
        "status": "completed",
        "output_throughput": 1.0,
    }
    energies = [(10.0, True), (12.0, True), (90.0, False)]
    runs = [
        {**cell, "run": i, "energy_j": energy, "power_valid": valid}
        for i, (energy, valid) in enumerate(energies)
    ]
    row = compare(pa.Table.from_pylist(runs, schema=SUMMARY)).to_pylist()[0]
    assert (row["energy_j"], row["joules_per_output_token"]) == (11.0, None)
