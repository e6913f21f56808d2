"""What tests share: one local Ray with the engine of `fake_engine` installed, and the marks that
say what a test needs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ranks import calibrated, checkpoint, pool  # noqa: F401  (fixtures)

if TYPE_CHECKING:
    from orchestrator.cluster.connection import Cluster

# Of torch, which reads it as it is imported. Models here are so small that threads would wait for
# each other more than they compute, and longer where other tests have the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

GPU_TESTS = Path(__file__).parent / "gpu"
# Where `make test-ray` and `make test-ranks` look for theirs.
FOLDERS = {
    mark: {Path(__file__).parent / name for name in names}
    for mark, names in (
        ("ray", ("chaos", "integration", "report")),
        ("ranks", ("integration", "workers")),
    )
}
# A test that uses one of these fixtures, also through another fixture, gets the mark beside it. A
# test that starts Ray or ranks by itself carries its mark in its own file.
MARK_OF_FIXTURE = {"ray_cluster": "ray", "pool": "ranks", "chromium": "browser"}


def pytest_configure() -> None:
    """Let tests, and what they start, be stopped by signals that this process was told to ignore,
    as under nohup or in the background of a shell; and let no terminal say how wide to print."""
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
        os.unsetenv(name)
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARK_OF_FIXTURE:
                item.add_marker(MARK_OF_FIXTURE[fixture])
        if GPU_TESTS in item.path.parents:
            item.add_marker("gpu")
        row = next((one for one in ("nodes", *FOLDERS) if item.get_closest_marker(one)), "others")
        if row in FOLDERS and FOLDERS[row].isdisjoint(item.path.parents):
            raise pytest.UsageError(f"`make test-{row}` does not look for {item.nodeid}")


@pytest.fixture(scope="session", autouse=True)
def without_fsync() -> Iterator[None]:
    """Wait for no disk: no test takes the power from this machine, and a run keeps ten files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def fake_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder on the path, here and in the workers, where the engine 'fake' is installed."""
    import fake_engine

    folder = str(fake_engine.install(tmp_path_factory.mktemp("site")))
    sys.path.append(folder)
    yield folder
    sys.path.remove(folder)


@pytest.fixture(scope="session")
def ray_cluster(fake_site: str) -> Iterator[Cluster]:
    from orchestrator.cluster.connection import connect

    with connect(None, "cpu", 4, dashboard=False) as cluster:
        yield cluster
