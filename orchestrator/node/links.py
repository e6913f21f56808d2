"""How the GPUs of this machine are connected, according to NVML alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster import hardware
from workers.device import answer_of

P2P_READ = 0  # NVML_P2P_CAPS_INDEX_READ, which some releases of pynvml define as a tuple
# NVML_TOPOLOGY_*, in the words of `nvidia-smi topo -m`.
PATHS = {0: "same board", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two visible GPUs, a and b as torch counts. nvlinks: between them; on an NVSwitch as many as
    the GPU with fewer of them has. p2p: one reads the other's memory; None where NVML does not say.
    path: "NVLink", or the part of the PCIe tree between them."""

    a: int
    b: int
    nvlinks: int
    p2p: bool | None
    path: str

    @property
    def name(self) -> str:
        """ "0-1" """
        return f"{self.a}-{self.b}"


def pairs() -> list[Pair]:
    """Every pair of visible GPUs."""
    with hardware.visible_gpus() as (nvml, handles):
        ports = [_ports(nvml, handle) for handle in handles]
        return [
            _pair(nvml, a, b, handles, ports)
            for a, b in itertools.combinations(range(len(handles)), 2)
        ]


def _pair(
    nvml: Any, a: int, b: int, handles: Sequence[Any], ports: Sequence[list[str | None]]
) -> Pair:
    one, other = handles[a], handles[b]
    p2p = answer_of(nvml, nvml.nvmlDeviceGetP2PStatus, one, other, P2P_READ)
    level = answer_of(nvml, nvml.nvmlDeviceGetTopologyCommonAncestor, one, other)
    direct = ports[a].count(_bus_id(nvml, other))
    switched = min(len(ports[a]), len(ports[b])) if hardware.is_linked(nvml, one, other) else 0
    links = direct or switched
    return Pair(
        a=a,
        b=b,
        nvlinks=links,
        p2p=None if p2p is None else p2p == nvml.NVML_P2P_STATUS_OK,
        path="NVLink" if links else PATHS.get(level, "unknown"),
    )


def _ports(nvml: Any, handle: Any) -> list[str | None]:
    """Bus ids of what is at the other end of each NVLink that is up; None where NVML does not
    report it."""
    found = []
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        state = answer_of(nvml, nvml.nvmlDeviceGetNvLinkState, handle, link)
        if state == nvml.NVML_FEATURE_ENABLED:
            remote = answer_of(nvml, nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
            found.append(None if remote is None else _text(remote.busId))
    return found


def _bus_id(nvml: Any, handle: Any) -> str:
    info = answer_of(nvml, nvml.nvmlDeviceGetPciInfo, handle)
    return "" if info is None else _text(info.busId)


def _text(value: str | bytes) -> str:
    return (value.decode() if isinstance(value, bytes) else str(value)).lower()
