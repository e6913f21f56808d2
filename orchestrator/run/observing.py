"""Each cell of a start taken apart, once its timed runs are made.

The same short work is served twice: unprofiled, which says how long its steps take, and profiled,
which says what they consist of.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from orchestrator.analysis.observed.accounting import PARTS_OF_STEP, account
from orchestrator.analysis.observed.communication import slowest_of
from orchestrator.cluster.failures import RunFailed
from orchestrator.experiment import Cell
from orchestrator.plan.deployments import PlannedCell
from orchestrator.run.jobs import Job
from orchestrator.run.workers import BuildFailed, Session
from orchestrator.store.arrow_files import concat
from workers.messages import RankReport, Request, TrainingWork, Work
from workers.rows import grouped

OBSERVED_TOKENS = 16  # made for each request while a run is taken apart: enough steps for a mean
BATCHES, FEW = 4, 16  # of the requests in flight, as long as these are not more than FEW together
TRIES = 2  # a profiler may bring its process down; a fresh one seldom


def observe(session: Session, start: int, cells: Sequence[PlannedCell]) -> None:
    """Take each of `cells` apart that has not been in this start. That is no run of its own: where
    it fails, its columns stay empty."""
    for _ in range(TRIES):
        _Observing(session, start).observe(cells)
    session.job.unobservable.update(
        cell.cell for cell in cells if session.job.is_unobserved(cell, start)
    )


@dataclass(frozen=True, slots=True)
class _Observing:
    """One try. timed: the table STEPS of each cell's unprofiled run."""

    session: Session
    start: int
    timed: dict[Cell, pa.Table | None] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        return self.session.job

    def observe(self, cells: Sequence[PlannedCell]) -> None:
        """Every cell is served unprofiled before the first profiler is started: what it loads stays
        in the process."""
        for cell in cells:
            if self.job.is_unobserved(cell, self.start):
                if isinstance(cell.work, TrainingWork):
                    self._take_apart(cell, cell.work)
                else:
                    self._time(cell)
        for cell in cells:
            if cell.cell in self.timed and self.job.is_unobserved(cell, self.start):
                self._observe(cell)

    def _time(self, cell: PlannedCell) -> None:
        reports = self._serve(cell, short(cell.served), "timing what is observed")
        if reports is not None:
            self.timed[cell.cell] = concat(report.steps for report in reports)

    def _observe(self, cell: PlannedCell) -> None:
        reports = self._serve(cell, replace(short(cell.served), observe=True), "observing")
        if reports is None:
            return
        unseen = {one.rank: one.unobserved for one in reports if one.unobserved}
        for rank, reason in unseen.items():
            self._tell(cell, f"rank {rank} could not be observed: {reason}")
        spans = concat(report.spans for report in reports)
        whole = self.job.experiment.save_spans and self.start == 0
        placement = self.job.deployment.plan.placement
        timed = self.timed[cell.cell]
        attention = {(one.rank, found.phase): found for one in reports for found in one.attention}
        tables = account(
            spans, placement, timed=timed, whole=whole, unseen=unseen, attention=attention
        )
        self.job.store.write_observed(cell.cell, self.start, tables)
        nodes = self.session.workers.group.nodes if self.session.workers else ()
        if said := slowest_of(PARTS_OF_STEP.rows(tables["parts"]), nodes).awaited:
            self._tell(cell, said)

    def _take_apart(self, cell: PlannedCell, work: TrainingWork) -> None:
        """Observe optimizer steps, before which the ranks time others."""
        reports = self._serve(
            cell, replace(work, observe=True, save=None, resume=None), "observing"
        )
        found = [one.training for one in reports or () if one.training]
        tables = {
            "training_overlaps": concat(one.overlaps for one in found),
            "training_parts": concat(one.parts for one in found),
        }
        known = {name: table for name, table in tables.items() if table is not None}
        if "training_parts" in known:
            self.job.store.write_observed(cell.cell, self.start, known)

    def _serve(
        self, cell: PlannedCell, work: Work | TrainingWork, what: str
    ) -> list[RankReport] | None:
        """The reports of `work`; None where it failed, which is told."""
        try:
            workers = self.session.prepared(cell)
            self.session.tell(what, cell)
            return workers.serve(work)
        except BuildFailed as failure:
            self.job.unobservable.update(one.cell for one in self.job.deployment.cells)
            self._tell_unobserved(cell, failure)
        except RunFailed as failure:
            self.session.kill()
            self._tell_unobserved(cell, failure)
        return None

    def _tell_unobserved(self, cell: PlannedCell, failure: RunFailed) -> None:
        name = f"{cell.cell.name}.s{self.start}"
        self.job.store.write_failure(f"{name}.observed", failure.detail)
        self._tell(cell, f"communication could not be observed: {failure.reason}")

    def _tell(self, cell: PlannedCell, what: str) -> None:
        self.session.progress.note(f"{cell.cell.name}.s{self.start}: {what}")


def short(work: Work) -> Work:
    """The first requests of `work`, all there at once and cut short: as many as are in flight, and
    where these are few several batches of them, so that more than one step reads prompts. None
    waits for another or finds its prompt in a cache; those of a batch are turns of different
    conversations, as in the whole work."""
    seats = min(work.max_concurrency, work.num_conversations)
    count = max(seats, min(BATCHES * seats, FEW))
    requests = tuple(
        Request(i, one.prompt, min(OBSERVED_TOKENS, one.output_len))
        for i, one in enumerate(itertools.islice(_seat_by_seat(work, seats), count))
    )
    return replace(work, requests=requests, max_concurrency=seats, reuse=None)


def _seat_by_seat(work: Work, seats: int) -> Iterator[Request]:
    """One request of each seat in turn, without end. A seat has its conversations one after another
    and then all over again."""
    first = work.first_turns()
    talks = list(grouped(work.requests, lambda one: first[one.index]).values())
    mine = [itertools.chain.from_iterable(talks[seat::seats]) for seat in range(seats)]
    for batch in zip(*map(itertools.cycle, mine), strict=True):
        yield from batch
