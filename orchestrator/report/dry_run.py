"""What a command would run: its deployments, where each puts the model and how that fits, and the
work of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.plan.deployments import PlannedCell, PlannedDeployment
from orchestrator.plan.fitting import budget_of, concurrent_requests
from orchestrator.report import explain
from orchestrator.report.explain import Explanation
from strategies import Layout, Topology

# Title of a column -> the field of a cell that it shows.
WORK = {
    "max_concurrency": "max_concurrency",
    "requests": "num_prompts",
    "prompt tokens": "prompt_tokens",
    "output tokens": "output_tokens",
}


def as_data(planned: Sequence[PlannedDeployment], topology: Topology) -> dict[str, Any]:
    """Plain data for `json.dumps`: a row per deployment, in the order they run, with its placement
    and its cells.

    fits: always true, for a plan that does not fit is refused where it is made. kv_tokens: what one
    replica has room for;
    concurrent_requests: of max_len tokens, in all; both None where KV is made for the load.
    """
    return {"deployments": [_deployment(one, topology) for one in planned]}


def render(planned: Sequence[PlannedDeployment], topology: Topology, console: Console) -> None:
    """Print every deployment's placement, and its cells with what of them fits at once."""
    for one in planned:
        ranks = f"{one.plan.placement.num_ranks} x {one.plan.device}"
        console.print(f"[bold]{one.deployment.name}[/bold]: {ranks}, {_fit(_room(one, topology))}")
        console.print(explain.ranks_table(_explanation(one, topology)))
    console.print(_cells_table(planned))


def _deployment(one: PlannedDeployment, topology: Topology) -> dict[str, Any]:
    return {
        "name": one.deployment.name,
        "layout": one.deployment.layout,
        **asdict(one.deployment),
        "device": one.plan.device,
        "num_ranks": one.plan.placement.num_ranks,
        "fits": True,
        **_room(one, topology),
        "placement": explain.as_data(_explanation(one, topology)),
        "cells": [_cell(cell) for cell in one.cells],
    }


def _explanation(one: PlannedDeployment, topology: Topology) -> Explanation:
    plan = one.plan
    layout = Layout(plan.layout, plan.placement)
    return explain.explain(
        layout,
        plan.model,
        plan.dtype,
        topology.memory_bytes,
        plan.max_concurrency,
        plan.prefill_tokens,
    )


def _room(one: PlannedDeployment, topology: Topology) -> dict[str, Any]:
    held = concurrent_requests(one.plan, topology)
    kv_tokens = None if held is None else budget_of(one.plan, topology).kv_tokens
    return {"max_len": one.plan.max_len, "kv_tokens": kv_tokens, "concurrent_requests": held}


def _fit(room: dict[str, Any]) -> str:
    if room["concurrent_requests"] is None:
        return "fits; KV is made for the load"
    at_once = f"{room['concurrent_requests']} requests of {room['max_len']} tokens at once"
    return f"fits; room for {room['kv_tokens']} tokens of KV a replica, {at_once}"


def _cell(planned: PlannedCell) -> dict[str, Any]:
    cell, requests = planned.cell, planned.work.requests
    return {
        "scenario": cell.scenario.name,
        "max_concurrency": cell.max_concurrency,
        "num_prompts": len(requests),
        "prompt_tokens": sum(len(request.prompt) for request in requests),
        "output_tokens": sum(request.output_len for request in requests),
    }


def _cells_table(planned: Sequence[PlannedDeployment]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="cells", title_justify="left")
    for title in ("strategy", "engine", "scenario"):
        table.add_column(title)
    for title in WORK:
        table.add_column(title, justify="right")
    for one in planned:
        for cell in map(_cell, one.cells):
            figures = (str(cell[name]) for name in WORK.values())
            table.add_row(one.deployment.layout, one.deployment.engine, cell["scenario"], *figures)
    return table
