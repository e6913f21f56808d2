"""What Ray's metrics endpoint tells of a run that is going on, in Ray's own format for Prometheus.

A thread beside the run reads what the generate loop has left behind (`workers.progress`) once a
second and hands it to `ray.util.metrics`; the loop itself never calls Ray. On a GPU, where the host
launches steps ahead of the device, only steps whose event has passed are counted, so every figure
is of work done, not of work launched. Outside of Ray nothing of this is started. ray is imported
here, when a publisher is made, and nowhere else.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.progress import IDLE, Progress, StepEnd

if TYPE_CHECKING:
    from workers.progress import Moment

PERIOD_S = 1.0
TAGS = ("experiment", "model", "strategy", "engine", "rank")
PHASED = (*TAGS, "phase")
STEP_TIME_BOUNDS_MS = [
    1,
    2,
    3,
    5,
    7,
    10,
    12,
    15,
    20,
    25,
    30,
    40,
    50,
    75,
    100,
    150,
    200,
    300,
    500,
    1000,
    2000,
    5000,
    10000,
]


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
    "Output tokens per second over the last second or step",
)
OUTPUT_TOKENS = Metric("Counter", "orchestrator_output_tokens", "Output tokens made")
STEP_TIME = Metric(
    "Histogram",
    "orchestrator_step_time_ms",
    "From the end of a step to the end of the next, in ms",
    PHASED,
)
COMM_EXPOSED = Metric(
    "Gauge", "orchestrator_comm_exposed_pct", "Exposed communication in percent of the step", PHASED
)
REQUESTS_RUNNING = Metric("Gauge", "orchestrator_requests_running", "Requests being served")
REQUESTS_WAITING = Metric(
    "Gauge", "orchestrator_requests_waiting", "Requests that wait for a place"
)
KV_USED = Metric(
    "Gauge", "orchestrator_kv_used_pct", "KV pages taken, in percent of those there are"
)
POWER = Metric("Gauge", "orchestrator_power_w", "Power drawn by the GPUs of this process, in W")
GPU_UTILIZATION = Metric(
    "Gauge", "orchestrator_gpu_utilization_pct", "Time in which the GPU ran a kernel, in percent"
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

Row = Mapping[str, Any]
Reading = tuple[
    Metric, float, dict[str, str]
]  # what, its value, its tags beyond those of the process


# -- reading


class Reader:
    """Says of a progress what is new since it was last asked."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ends: list[StepEnd] = []
        self._next = 1

    def read(self, samples: Sequence[Row] = ()) -> Iterator[Reading]:
        """Readings since the last call; samples: the latest of each GPU, in the schema
        TELEMETRY."""
        progress = self._progress
        yield STATE, progress.state, {}
        done = self._finished()
        for before, step in itertools.pairwise(done):
            yield STEP_TIME, elapsed_ms(before.at, step.at), {"phase": step.phase}
        if progress.reports:
            yield from _of_requests(done, progress.state == IDLE)
        if progress.pages and (done[1:] or progress.state == IDLE):
            yield (
                KV_USED,
                100.0 * (done[-1].pages if progress.state != IDLE else 0) / progress.pages,
                {},
            )
        for metric, values in (
            (POWER, _known(samples, "power_w")),
            (GPU_UTILIZATION, _known(samples, "gpu_utilization_pct")),
        ):
            if values:
                yield metric, sum(values) / (1 if metric is POWER else len(values)), {}

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
    """Nothing new is said while a long step lasts: what was said last goes on to hold."""
    tokens = sum(step.tokens for step in done[1:])
    if tokens:
        yield OUTPUT_TOKENS, tokens, {}
    if idle:
        yield from ((metric, 0, {}) for metric in (THROUGHPUT, REQUESTS_RUNNING, REQUESTS_WAITING))
    elif done[1:]:
        yield THROUGHPUT, 1e3 * tokens / max(elapsed_ms(done[0].at, done[-1].at), 1e-3), {}
        yield REQUESTS_RUNNING, done[-1].running, {}
        yield REQUESTS_WAITING, done[-1].waiting, {}


def _known(samples: Sequence[Row], name: str) -> list[float]:
    return [sample[name] for sample in samples if sample.get(name) is not None]


def passed(moment: Moment) -> bool:
    """Whether a moment lies behind; asking does not make the GPU or anybody wait."""
    return isinstance(moment, float) or moment.query()


def elapsed_ms(start: Any, end: Any) -> float:
    """Milliseconds between two moments of the same kind that have passed."""
    return 1e3 * (end - start) if isinstance(start, float) else start.elapsed_time(end)


# -- publishing


class Board:
    """Metrics of Ray under the tags of this process. What goes wrong here is nobody's business:
    nothing is raised."""

    def __init__(self, tags: Mapping[str, str], metrics: Iterable[Metric]) -> None:
        self._tags = dict(tags)
        self._metrics: dict[str, Any] = {}
        with contextlib.suppress(Exception):
            self._metrics |= {metric.name: _of_ray(metric) for metric in metrics}

    def put(self, readings: Iterable[Reading]) -> None:
        with contextlib.suppress(Exception):
            for metric, value, tags in readings:
                ours = self._metrics[metric.name]
                record = {"Gauge": "set", "Counter": "inc", "Histogram": "observe"}[metric.kind]
                getattr(ours, record)(value, tags={**self._tags, **tags})


def _of_ray(metric: Metric) -> Any:
    from ray.util import metrics

    bounds = {"boundaries": STEP_TIME_BOUNDS_MS} if metric.kind == "Histogram" else {}
    return getattr(metrics, metric.kind)(
        metric.name, description=metric.description, tag_keys=metric.tags, **bounds
    )


class Publisher:
    """Tells Ray once a second what a rank does, from now until `stop`. samples: gives the latest
    sample of each GPU."""

    def __init__(
        self, tags: Mapping[str, str], progress: Progress, samples: Callable[[], Sequence[Row]]
    ) -> None:
        self._board = Board(tags, OF_A_RANK)
        self._reader, self._samples = Reader(progress), samples
        self._one_at_a_time = threading.Lock()
        self._over = _every_second(self.publish)

    def publish(self) -> None:
        """Now, beside the beat: when a run has ended, so that none of its steps goes untold."""
        with self._one_at_a_time:
            self._board.put(self._readings())

    def stop(self) -> None:
        self._over.set()

    def _readings(self) -> Iterator[Reading]:
        yield from self._reader.read(self._samples())


class Exposure:
    """Tells Ray how much communication was exposed when a run was observed: known when it is over,
    so it is said again and again (Ray forgets a gauge that is not) until `stop`."""

    def __init__(self) -> None:
        self._board = Board({}, [COMM_EXPOSED])
        self._known: dict[tuple[str, ...], Reading] = {}
        self._over = _every_second(self._say)

    def tell(self, tags: Mapping[str, str], shares: Iterable[tuple[int, str, float]]) -> None:
        """shares: (rank, phase, percent of the step). tags: without the rank."""
        for rank, phase, percent in shares:
            mine = {**tags, "rank": str(rank), "phase": phase}
            self._known[tuple(mine[key] for key in PHASED)] = (COMM_EXPOSED, percent, mine)

    def stop(self) -> None:
        self._over.set()

    def _say(self) -> None:
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
