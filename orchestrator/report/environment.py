"""What was run, and on what: the manifest of results as lists of facts.

A manifest is JSON that any version may have written, so it is read as a mapping.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.comparing.rounds import dtype_of
from orchestrator.experiment import ONLY_GENERATES, ONLY_TRAINS
from orchestrator.report import text
from orchestrator.report.charts.choices import lengths_of
from orchestrator.store.folders import read_manifest
from orchestrator.store.node_id import NodeId, distinct
from workers.rows import grouped
from workers.units import format_bytes


@dataclass(frozen=True, slots=True)
class Environment:
    """One experiment's manifest. day: on which it began. note: what is to be known of its
    nodes. lists: facts by their heading. manifest: the whole of it as text."""

    name: str
    day: str
    note: str
    lists: Mapping[str, Mapping[str, object]]
    manifest: str


def hardware(folders: Sequence[Path]) -> str:
    """The devices of all results in a line."""
    manifests = [read_manifest(folder) for folder in folders]
    return "; ".join(dict.fromkeys(filter(None, map(_devices, manifests))))


def capacity_gb(folders: Sequence[Path]) -> float | None:
    """Memory of one GPU, where all have the same."""
    gpus = (gpu for folder in folders for gpu in read_manifest(folder).get("gpus") or ())
    found = {gpu.get("memory_bytes") for gpu in gpus}
    return found.pop() / 1e9 if len(found) == 1 and None not in found else None


# -- in short, at the top of a page


WEIGHTS = {"dummy": "made up from a seed, the same under every layout (dummy)"}


def setup(folders: Sequence[Path], comparison: Sequence[Comparison]) -> dict[str, str]:
    """The head of a page about the results in these folders."""
    return head([read_manifest(folder) for folder in folders], comparison)


def head(
    manifests: Sequence[Mapping[str, Any]], comparison: Sequence[Comparison]
) -> dict[str, str]:
    """What was measured, of what and under which conditions, in a few lines: heading -> fact."""
    asked = [manifest.get("experiment") or {} for manifest in manifests]
    formats = [str(one["load_format"]) for one in asked if one.get("load_format")]
    facts = {
        "Model": _each(one.cell.model for one in comparison),
        "Weights": _each(WEIGHTS.get(name, f"of a checkpoint ({name})") for name in formats),
        "Data type": _each(dtype_of(one.cell) for one in comparison),
        "Engine": _each(_engine(one.cell.engine, manifests) for one in comparison),
        "Lengths": _each(f"{one.cell.scenario}{lengths_of(one.conditions)}" for one in comparison),
        "Repeats": _repeats(comparison),
        "Node": _each(map(_node, manifests)),
        "Power": _power(manifests, comparison),
        "Clocks": _clocks(manifests, comparison),
    }
    return {heading: fact for heading, fact in facts.items() if fact}


def _each(facts: Iterable[str]) -> str:
    """Those that differ."""
    return "; ".join(dict.fromkeys(filter(None, facts)))


def _engine(name: str, manifests: Sequence[Mapping[str, Any]]) -> str:
    """An engine with the version of the package that it is named after, or of its build for CPUs,
    where that is known."""
    versions = [manifest.get("versions") or {} for manifest in manifests]
    known = (found.get(package) for found in versions for package in (name, f"{name}-cpu"))
    return " ".join(filter(None, [name, next(filter(None, known), "")]))


def _repeats(comparison: Sequence[Comparison]) -> str:
    """Starts and runs of a cell, from the fewest to the most."""
    done = [one for one in comparison if one.num_runs]
    if not done:
        return ""
    starts, runs = ({one.num_starts for one in done}, {one.num_runs for one in done})
    said = (text.span(min(found), max(found), text.EN_DASH) for found in (starts, runs))
    return "starts of each layout: {}; runs under each load: {}".format(*said)


def _node(manifest: Mapping[str, Any]) -> str:
    host = manifest.get("host") or {}
    return ", ".join(filter(None, [_devices(manifest), host.get("cpu_model")]))


def _power(manifests: Sequence[Mapping[str, Any]], comparison: Sequence[Comparison]) -> str:
    """The cap of the GPUs, and how often it held their clocks down."""
    capped = _known(one.clocks.power_capped_pct for one in comparison)
    held = f"held clocks down in up to {max(capped):.0f}% of a layout's samples" if capped else ""
    return ", ".join(filter(None, [_of_gpus(manifests, "power_limit_w", "cap at {} W"), held]))


def _clocks(manifests: Sequence[Mapping[str, Any]], comparison: Sequence[Comparison]) -> str:
    """The highest of the multiprocessors, and their means over runs."""
    seen = _known(one.clocks.mean_sm_clock_mhz for one in comparison)
    means = text.span(round(min(seen)), round(max(seen)), text.EN_DASH) if seen else ""
    during = f"a mean of {means} MHz in runs" if means else ""
    return ", ".join(
        filter(None, [_of_gpus(manifests, "max_sm_clock_mhz", "SM up to {} MHz"), during])
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _of_gpus(manifests: Sequence[Mapping[str, Any]], field: str, said: str) -> str:
    """A fact that all GPUs share or differ in, as a sentence; empty where it is unknown."""
    gpus = (gpu for manifest in manifests for gpu in manifest.get("gpus") or ())
    found = sorted({gpu[field] for gpu in gpus if gpu.get(field) is not None})
    return said.format(" or ".join(f"{value:,.0f}" for value in found)) if found else ""


# -- the whole of it


def nodes(folders: Sequence[Path]) -> dict[str, int]:
    """Experiment -> how many nodes its blocks were made on, as far as it is known."""
    return {
        folder.resolve().name: distinct(map(NodeId.of, read_manifest(folder).get("blocks") or ()))
        for folder in folders
    }


def pooled(nodes: int) -> str:
    """What starts on several nodes are worth; empty for one."""
    return f"Starts pool over {nodes} nodes; pairs stay within a node." if nodes > 1 else ""


def describe(folder: Path) -> Environment:
    """The environment of the results in a folder."""
    manifest = read_manifest(folder)
    blocks = manifest.get("blocks") or ()
    several = len(blocks) > 1
    lists = {
        "Machine": _machine(manifest),
        **_gpus(manifest.get("gpus") or ()),
        "GPU UUIDs": {} if several else _uuids(manifest.get("gpus") or ()),
        **(_blocks(blocks) if several else {}),
        "Environment of the workers": manifest.get("environment") or {},
        "Devices, by node": _devices_by_node(manifest.get("topology") or ()),
        "Versions": manifest.get("versions") or {},
        "Requests of a run": manifest.get("num_prompts") or {},
        "Asked for": _asked(manifest.get("experiment") or {}),
    }
    return Environment(
        name=folder.resolve().name,
        day=str(manifest.get("started_at") or "")[:10],
        note=pooled(distinct(map(NodeId.of, blocks))),
        lists={heading: facts for heading, facts in lists.items() if facts},
        manifest=json.dumps(manifest, indent=2),
    )


def _devices(manifest: Mapping[str, Any]) -> str:
    gpus = [gpu["name"] for gpu in manifest.get("gpus") or () if gpu.get("name")]
    if manifest.get("device") == "cpu" or not gpus:
        return f"CPU, {manifest['host']['cpu_count']} cores" if manifest.get("host") else ""
    return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))


def _machine(manifest: Mapping[str, Any]) -> dict[str, object]:
    host = manifest.get("host") or {}
    facts = {
        "Devices": _devices(manifest),
        "Driver": manifest.get("driver_version"),
        "NCCL": manifest.get("nccl_version"),
        "Host": host.get("name"),
        "System": host.get("system"),
        "Processor": host.get("cpu_model"),
        "Processors": host.get("cpu_count"),
        "Main memory": format_bytes(host["memory_bytes"]) if host.get("memory_bytes") else None,
        "NVLink multicast (NVLS)": manifest.get("nvls"),
        "Commit": _commit(manifest),
        "Started": manifest.get("started_at"),
        "Finished": manifest.get("finished_at"),
    }
    return {name: value for name, value in facts.items() if value}


def _blocks(blocks: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, object]]:
    """A list of facts for each place and source that blocks have in common, headed by the numbers
    of these blocks."""
    numbered = grouped(enumerate(blocks), lambda pair: json.dumps(_made(pair[1])))
    out: dict[str, dict[str, object]] = {}
    for same in numbered.values():
        numbers = [number for number, _ in same]
        started = {f"Block {number} began": block.get("started_at") for number, block in same}
        facts = {**started, **_made(same[0][1])}
        heading = f"{'Block' if len(same) == 1 else 'Blocks'} {_ranges(iter(numbers))}"
        out[heading] = {name: value for name, value in facts.items() if value}
    return out


def _made(block: Mapping[str, Any]) -> dict[str, object]:
    """Where a block was made, and with which source."""
    uuids = block.get("gpu_uuids") or ()
    named = {f"GPU {place}": uuid for place, uuid in enumerate(uuids)}
    processor = None if uuids else block.get("cpu_model")
    return {"Host": block.get("host"), "Processor": processor, **named, "Commit": _commit(block)}


def _commit(manifest: Mapping[str, Any]) -> str | None:
    """The commit of the source, and whether it was changed since."""
    commit = manifest.get("git_commit")
    return f"{commit}, with changes on top" if commit and manifest.get("git_dirty") else commit


def _asked(experiment: Mapping[str, Any]) -> dict[str, str]:
    """The fields of the experiment that are set, but for those of another workload. Its result
    folder is left out: the page lies in it."""
    others = ONLY_GENERATES if experiment.get("workload") == "train" else ONLY_TRAINS
    known = {
        name: value
        for name, value in experiment.items()
        if value not in (None, [], {}, "", False) and name not in ("result_dir", *others)
    }
    return {name: _text(value) for name, value in known.items()}


# Field of a GPU in the manifest -> its heading, and how its value is written.
GPU_FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "name": ("Name", str),
    "memory_bytes": ("Memory", format_bytes),
    "max_sm_clock_mhz": ("SM clock, at most", "{:,} MHz".format),
    "sm_clock_mhz": ("SM clock at the start", "{:,} MHz".format),
    "application_sm_clock_mhz": ("SM clock, as set", "{:,} MHz".format),
    "max_memory_clock_mhz": ("Memory clock, at most", "{:,} MHz".format),
    "memory_clock_mhz": ("Memory clock at the start", "{:,} MHz".format),
    "application_memory_clock_mhz": ("Memory clock, as set", "{:,} MHz".format),
    "power_limit_w": ("Power limit", "{:,.0f} W".format),
    "default_power_limit_w": ("Power limit, by default", "{:,.0f} W".format),
}


def _gpus(gpus: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """A list of facts for each kind of GPU, headed by the indices of the GPUs of that kind."""
    facts = [
        {
            title: show(gpu[name])
            for name, (title, show) in GPU_FACTS.items()
            if gpu.get(name) is not None
        }
        for gpu in gpus
    ]
    indices = [gpu.get("index", place) for place, gpu in enumerate(gpus)]
    pairs = zip(indices, facts, strict=True)
    kinds = grouped(pairs, lambda pair: tuple(pair[1].items()))
    return {
        f"GPU {_ranges(index for index, _ in same)}": dict(kind) for kind, same in kinds.items()
    }


def _uuids(gpus: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {
        f"GPU {gpu.get('index', place)}": gpu["uuid"]
        for place, gpu in enumerate(gpus)
        if gpu.get("uuid")
    }


def _devices_by_node(topology: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Node -> its devices; those with the same name and memory are written together."""
    nodes = grouped(topology, lambda device: str(device["node"]))
    return {node: "; ".join(_kinds(devices)) for node, devices in nodes.items()}


def _kinds(devices: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    kinds = grouped(devices, lambda device: (device["name"], device.get("memory_bytes")))
    for (name, memory), same in kinds.items():
        size = f", {format_bytes(memory)}" if memory else ""
        yield f"{_ranges(device['index'] for device in same)}: {name}{size}"


def _ranges(numbers: Iterator[int]) -> str:
    return text.ranges(numbers, text.EN_DASH)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)
