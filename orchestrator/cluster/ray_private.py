"""Every private part of Ray that the packages use.

Tried with Ray 2.60.0; 2.55.0 has every name too, 2.53.0 does not (`wait_for_persisted_port`). Hence
the bounds in pyproject.toml.
tests/integration/test_private_parts.py looks at each name by itself, so that the test that fails
says which one a new release has changed.

One test uses more: tests/integration/test_cluster_files.py checks cluster.yaml with private parts
of Ray's autoscaler.

Why private names at all: `ray.init` on an address that does not answer takes two minutes and ends
the process, and it does not say whether a cluster asks for a token. Ray has no public way to ask.
Nor has it one to start a cluster that only this machine can reach.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any

from workers.rendezvous import LOOPBACK

CLIENT_PREFIX = "ray://"
TOKEN_FILE = "auth_token"
PORT_S = 0.02  # between two looks for the port of a GCS, or for a raylet
RAYLET_S = 30.0  # that one may take to be known; Ray's own way says why it is not
TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def address_of_head_here() -> str | None:
    """The address in the file that `ray start --head` leaves on its machine; None where there is
    none. Ray's public functions read the file too, but only to connect to the address."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    note = Path(folder) / "ray" / "ray_current_cluster"
    return note.read_text().strip() if note.exists() else None


def own_token() -> str:
    """The token that Ray finds in RAY_AUTH_TOKEN or ~/.ray/auth_token, whether or not
    RAY_AUTH_MODE asks for one; empty where there is none."""
    loader = _token_loader()
    if not loader.has_token(ignore_auth_mode=True):
        return ""
    return str(loader.get_raw_token(ignore_auth_mode=True))


def use_token(wanted: bool) -> None:
    """Send the token of this process from now on, or stop sending it. A driver must not send a
    token that the cluster does not ask for: Ray then kills its actors."""
    os.environ["RAY_AUTH_MODE"] = "token" if wanted else "disabled"
    _read_settings_again()


def lets_in(address: str, host: str, port: int, token: str, timeout_s: float) -> bool:
    """Ask the cluster for entry with `token` (empty: without one). False where it asks for
    another. Raises ConnectionError, with the reason, where no cluster answers in `timeout_s`."""
    import grpc

    shown = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        ask = _ping_client if address.startswith(CLIENT_PREFIX) else _ping_head
        try:
            ask(channel, timeout=timeout_s, metadata=[("client_id", "probe"), *shown])
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise ConnectionError(error.details() or error.code().name) from error
    return True


