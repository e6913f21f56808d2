"""What this machine has. GPUs are looked up through NVML alone, without torch and without Ray."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from strategies.shapes import Device, Topology
from workers.device import DevicesNow, answer_of, devices_now


@dataclass(frozen=True, slots=True)
class Gpu:
    """One visible GPU. index: as torch counts. Clocks are in MHz, power in W; None where NVML does
    not report it, as for a virtual GPU.

    application_...: clocks that were set for it. default_power_limit_w: its power limit as it came.
    compute_capability: CUDA's, "9.0". linked: NVLink joins it to every other visible GPU.
    """

    index: int
    name: str
    uuid: str
    memory_bytes: int
    driver: str
    sm_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    power_limit_w: float | None = None
    max_memory_clock_mhz: int | None = None
    application_sm_clock_mhz: int | None = None
    application_memory_clock_mhz: int | None = None
    default_power_limit_w: float | None = None
    compute_capability: str | None = None
    linked: bool | None = None

    def device(self, node: str) -> Device:
        """It, as a place for a rank on a node."""
        told = self.compute_capability
        major, minor = map(int, told.split(".")) if told else (0, 0)
        capability = (major, minor) if told else None
        return Device(node, self.index, self.memory_bytes, self.name, capability, bool(self.linked))


@dataclass(frozen=True, slots=True)
class Host:
    """A machine in general. memory_bytes: main memory. cpu_model: None where the system does not
    say."""

    name: str
    system: str
    cpu_count: int | None
    memory_bytes: int
    cpu_model: str | None = None


def local_topology(device: str, ranks: int = 1) -> Topology:
    """The devices of this machine: its visible GPUs ("cuda"), of which it may have none, or as many
    CPU devices ("cpu") as there are `ranks`."""
    if device == "cpu":
        return Topology.uniform(ranks)
    return Topology(tuple(gpu.device("local") for gpu in gpus()))


def gpus() -> list[Gpu]:
    """Every visible GPU, in torch's order."""
    with visible_gpus() as (nvml, handles):
        driver = nvml.nvmlSystemGetDriverVersion() if handles else ""
        return [_describe(nvml, handles, index, driver) for index in range(len(handles))]


def host() -> Host:
    """This machine."""
    import psutil

    memory = psutil.virtual_memory().total
    name, system = socket.gethostname(), platform.platform()
    return Host(name, system, os.cpu_count(), memory, cpu_model())


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """What this machine's processor is called, "AMD EPYC 9654 96-Core Processor"; None where the
    system does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or None


def profilers() -> tuple[str, ...]:
    """Those of `nsys` and `ncu` that are on this machine's PATH."""
    return tuple(tool for tool in ("nsys", "ncu") if shutil.which(tool))


def as_data(gpu: Gpu) -> dict[str, object]:
    """Plain data for `json.dumps`; what NVML does not report is left out."""
    return {name: value for name, value in asdict(gpu).items() if value is not None}


@contextlib.contextmanager
def visible_gpus() -> Iterator[tuple[Any, list[Any]]]:
    """NVML's module and the handles of the visible GPUs in torch's order; (None, []) on a machine
    without a driver."""
    with _nvml() as nvml:
        if nvml is None:
            yield None, []
            return
        count = nvml.nvmlDeviceGetCount()
        yield nvml, _visible(nvml, [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)])


@contextlib.contextmanager
def watched_gpus() -> Iterator[Callable[[], DevicesNow | None]]:
    """A function that reads the GPUs of this machine as they are now; it says None where there are
    none, or nothing uses them."""
    with visible_gpus() as (nvml, handles):
        yield lambda: devices_now(nvml, handles) if handles else None


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


def is_linked(nvml: Any, one: Any, other: Any) -> bool:
    """Whether one GPU reaches the other over NVLink, directly or through a switch."""
    status = answer_of(
        nvml, nvml.nvmlDeviceGetP2PStatus, one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK
    )
    return bool(status == nvml.NVML_P2P_STATUS_OK)


def _describe(nvml: Any, handles: Sequence[Any], index: int, driver: str) -> Gpu:
    handle, others = handles[index], [one for i, one in enumerate(handles) if i != index]

    def told(function: Callable[..., Any], *arguments: object) -> Any:
        return answer_of(nvml, function, handle, *arguments)

    return Gpu(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        uuid=nvml.nvmlDeviceGetUUID(handle),
        memory_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).total,
        driver=driver,
        sm_clock_mhz=told(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        max_sm_clock_mhz=told(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=told(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        power_limit_w=_watts(told(nvml.nvmlDeviceGetEnforcedPowerLimit)),
        max_memory_clock_mhz=told(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_MEM),
        application_sm_clock_mhz=told(nvml.nvmlDeviceGetApplicationsClock, nvml.NVML_CLOCK_SM),
        application_memory_clock_mhz=told(nvml.nvmlDeviceGetApplicationsClock, nvml.NVML_CLOCK_MEM),
        default_power_limit_w=_watts(told(nvml.nvmlDeviceGetPowerManagementDefaultLimit)),
        compute_capability=_dotted(told(nvml.nvmlDeviceGetCudaComputeCapability)),
        linked=all(is_linked(nvml, handle, other) for other in others) if others else None,
    )


def _dotted(version: tuple[int, int] | None) -> str | None:
    return None if version is None else f"{version[0]}.{version[1]}"


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
