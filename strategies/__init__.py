"""Layouts as pure data and pure functions: no torch, no ray. Everything that a strategy needs is
imported from here; docs/write-a-strategy.md explains it."""

from strategies.errors import LayoutError
from strategies.pipeline import balance, with_stages
from strategies.placement import Placement, Split, Stage
from strategies.registry import Installed, Layout, Refine, discover, parse, plan_layout
from strategies.shapes import Device, Load, ModelShape, Topology, TrainingLoad
from strategies.tensor import near_even

__all__ = [
    "Device",
    "Installed",
    "Layout",
    "LayoutError",
    "Load",
    "ModelShape",
    "Placement",
    "Refine",
    "Split",
    "Stage",
    "Topology",
    "TrainingLoad",
    "balance",
    "discover",
    "near_even",
    "parse",
    "plan_layout",
    "with_stages",
]
