"""Joining clusters, refusing what cannot work, and groups of workers that live and die together."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from dataclasses import replace

import fake_engine
import psutil
import pytest
from driver_inputs import plan
from variables import without_ray

from orchestrator.cluster import main_memory
from orchestrator.cluster.address import address_of
from orchestrator.cluster.connection import NO_MASK, Cluster, connect
from orchestrator.cluster.environment import WORKER_ENVIRONMENT
from orchestrator.cluster.failures import RunFailed
from orchestrator.cluster.group import WorkerGroup
from orchestrator.cluster.hardware import Gpu, local_topology
from orchestrator.cluster.health import Server
from orchestrator.cluster.nodes import Node, refuse_other_versions
from orchestrator.cluster.ranks import Place, in_rank_order, meeting_host, ranks_at, shared_out
from orchestrator.cluster.room import Patience, await_room, too_large
from orchestrator.cluster.waiting import patiently
from orchestrator.errors import ClusterLost, UserError
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
        assert time.monotonic() - start < 30  # Ray alone would wait two minutes


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
    with (
        pytest.raises(UserError, match="needs 4 GPUs, this machine has 0"),
        connect(None, "cuda", 4),
    ):
        pass


def test_a_node_with_another_version_is_named():
    nodes = [Node("10.0.0.1", {}, version="0.1.0"), Node("10.0.0.2", {}, version="0.0.9")]
    with pytest.raises(UserError, match=r"0\.1\.0, node 10\.0\.0\.2 of the cluster has 0\.0\.9"):
        refuse_other_versions(nodes, "0.1.0")


# -- devices


def test_cpu_devices_are_as_many_as_asked():
    assert local_topology("cpu", 3).devices == tuple(Device("local", i) for i in range(3))


def gpu(index):
    return Gpu(index, "H", f"GPU-{index}", 80, "580.1")


def test_devices_of_a_cluster_go_by_node_and_index():
    nodes = (
        Node("10.0.0.2", {"cuda": 1}, (gpu(0),)),
        Node("10.0.0.1", {"cuda": 2}, (gpu(0), gpu(1))),
        Node("10.0.0.0", {"cpu": 2}),
    )
    there = Cluster(nodes, embedded=False, address="10.0.0.0:6379", dashboard=Future())
    assert [(d.node, d.index, d.memory_bytes) for d in there.topology("cuda").devices] == [
        ("10.0.0.1", 0, 80),
        ("10.0.0.1", 1, 80),
        ("10.0.0.2", 0, 80),
    ]
    assert there.topology("cpu").devices == (Device("10.0.0.0", 0), Device("10.0.0.0", 1))


def test_a_gpu_that_nvml_does_not_tell_of_is_a_device_of_unknown_memory():
    (found,) = Node("10.0.0.1", {"cuda": 1}).devices("cuda")
    assert found == Device("10.0.0.1", 0, 0, "cuda")


def test_a_joined_cluster_that_is_too_small_is_said():
    there = Cluster((Node("10.0.0.1", {"cuda": 1}),), False, "10.0.0.1:6379", None)
    with pytest.raises(UserError, match=r"needs 2 GPUs, the cluster at 10.0.0.1:6379 has 1"):
        there.check_room("cuda", 2)


def test_the_address_asked_for_comes_before_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "there:1")
    assert [address_of("asked:1"), address_of(None)] == ["asked:1", "there:1"]
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert address_of(None) is None


def test_a_gpu_is_counted_among_the_visible_ones(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [_local_index([]), _local_index(["2"])] == [0, 2]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,GPU-abc")
    assert [_local_index(["6"]), _local_index(["GPU-abc"])] == [1, 2]


# -- which process is which rank


def test_bundles_that_no_node_can_hold_are_told_with_what_nodes_have():
    assert too_large([{"GPU": 2}] * 2, [2, 3]) == ""
    why = "3 x 2 GPUs, each 2 of them on one node, are more than this cluster has: its nodes have"
    assert too_large([{"GPU": 2}] * 3, [3, 3]) == f"{why} 3, 3"
    assert too_large([{"GPU": 2}], []) == (
        "1 x 2 GPUs, each 2 of them on one node, are more than this cluster has: its nodes have "
        "none"
    )


def test_the_first_word_of_a_wait_comes_early_and_the_others_now_and_then():
    waits, told = [], []

    def wait(seconds):
        waits.append(seconds)
        return len(waits) == 4

    await_room(wait, lambda: "no room", 100.0, Patience(100.0, told.append))
    assert waits == [10.0, 30.0, 30.0, 30.0]
    assert [line.split(":")[0] for line in told] == [
        f"waiting since {seconds} s, 100 s at most" for seconds in (10, 40, 70)
    ]
    with pytest.raises(RunFailed, match=r"^no room; --wait-for-resources 10m waits for them$"):
        await_room(lambda _: False, lambda: "no room", 0.0, Patience(tell=told.append))
    assert len(told) == 3


@pytest.mark.parametrize(
    ("nodes", "processes", "shares"),
    [
        ("bbaa", 4, [(2,), (3,), (0,), (1,)]),
        ("bbaa", 1, [(2, 3, 0, 1)]),
        ("abbcca", 1, [(0, 5, 1, 2, 3, 4)]),
        ("abbcca", 3, [(0, 5), (1, 2), (3, 4)]),
        ("abbc", 2, [(0, 3), (1, 2)]),  # in the order of addresses b would be torn apart
    ],
)
def test_a_process_gets_bundles_of_few_nodes(nodes, processes, shares):
    assert shared_out(dict(enumerate(nodes)), processes) == shares


def places(*found):
    return [Place(address, address, index, pid) for pid, (address, index) in enumerate(found)]


def test_ranks_go_by_node_and_device_where_the_placement_does_not_say_otherwise():
    found = places(("10.0.0.2", 0), ("10.0.0.1", 1), ("10.0.0.1", 0), ("10.0.0.2", 1))
    assert in_rank_order(found, (0, 1, 2, 3)) == [2, 1, 0, 3]


def test_ranks_of_one_node_meet_on_loopback_and_others_at_the_node_of_rank_0():
    assert meeting_host(places(("10.0.0.2", 0), ("10.0.0.2", 1))) == "127.0.0.1"
    assert meeting_host(places(("10.0.0.2", 0), ("10.0.0.1", 0))) == "10.0.0.2"


def test_a_rank_is_on_the_device_that_the_placement_gives_it():
    found = places(("10.0.0.2", 0), ("10.0.0.1", 1), ("10.0.0.1", 0), ("10.0.0.2", 1))
    assert in_rank_order(found, (3, 2, 1, 0)) == [3, 0, 1, 2]
    rotated = [found[process] for process in in_rank_order(found, (1, 2, 3, 0))]
    assert [(place.address, place.device_index) for place in rotated] == [
        ("10.0.0.1", 1),
        ("10.0.0.2", 0),
        ("10.0.0.2", 1),
        ("10.0.0.1", 0),
    ]


def test_the_names_of_processes_are_those_of_their_ranks_before_they_say_where_they_are():
    assert ranks_at((1, 2, 3, 0), 4) == [3, 0, 1, 2]
    in_order = places(*[("10.0.0.1", index) for index in range(4)])
    order = in_rank_order(in_order, (1, 2, 3, 0))
    assert [ranks_at((1, 2, 3, 0), 4)[process] for process in order] == [0, 1, 2, 3]


def test_one_process_that_drives_every_device_is_rank_0():
    assert in_rank_order(places(("10.0.0.1", 0)), (1, 0)) == [0]


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
    pids = [ray.get(actor.process.remote()).pid for actor in group._actors]
    group.kill()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert {entry["state"] for entry in placement_group_table().values()} == {"REMOVED"}


def test_workers_of_a_local_ray_have_their_environment_and_the_folder_for_temporary_files(
    ray_cluster,
):
    """They get it as they begin: Ray's way to give one starts Python twice."""
    import ray

    group = started(ray_cluster, 2)
    try:
        told = ray.get([actor.__ray_call__.remote(surroundings) for actor in group._actors])
    finally:
        group.kill()
    wanted = {**WORKER_ENVIRONMENT, "OMP_NUM_THREADS": "1", NO_MASK: "1"}
    for environment, folder, began_with in told:
        assert wanted.items() <= environment.items()
        assert folder == tempfile.gettempdir()
        assert "NCCL_GRAPH_MIXING_SUPPORT" not in began_with


