"""On which devices and engines a layout runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from orchestrator.errors import UserError
from strategies import Layout, Topology
from workers.messages import EnginePlan

DEFAULT_ENGINE = "torch"
# kind of device -> the devices that may be too few, and the advice in that case
SHORT_OF = {"cuda": ("GPUs", "use --device cpu or fewer"), "cpu": ("CPU workers", "use fewer")}

HOPPER = (9, 0)  # compute capability of the GPUs that FlashAttention-3 is built for

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
    """Raise UserError where a plan has FlashAttention-3 and a GPU is known to be none of its."""
    if plan.switches.attention != "fa3":
        return
    for device in topology.devices:
        if device.capability not in (None, HOPPER):
            has = ".".join(map(str, device.capability))
            raise UserError(
                "--attention fa3 needs GPUs of compute capability 9.0 (Hopper); "
                f"{device.name} has {has}; use --attention triton"
            )
