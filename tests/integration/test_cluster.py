"""Joining clusters, refusing what cannot work, and groups of workers that live and die together."""

import os
import socket
import subprocess
import sys
import time

import fake_engine
import psutil
import pytest
from driver_inputs import plan

from orchestrator.cluster import connection as clusters
from orchestrator.cluster.connection import connect
from orchestrator.cluster.failures import RunFailed
from orchestrator.cluster.group import WorkerGroup
from orchestrator.cluster.hardware import local_topology
from orchestrator.errors import UserError
from strategies.shapes import Device
from workers.actor import _local_index
from workers.messages import Work


def started(cluster, ranks):
    return WorkerGroup.start(cluster, f"tiny/tp{ranks}", plan(ranks), "fake")


# -- refusals: nothing is started for them


@pytest.mark.parametrize("listens", [False, True])
def test_an_address_that_does_not_answer_is_said_within_seconds(listens):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listens:
            taken.listen()  # takes the connection, and never says a word
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        start = time.monotonic()
        with (
            pytest.raises(UserError, match=f"no Ray cluster answers at {address}"),
            connect(address, "cpu", 1),
        ):
            pass
        assert time.monotonic() - start < 6


@pytest.mark.parametrize("address", ["nonsense", "host:port", "http:// x"])
def test_what_is_no_address_is_said(address):
    with pytest.raises(UserError, match="is no Ray address"), connect(address, "cpu", 1):
        pass


def test_a_refusal_leaves_a_ray_that_is_not_ours_alone(ray_cluster):
    import ray

    with pytest.raises(UserError), connect("nonsense", "cpu", 1):
        pass
    assert ray.is_initialized()


def test_auto_without_a_cluster_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with (
        pytest.raises(UserError, match="no Ray cluster runs on this machine"),
        connect("auto", "cpu", 1),
    ):
        pass


def test_more_gpus_than_there_are_is_refused_before_ray_starts(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(UserError, match="needs 4 GPUs, this machine has 0"),
        connect(None, "cuda", 4),
    ):
        pass


def test_a_node_with_another_version_is_named():
    nodes = [{"node": "10.0.0.1", "version": "0.1.0"}, {"node": "10.0.0.2", "version": "0.0.9"}]
    with pytest.raises(UserError, match=r"0\.1\.0, node 10\.0\.0\.2 of the cluster has 0\.0\.9"):
        clusters._refuse_other_versions(nodes, "0.1.0")


# -- devices


def test_cpu_devices_are_as_many_as_asked():
    assert local_topology("cpu", 3).devices == tuple(Device("local", i) for i in range(3))


def test_slots_of_a_cluster_go_by_node_and_index():
    gpu = {"memory_bytes": 80, "name": "H"}
    nodes = [
        {"node": "10.0.0.2", "resources": {"GPU": 1.0}, "gpus": [gpu]},
        {"node": "10.0.0.1", "resources": {"GPU": 2.0}, "gpus": [gpu, gpu]},
        {"node": "10.0.0.0", "resources": {"CPU": 8.0}, "gpus": []},
    ]
    devices = clusters._topology_of(nodes, "cuda").devices
    assert [(s.node, s.index, s.memory_bytes) for s in devices] == [
        ("10.0.0.1", 0, 80),
        ("10.0.0.1", 1, 80),
        ("10.0.0.2", 0, 80),
    ]


def test_a_gpu_is_counted_among_the_visible_ones(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [_local_index([]), _local_index(["2"])] == [0, 2]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,GPU-abc")
    assert [_local_index(["6"]), _local_index(["GPU-abc"])] == [1, 2]


# -- groups


def test_a_group_serves_and_is_gone_when_killed(ray_cluster):
    import ray
    from ray.util import list_named_actors
    from ray.util.placement_group import placement_group_table

    group = started(ray_cluster, 2)
    assert sorted(list_named_actors()) == [f"{group.name}/rank0", f"{group.name}/rank1"]
    assert [built.rank for built in group.build(60)] == [0, 1]
    reports = group.run(Work(fake_engine.requests(2), 2), 60)
    assert [report.rank for report in reports] == [0, 1]
    pids = [ray.get(actor.node.remote())["pid"] for actor in group._actors]
    group.kill()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert {entry["state"] for entry in placement_group_table().values()} == {"REMOVED"}


def test_the_rank_that_failed_is_named_rather_than_one_that_lost_it(ray_cluster):
    group = started(ray_cluster, 2)
    group.build(60)
    with pytest.raises(RunFailed, match="the worker of rank 1 died"):
        group.run(Work(fake_engine.requests(2, fake_engine.DIE_AND_BREAK, 1), 2), 60)
    group.kill()


def test_slots_that_others_hold_are_a_failure_and_not_a_hang(ray_cluster, monkeypatch):
    first = started(ray_cluster, 4)
    monkeypatch.setattr("orchestrator.cluster.group.RESERVE_S", 1.0)
    try:
        with pytest.raises(RunFailed, match=r"4 free CPUs could not be reserved"):
            started(ray_cluster, 4)
    finally:
        first.kill()


def test_a_running_cluster_is_joined_and_left_running(ray_cluster):
    import ray

    address = ray.get_runtime_context().gcs_address
    code = (
        "from orchestrator.cluster.connection import connect\n"
        f"with connect({address!r}, 'cpu', 2) as cluster:\n"
        "    print(cluster.embedded, len(cluster.topology().devices))\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["False", "4"], done.stderr
    assert [node["Alive"] for node in ray.nodes()] == [True]
