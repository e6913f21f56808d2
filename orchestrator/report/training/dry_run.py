"""What a command would train."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from orchestrator.plan.deployments import PlannedDeployment
from strategies.training import micro_batches


def as_data(planned: Sequence[PlannedDeployment]) -> dict[str, object]:
    """Plain data for `json.dumps`: a row for each deployment, in the order they run."""
    return {"deployments": [_deployment(one) for one in planned]}


def render(planned: Sequence[PlannedDeployment], console: Console) -> None:
    """Print a line for each deployment."""
    for row in map(_deployment, planned):
        console.print(
            f"{row['name']}: {row['num_ranks']} x {row['device']}; replicas: {row['replicas']}, "
            f"micro-batches of each: {row['micro_batches']}, sequences of each of these: "
            f"{row['micro_batch_size']}.",
            highlight=False,
        )


def _deployment(one: PlannedDeployment) -> dict[str, object]:
    plan, asked = one.plan, one.plan.training
    assert asked is not None, "the plan trains"
    return {
        "name": one.deployment.name,
        "layout": one.deployment.layout,
        "engine": one.deployment.engine,
        "device": plan.device,
        "num_ranks": plan.placement.num_ranks,
        "replicas": plan.placement.num_replicas,
        "micro_batches": micro_batches(plan.placement, asked),
        "micro_batch_size": asked.micro_batch_size,
        "precision": asked.precision,
    }
