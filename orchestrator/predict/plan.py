"""What `orchestrator plan` shows: rankings of layouts for each scenario and engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.predict import factors
from orchestrator.predict.degradation import Sweep
from orchestrator.predict.goodput import FAILURES, RECOVERY_S, SPREAD, Goodput, Reliability, goodput
from orchestrator.predict.hardware import Calibration, Hardware, find, of_sheet
from orchestrator.predict.layouts import Ranking
from orchestrator.predict.prediction import NoPrediction, Prediction

GOODPUT = "goodput is worked out of more than one node"
SWEPT = 8  # layouts whose figures are said against concurrency


@dataclass(frozen=True, slots=True)
class Machines:
    """What a plan is made for. network: GB/s of a GPU's network card in one direction; None: of
    the maker's own server. fabric: what `calibrate` wrote of such GPUs. failure_rate, recovery,
    straggler: see `Reliability`; None: its defaults."""

    gpu: str
    gpus: int
    gpus_per_node: int | None = None
    network: float | None = None
    fabric: Path | None = None
    gpu_hour_cost: float | None = None
    failure_rate: float | None = None
    recovery: float | None = None
    straggler: float | None = None

    @property
    def reliability(self) -> Reliability:
        """Of its GPUs."""
        return Reliability(
            FAILURES if self.failure_rate is None else self.failure_rate,
            RECOVERY_S if self.recovery is None else self.recovery,
            SPREAD if self.straggler is None else self.straggler,
        )

    def check_nodes(self) -> None:
        """Raise UserError where something is asked of several nodes, and there is one."""
        names = ("network", "failure_rate", "recovery", "straggler")
        asked = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]
        node = self.hardware().gpus_per_node
        if asked and self.gpus <= node:
            what = "a network is between nodes" if self.network else GOODPUT
            raise UserError(
                f"{', '.join(asked)}: {what}, and {self.gpus} GPUs are within one of {node}; leave "
                "it out, or change --gpus or --gpus-per-node"
            )

    def hardware(self) -> Hardware:
        """Its figures. Raises UserError for a GPU that is not known, and for a calibration of
        another one."""
        name, _ = find(self.gpu)
        known = factors.load()
        found = of_sheet(name, known.attainable, self._measured(name), self.gpus_per_node)
        return found.with_network(self.network * 1e9) if self.network else found

    def _measured(self, name: str) -> Calibration | None:
        if self.fabric is None:
            return factors.load().calibrations.get(name)
        from orchestrator.predict.calibrated import calibration

        return calibration(self.fabric, name)[1]


@dataclass(frozen=True, slots=True)
class Planned:
    """The rankings of one scenario under one engine, for each concurrency. sweeps: of the first
    layouts of the first ranking, against concurrency."""

    scenario: str
    input_len: int
    output_len: int
    engine: str
    provenance: str
    rankings: tuple[Ranking, ...]
    sweeps: tuple[Sweep, ...] = ()
    arrivals: str = ""
    reliability: Reliability | None = None

    def goodput(self, one: Prediction) -> Goodput | None:
        """What is left of it; None within one node."""
        return goodput(one, self.output_len, self.reliability) if self.reliability else None

    @property
    def has_tpot(self) -> bool:
        """Whether a request has a token after its first."""
        return self.output_len > 1

    @property
    def predictions(self) -> Iterator[Prediction]:
        """Of every layout and concurrency."""
        return (one for ranking in self.rankings for one in ranking.predictions)


@dataclass(frozen=True, slots=True)
class Runs:
    """How often each cell is run, and for how many seconds at least. ablate: what it is run without
    once more, "comm" or "p2p"."""

    starts: int
    runs: int
    least_s: float = 0.0
    ablate: tuple[str, ...] = ()

    @property
    def of_a_cell(self) -> int:
        """Runs in all, warm-ups not counted."""
        return self.starts * self.runs

    def cells(self, one: Prediction) -> int:
        """That of a layout, and those without something that it does."""
        kinds = {"comm": "tp" in one.axes, "p2p": any(axis != "dp" for axis in one.axes)}
        return 1 + sum(kinds[what] for what in self.ablate)


@dataclass(frozen=True, slots=True)
class Plan:
    """runs: None where nothing is to be run."""

    model: str
    precision: str
    machines: Machines
    hardware: Hardware
    planned: tuple[Planned, ...]
    runs: Runs | None = None

    @property
    def predictions(self) -> Iterator[Prediction]:
        """Of every scenario, engine, layout and concurrency."""
        return (one for planned in self.planned for one in planned.predictions)

    @property
    def cells(self) -> int:
        """Predictions, and each once more for what it is run without."""
        return sum(self.runs.cells(one) if self.runs else 1 for one in self.predictions)

    @property
    def duration_s(self) -> float:
        """Of all runs, or of one of each where none is to be made. Starts of workers, warm-ups and
        what is observed are not counted; a cell without communication as that with it."""
        runs = self.runs or Runs(1, 1)
        each = (runs.cells(one) * max(one.duration_s, runs.least_s) for one in self.predictions)
        return runs.of_a_cell * sum(each)


def check_known(scenario: str, input_len: int, output_len: int, other: str | None) -> None:
    """Raise UserError for a closed loop of requests that are not of equal lengths. other: what
    makes a load another one."""
    if other is not None or not (input_len and output_len):
        what = other or f"lengths that differ ({scenario})"
        raise UserError(
            f"a prediction of a closed loop is of requests of equal lengths, and not of {what}; "
            "give --scenario, or --input-len and --output-len as numbers, or --request-rate"
        )


def as_data(plan: Plan) -> dict[str, object]:
    """Plain data for `json.dumps`: times in ms and seconds, bytes, tokens/s."""
    hardware = plan.hardware
    return {
        "model": plan.model,
        "precision": plan.precision,
        "gpu": hardware.name,
        "gpus": plan.machines.gpus,
        "gpus_per_node": hardware.gpus_per_node,
        "memory_bytes": hardware.memory_bytes,
        "sources": used_sources(plan),
        "cells": plan.cells,
        "runs_of_a_cell": plan.runs and plan.runs.of_a_cell,
        "duration_s": plan.duration_s,
        "plans": [_planned(one) for one in plan.planned],
    }


def _planned(one: Planned) -> dict[str, object]:
    return {
        "scenario": one.scenario,
        "input_len": one.input_len,
        "output_len": one.output_len,
        "arrivals": one.arrivals or None,
        "engine": one.engine,
        "factors": one.provenance,
        "rankings": [
            {
                "max_concurrency": ranking.max_concurrency,
                "layouts": list(_rows(one, ranking)),
                "refused": [asdict(refused) for refused in ranking.refused],
            }
            for ranking in one.rankings
        ],
        "against_concurrency": [asdict(sweep) for sweep in one.sweeps],
    }


def _rows(plan: Planned, ranking: Ranking) -> Iterator[dict[str, object]]:
    front, none = front_of(plan, ranking), {} if plan.has_tpot else {"tpot_ms": None}
    for rank, one in enumerate(ranking.predictions, 1):
        left = plan.goodput(one)
        place = {"rank": rank, "pareto": one.layout in front}
        yield {**place, **asdict(one), **none, "goodput": left and asdict(left)}


def front_of(plan: Planned, ranking: Ranking) -> frozenset[str]:
    """Layouts that no other one beats; in tokens/s for a GPU alone where there is no time for each
    further token."""
    if plan.has_tpot or not ranking.predictions:
        return ranking.front
    best = max(one.per_gpu for one in ranking.predictions)
    return frozenset(one.layout for one in ranking.predictions if one.per_gpu == best)


def used_sources(plan: Plan) -> dict[str, str]:
    """Figure of the hardware -> where it comes from; those that are known and used."""
    hardware, fabric = plan.hardware, plan.hardware.fabric
    network = fabric.network if plan.machines.gpus > hardware.gpus_per_node else None
    known = {
        "memory": hardware.memory_bytes,
        "power": hardware.power_w,
        "link": fabric.link or fabric.curves,
        "network": network,
    }
    sources = {**hardware.sources, **({"network": network.source} if network else {})}
    return {what: source for what, source in sources.items() if known.get(what, True)}


def refused(plan: Planned) -> list[NoPrediction]:
    """The layouts without a prediction, each reason once."""
    every = (one for ranking in plan.rankings for one in ranking.refused)
    return list(dict.fromkeys(replace(one, max_concurrency=None) for one in every))
