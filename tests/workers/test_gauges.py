"""What is read of a run for Ray's metrics endpoint while it goes on, and that the Grafana dashboard
asks for nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

from workers.probes import gauges
from workers.probes.gauges import METRICS, Reader
from workers.progress import IDLE, RUNNING, Progress

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"


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


def test_a_failure_to_publish_raises_nothing(monkeypatch):
    monkeypatch.setattr(gauges, "_of_ray", lambda metric: SimpleNamespace())
    gauges.Board({}, METRICS).put([(gauges.STATE, 1.0, {})])


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
