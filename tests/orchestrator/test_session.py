"""The folder of a local Ray, and the processes that belong to it."""

import contextlib
import errno
import json
import os
import socket
import stat
import subprocess
import sys
import time
from dataclasses import asdict, replace

import psutil
import pytest

from orchestrator.cluster import guard
from orchestrator.cluster.health import ASKS, JOINED_S, LOCAL_S, Server, check
from orchestrator.cluster.ray_private import settings
from orchestrator.cluster.session import (
    BELOW,
    KEPT,
    KEPT_S,
    LONGEST,
    OWNER,
    PREFIX,
    folder_of_ray,
    reap,
    session,
)
from orchestrator.cluster.waiting import POLL_S
from orchestrator.errors import ClusterLost, UserError
from orchestrator.run.limits import check_limits
from workers.process import ProcessId

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def base(tmp_path_factory, monkeypatch):
    """A folder with a path as short as sockets need it."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield tmp_path_factory.mktemp("x").parent.__class__(folder)


def test_the_folder_is_private_and_gone_after_success(base):
    with session() as mine:
        assert stat.S_IMODE(mine.folder.stat().st_mode) == 0o700
        assert json.loads((mine.folder / OWNER).read_text())["pid"] == os.getpid()
    assert list(base.iterdir()) == []


def test_a_folder_is_kept_after_a_failure_and_the_next_command_leaves_it(base):
    with session() as mine:
        mine.keep("rank 0 died")
    reap(base)
    assert (mine.folder / KEPT).read_text() == "rank 0 died\n"
    long_ago = time.time() - KEPT_S - 60
    os.utime(mine.folder / KEPT, (long_ago, long_ago))
    reap(base)
    assert list(base.iterdir()) == []


def test_what_a_killed_command_left_is_removed_with_its_processes_and_what_lives_is_not(base):
    me = ProcessId.here()
    owners = {
        "alive": me,
        "dead": replace(me, ticks=me.ticks - 1),  # the same id, used again
        "earlier": replace(me, boot="of an earlier boot"),
        "elsewhere": replace(me, host="elsewhere", boot="of another machine"),
    }
    for name, owner in owners.items():
        (base / f"{PREFIX}{name}").mkdir()
        (base / f"{PREFIX}{name}" / OWNER).write_text(json.dumps(asdict(owner)))
    (base / f"{PREFIX}others").mkdir()
    left = subprocess.Popen(SLEEP, env={guard.MARK: str(base / f"{PREFIX}dead")})
    reap(base)
    assert left.wait(5) == -9
    stay = [f"{PREFIX}{name}" for name in ("alive", "elsewhere", "others")]
    assert sorted(path.name for path in base.iterdir()) == stay


def test_temporary_files_of_what_it_starts_go_with_the_folder(base, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    code = "import tempfile; print(tempfile.mkdtemp(), flush=True)"
    with session() as mine:
        with mine.marking():
            left = subprocess.run(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
            ).stdout.strip()
        assert left.startswith(f"{mine.folder}/")
        assert os.environ["TMPDIR"] == "/dev/shm"
    assert not os.path.exists(left)


def test_the_guard_ends_what_is_marked_once_its_command_is_gone(base):
    code = (
        "import os, subprocess, sys, time\n"
        "from orchestrator.cluster.session import session\n"
        "with session() as mine, mine.marking():\n"
        f"    child = subprocess.Popen({SLEEP!r}, start_new_session=True)\n"
        "    print(child.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(command.stdout.readline()))
    command.kill()
    command.wait()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


TOO_LONG = "a_directory_with_a_long_name_as_slurm_gives_to_jobs"


def test_a_folder_asked_for_that_is_too_long_for_sockets_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / TOO_LONG))
    with pytest.raises(UserError, match="that the system allows; set RAY_TMPDIR to a shorter"):
        check_limits()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", ".")
    (tmp_path / TOO_LONG).mkdir()
    monkeypatch.chdir(tmp_path / TOO_LONG)
    with pytest.raises(UserError, match=f"{TOO_LONG} has .* bytes in its path"), session():
        pass


@pytest.mark.parametrize("unusable", [f"/tmp/{TOO_LONG}", "/dev/null", "/does/not/exist"])
def test_a_usual_folder_that_will_not_do_is_passed_over(unusable, base, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr("orchestrator.cluster.session.USUAL", (unusable, str(base)))
    for name in ("", unusable):
        monkeypatch.setenv("TMPDIR", name)
        assert folder_of_ray() == base
    with session() as mine:
        assert mine.folder.parent == base
    monkeypatch.setattr("orchestrator.cluster.session.USUAL", (unusable,))
    with pytest.raises(UserError, match=f"none of {unusable}, .* set RAY_TMPDIR to such a folder"):
        check_limits()


def test_a_folder_of_the_greatest_length_leaves_room_for_the_longest_socket(base, monkeypatch):
    longest = base / ("x" * (LONGEST - len(str(base)) - 1))
    longest.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(longest))
    with session() as mine:
        assert len(f"{mine.folder}{BELOW}") == 107
        assert BELOW.startswith(settings(1, mine.folder)["_temp_dir"][len(str(mine.folder)) :])
    monkeypatch.setenv("RAY_TMPDIR", f"{longest}x")
    with pytest.raises(UserError, match=f"has {LONGEST + 1} bytes in its path"):
        folder_of_ray()


def test_a_folder_asked_for_that_is_not_there_is_made_but_not_to_try(base, monkeypatch):
    asked = base / "x" / "y"
    monkeypatch.setenv("RAY_TMPDIR", str(asked))
    check_limits()
    assert not asked.parent.exists()
    with session() as mine:
        assert mine.folder.parent == asked


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    with pytest.raises(UserError, match="Ray could not be started: it needs a folder"), session():
        pass


def test_a_server_that_no_longer_listens_is_named():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = Server("GCS of local Ray", *listening.getsockname())
        check([server])
    with pytest.raises(ClusterLost, match="the GCS of local Ray died"):
        check([server])


def answering(monkeypatch, answers):
    """Let each ask of a server end as the next of `answers` says; the last one stays."""
    asked = []

    def connect(address, timeout):
        answer = answers[min(len(asked), len(answers) - 1)]
        asked.append(timeout)
        if answer is not None:
            raise answer
        return contextlib.nullcontext()

    monkeypatch.setattr("socket.create_connection", connect)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return asked


@pytest.mark.parametrize(
    ("answers", "is_gone", "asks"),
    [
        ([ConnectionRefusedError()], True, 1),
        ([ConnectionResetError()], True, 1),
        ([TimeoutError(), None], False, 2),
        ([TimeoutError(), TimeoutError(), None], False, 3),
        ([TimeoutError()], True, 3),
        ([OSError(errno.EHOSTUNREACH, "")], True, 3),
        ([socket.gaierror(), None], False, 2),
        ([TimeoutError(), ConnectionRefusedError()], True, 2),
        ([OSError(errno.EMFILE, "")], False, 1),
    ],
)
def test_a_refusal_is_death_at_once_and_silence_only_three_times_in_a_row(
    monkeypatch, answers, is_gone, asks
):
    asked = answering(monkeypatch, answers)
    assert Server("GCS", "10.0.0.1", 1).is_gone() == is_gone
    assert len(asked) == asks


def test_two_silent_servers_of_a_local_ray_are_noticed_within_five_seconds():
    assert 2 * ASKS * LOCAL_S + POLL_S < 5 < ASKS * JOINED_S


def test_a_server_that_listens_without_answering_is_asked_all_its_time():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with contextlib.ExitStack() as waiting:
            for _ in range(3):  # fill the backlog: the kernel answers no more
                one = waiting.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            began = time.monotonic()
            assert Server("raylet", *full.getsockname(), 0.1).is_gone()
            assert time.monotonic() - began >= ASKS * 0.1
