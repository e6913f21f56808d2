"""A server of a local Ray that dies while it starts is noticed at once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

import psutil
import pytest
from process_lists import below
from variables import without_ray

STARTS = """
from orchestrator.cluster.connection import start
from orchestrator.errors import UserError

try:
    with start("cpu", 1, dashboard=False):
        pass
except UserError as error:
    raise SystemExit(f"error: {error}")
"""
NOTICED_S = 10.0  # it takes half a second; Ray waits for 30 s


@pytest.mark.ray
@pytest.mark.parametrize("after_s", [0.0, 0.05])
def test_a_gcs_that_dies_before_it_has_told_its_port_is_noticed(after_s: float) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a short name, for the sockets
        driver = subprocess.Popen(
            [sys.executable, "-c", STARTS],
            env={**without_ray(), "RAY_TMPDIR": folder},
            stderr=subprocess.PIPE,
            text=True,
        )
        gcs = child(driver.pid, "gcs_server")
        time.sleep(after_s)
        gcs.kill()
        killed = time.monotonic()
        _, errors = driver.communicate(timeout=60)
    assert time.monotonic() - killed < NOTICED_S
    assert "Ray could not be started: its gcs_server died while it was starting" in errors
    assert driver.returncode in (1, 2)


def child(parent: int, name: str) -> psutil.Process:
    """The child of that name, as soon as there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for one, its, _ in below(parent):
            if its == name:
                return one
        time.sleep(0.002)
    raise TimeoutError(f"no {name} below {parent}")
