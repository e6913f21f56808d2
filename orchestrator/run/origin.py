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
from orchestrator.store.identity import decisive_of
from orchestrator.store.store import Store
from workers.versions import versions

UUID_SHOWN = 12  # characters: GPU-5ac1f5e2


@dataclass(frozen=True, slots=True)
class Origin:
    """The hardware of one command. kinds: names of the devices. gpus: none on a CPU. cpu_model:
    None where the system does not say.

    A host's name says nothing: nodes that are lent are often all called alike.
    """

    kinds: frozenset[str]
    gpus: tuple[Gpu, ...]
    cpu_model: str | None

    @property
    def uuids(self) -> frozenset[str]:
        """Of its GPUs."""
        return frozenset(gpu.uuid for gpu in self.gpus)

    def is_that_of(self, block: Mapping[str, Any]) -> bool | None:
        """Whether a block was made on this node: it has a GPU in common, or without GPUs the CPU.
        None where it does not say."""
        theirs = frozenset(block.get("gpu_uuids") or ())
        if theirs or self.uuids:
            return bool(theirs & self.uuids) if theirs and self.uuids else None
        model = block.get("cpu_model")
        return model == self.cpu_model if model and self.cpu_model else None

    def node_among(self, blocks: Sequence[Mapping[str, Any]]) -> int:
        """The number of this node among those that `blocks` were made on, the next one where none
        is this."""
        numbers = [_number(block) for block in blocks]
        mine = (n for n, block in zip(numbers, blocks, strict=True) if self.is_that_of(block))
        unknown = (
            n for n, block in zip(numbers, blocks, strict=True) if self.is_that_of(block) is None
        )
        return next(mine, next(unknown, 1 + max(numbers, default=-1)))


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
    if blocks and not any(origin.is_that_of(block) in (True, None) for block in blocks):
        raise UserError(
            f"{store.folder} holds results of another node, {_shown(blocks[-1])} (here "
            f"{_here(origin)}); give another --result-dir, or --allow-other-node to add to them"
        )


def _check_same(store: Store, before: Mapping[str, Any], origin: Origin) -> None:
    here = {"device": sorted(origin.kinds), **versions()}
    there = decisive_of(before)
    # What is not installed here takes no part in what is to be added.
    other = [name for name in there if here.get(name) not in (None, there[name])]
    changed = [f"{name} {there[name]} (here {here.get(name)})" for name in other]
    if changed:
        raise UserError(
            f"{store.folder} holds results of {', '.join(changed)}; give another --result-dir, or "
            "move it away"
        )


def _number(block: Mapping[str, Any]) -> int:
    return block.get("node") or 0


def _shown(block: Mapping[str, Any]) -> str:
    uuids = sorted(block.get("gpu_uuids") or ())
    return " ".join(uuid[:UUID_SHOWN] for uuid in uuids) or str(block.get("cpu_model"))


def _here(origin: Origin) -> str:
    return _shown({"gpu_uuids": origin.uuids, "cpu_model": origin.cpu_model})
