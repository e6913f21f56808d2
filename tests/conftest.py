"""What tests share: one local Ray, with the engine of `fake_engine` installed, for all that need
one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from ranks import checkpoint, pool  # noqa: F401  (fixtures)

if TYPE_CHECKING:
    from orchestrator.cluster.connection import Cluster


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
