"""What is sampled beside a run, against a driver whose every answer is known."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from workers.probes import telemetry
from workers.probes.nvml_readings import Readings, SinceFirst, fast_ways, slow_ways
from workers.probes.telemetry import PERIOD_S, Gauge, Gpu, Recording, Sampler, find_gpu
from workers.records import TELEMETRY
from workers.rows import columns

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

    def nvmlDeviceGetMaxClockInfo(self, handle, which):
        return {1: 1980, 2: 3201}[which]

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
    assert (first["gpu_process_ids"], first["max_sm_clock_mhz"]) == ([11], 1980)
    assert not {"gpu_process_ids", "max_sm_clock_mhz"} & row.keys()


def test_a_process_that_the_rank_has_started_counts_as_the_rank(monkeypatch):
    nvml = FakeNvml({})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        running = [SimpleNamespace(pid=pid) for pid in (worker.pid, 1, os.getpid())]
        monkeypatch.setattr(nvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: running)
        seen = gauge(nvml).read(0)
        worker.communicate(b"\n")
    assert seen["gpu_process_ids"] == [1, os.getpid()]


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


def test_a_gpu_is_found_by_what_torch_says_of_it():
    here = {"pci_domain_id": 0, "pci_bus_id": 0x1A, "pci_device_id": 0}
    assert find_gpu(FakeNvml(), 2, SimpleNamespace(uuid="abc")) == Gpu(2, "GPU-abc", "h")
    assert find_gpu(FakeNvml(), 2, SimpleNamespace(uuid="other", **here)) == Gpu(2, "GPU-abc", "h")
    assert find_gpu(FakeNvml(), 2, SimpleNamespace(uuid="other")) is None


# -- when it is read


class Clock:
    """Stands still but while somebody waits; the wait number `slow` takes `late_s` longer. The wait
    that goes beyond `end_s` is told that the run is over. Also the event that is waited for."""

    def __init__(self, end_s, slow=None, late_s=0.0):
        self.now_s, self.end_s, self.slow, self.late_s, self.waits = 0.0, end_s, slow, late_s, 0

    def perf_counter(self):
        return self.now_s

    def process_time(self):
        return self.now_s / 2

    def thread_time(self):
        return 0.0

    def wait(self, timeout):
        self.now_s += max(0.0, timeout) + (self.late_s if self.waits == self.slow else 0.0)
        self.waits += 1
        return self.now_s > self.end_s


def sampled(clock, monkeypatch):
    """The rows of a run on a CPU whose sampler goes by `clock`."""
    monkeypatch.setattr(telemetry, "time", clock)
    recording = Recording([Gauge(None)], PERIOD_S, began_s=0.0, _over=clock)
    recording.thread.start()
    recording.thread.join()
    return recording.table(rank=0).to_pylist()


def test_ten_samples_are_taken_a_second(monkeypatch):
    rows = sampled(Clock(end_s=0.999), monkeypatch)
    assert [int(10 * row["time_s"]) for row in rows[:-1]] == [*range(10)]
    assert rows[0]["process_cpu_pct"] is None
    assert [row["process_cpu_pct"] for row in rows[1:]] == pytest.approx([50.0] * 10)


def test_samples_are_taken_at_uneven_moments(monkeypatch):
    times = [row["time_s"] for row in sampled(Clock(end_s=100.0), monkeypatch)]
    for step in (0.025, 0.1, 0.0125):  # of a pipeline
        places = [time % step / step for time in times]
        shares = [sum(low <= one < low + 0.25 for one in places) for low in (0, 0.25, 0.5, 0.75)]
        assert min(shares) > 0.2 * len(times)


def test_samples_that_are_overdue_are_left_out(monkeypatch):
    rows = sampled(Clock(end_s=0.95, slow=2, late_s=0.33), monkeypatch)
    gaps = [later["time_s"] - one["time_s"] for one, later in itertools.pairwise(rows)]
    assert len(rows) == 8
    assert sum(gap > 0.3 for gap in gaps) == 1
    assert max(gaps[2:]) < 0.2


def test_a_run_on_a_cpu_is_sampled_while_it_computes_and_the_thread_ends_with_it():
    recording = Sampler().start()
    end = time.perf_counter() + 60.0
    while len(recording.samples) < 10 and time.perf_counter() < end:  # a busy interpreter
        sum(range(1000))
    recording.stop()
    assert not recording.thread.is_alive()
    assert "telemetry" not in {thread.name for thread in threading.enumerate()}
    table = recording.table(rank=3)
    assert table.schema.equals(TELEMETRY.schema, check_metadata=True)
    rows = table.to_pylist()
    assert len(rows) > 10
    assert {row["rank"] for row in rows} == {3}
    assert all(row["process_rss_bytes"] > 1e6 for row in rows)
    assert rows[0]["process_cpu_pct"] is None
    assert rows[5]["process_cpu_pct"] > 0
    assert {
        row[name]
        for row in rows
        for name in ("gpu", "power_w", "gpu_utilization_pct", "nvlink_tx_bytes")
    } == {None}
    assert 0 < recording.cpu_s < 0.02 * len(rows)


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


def test_a_sample_is_a_whole_row_and_what_was_not_read_is_null():
    class OnlyPower:
        def read(self, sample):
            return {"process_id": 7, "power_w": 300.0}

    recording = Recording([OnlyPower()], 10.0)
    recording.thread.start()
    recording.stop()
    row = recording.table(rank=2).to_pylist()[0]
    assert (row["rank"], row["process_id"], row["power_w"]) == (2, 7, 300.0)
    assert row.keys() == {column.name for column in columns(TELEMETRY.kind)}
    assert row["energy_mj"] is None


def test_the_latest_readings_are_one_of_each_gpu():
    class Numbered:
        def __init__(self, gpu):
            self.gpu = gpu

        def read(self, sample):
            return {"gpu": self.gpu}

    recording = Recording([Numbered(0), Numbered(1)], 0.01)
    assert recording.latest() == []
    recording.thread.start()
    recording.stop()
    assert [readings["gpu"] for readings in recording.latest()] == [0, 1]


def test_a_counter_counts_from_its_first_value_on():
    since = SinceFirst()
    assert [since(value) for value in (0, 5, 12)] == [0, 5, 12]
    since = SinceFirst()
    assert [since(value) for value in (100, 100, 130)] == [0, 0, 30]


def test_the_readings_are_the_columns_of_a_sample_but_its_rank_and_time():
    names = {column.name for column in columns(TELEMETRY.kind)}
    assert Readings.__annotations__.keys() == names - {"rank", "time_s"}
