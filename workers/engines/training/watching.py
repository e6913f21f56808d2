"""In which collective a rank is: told where its run goes no further, for the driver to read.

DDP, FSDP2, DTensor, pipelining and DeepSpeed call collectives by themselves; all of them pass the
flight recorder of torch's process groups, which is on by default. That of gloo leaves out sends and
receives, for which a pipeline waits in a function of its own.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from workers.engines.training.counting import axes_by_ranks, resolve

if TYPE_CHECKING:
    from workers.rank import RankContext

LOOK_S = 1.0
DUMPS = {"nccl": "_dump_nccl_trace", "gloo": "_dump_fr_trace"}  # of torch._C._distributed_c10d
PIPELINES = "torch.distributed.pipelining"


@contextlib.contextmanager
def watched(context: RankContext) -> Iterator[None]:
    """Inside, a thread looks every LOOK_S seconds whether a step has ended since, and tells
    otherwise whether this rank is in a collective, and in which."""
    if not dist.is_initialized():
        yield
        return
    ended, watch = threading.Event(), _Watch(context, threading.get_ident())
    thread = threading.Thread(target=watch.look, args=(ended,), name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        context.progress.standing.waits(False)


class _Watch:
    """watched: the thread that trains."""

    def __init__(self, context: RankContext, watched: int) -> None:
        self._standing, self._thread = context.progress.standing, watched
        self._axes = axes_by_ranks(context.placement, context.rank)
        self._dump = _dump_of(dist.get_backend())

    def look(self, ended: threading.Event) -> None:
        """Look until the run has ended."""
        before = -1
        while not ended.wait(LOOK_S):
            stands = self._standing.launched == before
            before = self._standing.launched
            name = self._pending() if stands else None
            self._standing.waits(name is not None, name or "")

    def _pending(self) -> str | None:
        """The collective that this rank began first of those that have not ended, as "all_gather
        over fsdp"; None where there is none."""
        found = pickle.loads(self._dump(True, False, True)) if self._dump else {}
        for one in found.get("entries", ()):
            # What is sent in a batch has no end of its own there: the frame tells of it.
            is_alone = any(name in one["profiling_name"] for name in ("send", "recv"))
            if not is_alone and not one["retired"] and one["state"] != "completed":
                return self._named(one)
        frame = sys._current_frames().get(self._thread)
        module = str(frame.f_globals.get("__name__", "")) if frame else ""
        return "a send or a receive over pp" if module.startswith(PIPELINES) else None

    def _named(self, entry: Mapping[str, Any]) -> str:
        op = str(entry["profiling_name"]).partition(":")[2].strip("_").lower()
        try:
            ranks = dist.get_process_group_ranks(resolve(entry["process_group"][0]))
        except (RuntimeError, ValueError):  # a group that is gone
            return op
        axis = self._axes.get(tuple(sorted(ranks)))
        return f"{op} over {axis}" if axis else f"{op} over ranks {', '.join(map(str, ranks))}"


def _dump_of(backend: str) -> Any:
    """What gives the collectives that the flight recorder keeps; None in a torch without it."""
    from torch._C import _distributed_c10d

    return getattr(_distributed_c10d, DUMPS.get(backend, ""), None)
