"""Whether the servers of Ray still run that nothing works without.

A process that has died no longer listens, and the kernel says so at once, on this machine and on
another one. Ray itself waits a minute for a GCS that is gone, and then ends the process that waits.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import ClusterLost

ANSWER_S = 2.0
OURS = (errno.EMFILE, errno.ENFILE)  # this process cannot ask: that says nothing of the server


@dataclass(frozen=True, slots=True)
class Server:
    """A process of Ray that listens. name: as a sentence calls it, "raylet of local Ray"."""

    name: str
    host: str
    port: int

    def is_gone(self) -> bool:
        """Whether nobody listens any more."""
        return not self._answers() and not self._answers()

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=ANSWER_S):
                return True
        except OSError as error:
            return error.errno in OURS


def check(servers: Sequence[Server]) -> None:
    """Raise ClusterLost where one of `servers` is gone."""
    gone = [server.name for server in servers if server.is_gone()]
    if gone:
        raise ClusterLost(f"the {' and the '.join(gone)} died")
