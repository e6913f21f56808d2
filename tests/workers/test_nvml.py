"""The bits of NVML's clocks event reasons, their names and what they mean."""

from __future__ import annotations

import pynvml

from workers import device


def test_throttle_reasons_have_names():
    assert device.throttle_names(0) == []
    assert device.throttle_names(0x44) == ["sw_power_cap", "hw_thermal"]
    assert device.throttle_names(0x801) == ["gpu_idle", "bit_11"]


def test_the_bits_are_those_of_the_driver():
    named = {
        "gpu_idle": pynvml.nvmlClocksEventReasonGpuIdle,
        "application_clocks": pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
        "sw_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
        "hw_slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
        "sync_boost": pynvml.nvmlClocksEventReasonSyncBoost,
        "sw_thermal": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        "hw_thermal": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "hw_power_brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
        "display_clocks": pynvml.nvmlClocksEventReasonDisplayClockSetting,
    }
    assert {name: device.throttle_names(bit) for name, bit in named.items()} == {
        name: [name] for name in named
    }


def test_a_power_cap_and_heat_and_a_slowdown_of_the_hardware_are_told_apart():
    assert device.throttle_names(device.POWER_CAP) == ["sw_power_cap"]
    assert device.throttle_names(device.THERMAL) == ["sw_thermal", "hw_thermal"]
    assert device.throttle_names(device.HARDWARE_SLOWDOWN) == ["hw_slowdown", "hw_power_brake"]
