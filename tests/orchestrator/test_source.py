"""The state of the source: its commit, and whether it was changed since."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator import cli
from orchestrator.run import source as module
from orchestrator.run.source import Source, remark, source


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one file in its one commit."""
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_checkout_is_clean_until_a_tracked_file_changes(checkout: Path) -> None:
    found = source(checkout)
    assert found is not None
    assert (len(found.commit), found.dirty) == (40, False)
    (checkout / "untracked").write_text("two")
    assert source(checkout) == found
    (checkout / "file").write_text("two")
    assert source(checkout) == Source(found.commit, dirty=True)


def test_outside_of_a_checkout_nothing_is_known(tmp_path: Path) -> None:
    assert source(tmp_path) is None
    assert remark(None) is None


def test_a_clean_tree_is_not_talked_about() -> None:
    assert remark(Source("0123456789abcdef", dirty=False)) is None


def test_submit_says_on_stderr_that_the_tree_is_dirty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ["submit", "--strategy", "tp1", "--model", "tiny", "--device", "cpu", "--dry-run"]
    for dirty in (True, False):
        monkeypatch.setattr(module, "source", lambda dirty=dirty: Source("0123456789abcdef", dirty))
        done = CliRunner().invoke(cli.main, [*command, "--result-dir", str(tmp_path)])
        assert done.exit_code == 0, done.output
        said = "note: the source differs from its commit 0123456789;"
        assert (said in done.stderr) is dirty
        assert said not in done.stdout


def test_a_run_that_is_refused_is_told_why_and_nothing_of_the_tree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "source", lambda: Source("0123456789abcdef", dirty=True))
    for flags in (["--fabric", str(tmp_path / "none.arrow")], ["--strategy", "tp3"]):
        command = ["submit", "--model", "tiny", "--device", "cpu", "--dry-run", *flags]
        done = CliRunner().invoke(cli.main, command)
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
