"""From an experiment to deployments that are known to fit: every refusal there is comes before
anything is reserved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from orchestrator.cluster import nsight
from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Deployment, Experiment
from orchestrator.plan import models
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment
from orchestrator.plan.fitting import check_memory, concurrent_requests
from orchestrator.plan.models import ResolvedModel
from orchestrator.plan.workload import Workload
from strategies import Layout, Load, ModelShape, Placement, Topology, parse, plan_layout
from workers import engines
from workers.messages import EnginePlan

DEFAULT_ENGINE = "torch"
# Most prompt tokens in one forward pass. Smaller under pp, so that a batch of prompts makes enough
# pieces to keep all stages busy.
PREFILL_TOKENS = 8192
PREFILL_TOKENS_PIPELINED = 2048
MOST_CPU_WORKERS = 128

Device = Literal["cuda", "cpu"]


def choose_device(experiment: Experiment, gpus: Topology) -> tuple[Device, Topology]:
    """The device to run on and its devices: the GPUs there are, else as many CPU workers as the
    largest layout asks.

    Raises UserError where a GPU is asked for and there is none, LayoutError for a strategy that
    cannot be read.
    """
    if experiment.device == "cuda" and not gpus.devices:
        raise UserError("--device cuda asks for GPUs and there is none here; use --device cpu")
    if experiment.device != "cpu" and gpus.devices:
        return "cuda", gpus
    return "cpu", cpu_devices(experiment.strategy)


def cpu_devices(strategies: Sequence[str]) -> Topology:
    """CPU workers for the largest of `strategies`; the numbers of a layout multiplied are at least
    its ranks."""
    ranks = max(math.prod(number for _, number in parse(name)) for name in strategies)
    return Topology.uniform(min(ranks, MOST_CPU_WORKERS))


def sketch(name: str, model: str, memory_bytes: int = 0) -> tuple[Layout, ModelShape]:
    """A layout of a model on as many devices of `memory_bytes` as it asks for, whatever is here: to
    be looked at, not to be run."""
    shape = models.resolve(model, "dummy").shape
    devices = len(cpu_devices([name]).devices)
    return plan_layout(
        name, shape, Load(256, 128, 8), Topology.uniform(devices, memory_bytes)
    ), shape


def plan(
    experiment: Experiment, device: Device, topology: Topology
) -> tuple[PlannedDeployment, ...]:
    """Every deployment of `experiment` on the devices of `topology`, each checked to fit.

    Raises UserError, LayoutError or EngineError with the reason for the first one that cannot be
    run.
    """
    model = models.resolve(experiment.model, experiment.load_format)
    workload = Workload(experiment, model)
    load = workload.load()
    layouts = {
        layout.name: layout
        for layout in (
            plan_layout(name, model.shape, load, topology) for name in experiment.strategy
        )
    }
    dtype = resolve_dtype(experiment.dtype, device)
    planned = []
    for layout in layouts.values():
        engine = choose_engine(layout, experiment.engine)
        engine_plan = _engine_plan(
            experiment, model, layout, load, dtype, device, workload.longest_prompt()
        )
        check_ranks(layout, device, topology)
        _check_engine(engine, engine_plan)
        _check_arrivals(experiment, engine, layout)
        check_memory(engine_plan, topology, load)
        without = [
            replace(engine_plan, ablation=what)
            for what in experiment.ablate
            if ablates(what, engine, engine_plan)
        ]
        planned += [
            _deployment(experiment, model, engine, variant, workload)
            for variant in (engine_plan, *without)
        ]
    if experiment.nsys:
        nsight.check(experiment, device)
    return tuple(planned)


def ablates(what: str, engine: str, plan: EnginePlan) -> bool:
    """Whether leaving out `what` changes anything that the torch engine does under `plan`."""
    if what == "comm":
        return engine == DEFAULT_ENGINE and plan.placement.degree("tp") > 1
    return plan.device == "cuda" and plan.placement.num_ranks > plan.placement.degree("dp")


def resolve_dtype(dtype: str, device: Device) -> str:
    """`auto` is bfloat16 on GPUs and float32 on CPUs, where bfloat16 is slow and tokens are
    compared exactly."""
    return {"cuda": "bfloat16", "cpu": "float32"}[device] if dtype == "auto" else dtype


def choose_engine(layout: Layout, asked: str | None) -> str:
    """The engine a layout runs on: the one it needs, the one asked for, or torch. Raises UserError
    where the first two differ."""
    if layout.engine and asked and layout.engine != asked:
        raise UserError(
            f"{layout.name} needs the engine {layout.engine}, --engine asks for {asked}; leave "
            "--engine out"
        )
    return layout.engine or asked or DEFAULT_ENGINE


def default_prefill_tokens(placement: Placement) -> int:
    """Most prompt tokens in one forward pass, where nothing is asked."""
    return PREFILL_TOKENS_PIPELINED if placement.degree("pp") > 1 else PREFILL_TOKENS


def choose_prefill_tokens(experiment: Experiment, placement: Placement, longest_prompt: int) -> int:
    """Prompt tokens per forward pass. Raises UserError where whole prompts are asked for and one is
    longer than what is given."""
    tokens = experiment.prefill_tokens or default_prefill_tokens(placement)
    if experiment.chunked_prefill or tokens >= longest_prompt:
        return tokens
    if experiment.prefill_tokens:
        raise UserError(
            f"without chunked prefill a prompt of {longest_prompt} tokens must fit into "
            f"prefill_tokens, which is {tokens}; "
            f"use --prefill-tokens {longest_prompt} or --chunked-prefill"
        )
    return longest_prompt


def check_ranks(layout: Layout, device: Device, topology: Topology) -> None:
    """Raise UserError where a layout has more ranks than there are devices."""
    ranks, devices = layout.placement.num_ranks, len(topology.devices)
    if ranks > devices:
        kind, hint = (
            ("GPUs", "use --device cpu or fewer")
            if device == "cuda"
            else ("CPU workers", "use fewer")
        )
        raise UserError(
            f"{layout.name} needs {ranks} {kind}; {devices} {'is' if devices == 1 else 'are'} "
            f"here; {hint}"
        )


def remarks(
    experiment: Experiment, planned: Sequence[PlannedDeployment], topology: Topology
) -> Iterator[str]:
    """What a user should know about a plan that works: engines chosen for them, idle replicas,
    requests that will queue.

    Of a layout that something is left out of, nothing is said twice; where that changes nothing, it
    is said.
    """
    made = {(one.deployment.strategy, one.deployment.ablation) for one in planned}
    for one in planned:
        if one.deployment.ablation != "none":
            continue
        name, plan = one.deployment.strategy, one.plan
        if plan.placement.option("engine") and not experiment.engine:
            yield f"{name} runs on the engine {one.deployment.engine}, which it needs"
        replicas = plan.placement.degree("dp")
        for concurrency in sorted({cell.cell.max_concurrency for cell in one.cells}):
            if concurrency < replicas:
                yield (
                    f"{name} at max_concurrency {concurrency}: {replicas - concurrency} of "
                    f"{replicas} replicas have nothing to do"
                )
        held = concurrent_requests(plan, topology)
        if held is not None and held < plan.max_concurrency:
            more = (
                "requests queue"
                if one.deployment.engine == DEFAULT_ENGINE
                else "this engine runs out of memory"
            )
            yield (
                f"{name}: KV holds {held} requests of {plan.max_len} tokens at once; beyond that, "
                f"{more}"
            )
        for what in dict.fromkeys(experiment.ablate):
            if (name, what) not in made:
                where = f"{one.deployment.engine}, {plan.device}"
                yield (
                    f"{name}: --ablate {what} would change nothing ({where}); it is not run without"
                )
    if experiment.nsys:
        yield nsight.remark(experiment)


def _engine_plan(
    experiment: Experiment,
    model: ResolvedModel,
    layout: Layout,
    load: Load,
    dtype: str,
    device: Device,
    longest_prompt: int,
) -> EnginePlan:
    return EnginePlan(
        model=model.shape,
        layout=layout.name,
        placement=layout.placement,
        checkpoint=str(model.checkpoint) if model.checkpoint else None,
        dtype=dtype,
        device=device,
        max_concurrency=load.max_concurrency,
        max_len=load.max_len,
        prefill_tokens=choose_prefill_tokens(experiment, layout.placement, longest_prompt),
        chunked_prefill=experiment.chunked_prefill,
        temperature=experiment.temperature,
        seed=experiment.seed,
        timeout_s=experiment.timeout,
    )


def _check_engine(engine: str, plan: EnginePlan) -> None:
    reason = engines.create(engine).supports(plan)
    if reason:
        raise UserError(f"the engine {engine} cannot run {plan.layout}: {reason}")


def _check_arrivals(experiment: Experiment, engine: str, layout: Layout) -> None:
    if experiment.request_rate is not None and engine != DEFAULT_ENGINE:
        raise UserError(
            f"the engine {engine} cannot run {layout.name} at a request rate: it serves closed "
            "loops; "
            f"leave --request-rate out, or use --engine {DEFAULT_ENGINE}"
        )


def _deployment(
    experiment: Experiment, model: ResolvedModel, engine: str, plan: EnginePlan, workload: Workload
) -> PlannedDeployment:
    deployment = Deployment(model.name, plan.layout, engine, plan.dtype, ablation=plan.ablation)
    if experiment.nsys:
        plan = replace(plan, nsys_dir=str(nsight.folder_for(experiment, deployment)))
    cells = []
    for scenario in experiment.scenarios:
        for concurrency in experiment.max_concurrency:
            work, warmup = workload.cell(scenario, concurrency)
            cells.append(PlannedCell(Cell(deployment, scenario, concurrency), work, warmup))
    return PlannedDeployment(deployment, plan, tuple(cells), model.decode)
