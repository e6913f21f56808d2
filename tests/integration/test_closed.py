"""What can be reached of a run on one node: nothing, from another node or by another user."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from reach import Reach, open_to_others
from variables import without_ray

pytestmark = pytest.mark.ray

BIN = Path(sys.executable).parent
TIMEOUT_S = 120
LOOK_S = 0.2
FLAGS = (
    "--device cpu --strategy tp2 --input-len 16 --output-len 32 --max-concurrency 2 --num-runs 3"
)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the command below, and all that it starts, put temporary files."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory, temporary: Path) -> Reach:
    """All that the processes of a whole `submit` listened on and kept open, seen while they ran.
    The user has no token, and an umask that lets others read."""
    home = tmp_path_factory.mktemp("home")
    command = [
        str(BIN / "orchestrator"),
        "submit",
        *FLAGS.split(),
        "--result-dir",
        home / "results",
    ]
    run = psutil.Popen(
        list(map(str, command)),
        env={**without_ray(), "HOME": str(home), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        umask=0o022,
    )
    reach, deadline = Reach(home), time.monotonic() + TIMEOUT_S
    while run.poll() is None and time.monotonic() < deadline:
        reach.look([run, *run.children(recursive=True)])
        time.sleep(LOOK_S)
    if run.poll() is None:
        run.terminate()
    said = run.communicate()[0]
    assert run.returncode == 0, said
    return reach


def test_nothing_is_left_among_temporary_files(reached, temporary):
    assert list(temporary.iterdir()) == []


def test_every_process_listens_on_loopback_alone(reached):
    elsewhere = [one for one in reached.listeners if not one.on_loopback]
    assert not elsewhere
    listening = {one.process for one in reached.listeners}
    assert {"gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent"} <= listening


def test_the_ranks_meet_on_loopback(reached):
    """Each has a port of Ray's and those of gloo's groups; rank 0 has that of the store as well."""
    assert sorted(reached.ports_of("ray::Worker")) == [3, 4]


def test_no_process_gives_way_to_those_of_others(reached):
    assert set(reached.niceness.values()) == {os.nice(0)}


def test_another_user_reaches_no_socket_and_no_file_of_the_session(reached):
    assert len({Path(path).name for path in reached.sockets} & {"raylet", "plasma_store"}) == 2
    assert not {path for path in reached.sockets if reached.sockets[path]}
    assert reached.written
    assert not {path for path in reached.written if reached.written[path]}


def test_the_token_is_readable_by_its_owner_alone_and_goes_with_the_run(reached):
    (token,) = reached.tokens
    assert reached.tokens[token] == 0o600
    assert not Path(token).exists()
    assert not (reached.home / ".ray").exists()


def test_a_path_is_open_to_others_only_if_each_folder_above_it_is(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / "file"
    file.touch()
    file.chmod(0o666)
    above = [*tmp_path.parents, tmp_path, folder]
    for one in (
        one for one in above if one.stat().st_uid == os.getuid() and one.is_relative_to(tmp_path)
    ):
        one.chmod(0o755)
    assert open_to_others(file, inside=tmp_path)
    folder.chmod(0o700)
    assert not open_to_others(file, inside=tmp_path)
    folder.chmod(0o755)
    file.chmod(0o600)
    assert not open_to_others(file, inside=tmp_path)
