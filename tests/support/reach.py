"""What others could reach of processes: the sockets that they listen on, the files they write, and
their cores."""

from __future__ import annotations

import contextlib
import ipaddress
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Listener:
    """A TCP or UDP socket that waits for others. process: the name of its process."""

    process: str
    pid: int
    address: str
    port: int

    @property
    def on_loopback(self) -> bool:
        address = ipaddress.ip_address(self.address)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback


@dataclass
class Reach:
    """All that was seen whenever `look` was called.

    sockets, written: paths of sockets and of files open for writing -> whether others can use them.
    tokens: files that RAY_AUTH_TOKEN_PATH names -> their mode. niceness: process id -> how far it
    gives way.
    """

    home: Path
    listeners: set[Listener] = field(default_factory=set)
    sockets: dict[str, bool] = field(default_factory=dict)
    written: dict[str, bool] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    niceness: dict[int, int] = field(default_factory=dict)

    def look(self, processes: Iterable[psutil.Process]) -> None:
        """Add what these processes have now."""
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                self._look_at(process)

    def ports_of(self, process: str) -> list[int]:
        """How many ports each process of that name listened on."""
        pids = {one.pid for one in self.listeners if one.process.startswith(process)}
        return [len({one.port for one in self.listeners if one.pid == pid}) for pid in pids]

    def _look_at(self, process: psutil.Process) -> None:
        name = process.name()
        self.niceness[process.pid] = process.nice()
        for one in process.net_connections("inet"):
            waits = one.status == psutil.CONN_LISTEN or (
                one.status == psutil.CONN_NONE and not one.raddr
            )
            if waits and one.laddr:
                self.listeners.add(Listener(name, process.pid, one.laddr.ip, one.laddr.port))
        for one in process.net_connections("unix"):
            if one.laddr:
                self.sockets[one.laddr] = self.sockets.get(one.laddr, False) or usable(one.laddr)
        for file in process.open_files():
            if file.mode != "r" and not Path(file.path).is_relative_to(self.home):
                self.written[file.path] = open_to_others(Path(file.path))
        token = process.environ().get("RAY_AUTH_TOKEN_PATH")
        if token is not None and Path(token).exists():
            self.tokens[token] = stat.S_IMODE(Path(token).stat().st_mode)


def usable(socket: str) -> bool:
    """Whether others can connect to a unix socket. One without a path in the file system (they
    begin with @) has no mode: everybody can."""
    return socket.startswith("@") or open_to_others(Path(socket))


def open_to_others(path: Path, inside: Path = Path("/")) -> bool:
    """Whether neither its own mode nor that of a folder above it, up to `inside`, keeps others from
    opening it."""
    if not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return False
    above = [folder for folder in path.parents if folder.is_relative_to(inside)]
    return all(folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH) for folder in above)
