"""A replica of a real vLLM on two nodes, through its Ray executor: two raylets on this machine,
with one device each. vLLM's CPU platform names no resource of Ray, so a plug-in names one for it;
all else is vLLM's own. `make test-vllm` runs it. Skipped without vLLM."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from process_lists import named
from ranks import engine_plan

from orchestrator.cluster import connection, nodes
from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.failures import RunFailed
from orchestrator.cluster.group import WorkerGroup
from orchestrator.plan import models
from workers.actor import Worker
from workers.engines.vllm.engine import ELSEWHERE
from workers.messages import EnginePlan, RankReport, Request, Work

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

GONE_S = 15.0
ADDRESSES = ("127.0.0.2", "127.0.0.3")  # a node each
WORK = Work(tuple(Request(i, tuple(range(5 + i, 37 + i)), 8) for i in range(6)), 2)
PLATFORM = """
def path():
    return "cpu_in_ray.Platform"
"""
PLATFORM_CLASS = """
from vllm.platforms.cpu import CpuPlatform

class Platform(CpuPlatform):
    ray_device_key = "GPU"
"""


def install(site: Path) -> Path:
    """Puts the plug-in of the platform into a folder."""
    info = site / "cpu_in_ray-0.dist-info"
    info.mkdir()
    (site / "cpu_in_ray_path.py").write_text(PLATFORM)
    (site / "cpu_in_ray.py").write_text(PLATFORM_CLASS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cpu-in-ray\nVersion: 0\n")
    point = "[vllm.platform_plugins]\ncpu_in_ray = cpu_in_ray_path:path\n"
    (info / "entry_points.txt").write_text(point)
    return site


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of two nodes with a device each."""
    from ray.cluster_utils import Cluster as Raylets

    site = install(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, sys.path)]))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setitem(nodes.RESOURCES, "cpu", "GPU")
    raylets: Any = Raylets()
    try:
        for address in ADDRESSES:
            node = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": False}
            raylets.add_node(node_ip_address=address, **node)
        with connection.join(raylets.address) as cluster:
            yield cluster
    finally:
        raylets.shutdown()


def plan() -> EnginePlan:
    model = models.resolve("tiny", "auto")
    asked = engine_plan("tp2", model.shape, model.checkpoint, WORK, timeout_s=600.0)
    return replace(asked, spans_nodes=True)


def tokens(reports: list[RankReport]) -> list[list[int]]:
    assert reports[0].requests is not None
    found: list[list[int]] = reports[0].requests["output_token_ids"].to_pylist()
    return found


def of_torch() -> list[list[int]]:
    worker = Worker()
    model = models.resolve("tiny", "auto")
    worker.build("torch", engine_plan("tp1", model.shape, model.checkpoint, WORK), None)
    report = worker.run(WORK)
    worker.close()
    assert isinstance(report, RankReport)
    return tokens([report])


def processes_of_vllm() -> list[psutil.Process]:
    """The engine core and the workers, which have the environment of the raylets here."""
    mine = [one for one in psutil.process_iter(["environ"]) if _is_here(one.info["environ"] or {})]
    names = ("EngineCore", "RayWorkerProc")
    return [one for one, _, words in named(mine) if any(name in " ".join(words) for name in names)]


def _is_here(environment: Mapping[str, str]) -> bool:
    return environment.get("PYTHONPATH") == os.environ["PYTHONPATH"]


def test_a_replica_on_two_nodes_makes_the_tokens_of_torch_and_leaves_nothing(
    two_nodes: Cluster,
) -> None:
    group = WorkerGroup.start(two_nodes, "across", plan(), "vllm")
    built = group.build(400.0)
    assert [one.rank for one in built] == [0, 1]
    assert built[0].settings["distributed_executor_backend"] == "ray"
    assert {node.address for node in two_nodes.nodes} == set(ADDRESSES)
    for _ in range(2):
        reports = group.run(WORK, 100.0)
        assert [one.rank for one in reports] == [0, 1]
        assert tokens(reports) == of_torch()
        assert [one.requests is None for one in reports] == [False, True]
        assert reports[0].steps.num_rows == reports[1].steps.num_rows > 0
        assert all(one.peak_memory_bytes > 0 for one in reports)
    observed = group.run(replace(WORK, observe=True), 100.0)
    assert [(one.spans, one.unobserved) for one in observed] == [(None, ELSEWHERE)] * 2
    left = processes_of_vllm()
    assert len(left) == 3  # the engine core and two workers
    os.kill(group._places[0].pid, signal.SIGKILL)
    began = time.monotonic()
    _, alive = psutil.wait_procs(left, timeout=GONE_S)
    assert not alive, f"{alive} after {time.monotonic() - began:.0f} s"
    with pytest.raises(RunFailed, match="died"):
        group.run(WORK, 100.0)
    group.kill()
