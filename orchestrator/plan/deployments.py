"""The input of the driver: deployments with their finished plans and the work of each cell. Pure
data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.experiment import Cell, Deployment
from strategies import Topology
from workers.messages import EnginePlan, Work


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One cell and the requests of its runs; `warmup` is served num_warmups times first and not
    recorded."""

    cell: Cell
    work: Work
    warmup: Work


@dataclass(frozen=True, slots=True)
class PlannedDeployment:
    """One deployment, the plan for the heaviest of its cells, and the cells in the order they run.

    decode: token ids -> text, for the requests table of a detailed run; None where there is no
    tokenizer.
    """

    deployment: Deployment
    plan: EnginePlan
    cells: tuple[PlannedCell, ...]
    decode: Callable[[Sequence[int]], str] | None = None


@dataclass(frozen=True, slots=True)
class PlannedExperiment:
    """Deployments, in the order they run, and the devices they are planned for."""

    deployments: tuple[PlannedDeployment, ...]
    topology: Topology
