"""A process of its own that outlives the command beside it: once the pipe to that is closed, it
kills every process that carries the mark of a session. Usage: guard.py FOLDER.

Ray's own agents stay for a minute after a driver that was killed. It imports no more than it needs,
because it stays in memory as long as a sweep takes.
"""

from __future__ import annotations

import os
import signal
import sys
import time

MARK = "ORCHESTRATOR_RAY_SESSION"
SCANS, PAUSE_S = 4, 0.3  # a process that was being started shows up in a later scan


def marked(folder: str) -> list[int]:
    """Process ids of those whose environment names `folder` as their session, this one left out.
    Empty where /proc is not what Linux has."""
    wanted = f"{MARK}={folder}\0".encode()  # a process that names itself overwrites what is around
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                is_ours = wanted in file.read()
        except OSError:
            continue
        if is_ours and int(pid) != os.getpid():
            found.append(int(pid))
    return found


def main(folder: str) -> None:
    """Wait for the end of the pipe, then kill."""
    sys.stdin.buffer.read()
    for _ in range(SCANS):
        found = marked(folder)
        if not found:
            return
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1])