def settings(metrics_ms: int, folder: Path) -> dict[str, object]:
    """Arguments of `ray.init` for a Ray of this machine alone: it keeps its files in a folder of
    its own in `folder`, and every process reports its metrics each `metrics_ms`. It starts no
    workers in advance: one for each core, most of which would become no actor of ours.

    Ray opens the folder that it is given, and all in it, to everybody (mode 0777): nobody else may
    be able to enter `folder`.
    """
    return {
        "_node_ip_address": LOOPBACK,
        "_temp_dir": str(folder / "r"),  # of one letter: see session.BELOW
        "_system_config": {
            "metrics_report_interval_ms": metrics_ms,
            "prestart_worker_first_driver": False,
        },
    }


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Let `ray.init` take LOOPBACK for the address of its node, so that each of Ray's processes
    listens there and nowhere else. Ray would put an address in its place that others reach."""
    from ray._private import services

    replaced = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = replaced


@contextlib.contextmanager
def lean(dashboard: bool) -> Iterator[None]:
    """Let `ray.init` start no process that sends lines of logs to a driver, as ours asks for none;
    and without a dashboard no autoscaler, whose status only that one shows, and none of the
    dashboard's own, which would report to Ray's makers how Ray is used."""
    from ray._private.node import Node

    names = ["start_log_monitor"]
    if not dashboard:
        names += ["start_monitor", "start_api_server"]
    kept = {name: getattr(Node, name) for name in names}
    for name in names:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


@contextlib.contextmanager
def dashboard_beside() -> Iterator[Future[str | None]]:
    """Let `ray.init` go on while its dashboard starts, which takes seconds that its own context is
    then without. Yields the dashboard's URL, once it is known, None where there is none; or what
    Ray raises of one that does not start."""
    from ray._private.node import Node

    start, url = Node.start_api_server, Future[str | None]()

    def run(node: Node, asked: Mapping[str, Any]) -> None:
        with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
            try:
                start(node, **asked)
            except BaseException as error:
                url.set_exception(error)
            else:
                url.set_result(url_of(node.webui_url))

    def begin(node: Node, **asked: Any) -> None:
        # Nobody waits for it where Ray does not start: its processes are ended, and so is it.
        threading.Thread(target=run, args=(node, asked), daemon=True).start()

    Node.start_api_server = begin
    try:
        yield url
    finally:
        Node.start_api_server = start


def url_of(dashboard: str | None) -> str | None:
    """Of what Ray says of one."""
    return f"http://{dashboard}" if dashboard else None


@contextlib.contextmanager
def raylet_at_once() -> Iterator[None]:
    """Let `ray.init` go on as soon as its raylet is known to the GCS. Ray's own wait sleeps for two
    seconds between two looks."""
    from ray._private import services
    from ray._private.state import GlobalState

    ask = services.get_node

    def ask_again(gcs_address: str, node_id: str) -> Any:
        nodes, deadline = GlobalState(), time.monotonic() + RAYLET_S
        nodes._initialize_global_state(services._get_gcs_client_options(gcs_address))
        while time.monotonic() < deadline:
            if any(one["NodeID"] == node_id for one in nodes.node_table()):
                break
            time.sleep(PORT_S)
        return ask(gcs_address, node_id)

    services.get_node = ask_again
    try:
        yield
    finally:
        services.get_node = ask


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let other threads run, and signals be handled, while `ray.init` waits for the GCS to tell its
    port. Ray's own wait holds the interpreter for 30 s where the GCS has died."""
    from ray._private import node

    wait = node.wait_for_persisted_port

    def wait_in_steps(*which: str, timeout_ms: int) -> int:
        deadline = time.monotonic() + timeout_ms / 1e3
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):  # no port has been told yet
                return int(wait(*which, timeout_ms=0))
            time.sleep(PORT_S)
        return int(wait(*which, timeout_ms=0))

    node.wait_for_persisted_port = wait_in_steps
    try:
        yield
    finally:
        node.wait_for_persisted_port = wait


@contextlib.contextmanager
def token_in(folder: Path) -> Iterator[None]:
    """Inside, this process and those that it starts use a token made for them alone, in the file
    TOKEN_FILE of `folder`, whichever the user has: Ray's own way leaves a file in his home that
    everybody may read."""
    file = folder / TOKEN_FILE
    file.touch(mode=0o600, exist_ok=False)
    file.write_text(secrets.token_hex(32))
    replaced = {name: os.environ.pop(name, None) for name in TOKEN_VARIABLES}
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)
    use_token(True)
    try:
        yield
    finally:
        for name, value in replaced.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _read_settings_again()


def _read_settings_again() -> None:
    """Have Ray follow the environment; it read its settings at import."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    _token_loader().reset_cache()  # Ray sends a token that it has read, whatever the mode
    Config.initialize("")


@contextlib.contextmanager
def without_signal_handlers() -> Iterator[None]:
    """Inside, `ray.init` leaves SIGTERM to those who handle it. Ray would end this process with
    status 1 and no word."""
    from ray._private import utils

    before, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


def be_quiet() -> None:
    """Keep what Ray says of its own deaths, and the end of its logs, off this process's output."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None


def tell_no_uploads() -> None:
    """Keep what Ray's client of jobs says of its uploads off this process's output."""
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _token_loader() -> Any:
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    return AuthenticationTokenLoader.instance()


def _ping_head(channel: Any, **options: Any) -> None:
    """Ask the control service of a head for the cluster's id."""
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
    stub.GetClusterId(gcs_service_pb2.GetClusterIdRequest(), **options)


def _ping_client(channel: Any, **options: Any) -> None:
    """Ask the server of Ray's client, at ray://, for a sign of life."""
    from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

    ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
    ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo(ping, **options)
