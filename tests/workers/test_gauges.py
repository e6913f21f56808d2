"""What Ray's metrics endpoint tells of a run while it goes on, and that the Grafana dashboard asks
for nothing else."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from driver_inputs import SHAPE
from ranks import engine_plan

from orchestrator.experiment import Cell, Deployment, Experiment, Scenario
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment
from orchestrator.run import driver
from workers.messages import Request, Work
from workers.probes import gauges
from workers.probes.gauges import METRICS, Reader
from workers.progress import BUILDING, IDLE, OBSERVING, RUNNING, Progress

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"
SAMPLE = re.compile(r"(ray_orchestrator_\w+){(.*)} (\S+)")
LABEL = re.compile(r'(\w+)="([^"]*)"')
STEP_S = 0.04  # a step lasts at least as long: rank 1 is held up


class Event:
    """Stands for a CUDA event: a moment in ms that has passed or not."""

    def __init__(self, ms: float, passed: bool = True) -> None:
        self.ms, self.passed = ms, passed

    def query(self) -> bool:
        return self.passed

    def elapsed_time(self, other: Event) -> float:
        return other.ms - self.ms


def read(reader: Reader, samples=()) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for metric, value, _ in reader.read(samples):
        found.setdefault(metric.name.removeprefix("orchestrator_"), []).append(value)
    return found


# -- what is read


def test_a_step_counts_once_its_event_has_passed_and_only_once():
    progress = Progress(state=RUNNING)
    reader = Reader(progress)
    progress.begin(Event(0.0), pages=8, reports=True)
    last = Event(30.0, passed=False)
    progress.step(Event(10.0), "prefill", 4, 4, 2, 6)
    progress.step(last, "decode", 4, 3, 1, 4)
    assert read(reader) == {
        "state": [RUNNING],
        "step_time_ms": [10.0],
        "output_tokens": [4],
        "output_throughput": [400.0],
        "requests_running": [4],
        "requests_waiting": [2],
        "kv_used_pct": [75.0],
    }
    assert read(reader) == {"state": [RUNNING]}
    last.passed = True
    assert read(reader)["step_time_ms"] == [20.0]


def test_a_new_run_is_read_from_its_start_and_an_idle_rank_has_nothing_to_do():
    progress = Progress(state=RUNNING)
    reader = Reader(progress)
    for origin in (0.0, 100.0):
        progress.begin(origin, reports=True)
        progress.step(origin + 0.5, "decode", 1, 1, 0)
        assert read(reader)["step_time_ms"] == [500.0]
        progress.end()
    progress.state = IDLE
    assert read(reader) == {
        "state": [IDLE],
        "output_throughput": [0],
        "requests_running": [0],
        "requests_waiting": [0],
    }


def test_only_the_rank_that_reports_requests_counts_their_tokens():
    progress = Progress(state=RUNNING)
    progress.begin(0.0, reports=False)
    progress.step(0.5, "decode", 1, 1, 0)
    assert read(Reader(progress)) == {"state": [RUNNING], "step_time_ms": [500.0]}


def test_power_is_summed_over_the_gpus_of_a_process_and_what_is_unknown_is_left_out():
    samples = [
        {"power_w": 300.0, "gpu_utilization_pct": 90},
        {"power_w": 500.0, "gpu_utilization_pct": None},
    ]
    assert read(Reader(Progress()), samples) | {"state": []} == {
        "state": [],
        "power_w": [800.0],
        "gpu_utilization_pct": [90.0],
    }
    assert read(Reader(Progress()), [{"process_rss_bytes": 1}]) == {"state": [IDLE]}


def test_a_failure_to_publish_reaches_nobody(monkeypatch):
    monkeypatch.setattr(gauges, "_of_ray", lambda metric: SimpleNamespace())
    gauges.Board({}, METRICS).put([(gauges.STATE, 1.0, {})])


# -- the endpoint


class Scraper:
    """Reads the metrics endpoint of this node every half second, and keeps every value of every
    series it has seen."""

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
                for name, labels, value in SAMPLE.findall(page.read().decode()):
                    self.seen.setdefault(name, []).append(
                        (dict(LABEL.findall(labels)), float(value))
                    )


class Silent:
    """Progress that is told to nobody."""

    def __getattr__(self, name: str):
        return lambda *_: None


def deployment(cells: int) -> PlannedDeployment:
    """A tiny model under tp2: a short cell, and one that lasts for seconds."""
    asked = Deployment("tiny", "tp2", "torch", "float32")
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
    known."""
    with pytest.MonkeyPatch.context() as patch, Scraper() as scraper:
        patch.setattr(driver, "connect", lambda *_: contextlib.nullcontext(ray_cluster))
        folder = tmp_path_factory.mktemp("results")
        for cells in (1, 2):
            driver.run_experiment(
                [deployment(cells)], Experiment(result_dir=folder, timeout=60.0), Silent()
            )
    return scraper


def test_every_metric_that_a_cpu_has_is_there_under_its_tags(scraped):
    absent = {*gauges.POWER.exported, *gauges.GPU_UTILIZATION.exported}
    assert set(scraped.seen) == {name for metric in METRICS for name in metric.exported} - absent
    for series in scraped.seen.values():
        labels = series[0][0]
        assert (labels["model"], labels["strategy"], labels["engine"]) == ("tiny", "tp2", "torch")
        assert labels["experiment"].startswith("tiny-")


def test_every_rank_tells_of_its_steps_and_one_of_the_requests(scraped):
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


# -- Grafana


def test_the_dashboard_asks_for_every_metric_and_for_no_other():
    dashboard = json.loads(DASHBOARD.read_text())
    asked = set(re.findall(r"\bray_\w+", DASHBOARD.read_text()))
    published = [set(metric.exported) for metric in METRICS]
    assert asked <= set().union(*published)
    assert all(asked & names for names in published)
    sources = {
        target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel["targets"]
    }
    assert sources == {"${datasource}"}
    assert "datasource" in {variable["name"] for variable in dashboard["templating"]["list"]}
    tags = set(re.findall(r"(\w+)=~", DASHBOARD.read_text())) | {"strategy", "rank", "phase"}
    assert tags <= set(gauges.PHASED)
