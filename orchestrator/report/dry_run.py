"""What a command would run: its deployments, where each puts the model and how that fits, and the
work of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.plan.attention import Attention
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment, nodes_of
from orchestrator.plan.fitting import budget_of, concurrent_requests
from orchestrator.report import explain
from orchestrator.report.explain import Explanation
from strategies import Layout, Topology


@dataclass(frozen=True, slots=True)
class Room:
    """What a deployment has room for.

    max_len: tokens of its longest request. kv_tokens: of one replica. concurrent_requests: of
    max_len tokens, in all. Both are None where KV is made for the load.
    """

    max_len: int
    kv_tokens: int | None
    concurrent_requests: int | None

    @property
    def sentence(self) -> str:
        """The same in words."""
        if self.concurrent_requests is None:
            return "fits; KV is made for the load"
        at_once = f"{self.concurrent_requests} requests of {self.max_len} tokens at once"
        return f"fits; room for {self.kv_tokens} tokens of KV a replica, {at_once}"


@dataclass(frozen=True, slots=True)
class CellWork:
    """The work of one run of a cell. Requests and tokens are None where a pilot is to settle
    them. A request that belongs to no conversation is one of its own."""

    scenario: str
    max_concurrency: int
    num_prompts: int | None
    num_conversations: int | None
    prompt_tokens: int | None
    output_tokens: int | None

    @classmethod
    def of(cls, planned: PlannedCell) -> CellWork:
        """The work that is planned."""
        cell, requests = planned.cell, planned.served.requests
        if planned.sized is not None:
            return cls(cell.scenario.name, cell.max_concurrency, None, None, None, None)
        return cls(
            scenario=cell.scenario.name,
            max_concurrency=cell.max_concurrency,
            num_prompts=len(requests),
            num_conversations=planned.served.num_conversations,
            prompt_tokens=sum(len(request.prompt) for request in requests),
            output_tokens=sum(request.output_len for request in requests),
        )


def as_data(planned: Sequence[PlannedDeployment], topology: Topology) -> dict[str, object]:
    """Plain data for `json.dumps`: a row per deployment, in the order they run, with its placement
    and its cells.

    fits: always true, because planning refuses a plan that does not fit.
    """
    return {"deployments": [_deployment(one, topology) for one in planned]}


def render(planned: Sequence[PlannedDeployment], topology: Topology, console: Console) -> None:
    """Print the placement of every deployment, and how many requests of each of its cells fit at
    once."""
    for one in planned:
        ranks = f"{one.plan.placement.num_ranks} x {one.plan.device}"
        room = _room(one, topology).sentence
        console.print(Text.assemble((one.deployment.name, "bold"), f": {ranks}, {room}"))
        explanation = _explanation(one, topology)
        console.print(explain.ranks_table(explanation))
        for line in explain.phase_lines(explanation):
            console.print(line, highlight=False)
    for sentence in dict.fromkeys(Attention.of(one.plan.model).sentence for one in planned):
        console.print(sentence, highlight=False)
    console.print(_cells_table(planned))


def _deployment(one: PlannedDeployment, topology: Topology) -> dict[str, object]:
    return {
        "name": one.deployment.name,
        "layout": one.deployment.layout,
        **asdict(one.deployment),
        "device": one.plan.device,
        "switches": asdict(one.plan.switches),
        "num_ranks": one.plan.placement.num_ranks,
        "fits": True,
        **asdict(_room(one, topology)),
        "placement": explain.as_data(_explanation(one, topology)),
        "cells": [asdict(CellWork.of(cell)) for cell in one.cells],
    }


def _explanation(one: PlannedDeployment, topology: Topology) -> Explanation:
    plan = one.plan
    layout = Layout(plan.layout, plan.placement)
    return explain.explain(
        layout,
        plan.model,
        plan.precision,
        topology.memory_bytes,
        plan.max_concurrency,
        plan.prefill_tokens,
        nodes_of(one, topology),
    )


def _room(one: PlannedDeployment, topology: Topology) -> Room:
    held = concurrent_requests(one.plan, topology)
    kv_tokens = None if held is None else budget_of(one.plan, topology).kv_tokens
    return Room(one.plan.max_len, kv_tokens, held)


def _cells_table(planned: Sequence[PlannedDeployment]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="cells", title_justify="left")
    for title in ("strategy", "engine", "scenario"):
        table.add_column(title)
    for title in ("max_concurrency", "requests", "prompt tokens", "output tokens"):
        table.add_column(title, justify="right")
    for one in planned:
        for work in map(CellWork.of, one.cells):
            figures = (
                work.max_concurrency,
                work.num_prompts,
                work.prompt_tokens,
                work.output_tokens,
            )
            names = (one.deployment.layout, one.deployment.engine, work.scenario)
            table.add_row(*names, *map(_figure, figures))
    return table


def _figure(value: int | None) -> str:
    return "by a pilot" if value is None else str(value)
