"""Which node makes the runs, and whether these may be added to the results that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster import hardware, nodes
from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.hardware import Gpu
from orchestrator.errors import UserError
from orchestrator.store.folders import lost_manifest
from orchestrator.store.identity import changed, decisive_of
from orchestrator.store.node_id import NodeId, found_among, next_number, number_of
from orchestrator.store.store import Store
from workers.versions import versions


@dataclass(frozen=True, slots=True)
class Origin:
    """The hardware of one command. kinds: names of the devices. gpus: none on a CPU. cpu_model:
    None where the system does not say."""

    kinds: frozenset[str]
    gpus: tuple[Gpu, ...]
    cpu_model: str | None

    @property
    def node(self) -> NodeId:
        """By which its node is known again."""
        return NodeId(frozenset(gpu.uuid for gpu in self.gpus), self.cpu_model)

    def may_be_that_of(self, block: Mapping[str, Any]) -> bool:
        """Whether a block was made on this node, or does not say."""
        return self.node.is_same(NodeId.of(block)) is not False

    def node_among(self, blocks: Sequence[Mapping[str, Any]]) -> int:
        """The number of this node among those that `blocks` were made on: that of a block which
        does not say where none is this one for certain, the next one where all are others."""
        found = found_among(self.node, blocks)
        if found is not None:
            return found
        unknown = (number_of(block) for block in blocks if self.may_be_that_of(block))
        return next(unknown, next_number(blocks))


def origin_of(device: str, cluster: Cluster | None) -> Origin:
    """The hardware that runs on `device` ("cuda" or "cpu") use: of the cluster that was joined,
    else of this machine. Starts nothing."""
    there = cluster.nodes if cluster else (nodes.this_node(device, 1),)
    kinds = frozenset(one.name for one in nodes.topology_of(there, device).devices)
    gpus = tuple(gpu for node in there for gpu in node.gpus) or tuple(hardware.gpus())
    return Origin(kinds, gpus if device == "cuda" else (), hardware.cpu_model())


def check_origin(store: Store, origin: Origin, allow_other_node: bool) -> None:
    """Raise UserError where the results in `store` come from other devices or software, or, unless
    that is allowed, from another node: they would not be comparable."""
    if store.is_empty:
        return
    before = store.manifest()
    _check_same(store, before, origin)
    blocks = before.get("blocks", ())
    if allow_other_node:
        return
    if lost_manifest(store.folder):
        raise UserError(
            f"{store.folder}: manifest.json cannot be read, so nobody knows on which node its runs "
            "were made; give another --result-dir, or --allow-other-node if it was this one"
        )
    if blocks and not any(map(origin.may_be_that_of, blocks)):
        raise UserError(
            f"{store.folder} holds results of another node, {NodeId.of(blocks[-1])} (here "
            f"{origin.node}); give another --result-dir, or --allow-other-node to add to them"
        )


def _check_same(store: Store, before: Mapping[str, Any], origin: Origin) -> None:
    here = {"device": sorted(origin.kinds), **versions()}
    there = decisive_of(before)
    # What is not installed here takes no part in what is to be added.
    if names := changed(there, here):
        said = ", ".join(f"{name} {there[name]} (here {here[name]})" for name in names)
        raise UserError(
            f"{store.folder} holds results of {said}; give another --result-dir, or move it away"
        )
