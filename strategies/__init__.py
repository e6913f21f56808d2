"""Layouts as pure data and pure functions: no torch, no ray. The room researchers work in."""

from strategies.errors import LayoutError
from strategies.placement import Placement, Split, Stage
from strategies.registry import Layout, discover, parse, plan
from strategies.shapes import Load, ModelShape, Slot, Topology

__all__ = [
    "Layout", "LayoutError", "Load", "ModelShape", "Placement", "Slot", "Split", "Stage", "Topology", "discover", "parse", "plan",
]
