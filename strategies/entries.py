"""The entry points of what is installed, read once."""

from __future__ import annotations

import contextlib
import os
import sys
from functools import lru_cache
from importlib import metadata
from importlib.metadata import EntryPoints

Stamp = tuple[str, int, int]


def entry_points(group: str, name: str | None = None) -> EntryPoints:
    """As `importlib.metadata` has them, which reads the files of every package each time: a plan of
    one layout asks ten times. Here they are read again where `sys.path`, or what lies in one of its
    folders, is another."""
    found = _all(tuple(map(_stamp, sys.path))).select(group=group)
    return found if name is None else found.select(name=name)


@lru_cache(maxsize=1)
def _all(_: tuple[Stamp, ...]) -> EntryPoints:
    found = metadata.entry_points()
    return EntryPoints(one for group in found.groups for one in found.select(group=group))


def _stamp(folder: str) -> Stamp:
    """Changes with what lies in a folder, and with which folder it is: "" is the current one."""
    with contextlib.suppress(OSError):
        about = os.stat(folder or os.curdir)
        return folder, about.st_ino, about.st_mtime_ns
    return folder, 0, 0
