"""The spans of an observed run as a Chrome trace, which Perfetto and chrome://tracing open."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Deployment, Scenario
from orchestrator.report.charts.views import first_start
from orchestrator.report.output import compact_json
from orchestrator.store.names import safe_name
from orchestrator.store.schema import CellKey
from orchestrator.store.store import Store
from workers.intervals import Span
from workers.records import COMPUTE, DECODE, PREFILL, SPANS, SpanRow
from workers.rows import grouped

STEPS, COMPUTING, COMMUNICATING = 0, 1, 2  # the lines of a rank, from top to bottom
LINES = ("steps", "compute", "communication")
# Names of chrome://tracing's palette.
COLOURS = {PREFILL: "thread_state_iowait", DECODE: "good"}
Event = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch on one line of a rank. Times are on the clock of the spans, in us.

    Perfetto colours slices by their name, so that begins with the phase; chrome://tracing by
    `cname`.
    """

    name: str
    rank: int
    line: int
    phase: str
    start_us: float
    end_us: float
    about: Mapping[str, object]

    def event(self, origin_us: float) -> Event:
        """The complete event of the trace format, in us from `origin_us`."""
        return {
            "ph": "X",
            "name": self.name,
            "cat": self.phase,
            "cname": COLOURS.get(self.phase, "generic_work"),
            "pid": self.rank,
            "tid": self.line,
            "ts": self.start_us - origin_us,
            "dur": self.end_us - self.start_us,
            "args": {**self.about, "phase": self.phase},
        }


def write_traces(folder: Path) -> list[Path]:
    """One `traces/<cell>.json.gz` per observed cell, of its first start: a process per rank, with a
    line each for LINES.

    Raises UserError where no cell was observed, or they cannot be written.
    """
    table = Store(folder).read(SPANS.name)
    if table is None or not table.num_rows:
        raise UserError(
            f"{folder} holds no spans: none of its cells was observed, or it trained: no spans are "
            "kept of training"
        )
    cells = {_name(cell): places for cell, places in first_start(table).items()}
    traces = folder / "traces"
    try:
        traces.mkdir(exist_ok=True)
        return [
            _write(traces / f"{safe_name(name)}.json.gz", SPANS.rows(table.take(places)))
            for name, places in sorted(cells.items())
        ]
    except OSError as error:
        raise UserError(f"traces cannot be written to {traces}: {error.strerror}") from error


def _name(cell: CellKey) -> str:
    """The cell's name, as in the other tables' parts."""
    deployment = Deployment(
        cell.model, cell.strategy, cell.engine, cell.dtype, cell.quantization, cell.ablation
    )
    return Cell(deployment, Scenario(cell.scenario, 0, 0), cell.max_concurrency).name


def _write(path: Path, spans: Sequence[SpanRow]) -> Path:
    trace = compact_json({"traceEvents": events(spans)})
    path.write_bytes(gzip.compress(trace.encode()))
    return path


def events(spans: Sequence[SpanRow]) -> list[Event]:
    """Trace events, in microseconds from the first span; `pid` is the rank, with a line each for
    LINES. A call that was not seen has no slice."""
    seen = [(span, span.when) for span in spans if span.when]
    origin = min((start for _, (start, _) in seen), default=0.0)
    headings = [event for rank in sorted({s.rank for s in spans}) for event in _headings(rank)]
    slices = [*_steps(seen), *(_span(span, when) for span, when in seen)]
    return [*headings, *(one.event(origin) for one in slices)]


def _headings(rank: int) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}}
    for line, name in enumerate(LINES):
        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": line, "args": {"name": name}}


def _steps(seen: Iterable[tuple[SpanRow, Span]]) -> Iterator[Slice]:
    steps = grouped(seen, lambda one: (one[0].rank, one[0].phase, one[0].step))
    for (rank, phase, step), mine in steps.items():
        # A send may last into the next step, so it is not counted in the length of its own.
        own = [when for span, when in mine if span.kind != "send"] or [when for _, when in mine]
        yield Slice(
            f"{phase} step {step}",
            rank,
            STEPS,
            phase,
            min(start for start, _ in own),
            max(end for _, end in own),
            {"step": step},
        )


def _span(span: SpanRow, when: Span) -> Slice:
    computes = span.kind == COMPUTE
    fused = " fused" if span.fused else ""
    axis = f" {span.axis}" if span.axis and not computes else ""
    return Slice(
        f"{span.phase} {span.kind}{fused}{axis}",
        span.rank,
        COMPUTING if computes else COMMUNICATING,
        span.phase,
        *when,
        {"step": span.step, "axis": span.axis, "bytes": span.bytes},
    )
