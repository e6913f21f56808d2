"""Layouts as pure data and pure functions: no torch, no ray. The room researchers work in."""

from strategies.errors import LayoutError
from strategies.placement import Placement, Split, Stage
from strategies.registry import Layout, discover, parse, plan
from strategies.shapes import Device, Load, ModelShape, Topology

__all__ = [
    "Device",
    "Layout",
    "LayoutError",
    "Load",
    "ModelShape",
    "Placement",
    "Split",
    "Stage",
    "Topology",
    "discover",
    "parse",
    "plan",
]
