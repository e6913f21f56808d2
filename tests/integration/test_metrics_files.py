"""The files that bring Prometheus and Grafana up agree with each other and with Ray. A real
Prometheus, where there is one, answers each query of the dashboard from what the code exports."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml
from existing_cluster import free_ports

from workers.probes.gauges import METRICS, Metric

FILES = Path(__file__).parents[2] / "docs" / "metrics"
DASHBOARD = json.loads((FILES.parent / "grafana-dashboard.json").read_text())
LISTED = "prom_metrics_service_discovery.json"
PATIENCE_S = 120
PROMETHEUS = shutil.which("prometheus")


def read(name: str) -> Any:
    return yaml.safe_load((FILES / name).read_text())


def mounts(service: str) -> dict[str, str]:
    """Place in a container -> what is there."""
    pairs = (
        text.rpartition(":ro")[0] or text
        for text in read("compose.yaml")["services"][service]["volumes"]
    )
    return {inside: outside for outside, _, inside in (pair.rpartition(":") for pair in pairs)}


# -- as files


def test_every_file_that_a_container_is_given_is_there() -> None:
    given = [*mounts("prometheus").values(), *mounts("grafana").values()]
    files = [name for name in given if name.startswith(".")]
    assert len(files) == 3
    assert all((FILES / name).exists() for name in files)


def test_prometheus_reads_the_list_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    ((job,),) = (read("prometheus.yml")["scrape_configs"],)
    ((listed,),) = ((one["files"] for one in job["file_sd_configs"]),)
    assert PROMETHEUS_SERVICE_DISCOVERY_FILE == LISTED
    assert listed == [f"/ray/{LISTED}"]
    assert mounts("prometheus")["/ray"].startswith("${RAY_FOLDER:-")
    arguments = read("compose.yaml")["services"]["prometheus"]["command"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in arguments
    assert mounts("prometheus")["/etc/prometheus/prometheus.yml"] == "./prometheus.yml"


def test_grafana_loads_the_dashboard_and_asks_that_prometheus() -> None:
    (source,) = read("grafana/datasources/prometheus.yaml")["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    arguments = read("compose.yaml")["services"]["prometheus"]["command"]
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in arguments
    inside = mounts("grafana")
    assert inside["/etc/grafana/provisioning"] == "./grafana"
    (provider,) = read("grafana/dashboards/dashboards.yaml")["providers"]
    place = f"{provider['options']['path']}/grafana-dashboard.json"
    assert inside[place] == "../grafana-dashboard.json"
    settings = read("compose.yaml")["services"]["grafana"]["environment"]
    assert settings["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == place
    assert {one["type"] for one in DASHBOARD["templating"]["list"]} == {"datasource", "query"}


def test_both_listen_on_loopback_and_have_a_version() -> None:
    services = read("compose.yaml")["services"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    for service in services.values():
        assert service["network_mode"] == "host"
        assert "ports" not in service
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])


# -- with a real Prometheus


class Endpoint(BaseHTTPRequestHandler):
    """What Ray would publish of a run, its counters growing from scrape to scrape."""

    scrapes = 0

    def do_GET(self) -> None:
        Endpoint.scrapes += 1
        text = "".join(line for metric in METRICS for line in exposed(metric, Endpoint.scrapes))
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


def exposed(metric: Metric, scrapes: int) -> Iterator[str]:
    for rank in range(2):
        tags = dict.fromkeys(metric.tags, "x") | {"rank": str(rank), "phase": "decode"}
        labels = {tag: tags[tag] for tag in metric.tags}
        for name in metric.exported:
            bounds = ("10", "+Inf") if name.endswith("_bucket") else (None,)
            for bound in bounds:
                shown = labels | ({"le": bound} if bound else {})
                text = ",".join(f'{tag}="{value}"' for tag, value in shown.items())
                yield f"{name}{{{text}}} {2 * scrapes}\n"


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[str]:
    """One that is set up by our file, for a node that is `Endpoint`. Gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    listed = [{"labels": {"job": "ray"}, "targets": [f"127.0.0.1:{server.server_port}"]}]
    (folder / LISTED).write_text(json.dumps(listed))
    config = (FILES / "prometheus.yml").read_text()
    assert config.count("5s") == 2
    (folder / "prometheus.yml").write_text(
        config.replace("/ray/", f"{folder}/").replace("5s", "1s")
    )
    (port,) = free_ports(1)
    command = [
        PROMETHEUS or "",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "out").open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        server.shutdown()


def found(address: str, path: str, deadline: float) -> list[Any]:
    """What Prometheus answers as soon as it has something to say. Empty where it never has."""
    while True:
        with (
            contextlib.suppress(URLError),
            urlopen(f"{address}/api/v1/{path}", timeout=10) as answer,
        ):
            data = json.load(answer)["data"]
            values = data["result"] if isinstance(data, dict) else data
            if values:
                return list(values)
        if time.monotonic() > deadline:
            return []
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason="there is no prometheus on the PATH")
def test_prometheus_answers_each_query_of_the_dashboard(tmp_path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    variables = [one for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    with prometheus(tmp_path) as address:
        for query in queries:
            for variable in variables:
                query = query.replace(f"${variable['name']}", ".*")
            query = re.sub(r"\$__(rate_interval|range|interval)", "1m", query)
            assert "$" not in query
            assert found(address, f"query?query={quote(query)}", deadline), query
        for variable in variables:
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            assert match is not None
            metric = re.sub(r"\$\w+", ".*", match[1])
            path = f"label/{match[2]}/values?match[]={quote(metric)}"
            assert found(address, path, deadline) == ["x"], variable["name"]
