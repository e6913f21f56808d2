"""What the machine does during a run: a thread samples counters of NVML and of the process.

Nothing here calls torch during a run, and no failure here stops the run: a value that cannot be
read is null.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import psutil
import pyarrow as pa

from workers.probes.nvml_readings import Ask, Readings, fast_ways, first_answer, slow_ways
from workers.records import TELEMETRY, SampleRow
from workers.rows import nothing

PERIOD_S = 0.1
SLOW_EVERY = 10  # samples between two readings of what takes long to read
STOP_S = 2.0  # most that a run's end waits for its last sample
UNREAD = nothing(SampleRow)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its number as torch counts, its UUID as NVML writes it, its NVML handle."""

    index: int
    uuid: str
    handle: Any


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
    ways: tuple[Callable[[], Any], ...] = (
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
    """Reads one GPU in one run; None: there is no GPU, and the process alone is sampled.

    fast, slow: for each reading the ways to get it; a way that is refused is not tried again. Slow
    ones are read at every SLOW_EVERY-th sample.
    """

    def __init__(
        self, gpu: Gpu | None, fast: Sequence[list[Ask]] = (), slow: Sequence[list[Ask]] = ()
    ) -> None:
        self._fast, self._slow = fast, slow
        self._who: Readings = {
            "process_id": os.getpid(),
            "gpu": gpu.index if gpu else None,
            "gpu_uuid": gpu.uuid if gpu else None,
        }

    def read(self, sample: int) -> Readings:
        """What can be read now. sample: its number in the run."""
        found = self._who.copy()
        for ways in (*self._fast, *self._slow) if sample % SLOW_EVERY == 0 else self._fast:
            found.update(first_answer(ways))
        return found


class Sample(NamedTuple):
    """What was read at one moment, in seconds of `time.perf_counter`."""

    at_s: float
    readings: Readings


@dataclass(slots=True)
class Recording:
    """The samples of one run.

    period_s: seconds in which one sample is taken. cpu_s: processor time that sampling took, in
    seconds, once it has ended. began_s: when sampling began; origin_s: when the times of the run
    were zero; both in seconds of `time.perf_counter`.
    """

    gauges: Sequence[Gauge]
    period_s: float
    samples: list[Sample] = field(default_factory=list)
    cpu_s: float = 0.0
    began_s: float = field(default_factory=time.perf_counter)
    origin_s: float | None = None
    thread: threading.Thread = field(init=False)
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._watch, name="telemetry", daemon=True)

    def stop(self) -> None:
        """Take the last sample and wait for the thread to end, at most STOP_S seconds: a call of
        the driver may hang."""
        self._over.set()
        if self.thread.is_alive():
            self.thread.join(STOP_S)

    def latest(self) -> list[Readings]:
        """The newest readings of each GPU; fewer while the first sample is taken."""
        return [sample.readings for sample in self.samples[-len(self.gauges) :]]

    def table(self, rank: int) -> pa.Table | None:
        """The telemetry table, its times from `origin_s` on or else from `began_s`; None where it
        cannot be made."""
        origin = self.began_s if self.origin_s is None else self.origin_s
        try:
            return TELEMETRY.make(
                replace(UNREAD, rank=rank, time_s=sample.at_s - origin, **sample.readings)
                for sample in list(self.samples)
            )
        except Exception:  # a counter of a type that was not foreseen
            return None

    def _watch(self) -> None:
        """Sample once in every `period_s` seconds and once more at the end. Samples that are
        overdue are left out.

        The moment in a period is drawn. Even moments would meet a load that repeats, as the steps
        of a pipeline do, in the same place again and again.
        """
        meter, sample, drawn = ProcessMeter(), 0, random.Random(0)
        due = period = self.began_s
        with contextlib.suppress(Exception):
            while not self._over.wait(due - time.perf_counter()):
                self._sample(sample, meter)
                sample, period = sample + 1, max(period + self.period_s, time.perf_counter())
                due = period + self.period_s * drawn.random()
            self._sample(0, meter)
        self.cpu_s = time.thread_time()

    def _sample(self, sample: int, meter: ProcessMeter) -> None:
        process = meter.read()
        for gauge in self.gauges:
            at = time.perf_counter()
            self.samples.append(Sample(at, {**gauge.read(sample), **process}))


class ProcessMeter:
    """Reads what this process takes: processor time since the last reading, in percent of one
    core, and resident memory in bytes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._last: tuple[float, float] | None = None

    def read(self) -> Readings:
        """Both columns; the first reading has no processor time."""
        now = (time.perf_counter(), time.process_time())
        found: Readings = {"process_rss_bytes": self._process.memory_info().rss}
        if self._last is not None and now[0] > self._last[0]:
            found["process_cpu_pct"] = 100.0 * (now[1] - self._last[1]) / (now[0] - self._last[0])
        self._last = now
        return found
