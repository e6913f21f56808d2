"""A Ray cluster that others started, for what joins one."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from process_lists import below
from variables import without_ray

from orchestrator.cluster.connection import NICENESS
from orchestrator.cluster.processes import end

TOKEN = "0123456789abcdef" * 4
START_S = 180
BIN = Path(sys.executable).parent
# One run of four tokens for each of two requests.
SMALL = (
    *("--strategy", "tp2", "--device", "cpu"),
    *("--input-len", "16", "--output-len", "4", "--max-concurrency", "2"),
)


@dataclass(frozen=True)
class Existing:
    """Its address, the process that all of its others descend from, and where its jobs are."""

    address: str
    head: psutil.Process
    jobs: str

    def workers(self) -> list[str]:
        return [name for _, name, _ in below(self.head.pid) if "Worker" in name]


@contextlib.contextmanager
def cluster(environment: dict[str, str]) -> Iterator[Existing]:
    """A Ray of its own ports and folder. It is ended by killing its processes; `ray stop` would end
    everybody's."""
    folder = Path(
        tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    )  # short: paths of sockets have at most 107 characters
    ports = free_ports(2)
    command = [
        BIN / "ray",
        "start",
        "--head",
        "--block",
        "--port=0",
        f"--ray-client-server-port={ports[0]}",
        f"--dashboard-port={ports[1]}",
        "--dashboard-agent-listen-port=0",  # jobs need it, and another Ray has the usual one
        f"--temp-dir={folder}",
        "--num-cpus=2",
        "--object-store-memory=100000000",
    ]
    with (folder / "out").open("w") as out:
        head = psutil.Popen(
            list(map(str, command)), env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        address = address_when_up(folder, head)
        wait_for_agent(folder)
        yield Existing(address, head, f"http://127.0.0.1:{ports[1]}")
    finally:
        end([*head.children(recursive=True), head], patience_s=0)
        shutil.rmtree(folder)


def address_when_up(folder: Path, head: psutil.Popen) -> str:
    """What Ray notes down when all of its processes have started."""
    note = folder / "ray_current_cluster"
    deadline = time.monotonic() + START_S
    while not (note.exists() and note.read_text()):
        if head.poll() is not None or time.monotonic() > deadline:
            pytest.fail("Ray did not start:\n" + (folder / "out").read_text())
        time.sleep(0.1)
    return note.read_text().strip()


def wait_for_agent(folder: Path) -> None:
    """Until the agent, which starts jobs, has noted down where it listens: -1 for nowhere."""
    session = folder / "session_latest"
    deadline = time.monotonic() + START_S
    port = ""
    while not port and time.monotonic() < deadline:
        port = "".join(file.read_text() for file in session.glob("dashboard_agent_listen_port*"))
        time.sleep(0.1)
    if port in ("", "-1"):
        pytest.fail(
            "Ray's agent does not listen:\n" + _end_of(session / "logs/dashboard_agent.log")
        )


def _end_of(log: Path) -> str:
    return log.read_text()[-8000:] if log.exists() else f"no {log.name}"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def environment(home: Path, token: bool, **variables: str) -> dict[str, str]:
    """That of a user who has, or has not, a token where Ray keeps it."""
    home.mkdir(exist_ok=True)
    if token:
        (home / ".ray").mkdir(exist_ok=True)
        (home / ".ray" / "auth_token").write_text(TOKEN)
    ours = {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", NICENESS: "0"}
    return {**without_ray(), **ours, **variables}


def submit(
    address: str,
    result_dir: Path,
    env: dict[str, str],
    *flags: str,
    program: tuple[str | Path, ...] = (BIN / "orchestrator",),
) -> subprocess.CompletedProcess[str]:
    command = [*program, "submit", "--address", address, *SMALL, "--result-dir", result_dir, *flags]
    return subprocess.run(
        list(map(str, command)), env=env, capture_output=True, text=True, timeout=120
    )


def assert_ran(done: subprocess.CompletedProcess[str], result_dir: Path, there: Existing) -> None:
    """It printed a result, kept it, and left the cluster running without a worker of ours."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"run 1: [\d.]+ tok/s", done.stderr)
    assert re.search(r"dashboard: http://[\w.]+:\d+", done.stderr)
    assert len(list(result_dir.glob("*/summary/*.arrow"))) == 1
    assert len(list(result_dir.glob("*/comparison.arrow"))) == 1
    assert there.head.is_running()
    deadline = time.monotonic() + 10
    while there.workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert there.workers() == []
