"""What was run, and on what: the manifest of results as lists of facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.report.figures import grouped
from orchestrator.store import results
from orchestrator.units import format_bytes

Facts = Mapping[str, Any]


def hardware(folders: Sequence[Path]) -> str:
    """The devices of all results in a line."""
    manifests = [results.read_manifest(folder) for folder in folders]
    return "; ".join(dict.fromkeys(filter(None, map(_devices, manifests))))


def _devices(manifest: dict[str, Any]) -> str:
    gpus = [gpu["name"] for gpu in manifest.get("gpus") or () if gpu.get("name")]
    if manifest.get("device") == "cpu" or not gpus:
        return f"CPU, {manifest['host']['cpu_count']} cores" if manifest.get("host") else ""
    return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))


def describe(folder: Path) -> dict[str, Any]:
    """Lists of facts by their heading, the name of the results, the day of their beginning, and the
    whole manifest as text."""
    manifest = results.read_manifest(folder)
    asked = {
        name: value
        for name, value in (manifest.get("experiment") or {}).items()
        if value not in (None, [], {}, "", False)
    }
    asked.pop("result_dir", None)
    host = manifest.get("host") or {}
    machine = {
        "Devices": _devices(manifest),
        "Driver": manifest.get("driver_version"),
        "NCCL": manifest.get("nccl_version"),
        "Host": host.get("name"),
        "System": host.get("system"),
        "Processors": host.get("cpu_count"),
        "Main memory": format_bytes(host["memory_bytes"]) if host.get("memory_bytes") else None,
        "Commit": manifest.get("git_commit"),
        "Started": manifest.get("started_at"),
        "Finished": manifest.get("finished_at"),
    }
    lists = {
        "Machine": {name: value for name, value in machine.items() if value},
        **_gpus(manifest.get("gpus") or ()),
        "Slots, by node": _slots(manifest.get("topology") or ()),
        "Versions": manifest.get("versions") or {},
        "Asked for": {name: _text(value) for name, value in asked.items()},
    }
    return {
        "name": folder.resolve().name,
        "day": str(manifest.get("started_at") or "")[:10],
        "lists": {heading: facts for heading, facts in lists.items() if facts},
        "manifest": json.dumps(manifest, indent=2),
    }


# What the manifest says of a GPU -> how it is headed, and shown.
GPU_FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "name": ("Name", str),
    "memory_bytes": ("Memory", format_bytes),
    "max_sm_clock_mhz": ("SM clock, at most", "{:,} MHz".format),
    "sm_clock_mhz": ("SM clock at the start", "{:,} MHz".format),
    "memory_clock_mhz": ("Memory clock at the start", "{:,} MHz".format),
    "power_limit_w": ("Power limit", "{:,.0f} W".format),
}


def _gpus(gpus: Sequence[Facts]) -> dict[str, dict[str, str]]:
    """A list of facts for each kind of GPU, headed by the indices of those that are of it."""
    facts = [
        {
            title: show(gpu[name])
            for name, (title, show) in GPU_FACTS.items()
            if gpu.get(name) is not None
        }
        for gpu in gpus
    ]
    kinds = grouped(zip(gpus, facts, strict=True), lambda pair: tuple(pair[1].items()))
    indices = {
        kind: [gpu.get("index", place) for place, (gpu, _) in enumerate(same)]
        for kind, same in kinds.items()
    }
    return {f"GPU {_ranges(mine)}": dict(kind) for kind, mine in indices.items()}


def _slots(topology: Sequence[Facts]) -> dict[str, str]:
    """Node -> its devices, by what is in them."""
    nodes = grouped(topology, lambda device: device["node"])
    return {node: "; ".join(_kinds(devices)) for node, devices in nodes.items()}


def _kinds(devices: Sequence[Facts]) -> Iterator[str]:
    for (name, memory), same in grouped(
        devices, lambda device: (device["name"], device.get("memory_bytes"))
    ).items():
        size = f", {format_bytes(memory)}" if memory else ""
        yield f"{_ranges([device['index'] for device in same])}: {name}{size}"


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 -> 0\u20132, 5."""
    ends: list[list[int]] = []
    for one in sorted(numbers):
        if ends and one == ends[-1][1] + 1:
            ends[-1][1] = one
        else:
            ends.append([one, one])
    return ", ".join(str(low) if low == high else f"{low}\u2013{high}" for low, high in ends)


def _text(value: Any) -> str:
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else json.dumps(value)
        if isinstance(value, dict)
        else str(value)
    )
