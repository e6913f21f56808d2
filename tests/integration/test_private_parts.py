"""The private names of Ray that `orchestrator.cluster.ray_private` uses, each by itself: the test
that fails says what a new release has changed."""

from __future__ import annotations

import inspect
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import ray
from packaging.requirements import Requirement

from orchestrator.cluster import ray_private
from orchestrator.cluster.connection import Cluster

ROOT = Path(__file__).parents[2]
NO_NODE = "f" * 56


def test_the_installed_ray_is_within_the_bounds_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (asked,) = (one for one in map(Requirement, project["dependencies"]) if one.name == "ray")
    assert version("ray") in asked.specifier
    assert {bound.operator for bound in asked.specifier} == {">=", "<"}


def test_no_other_file_uses_a_private_name() -> None:
    private = ("_raylet", "ray.core", "ray._", "_system_config", "__ray_", "ray_current_cluster")
    for path in sorted((ROOT / "orchestrator").rglob("*.py")) + sorted(
        (ROOT / "workers").rglob("*.py")
    ):
        found = [name for name in private if name in path.read_text()]
        assert not found or path.name == "ray_private.py", (path, found)


# -- ray._raylet


def test_authentication_token_loader_instance() -> None:
    from ray._raylet import AuthenticationTokenLoader

    assert AuthenticationTokenLoader.instance() is not None


def loader() -> object:
    from ray._raylet import AuthenticationTokenLoader

    return AuthenticationTokenLoader.instance()


