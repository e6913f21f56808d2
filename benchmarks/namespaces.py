"""Machines in the small: namespaces of this one, each with its own network, processes and host
name, joined through a switch by links of a known rate. They share its cores, its clock and its
files, all but Ray's in /tmp/ray.

Needs Linux, root (or the right to make namespaces), iproute2 and util-linux. The rate is what
`tc tbf` lets a machine send; the delay, where one is asked for, is `tc netem`'s, which not every
kernel has.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NETWORK = "10.213.7"
INTERFACE = "uplink"
LIVES_S = 24 * 3600  # at most, should whoever made it be killed
QUEUE = 16 << 20  # bytes that wait for a link, so that nothing is dropped
BURST_S = 0.5e-3  # of a link's rate that may be sent at once
LEAST_BURST = 3200  # bytes: two Ethernet frames
PROGRAMS = ("ip", "tc", "unshare", "nsenter")


@dataclass(frozen=True)
class Machine:
    """One of them. pid: the first process in it, whose end is that of all others there."""

    name: str
    address: str
    pid: int

    def command(self, *words: object) -> list[str]:
        """What runs `words` in it."""
        inside = ("--net", "--pid", "--mount", "--uts")
        return ["nsenter", f"--target={self.pid}", *inside, "--", *map(str, words)]

    def limit(self, bytes_s: float | None, delay_s: float = 0.0) -> None:
        """Let it send so many bytes a second; None: as many as the kernel can. delay_s: of each
        packet. Raises CalledProcessError where the kernel has no such queue."""
        remove = self.command("tc", "qdisc", "del", "dev", INTERFACE, "root")
        subprocess.run(remove, capture_output=True)
        if delay_s:
            netem = ("netem", "delay", f"{delay_s * 1e6:.0f}us", "limit", 100_000)
            called(self.command("tc", "qdisc", "add", "dev", INTERFACE, "root", *netem))
        elif bytes_s is not None:
            burst = max(LEAST_BURST, int(bytes_s * BURST_S))
            rate = ("tbf", "rate", f"{bytes_s * 8:.0f}bit", "burst", burst, "limit", QUEUE)
            called(self.command("tc", "qdisc", "add", "dev", INTERFACE, "root", *rate))

    def unplug(self) -> None:
        """Take its link away: it runs on, and nothing comes or goes."""
        called(self.command("ip", "link", "set", INTERFACE, "down"))

    def switch_off(self) -> None:
        """End every process in it at once, as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """So many machines, a, b, c ..., whose links are as fast as the kernel is."""
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_namespace("switch"))
        called(_in(switch, "ip", "link", "add", "switch", "type", "bridge"))
        called(_in(switch, "ip", "link", "set", "switch", "up"))
        made = []
        for number in range(count):
            name = "abcdefgh"[number]
            pid = stack.enter_context(_namespace(name))
            _plug_in(switch, pid, name, f"{NETWORK}.{number + 1}")
            made.append(Machine(name, f"{NETWORK}.{number + 1}", pid))
        yield made


def why_not() -> str | None:
    """Why there can be none here; None where they can be."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} is not installed"
    try:
        with machines(1) as (one,):
            one.limit(1e6)
    except (OSError, RuntimeError) as error:
        return f"namespaces with links of a limited rate cannot be made here: {error}"
    return None


def called(command: Sequence[object]) -> str:
    """What it prints. Raises RuntimeError with what it complains of."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def _in(pid: int, *words: object) -> list[object]:
    return ["nsenter", f"--target={pid}", "--net", "--", *words]


@contextlib.contextmanager
def _namespace(name: str) -> Iterator[int]:
    """A machine without a link: the process id of its first process."""
    words = ("--net", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
    own_files = "mkdir -p /tmp/ray && mount -t tmpfs ray /tmp/ray"
    stay = (
        f"hostname {name} && ip link set lo up && {own_files} && echo ready && exec sleep {LIVES_S}"
    )
    around = subprocess.Popen(
        ["unshare", *words, "sh", "-c", stay], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        if around.stdout is None or around.stdout.readline() != b"ready\n":
            assert around.stderr is not None
            raise RuntimeError(around.stderr.read().decode().strip())
        yield _child_of(around.pid)
    finally:
        around.kill()
        around.communicate()


def _child_of(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return int(file.read().split()[0])


def _plug_in(switch: int, pid: int, name: str, address: str) -> None:
    port = f"to-{name}"
    ends = ("type", "veth", "peer", "name", INTERFACE, "netns", pid)
    called(_in(switch, "ip", "link", "add", port, *ends))
    called(_in(switch, "ip", "link", "set", port, "master", "switch", "up"))
    called(_in(pid, "ip", "address", "add", f"{address}/24", "dev", INTERFACE))
    called(_in(pid, "ip", "link", "set", INTERFACE, "up"))
    called(_in(pid, "ip", "route", "add", "default", "dev", INTERFACE))
    deadline = time.monotonic() + 30
    while "state UP" not in called(_in(pid, "ip", "link", "show", INTERFACE)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the link of {name} does not come up")
        time.sleep(0.05)
