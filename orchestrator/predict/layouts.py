"""Every layout of a number of GPUs, each predicted or refused with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.predict.factors import EngineFactors
from orchestrator.predict.hardware import Hardware
from orchestrator.predict.load import Asked
from orchestrator.predict.passes import Placed, Setting
from orchestrator.predict.prediction import IMPOSSIBLE, NoPrediction, Prediction, predict
from strategies import Layout, LayoutError, Load, ModelShape, Topology, parse, plan_layout
from strategies.precision import Precision
from strategies.registry import discover


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
    """What layouts are compared for."""

    model: ModelShape
    precision: Precision
    hardware: Hardware
    factors: EngineFactors
    asked: Asked


def factorisations(gpus: int) -> Iterator[str]:
    """Every tp x pp x dp of `gpus`, by name."""
    divisors = [number for number in range(1, gpus + 1) if gpus % number == 0]
    for tp in divisors:
        for pp in divisors:
            if gpus % (tp * pp) == 0:
                degrees = {"tp": tp, "pp": pp, "dp": gpus // (tp * pp)}
                yield "".join(f"{key}{n}" for key, n in degrees.items() if n > 1) or "tp1"


def rankings(
    case: Case, names: Sequence[str], gpus: int, concurrencies: Sequence[int]
) -> list[Ranking]:
    """A ranking for each concurrency. Raises LayoutError for a name that is none."""
    for name in names:
        parse(name)
    load = Load(case.asked.lengths.input_len, case.asked.lengths.output_len, max(concurrencies))
    topology = Topology.uniform(gpus, case.hardware.memory_bytes or 0, case.hardware.name)
    installed, planned = discover(), []
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
        else:
            planned.append(layout)
    settings = [(layout, _setting(case, layout)) for layout in planned]
    return [_ranking(case, settings, impossible, number) for number in concurrencies]


def _setting(case: Case, layout: Layout) -> Setting:
    placed = Placed(layout.placement, case.model, case.precision, case.hardware)
    return Setting(placed, case.factors)


def _ranking(
    case: Case,
    settings: Sequence[tuple[Layout, Setting]],
    impossible: Sequence[NoPrediction],
    concurrency: int,
) -> Ranking:
    asked = replace(case.asked, max_concurrency=concurrency)
    found = [predict(setting, layout.name, asked) for layout, setting in settings]
    predictions = ranked([one for one in found if isinstance(one, Prediction)])
    refused = [one for one in found if isinstance(one, NoPrediction)]
    return Ranking(
        concurrency, tuple(predictions), frozenset(pareto(predictions)), (*impossible, *refused)
    )


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
