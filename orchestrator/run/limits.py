"""What this process may take of the machine: less than Ray needs, and its processes die one by one
without saying why."""

from __future__ import annotations

import resource

from orchestrator.cluster.session import folder_of_ray
from orchestrator.errors import UserError
from orchestrator.store.folders import check_writable

LEAST_FILES = 256
LEAST_ADDRESSES = 8 << 30  # bytes; Ray's processes and torch reserve more than they use


def check_limits() -> None:
    """Raise UserError where this process may open too few files (`ulimit -n`) or may have too
    little address space (`ulimit -v`), or there is no folder for Ray's files: one that can be
    written, and is short enough."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if _is_less(files, LEAST_FILES):
        raise UserError(
            f"a process may open {files} files here, and Ray opens up to {LEAST_FILES}; give "
            f"`ulimit -n {LEAST_FILES}` before the command"
        )
    memory = resource.getrlimit(resource.RLIMIT_AS)[0]
    if _is_less(memory, LEAST_ADDRESSES):
        raise UserError(
            f"a process may have {memory >> 20} MiB of addresses here, and Ray and torch reserve "
            f"{LEAST_ADDRESSES >> 20} MiB; give `ulimit -v unlimited` before the command, and "
            "limit memory by a control group"
        )
    check_writable(folder_of_ray(), "Ray's files", "RAY_TMPDIR")


def _is_less(limit: int, needed: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < needed
