"""What the machine did while a run was on: counters of NVML and of the process, sampled by a thread
beside the run.

Nothing here calls torch while a run is on, and no failure here reaches the run: what cannot be read
is null.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import pyarrow as pa

from workers.records import TELEMETRY, to_table

PERIOD_S = 0.1
SLOW_EVERY = 10  # samples between two readings of what takes long to read
STOP_S = 2.0  # most that a run's end waits for its last sample

# Bits of NVML's "clocks event reasons" (formerly throttle reasons).
THROTTLE_REASONS = {
    1 << 0: "gpu_idle",
    1 << 1: "application_clocks",
    1 << 2: "sw_power_cap",
    1 << 3: "hw_slowdown",
    1 << 4: "sync_boost",
    1 << 5: "sw_thermal",
    1 << 6: "hw_thermal",
    1 << 7: "hw_power_brake",
    1 << 8: "display_clocks",
}

# Fields of nvmlDeviceGetFieldValues; NVLink's are per link, or summed under ALL_LINKS.
NVLINK_DATA_KIB = (138, 139)  # sent, received
NVLINK_BYTES = (202, 204)
PCIE_BYTES = (197, 198)
POWER_INSTANT_MW = 186
ALL_LINKS = 0xFFFFFFFF
MOST_LINKS = 18
VALUE_MEMBERS = (
    "dVal",
    "uiVal",
    "ulVal",
    "ullVal",
    "sllVal",
    "siVal",
    "usVal",
)  # by NVML's value type

Row = dict[str, Any]
Ask = Callable[[], Row]
Answers = dict[tuple[int, int], float]  # (field, scope) -> value, without those that were refused


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its number as torch counts, its UUID as NVML writes it, its NVML handle."""

    index: int
    uuid: str
    handle: Any


def throttle_names(reasons: int) -> list[str]:
    """The names of the bits set in NVML's clocks event reasons; "bit_9" where a bit has no name
    here."""
    bits = (1 << i for i in range(reasons.bit_length()))
    return [
        THROTTLE_REASONS.get(bit, f"bit_{bit.bit_length() - 1}") for bit in bits if reasons & bit
    ]


def sampler_for(device: str, first: int = 0, count: int = 1) -> Sampler:
    """A sampler of `count` torch devices from index `first` on ("cuda"), or of this process alone
    ("cpu").

    A GPU that NVML does not know, or a machine without NVML, is left out; never raises.
    """
    if device != "cuda":
        return Sampler()
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver, no permission
        return Sampler()
    return Sampler(list(_gpus(pynvml, range(first, first + count))), pynvml)


def find_gpu(nvml: Any, index: int, properties: Any) -> Gpu | None:
    """NVML's handle of the GPU that torch describes by `properties`: by UUID, else by PCI address;
    None where neither is known."""
    uuid = f"GPU-{str(getattr(properties, 'uuid', '')).removeprefix('GPU-')}"
    address = "{:08x}:{:02x}:{:02x}.0"
    ways = (
        lambda: nvml.nvmlDeviceGetHandleByUUID(uuid),
        lambda: nvml.nvmlDeviceGetHandleByPciBusId(
            address.format(
                properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id
            )
        ),
    )
    for way in ways:
        with contextlib.suppress(Exception):
            handle = way()
            return Gpu(index, nvml.nvmlDeviceGetUUID(handle), handle)
    return None


def _gpus(nvml: Any, indices: Iterable[int]) -> Iterator[Gpu]:
    import torch

    for index in indices:
        with contextlib.suppress(Exception):
            gpu = find_gpu(nvml, index, torch.cuda.get_device_properties(index))
            if gpu is not None:
                yield gpu


class Sampler:
    """Samples its GPUs, or the process alone where there are none, every `period_s` seconds while a
    run is on."""

    def __init__(
        self, gpus: Sequence[Gpu] = (), nvml: Any = None, period_s: float = PERIOD_S
    ) -> None:
        self._gpus, self._nvml, self.period_s = gpus, nvml, period_s

    def start(self) -> Recording:
        """Sample from now on, until the recording is stopped."""
        gauges = [
            Gauge(gpu, fast_ways(self._nvml, gpu.handle), slow_ways(self._nvml, gpu.handle))
            for gpu in self._gpus
        ]
        recording = Recording(gauges or [Gauge(None)], self.period_s)
        with contextlib.suppress(RuntimeError):  # no more threads can be had
            recording.thread.start()
        return recording


