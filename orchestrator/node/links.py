"""How the GPUs of this machine are connected, asked of NVML alone."""

from __future__ import annotations

import itertools
from typing import Any

from orchestrator.cluster import hardware

P2P_READ = 0  # NVML_P2P_CAPS_INDEX_READ, which some releases of pynvml define as a tuple
# NVML_TOPOLOGY_*, in the words of `nvidia-smi topo -m`.
PATHS = {0: "same board", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}


def pairs() -> list[dict[str, Any]]:
    """Every pair of visible GPUs: a and b (as torch counts), nvlinks between them, p2p (None where
    NVML does not say), path.

    path: "NVLink" where there is one, else what of the PCIe tree lies between. On an NVSwitch a
    pair has as many links as the GPU with fewer of them.
    """
    with hardware.visible_gpus() as (nvml, handles):
        ports = [_ports(nvml, handle) for handle in handles]
        return [
            _pair(nvml, a, b, handles, ports)
            for a, b in itertools.combinations(range(len(handles)), 2)
        ]


def _pair(
    nvml: Any, a: int, b: int, handles: list[Any], ports: list[list[str | None]]
) -> dict[str, Any]:
    one, other = handles[a], handles[b]
    p2p = ask(nvml, nvml.nvmlDeviceGetP2PStatus, one, other, P2P_READ)
    linked = (
        ask(nvml, nvml.nvmlDeviceGetP2PStatus, one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
        == nvml.NVML_P2P_STATUS_OK
    )
    direct = ports[a].count(_bus_id(nvml, other))
    links = direct or (min(len(ports[a]), len(ports[b])) if linked else 0)
    level = ask(nvml, nvml.nvmlDeviceGetTopologyCommonAncestor, one, other)
    path = "NVLink" if links else PATHS.get(level, "unknown")
    return {
        "a": a,
        "b": b,
        "nvlinks": links,
        "p2p": None if p2p is None else p2p == nvml.NVML_P2P_STATUS_OK,
        "path": path,
    }


def _ports(nvml: Any, handle: Any) -> list[str | None]:
    """Bus ids of what is at the other end of each NVLink that is up; None where that is not
    told."""
    found = []
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        if ask(nvml, nvml.nvmlDeviceGetNvLinkState, handle, link) == nvml.NVML_FEATURE_ENABLED:
            remote = ask(nvml, nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
            found.append(None if remote is None else _text(remote.busId))
    return found


def _bus_id(nvml: Any, handle: Any) -> str:
    info = ask(nvml, nvml.nvmlDeviceGetPciInfo, handle)
    return "" if info is None else _text(info.busId)


def _text(value: Any) -> str:
    return (value.decode() if isinstance(value, bytes) else str(value)).lower()


def ask(nvml: Any, function: Any, *arguments: Any) -> Any:
    """What NVML answers, None where this GPU or driver does not know."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None
