"""Which process somebody was, and whether it still runs.

A process id is given again, and the time of day at which a process began moves whenever the clock
is set. So a process is known by its id, by the clock ticks from the boot of its machine to its
start, and by that boot.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
STATE, START = 3, 22  # fields of /proc/PID/stat, counted from 1; see proc(5)
ENDED = ("Z", "X")  # states; one that has ended stays until its parent asks for its status


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process. ticks: from the boot of its machine to its start. boot: the id of that boot."""

    host: str
    pid: int
    ticks: int
    boot: str

    @classmethod
    def here(cls) -> ProcessId:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), start_ticks(os.getpid()) or 0, boot_id())

    @classmethod
    def read(cls, fields: object) -> ProcessId:
        """One from what `dataclasses.asdict` made of it. Raises KeyError, TypeError or ValueError
        where it is something else."""
        if not isinstance(fields, dict):
            raise TypeError(f"a process is an object, this is {type(fields).__name__}")
        host, boot = str(fields["host"]), str(fields["boot"])
        return cls(host, int(fields["pid"]), int(fields["ticks"]), boot)

    @property
    def is_of_this_host(self) -> bool:
        """Whether its host has the name of this one."""
        return self.host == socket.gethostname()

    def may_run(self, of_this_machine: bool) -> bool:
        """Whether it may still run. Of a process of another host nobody knows.

        of_this_machine: who wrote this down did it on this machine for certain. Then another boot
        is an earlier one, and its processes are gone. In a folder that machines share it may be
        the boot of another machine that has the same name.
        """
        if not self.is_of_this_host:
            return True
        if self.boot != boot_id():
            return not of_this_machine
        return start_ticks(self.pid) == self.ticks


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot; None where none of this id runs. 0
    without /proc, so that whoever has the id counts as the same process."""
    if not (PROC / "self" / "stat").exists():
        import psutil  # readers of results know no process

        return 0 if psutil.pid_exists(pid) else None
    try:
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may have spaces and brackets
    return None if fields[0] in ENDED else int(fields[START - STATE])


def boot_id() -> str:
    """What this boot of the machine is called; empty where the system does not say."""
    try:
        return (PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
    except OSError:
        return ""
