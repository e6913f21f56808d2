"""Deployments of the fake engine, as the driver is given them."""

from __future__ import annotations

from collections.abc import Sequence

import fake_engine

from orchestrator.experiment import Cell, Deployment, Scenario
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment
from strategies import Placement
from strategies.shapes import ModelShape
from workers.messages import EnginePlan, Work

SHAPE = ModelShape("tiny", "llama", 8, 2, 4, 4, 2, 16, 32, 128, 1e-6, 1e4)


def plan(ranks: int, build_order: int = fake_engine.SERVE) -> EnginePlan:
    placement = (
        Placement.single(SHAPE).with_axis("tp", ranks) if ranks > 1 else Placement.single(SHAPE)
    )
    return EnginePlan(SHAPE, f"tp{ranks}", placement, None, "float32", "cpu", 4, 16, build_order)


def deployment(
    strategy: str,
    orders: Sequence[tuple[int, int]] = ((fake_engine.SERVE, 0),),
    build_order: int = fake_engine.SERVE,
    dtype: str = "float32",
) -> PlannedDeployment:
    """tp1, tp2 ... with a cell for each (order, rank) of `orders`, told apart by their concurrency
    of 1, 2, ..."""
    asked = Deployment("tiny", strategy, "fake", dtype)
    cells = tuple(
        PlannedCell(
            Cell(asked, Scenario("short", 3, 4), index),
            Work(fake_engine.requests(4, order, rank), index),
            Work(fake_engine.requests(1), 1),
        )
        for index, (order, rank) in enumerate(orders, start=1)
    )
    return PlannedDeployment(asked, plan(int(strategy[2:]), build_order), cells)
