"""The input of the driver: deployments with their finished plans and the work of each cell. Pure
data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.cluster.ranks import nodes_of_ranks, together
from orchestrator.experiment import SWITCHES, Cell, Deployment, Experiment
from strategies import Placement, Topology, parse
from workers.messages import EnginePlan, Switches, TrainingWork, Work


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One cell and the work of its runs; `warmup` is done num_warmups times first and not
    recorded.

    sized: makes the work of so many requests, where a pilot is to settle how many. Until then
    `work` is that of the pilot. None: `work` is what runs serve.
    """

    cell: Cell
    work: Work | TrainingWork
    warmup: Work | TrainingWork
    sized: Callable[[int], Work] | None = None

    @property
    def served(self) -> Work:
        """Its work, where that is to serve requests."""
        assert isinstance(self.work, Work), "nothing is served where a model is trained"
        return self.work

    def settled(self, num_prompts: int) -> PlannedCell:
        """The same cell with runs of so many requests. Only for one that is to be settled."""
        assert self.sized is not None, "its work is settled"
        return replace(self, work=self.sized(num_prompts), sized=None)


@dataclass(frozen=True, slots=True)
class PlannedDeployment:
    """One deployment, the plan for the heaviest of its cells, and the cells in the order they run.

    decode: token ids -> text, for the requests table of a detailed run; None where there is no
    tokenizer. remarks: what a user should know of the dataset, the same for all deployments. kept:
    techniques without which it cannot run, each with the reason.
    """

    deployment: Deployment
    plan: EnginePlan
    cells: tuple[PlannedCell, ...]
    decode: Callable[[Sequence[int]], str] | None = None
    remarks: tuple[str, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()

    def settled(self, num_prompts: Mapping[str, int]) -> PlannedDeployment:
        """The same, its cells with the requests that were settled for their load, "short.c8". One
        whose load is not among them stays as it is."""
        cells = (
            cell.settled(num_prompts[cell.cell.load])
            if cell.sized is not None and cell.cell.load in num_prompts
            else cell
            for cell in self.cells
        )
        return replace(self, cells=tuple(cells))


@dataclass(frozen=True, slots=True)
class PlannedExperiment:
    """Deployments, in the order they run, and the devices they are planned for."""

    deployments: tuple[PlannedDeployment, ...]
    topology: Topology


def nodes_of(planned: PlannedDeployment, topology: Topology) -> tuple[str, ...]:
    """Rank -> the node that it gets where nobody holds devices; () on one node."""
    counts = Counter(device.node for device in topology.devices)
    if len(counts) < 2:
        return ()
    return nodes_of_ranks(planned.plan, planned.deployment.engine, counts)


def like_nodes(placement: Placement, size: int | None) -> tuple[str, ...]:
    """Rank -> the number of its node, where each has `size` devices and there are enough; () on
    one node. size: None: one node has room for all."""
    ranks = placement.num_ranks
    if size is None or ranks <= size:
        return ()
    beside = together(placement.mesh, [size] * ranks)
    places = [str(place // beside // (size // beside)) for place in range(ranks)]
    return tuple(places[device] for device in placement.devices)


def devices_of(layout: str) -> int:
    """How many devices a layout needs, by its name: 4 for "tp2pp2". Raises LayoutError for a name
    that is none."""
    return math.prod(number for key, number in parse(layout) if key != "zero")


def switches_of(experiment: Experiment) -> Switches:
    """The switches that were asked for; None: left to the engine."""
    asked = {name: getattr(experiment, name) for name in SWITCHES}
    return Switches(**{name: str(one) for name, one in asked.items() if one not in (None, "auto")})
