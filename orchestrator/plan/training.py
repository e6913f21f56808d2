"""From an experiment that trains to deployments, each checked before anything is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.errors import Refused, UserError
from orchestrator.experiment import IN_TRAINING, Cell, Deployment, Experiment, Scenario
from orchestrator.plan import models
from orchestrator.plan.corpus import pack
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment
from orchestrator.plan.devices import DEFAULT_ENGINE, Device, check_devices, choose_engines
from orchestrator.plan.fitting import check_training_memory
from orchestrator.plan.models import ResolvedModel
from orchestrator.store.names import safe_name
from strategies import Layout, Topology, TrainingLoad, parse, plan_layout
from strategies.shapes import Schedule
from strategies.training import check_batches, micro_batches
from workers import engines
from workers.messages import EnginePlan, Switches, TrainingWork

PRECISIONS: Mapping[Device, Literal["bf16", "fp32"]] = {"cuda": "bf16", "cpu": "fp32"}
SCHEDULE: Schedule = "1f1b"
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


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
    )


def whole(experiment: Experiment) -> Experiment:
    """The same with nothing said of micro-batches, which depend on the layout."""
    return experiment.model_copy(update={"gradient_accumulation_steps": None})


def plan_training(
    experiment: Experiment, device: Device, topology: Topology
) -> tuple[PlannedDeployment, ...]:
    """Every deployment of an experiment that trains. Raises UserError, LayoutError or EngineError
    with the reason for the first one that cannot be run."""
    model = models.resolve(experiment.model, experiment.load_format)
    if experiment.seq_len > model.shape.max_positions:
        raise UserError(
            f"sequences of {experiment.seq_len} tokens are longer than {model.name} knows "
            f"positions: {model.shape.max_positions}; use a shorter --seq-len"
        )
    if experiment.schedule and not any(map(_has_stages, experiment.strategy)):
        raise UserError(
            f"--schedule {experiment.schedule} is of a pipeline, and none of the layouts "
            f"{', '.join(experiment.strategy)} has one; leave it out, or train under pp2 too"
        )
    tokens = None
    if experiment.data is not None:
        tokens = pack(
            experiment.data, model, load_of(whole(experiment), device), experiment.data_column
        )
    work = TrainingWork(experiment.steps, tokens)
    planner = _Planner(experiment, model, work, device, topology)
    planned = tuple(one for layout in planner.layouts() for one in planner.deployments(layout))
    asked = (*experiment.technique, *experiment.ablate)
    if asked and not any(one.deployment.ablation != "none" for one in planned):
        reasons = "; ".join(dict.fromkeys(why for one in planned for _, why in one.kept))
        raise UserError(f"{', '.join(asked)} can be changed under no layout: {reasons}")
    return planned


def _has_stages(layout: str) -> bool:
    return any(key == "pp" and number > 1 for key, number in parse(layout))


def why_not_silent(engine: str, plan: EnginePlan) -> str | None:
    """Why a plan is not trained without its collectives; None where it can be."""
    placement = plan.placement
    if engine != DEFAULT_ENGINE:
        return f"the engine {engine} cannot leave collectives out"
    if placement.degree("pp") > 1:
        return "without hand-overs a pipeline has no order, and no bubble either"
    return None if placement.num_ranks > 1 else "one rank has no collectives"


@dataclass(frozen=True, slots=True)
class _Planner:
    experiment: Experiment
    model: ResolvedModel
    work: TrainingWork
    device: Device
    topology: Topology

    def layouts(self) -> list[Layout]:
        """The layouts that were asked for. Two names of the same layout count once."""
        shape, load = self.model.shape, load_of(whole(self.experiment), self.device).load
        named = (plan_layout(name, shape, load, self.topology) for name in self.experiment.strategy)
        return list({layout.name: layout for layout in named}.values())

    def deployments(self, layout: Layout) -> Iterator[PlannedDeployment]:
        """The deployments of one layout, engine by engine."""
        check_devices(layout, self.device, self.topology)
        for engine in choose_engines(layout, self.experiment.engine):
            yield from self._on(engine, layout)

    def _on(self, engine: str, layout: Layout) -> Iterator[PlannedDeployment]:
        """The deployment of a layout on one engine, and one more for each change that is asked
        for."""
        plan = self._checked(engine, layout)
        others: dict[str, EnginePlan] = {}
        kept: dict[str, str] = {}
        for name, change in self._changes(plan):
            try:
                changed = replace(self, experiment=self.experiment.model_copy(update=change))
                others[name] = changed._checked(engine, layout)
            except Refused as error:
                kept[name] = str(error)
        if "comm" in (*self.experiment.ablate, *self.experiment.technique):
            if reason := why_not_silent(engine, plan):
                kept["comm"] = reason
            else:
                others["comm"] = replace(plan, ablation="comm")
        yield replace(self._deployment(engine, plan, "none"), kept=tuple(kept.items()))
        for name, other in others.items():
            yield self._deployment(engine, other, name)

    def _changes(self, plan: EnginePlan) -> Iterator[tuple[str, dict[str, object]]]:
        """(what to call it, fields) of each change of the experiment for a technique."""
        assert plan.training is not None, "the plan trains"
        for technique in self.experiment.technique:
            field, values = IN_TRAINING[technique]
            for value in values:
                if value != getattr(self.experiment, field):
                    yield f"{technique}={value}", {field: value}
            if technique == "accumulation":
                count = micro_batches(plan.placement, plan.training)
                for pieces in {1, 2 * count} - {count}:
                    yield f"{technique}={pieces}", {"micro_batch_size": None, field: pieces}

    def _checked(self, engine: str, layout: Layout) -> EnginePlan:
        """The plan of a layout. Raises UserError where the engine cannot train it, it does not fit
        or its batches do not."""
        experiment = self.experiment
        plan = self._engine_plan(layout)
        if experiment.save_checkpoint is not None and engine != DEFAULT_ENGINE:
            raise UserError(
                f"the engine {engine} saves no checkpoint here; leave --save-checkpoint out, or "
                f"use --engine {DEFAULT_ENGINE}"
            )
        if reason := engines.refusal(engine, plan):
            raise UserError(f"the engine {engine} cannot train {layout.name}: {reason}")
        plan = engines.settled(engine, plan)
        assert plan.training is not None
        check_batches(plan.placement, plan.training)
        check_training_memory(plan, self.topology)
        return plan

    def _deployment(self, engine: str, plan: EnginePlan, change: str) -> PlannedDeployment:
        experiment = self.experiment
        assert plan.training is not None
        warning = check_batches(plan.placement, plan.training)
        asked = Deployment(self.model.name, plan.layout, engine, plan.dtype, ablation=change)
        scenario = Scenario(f"train{experiment.seq_len}", experiment.seq_len, 0)
        cell = Cell(asked, scenario, experiment.global_batch_size)
        work = self.work
        if experiment.save_checkpoint is not None and change == "none":
            folder = experiment.save_checkpoint.absolute() / safe_name(asked.name)
            work = replace(work, save=str(folder))
        cells = (PlannedCell(cell, work, replace(self.work, steps=1)),)
        remarks = (f"{asked.layout}: {warning}",) if warning else ()
        return PlannedDeployment(asked, plan, cells, remarks=remarks)

    def _engine_plan(self, layout: Layout) -> EnginePlan:
        experiment, model = self.experiment, self.model
        load = load_of(experiment, self.device, layout.placement.num_replicas)
        return EnginePlan(
            model=model.shape,
            layout=layout.name,
            placement=layout.placement,
            checkpoint=str(model.checkpoint) if model.checkpoint else None,
            dtype=DTYPES[load.precision],
            device=self.device,
            max_concurrency=load.global_batch_size,
            max_len=load.seq_len,
            prefill_tokens=0,
            seed=experiment.seed,
            timeout_s=experiment.timeout,
            switches=Switches(fusion=None if experiment.fusion == "auto" else experiment.fusion),
            training=load,
        )