def surroundings(worker):
    return dict(os.environ), tempfile.gettempdir(), psutil.Process().environ()


def test_a_placement_with_reversed_devices_reverses_the_ranks(ray_cluster, monkeypatch):
    """On CPU the devices are the bundles of the reservation, in their own order."""
    import ray

    names, start_actor = {}, WorkerGroup._actor

    def noted(group, bundle, name, runtime):
        names[bundle] = name.rpartition("/")[2]
        return start_actor(group, bundle, name, runtime)

    monkeypatch.setattr(WorkerGroup, "_actor", noted)
    placement = replace(plan(2).placement, devices=(1, 0))
    reversed_plan = replace(plan(2), placement=placement)
    group = WorkerGroup.start(ray_cluster, "tiny/tp2", reversed_plan, "fake")
    try:
        assert names == {0: "rank1", 1: "rank0"}
        actors = [ray.get_actor(f"{group.name}/rank{rank}") for rank in (0, 1)]
        named = ray.get([actor.process.remote() for actor in actors])
        held = ray.get([actor.process.remote() for actor in group._actors])
        assert [one.pid for one in named] == [one.pid for one in held]
        assert [built.rank for built in group.build(60)] == [0, 1]
    finally:
        group.kill()


def test_the_rank_that_failed_is_named_rather_than_one_that_lost_it(ray_cluster):
    group = started(ray_cluster, 2)
    group.build(60)
    with pytest.raises(RunFailed, match="the worker of rank 1 died"):
        group.run(Work(fake_engine.requests(2, fake_engine.DIE_AND_BREAK, 1), 2), 60)
    group.kill()


