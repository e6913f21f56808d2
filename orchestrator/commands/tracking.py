"""Results for a tracker of experiments: a run of the tracker a cell, with its figures, what names
it, and the page. Each tracker is an optional package, imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError


@dataclass(frozen=True, slots=True)
class Tracked:
    """One cell. tags: what names it. figures: the numbers of its row of the comparison."""

    name: str
    tags: Mapping[str, str]
    figures: Mapping[str, float]


def tracked_cells(rows: Sequence[Mapping[str, object]], names: Sequence[str]) -> list[Tracked]:
    """The rows of the comparison, with the names of their cells, for a tracker."""
    return [
        Tracked(
            name,
            {key: value for key, value in row.items() if isinstance(value, str)},
            {key: float(value) for key, value in row.items() if isinstance(value, int | float)},
        )
        for name, row in zip(names, rows, strict=True)
    ]


def track(tracker: str, experiment: str, cells: Sequence[Tracked], page: Path, out: Path) -> None:
    """Log cells and the page. out: the folder of what a tracker writes on this machine. Raises
    UserError where its package is missing or it refuses."""
    module = _module(tracker)
    try:
        TRACKERS[tracker](module, experiment, cells, page, out)
    except Exception as error:  # whatever a server or a library raises: the results stay
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{tracker} has not taken the results: {why}") from error


def _module(tracker: str) -> Any:
    try:
        return importlib.import_module(MODULES[tracker])
    except ImportError as error:
        raise UserError(
            f"--track {tracker} needs a package that is not here ({error}); "
            f"pip install 'shard-orchestrator[{tracker}]'"
        ) from error


def _to_mlflow(
    mlflow: Any, experiment: str, cells: Sequence[Tracked], page: Path, out: Path
) -> None:
    """To MLFLOW_TRACKING_URI, else where mlflow keeps runs by itself."""
    mlflow.set_experiment(experiment)
    for cell in cells:
        with mlflow.start_run(run_name=cell.name):
            mlflow.set_tags(dict(cell.tags))
            mlflow.log_metrics(dict(cell.figures))
            mlflow.log_artifact(str(page))


def _to_wandb(wandb: Any, experiment: str, cells: Sequence[Tracked], page: Path, out: Path) -> None:
    """To the project of WANDB_PROJECT, else shard-orchestrator; cells are runs of one group."""
    out.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        run = wandb.init(
            project=None if _is_set("WANDB_PROJECT") else "shard-orchestrator",
            group=experiment,
            name=cell.name,
            config=dict(cell.tags),
            dir=str(out),
        )
        run.summary.update(dict(cell.figures))
        run.log({"report": wandb.Html(page.read_text(encoding="utf-8"))})
        run.finish()


def _to_tensorboard(
    tensorboard: Any, experiment: str, cells: Sequence[Tracked], page: Path, out: Path
) -> None:
    """To event files in `out`, a folder a cell."""
    for cell in cells:
        writer = tensorboard.SummaryWriter(str(out / cell.name))
        for name, value in cell.figures.items():
            writer.add_scalar(name, value)
        lines = "\n".join(f"    {key}: {value}" for key, value in cell.tags.items())
        writer.add_text("cell", f"{lines}\n\n    report: {page}")
        writer.close()


def _is_set(variable: str) -> bool:
    import os

    return bool(os.environ.get(variable))


TRACKERS: Mapping[str, Callable[[Any, str, Sequence[Tracked], Path, Path], None]] = {
    "mlflow": _to_mlflow,
    "wandb": _to_wandb,
    "tensorboard": _to_tensorboard,
}
MODULES = {"mlflow": "mlflow", "wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}
