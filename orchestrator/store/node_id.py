"""Which node a command ran on, and whether that was the same one as of another command.

By the UUIDs of its GPUs, or without GPUs by the model of its CPU. The name of a host says nothing:
nodes that are lent are often all called alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

UUID_SHOWN = 12  # characters: GPU-5ac1f5e2


@dataclass(frozen=True, slots=True)
class NodeId:
    """What a node is known by. uuids: of its GPUs; empty where it has none, or they are unknown.
    cpu_model: None where that is unknown."""

    uuids: frozenset[str]
    cpu_model: str | None

    @classmethod
    def of(cls, block: Mapping[str, Any], cpu_model: str | None = None) -> NodeId:
        """The node of a block of a manifest. cpu_model: where the block does not say."""
        return cls(frozenset(block.get("gpu_uuids") or ()), block.get("cpu_model") or cpu_model)

    @property
    def is_known(self) -> bool:
        """Whether anything is."""
        return bool(self.uuids or self.cpu_model)

    def is_same(self, other: NodeId) -> bool | None:
        """Whether both are one node: they have a GPU in common, or without GPUs the CPU. None where
        one of them does not say."""
        if self.uuids or other.uuids:
            return bool(self.uuids & other.uuids) if self.uuids and other.uuids else None
        models = self.cpu_model, other.cpu_model
        return models[0] == models[1] if all(models) else None

    def __str__(self) -> str:
        uuids = sorted(self.uuids)
        return " ".join(uuid[:UUID_SHOWN] for uuid in uuids) or str(self.cpu_model)


def number_of(block: Mapping[str, Any]) -> int:
    """The number of a block's node among those of its results."""
    return block.get("node") or 0


def next_number(blocks: Iterable[Mapping[str, Any]]) -> int:
    """That no node of `blocks` has."""
    return 1 + max(map(number_of, blocks), default=-1)


def found_among(node: NodeId, blocks: Iterable[Mapping[str, Any]]) -> int | None:
    """The number of a node among those that `blocks` were made on; None where none is this one for
    certain."""
    return next((number_of(one) for one in blocks if node.is_same(NodeId.of(one))), None)


def distinct(nodes: Iterable[NodeId]) -> int:
    """How many nodes there are, as far as is known: one that two others have GPUs in common with
    is the same as both."""
    found: list[set[str]] = []
    for node in nodes:
        mine = set(node.uuids) or {str(node.cpu_model)}
        shared = [known for known in found if known & mine]
        found = [known for known in found if not known & mine] + [mine.union(*shared)]
    return len(found)
