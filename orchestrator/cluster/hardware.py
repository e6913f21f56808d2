"""What this machine has, asked of NVML alone: no torch, no Ray, nothing started."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import Iterator
from typing import Any

from strategies.shapes import Device, Topology


def local_topology(device: str = "auto", ranks: int = 1) -> Topology:
    """The devices of this machine: its visible GPUs, or as many CPU devices as there are `ranks`.

    device: "cuda", "cpu", or "auto" (GPUs where there are any). "cuda" on a machine without gives
    no devices.
    """
    if device == "cpu":
        return Topology.uniform(ranks)
    devices = tuple(
        Device("local", gpu["index"], gpu["memory_bytes"], gpu["name"]) for gpu in gpus()
    )
    return Topology.uniform(ranks) if device == "auto" and not devices else Topology(devices)


def gpus() -> list[dict[str, Any]]:
    """Every visible GPU: index (as torch counts), name, uuid, memory_bytes, driver, and clocks in
    MHz and power in W where told."""
    with visible_gpus() as (nvml, handles):
        driver = nvml.nvmlSystemGetDriverVersion() if handles else ""
        return [_describe(nvml, handle, index, driver) for index, handle in enumerate(handles)]


def host() -> dict[str, Any]:
    """This machine in general: name, system, cores, memory in bytes."""
    import psutil

    return {
        "name": socket.gethostname(),
        "system": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


@contextlib.contextmanager
def visible_gpus() -> Iterator[tuple[Any, list[Any]]]:
    """NVML's module and the handles of the visible GPUs in torch's order; (None, []) on a machine
    without a driver."""
    with _nvml() as nvml:
        handles = (
            [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            if nvml
            else []
        )
        yield nvml, _visible(nvml, handles) if nvml else []


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """NVML's module while it is initialised, None on a machine without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver, no permission: all mean that no GPU can be used
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _visible(nvml: Any, handles: list[Any]) -> list[Any]:
    """The handles that CUDA_VISIBLE_DEVICES leaves, in its order; it may name them by index or by
    uuid."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return handles
    named = {str(index): handle for index, handle in enumerate(handles)}
    named |= {nvml.nvmlDeviceGetUUID(handle): handle for handle in handles}
    return [named[name] for name in (part.strip() for part in wanted.split(",")) if name in named]


def _describe(nvml: Any, handle: Any, index: int, driver: str) -> dict[str, Any]:
    gpu = {
        "index": index,
        "name": nvml.nvmlDeviceGetName(handle),
        "uuid": nvml.nvmlDeviceGetUUID(handle),
        "memory_bytes": nvml.nvmlDeviceGetMemoryInfo(handle).total,
        "driver": driver,
    }
    questions = {
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "max_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
    }
    for name, ask in questions.items():
        with contextlib.suppress(nvml.NVMLError):  # a virtual GPU does not tell
            gpu[name] = ask()
    return gpu
