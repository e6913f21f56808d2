"""The observed window of a run: vLLM's own profiler around it, and what its traces say.

It is torch's, on every worker. vLLM journals no collectives, so calls and their order come from the
traces: each kernel that the registry knows to communicate is a call of its step. Nothing here lets
a run fail; where nothing was seen there is a reason instead. A worker whose profiler fails keeps
that to its log, and leaves no trace.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

    from strategies.placement import Placement

# "rank1.1795707725349582502.pt.trace.json.gz", in earlier releases "dp0_pp0_tp1_dcp0_ep0_rank1..."
TRACE = re.compile(r"(?:.*_)?rank(\d+)\.\d+\.pt\.trace\.json(\.gz)?")
NO_TRACE = "vLLM's profiler left no trace of it; vLLM's log may say why"
READING_SHARE = 0.9  # of the time that a run has, after which no trace is read


class Seen(NamedTuple):
    """Table SPANS of a rank, or why there is none."""

    spans: pa.Table | None
    reason: str | None


@dataclass(slots=True)
class Window:
    """One observed run. folder: where vLLM's workers put their traces; they are deleted when they
    are read. deadline: of `time.monotonic`. reason: why nothing was seen."""

    engine: Any
    folder: Path
    deadline: float
    reason: str | None = None
    _ready: bool = field(default=False)

    @classmethod
    def of(cls, engine: Any, folder: Path, timeout_s: float) -> Window:
        """A window of a run that has `timeout_s` from now on."""
        return cls(engine, folder, time.monotonic() + READING_SHARE * timeout_s)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Profile what runs inside."""
        self._ready = self._try(self._clear, "no folder could be made for vLLM's traces")
        if self._ready:
            self._try(self.engine.start_profile, "vLLM's profiler did not start")
        yield
        if self._ready:  # some workers may have started theirs where others did not
            self._try(self.engine.stop_profile, "vLLM's profiler did not stop")

    def _clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def _try(self, act: Callable[[], object], failed: str) -> bool:
        """Whether `act` raises nothing. The first failure is the reason."""
        try:
            act()
        except Exception as error:
            self.reason = self.reason or f"{failed}: {_said(error)}"
            return False
        return True

    def seen(self, ranks: Sequence[int], placement: Placement, device: str) -> list[Seen]:
        """What each of `ranks` did, which are those of this replica in vLLM's order."""
        traces: dict[int, Path] = {}
        if self._ready:
            look = partial(traces.update, self._traces())
            self._try(look, "the folder of vLLM's traces could not be read")
        return [self._of(rank, traces.get(i), placement, device) for i, rank in enumerate(ranks)]

    def _traces(self) -> Iterator[tuple[int, Path]]:
        for path in sorted(self.folder.iterdir()):
            if found := TRACE.fullmatch(path.name):
                yield int(found[1]), path

    def _of(self, rank: int, path: Path | None, placement: Placement, device: str) -> Seen:
        if path is None:
            return Seen(None, self.reason or NO_TRACE)
        from workers.engines.vllm.spans import WANTED, spans_of
        from workers.probes.trace_files import read_trace

        try:
            trace = read_trace(path, WANTED[device], self.deadline)
            return Seen(spans_of(rank, trace, placement, device), None)
        except Exception as error:
            return Seen(None, f"its trace could not be read: {_said(error)}")
        finally:
            with suppress(OSError):
                path.unlink()


def _said(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"
