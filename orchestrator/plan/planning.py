"""From an experiment to deployments that are known to fit. An experiment that cannot run is refused
here, before anything is reserved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster import hardware, nsight
from orchestrator.errors import UserError
from orchestrator.experiment import TECHNIQUES, Cell, Deployment, Experiment
from orchestrator.plan import models, precision
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment, switches_of
from orchestrator.plan.devices import (
    DEFAULT_ENGINE,
    SHORT_OF,
    Device,
    check_attention,
    check_devices,
    choose_engines,
    concerned,
    could_have,
)
from orchestrator.plan.fitting import check_memory
from orchestrator.plan.models import ResolvedModel
from orchestrator.plan.training import plan_training
from orchestrator.plan.workload import Workload
from orchestrator.store.folders import folder_of
from orchestrator.store.names import safe_name
from strategies import Layout, Load, ModelShape, Topology, parse, plan_layout
from workers import engines
from workers.messages import EnginePlan

if TYPE_CHECKING:
    from orchestrator.cluster.connection import Cluster

CAN_LEAVE_OUT_COMM = (DEFAULT_ENGINE, "vllm")
# Most prompt tokens in one forward pass, under every layout alike: time to first token depends on
# it. Small enough for a pipeline: 100 prompts of 256 tokens make 13 passes to fill its stages with.
# Large enough for the others: a pass is bound by arithmetic from some 200 tokens on (H200 in BF16:
# 989 TFLOP/s over 4.8 TB/s), so reading the weights once more often costs little.
PREFILL_TOKENS = 2048
MOST_CPU_WORKERS = 128
SKETCHED = Load(256, 128, 8)  # what a strategy may look at where nothing is said of lengths


def find_gpus(experiment: Experiment, cluster: Cluster | None) -> Topology:
    """The GPUs of the cluster that was joined, else of this machine; none where CPU is asked for.
    This reserves none of them."""
    if experiment.device == "cpu":
        return Topology(())
    return hardware.local_topology("cuda") if cluster is None else cluster.topology("cuda")


def choose_device(
    experiment: Experiment, gpus: Topology, cluster: Cluster | None = None
) -> tuple[Device, Topology]:
    """The kind of device to run on, and the devices: all GPUs, or without GPUs as many CPU workers
    as the largest layout needs, those of the cluster that was joined where it has as many.

    Raises UserError where a GPU is asked for and there is none, LayoutError for a strategy that
    cannot be read.
    """
    if experiment.device == "cuda" and not gpus.devices:
        raise UserError("--device cuda asks for GPUs and there is none here; use --device cpu")
    if experiment.device != "cpu" and gpus.devices:
        return "cuda", gpus
    needed = cpu_devices(experiment.strategy)
    there = needed if cluster is None else cluster.topology("cpu")
    return "cpu", there if len(there.devices) >= len(needed.devices) else needed


def cpu_devices(strategies: Sequence[str]) -> Topology:
    """Enough CPU workers for the largest of `strategies`. A layout has at most as many ranks as the
    product of the numbers in its name."""
    ranks = max(math.prod(number for _, number in parse(name)) for name in strategies)
    return Topology.uniform(min(ranks, MOST_CPU_WORKERS))


def sketch(
    name: str, model: str, memory_bytes: int = 0, load: Load = SKETCHED
) -> tuple[Layout, ModelShape]:
    """A layout of a model on as many devices of `memory_bytes` as it asks for, whatever this
    machine has. It is made to be shown, not to be run."""
    shape = models.resolve(model, "dummy").shape
    devices = Topology.uniform(len(cpu_devices([name]).devices), memory_bytes)
    return plan_layout(name, shape, load, devices), shape


def plan_experiment(
    experiment: Experiment, device: Device, topology: Topology, cluster: Cluster | None = None
) -> tuple[PlannedDeployment, ...]:
    """Every deployment of `experiment` on the devices of `topology`, each checked to fit.

    cluster: the one that was joined; None where a local Ray will be started. Raises UserError,
    LayoutError or EngineError with the reason for the first deployment that cannot be run.
    """
    if experiment.workload == "train":
        return plan_training(experiment, device, topology)
    model = models.resolve(experiment.model, experiment.load_format)
    workload = Workload(experiment, model)
    planner = _Planner(experiment, model, workload, workload.load(), device, topology)
    planned = tuple(one for layout in planner.layouts() for one in planner.deployments(layout))
    _check_techniques(experiment, planned, device)
    if experiment.ncu:
        _check_counting(experiment, planned, device)
        nsight.check("ncu", device, cluster)
    if not experiment.nsys:
        return planned
    nsight.check("nsys", device, cluster)
    folder = nsight.folder(folder_of(experiment), joined=cluster is not None)
    return tuple(_under_nsys(one, folder) for one in planned)


@dataclass(frozen=True, slots=True)
class _Planner:
    """Makes the deployments of an experiment. load: the heaviest of its cells."""

    experiment: Experiment
    model: ResolvedModel
    workload: Workload
    load: Load
    device: Device
    topology: Topology

    def layouts(self) -> list[Layout]:
        """The layouts that were asked for. Two names of the same layout count once."""
        shape, load = self.model.shape, self.load
        named = (plan_layout(name, shape, load, self.topology) for name in self.experiment.strategy)
        return list({layout.name: layout for layout in named}.values())

    def deployments(self, layout: Layout) -> Iterator[PlannedDeployment]:
        """The deployments of one layout, engine by engine."""
        check_devices(layout, self.device, self.topology)
        for engine in choose_engines(layout, self.experiment.engine):
            yield from self._on(engine, layout)

    def _on(self, engine: str, layout: Layout) -> Iterator[PlannedDeployment]:
        """The deployment of a layout on one engine, and one more for each ablation, and each
        technique to be left out, that changes it."""
        plan = self._checked(engine, layout)
        self._check_waiting(engine, layout)
        fp8 = plan.precision.name
        asked = Deployment(self.model.name, plan.layout, engine, plan.dtype, fp8)
        names = [name for name in self.experiment.technique if concerned(name, plan)]
        others = {name: self._without(name, engine, layout) for name in names}
        kept = tuple((name, why) for name, why in others.items() if isinstance(why, str))
        yield replace(self._deployment(asked, plan), kept=kept)
        for what in self.experiment.ablate:
            if ablates(what, engine, plan):
                yield self._deployment(replace(asked, ablation=what), replace(plan, ablation=what))
        for name, other in others.items():
            if not isinstance(other, str) and other != plan:
                yield self._deployment(replace(asked, ablation=name), other)

    def _without(self, technique: str, engine: str, layout: Layout) -> EnginePlan | str:
        """The plan of a layout without a technique, or why there is none."""
        change = TECHNIQUES[technique].without(self.device)
        other = replace(self, experiment=self.experiment.model_copy(update=change))
        try:
            return other._checked(engine, layout)
        except UserError as error:
            return str(error)

    def _checked(self, engine: str, layout: Layout) -> EnginePlan:
        """The plan of a layout. Raises UserError where the engine cannot run it, or it does not
        fit."""
        plan = self._engine_plan(engine, layout)
        if reason := engines.refusal(engine, plan):
            raise UserError(f"the engine {engine} cannot run {layout.name}: {reason}")
        plan = engines.settled(engine, plan)
        plan = replace(plan, spans_nodes=spans_nodes(engine, plan, self.topology))
        precision.check_hardware(plan, self.topology)
        check_attention(plan, self.topology)
        check_memory(plan, self.topology, self.load)
        return plan

    def _check_waiting(self, engine: str, layout: Layout) -> None:
        if not (what := self._waits()) or engines.lets_wait(engine):
            return
        does, give = what
        raise UserError(
            f"the engine {engine} cannot run {layout.name} {does}; {give}, or use --engine "
            f"{DEFAULT_ENGINE} or vllm"
        )

    def _waits(self) -> tuple[str, str] | None:
        """What requests wait for, and what is to be given for none to wait; None where none
        does."""
        closed = "it serves closed loops"
        if self.workload.has_turns:
            why = "in it no request waits for the reply to another one"
            return f"with conversations: {why}", "leave --multi-turn out"
        if self.workload.is_trace:
            return f"at the times of a trace: {closed}", "use another dataset"
        if self.workload.is_open or self.experiment.find_rate:
            flag = "--find-rate" if self.experiment.find_rate else "--request-rate"
            return f"at a request rate: {closed}", f"leave {flag} out"
        return None

    def _arguments(self, engine: str) -> tuple[tuple[str, str], ...]:
        """Settings of the engine's own: none for one that takes none, where another is asked for
        that does."""
        given, asked = tuple(self.experiment.engine_arg.items()), self.experiment.engine
        others = any(map(engines.takes_arguments, asked)) if given else False
        return () if others and not engines.takes_arguments(engine) else given

    def _engine_plan(self, engine: str, layout: Layout) -> EnginePlan:
        experiment, model, load = self.experiment, self.model, self.load
        kept = precision.resolve(experiment, model.shape, self.device)
        return EnginePlan(
            model=model.shape,
            layout=layout.name,
            placement=layout.placement,
            checkpoint=str(model.checkpoint) if model.checkpoint else None,
            dtype=kept.dtype,
            device=self.device,
            max_concurrency=load.max_concurrency,
            max_len=load.max_len,
            prefill_tokens=choose_prefill_tokens(experiment, self.workload.longest_prompt()),
            switches=switches_of(experiment),
            temperature=experiment.temperature,
            seed=experiment.seed,
            timeout_s=experiment.timeout,
            ablations=tuple(experiment.ablate),
            engine_args=self._arguments(engine),
            quantization=kept.quantization,
            kv_cache_dtype=kept.kv_cache_dtype,
            linked=self.topology.linked,
            capability=self.topology.capability,
        )

    def _deployment(self, asked: Deployment, plan: EnginePlan) -> PlannedDeployment:
        model, cells = self.model, []
        for scenario in self.experiment.scenarios:
            for concurrency in self.experiment.max_concurrency:
                cells.append(self._cell(Cell(asked, scenario, concurrency)))
        return PlannedDeployment(asked, plan, tuple(cells), model.decode, self.workload.remarks())

    def _cell(self, cell: Cell) -> PlannedCell:
        work = partial(self.workload.work, cell.scenario, cell.max_concurrency)
        warmup = self.workload.warmup(cell.scenario, cell.max_concurrency)
        return PlannedCell(cell, work(), warmup, work if self.experiment.min_duration else None)


def _check_counting(
    experiment: Experiment, planned: Sequence[PlannedDeployment], device: Device
) -> None:
    """Raise UserError where Nsight Compute cannot count the kernels of every deployment."""
    if device == "cpu":
        raise UserError("--ncu counts kernels of GPUs, and this runs on the CPU; leave --ncu out")
    if experiment.nsys or experiment.find_rate:
        raise UserError("--ncu goes with neither --nsys nor --find-rate; give one")
    for engine in dict.fromkeys(one.deployment.engine for one in planned):
        if not engines.counts_kernels(engine):
            use = f"leave --ncu out, or use --engine {DEFAULT_ENGINE}"
            raise UserError(f"the engine {engine} takes no step for Nsight Compute; {use}")


def _under_nsys(planned: PlannedDeployment, folder: Path) -> PlannedDeployment:
    """The same, with the workers' reports in a folder of their own."""
    nsys_dir = str(folder / safe_name(planned.deployment.name))
    return replace(planned, plan=replace(planned.plan, nsys_dir=nsys_dir))


