"""A start: a fresh group of workers, built, that serves the cells of its deployment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.analysis.summary import Building
from orchestrator.analysis.throughput import first_token_s
from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.group import WorkerGroup
from orchestrator.experiment import Cell
from orchestrator.plan.deployments import PlannedDeployment
from workers.messages import RankReport, Work


@dataclass(slots=True)
class Start:
    """A group of workers that is built, and what that took.

    asked_at: when the actors were asked for, on the monotonic clock. warm: cells that were warmed
    up in it.
    """

    workers: WorkerGroup
    building: Building
    asked_at: float
    timeout_s: float
    warm: set[Cell] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        deployment: PlannedDeployment,
        cluster: Cluster,
        tags: Mapping[str, str],
        timeout_s: float,
    ) -> Start:
        """Start and build the workers of a deployment.

        tags: under which Ray's metrics are told of them. Raises RunFailed, with nothing left, where
        that does not succeed.
        """
        asked_at = time.monotonic()
        asked, plan = deployment.deployment, deployment.plan
        name = f"{asked.model}/{asked.strategy}"
        workers = WorkerGroup.start(cluster, name, plan, asked.engine, tags)
        try:
            began = time.monotonic()
            built = workers.build(timeout_s)
        except BaseException:
            workers.kill()
            raise
        return cls(workers, Building(built, time.monotonic() - began), asked_at, timeout_s)

    def serve(self, work: Work) -> list[RankReport]:
        """Serve `work` on every rank. Raises RunFailed as soon as one rank has failed."""
        asked = time.monotonic()
        reports = self.workers.run(work, self.timeout_s)
        if self.building.startup_s is None:
            startup_s = asked - self.asked_at + first_token_s(reports)
            self.building = replace(self.building, startup_s=startup_s)
        return reports
