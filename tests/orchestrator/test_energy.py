"""Power and energy of a run, against traces of samples with known answers."""

import pytest
from samples import report, without_gpu
from summaries import summary
from tables import make

from orchestrator.analysis import energy
from orchestrator.analysis.comparing.compare import compare
from orchestrator.analysis.energy import Energy, other_processes
from orchestrator.analysis.samples import sampled
from workers.messages import RankReport
from workers.records import STEPS, TELEMETRY
from workers.rows import nothing


def energy_of(reports, duration, output_tokens, num_gpus):
    return energy.energy_of(sampled(reports, duration, num_gpus), output_tokens)


def test_energy_is_the_trapezoid_of_power_summed_over_gpus():
    ramp = [100.0 + 10 * i for i in range(41)]  # 100 to 500 W in 4 s
    found = energy_of(
        [report(0, ramp), report(1, [200.0] * 41)], 4.0, output_tokens=1000, num_gpus=2
    )
    assert found.energy_j == pytest.approx(300 * 4 + 200 * 4)
    assert found.mean_power_w == pytest.approx(500)
    assert found.joules_per_output_token == pytest.approx(2.0)
    assert (found.power_valid, found.power_reasons, found.energy_counter_j) == (True, None, None)


def test_energy_is_that_of_the_run_alone():
    """From 0 to 2.05 s of a ramp that goes on; a sample lies on neither end."""
    ramp = [100.0 + 10 * i for i in range(41)]
    found = energy_of([report(0, ramp)], 2.05, 1, 1)
    assert found.energy_j == pytest.approx(2.05 * (100 + 305) / 2)


def test_the_summary_says_how_busy_and_how_hot_the_gpus_were():
    fields = {
        "gpu_utilization_pct": [90, 100] * 20,
        "temperature_c": [50] * 39 + [71],
        "throttle_reasons": [0x04] * 40,
    }
    found = energy_of(
        [report(0, [500.0] * 40, **fields), report(1, [500.0] * 40, gpu_utilization_pct=[55] * 40)],
        4.0,
        1,
        2,
    )
    assert (found.mean_gpu_utilization_pct, found.peak_temperature_c) == (75.0, 71.0)
    assert found.power_valid  # a power cap is how a GPU works at full load


def doubts(*reports, duration=4.0, num_gpus=1):
    found = energy_of(reports, duration, 10, num_gpus)
    assert found.power_valid is (found.power_reasons is None)
    return found.power_reasons


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
    found = energy_of([report(0, [500.0] * 41, energy_mj=counted)], 4.0, 1, 1)
    assert found.energy_counter_j == pytest.approx(2000)
    assert doubts(report(0, [500.0] * 41, energy_mj=counted)) is None
    assert doubts(report(0, [480.0] * 41, energy_mj=counted)) is None
    assert (
        doubts(report(0, [460.0] * 41, energy_mj=counted))
        == "1840 J by the samples, 2000 J by the energy counter"
    )


def test_part_of_the_energy_is_no_energy():
    found = energy_of(
        [report(0, [500.0] * 41), report(1, [None] * 41, temperature_c=[60] * 41)], 4.0, 10, 2
    )
    assert (found.energy_j, found.mean_power_w, found.joules_per_output_token) == (None, None, None)
    assert (found.peak_temperature_c, found.power_valid) == (60.0, False)


def test_a_gpu_that_two_processes_see_counts_once():
    twice = [report(0, [500.0] * 41), report(1, [500.0] * 41, gpu_uuid=["GPU-0"] * 41)]
    assert energy_of(twice, 4.0, 1, 1).energy_j == pytest.approx(2000)


def samples(*seen):
    """Samples of (process, processes that compute on its GPU)."""
    rows = [{"process_id": pid, "gpu_process_ids": pids} for pid, pids in seen]
    return TELEMETRY.rows(make(TELEMETRY, rows))


def test_processes_of_the_same_run_are_no_others():
    ours = (1, [1, 2]), (2, [1, 2])
    assert other_processes(samples(*ours)) == 0
    assert other_processes(samples(*ours, (1, [9]))) == 1
    in_a_container = (1, [5001]), (2, [5002])
    assert other_processes(samples(*in_a_container)) == 0
    assert other_processes(samples(*in_a_container, (1, [777]))) == 1


@pytest.mark.parametrize(
    ("pids", "strangers"),
    [
        ([[5000 + gpu] for gpu in range(8)], 0),  # a worker on each of the GPUs, as vLLM has
        ([[5000]] * 8, 0),  # one process on all of them
        ([[5000]], 0),
        ([[5000, 777]], 1),
        ([[5000, 777]] + [[5000 + gpu] for gpu in range(1, 8)], 1),
        ([[5000, 777]] + [[5000]] * 7, 1),
    ],
)
def test_in_a_container_one_process_may_report_of_many_gpus(pids, strangers):
    rows = [
        {"process_id": 1, "gpu_uuid": f"GPU-{gpu}", "gpu_process_ids": on_it}
        for gpu, on_it in enumerate(pids)
    ]
    assert other_processes(TELEMETRY.rows(make(TELEMETRY, rows))) == strangers


def test_without_a_gpu_there_is_no_power_to_speak_of():
    assert energy_of([without_gpu()], 1.0, 10, 1) == nothing(Energy)
    assert energy_of([RankReport(0, None, STEPS.make([]), None, 0)], 1.0, 10, 1) == nothing(Energy)


def test_the_comparison_takes_energy_from_runs_whose_power_is_valid():
    energies = [(10.0, True), (12.0, True), (90.0, False)]
    runs = [
        summary(run=i, energy_j=energy, power_valid=valid)
        for i, (energy, valid) in enumerate(energies)
    ]
    (cell,) = compare(runs)
    assert (cell.energy.energy_j, cell.energy.joules_per_output_token) == (11.0, None)
