"""Chrome traces as torch's profiler writes them into files, read piece by piece: one of a minute
has hundreds of megabytes of text."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from workers.probes.trace import TraceEvent, event_of, origin_us, written

PIECE = 2**22  # characters
BETWEEN = re.compile(r"[\s,]*")
BASE = re.compile(r'"baseTimeNanoseconds":\s*(\d+)')
EVENTS = re.compile(r'"traceEvents":\s*\[')


@dataclass(frozen=True, slots=True)
class TraceFile:
    """What was read of a trace. origin: of `origin_us`."""

    events: list[TraceEvent]
    origin: float


def exported(
    profiler: torch.profiler.profile, wanted: Container[str], deadline: float
) -> TraceFile:
    """What a profiler saw. Raises as `read_trace` does."""
    with written(profiler) as path:
        return read_trace(path, wanted, max(deadline, time.monotonic() + 1))


def read_trace(path: Path, wanted: Container[str], deadline: float) -> TraceFile:
    """The complete events of the categories `wanted` in a trace, which may be gzipped.

    deadline: of `time.monotonic`. Raises TimeoutError when it is over, ValueError where this is no
    whole trace, and OSError or EOFError where the file cannot be read.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", errors="replace") as file:
        pieces = _Pieces(file, deadline)
        found = (event_of(entry, wanted) for entry in pieces.entries())
        events = [event for event in found if event is not None]
    return TraceFile(events, origin_us(pieces.base_ns))


class _Pieces:
    """The text of a trace, a piece at a time. base_ns: known once its entries are read, as it is
    written before or after them."""

    def __init__(self, file: IO[str], deadline: float) -> None:
        self._file = file
        self._deadline = deadline
        self._text = ""
        self.base_ns = 0

    def entries(self) -> Iterator[Any]:
        """The entries of "traceEvents", in order."""
        while not (begun := EVENTS.search(self._text)):
            self._more("it has no events")
        self._look_for_base(self._text[: begun.start()])
        decoder, at = json.JSONDecoder(), begun.end()
        while True:
            at = self._skip(at)
            if at == len(self._text):
                self._text, at = "", 0
                self._more("it is cut short")
            elif self._text[at] == "]":
                self._look_for_base(self._text[at:] + self._file.read())
                return
            else:
                entry, at = self._decoded(decoder, at)
                yield entry

    def _decoded(self, decoder: json.JSONDecoder, at: int) -> tuple[Any, int]:
        """The entry that begins at `at`, and where it ends in the text that is then held."""
        while True:
            try:
                return decoder.raw_decode(self._text, at)
            except json.JSONDecodeError:
                self._text, at = self._text[at:], 0
                self._more("it is cut short or not JSON")

    def _skip(self, at: int) -> int:
        found = BETWEEN.match(self._text, at)
        return found.end() if found else at

    def _look_for_base(self, text: str) -> None:
        if found := BASE.search(text):
            self.base_ns = int(found[1])

    def _more(self, missing: str) -> None:
        if time.monotonic() > self._deadline:
            raise TimeoutError("there was no time left to read it")
        piece = self._file.read(PIECE)
        if not piece:
            raise ValueError(missing)
        self._text += piece
