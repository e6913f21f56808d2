"""What is installed is read once, and again where it has changed."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest

from strategies import entries
from strategies.entries import entry_points

GROUP = "tests.of_entries"


def install(folder: Path, name: str) -> None:
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {name}:made\n")
    before = folder.stat().st_mtime_ns  # its clock may stand still between two of these
    os.utime(folder, ns=(before, before + 10**9 * (1 + len(list(folder.iterdir())))))


def found() -> list[str]:
    return sorted(point.name for point in entry_points(group=GROUP))


def test_what_is_installed_later_is_found_and_what_leaves_the_path_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "first")
    assert found() == []
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        assert found() == ["first"]
        install(tmp_path, "second")
        assert found() == ["first", "second"]
        assert [one.value for one in entry_points(group=GROUP, name="second")] == ["second:made"]
    assert found() == []


def test_the_current_folder_counts_as_the_one_that_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        install(tmp_path / name, name)
    monkeypatch.syspath_prepend("")
    for name in ("here", "there"):
        monkeypatch.chdir(tmp_path / name)
        assert found() == [name]


def test_they_are_those_of_python_with_their_packages_and_are_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = "orchestrator.strategies"
    mine, pythons = entry_points(group=group), metadata.entry_points(group=group)
    assert [*mine] == [*pythons] != []
    assert {point.dist.name for point in mine if point.dist} == {"shard-orchestrator"}
    monkeypatch.setattr(entries.metadata, "entry_points", lambda: pytest.fail("read again"))
    assert [*entry_points(group=group)] == [*mine]
