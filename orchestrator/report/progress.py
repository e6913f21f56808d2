"""How far the driver is: a live bar in a terminal, elsewhere a line per finished run."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from orchestrator.analysis.summary import Measured
from orchestrator.analysis.training.rows import Trained
from orchestrator.experiment import layout_name
from orchestrator.report.text import fixed
from orchestrator.store.schema import COMPLETED


class HasDashboard(Protocol):
    """What is shown of a cluster."""

    @property
    def dashboard(self) -> str | None:
        """Where its dashboard answers; None without one."""
        ...

    @property
    def logs(self) -> str | None:
        """The folder of a local Ray; None of a cluster that was joined."""
        ...


class RunProgress:
    """Shows the progress that the driver reports; see `orchestrator.run.progress.Progress`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done = self._total = 0
        self._last = ""
        self._told: set[str] = set()  # lines about the cluster
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[last]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, last="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, runs: int, skipped: int) -> None:
        """`runs` are to be done, `skipped` have a result already."""
        self._total = runs
        self._bar.update(self._task, total=runs)
        if skipped:
            self.note(f"{skipped} of {runs + skipped} runs have a result and are skipped.")

    def connected(self, cluster: HasDashboard) -> None:
        """The cluster is connected. A search tells of the same one at every rate."""
        dashboard = cluster.dashboard and f"Ray dashboard: {cluster.dashboard}"
        session = cluster.logs and f"Ray session: {cluster.logs} (kept where a run fails)"
        for line in filter(None, (dashboard, session)):
            if line not in self._told:
                self._told.add(line)
                self.note(line)

    def phase(self, deployment: str, cell: str, what: str) -> None:
        """A phase begins; `cell` is empty while building."""
        self._bar.update(self._task, description=f"{cell or deployment}  {what}")

    def finished(self, run: Measured | Trained) -> None:
        """A run has ended and is on disk."""
        self._done += 1
        self._total = max(self._total, self._done)  # starts may be added until they agree
        if run.status == COMPLETED:
            self._last = f"{fixed(_rate(run))} tok/s"
        head = f"[{self._done}/{self._total}] {_name(run)}: "
        self._console.print(Text(head).append(self._said(run)), soft_wrap=True)
        self._bar.update(self._task, completed=self._done, total=self._total, last=self._last)

    def note(self, line: str) -> None:
        """Something that the user should read."""
        self._console.print(Text(line), soft_wrap=True)

    def _said(self, run: Measured | Trained) -> Text:
        if run.status != COMPLETED:
            return Text(f"{run.status}: {run.reason}", style="red")
        if isinstance(run, Trained):
            step, loss = run.rate.step_time_ms, run.result.loss
            return Text(f"{self._last}, step {fixed(step)} ms, loss {fixed(loss, 4)}")
        ttft, tpot = run.latency.ttft.median, run.latency.tpot.median
        return Text(f"{self._last}, TTFT {fixed(ttft)} ms, TPOT {fixed(tpot, 2)} ms")


def _rate(run: Measured | Trained) -> float | None:
    if isinstance(run, Trained):
        return run.rate.tokens_per_second
    return run.throughput.output_throughput


def _name(run: Measured | Trained) -> str:
    cell = run.cell
    layout = layout_name(cell.strategy, cell.ablation)
    load = f"{cell.scenario} c{cell.max_concurrency}"
    return f"{layout} {cell.engine} {load} start {run.start + 1} run {run.run + 1}"
