"""One deployment's turn on the devices: its workers, its runs, and what is observed of its cells.

A failed run costs its worker group and the rest of its cell; the next cell gets a fresh group. A
failed build costs its deployment. Every finished run is on disk before the next one starts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pyarrow as pa

from orchestrator.analysis import accounting, arrivals, bounds, goodput, metrics, outputs, steady
from orchestrator.analysis import energy as telemetry
from orchestrator.analysis.metrics import COMPLETED, FAILED, INVALID
from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.group import RunFailed, WorkerGroup
from orchestrator.experiment import Cell, Run
from orchestrator.node import fabric
from orchestrator.plan.deployments import PlannedCell
from orchestrator.run.interleaving import Turns
from orchestrator.run.jobs import Job
from orchestrator.store import results
from workers.messages import Built, RankReport, Work
from workers.probes.gauges import Exposure
from workers.records import COLLECTIVES

OBSERVED_TOKENS = 16  # made for each request while a run is taken apart: enough steps for a mean
OBSERVING_TRIES = 2  # a profiler may bring its process down; a fresh one seldom


class Progress(Protocol):
    """What is told while it happens."""

    def begin(self, runs: int, skipped: int) -> None:
        """`runs` are to be done, `skipped` have a result already."""
        ...

    def connected(self, cluster: Cluster) -> None: ...

    def phase(self, deployment: str, cell: str, what: str) -> None:
        """What begins now: "building", "warming up", "run 2/3", "observing". `cell` is empty while
        building."""
        ...

    def finished(self, row: dict[str, Any]) -> None:
        """A run has ended and is on disk; its summary row."""
        ...

    def note(self, line: str) -> None:
        """Something that the user should read."""
        ...


@dataclass(slots=True)
class Group:
    """A worker group that is built, and what that cost in seconds."""

    workers: WorkerGroup
    built: list[Built]
    asked_at: float  # when the actors were asked for, on the monotonic clock
    build_s: float
    startup_s: float | None = None  # known after the first token
    warm: set[Cell] = field(default_factory=set)

    def costs(self) -> dict[str, Any]:
        return {
            **metrics.of_build(self.built),
            "build_s": self.build_s,
            "startup_s": self.startup_s,
        }


@dataclass(slots=True)
class Turn:
    """The turn `number` of one deployment. `group` is None before the first build and after a
    failure."""

    job: Job
    number: int
    cluster: Cluster
    progress: Progress
    exposure: Exposure
    group: Group | None = None
    runs_s: float = 0.0  # spent in timed runs
    failed: bool = False  # a run or a build
    started_at: str = field(default_factory=results.now)

    def serve(self, turns: Turns) -> None:
        """A run of every cell, and again until none is missing or the next layout has its turn;
        then cells are observed.

        Observed runs come last, so that no timed run follows a profiled one in the same process.
        Leaves no worker behind, whatever happens.
        """
        began = time.monotonic()
        for cell in self.job.deployment.cells:
            self._tell_exposure(self.job.store.parts_of(cell.cell) or ())
        try:
            while cells := [cell for cell in self.job.deployment.cells if self.job.missing(cell)]:
                for cell in cells:
                    if cell.cell not in self.job.given_up and (
                        self.group is not None or self._build()
                    ):
                        self._serve_cell(cell)
                if turns.hand_over(time.monotonic() - began, self.runs_s, self.failed):
                    break
            self._observe_cells()
            if self.group is not None:
                self.group.workers.close()
                self.group = None
        finally:
            self._kill()

    # -- workers

    def _start(self) -> None:
        """A fresh group. Raises RunFailed, with nothing left, where that does not succeed."""
        deployment, plan = self.job.deployment.deployment, self.job.deployment.plan
        self._tell("building")
        asked_at = time.monotonic()
        workers = None
        try:
            name = f"{deployment.model}/{deployment.strategy}"
            workers = WorkerGroup.start(self.cluster, name, plan, deployment.engine, self._tags)
            start = time.monotonic()
            built = workers.build(self.job.experiment.timeout)
            self.group = Group(workers, built, asked_at, time.monotonic() - start)
        finally:
            if workers is not None and self.group is None:
                workers.kill()

    def _build(self) -> bool:
        """A fresh group; False, with the deployment given up and every run it lacks marked as
        failed, where that fails."""
        try:
            self._start()
        except RunFailed as failure:
            self.failed = True
            for cell in self.job.deployment.cells:
                for run in self.job.missing(cell):
                    self._fail(run, cell, RunFailed(f"build: {failure.reason}", failure.detail))
            self.job.give_up(self.job.deployment.cells)
        return self.group is not None

    def _kill(self) -> None:
        if self.group is not None:
            self.group.workers.kill()
        self.group = None

    def _work(self, work: Work) -> list[RankReport]:
        assert self.group is not None
        asked = time.monotonic()
        reports = self.group.workers.run(work, self.job.experiment.timeout)
        if self.group.startup_s is None:
            self.group.startup_s = asked - self.group.asked_at + metrics.first_token_s(reports)
        return reports

    # -- runs

    def _serve_cell(self, cell: PlannedCell) -> None:
        """The next run of a cell, after warming up where this group has not yet."""
        assert self.group is not None
        run, total = self.job.missing(cell)[0], self.job.experiment.num_runs
        self.job.tried.add(run)
        doing = "warm-up: "
        try:
            for _ in range(
                self.job.experiment.num_warmups if cell.cell not in self.group.warm else 0
            ):
                self._tell("warming up", cell)
                self._work(cell.warmup)
            self.group.warm.add(cell.cell)
            doing = ""
            self._tell(f"run {run.index + 1}/{max(total, run.index + 1)}", cell)
            self._run(run, cell)
        except RunFailed as failure:
            self.failed = True
            self._kill()
            self._fail(run, cell, RunFailed(doing + failure.reason, failure.detail))
            self.job.give_up([cell])

    def _run(self, run: Run, cell: PlannedCell) -> None:
        self.started_at, began = results.now(), time.monotonic()
        reports = self._work(cell.work)
        self.runs_s += time.monotonic() - began
        requests = _merge(report.requests for report in reports)
        if requests is None:
            raise RunFailed("no rank reported any request")
        requests = requests.sort_by("request_index")
        row = self._common(cell) | metrics.of_requests(
            requests,
            cell.cell.max_concurrency,
            len(cell.work.requests),
            self.job.deployment.plan.placement.num_ranks,
        )
        assert self.group is not None
        row |= metrics.of_collectives(reports) | metrics.of_memory(reports) | self.group.costs()
        row |= metrics.of_ranks(self.group.built, self.job.deployment.plan)
        row |= arrivals.of_requests(requests) if cell.work.is_open else steady.of_requests(requests)
        row |= goodput.of_requests(requests, self.job.experiment.goodput, len(cell.work.requests))
        row |= telemetry.of_telemetry(
            reports, row["duration"], row["total_output_tokens"], row["num_gpus"]
        )
        row["output_digest"] = outputs.output_digest(requests)
        if self.job.deployment.plan.device == "cpu":
            row["device_name"] = "cpu"
        row |= self._bounds(cell, row)
        tables = {
            "requests": results.requests_part(
                requests, self.job.experiment.save_detailed, self.job.deployment.decode
            )
        }
        tables |= {
            "steps": _merge(report.steps for report in reports),
            "collectives": _merge(r.collectives for r in reports),
        }
        row |= _account_for(
            tables, self.job.store.parts_of(cell.cell) or (), self.job.store.timed_of(cell.cell)
        )
        tables["telemetry"] = _merge(report.telemetry for report in reports)
        self._keep(run, {**row, "status": INVALID if row["reason"] else COMPLETED}, tables)

    def _bounds(self, cell: PlannedCell, row: dict[str, Any]) -> dict[str, Any]:
        """What the hardware could do, by its calibration or its data sheet, and `reason` where the
        run claims more."""
        ceilings = fabric.ceilings(self.job.calibration, row["device_name"])
        plan, engine = self.job.deployment.plan, self.job.deployment.deployment.engine
        return bounds.columns(plan, engine, row | cell.cell.fields(), ceilings)

    # -- observed runs

    def _observe_cells(self) -> None:
        """Take each cell apart that has not been: it is no run of its own, and where it fails its
        columns stay empty."""
        for cell in self.job.deployment.cells:
            for _ in range(OBSERVING_TRIES):
                if self.job.is_unobserved(cell):
                    self._observe(cell)
            self.job.unobservable.add(cell.cell)

    def _observe(self, cell: PlannedCell) -> None:
        requests = tuple(
            replace(r, output_len=min(OBSERVED_TOKENS, r.output_len), arrival_s=0.0)
            for r in cell.work.requests
        )
        doing = "build: "
        try:
            if self.group is None:
                self._start()
            doing = ""
            self._tell("observing", cell)
            reports = self._work(replace(cell.work, requests=requests, observe=True))
        except RunFailed as failure:
            self._kill()
            self.job.store.write_failure(f"{cell.cell.name}.observed", failure.detail)
            self.progress.note(
                f"{cell.cell.name}: communication could not be observed: {doing}{failure.reason}"
            )
            if doing:
                self.job.unobservable.update(other.cell for other in self.job.deployment.cells)
            return
        tables = accounting.account(
            _merge(report.spans for report in reports), self.job.deployment.plan.placement
        )
        parts, timed = tables["parts"].to_pylist(), tables["timed_collectives"].to_pylist()
        self._complete(cell.cell, parts, timed)
        self.job.store.write_observed(
            cell.cell, tables
        )  # the last, for it marks the cell as observed
        self._tell_exposure(parts)

    def _complete(
        self, cell: Cell, parts: list[dict[str, Any]], timed: list[dict[str, Any]]
    ) -> None:
        """Put what was observed of a cell into the summary and the collectives of each of its
        runs."""
        for run in self.job.runs_of(cell):
            row = self.job.store.summary_of(run)
            if row is not None and row["status"] == COMPLETED:
                tables = {"collectives": self.job.store.table_of(run, "collectives", COLLECTIVES)}
                columns = _account_for(tables, parts, timed)
                self.job.store.write_run(run, row | columns, _known(tables))

    def _tell_exposure(self, parts: Iterable[Mapping[str, Any]]) -> None:
        """What is known of a cell's exposed communication, from now on at Ray's metrics
        endpoint."""
        self.exposure.tell(self._tags, accounting.exposed(parts))

    # -- what is kept and told

    def _common(self, cell: PlannedCell) -> dict[str, Any]:
        scenario, plan = cell.cell.scenario, self.job.deployment.plan
        return {
            "input_len": scenario.input_len or None,
            "output_len": scenario.output_len or None,
            "num_prompts": len(cell.work.requests),
            "seed": plan.seed,
            "request_rate": self.job.experiment.request_rate,
            "burstiness": self.job.experiment.burstiness if cell.work.is_open else None,
            "num_gpus": plan.placement.num_ranks,
            "started_at": self.started_at,
            "turn": self.number,
            "metadata": json.dumps(self.job.experiment.metadata),
        }

    @property
    def _tags(self) -> dict[str, str]:
        """Of this deployment's metrics on Ray's endpoint."""
        asked = self.job.deployment.deployment
        strategy = (
            asked.strategy
            if asked.ablation == "none"
            else f"{asked.strategy}-without-{asked.ablation}"
        )
        return {
            "experiment": self.job.store.name,
            "model": asked.model,
            "strategy": strategy,
            "engine": asked.engine,
        }

    def _fail(self, run: Run, cell: PlannedCell, failure: RunFailed) -> None:
        self.job.store.write_failure(run.name, failure.detail)
        row = self._common(cell) | {"completed": 0, "failed": len(cell.work.requests)}
        self._keep(run, {**row, "status": FAILED, "reason": failure.reason}, {})

    def _keep(self, run: Run, row: dict[str, Any], tables: dict[str, pa.Table | None]) -> None:
        self.job.store.write_run(run, row, _known(tables))
        self.progress.finished({**run.cell.fields(), "run": run.index, **row})

    def _tell(self, what: str, cell: PlannedCell | None = None) -> None:
        self.progress.phase(
            self.job.deployment.deployment.name, cell.cell.name if cell else "", what
        )


def _account_for(
    tables: dict[str, pa.Table | None],
    parts: Iterable[Mapping[str, Any]],
    timed: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """The summary's columns of communication; what an observed run says of collectives is put
    beside those in `tables`."""
    counted = tables["collectives"]
    if counted is not None:
        tables["collectives"] = accounting.with_timing(counted, timed)
    return accounting.shares(parts) | accounting.operations(tables["collectives"])


def _known(tables: Mapping[str, pa.Table | None]) -> dict[str, pa.Table]:
    return {name: table for name, table in tables.items() if table is not None}


def _merge(tables: Iterable[pa.Table | None]) -> pa.Table | None:
    return results.concat(tables)
