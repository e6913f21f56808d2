"""What training takes, as it is worked out before anything runs, of cells that ran."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.analysis.training.comparison import TrainingComparison
from orchestrator.analysis.training.rows import TrainingConditions
from orchestrator.plan import models
from orchestrator.plan.devices import DEFAULT_ENGINE
from orchestrator.store.folders import read_manifest
from orchestrator.store.schema import COMPLETED, CellKey
from strategies import ModelShape, Topology, TrainingLoad, plan_layout
from strategies.errors import Refused
from strategies.training import TrainingMemory, fullest
from workers.units import is_cpu

Predictions = Mapping[CellKey, TrainingMemory]


def predictions(folders: Iterable[Path], cells: Iterable[TrainingComparison]) -> Predictions:
    """Of the fullest rank of each cell on GPUs, as `orchestrator explain` has it: its model is a
    preset, or still in the folder that it was trained from."""
    manifests = [read_manifest(folder) for folder in folders]
    asked = [one.get("experiment") or {} for one in manifests]
    fusion = {one.get("name"): how.get("fusion") for one, how in zip(manifests, asked, strict=True)}
    shapes = dict(filter(None, map(_shape, {str(one.get("model")) for one in asked})))
    found = {
        one.cell: _taken(shapes[one.cell.model], one, fusion.get(one.cell.experiment))
        for one in cells
        if one.status == COMPLETED
        and one.cell.model in shapes
        and not is_cpu(one.conditions.device_name)
    }
    return {cell: taken for cell, taken in found.items() if taken is not None}


def _shape(model: str) -> tuple[str, ModelShape] | None:
    try:
        shape = models.resolve(model, "dummy").shape
    except Refused:
        return None
    return shape.name, shape


def _taken(shape: ModelShape, one: TrainingComparison, fusion: str | None) -> TrainingMemory | None:
    load = replace(
        _load(one.conditions).with_fusion(fusion, on_gpu=True),
        keeps_gradients=one.cell.engine != DEFAULT_ENGINE,
    )
    ranks = Topology.uniform(one.conditions.num_gpus)
    try:
        layout = plan_layout(one.cell.strategy, shape, load.load, ranks)
        return fullest(layout.placement, shape, load)
    except Refused:
        return None


def _load(asked: TrainingConditions) -> TrainingLoad:
    known: Mapping[str, Any] = {
        "precision": asked.precision,
        "activation_checkpointing": asked.activation_checkpointing,
        "offload": asked.offload or "none",
        **({"schedule": asked.schedule} if asked.schedule else {}),
    }
    return TrainingLoad(asked.seq_len, asked.global_batch_size, asked.micro_batch_size, **known)
