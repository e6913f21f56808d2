"""What is installed here, where a layout would put a model, and what this node can do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands import SOME_FAILED, training
from orchestrator.errors import UserError
from orchestrator.report.output import Output, say

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment


def strategies(as_json: bool) -> None:
    """What is installed."""
    from orchestrator.plan.installed import installed
    from orchestrator.report.lists import render_plugins

    found = installed()
    Output(as_json).show(lambda: found, lambda console: render_plugins(found, console))


def explain(
    layouts: Sequence[str],
    model: str,
    asked: Experiment,
    memory: str | None,
    batch: int | None,
    prefill_tokens: int | None,
    gpus_per_node: int | None,
    as_json: bool,
) -> None:
    """Where layouts put a model. memory: of one GPU, as "141GB"; None: what is here. gpus_per_node:
    None: all on one. asked: of an experiment, its precision, or what it trains on."""
    if asked.workload == "train":
        _refuse(batch, prefill_tokens, gpus_per_node)
        training.explain(layouts, model, asked, memory, Output(as_json))
        return
    from orchestrator.plan import fitting, planning, precision
    from orchestrator.plan.deployments import like_nodes
    from orchestrator.report import explain as report
    from orchestrator.report import explain_several as several

    available = fitting.gpu_memory(memory)
    sketches = [planning.sketch(name, model, available) for name in layouts]
    explained = [
        report.explain(
            layout,
            shape,
            precision.resolve(asked, shape, "cuda"),
            available,
            batch or 1,
            prefill_tokens,
            like_nodes(layout.placement, gpus_per_node),
        )
        for layout, shape in sketches
    ]

    Output(as_json).show(
        lambda: [report.as_data(one) for one in explained],
        lambda console: several.render(explained, console),
    )


def _refuse(*of_generation: int | None) -> None:
    if any(of_generation):
        raise UserError(
            "--batch, --chunked-prefill-size and --gpus-per-node are about the workload generate, "
            "and train is asked for; leave them out"
        )


def calibrate(
    device: str,
    ranks: int | None,
    folder: Path | None,
    address: str | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Measure this node."""
    from orchestrator.node.calibrate import calibrate as measure
    from orchestrator.report import fabric_tables

    found = measure(device, ranks, folder, address, quick, partial(say, err=True))
    Output(as_json).show(
        lambda: fabric_tables.as_data(found), lambda console: fabric_tables.render(found, console)
    )


def doctor(address: str | None, as_json: bool) -> int:
    """Check this node."""
    from dataclasses import asdict

    from orchestrator.cluster.address import address_of
    from orchestrator.node import facts
    from orchestrator.node.doctor import FAIL, examine
    from orchestrator.report.lists import render

    checks = examine(facts.gather(address_of(address)))
    Output(as_json).show(
        lambda: [asdict(check) for check in checks], lambda console: render(checks, console)
    )
    return SOME_FAILED if any(check.status == FAIL for check in checks) else 0
