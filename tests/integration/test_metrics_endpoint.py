"""What Ray's metrics endpoint tells of a run that the driver serves."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import threading
import urllib.request

import pytest
from driver_inputs import SHAPE
from ranks import engine_plan

from orchestrator.analysis.observed import communication
from orchestrator.experiment import Cell, Deployment, Experiment, Scenario
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment
from orchestrator.run import driver
from workers.messages import Request, Work
from workers.probes import gauges
from workers.probes.gauges import METRICS
from workers.progress import BUILDING, IDLE, OBSERVING, RUNNING

SAMPLE = re.compile(r"(ray_orchestrator_\w+){(.*)} (\S+)")
LABEL = re.compile(r'(\w+)="([^"]*)"')
MODEL = "watched"  # no other test serves it: Ray goes on to tell of those that it has told of
STEP_S = 0.04  # a step lasts at least as long: rank 1 is held up


class Scraper:
    """Reads the metrics endpoint of this node every half second, and keeps every value that it has
    seen of every series but those of other models."""

    def __init__(self) -> None:
        import ray

        node = ray.nodes()[0]
        self._url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seen: dict[str, list[tuple[dict[str, str], float]]] = {}

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def ranks(self, name: str) -> set[str]:
        return {labels["rank"] for labels, _ in self.seen[name]}

    def values(self, name: str) -> set[float]:
        return {value for _, value in self.seen[name]}

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            with contextlib.suppress(OSError), urllib.request.urlopen(self._url, timeout=5) as page:
                for name, found, value in SAMPLE.findall(page.read().decode()):
                    labels = dict(LABEL.findall(found))
                    if labels.get("model", MODEL) == MODEL:
                        self.seen.setdefault(name, []).append((labels, float(value)))


class Silent:
    """A progress display that shows nothing."""

    def __getattr__(self, name: str):
        return lambda *_: None


def deployment(cells: int) -> PlannedDeployment:
    """A small model under tp2: a short cell, and one that lasts for seconds."""
    asked = Deployment(MODEL, "tp2", "torch", "float32")
    short, long = (
        Work(requests(2, 4), 1, delay=(1, STEP_S)),
        Work(requests(4, 60), 2, delay=(1, STEP_S)),
    )
    scenario, warmup = Scenario("short", 3, 60), Work(requests(1, 4), 1)
    planned = [
        PlannedCell(Cell(asked, scenario, work.max_concurrency), work, warmup)
        for work in (short, long)
    ]
    return PlannedDeployment(asked, engine_plan("tp2", SHAPE, None, long), tuple(planned[:cells]))


def requests(count: int, output_len: int) -> tuple[Request, ...]:
    return tuple(Request(i, (5, 6, 7), output_len) for i in range(count))


@pytest.fixture(scope="module")
def scraped(ray_cluster, tmp_path_factory) -> Scraper:
    """What was seen while the driver served a deployment, the communication of whose first cell was
    known. However much the profiler slows a step on this machine: its shares are shown."""
    with pytest.MonkeyPatch.context() as patch, Scraper() as scraper:
        patch.setattr(communication, "PROFILE_LIMIT", math.inf)
        patch.setattr(driver, "connect", lambda *_: contextlib.nullcontext(ray_cluster))
        folder = tmp_path_factory.mktemp("results")
        for cells in (1, 2):
            asked = Experiment(result_dir=folder, timeout=60.0, num_warmups=1)
            driver.run_experiment([deployment(cells)], asked, Silent())
    return scraper


def test_every_metric_that_a_cpu_has_is_there_under_its_tags(scraped):
    absent = {*gauges.POWER.exported, *gauges.GPU_UTILIZATION.exported}
    assert set(scraped.seen) == {name for metric in METRICS for name in metric.exported} - absent
    for labels, _ in itertools.chain.from_iterable(scraped.seen.values()):
        assert (labels["model"], labels["strategy"], labels["engine"]) == (MODEL, "tp2", "torch")
        assert labels["experiment"].startswith("tiny-")


def test_every_rank_publishes_its_steps_and_one_rank_the_requests(scraped):
    for name in ("state", "step_time_ms_count", "kv_used_pct", "comm_exposed_pct"):
        assert scraped.ranks(f"ray_orchestrator_{name}") == {"0", "1"}
    for name in (
        "output_tokens_total",
        "output_throughput",
        "requests_running",
        "requests_waiting",
    ):
        assert scraped.ranks(f"ray_orchestrator_{name}") == {"0"}


def test_the_values_are_those_of_the_run(scraped):
    assert scraped.values("ray_orchestrator_state") <= {IDLE, BUILDING, RUNNING, OBSERVING}
    assert RUNNING in scraped.values("ray_orchestrator_state")
    assert 2 in scraped.values("ray_orchestrator_requests_running")
    assert (
        0 < max(scraped.values("ray_orchestrator_output_throughput")) < 10 * 2 / STEP_S
    )  # over one step it may be far off
    assert 0 < max(scraped.values("ray_orchestrator_kv_used_pct")) <= 100
    assert max(scraped.values("ray_orchestrator_output_tokens_total")) >= 4 + 8
    exposed = [
        value
        for labels, value in scraped.seen["ray_orchestrator_comm_exposed_pct"]
        if labels["rank"] == "0"
    ]
    assert 50 < max(exposed) <= 100  # rank 0 waits for rank 1