@pytest.fixture
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_token_loader_has_token_whatever_the_mode(
    no_token: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader().reset_cache()  # type: ignore[attr-defined]
    assert loader().has_token(ignore_auth_mode=True) is False  # type: ignore[attr-defined]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "made-up-for-a-test")
    loader().reset_cache()  # type: ignore[attr-defined]
    assert loader().has_token(ignore_auth_mode=True) is True  # type: ignore[attr-defined]
    loader().reset_cache()  # type: ignore[attr-defined]


def test_token_loader_get_raw_token_whatever_the_mode(
    no_token: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "made-up-for-a-test")
    loader().reset_cache()  # type: ignore[attr-defined]
    assert ray_private.own_token() == "made-up-for-a-test"
    loader().reset_cache()  # type: ignore[attr-defined]


def test_token_loader_reset_cache() -> None:
    assert callable(loader().reset_cache)  # type: ignore[attr-defined]


def test_config_initialize() -> None:
    from ray._raylet import Config

    Config.initialize("")


def test_config_knows_the_setting_for_metrics(tmp_path: Path) -> None:
    from ray._raylet import Config

    assert "metrics_report_interval_ms" in str(ray_private.settings(2000, tmp_path))
    assert callable(Config.metrics_report_interval_ms)


# -- ray.init


def test_init_takes_a_system_config() -> None:
    """It is one of the arguments that `ray.init` knows beside its public ones, as is the folder."""
    for name in ray_private.settings(2000, Path("/tmp")):
        assert name in inspect.getsource(ray.init)


def test_init_takes_sigterm_by_the_function_that_is_replaced() -> None:
    from ray._private import node, utils

    assert "ray._private.utils.set_sigterm_handler" in inspect.getsource(ray.init)
    assert "ray._private.utils.set_sigterm_handler" in inspect.getsource(node)
    before = utils.set_sigterm_handler
    with ray_private.without_signal_handlers():
        assert utils.set_sigterm_handler is not before
    assert utils.set_sigterm_handler is before


def test_a_driver_prints_what_ray_says_of_nodes_by_the_function_that_is_silenced() -> None:
    from ray._private import worker

    assert "print_to_stdstream" in inspect.getsource(worker.listen_error_messages)


@pytest.mark.parametrize("argument", ["_node_ip_address", "_temp_dir"])
def test_init_takes_the_address_and_the_folder_of_a_local_ray(
    argument: str, tmp_path: Path
) -> None:
    assert argument in inspect.getsource(ray.init)
    assert argument in ray_private.settings(2000, tmp_path)


# -- ray._private.services


def test_init_asks_for_the_address_behind_loopback_through_the_name_that_is_replaced() -> None:
    from ray._private import services

    assert "services.resolve_ip_for_localhost(_node_ip_address)" in inspect.getsource(ray.init)
    before = services.resolve_ip_for_localhost
    with ray_private.on_loopback():
        assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"
    assert services.resolve_ip_for_localhost is before


# -- ray._private.node


def test_the_wait_for_the_port_of_a_gcs_lets_other_threads_run(tmp_path: Path) -> None:
    from ray._private import node

    assert "wait_for_persisted_port(" in inspect.getsource(node.Node.start_gcs_server)
    looked: list[float] = []
    with ray_private.interruptible():
        looker = threading.Timer(0.1, lambda: looked.append(time.monotonic()))
        looker.start()
        with pytest.raises(RuntimeError, match="Timed out waiting for file"):
            node.wait_for_persisted_port(str(tmp_path), NO_NODE, "gcs_server_port", timeout_ms=400)
        ended = time.monotonic()
    assert looked[0] < ended - 0.1


def test_the_port_of_a_gcs_is_read_as_ray_writes_it(tmp_path: Path) -> None:
    from ray._private import node

    (tmp_path / f"gcs_server_port_{NO_NODE}").write_text("6543")
    with ray_private.interruptible():
        port = node.wait_for_persisted_port(
            str(tmp_path), NO_NODE, "gcs_server_port", timeout_ms=1000
        )
    assert port == 6543


def test_only_what_a_local_ray_needs_is_left_out_of_it() -> None:
    from ray._private.node import Node

    def starts() -> tuple[object, ...]:
        return Node.start_monitor, Node.start_log_monitor, Node.start_api_server

    before = starts()
    assert "self.start_monitor()" in inspect.getsource(Node.start_head_processes)
    assert "self.start_log_monitor()" in inspect.getsource(Node.start_ray_processes)
    assert "self.start_api_server(" in inspect.getsource(Node.start_head_processes)
    with ray_private.lean(dashboard=False):
        assert all(one is not other for one, other in zip(starts(), before, strict=True))
    with ray_private.lean(dashboard=True):  # which shows what the autoscaler says
        kept = [one is other for one, other in zip(starts(), before, strict=True)]
        assert kept == [True, False, True]
    assert starts() == before


class Dashboard:
    """In place of a `Node`: its dashboard is there once `waits` is set."""

    def __init__(self, waits: threading.Event, fails: bool) -> None:
        self.waits, self.fails, self.webui_url = waits, fails, None

    def start(self, *, include_dashboard: bool, raise_on_failure: bool) -> None:
        assert (include_dashboard, raise_on_failure) == (True, True)
        self.waits.wait(10)
        if self.fails:
            raise RuntimeError("no port is free")
        self.webui_url = "127.0.0.1:8265"


@pytest.mark.parametrize("fails", [False, True])
def test_ray_goes_on_while_its_dashboard_starts(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.node import Node

    asked = ("include_dashboard=", "raise_on_failure=")
    assert all(name in inspect.getsource(Node.start_head_processes) for name in asked)
    assert "return self._webui_url" in inspect.getsource(Node.webui_url.fget)
    waits = threading.Event()
    monkeypatch.setattr(Node, "start_api_server", Dashboard.start)
    with ray_private.dashboard_beside() as url:
        Node.start_api_server(
            Dashboard(waits, fails), include_dashboard=True, raise_on_failure=True
        )
        assert not url.done()
        waits.set()
        if fails:
            with pytest.raises(RuntimeError, match="no port is free"):
                url.result(10)
        else:
            assert url.result(10) == "http://127.0.0.1:8265"
    assert Node.start_api_server is Dashboard.start


def test_ray_asks_for_its_raylet_once_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it asks before, it sleeps for two seconds."""
    from ray._private import node, services
    from ray._private.state import GlobalState

    assert "ray._private.services.get_node(" in inspect.getsource(node.Node.__init__)
    assert "accessor.get_node(node_id)" in inspect.getsource(GlobalState.get_node)
    tables, asked = iter(([], [{"NodeID": "of another"}], [{"NodeID": NO_NODE}])), list[object]()
    monkeypatch.setattr(services, "get_node", lambda *which: asked.append(which))
    monkeypatch.setattr(services, "_get_gcs_client_options", lambda address: address)
    monkeypatch.setattr(GlobalState, "_initialize_global_state", lambda self, options: None)
    monkeypatch.setattr(GlobalState, "node_table", lambda self: next(tables))
    replaced = services.get_node
    with ray_private.raylet_at_once():
        services.get_node("127.0.0.1:1", NO_NODE)
    assert asked == [("127.0.0.1:1", NO_NODE)]
    assert list(tables) == []
    assert services.get_node is replaced


STARTED = """
import os, time
from orchestrator.cluster.connection import connect
from process_lists import below
with connect(None, "cpu", 2, dashboard=False):
    time.sleep(3)
    print(*(" ".join(words) for _, _, words in below(os.getpid())), sep="\\n")
"""


@pytest.mark.ray
def test_a_local_ray_starts_no_dashboard_no_reader_of_logs_and_no_worker_in_advance() -> None:
    folders = (str(Path(__file__).parents[1] / "support"), *sys.path)
    run = subprocess.run(
        [sys.executable, "-c", STARTED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "raylet_socket_name" in run.stdout
    assert "monitor.py" not in run.stdout
    assert "dashboard.py" not in run.stdout
    assert "ray::IDLE" not in run.stdout


# -- the token of a local Ray


def test_a_local_ray_has_a_token_of_its_own_which_only_its_user_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    his = {"RAY_AUTH_TOKEN": "made-up-for-a-test", "RAY_AUTH_MODE": "disabled"}
    for name, value in his.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with ray_private.token_in(tmp_path):
        (file,) = tmp_path.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert ray_private.own_token() == file.read_text()
        assert len(file.read_text()) == 64
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" not in os.environ
    assert {name: os.environ[name] for name in his} == his
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    assert ray_private.own_token() == "made-up-for-a-test"
    monkeypatch.undo()
    ray_private._read_settings_again()  # those of the Ray that other tests share


# -- the file of a head


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_the_head_on_this_machine_is_noted_in_a_file(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._common import utils

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert ray_private.address_of_head_here() is None
    note = Path(utils.get_ray_address_file(None))
    assert note == tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text("10.0.0.1:6379\n")
    assert ray_private.address_of_head_here() == "10.0.0.1:6379"


# -- ray.core.generated


def test_the_request_to_a_head() -> None:
    from ray.core.generated import gcs_service_pb2

    gcs_service_pb2.GetClusterIdRequest()


def test_the_stub_of_a_head() -> None:
    from ray.core.generated import gcs_service_pb2_grpc

    assert gcs_service_pb2_grpc.NodeInfoGcsServiceStub


def test_the_request_to_a_client_server() -> None:
    from ray.core.generated import ray_client_pb2

    ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)


def test_the_stub_of_a_client_server() -> None:
    from ray.core.generated import ray_client_pb2_grpc

    assert ray_client_pb2_grpc.RayletDriverStub


def test_a_head_answers_the_probe_and_says_whether_it_wants_a_token(ray_cluster: Cluster) -> None:
    address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")
    wants = os.environ.get("RAY_AUTH_MODE") == "token" or not ray_private.lets_in(
        address, host, int(port), "", 5.0
    )
    assert ray_private.lets_in(address, host, int(port), "wrong", 5.0) is not wants
    assert ray_private.lets_in(address, host, int(port), ray_private.own_token(), 5.0)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_without_a_cluster_is_a_connection_error(scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionError):
            ray_private.lets_in(f"{scheme}127.0.0.1:{port}", "127.0.0.1", port, "", 2.0)