class Gauge:
    """The readings of one GPU in one run (None: of the process alone).

    fast, slow: for each reading the ways to get it; a way that is refused is not tried again. Slow
    ones are read at every SLOW_EVERY-th sample.
    """

    def __init__(
        self, gpu: Gpu | None, fast: Sequence[list[Ask]] = (), slow: Sequence[list[Ask]] = ()
    ) -> None:
        self._fast, self._slow = fast, slow
        self._name: Row = {
            "process_id": os.getpid(),
            "gpu": gpu and gpu.index,
            "gpu_uuid": gpu and gpu.uuid,
        }

    def read(self, sample: int) -> Row:
        row = dict(self._name)
        for ways in (*self._fast, *self._slow) if sample % SLOW_EVERY == 0 else self._fast:
            row |= _first_answer(ways)
        return row


def _first_answer(ways: list[Ask]) -> Row:
    """What the first way that works says; those before it are dropped. Empty where none does."""
    while ways:
        try:
            return ways[0]()
        except Exception:  # not supported, no permission, no such function in this driver
            ways.pop(0)
    return {}


@dataclass(slots=True)
class Recording:
    """The samples of one run. cpu_s: processor time that sampling took, in seconds; known once it
    has ended.

    began_s: when sampling began; origin_s: when the times of the run were zero; both by
    `time.perf_counter`.
    """

    gauges: Sequence[Gauge]
    period_s: float
    rows: list[Row] = field(default_factory=list)
    cpu_s: float = 0.0
    began_s: float = field(default_factory=time.perf_counter)
    origin_s: float | None = None
    thread: threading.Thread = field(init=False)
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._watch, name="telemetry", daemon=True)

    def stop(self) -> None:
        """Take the last sample and end the thread; it is gone then, unless a driver call hangs."""
        self._over.set()
        if self.thread.is_alive():
            self.thread.join(STOP_S)

    def latest(self) -> list[Row]:
        """The newest sample of each GPU; fewer while the first one is taken."""
        return self.rows[-len(self.gauges) :]

    def table(self, rank: int) -> pa.Table | None:
        """The samples in the schema TELEMETRY, from `origin_s` on or else from `began_s`; None
        where that cannot be made."""
        origin = self.began_s if self.origin_s is None else self.origin_s
        try:
            return to_table(
                [{**row, "rank": rank, "time_s": row["at_s"] - origin} for row in list(self.rows)],
                TELEMETRY,
            )
        except Exception:  # a counter of a type that was not foreseen
            return None

    def _watch(self) -> None:
        """Sample on a fixed beat, leaving out beats that were missed, and once more at the end."""
        meter, sample, due = ProcessMeter(), 0, self.began_s
        with contextlib.suppress(Exception):
            while not self._over.wait(due - time.perf_counter()):
                self._sample(sample, meter)
                sample, due = sample + 1, max(due + self.period_s, time.perf_counter())
            self._sample(0, meter)
        self.cpu_s = time.thread_time()

    def _sample(self, sample: int, meter: ProcessMeter) -> None:
        process = meter.read()
        for gauge in self.gauges:
            at = time.perf_counter()
            self.rows.append({"at_s": at, **gauge.read(sample), **process})


class ProcessMeter:
    """This process: processor time since the last reading, in percent of one core, and resident
    memory in bytes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._last: tuple[float, float] | None = None

    def read(self) -> Row:
        now = (time.perf_counter(), time.process_time())
        row: Row = {"process_rss_bytes": self._process.memory_info().rss}
        if self._last is not None and now[0] > self._last[0]:
            row["process_cpu_pct"] = 100.0 * (now[1] - self._last[1]) / (now[0] - self._last[0])
        self._last = now
        return row


# -- what is asked of a GPU


def fast_ways(nvml: Any, handle: Any) -> list[list[Ask]]:
    """Readings of every sample, power first: the time of a sample is that of its power."""
    return [
        [
            Fields(
                nvml,
                handle,
                [power_ways(nvml, handle), nvlink_ways(), [Way(_each(PCIE_BYTES), PcieBytes())]],
            )
        ],
        [_since_first(lambda: {"energy_mj": nvml.nvmlDeviceGetTotalEnergyConsumption(handle)})],
        [lambda: _utilization(nvml, handle)],
        [lambda: {"memory_used_bytes": nvml.nvmlDeviceGetMemoryInfo(handle).used}],
        [lambda: {"sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)}],
        [lambda: {"memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)}],
        [
            lambda: {
                "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            }
        ],
        [
            lambda: _throttle(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
            lambda: _throttle(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        ],
    ]


def slow_ways(nvml: Any, handle: Any) -> list[list[Ask]]:
    """Readings of some samples."""
    return [
        [
            lambda: {
                "gpu_process_ids": [
                    process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                ]
            }
        ]
    ]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to a reading: the (field, scope) pairs it takes, and what it makes of the answers.
    Raises where they do not do."""

    fields: Sequence[tuple[int, int]]
    tell: Callable[[Answers], Row]


