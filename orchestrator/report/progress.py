"""How far the driver is: a live table in a terminal, elsewhere a line per finished run. What is
known is kept beside the results too, for `orchestrator watch`."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live as Display
from rich.text import Text

from orchestrator.analysis.summary import Measured
from orchestrator.analysis.training.rows import Trained
from orchestrator.experiment import layout_name
from orchestrator.report import live as showing
from orchestrator.report.text import fixed
from orchestrator.store import live as keeping
from orchestrator.store.live import Live
from orchestrator.store.schema import COMPLETED
from workers.device import DevicesNow
from workers.units import significant

A_SECOND = 2  # times that the table is drawn


class HasDashboard(Protocol):
    """What is shown of a cluster."""

    @property
    def dashboard(self) -> Future[str | None]:
        """Where its dashboard answers, once it does; None without one."""
        ...

    @property
    def logs(self) -> str | None:
        """The folder of a local Ray; None of a cluster that was joined."""
        ...


class RunProgress:
    """Shows the progress that the driver reports; see `orchestrator.run.progress.Progress`.

    devices: reads the GPUs of this machine; None where it has none.
    """

    def __init__(
        self, console: Console, devices: Callable[[], DevicesNow | None] = lambda: None
    ) -> None:
        self._console, self._devices = console, devices
        self._live: Live | None = None
        self._pulse: keeping.Pulse | None = None
        self._told: set[str] = set()  # lines about the cluster
        self._display = Display(
            console=console, refresh_per_second=A_SECOND, transient=True, get_renderable=self._drawn
        )

    def __enter__(self) -> RunProgress:
        if self._console.is_terminal:
            self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.stop()
        self._end()

    def begin(self, live: Live) -> None:
        """What is to be done, and what has a result already."""
        self._end()  # of the rate before, where rates are searched
        self._live = live
        if live.skipped:
            whole = live.runs + live.skipped
            self.note(f"{live.skipped} of {whole} runs have a result and are skipped.")
        if live.runs:
            self.note(showing.beginning(live))

    def connected(self, cluster: HasDashboard) -> None:
        """The cluster is connected; its dashboard may still start."""
        if cluster.logs:
            self._tell(f"Ray session: {cluster.logs} (kept where a run fails)")
        cluster.dashboard.add_done_callback(self._tell_dashboard)

    def _tell_dashboard(self, dashboard: Future[str | None]) -> None:
        if dashboard.cancelled():  # Ray has ended before
            return
        if error := dashboard.exception():
            self._tell(f"Ray's dashboard did not start: {error}")
        elif url := dashboard.result():
            self._tell(f"Ray dashboard: {url}")

    def _tell(self, line: str) -> None:
        """Once: a search tells of the same cluster at every rate."""
        if line not in self._told:
            self._told.add(line)
            self.note(line)

    def phase(self, deployment: str, cell: str, what: str) -> None:
        """A phase begins; `cell` is empty while building."""
        if self._live is not None:
            self._keep(self._live.entered(deployment, cell, what, time.time()))

    def finished(self, run: Measured | Trained) -> None:
        """A run has ended and is on disk."""
        head = f"{_name(run)}: "
        if self._live is not None:
            rate = _rate(run) if run.status == COMPLETED else None
            self._keep(self._live.ended(run.cell.deployment, rate, time.time()))
            head = f"[{self._live.done}/{self._live.runs}] {head}"
        self._console.print(Text(head).append(_said(run)))

    def note(self, line: str) -> None:
        """Something that the user should read."""
        self._console.print(Text(line))

    def _keep(self, live: Live) -> None:
        """Once a phase has begun the folder is ours: until then another driver may write there."""
        self._live = live
        keeping.write(live)
        if self._pulse is None:
            self._pulse = keeping.Pulse(live.folder)

    def _end(self) -> None:
        if self._live is not None and self._pulse is not None:
            self._pulse.end()
            self._live, self._pulse = self._live.finished(), None
            keeping.write(self._live)

    def _drawn(self) -> RenderableType:
        if self._live is None or not self._live.runs:
            return Text("")
        return showing.LiveView(self._live, time.time(), self._devices())


def _said(run: Measured | Trained) -> Text:
    if run.status != COMPLETED:
        return Text(f"{run.status}: {run.reason}", style="red")
    rate = f"{fixed(_rate(run))} tok/s"
    if isinstance(run, Trained):
        step, loss = run.rate.step_time_ms, run.result.loss
        return Text(f"{rate}, step {fixed(step)} ms, loss {fixed(loss, 4)}")
    ttft, tpot = run.latency.ttft.median, run.latency.tpot.median
    return Text(f"{rate}, TTFT {fixed(ttft)} ms, TPOT {fixed(tpot, 2)} ms")


def _rate(run: Measured | Trained) -> float | None:
    if isinstance(run, Trained):
        return run.rate.tokens_per_second
    return run.throughput.output_throughput


def _at(run: Measured | Trained) -> str:
    """How requests arrive in an open loop."""
    if isinstance(run, Trained) or not run.arrivals.request_rate:
        return ""
    if run.arrivals.trace:
        return f" of a trace, {run.arrivals.trace},"
    return f" at {significant(run.arrivals.request_rate, 3)}/s"


def _name(run: Measured | Trained) -> str:
    cell = run.cell
    layout = layout_name(cell.strategy, cell.ablation)
    load = f"{cell.scenario} c{cell.max_concurrency}{_at(run)}"
    return f"{layout} {cell.engine} {load} start {run.start + 1} run {run.run + 1}"
