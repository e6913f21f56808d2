"""On which devices and engines a layout runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from orchestrator.errors import UserError
from orchestrator.experiment import SWITCHES, TECHNIQUES
from orchestrator.plan.deployments import PlannedDeployment
from strategies import Layout, Topology
from workers import engines
from workers.messages import EnginePlan

DEFAULT_ENGINE = "torch"
# kind of device -> the devices that may be too few, and the advice in that case
SHORT_OF = {"cuda": ("GPUs", "use --device cpu or fewer"), "cpu": ("CPU workers", "use fewer")}

# kind of attention -> the compute capabilities that its library has, by their first number
ATTENTION_NEEDS = {"fa3": (9,), "fa3-prefill": (9,), "flashinfer": (9, 10, 12)}

Device = Literal["cuda", "cpu"]


def choose_engines(layout: Layout, asked: Sequence[str]) -> tuple[str, ...]:
    """The engines a layout runs on: the one it needs, those asked for, or torch. Raises UserError
    where the first is not among the second."""
    if layout.engine and asked and layout.engine not in asked:
        raise UserError(
            f"{layout.name} needs the engine {layout.engine}, --engine asks for "
            f"{', '.join(asked)}; leave --engine out"
        )
    if layout.engine:
        return (layout.engine,)
    return tuple(asked) or (DEFAULT_ENGINE,)


def concerned(technique: str, plan: EnginePlan) -> bool:
    """Whether a technique can change anything under the layout of a plan."""
    placement = plan.placement
    replica = placement.num_ranks // placement.degree("dp")
    return TECHNIQUES[technique].concerns(replica, placement.degree("tp"))


def could_have(technique: str, planned: PlannedDeployment) -> bool:
    """Whether a technique that changes nothing for a deployment would, were it asked for."""
    field = TECHNIQUES[technique].field
    engine, plan = planned.deployment.engine, planned.plan
    if field in SWITCHES:
        several = len(engines.choices(engine, plan).get(field, ())) > 1
        return several and concerned(technique, plan)
    fp8: dict[str, Any] = {field: "fp8"}
    return engines.refusal(engine, replace(plan, **fp8)) is None


def check_devices(layout: Layout, device: Device, topology: Topology) -> None:
    """Raise UserError where a layout has more ranks than there are devices, or does not give each
    rank a device of its own."""
    ranks, there = layout.placement.num_ranks, len(topology.devices)
    if ranks > there:
        what, advice = SHORT_OF[device]
        raise UserError(
            f"{layout.name} needs {ranks} {what}; {there} {'is' if there == 1 else 'are'} here; "
            f"{advice}"
        )
    if sorted(layout.placement.devices) != list(range(ranks)):
        raise UserError(
            f"{layout.name} puts its ranks on the devices {list(layout.placement.devices)}; its "
            f"strategies must name each of 0 to {ranks - 1} once"
        )


def check_attention(plan: EnginePlan, topology: Topology) -> None:
    """Raise UserError where a GPU is known to be none of those that the library of a plan's
    attention is for."""
    kind = str(plan.switches.attention)
    for device in topology.devices if kind in ATTENTION_NEEDS else ():
        has, needs = device.capability, ATTENTION_NEEDS[kind]
        if has is not None and has[0] not in needs:
            raise UserError(
                f"--attention {kind} needs GPUs of compute capability "
                f"{' or '.join(f'{major}.x' for major in needs)}; {device.name} has "
                f"{has[0]}.{has[1]}; use --attention triton"
            )
