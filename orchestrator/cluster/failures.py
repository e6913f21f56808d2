"""What went wrong in a group of workers, in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ray.exceptions import RayActorError, RayError, RayTaskError

from strategies.errors import Refused
from workers.messages import OUT_OF_MEMORY

# Parts of the messages that a rank raises when it has lost another one.
LOST_PEER = (
    "Connection closed",
    "Connection reset",
    "connection was reset",
    "Broken pipe",
    "NCCL",
    "gloo",
    "TCPStore",
)
# A message that begins so says itself which rank it is about, perhaps not the one that raises it.
NAMES_RANK = re.compile(r"(the worker of )?rank \d")
# How a process ended of which Ray knows only that it is gone.
UNKNOWN_END = "it crashed or was killed; the kernel's log says whether memory ran out"


class RunFailed(Exception):
    """A build or a run failed. `reason` is one line, `detail` the full text. `lost_nodes`:
    addresses of nodes that the cluster lost meanwhile, with ranks of it."""

    def __init__(self, reason: str, detail: str = "", lost_nodes: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail or reason
        self.lost_nodes = tuple(lost_nodes)

    def within(self, what: str) -> RunFailed:
        """The same, and in what it came."""
        return RunFailed(f"{what}: {self.reason}", self.detail, self.lost_nodes)

    def ended_by(self, lack: Callable[[], str | None]) -> RunFailed:
        """The same; where it is unknown how a worker ended, with what it lacked."""
        why = lack() if UNKNOWN_END in self.reason else None
        if why is None:
            return self
        return RunFailed(self.reason.replace(UNKNOWN_END, why), self.detail, self.lost_nodes)


def explain(failures: Sequence[tuple[int, RayError]]) -> RunFailed:
    """The failure nearest to the cause, out of (rank, error) pairs. That a rank has lost its peer
    only shows that another rank failed."""
    rank, error = min(failures, key=lambda failure: (_remoteness(failure[1]), failure[0]))
    detail = "\n\n".join(
        f"rank {r}: {e}" for r, e in sorted(failures, key=lambda failure: failure[0])
    )
    if isinstance(error, RayActorError):
        return RunFailed(f"the worker of rank {rank} died{_exit_of(error)}", detail)
    cause = cause_of(error)
    said = first_line(cause)
    at = "" if NAMES_RANK.match(said) else f"rank {rank}: "
    if is_out_of_memory(cause):
        return RunFailed(f"{OUT_OF_MEMORY}: {at}{said}", detail)
    kind = "" if isinstance(cause, Refused) else f"{type(cause).__name__}: "  # it says it in words
    return RunFailed(f"{at}{kind}{said}", detail)


def cause_of(error: BaseException) -> BaseException:
    """What a task of Ray raised, or the error itself."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        return error.cause
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the host or of a GPU (torch's error is known by its name)."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _remoteness(error: RayError) -> int:
    """How far an error is from the cause: 0 for a cause, more for an error that another rank's
    failure may have brought about."""
    cause = cause_of(error)
    if is_out_of_memory(cause):
        return 0
    if isinstance(error, RayActorError):
        return 1
    echo = type(cause).__name__.startswith("Dist") or any(sign in str(cause) for sign in LOST_PEER)
    return 3 if echo else 2


def _exit_of(error: RayActorError) -> str:
    """How the process ended, as far as Ray knows."""
    if "low on memory" in str(error):
        return " (ended by Ray: the node was low on memory)"
    found = re.search(r"Worker exit detail: ([^\n]+)", str(error))
    if found is None or "connection error" in found.group(1):
        return f" ({UNKNOWN_END})"
    return f" ({found.group(1).strip().split('. ')[0].rstrip('.')})"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that is not empty, else the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
