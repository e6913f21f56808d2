"""What is said of clocks and power that were held down while a node was measured."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from workers.engines import node_conditions
from workers.engines.node_conditions import Limits, held_down, limits, watching

FREE = Limits(power_w=700.0, default_power_w=700.0, sm_clock_mhz=1980)
UNKNOWN = Limits(None, None, None)


@dataclass
class FakeNvml:
    """One GPU under a power limit, whose clocks the power cap holds down in every sample."""

    NVML_CLOCK_SM = 1
    NVMLError = RuntimeError
    limit_mw: int = 500_000
    default_is_known: bool = True
    clock_mhz: int = 1400
    mask: int = 0x4

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return self.limit_mw

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: str) -> int:
        if not self.default_is_known:
            raise self.NVMLError("not supported")
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        return 1980

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return self.clock_mhz

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return self.mask

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return "handle"

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return "GPU-1"


def test_a_gpu_at_its_clocks_was_not_held_down() -> None:
    idle = {"throttle_reasons": 0x1, "sm_clock_mhz": 345}
    busy = {"throttle_reasons": 0x0, "sm_clock_mhz": 1965}
    assert held_down(FREE, [idle, busy]) == []


def test_a_power_limit_below_the_default_is_said() -> None:
    capped = Limits(500.0, 700.0, 1980)
    assert held_down(capped, []) == ["power limit 500 W, by default 700 W"]


def test_each_reason_for_low_clocks_is_said_with_its_share_of_the_samples() -> None:
    masks = [0x1, 0x4, 0x44, 0x4]  # idle; power cap; with heat
    samples = [{"throttle_reasons": mask, "sm_clock_mhz": 1980} for mask in masks]
    assert held_down(FREE, samples) == [
        "sw_power_cap in 75% of the samples",
        "hw_thermal in 25% of the samples",
    ]


def test_a_clock_that_is_locked_below_the_highest_is_said() -> None:
    samples = [{"sm_clock_mhz": 1200}, {"sm_clock_mhz": 1410}]
    assert held_down(FREE, samples) == ["SM clock at most 1410 MHz, of 1980 MHz"]


def test_what_nvml_does_not_report_is_no_reason() -> None:
    assert held_down(UNKNOWN, [{"sm_clock_mhz": 100}, {}]) == []


def test_limits_are_in_watts_and_unknown_where_the_driver_refuses() -> None:
    assert limits(FakeNvml(), "handle") == Limits(500.0, 700.0, 1980)
    assert limits(FakeNvml(default_is_known=False), "handle") == Limits(500.0, None, 1980)


def test_a_gpu_is_sampled_while_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="GPU-1")
    )
    with watching(torch.device("cuda", 0)) as watched:
        assert watched is not None
        deadline = time.monotonic() + 30
        while not watched.recording.samples and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "sw_power_cap in 100% of the samples" in watched.held_down()
        assert watched.recording.thread.is_alive()  # after a part others come
    assert watched.held_down() == [
        "power limit 500 W, by default 700 W",
        "sw_power_cap in 100% of the samples",
        "SM clock at most 1400 MHz, of 1980 MHz",
    ]
    assert not watched.recording.thread.is_alive()


def test_without_nvml_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with watching(torch.device("cuda", 0)) as watched:
        assert watched is None


def test_of_a_cpu_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_conditions, "find_gpu", None)
    with watching(torch.device("cpu")) as watched:
        assert watched is None