def test_a_worker_that_dies_while_the_kernel_ends_processes_ran_out_of_memory(
    ray_cluster, monkeypatch
):
    group = started(ray_cluster, 1)
    group.build(60)
    kills = main_memory.oom_kills()
    monkeypatch.setattr(main_memory, "oom_kills", lambda: kills + 1)
    with pytest.raises(RunFailed, match=r"0 died \(main memory ran out: [1-9].* of [1-9].*\)$"):
        group.run(Work(fake_engine.requests(2, fake_engine.DIE, 0), 2), 60)
    group.kill()


def test_the_rank_that_hangs_is_named_rather_than_those_that_wait_for_it(ray_cluster):
    group = started(ray_cluster, 2)
    group.build(60)
    with pytest.raises(RunFailed, match="rank 1 hangs: the others wait for it in a collective"):
        group.run(Work(fake_engine.requests(2, fake_engine.HANG_OTHERS_WAIT, 1), 2), 2)
    group.kill()


def test_a_cluster_that_dies_is_named_rather_than_the_worker_that_dies_with_it(
    ray_cluster, monkeypatch
):
    """Also where it dies in the middle of a call that does not come back."""
    group = started(ray_cluster, 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        gone = replace(ray_cluster, servers=(Server("GCS of local Ray", *taken.getsockname()),))
    monkeypatch.setattr(group, "_cluster", gone)
    began = time.monotonic()
    with pytest.raises(ClusterLost, match="the GCS of local Ray died"):
        group.run(Work(fake_engine.requests(1, fake_engine.DIE), 1), 60)
    with pytest.raises(ClusterLost):
        patiently(threading.Event().wait, gone.check_alive)
    assert time.monotonic() - began < 30  # half of what the run may take
    monkeypatch.undo()
    group.kill()


def test_a_ray_that_cannot_start_is_one_line_and_its_logs_are_kept(monkeypatch):
    def fail(**_):
        raise RuntimeError("The current node timed out during startup.\nmore")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", fail)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        with (
            pytest.raises(UserError, match=r"^Ray could not be started: The current node") as found,
            connect(None, "cpu", 1),
        ):
            pass
        kept = str(found.value).rpartition(" ")[2]
        assert os.path.isdir(kept)


def test_devices_that_others_hold_are_a_failure_and_not_a_hang(ray_cluster, monkeypatch):
    first = started(ray_cluster, 4)
    monkeypatch.setattr("orchestrator.cluster.room.RESERVE_S", 1.0)
    monkeypatch.setattr("orchestrator.cluster.room.FIRST_WORD_S", 1.0)
    told = []
    try:
        with pytest.raises(RunFailed) as found:
            WorkerGroup.start(
                ray_cluster, "tiny/tp4", plan(4), "fake", patience=Patience(2.0, told.append)
            )
    finally:
        first.kill()
    why = (
        "4 free CPUs could not be reserved: the cluster has 4 on 1 node, 0 free; held by "
        f"{first.name} (4)"
    )
    assert str(found.value) == why
    assert told == [f"waiting since 1 s, 2 s at most: {why}"]


def test_devices_that_come_free_in_time_are_taken(ray_cluster, monkeypatch):
    first, told = started(ray_cluster, 3), []  # of 4; the fewer start, the sooner
    monkeypatch.setattr("orchestrator.cluster.room.RESERVE_S", 1.0)
    monkeypatch.setattr("orchestrator.cluster.room.FIRST_WORD_S", 1.0)

    def tell(line):
        told.append(line)
        first.kill()

    second = WorkerGroup.start(
        ray_cluster, "tiny/tp2", plan(2), "fake", patience=Patience(60.0, tell)
    )
    second.kill()
    assert len(told) >= 1


def test_a_running_cluster_is_joined_and_left_running(ray_cluster):
    import ray

    address = ray.get_runtime_context().gcs_address
    code = (
        "from orchestrator.cluster import ray_private\n"
        "from orchestrator.cluster.connection import connect\n"
        f"with ray_private.on_loopback(), connect({address!r}, 'cpu', 2) as cluster:\n"
        "    print(cluster.embedded, len(cluster.topology('cpu').devices))\n"
    )
    token = {"RAY_AUTH_TOKEN_PATH": os.environ["RAY_AUTH_TOKEN_PATH"]}
    environment = {**without_ray(), **token}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["False", "4"], done.stderr
    assert [node["Alive"] for node in ray.nodes()] == [True]