class Fields:
    """Readings of NVML's fields, in one call a sample: fields that one call of the driver answers
    are then asked for once (nvmlDeviceGetFieldValues). Of each reading's ways one that is refused
    is not tried again."""

    def __init__(self, nvml: Any, handle: Any, readings: Sequence[list[Way]]) -> None:
        self._nvml, self._handle, self._readings = nvml, handle, readings
        self._answered = False

    def __call__(self) -> Row:
        row: Row = {}
        unread = [ways for ways in self._readings if ways]
        while unread:
            answers = _answers(
                self._nvml, self._handle, [pair for ways in unread for pair in ways[0].fields]
            )
            if answers is None and self._answered:
                break  # a call that failed once says nothing of ways that have worked
            self._answered |= bool(answers)
            unread = [ways for ways in unread if not _settled(ways, answers or {}, row)]
        return row


def _settled(ways: list[Way], answers: Answers, row: Row) -> bool:
    """Whether the first of `ways` has added its reading to `row`, or else, for it is dropped, none
    is left to be tried."""
    try:
        row.update(ways[0].tell(answers))
    except Exception:  # not supported, no permission, no such field in this driver
        ways.pop(0)
        return not ways
    return True


def power_ways(nvml: Any, handle: Any) -> list[Way]:
    """Power now; nvmlDeviceGetPowerUsage tells its mean over the last second on recent GPUs."""
    now = (POWER_INSTANT_MW, 0)
    return [
        Way([now], lambda answers: {"power_w": answers[now] / 1e3}),
        Way([], lambda _: {"power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3}),
    ]


def nvlink_ways() -> list[Way]:
    return [
        _nvlink(NVLINK_DATA_KIB, [ALL_LINKS], 1024),
        _nvlink(NVLINK_DATA_KIB, range(MOST_LINKS), 1024),
        _nvlink(NVLINK_BYTES, range(MOST_LINKS), 1),
    ]


def _nvlink(sent_received: tuple[int, int], links: Iterable[int], unit: int) -> Way:
    """Bytes over those of `links` that answer."""
    pairs = [[(field, link) for link in links] for field in sent_received]

    def tell(answers: Answers) -> Row:
        sent, received = ([answers[pair] for pair in side if pair in answers] for side in pairs)
        if not sent or not received:
            raise LookupError("no link has a counter")
        return {"nvlink_tx_bytes": unit * sum(sent), "nvlink_rx_bytes": unit * sum(received)}

    return Way(pairs[0] + pairs[1], _since_first(tell))


def _utilization(nvml: Any, handle: Any) -> Row:
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {"gpu_utilization_pct": rates.gpu, "memory_utilization_pct": rates.memory}


def _throttle(reasons: int) -> Row:
    return {"throttle_reasons": reasons, "throttle_names": throttle_names(reasons)}


class PcieBytes:
    """Bytes over PCIe since the first answer, from counters of 32 bits: at ten samples a second
    right up to 43 GB/s."""

    def __init__(self) -> None:
        self._last: list[float] = []
        self._total = [0.0] * len(PCIE_BYTES)

    def __call__(self, answers: Answers) -> Row:
        counted = [answers[pair] for pair in _each(PCIE_BYTES)]
        moved = map(_moved, self._last or counted, counted)
        self._total = [total + more for total, more in zip(self._total, moved, strict=True)]
        self._last = counted
        return {"pcie_tx_bytes": int(self._total[0]), "pcie_rx_bytes": int(self._total[1])}


def _moved(before: float, after: float) -> float:
    """Counts between two readings of a counter that may have wrapped once."""
    return after - before if after >= before else after - before + 2**32


def _since_first(ask: Callable[..., Row]) -> Callable[..., Row]:
    """`ask`, with every figure counted from the first answer on."""
    first: Row = {}

    def counted(*answers: Answers) -> Row:
        row = ask(*answers)
        return {name: value - first.setdefault(name, value) for name, value in row.items()}

    return counted


def _each(fields: Iterable[int]) -> list[tuple[int, int]]:
    """Fields of the whole GPU."""
    return [(field, 0) for field in fields]


def _answers(nvml: Any, handle: Any, wanted: Sequence[tuple[int, int]]) -> Answers | None:
    """Values of those in `wanted` that are not refused; None where the call itself fails."""
    try:
        values = list(nvml.nvmlDeviceGetFieldValues(handle, list(wanted))) if wanted else []
    except Exception:
        return None
    said = zip(wanted, values, strict=True)
    return {
        pair: getattr(value.value, VALUE_MEMBERS[value.valueType])
        for pair, value in said
        if value.nvmlReturn == 0
    }
