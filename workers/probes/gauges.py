"""Live metrics of a run at Ray's metrics endpoint, in Ray's own format for Prometheus.

Once a second a thread beside the run reads what the generate loop keeps in `workers.progress`, and
hands it to `ray.util.metrics`. The loop itself never calls Ray. On a GPU the host launches steps
ahead of the device; only steps whose event has passed are counted, so every figure is of work done,
not of work launched. Outside of Ray none of this is started. ray is imported when a publisher is
made.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.clock import elapsed_ms, passed
from workers.probes.nvml_readings import Readings
from workers.progress import IDLE, Progress, StepEnd

PERIOD_S = 1.0
TAGS = ("experiment", "model", "strategy", "engine", "rank")
PHASED = (*TAGS, "phase")
STEP_TIME_BOUNDS_MS = (
    *(1, 2, 3, 5, 7, 10, 12, 15, 20, 25, 30, 40, 50, 75),
    *(100, 150, 200, 300, 500, 1000, 2000, 5000, 10000),
)


@dataclass(frozen=True, slots=True)
class Metric:
    """kind: a class of `ray.util.metrics`. name: as given to Ray, which puts `ray_` before it."""

    kind: str
    name: str
    description: str
    tags: tuple[str, ...] = TAGS

    @property
    def exported(self) -> tuple[str, ...]:
        """The names that Prometheus sees."""
        endings = {"Counter": ("_total",), "Histogram": ("_bucket", "_count", "_sum")}
        return tuple(f"ray_{self.name}{ending}" for ending in endings.get(self.kind, ("",)))


STATE = Metric(
    "Gauge", "orchestrator_state", "What the rank is at: 0 idle, 1 building, 2 running, 3 observing"
)
THROUGHPUT = Metric(
    "Gauge",
    "orchestrator_output_throughput",
    "Output tokens per second over the last second, or the last step where that is longer",
)
OUTPUT_TOKENS = Metric(
    "Counter",
    "orchestrator_output_tokens",
    "Output tokens made, warm-ups and observed runs included",
)
STEP_TIME = Metric(
    "Histogram",
    "orchestrator_step_time_ms",
    "From the end of a step to the end of the next, in ms",
    PHASED,
)
COMM_EXPOSED = Metric(
    "Gauge",
    "orchestrator_comm_exposed_pct",
    "Exposed communication in percent of the step, of the last cell that was observed",
    PHASED,
)
REQUESTS_RUNNING = Metric("Gauge", "orchestrator_requests_running", "Requests being served")
REQUESTS_WAITING = Metric(
    "Gauge", "orchestrator_requests_waiting", "Requests that have arrived and wait for a place"
)
KV_USED = Metric(
    "Gauge",
    "orchestrator_kv_used_pct",
    "KV pages taken, in percent of those there are (engine torch)",
)
POWER = Metric(
    "Gauge",
    "orchestrator_power_w",
    "Power drawn by the GPUs of this process, in W; absent on a CPU",
)
GPU_UTILIZATION = Metric(
    "Gauge",
    "orchestrator_gpu_utilization_pct",
    "Time in which the GPU ran a kernel, in percent; absent on a CPU",
)

OF_A_RANK = (
    STATE,
    THROUGHPUT,
    OUTPUT_TOKENS,
    STEP_TIME,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    KV_USED,
    POWER,
    GPU_UTILIZATION,
)
METRICS = (*OF_A_RANK, COMM_EXPOSED)

# What, its value, its tags beyond those of the process.
Reading = tuple[Metric, float, dict[str, str]]


# -- reading


class Reader:
    """Reads from a progress what is new since it was last read."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ends: list[StepEnd] = []
        self._next = 1

    def read(self, samples: Sequence[Readings] = ()) -> Iterator[Reading]:
        """What is new since the last call; samples: the latest of each GPU."""
        progress = self._progress
        yield STATE, progress.state, {}
        done = self._finished()
        for before, step in itertools.pairwise(done):
            yield STEP_TIME, elapsed_ms(before.at, step.at), {"phase": step.phase}
        if progress.reports:
            yield from _of_requests(done, progress.state == IDLE)
        if progress.pages:
            yield from _of_pages(done, progress)
        yield from _of_gpus(samples)

    def _finished(self) -> list[StepEnd]:
        """The steps that have ended since the last call, led by the end of the one before them;
        empty where none has begun."""
        ends = self._progress.ends
        if ends is not self._ends:
            self._ends, self._next = ends, 1
        first = self._next
        while self._next < len(ends) and passed(ends[self._next].at):
            self._next += 1
        return ends[first - 1 : self._next]


