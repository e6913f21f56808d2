"""What is sampled beside a run, and what is made of it, against traces with known answers."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pyarrow as pa
import pytest

from orchestrator.analysis.compare import compare
from orchestrator.analysis.energy import FIELDS, of_telemetry, other_processes
from orchestrator.analysis.metrics import SUMMARY
from workers.messages import RankReport
from workers.probes.telemetry import (
    Gauge,
    Gpu,
    Recording,
    Sampler,
    fast_ways,
    find_gpu,
    slow_ways,
    throttle_names,
)
from workers.records import STEPS, TELEMETRY, to_table

UNSIGNED_LONG_LONG = 3
REFUSED = 3  # NVML_ERROR_NOT_SUPPORTED


class NVMLError(Exception):
    pass


class FakeNvml:
    """A driver with one GPU "h", whose every answer is known. `fields`: (field, scope) -> value;
    what is not there is refused."""

    (
        NVML_CLOCK_SM,
        NVML_CLOCK_MEM,
        NVML_TEMPERATURE_GPU,
        NVML_PCIE_UTIL_TX_BYTES,
        NVML_PCIE_UTIL_RX_BYTES,
    ) = 1, 2, 0, 0, 1

    def __init__(self, fields=None, refused=()):
        self.fields, self.refused, self.calls = fields or {}, set(refused), []

    def __getattribute__(self, name):
        if name.startswith("nvml"):
            self.calls.append(name)
            if name in self.refused:
                raise NVMLError("Not Supported")
        return super().__getattribute__(name)

    def nvmlDeviceGetFieldValues(self, handle, wanted):
        def answer(pair):
            known = pair in self.fields
            value = SimpleNamespace(ullVal=self.fields.get(pair, 0))
            return SimpleNamespace(
                nvmlReturn=0 if known else REFUSED, valueType=UNSIGNED_LONG_LONG, value=value
            )

        return [answer(pair) for pair in wanted]

    def nvmlDeviceGetPowerUsage(self, handle):
        return 300_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return 5_000_000

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=97, memory=41)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=7 << 30)

    def nvmlDeviceGetClockInfo(self, handle, which):
        return {1: 1980, 2: 2619}[which]

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return 55

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return 0x04

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=11)]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid != "GPU-abc":
            raise NVMLError("Not Found")
        return "h"

    def nvmlDeviceGetHandleByPciBusId(self, address):
        if address != "00000000:1a:00.0":
            raise NVMLError("Not Found")
        return "h"

    def nvmlDeviceGetUUID(self, handle):
        return "GPU-abc"


def gauge(nvml):
    return Gauge(Gpu(0, "GPU-abc", "h"), fast_ways(nvml, "h"), slow_ways(nvml, "h"))


# -- what is read


def test_every_counter_of_a_gpu_is_read():
    nvml = FakeNvml(
        {
            (186, 0): 512_500,
            (138, 0xFFFFFFFF): 10,
            (139, 0xFFFFFFFF): 20,
            (197, 0): 1000,
            (198, 0): 2000,
        }
    )
    seen = gauge(nvml)
    first = seen.read(0)
    nvml.fields |= {(138, 0xFFFFFFFF): 13, (139, 0xFFFFFFFF): 25, (197, 0): 1500}
    row = seen.read(1)
    assert (row["power_w"], row["gpu_utilization_pct"], row["memory_utilization_pct"]) == (
        512.5,
        97,
        41,
    )
    assert (row["sm_clock_mhz"], row["memory_clock_mhz"], row["temperature_c"]) == (1980, 2619, 55)
    assert (row["memory_used_bytes"], row["throttle_names"]) == (7 << 30, ["sw_power_cap"])
    assert (first["nvlink_tx_bytes"], row["nvlink_tx_bytes"], row["nvlink_rx_bytes"]) == (
        0,
        3 * 1024,
        5 * 1024,
    )
    assert (first["pcie_tx_bytes"], row["pcie_tx_bytes"], row["pcie_rx_bytes"]) == (0, 500, 0)
    assert first["gpu_process_ids"] == [11]
    assert "gpu_process_ids" not in row


def test_nvlink_is_summed_over_the_links_that_answer_where_there_is_no_total():
    nvml = FakeNvml({(138, 0): 1, (138, 1): 1, (139, 0): 1, (139, 1): 1})
    seen = gauge(nvml)
    seen.read(0)
    nvml.fields |= {(138, 0): 5, (138, 1): 3, (139, 1): 2}
    row = seen.read(1)
    assert (row["nvlink_tx_bytes"], row["nvlink_rx_bytes"]) == (6 * 1024, 1024)


def test_a_counter_that_is_not_supported_is_null_and_asked_for_once():
    refused = {
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTemperature",
    }
    nvml = FakeNvml(refused=refused)
    recording = Recording([gauge(nvml)], 0.01)
    recording.thread.start()
    time.sleep(0.1)
    recording.stop()
    rows = recording.table(rank=0).to_pylist()
    assert len(rows) > 3
    for name in ("power_w", "energy_mj", "temperature_c", "nvlink_tx_bytes", "nvlink_rx_bytes"):
        assert {row[name] for row in rows} == {None}
    assert {name: nvml.calls.count(name) for name in refused} == dict.fromkeys(refused, 1)
    assert {row["gpu_utilization_pct"] for row in rows} == {97}


def test_the_fields_of_a_sample_are_read_in_one_call():
    nvml = FakeNvml({(186, 0): 1, (138, 5): 10, (139, 5): 20, (197, 0): 1, (198, 0): 2})
    seen = gauge(nvml)
    seen.read(0)  # what is refused is found out
    nvml.calls.clear()
    assert {"power_w", "nvlink_tx_bytes", "pcie_tx_bytes", "gpu_process_ids"} <= seen.read(
        10
    ).keys()
    assert nvml.calls.count("nvmlDeviceGetFieldValues") == 1


def test_one_call_that_fails_drops_no_reading():
    nvml = FakeNvml({(186, 0): 512_500, (138, 0xFFFFFFFF): 10, (139, 0xFFFFFFFF): 20})
    seen = gauge(nvml)
    seen.read(0)
    nvml.refused.add("nvmlDeviceGetFieldValues")
    assert "power_w" not in seen.read(1)
    nvml.refused.clear()
    nvml.fields |= {(138, 0xFFFFFFFF): 13}
    row = seen.read(2)
    assert (row["power_w"], row["nvlink_tx_bytes"]) == (512.5, 3 * 1024)


def test_a_driver_without_fields_is_not_asked_for_them_again():
    nvml = FakeNvml(refused={"nvmlDeviceGetFieldValues"})
    seen = gauge(nvml)
    assert seen.read(0)["power_w"] == 300.0
    nvml.calls.clear()
    assert seen.read(1)["power_w"] == 300.0
    assert "nvmlDeviceGetFieldValues" not in nvml.calls


def test_a_pcie_counter_may_wrap():
    nvml = FakeNvml({(197, 0): 2**32 - 1000, (198, 0): 0})
    seen = gauge(nvml)
    seen.read(0)
    nvml.fields |= {(197, 0): 500}
    assert seen.read(1)["pcie_tx_bytes"] == 1500
    assert seen.read(2)["pcie_tx_bytes"] == 1500


def test_power_is_that_of_the_moment_or_else_the_mean_of_a_second():
    assert gauge(FakeNvml({(186, 0): 1000})).read(1)["power_w"] == 1.0
    assert gauge(FakeNvml()).read(1)["power_w"] == 300.0


def test_throttle_reasons_have_names():
    assert throttle_names(0) == []
    assert throttle_names(0x44) == ["sw_power_cap", "hw_thermal"]
    assert throttle_names(0x201) == ["gpu_idle", "bit_9"]


def test_a_gpu_is_found_by_what_torch_says_of_it():
    here = {"pci_domain_id": 0, "pci_bus_id": 0x1A, "pci_device_id": 0}
    assert find_gpu(FakeNvml(), 2, SimpleNamespace(uuid="abc")) == Gpu(2, "GPU-abc", "h")
    assert find_gpu(FakeNvml(), 2, SimpleNamespace(uuid="other", **here)) == Gpu(2, "GPU-abc", "h")
    assert find_gpu(FakeNvml(), 2, SimpleNamespace(uuid="other")) is None


# -- when it is read


def test_a_run_on_a_cpu_is_sampled_ten_times_a_second_and_the_thread_ends_with_it():
    recording = Sampler().start()
    end = time.perf_counter() + 1.0
    while time.perf_counter() < end:  # a busy interpreter
        sum(range(1000))
    recording.stop()
    assert not recording.thread.is_alive()
    assert "telemetry" not in {thread.name for thread in threading.enumerate()}
    table = recording.table(rank=3)
    assert table.schema == TELEMETRY
    rows = table.to_pylist()
    assert len(rows) / rows[-1]["time_s"] >= 10
    assert {row["rank"] for row in rows} == {3}
    assert all(row["process_rss_bytes"] > 1e6 for row in rows)
    assert rows[0]["process_cpu_pct"] is None
    assert rows[5]["process_cpu_pct"] > 0
    assert {
        row[name]
        for row in rows
        for name in ("gpu", "power_w", "gpu_utilization_pct", "nvlink_tx_bytes")
    } == {None}
    assert 0 < recording.cpu_s < 0.2


def test_times_are_those_of_the_run():
    recording = Sampler().start()
    recording.origin_s = recording.began_s + 0.5
    recording.stop()
    assert recording.table(0)["time_s"][0].as_py() == pytest.approx(-0.5, abs=0.05)


def test_a_broken_gauge_costs_the_samples_and_not_the_run():
    class Broken:
        def read(self, sample):
            raise RuntimeError("driver gone")

    recording = Recording([Broken()], 0.01)
    recording.thread.start()
    time.sleep(0.03)
    recording.stop()
    assert recording.table(0).num_rows == 0


# -- what is made of it


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
