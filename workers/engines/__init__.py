"""Engines: they execute a placement. Everything that an author of one needs is imported from here.

An engine is found by name through the entry-point group `orchestrator.engines`;
docs/write-an-engine.md walks through one. Only `RankContext` stays in `workers.rank`, which needs
torch. This module and that of an engine import without torch, so that the driver can ask `supports`
before it starts anything.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from strategies.entries import entry_points
from strategies.errors import Refused
from strategies.guarded import LIMIT_S, guarded
from workers.clock import Clock
from workers.messages import Built, EnginePlan, RankReport, Request, Switches, Work
from workers.records import (
    COLLECTIVES,
    COMPUTE,
    DECODE,
    PREFILL,
    REQUESTS,
    SPANS,
    STEPS,
    CollectiveRow,
    RequestRow,
    SpanRow,
    StepRow,
)

if TYPE_CHECKING:
    from workers.rank import RankContext

__all__ = [
    "COLLECTIVES",
    "COMPUTE",
    "DECODE",
    "PREFILL",
    "REQUESTS",
    "SPANS",
    "STEPS",
    "Built",
    "Clock",
    "CollectiveRow",
    "Engine",
    "EngineError",
    "EnginePlan",
    "RankReport",
    "Request",
    "RequestRow",
    "SpanRow",
    "StepRow",
    "Switches",
    "Work",
    "counts_kernels",
    "create",
    "lets_wait",
    "names",
    "of_plan",
    "ranks_of_process",
    "refusal",
    "settled",
    "spans_nodes",
    "takes_arguments",
]

T = TypeVar("T")
GROUP = "orchestrator.engines"
TRAINERS = "orchestrator.trainers"  # engines that train, under the same names
# This engine measures a node and serves nothing, so it is not listed.
CALIBRATION = EntryPoint("calibration", "workers.engines.calibration:CalibrationEngine", GROUP)


class EngineError(Refused):
    """An engine that does not exist, or that cannot do what was asked. The message names it and
    says what to do."""


class Engine(Protocol):
    """The share of one process in a deployment. It is made without arguments and used until
    `close`; every method but `supports` is called in a worker's process.

    processes: "per_rank", one process for each rank; "per_replica", one for each data-parallel
    replica, which is given all devices of it; "single", one process that is given every device of
    the placement and reports as rank 0.

    An engine that takes settings of its own (`--engine-arg`) has an attribute `takes_arguments`
    that is true, and one that has FP8 (`EnginePlan.precision`, `ModelShape.fp8`) has `has_fp8`. One
    in which a request may wait, for its time of arrival or for the reply to another one
    (`Request.arrival_s`, `Request.after`), has an attribute `lets_wait` that is true, and one that
    does what `Work.count` asks has `counts_kernels`.
    One that is "per_replica" and can have the devices of a replica on several nodes has
    `spans_nodes`, the kinds of device with which it can: see `RankContext.bundles`. One of which
    `Switches` can be set has a method `choices`: for a plan, the name of each that it has -> the
    values it takes, that which it has by itself first. `Switches.settled` puts it in.
    """

    processes: Literal["per_rank", "per_replica", "single"]

    def supports(self, plan: EnginePlan) -> str | None:
        """None, or why this engine cannot run the plan: a clause, as "it does not do pipeline
        stages". Called in the driver, where torch may be missing."""
        ...

    def build(self, context: RankContext, plan: EnginePlan) -> Built | Sequence[Built]:
        """Load weights and get ready to serve. "per_replica": one `Built` for each rank of the
        replica. Raises torch.OutOfMemoryError where it does not fit."""
        ...

    def run(self, work: Any) -> RankReport | Sequence[RankReport]:
        """Serve this rank's share of `work` and report; "per_replica": one report for each rank of
        the replica. `work` is that of the whole layout: a `Work`, of an engine that trains a
        `TrainingWork`."""
        ...

    def close(self) -> None:
        """Free what `build` took. It is also called after `build` or `run` has raised."""
        ...


def names(group: str = GROUP) -> list[str]:
    """The engines that are installed, in order."""
    return sorted(point.name for point in entry_points(group=group))


def of_plan(name: str, plan: EnginePlan) -> Engine:
    """A new engine that generates, or trains, as the plan asks. Raises EngineError as `create`
    does."""
    return create(name) if plan.training is None else create(name, TRAINERS)


def create(name: str, group: str = GROUP) -> Engine:
    """A new engine by name. Raises EngineError for an unknown one, for one that several packages
    bring, and for one that cannot be imported."""
    point = _entry_point(name, group)
    try:
        engine: Engine = guarded(lambda: point.load()(), LIMIT_S)
    except Exception as error:  # a plug-in may raise anything
        raise EngineError(
            f"the engine '{name}' could not be loaded: {type(error).__name__}: {error}"
        ) from error
    return engine