def _of_requests(done: Sequence[StepEnd], idle: bool) -> Iterator[Reading]:
    """Tokens, throughput and requests. Empty where no step has ended: the gauges then keep their
    last values."""
    tokens = sum(step.tokens for step in done[1:])
    if tokens:
        yield OUTPUT_TOKENS, tokens, {}
    if idle:
        yield from ((metric, 0, {}) for metric in (THROUGHPUT, REQUESTS_RUNNING, REQUESTS_WAITING))
    elif done[1:]:
        yield THROUGHPUT, 1e3 * tokens / max(elapsed_ms(done[0].at, done[-1].at), 1e-3), {}
        yield REQUESTS_RUNNING, done[-1].running, {}
        yield REQUESTS_WAITING, done[-1].waiting, {}


def _of_pages(done: Sequence[StepEnd], progress: Progress) -> Iterator[Reading]:
    """KV pages in percent: of the newest step, 0 between runs."""
    if progress.state == IDLE:
        yield KV_USED, 0.0, {}
    elif done[1:]:
        yield KV_USED, 100.0 * done[-1].pages / progress.pages, {}


def _of_gpus(samples: Sequence[Readings]) -> Iterator[Reading]:
    """Power summed and utilization averaged over the GPUs of this process; those whose reading is
    not known are left out."""
    powers = [power for one in samples if (power := one.get("power_w")) is not None]
    rates = [rate for one in samples if (rate := one.get("gpu_utilization_pct")) is not None]
    if powers:
        yield POWER, sum(powers), {}
    if rates:
        yield GPU_UTILIZATION, sum(rates) / len(rates), {}


# -- publishing


class Board:
    """Metrics of Ray under the tags of this process.

    Nothing is raised: a run goes on without its metrics where Ray fails to take them.
    """

    def __init__(self, tags: Mapping[str, str], metrics: Iterable[Metric]) -> None:
        self._tags = dict(tags)
        self._metrics: dict[str, object] = {}
        with contextlib.suppress(Exception):
            self._metrics |= {metric.name: _of_ray(metric) for metric in metrics}

    def put(self, readings: Iterable[Reading]) -> None:
        """Hand readings to Ray, up to the first that it does not take."""
        with contextlib.suppress(Exception):
            for metric, value, tags in readings:
                ours = self._metrics[metric.name]
                record = {"Gauge": "set", "Counter": "inc", "Histogram": "observe"}[metric.kind]
                getattr(ours, record)(value, tags={**self._tags, **tags})


def _of_ray(metric: Metric) -> Any:
    from ray.util import metrics

    bounds = {"boundaries": list(STEP_TIME_BOUNDS_MS)} if metric.kind == "Histogram" else {}
    return getattr(metrics, metric.kind)(
        metric.name, description=metric.description, tag_keys=metric.tags, **bounds
    )


class Publisher:
    """Publishes to Ray once a second what a rank does, from now until `stop`. samples: returns the
    latest readings of each GPU."""

    def __init__(
        self, tags: Mapping[str, str], progress: Progress, samples: Callable[[], Sequence[Readings]]
    ) -> None:
        self._board = Board(tags, OF_A_RANK)
        self._reader, self._samples = Reader(progress), samples
        self._lock = threading.Lock()
        self._over = _every_second(self.publish)

    def publish(self) -> None:
        """Publish now. It is also called when a run has ended, so that none of its steps is left
        out."""
        with self._lock:
            self._board.put(self._readings())

    def stop(self) -> None:
        """Publish no more."""
        self._over.set()

    def _readings(self) -> Iterator[Reading]:
        yield from self._reader.read(self._samples())


class Exposure:
    """Publishes to Ray how much communication of an observed run was exposed.

    That is known once the run is over. Ray forgets a gauge that is not set again, so it is set
    every second until `stop`.
    """

    def __init__(self) -> None:
        self._board = Board({}, [COMM_EXPOSED])
        self._known: dict[tuple[str, ...], Reading] = {}
        self._over = _every_second(self._publish)

    def tell(self, tags: Mapping[str, str], shares: Iterable[tuple[int, str, float]]) -> None:
        """Publish these shares from now on: (rank, phase, percent of the step). tags: all but rank
        and phase."""
        for rank, phase, percent in shares:
            mine = {**tags, "rank": str(rank), "phase": phase}
            self._known[tuple(mine[key] for key in PHASED)] = (COMM_EXPOSED, percent, mine)

    def stop(self) -> None:
        """Publish no more."""
        self._over.set()

    def _publish(self) -> None:
        self._board.put(list(self._known.values()))


def _every_second(action: Callable[[], None]) -> threading.Event:
    """Call `action` on a thread of its own every PERIOD_S until the event that is returned is
    set."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PERIOD_S):
            action()

    threading.Thread(target=watch, name="gauges", daemon=True).start()
    return over
