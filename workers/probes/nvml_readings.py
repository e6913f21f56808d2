"""What is read from a GPU through NVML, and the ways to each reading.

Drivers differ in what they support. A reading therefore has several ways, best first; one that the
driver refuses is dropped for the rest of the run. A reading without a way left is not in the
sample.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import psutil

from workers.device import throttle_names

# Fields of nvmlDeviceGetFieldValues (nvml.h). NVLink's are per link, or summed under ALL_LINKS.
NVLINK_DATA_KIB = (138, 139)  # sent, received
NVLINK_BYTES = (202, 204)  # sent, received
PCIE_BYTES = (197, 198)  # sent, received
POWER_INSTANT_MW = 186
ALL_LINKS = 0xFFFFFFFF
MOST_LINKS = 18
# Members of nvmlValue_t, by nvmlValueType_t.
VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


class Readings(TypedDict, total=False):
    """Columns of `workers.records.SampleRow` that were read, some or all of them."""

    process_id: int
    gpu: int | None
    gpu_uuid: str | None
    gpu_utilization_pct: int | None
    memory_utilization_pct: int | None
    memory_used_bytes: int | None
    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    power_w: float | None
    energy_mj: int | None
    temperature_c: int | None
    throttle_reasons: int | None
    throttle_names: Sequence[str] | None
    nvlink_tx_bytes: int | None
    nvlink_rx_bytes: int | None
    pcie_tx_bytes: int | None
    pcie_rx_bytes: int | None
    gpu_process_ids: Sequence[int] | None
    process_cpu_pct: float | None
    process_rss_bytes: int | None


Ask = Callable[[], Readings]  # raises where the driver refuses
Field = tuple[int, int]  # a field of nvmlDeviceGetFieldValues and its scope, which may be a link
Answers = dict[Field, int]  # without the fields that were refused


def fast_ways(nvml: Any, handle: Any) -> list[list[Ask]]:
    """The readings of every sample: for each the ways to get it, best first. Power is first: the
    time of a sample is that of its power."""
    energy = SinceFirst()
    fields = [power_ways(nvml, handle), nvlink_ways(), [Way(_of_gpu(PCIE_BYTES), PcieBytes())]]
    return [
        [FieldReader(nvml, handle, fields)],
        [lambda: {"energy_mj": energy(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))}],
        [lambda: _utilization(nvml, handle)],
        [lambda: {"memory_used_bytes": nvml.nvmlDeviceGetMemoryInfo(handle).used}],
        [lambda: {"sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)}],
        [lambda: {"memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)}],
        [lambda: _temperature(nvml, handle)],
        [
            lambda: _throttle(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
            lambda: _throttle(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        ],
    ]


def slow_ways(nvml: Any, handle: Any) -> list[list[Ask]]:
    """The readings that take long or hardly change, and are not part of every sample: for each the
    ways to get it."""
    return [
        [lambda: _processes(nvml, handle)],
        [lambda: {"max_sm_clock_mhz": nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)}],
    ]


def first_answer(ways: list[Ask]) -> Readings:
    """What the first way that works reads; those before it are dropped. Empty where none works."""
    while ways:
        try:
            return ways[0]()
        except Exception:  # not supported, no permission, no such function in this driver
            ways.pop(0)
    return {}


def _utilization(nvml: Any, handle: Any) -> Readings:
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {"gpu_utilization_pct": rates.gpu, "memory_utilization_pct": rates.memory}


def _temperature(nvml: Any, handle: Any) -> Readings:
    return {"temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)}


def _throttle(mask: int) -> Readings:
    return {"throttle_reasons": mask, "throttle_names": throttle_names(mask)}


def _processes(nvml: Any, handle: Any) -> Readings:
    running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return {"gpu_process_ids": sorted({_who(process.pid) for process in running})}


def _who(process_id: int) -> int:
    """This process, where it or one that it has started is meant: an engine may have workers of its
    own. Else the process itself."""
    with contextlib.suppress(psutil.Error):
        if any(one.pid == os.getpid() for one in psutil.Process(process_id).parents()):
            return os.getpid()
    return process_id


# -- counters


class SinceFirst:
    """Counts from the first value of a counter on: a call returns how far the counter is past
    it."""

    def __init__(self) -> None:
        self._first: int | None = None

    def __call__(self, value: int) -> int:
        if self._first is None:
            self._first = value
        return value - self._first


class PcieBytes:
    """Bytes over PCIe since the first answer.

    The counters have 32 bits and may wrap once between two samples: at ten samples a second the
    sum is right up to 43 GB/s.
    """

    def __init__(self) -> None:
        self._last: list[int] = []
        self._total = [0] * len(PCIE_BYTES)

    def __call__(self, answers: Answers) -> Readings:
        counted = [answers[field] for field in _of_gpu(PCIE_BYTES)]
        moved = map(_moved, self._last or counted, counted)
        self._total = [total + more for total, more in zip(self._total, moved, strict=True)]
        self._last = counted
        return {"pcie_tx_bytes": self._total[0], "pcie_rx_bytes": self._total[1]}


def _moved(before: int, after: int) -> int:
    """Counts between two readings of a counter of 32 bits that may have wrapped once."""
    return after - before if after >= before else after - before + 2**32


# -- NVML's fields


@dataclass(frozen=True, slots=True)
class Way:
    """One way to a reading: the fields it takes, and what it makes of their values. `read` raises
    where they are not enough."""

    fields: Sequence[Field]
    read: Callable[[Answers], Readings]


class FieldReader:
    """Readings of NVML's fields, each with several ways; one call of the driver a sample.

    Several fields are answered by one query of the driver, which nvmlDeviceGetFieldValues makes
    once where they are asked for together. A way that is refused is not tried again.
    """

    def __init__(self, nvml: Any, handle: Any, readings: Sequence[list[Way]]) -> None:
        self._nvml, self._handle, self._readings = nvml, handle, readings
        self._answered = False

    def __call__(self) -> Readings:
        found: Readings = {}
        unread = [ways for ways in self._readings if ways]
        while unread:
            wanted = [field for ways in unread for field in ways[0].fields]
            answers = _answers(self._nvml, self._handle, wanted)
            if answers is None and self._answered:
                break  # the call has worked before, so its failure is no reason to drop a way
            self._answered |= bool(answers)
            unread = [ways for ways in unread if not _settled(ways, answers or {}, found)]
        return found


def _settled(ways: list[Way], answers: Answers, found: Readings) -> bool:
    """Add what the first of `ways` reads to `found`, or drop a way that is refused. Returns whether
    nothing remains to be tried."""
    try:
        found.update(ways[0].read(answers))
    except Exception:  # not supported, no permission, no such field in this driver
        ways.pop(0)
        return not ways
    return True


def power_ways(nvml: Any, handle: Any) -> list[Way]:
    """Power at this moment, in W; or else nvmlDeviceGetPowerUsage, on recent GPUs the mean of the
    last second."""
    now = (POWER_INSTANT_MW, 0)
    return [
        Way([now], lambda answers: {"power_w": answers[now] / 1e3}),
        Way([], lambda _: {"power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3}),
    ]


def nvlink_ways() -> list[Way]:
    """Bytes over NVLink since the first answer: of all links together, or else link by link."""
    return [
        _nvlink(NVLINK_DATA_KIB, [ALL_LINKS], 1024),
        _nvlink(NVLINK_DATA_KIB, range(MOST_LINKS), 1024),
        _nvlink(NVLINK_BYTES, range(MOST_LINKS), 1),
    ]


def _nvlink(fields: tuple[int, int], links: Iterable[int], unit_bytes: int) -> Way:
    """fields: sent and received, in units of `unit_bytes`. Links that do not answer are left
    out."""
    sent_fields, received_fields = ([(field, link) for link in links] for field in fields)
    sent_since, received_since = SinceFirst(), SinceFirst()

    def read(answers: Answers) -> Readings:
        sent = [answers[field] for field in sent_fields if field in answers]
        received = [answers[field] for field in received_fields if field in answers]
        if not sent or not received:
            raise LookupError("no link has a counter")
        return {
            "nvlink_tx_bytes": sent_since(unit_bytes * sum(sent)),
            "nvlink_rx_bytes": received_since(unit_bytes * sum(received)),
        }

    return Way(sent_fields + received_fields, read)


def _of_gpu(fields: Iterable[int]) -> list[Field]:
    """Fields of the whole GPU."""
    return [(field, 0) for field in fields]


def _answers(nvml: Any, handle: Any, wanted: Sequence[Field]) -> Answers | None:
    """Values of those in `wanted` that are not refused; None where the call itself fails."""
    try:
        values = list(nvml.nvmlDeviceGetFieldValues(handle, list(wanted))) if wanted else []
    except Exception:
        return None
    return {
        field: getattr(value.value, VALUE_MEMBERS[value.valueType])
        for field, value in zip(wanted, values, strict=True)
        if value.nvmlReturn == 0
    }