def refusal(name: str, plan: EnginePlan) -> str | None:
    """None, or why the engine `name` cannot run the plan. Raises EngineError as `create` does, and
    where the engine does not answer."""
    engine = of_plan(name, plan)
    if plan.engine_args and not takes_arguments(name):
        return f"it takes no --engine-arg, and {plan.engine_args[0][0]} is given"
    if (asked := _fp8_in(plan)) and not getattr(engine, "has_fp8", False):
        use = "train one in BF16 or FP32" if plan.training else "use --engine torch or vllm"
        return f"it has no FP8, and {asked}; {use}"
    if switch := _without_choice(name, plan):
        return switch
    reason = _answer(name, lambda asked: engine.supports(asked), plan)
    if not (reason is None or isinstance(reason, str)):
        raise EngineError(
            f"the engine '{name}' answered {reason!r} when it was asked whether it runs "
            f"{plan.layout}; `supports` returns None or a text"
        )
    return reason


def _fp8_in(plan: EnginePlan) -> str | None:
    """What of a plan is FP8, as a clause; None where nothing is."""
    if plan.model.fp8 is not None and plan.checkpoint:
        return "the checkpoint stores FP8 (quantization_config)"
    fp8 = plan.precision.name
    return None if fp8 == "none" else f"{fp8} is asked for"


def settled(name: str, plan: EnginePlan) -> EnginePlan:
    """The plan with the switches that are left to the engine as it has them by itself."""
    return replace(plan, switches=plan.switches.settled(choices(name, plan)))


def choices(name: str, plan: EnginePlan) -> Mapping[str, Sequence[str]]:
    """The switches that the engine has, each with the values it takes."""
    known = getattr(of_plan(name, plan), "choices", None)
    return _answer(name, known, plan) if known else {}


def _answer(name: str, question: Callable[[EnginePlan], T], plan: EnginePlan) -> T:
    """What an engine answers. Raises EngineError where it does not."""
    try:
        return guarded(lambda: question(plan), LIMIT_S)
    except Exception as error:  # a plug-in may raise anything
        raise EngineError(
            f"the engine '{name}' failed when it was asked whether it runs {plan.layout}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _without_choice(name: str, plan: EnginePlan) -> str | None:
    """Why the engine cannot be asked for a switch as it is asked for; None where it can."""
    known, where = choices(name, plan), "a CPU" if plan.device == "cpu" else "a GPU"
    for switch, value in plan.switches.asked.items():
        flag, values = f"--{switch.replace('_', '-')}", known.get(switch, ())
        if not values:
            return f"on {where} it has no {flag}; leave it out"
        if value not in values:
            use = " or ".join(values)
            return f"on {where} it has no {flag} {value}; use {use}, or leave it out"
    return None


def takes_arguments(name: str) -> bool:
    """Whether the engine has settings of its own, which `--engine-arg` gives."""
    return bool(getattr(create(name), "takes_arguments", False))


def lets_wait(name: str) -> bool:
    """Whether a request may wait there, for its time of arrival or for the reply to another."""
    return bool(getattr(create(name), "lets_wait", False))


def counts_kernels(name: str) -> bool:
    """Whether the engine takes a step for Nsight Compute."""
    return bool(getattr(create(name), "counts_kernels", False))


def spans_nodes(name: str, device: str) -> bool:
    """Whether the engine can have a replica on devices ("cuda" or "cpu") of several nodes, in one
    process of ours."""
    return device in getattr(create(name), "spans_nodes", ())


def ranks_of_process(name: str, plan: EnginePlan) -> int:
    """How many ranks of a plan one process of the engine stands for, and so how many devices
    it is given. Ranks of a replica are neighbours, as dp is the outermost axis of a mesh."""
    processes = of_plan(name, plan).processes
    if processes == "per_rank":
        return 1
    replicas = plan.placement.degree("dp") if processes == "per_replica" else 1
    return plan.placement.num_ranks // replicas


def _entry_point(name: str, group: str) -> EntryPoint:
    found = entry_points(group=group, name=name)
    packages = sorted({point.dist.name if point.dist else point.value for point in found})
    if len(packages) > 1:
        raise EngineError(
            f"{' and '.join(packages)} both bring an engine '{name}'; uninstall one of them"
        )
    if packages:
        return next(iter(found))
    if name == CALIBRATION.name:
        return CALIBRATION
    raise EngineError(_unknown(name, group))


def _unknown(name: str, group: str) -> str:
    installed = names(group)
    if group == TRAINERS and name in names():
        return f"the engine '{name}' only generates; to train, use {' or '.join(installed)}"
    near = difflib.get_close_matches(name, installed, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return f"there is no engine '{name}'{hint} There are: {', '.join(installed) or 'none'}"
