"""From an experiment that trains to deployments, each checked before anything is taken."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.cluster.address import address_of
from orchestrator.errors import Refused, UserError
from orchestrator.experiment import IN_TRAINING, Cell, Deployment, Experiment, Scenario
from orchestrator.plan import models
from orchestrator.plan.corpus import pack
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment, switches_of
from orchestrator.plan.devices import DEFAULT_ENGINE, Device, check_devices, choose_engines
from orchestrator.plan.fitting import check_training_memory
from orchestrator.plan.models import ResolvedModel
from orchestrator.plan.precision import check_training_hardware
from orchestrator.store.names import safe_name
from strategies import Layout, Placement, Topology, TrainingLoad, parse, plan_layout
from strategies.shapes import Schedule, TrainingPrecision
from strategies.training import check_batches, micro_batches
from workers import engines
from workers.engines import training_state
from workers.engines.training_state import TrainingState
from workers.messages import EnginePlan, TrainingWork

PRECISIONS: Mapping[Device, TrainingPrecision] = {"cuda": "bf16", "cpu": "fp32"}
SCHEDULE: Schedule = "1f1b"


def load_of(experiment: Experiment, device: Device, replicas: int = 1) -> TrainingLoad:
    """What an optimizer step trains on. replicas: of a layout, over which accumulation deals the
    batch. Raises UserError where that does not divide."""
    asked, micro = experiment, experiment.micro_batch_size or 1
    if asked.gradient_accumulation_steps:
        pieces = replicas * asked.gradient_accumulation_steps
        if asked.global_batch_size % pieces:
            raise UserError(
                f"a global batch of {asked.global_batch_size} sequences does not divide over "
                f"{replicas} replica{'s' * (replicas > 1)} with --gradient-accumulation-steps "
                f"{asked.gradient_accumulation_steps}; use a multiple of {pieces}"
            )
        micro = asked.global_batch_size // pieces
    precision = PRECISIONS[device] if asked.precision == "auto" else asked.precision
    return TrainingLoad(
        seq_len=asked.seq_len,
        global_batch_size=asked.global_batch_size,
        micro_batch_size=micro,
        precision=precision,
        schedule=asked.schedule or SCHEDULE,
        activation_checkpointing=asked.activation_checkpointing,
        offload=asked.offload,
    ).with_fusion(asked.fusion, device == "cuda")


def whole(experiment: Experiment) -> Experiment:
    """The same with nothing said of micro-batches, which depend on the layout."""
    return experiment.model_copy(update={"gradient_accumulation_steps": None})


def plan_training(
    experiment: Experiment, device: Device, topology: Topology
) -> tuple[PlannedDeployment, ...]:
    """Every deployment of an experiment that trains. Raises UserError, LayoutError or EngineError
    with the reason for the first one that cannot be run."""
    model = models.resolve(experiment.model, experiment.load_format)
    trainable = Trainable(experiment, model, device, topology)
    placements = {one.name: one.placement for one in trainable.layouts()}
    check_schedule(experiment.schedule, placements)
    tokens = None
    if experiment.data is not None:
        load = load_of(whole(experiment), device)
        column, split = experiment.data_column, experiment.dataset_split
        tokens = pack(experiment.data, model, load, column, split)
    planner = _Planner(trainable, TrainingWork(experiment.steps, tokens))
    planned = tuple(one for layout in trainable.layouts() for one in planner.deployments(layout))
    asked = (*experiment.technique, *experiment.ablate)
    if asked and not any(one.deployment.ablation != "none" for one in planned):
        reasons = "; ".join(dict.fromkeys(why for one in planned for _, why in one.kept))
        reasons = reasons or "it is so already"
        raise UserError(f"{', '.join(asked)} can be changed under no layout: {reasons}")
    return planned


def check_schedule(schedule: Schedule | None, layouts: Mapping[str, Placement]) -> None:
    """Raises UserError for the schedule of a pipeline where no layout, by its name, has one."""
    if schedule and not any(one.degree("pp") > 1 for one in layouts.values()):
        raise UserError(
            f"--schedule {schedule} is of a pipeline, and none of the layouts "
            f"{', '.join(layouts)} has one; leave it out, or train under pp2 too"
        )


def check_folder(path: Path, folder: Path, is_local: bool) -> None:
    """Raises UserError where a file is in the way of the folder for a checkpoint, where none can
    have its name, or where nothing can be written there. path: as it is asked for. is_local:
    whether workers run on this machine; else it need not have the folder."""
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:
        raise UserError(
            f"--save-checkpoint {path}: {error.strerror}; give another folder"
        ) from error
    if not there.is_dir():
        raise UserError(f"--save-checkpoint {path}: {there} is a file; give another folder")
    if is_local and not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"--save-checkpoint {path}: {there} cannot be written to; give another folder"
        )


def why_not_silent(engine: str, plan: EnginePlan) -> str | None:
    """Why a plan is not trained without its collectives; None where it can be."""
    placement = plan.placement
    if placement.degree("pp") > 1:
        return "without hand-overs a pipeline has no order, and no bubble either"
    if plan.training is not None and plan.training.dtype == "float16":
        return "without sums every step would overflow, and none would update"
    return None if placement.num_ranks > 1 else "one rank has no collectives"


def explained(
    experiment: Experiment, name: str, model: str, memory_bytes: int
) -> tuple[str, EnginePlan]:
    """The engine that trains a layout, and its plan on as many GPUs of `memory_bytes` as it asks
    for, whatever this machine has: refused as `plan_training` refuses it, but for what these GPUs
    have no memory for, which is to be shown. Raises as that does."""
    ranks = math.prod(number for _, number in parse(name))
    gpus = Topology.uniform(ranks, memory_bytes)
    asked = experiment.model_copy(update={"strategy": (name,)})
    trainable = Trainable(asked, models.resolve(model, "dummy"), "cuda", gpus)
    (layout,) = trainable.layouts()
    engine = trainable.engines(layout)[0]
    return engine, trainable.plan(engine, layout)


@dataclass(frozen=True, slots=True)
class Trainable:
    """What an experiment trains, and on what. Raises UserError where no layout could."""

    experiment: Experiment
    model: ResolvedModel
    device: Device
    topology: Topology

    def __post_init__(self) -> None:
        asked, known = self.experiment.seq_len, self.model.shape.max_positions
        if asked > known:
            raise UserError(
                f"sequences of {asked} tokens are longer than {self.model.name} knows positions: "
                f"{known}; use a shorter --seq-len"
            )

    def layouts(self) -> list[Layout]:
        """The layouts that were asked for. Two names of the same layout count once."""
        shape, load = self.model.shape, load_of(whole(self.experiment), self.device).load
        named = (plan_layout(name, shape, load, self.topology) for name in self.experiment.strategy)
        return list({layout.name: layout for layout in named}.values())

    def engines(self, layout: Layout) -> tuple[str, ...]:
        """Those that a layout is to be trained on."""
        check_devices(layout, self.device, self.topology)
        return choose_engines(layout, self.experiment.engine)

    def plan(self, engine: str, layout: Layout) -> EnginePlan:
        """The plan of a layout on an engine. Raises UserError, LayoutError or EngineError for what
        is refused whatever memory there is."""
        plan = self._plan(engine, layout)
        if self.experiment.save_checkpoint is not None and engine != DEFAULT_ENGINE:
            raise UserError(_unsaved(engine, layout))
        if reason := engines.refusal(engine, plan):
            raise UserError(f"the engine {engine} cannot train {layout.name}: {reason}")
        plan = engines.settled(engine, plan)
        assert plan.training is not None
        check_batches(plan.placement, plan.training)
        check_training_hardware(plan, self.topology)
        return plan

    def _plan(self, engine: str, layout: Layout) -> EnginePlan:
        experiment, model = self.experiment, self.model
        load = load_of(experiment, self.device, layout.placement.num_replicas)
        load = replace(load, keeps_gradients=engine != DEFAULT_ENGINE)
        return EnginePlan(
            model=model.shape,
            layout=layout.name,
            placement=layout.placement,
            checkpoint=str(model.checkpoint) if model.checkpoint else None,
            dtype=load.dtype,
            device=self.device,
            max_concurrency=load.global_batch_size,
            max_len=load.seq_len,
            prefill_tokens=0,
            seed=experiment.seed,
            timeout_s=experiment.timeout,
            switches=switches_of(experiment),
            training=load,
        )


@dataclass(frozen=True, slots=True)
class _Planner:
    trainable: Trainable
    work: TrainingWork

    def deployments(self, layout: Layout) -> Iterator[PlannedDeployment]:
        """The deployments of one layout, engine by engine."""
        for engine in self.trainable.engines(layout):
            yield from self._on(engine, layout)

    def _on(self, engine: str, layout: Layout) -> Iterator[PlannedDeployment]:
        """The deployment of a layout on one engine, and one more for each change that is asked
        for."""
        experiment = self.trainable.experiment
        plan = _fitting(self.trainable, engine, layout)
        others: dict[str, EnginePlan] = {}
        kept: dict[str, str] = {}
        for name, change in self._changes(plan):
            try:
                changed = replace(self.trainable, experiment=experiment.model_copy(update=change))
                others[name] = _fitting(changed, engine, layout)
            except Refused as error:
                kept[name] = str(error)
        if "comm" in (*experiment.ablate, *experiment.technique):
            if reason := why_not_silent(engine, plan):
                kept["comm"] = reason
            else:
                others["comm"] = replace(plan, ablation="comm")
        # Its dtype is in the names of the changed ones too, of which one may be in another.
        whole = Deployment(plan.model.name, plan.layout, engine, plan.dtype)
        yield replace(self._deployment(whole, plan), kept=tuple(kept.items()))
        for name, other in others.items():
            yield self._deployment(replace(whole, ablation=name), other)

    def _changes(self, plan: EnginePlan) -> Iterator[tuple[str, dict[str, object]]]:
        """(what to call it, fields) of each change of the experiment for a technique."""
        assert plan.training is not None, "the plan trains"
        experiment = self.trainable.experiment
        for name in experiment.technique:
            technique, _, one = name.partition("=")
            field, values = IN_TRAINING[technique]
            was = plan.training.precision if field == "precision" else getattr(experiment, field)
            for value in (one,) if one else values:
                if value != was:
                    yield f"{technique}={value}", {field: value}
            if technique == "accumulation":
                count = micro_batches(plan.placement, plan.training)
                for pieces in {1, 2 * count} - {count}:
                    yield f"{technique}={pieces}", {"micro_batch_size": None, field: pieces}

    def _deployment(self, asked: Deployment, plan: EnginePlan) -> PlannedDeployment:
        experiment = self.trainable.experiment
        assert plan.training is not None, "the plan trains"
        warning = check_batches(plan.placement, plan.training)
        scenario = Scenario(f"train{experiment.seq_len}", experiment.seq_len, 0)
        cell = Cell(asked, scenario, experiment.global_batch_size)
        work = self.work
        if experiment.resume_from is not None:
            work = replace(work, resume=self._state(plan, experiment.resume_from))
        if experiment.save_checkpoint is not None and asked.ablation == "none":
            folder = experiment.save_checkpoint.absolute() / safe_name(asked.name)
            is_local = address_of(experiment.address) is None
            check_folder(experiment.save_checkpoint, folder, is_local)
            model = self.trainable.model
            like = model.tokenizer or model.checkpoint  # of dummy weights there is no checkpoint
            work = replace(work, save=str(folder), like=str(like) if like else None)
        cells = (PlannedCell(cell, work, replace(self.work, steps=1)),)
        remarks = (f"{asked.layout}: {warning}",) if warning else ()
        return PlannedDeployment(asked, plan, cells, remarks=remarks)

    def _state(self, plan: EnginePlan, path: Path) -> str:
        """The folder of the state that runs begin with. Raises UserError for one of another model,
        batch or data, and for one that leaves no steps to take."""
        steps = self.work.steps
        folder = training_state.given(path.absolute())
        state = training_state.read(folder)
        if reason := state.unlike(TrainingState.of(plan, self.work.tokens)):
            raise UserError(f"{folder} cannot be gone on from: {reason}")
        if state.step >= steps:
            raise UserError(
                f"{folder} is of {state.step} steps, and --steps {steps} asks for no more; use "
                f"--steps {state.step + 1} or more"
            )
        return str(folder)


def _fitting(trainable: Trainable, engine: str, layout: Layout) -> EnginePlan:
    """The plan of a layout. Raises as `Trainable.plan`, and UserError where it does not fit."""
    plan = trainable.plan(engine, layout)
    check_training_memory(plan, trainable.topology)
    return plan


def _unsaved(engine: str, layout: Layout) -> str:
    """Why a layout is not trained for a checkpoint, and how to get one."""
    said = f"the engine {engine} saves no checkpoint of {layout.name}; leave --save-checkpoint out"
    if layout.engine is None:
        return f"{said}, or use --engine {DEFAULT_ENGINE}"
    return (
        f"{said}, keep a state with --checkpoint-interval, and go on from that with --resume-from "
        f"under a layout of the engine {DEFAULT_ENGINE}, which saves"
    )


def last_state(work: TrainingWork) -> str:
    """The name of the folder that the state after the last step has."""
    return training_state.name_of(work.steps)
