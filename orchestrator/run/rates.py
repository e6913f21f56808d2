"""The highest request rate at which each cell meets an SLO: bisection over runs, each of which is
kept as a result of its rate like any other, so that the same command again goes on from there.

The rates lie between 0 and what a closed loop of the cell completes, which is run first: a queue of
more than that only grows.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from orchestrator.analysis.goodput import RATES, FoundRate, slo_miss, text
from orchestrator.analysis.load import summaries
from orchestrator.analysis.summary import Summary
from orchestrator.cluster.connection import Cluster
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment
from orchestrator.run.driver import run_experiment, with_room
from orchestrator.run.jobs import all_completed
from orchestrator.run.progress import Progress
from orchestrator.store.folders import folder_of
from orchestrator.store.schema import COMPLETED, cell_key
from orchestrator.store.store import Store

PRECISION = 0.05  # of the rate: a search that knows it this well is done
DIGITS = 3  # of a rate, so that it is the same one in every command
Plan = Callable[[Experiment], Sequence[PlannedDeployment]]


class NoResult(Exception):
    """A rate that cannot be judged, and why."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One rate. missed_by: what of the SLO is missed, and by how much; None where it is met."""

    rate: float
    output_throughput: float | None
    missed_by: str | None


@dataclass
class Bisection:
    """A search for the highest rate that `attempt` meets, from `highest` down, by at most `most`
    rates. attempt: raises NoResult where a rate cannot be judged; that ends the search."""

    highest: float
    most: int
    attempt: Callable[[float], Tried]
    tried: list[Tried] = field(default_factory=list)
    reason: str | None = None

    @property
    def met(self) -> Tried | None:
        """The highest rate that is met."""
        found = [one for one in self.tried if one.missed_by is None]
        return max(found, key=lambda one: one.rate, default=None)

    @property
    def missed(self) -> Tried | None:
        """The lowest rate that is missed."""
        found = [one for one in self.tried if one.missed_by is not None]
        return min(found, key=lambda one: one.rate, default=None)

    def run(self) -> None:
        """Try rates until the highest is known well enough, or no more may be tried."""
        rate: float | None = rounded(self.highest)
        try:
            while rate is not None and len(self.tried) < self.most:
                self.tried.append(self.attempt(rate))
                rate = self._next()
        except NoResult as error:
            self.reason = str(error)

    def _next(self) -> float | None:
        if self.missed is None:
            return None
        low, high = self.met.rate if self.met else 0.0, self.missed.rate
        middle = rounded((low + high) / 2)
        return middle if high - low > PRECISION * high and low < middle < high else None


def rounded(rate: float) -> float:
    """A rate to three digits."""
    return float(f"{rate:.{DIGITS}g}")


class Search:
    """The search of every cell of `experiment`.

    plan: the deployments of an experiment, each checked to fit. cluster: the one that was joined;
    None: a local Ray is started once, if a run is left to make.
    """

    def __init__(
        self, experiment: Experiment, plan: Plan, progress: Progress, cluster: Cluster | None = None
    ) -> None:
        self.experiment, self.plan, self.progress = experiment, plan, progress
        self._joined, self._cluster = cluster, cluster
        whole = folder_of(experiment)
        self.root: Path = whole.with_name(f"{whole.name}-rates")

    def run(self, planned: Sequence[PlannedDeployment]) -> list[FoundRate]:
        """What is found of each cell of `planned`, kept as `rates.arrow` beside the folders of the
        rates. Raises as `run_experiment` does."""
        with contextlib.ExitStack() as stack:
            self._stack = stack
            ranks = max(one.plan.placement.num_ranks for one in planned)
            self._room = partial(with_room, self._joined, planned[0].plan.device, ranks)
            found = [self._search(one, cell) for one in planned for cell in one.cells]
        Store(self.root).write_rates(RATES.make(found))
        return found

    def _search(self, planned: PlannedDeployment, cell: PlannedCell) -> FoundRate:
        search = Bisection(0.0, self.experiment.rate_runs, partial(self._try, cell))
        closed: float | None = None
        try:
            work = cell.served
            arriving = work.num_conversations / len(work.requests)
            closed = search.highest = _completed_rate(self._runs(cell, None)) * arriving
            search.run()
        except NoResult as error:
            search.reason = f"its closed loop: {error}"
        met, missed = search.met, search.missed
        gpus = planned.plan.placement.num_ranks
        return FoundRate(
            cell=cell_key(self.root.name, cell.cell),
            slo=text(self.experiment.slo),
            arriving=cell.served.arriving,
            rate=met.rate if met else None,
            rate_per_gpu=met.rate / gpus if met else None,
            output_throughput=met.output_throughput if met else None,
            missed_rate=missed.rate if missed else None,
            missed_by=missed.missed_by if missed else None,
            closed_rate=rounded(closed) if closed else None,
            tried_rates=tuple(one.rate for one in search.tried),
            tried_met=tuple(one.missed_by is None for one in search.tried),
            reason=search.reason,
        )

    def _try(self, cell: PlannedCell, rate: float) -> Tried:
        """Whether every run of a cell at `rate` meets the SLO."""
        count, what = cell.served.num_conversations, cell.served.arriving
        timeout = self.experiment.timeout
        if count / rate >= timeout:
            raise NoResult(
                f"{count} {what} at {rate:g} {what}/s take longer than --timeout {timeout:g}"
            )
        runs = self._runs(cell, rate)
        worst = max(runs, key=lambda run: (not run.slo.slo_met, run.slo.slo_ratio or 0.0))
        return Tried(
            rate,
            _mean([run.throughput.output_throughput for run in runs]),
            None if worst.slo.slo_met else slo_miss(worst.slo),
        )

    def _runs(self, cell: PlannedCell, rate: float | None) -> list[Summary]:
        """The runs of a cell at a rate, None: in a closed loop; those that have no result are made.
        Raises NoResult where one of them has failed, or there is no plan for the rate."""
        asked = self._asked(cell, rate)
        try:
            planned = self.plan(asked)
        except UserError as error:
            raise NoResult(str(error)) from error
        if self._cluster is None and not all_completed(planned, asked, folder_of(asked)):
            self._cluster = self._stack.enter_context(self._room())
        store = Store(run_experiment(planned, asked, self.progress, self._cluster))
        key = cell_key(store.name, cell.cell)
        runs = [run for run in summaries(store, asked.levels) if run.cell == key]
        bad = [run for run in runs if run.status != COMPLETED]
        if bad or not runs:
            raise NoResult(str(bad[-1].reason) if bad else "no run was made")
        return runs

    def _asked(self, cell: PlannedCell, rate: float | None) -> Experiment:
        """The experiment of one cell at one rate: what `submit --request-rate` would run."""
        one, deployment = self.experiment, cell.cell.deployment
        fixed = one.dataset_path or one.input_len
        changed = {
            "strategy": (deployment.strategy,),
            "engine": (deployment.engine,),
            "scenario": () if fixed else (cell.cell.scenario.name,),
            "max_concurrency": (cell.cell.max_concurrency,),
            "request_rate": rate,
            "burstiness": 1.0 if rate is None else one.burstiness,
            "find_rate": False,
            "result_dir": self.root,
        }
        return one.model_copy(update=changed)


def _completed_rate(runs: Sequence[Summary]) -> float:
    rate = _mean([run.throughput.request_throughput for run in runs])
    if not rate:
        raise NoResult("no request was completed")
    return rate


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
