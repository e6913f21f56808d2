"""Every layout of a number of GPUs, each predicted or refused with its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.node import datasheet
from orchestrator.predict.factors import PEERS, EngineFactors
from orchestrator.predict.hardware import Hardware
from orchestrator.predict.load import Asked
from orchestrator.predict.passes import Placed, Setting
from orchestrator.predict.prediction import IMPOSSIBLE, NoPrediction, Prediction, predict
from strategies import Layout, LayoutError, Load, ModelShape, Topology, plan_layout
from strategies.peer_sums import RANKS, kind_for
from strategies.precision import Precision
from strategies.registry import discover, known_parts
from strategies.shapes import HOPPER


@dataclass(frozen=True, slots=True)
class Ranking:
    """Layouts under one load, the fastest first. front: those that no other one beats in both
    tokens/s for a GPU and time to a token. refused: those that have no prediction."""

    max_concurrency: int
    predictions: tuple[Prediction, ...]
    front: frozenset[str]
    refused: tuple[NoPrediction, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """What layouts are compared for. few: whether the engine has its kernels of few rows, where it
    has some."""

    model: ModelShape
    precision: Precision
    hardware: Hardware
    factors: EngineFactors
    asked: Asked
    few: bool = True

    @property
    def has_few(self) -> bool:
        """Whether the engine has kernels of few rows on such GPUs."""
        capability = datasheet.capability(self.hardware.name) or (0, 0)
        return self.factors.few is not None and capability[0] == HOPPER


@dataclass(frozen=True, slots=True)
class Candidates:
    """Layouts of so many GPUs that can be placed, and those that cannot. What does not depend on
    the load is worked out once for all rankings."""

    case: Case
    gpus: int
    settings: tuple[tuple[Layout, Setting], ...]
    impossible: tuple[NoPrediction, ...]

    def on(self, case: Case) -> Candidates:
        """The same placements in another case of that model: of another load, or on GPUs of another
        kind. For tp, pp and dp, which place a model by its shape and the number of GPUs alone."""
        settings = tuple((layout, _setting(case, layout)) for layout, _ in self.settings)
        return Candidates(case, self.gpus, settings, self.impossible)

    def ranking(self, concurrency: int) -> Ranking:
        """All of them under the load of the case, with at most so many requests at once."""
        return self.under(replace(self.case.asked, max_concurrency=concurrency))

    def under(self, asked: Asked) -> Ranking:
        """All of them under a load."""
        found = [predict(setting, layout.name, asked) for layout, setting in self.settings]
        predictions = ranked([one for one in found if isinstance(one, Prediction)])
        refused = [one for one in found if isinstance(one, NoPrediction)]
        return Ranking(
            asked.max_concurrency,
            tuple(predictions),
            frozenset(pareto(predictions)),
            (*self.impossible, *refused),
        )


def rankings(
    case: Case, names: Sequence[str], gpus: int, concurrencies: Sequence[int]
) -> list[Ranking]:
    """A ranking for each concurrency. Raises LayoutError for a name that is none."""
    found = candidates(case, names, gpus, max(concurrencies))
    return [found.ranking(number) for number in concurrencies]


def candidates(case: Case, names: Sequence[str], gpus: int, concurrency: int) -> Candidates:
    """The layouts `names` of `gpus`; two names of the same one count once. concurrency: the most
    that they are planned for. Raises LayoutError for a name that is none."""
    installed = discover()
    for name in names:
        known_parts(name, installed)
    load = Load(case.asked.lengths.input_len, case.asked.lengths.output_len, concurrency)
    topology = Topology.uniform(gpus, case.hardware.memory_bytes or 0, case.hardware.name)
    settings: dict[str, tuple[Layout, Setting]] = {}
    impossible: list[NoPrediction] = []
    for name in names:
        try:
            layout = plan_layout(name, case.model, load, topology, installed)
        except LayoutError as error:
            impossible.append(NoPrediction(name, IMPOSSIBLE, str(error)))
            continue
        if layout.placement.num_ranks > gpus:
            why = f"it needs {layout.placement.num_ranks} GPUs, of {gpus}"
            impossible.append(NoPrediction(layout.name, IMPOSSIBLE, why))
        elif layout.name not in settings:
            settings[layout.name] = layout, _setting(case, layout)
    return Candidates(case, gpus, tuple(settings.values()), tuple(dict.fromkeys(impossible)))


def _setting(case: Case, layout: Layout) -> Setting:
    hardware, sums = case.hardware, _allreduce(case, layout)
    early = case.few and case.has_few
    placed = Placed(layout.placement, case.model, case.precision, hardware, sums, early)
    return Setting(placed, case.factors)


def _allreduce(case: Case, layout: Layout) -> str:
    """What the engine by itself sums over tp with: NCCL where NVLink does not join the GPUs."""
    fabric, ranks = case.hardware.fabric, layout.placement.num_ranks
    joined = min(case.hardware.gpus_per_node, fabric.joined or ranks)
    is_linked = fabric.nvlink and ranks <= joined
    tp, sums = layout.placement.degree("tp"), case.factors.sums
    if not is_linked or tp not in RANKS:
        return "nccl"
    return kind_for(tp) if sums == PEERS else sums


def dominates(one: Prediction, other: Prediction) -> bool:
    """Whether `one` is better in tokens/s for a GPU or in speed for a user, and worse in
    neither."""
    mine, theirs = _front(one), _front(other)
    return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))


def _front(one: Prediction) -> tuple[float, float]:
    return one.per_gpu, 1 / one.tpot_ms.value if one.tpot_ms.value else math.inf


def ranked(found: Sequence[Prediction]) -> list[Prediction]:
    """The fastest first; among equal ones that with the shorter time to a token."""
    return sorted(found, key=lambda one: (-one.output_throughput.value, one.tpot_ms.value))


def pareto(found: Sequence[Prediction]) -> set[str]:
    """Layouts that no other one dominates."""
    return {one.layout for one in found if not any(dominates(other, one) for other in found)}
