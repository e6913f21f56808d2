"""Deployments of the fake engine, as the driver is given them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_engine
from recorder import Recorder

from orchestrator.experiment import Cell, Deployment, Experiment, Scenario
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment
from orchestrator.run import driver
from orchestrator.store.store import Store
from strategies import Placement
from strategies.shapes import ModelShape
from workers.messages import EnginePlan, Work

TIMEOUT_S = 60.0  # above what a start takes on a busy machine
SHAPE = ModelShape("tiny", "llama", 8, 2, 4, 4, 2, 16, 32, 128, 1e-6, 1e4)


def plan(ranks: int, build_order: int = fake_engine.SERVE, slower: float = 0.0) -> EnginePlan:
    placement = (
        Placement.single(SHAPE).with_axis("tp", ranks) if ranks > 1 else Placement.single(SHAPE)
    )
    return EnginePlan(
        model=SHAPE,
        layout=f"tp{ranks}",
        placement=placement,
        checkpoint=None,
        dtype="float32",
        device="cpu",
        max_concurrency=4,
        max_len=16,
        prefill_tokens=build_order,
        temperature=slower,
    )


def run(
    planned: Sequence[PlannedDeployment],
    folder: Path,
    on_phase: Callable[[str], object] | None = None,
    **fields: Any,
) -> tuple[Store, Recorder]:
    """Run what has no result in `folder`. Returns the results and what the driver told."""
    recorder = Recorder(on_phase)
    experiment = Experiment(**{"result_dir": folder, "timeout": TIMEOUT_S, **fields})
    return Store(driver.run_experiment(planned, experiment, recorder)), recorder


def deployment(
    strategy: str,
    orders: Sequence[tuple[int, int]] = ((fake_engine.SERVE, 0),),
    build_order: int = fake_engine.SERVE,
    dtype: str = "float32",
    slower: float = 0.0,
    ablation: str = "none",
) -> PlannedDeployment:
    """tp1, tp2 ... with a cell for each (order, rank) of `orders`, told apart by their concurrency
    of 1, 2, ... slower: by how many times a token takes longer."""
    asked = Deployment("tiny", strategy, "fake", dtype, ablation=ablation)
    cells = tuple(
        PlannedCell(
            Cell(asked, Scenario("short", 3, 4), index),
            Work(fake_engine.requests(4, order, rank), index),
            Work(fake_engine.requests(1), 1),
        )
        for index, (order, rank) in enumerate(orders, start=1)
    )
    return PlannedDeployment(asked, plan(int(strategy[2:]), build_order, slower), cells)


def piloted(planned: PlannedDeployment) -> PlannedDeployment:
    """The same, with the requests of each cell to be settled by a pilot."""
    return replace(planned, cells=tuple(map(_piloted, planned.cells)))


def _piloted(cell: PlannedCell) -> PlannedCell:
    seats, (order, rank, _) = cell.work.max_concurrency, cell.work.requests[0].prompt

    def sized(count: int) -> Work:
        return Work(fake_engine.requests(count, order, rank), seats)

    return replace(cell, work=sized(seats), sized=sized)
