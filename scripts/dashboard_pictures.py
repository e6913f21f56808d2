"""Make the pictures of docs/dashboard.md anew: `python scripts/dashboard_pictures.py [PROMETHEUS]`.

A run on the CPU, and what Ray's dashboard and its endpoint of metrics show while it lasts.
PROMETHEUS: the program with its flags, as one word to a shell, for the picture of the metrics.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from gallery import MOST_BYTES, PICTURES, ROOT, light_tab
from playwright.sync_api import Page
from shown_output import environment

COMMAND = (
    "python -m orchestrator submit --strategy tp2,pp2 --device cpu --input-len 64 --output-len 256 "
    "--max-concurrency 8 --num-prompts 256 --num-starts 3 --num-warmups 1"
)
PATIENCE_S = 120.0
# Picture -> the page of the dashboard, and a text that is on it once it is complete.
PAGES = {
    "dashboard-jobs": ("#/jobs", "RUNNING"),
    "dashboard-actors": ("#/actors", "ALIVE x 2"),
    "dashboard-placement-groups": ("#/jobs/01000000", "CREATED"),
}
GRAPH = "sum by (model, strategy) (ray_orchestrator_output_throughput)"
WATCHED_S = 60  # how long Prometheus has looked when its picture is taken
LISTEN = "127.0.0.1:9599"
SECTION = "Placement Group Table"  # of the page of a job, which is closed at first


def addresses(notes: Path) -> tuple[str, Path]:
    """The dashboard and the folder of the session, as `submit` prints them."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        text = notes.read_text(encoding="utf-8")
        dashboard = re.search(r"Ray dashboard: (\S+)", text)
        session = re.search(r"Ray session: (\S+)", text)
        if dashboard and session:
            return dashboard[1], Path(session[1])
        time.sleep(0.2)
    raise TimeoutError(f"no dashboard in {PATIENCE_S:.0f} s: {text}")


def metrics(session: Path) -> str:
    """What the ranks report at this moment, as Prometheus would read it."""
    groups = json.loads((session / "r" / "prom_metrics_service_discovery.json").read_text())
    lines = []
    for target in sorted({target for group in groups for target in group["targets"]}):
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        lines += [one for one in text.splitlines() if one.startswith("ray_orchestrator_")]
    return "\n".join(lines)


def draw(tab: Page, address: str, session: Path) -> None:
    """Every page of the dashboard as a picture."""
    token = (session / "auth_token").read_text(encoding="utf-8").strip()
    tab.set_extra_http_headers({"Authorization": f"Bearer {token}"})
    for name, (place, text) in PAGES.items():
        tab.goto(f"{address}/{place}")
        section = tab.get_by_text(SECTION).first
        if name.endswith("groups"):
            section.click(timeout=1000 * PATIENCE_S)
        tab.get_by_text(text).first.wait_for(timeout=1000 * PATIENCE_S)
        tab.wait_for_timeout(4000)  # for what is drawn after it, and for the first figures
        if name.endswith("groups"):
            section.evaluate("one => one.scrollIntoView()")
        out = PICTURES / f"{name}.png"
        tab.screenshot(path=out)
        print(name, metrics(session) if name == "dashboard-actors" else "")
        assert out.stat().st_size <= MOST_BYTES, name


@contextmanager
def prometheus(program: str, session: Path, folder: Path) -> Iterator[str]:
    """A Prometheus that reads the ranks of a session, at an address."""
    asked = (ROOT / "docs" / "metrics" / "prometheus.yml").read_text(encoding="utf-8")
    config = folder / "prometheus.yml"
    config.write_text(asked.replace("/ray/", f"{session}/r/"), encoding="utf-8")
    flags = (f"--config.file={config}", f"--storage.tsdb.path={folder}/metrics")
    command = [*shlex.split(program), *flags, f"--web.listen-address={LISTEN}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
        try:
            yield f"http://{LISTEN}"
        finally:
            running.terminate()


def draw_metrics(tab: Page, address: str) -> None:
    """What Prometheus has seen of the ranks in the last minute."""
    time.sleep(WATCHED_S)
    tab.set_extra_http_headers({})
    tab.goto(f"{address}/graph?g0.expr={quote(GRAPH)}&g0.tab=0&g0.range_input=1m")
    tab.wait_for_timeout(4000)
    out = PICTURES / "dashboard-metrics.png"
    tab.screenshot(path=out)
    assert out.stat().st_size <= MOST_BYTES, out.name


def main() -> int:
    """Start the run, look at it, and end it."""
    with tempfile.TemporaryDirectory() as folder, light_tab(offline=False) as tab:
        notes = Path(folder, "notes")
        with notes.open("w") as out:
            run = subprocess.Popen(
                [*COMMAND.split(), "--result-dir", f"{folder}/results"],
                executable=sys.executable, env=environment(), stdout=subprocess.DEVNULL, stderr=out,
            )  # fmt: skip
        try:
            address, session = addresses(notes)
            if len(sys.argv) > 1:
                with prometheus(sys.argv[1], session, Path(folder)) as there:
                    draw(tab, address, session)
                    draw_metrics(tab, there)
            else:
                draw(tab, address, session)
        finally:
            run.terminate()
            run.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
