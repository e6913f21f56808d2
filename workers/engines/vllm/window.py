"""The observed window of a run: vLLM's own profiler around it, and what its traces say.

It is torch's, on every worker. vLLM journals no collectives, so calls and their order come from the
traces: each kernel that the registry knows to communicate is a call of its step. Nothing here lets
a run fail; where nothing was seen there is a reason instead.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

    from strategies.placement import Placement

# "rank1.1795707725349582502.pt.trace.json.gz", in earlier releases "dp0_pp0_tp1_dcp0_ep0_rank1..."
TRACE = re.compile(r"(?:.*_)?rank(\d+)\.\d+\.pt\.trace\.json(\.gz)?")
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
    _begun: bool = field(default=False)

    @classmethod
    def of(cls, engine: Any, folder: Path, timeout_s: float) -> Window:
        """A window of a run that has `timeout_s` from now on."""
        return cls(engine, folder, time.monotonic() + READING_SHARE * timeout_s)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Profile what runs inside."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._begun = self._try(self.engine.start_profile, "start")
        yield
        if self._begun:
            self._try(self.engine.stop_profile, "stop")

    def _try(self, act: Callable[[], object], what: str) -> bool:
        try:
            act()
        except Exception as error:
            self.reason = f"vLLM's profiler did not {what}: {_said(error)}"
            return False
        return True

    def seen(self, ranks: Sequence[int], placement: Placement, device: str) -> list[Seen]:
        """What each of `ranks` did, which are those of this replica in vLLM's order."""
        traces = {int(found[1]): path for path, found in self._traces()}
        return [self._of(rank, traces.get(i), placement, device) for i, rank in enumerate(ranks)]

    def _traces(self) -> Iterator[tuple[Path, re.Match[str]]]:
        for path in sorted(self.folder.iterdir()):
            if found := TRACE.fullmatch(path.name):
                yield path, found

    def _of(self, rank: int, path: Path | None, placement: Placement, device: str) -> Seen:
        if path is None:
            return Seen(None, self.reason or "vLLM's profiler left no trace of it")
        from workers.engines.vllm.spans import WANTED, spans_of
        from workers.probes.trace_files import read_trace

        try:
            trace = read_trace(path, WANTED[device], self.deadline)
            return Seen(spans_of(rank, trace, placement, device), None)
        except Exception as error:
            return Seen(None, f"its trace could not be read: {_said(error)}")
        finally:
            path.unlink(missing_ok=True)


def _said(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"
