"""What commands show of runs that train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UserError
from orchestrator.report.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.analysis.training.comparison import TrainingFindings
    from orchestrator.experiment import Experiment
    from orchestrator.plan.deployments import PlannedDeployment


def trained_at(folders: Sequence[Path]) -> list[Path]:
    """The experiments at or below `folders` that trained; none where others did not. Raises
    UserError for folders that hold both kinds."""
    from orchestrator.analysis.training.comparison import trained_at as found_at
    from orchestrator.store.folders import find

    trained, every = found_at(folders), [one for folder in folders for one in find(folder)]
    if trained and len(trained) != len(every):
        raise UserError(
            f"{trained[0]} trained and others generated, which are not compared; give folders of "
            "one workload"
        )
    return trained


def findings(folders: Sequence[Path], difference: float | None) -> TrainingFindings:
    """What the experiments in `folders` say. difference: the smallest that matters, as a share."""
    from orchestrator.analysis.training.comparison import findings_of

    return findings_of(folders, difference)


def draw(found: TrainingFindings, console: Console) -> None:
    """Print what was found."""
    from orchestrator.report.training.terminal import render

    render(found, console)


def page(folders: Sequence[Path], path: Path) -> Path:
    """Write the page of the experiments in `folders`."""
    from orchestrator.report.training.page import render_html

    return render_html(folders, path)


def show_plan(planned: Sequence[PlannedDeployment], out: Output) -> None:
    """Print what would be trained."""
    from orchestrator.report.training.dry_run import as_data, render

    out.show(lambda: as_data(planned), lambda console: render(planned, console))


def explain(
    layouts: Sequence[str], model: str, asked: Experiment, memory: str | None, out: Output
) -> None:
    """Print what training a model takes under each layout. memory: of one GPU, as "141GB"; None:
    what is here. asked: the fields of training of an experiment. Raises UserError, LayoutError or
    EngineError for what `submit` refuses, but for what needs more memory."""
    from orchestrator.plan import fitting
    from orchestrator.plan.training import check_schedule
    from orchestrator.plan.training import explained as planned
    from orchestrator.report.training import explain as report

    available = fitting.gpu_memory(memory)
    plans = [planned(asked, name, model, available) for name in layouts]
    check_schedule(asked.schedule, {plan.layout: plan.placement for _, plan in plans})
    explained = [report.explain(engine, plan, available) for engine, plan in plans]
    out.show(
        lambda: [report.as_data(one) for one in explained],
        lambda console: report.render(explained, console),
    )
