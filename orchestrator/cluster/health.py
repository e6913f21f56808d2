"""Whether the servers of Ray still run that nothing works without.

A process that has died no longer listens, and the kernel says so at once, on this machine and on
another one. Of a machine that is down, or cut off, nothing is heard at all. Ray itself waits a
minute for a GCS that is gone, and then ends the process that waits.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import ClusterLost

ASKS = 3  # without an answer, one after the other: a busy machine or a network may miss one
LOCAL_S, JOINED_S = 0.7, 5.0  # for an answer
# This process cannot ask: that says nothing of the server.
OURS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class Server:
    """A process of Ray that listens. name: as a sentence calls it, "raylet of local Ray". answer_s:
    how long an answer may take."""

    name: str
    host: str
    port: int
    answer_s: float = LOCAL_S

    def is_gone(self) -> bool:
        """Whether nobody listens any more: its kernel says so, or nothing is heard from there for
        ASKS times `answer_s`."""
        for _ in range(ASKS):
            again = time.monotonic() + self.answer_s
            try:
                with socket.create_connection((self.host, self.port), timeout=self.answer_s):
                    return False
            except ConnectionError:  # refused or reset
                return True
            except OSError as error:
                if error.errno in OURS:
                    return False
            time.sleep(max(0.0, again - time.monotonic()))
        return True


def check(servers: Sequence[Server]) -> None:
    """Raise ClusterLost where one of `servers` is gone."""
    gone = [server.name for server in servers if server.is_gone()]
    if gone:
        raise ClusterLost(f"the {' and the '.join(gone)} died")
