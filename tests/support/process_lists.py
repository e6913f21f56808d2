"""Processes below another, while some of them end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import psutil


def named(processes: Iterable[psutil.Process]) -> Iterator[tuple[psutil.Process, str, list[str]]]:
    """Each process with its name and its command line. Those that end meanwhile are left out."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            name, words = process.name(), process.cmdline()
            yield process, name, words


def below(pid: int) -> list[tuple[psutil.Process, str, list[str]]]:
    """The processes that descend from one; none where it has ended. See `named`."""
    with contextlib.suppress(psutil.Error):
        return list(named(psutil.Process(pid).children(recursive=True)))
    return []
