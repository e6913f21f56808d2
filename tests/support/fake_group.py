"""Groups of workers whose ranks are fake engines of this process, so that a start takes no time."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine

from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.failures import RunFailed, first_line
from orchestrator.cluster.group import WorkerGroup
from orchestrator.cluster.nodes import Node
from orchestrator.cluster.room import Patience
from orchestrator.run import driver
from workers.messages import Built, EnginePlan, RankReport, Work

CLUSTER = Cluster((Node("local", {"cuda": 0, "cpu": 4}),), True, "local", None)


@dataclass(frozen=True)
class Served:
    """What a group was asked to serve. group: its number among those that were started."""

    group: int
    layout: str
    work: Work


@dataclass
class Groups:
    """Stands in for `WorkerGroup.start`. alive: numbers of the groups that have not ended. counted:
    what Nsight Compute writes."""

    plans: list[EnginePlan] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    counted: str = ""
    alive: set[int] = field(default_factory=set)

    def start(
        self,
        cluster: Cluster,
        name: str,
        plan: EnginePlan,
        engine: str,
        tags: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> FakeGroup:
        """Another group, of which no other may be alive: they would share the devices."""
        assert not self.alive
        self.plans.append(plan)
        self.alive.add(len(self.plans))
        return FakeGroup(self, len(self.plans), plan)

    def asked(self) -> list[tuple[str, int, bool]]:
        """Layout, requests, and whether it was observed, of all that was served."""
        return [(one.layout, len(one.work.requests), one.work.observe) for one in self.served]


@dataclass
class FakeGroup:
    """One group; see `WorkerGroup`."""

    groups: Groups
    number: int
    plan: EnginePlan
    engines: list[FakeEngine] = field(default_factory=list)

    @property
    def nodes(self) -> tuple[str, ...]:
        return ("local",) * self.plan.placement.num_ranks

    def build(self, timeout_s: float) -> list[Built]:
        self.engines = [FakeEngine() for _ in range(self.plan.placement.num_ranks)]
        ranks = enumerate(self.engines)
        return [_asked(engine.build, SimpleNamespace(rank=r), self.plan) for r, engine in ranks]

    def run(self, work: Work, timeout_s: float) -> list[RankReport]:
        self.groups.served.append(Served(self.number, self.plan.layout, work))
        return [_asked(engine.run, work) for engine in self.engines]

    def counters(self, timeout_s: float = 0.0) -> tuple[int, str]:
        assert self.plan.ncu_file is not None
        self.kill()
        return 0, self.groups.counted

    def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.groups.alive.discard(self.number)


class Silent:
    """Publishes nothing to Ray, which does not run here."""

    def tell(self, tags, shares): ...  # type: ignore[no-untyped-def]

    def stop(self): ...  # type: ignore[no-untyped-def]


def installed(monkeypatch: pytest.MonkeyPatch) -> Groups:
    """Have the driver use fake groups of workers, which these remember."""
    made = Groups()
    monkeypatch.setattr(driver, "connect", lambda *_: contextlib.nullcontext(CLUSTER))
    monkeypatch.setattr(driver, "Exposure", Silent)
    monkeypatch.setattr(WorkerGroup, "start", made.start)
    return made


def _asked(call, *arguments):  # type: ignore[no-untyped-def]
    try:
        return call(*arguments)
    except Exception as error:
        raise RunFailed(f"{type(error).__name__}: {first_line(error)}") from error