def ablates(what: str, engine: str, plan: EnginePlan) -> bool:
    """Whether leaving out `what` changes anything that the engine does under `plan`."""
    if what == "comm":
        return engine in CAN_LEAVE_OUT_COMM and plan.placement.degree("tp") > 1
    return plan.device == "cuda" and plan.placement.num_ranks > plan.placement.degree("dp")


def choose_prefill_tokens(experiment: Experiment, longest_prompt: int) -> int:
    """Prompt tokens per forward pass: enough for the longest prompt where none is cut."""
    size = experiment.chunked_prefill_size
    if size == "off":
        return max(PREFILL_TOKENS, longest_prompt)
    return size or PREFILL_TOKENS


def spans_nodes(engine: str, plan: EnginePlan, topology: Topology) -> bool:
    """Whether the nodes have no room for every process on one of them. Raises UserError where the
    engine needs its devices to be on one."""
    size = engines.ranks_of_process(engine, plan)
    processes = plan.placement.num_ranks // size
    nodes = Counter(one.node for one in topology.devices)
    if sum(count // size for count in nodes.values()) >= processes:
        return False
    if engines.spans_nodes(engine, plan.device):
        return True
    what, _ = SHORT_OF[plan.device]
    raise UserError(
        f"the engine {engine} cannot run {plan.layout}: it takes {processes} x {size} {what}, each "
        f"{size} of them on one node, and the nodes have {', '.join(map(str, nodes.values()))}; "
        f"use fewer ranks a replica, larger nodes, or --engine {DEFAULT_ENGINE}, which has a "
        "process for each rank"
    )


def _check_techniques(
    experiment: Experiment, planned: Sequence[PlannedDeployment], device: Device
) -> None:
    """Raise UserError where leaving out a technique changes nothing at all."""
    asked = experiment.technique
    if asked and not any(one.deployment.ablation in asked for one in planned):
        names = ", ".join(dict.fromkeys(one.deployment.engine for one in planned))
        off = [name for name in asked if any(could_have(name, one) for one in planned)]
        options = " or ".join(TECHNIQUES[name].option for name in off)
        why = f"it is off as it is; {options} would turn it on"
        raise UserError(
            f"leaving out {', '.join(asked)} changes nothing for {names} on {device}: "
            f"{why if off else 'there is none of it; use other layouts, engines or devices'}"
        )
