"""Where a command ends that cannot print what it found, or is given what has no end."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator import cli
from orchestrator.commands.boundary import BAD_INPUT, UNFORESEEN
from orchestrator.errors import UserError
from orchestrator.node import fabric


@pytest.mark.parametrize("command", [["strategies"], ["strategies", "--json"], ["--help"]])
def test_a_stdout_that_is_full_is_one_line_and_python_does_not_complain_at_its_end(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(SystemExit) as ended:
            cli.main(command)
        full.flush()  # as Python does when it ends
    assert ended.value.code == BAD_INPUT
    words = "error: the output cannot be written: No space left on device\n"
    assert capsys.readouterr().err == words


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        *(
            (OSError(number, os.strerror(number)), BAD_INPUT, f"written: {os.strerror(number)}")
            for number in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)
        ),
        (OSError(errno.ENOSPC, "full", "a.arrow"), BAD_INPUT, "error: a.arrow: full"),
        (OSError(errno.EBADF, "bad"), UNFORESEEN, "this should not have happened: OSError"),
    ],
)
def test_only_output_that_finds_no_room_is_an_error_of_the_output(
    error: OSError, status: int, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("orchestrator.commands.node.strategies", fail)
    done = CliRunner().invoke(cli.main, ["strategies"])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert words in done.stderr
    assert bool(list(tmp_path.iterdir())) == (status == UNFORESEEN)


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_a_calibration_that_is_no_regular_file_is_refused_unread(kind: str, tmp_path: Path) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "fabric.arrow"
    if kind == "pipe":
        os.mkfifo(path)
    for asked in {path, path.parent if kind == "pipe" else path}:
        with pytest.raises(UserError, match=f"{path} is no regular file; give the one that"):
            fabric.load(asked)
    with pytest.raises(UserError, match="holds no calibration that can be read"):
        fabric.load(tmp_path / "missing")
