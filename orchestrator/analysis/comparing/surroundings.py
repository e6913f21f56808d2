"""What two results were made on, by their manifests: whether it was another node, and what else is
different.

A manifest is JSON that any version may have written. What one of the two does not say is unknown,
and neither the same nor different.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.experiment import OF_DATASET, SWITCHES
from orchestrator.store.node_id import NodeId

Manifest = Mapping[str, Any]
ENVIRONMENT = (
    "device",
    "driver_version",
    "nccl_version",
    "nvls",
    "environment",
    "git_commit",
    "versions",
    "host",
)
OF_GPUS = frozenset({"driver_version", "nccl_version", "nvls"})  # a CPU has none of them
# Lists of devices. Of a GPU are left out: its place, what is said once for all of them, what says
# which node it is, and its clock of one moment, which is another one each time.
DEVICES = ("topology", "gpus")
NOT_COMPARED = frozenset({"index", "driver", "uuid", "sm_clock_mhz"})
WORKLOAD = (
    "request_rate",
    "burstiness",
    "range_ratio",
    "dataset_path",
    *OF_DATASET,
    "num_prompts",
    "min_duration",
    "num_warmups",
    "seed",
    *SWITCHES,
    "temperature",
    "load_format",
    "ignore_eos",
    "nsys",
)
ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the two environments differ in."""

    what: str
    base: str
    new: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """One thing that the manifest of a side, or of both, does not say. sides: "base", "new"."""

    what: str
    sides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What two results were made on.

    another_node: None where that is unknown. node: the same in words. differences: the work first.
    dirty: the sides whose code has changes that no commit holds.
    """

    another_node: bool | None = None
    node: str = ""
    differences: Sequence[Difference] = ()
    unknown: Sequence[Unknown] = ()
    dirty: Sequence[str] = ()

    def as_data(self) -> dict[str, object]:
        """Plain data for `json.dumps`."""
        return {
            "another_node": self.another_node,
            "node": self.node,
            "environment": [
                {"what": one.what, "base": one.base, "new": one.new} for one in self.differences
            ],
            "unknown": {one.what: list(one.sides) for one in self.unknown},
            "uncommitted_changes": list(self.dirty),
        }


def surroundings_of(pairs: Iterable[tuple[Manifest, Manifest]]) -> Surroundings:
    """What the manifests of experiments say that share a cell, the base's first in each pair."""
    known = list(pairs)
    nodes = [another_node(*pair) for pair in known]
    # One pair on another node decides, then one of which nothing is known.
    worst = sorted(nodes, key=lambda node: {True: 0, None: 1, False: 2}[node[0]])
    another, said = worst[0] if worst else (None, "")
    found = dict.fromkeys(one for pair in known for one in differences(*pair))
    return Surroundings(
        another_node=another,
        node=said,
        differences=sorted(found, key=lambda one: not one.what.startswith("work.")),
        unknown=list(dict.fromkeys(one for pair in known for one in unknown(*pair))),
        dirty=[
            side
            for place, side in enumerate(("base", "new"))
            if any(_is_dirty(pair[place]) for pair in known)
        ],
    )


def another_node(base: Manifest, new: Manifest) -> tuple[bool | None, str]:
    """Whether two results were made on different nodes, and the same in words. None: unknown.

    By the UUIDs of the GPUs where both know them, else by the models of the CPUs: two of one model
    may be one node or two.
    """
    ours, theirs = _places(base), _places(new)
    if all(place.uuids for place in (*ours, *theirs)):
        return _by_gpus(ours, theirs)
    return _by_cpus(ours, theirs)


def differences(base: Manifest, new: Manifest) -> list[Difference]:
    """What two manifests say differently of hardware, software and work; what one of them does not
    know is left out."""
    ours, theirs = _environment(base), _environment(new)
    both = [name for name in ours if name in theirs]
    before, after = (_flat({name: side[name] for name in both}) for side in (ours, theirs))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [Difference(name, before.get(name, ABSENT), after.get(name, ABSENT)) for name in names]


def unknown(base: Manifest, new: Manifest) -> list[Unknown]:
    """What a manifest does not say that another might: of CPUs nothing that only GPUs have."""
    sides = {"base": _environment(base), "new": _environment(new)}
    on_cpu = base.get("device") == new.get("device") == "cpu"
    asked = [name for name in ENVIRONMENT if not (on_cpu and name in OF_GPUS)]
    told = [name for side in sides.values() for name in side]
    lacking = {
        name: tuple(side for side, known in sides.items() if name not in known)
        for name in dict.fromkeys([*asked, *told])
    }
    return [Unknown(name, without) for name, without in lacking.items() if without]


def _places(manifest: Manifest) -> list[NodeId]:
    """Where the blocks of a result were made; one place where its manifest has no blocks."""
    host = manifest.get("host") or {}
    gpus = sorted(gpu["uuid"] for gpu in manifest.get("gpus") or () if gpu.get("uuid"))
    blocks = manifest.get("blocks") or [{"gpu_uuids": gpus}]
    return [NodeId.of(one, host.get("cpu_model")) for one in blocks]


def _by_gpus(base: Sequence[NodeId], new: Sequence[NodeId]) -> tuple[bool, str]:
    """Two places are on one node where they have a GPU in common."""

    def are_shared(places: Sequence[NodeId], others: Sequence[NodeId]) -> bool:
        return all(any(one.is_same(other) for other in others) for one in places)

    gpus = f"GPUs {_uuids(base)} in the base, {_uuids(new)} in the new result"
    if not (are_shared(base, new) and are_shared(new, base)):
        return True, f"another node: yes, {gpus}"
    same = {place.uuids for place in base} == {place.uuids for place in new}
    return False, f"another node: no, {'the same GPUs' if same else f'but other {gpus}'}"


def _by_cpus(base: Sequence[NodeId], new: Sequence[NodeId]) -> tuple[bool | None, str]:
    ours, theirs = _cpus(base), _cpus(new)
    if ours and theirs and ours != theirs:
        return True, f"another node: yes, {ours} in the base, {theirs} in the new result"
    same = f": both have {ours}, as others may" if ours and theirs else ""
    return None, f"another node: unknown, the manifests do not both say which GPUs ran{same}"


def _cpus(places: Sequence[NodeId]) -> str:
    """The models of the CPUs; empty where one of them is unknown."""
    models = [place.cpu_model for place in places]
    return ", ".join(sorted({str(model) for model in models})) if all(models) else ""


def _uuids(places: Sequence[NodeId]) -> str:
    return str(NodeId(frozenset(uuid for place in places for uuid in place.uuids), None))


def _is_dirty(manifest: Manifest) -> bool:
    return bool(manifest.get("git_dirty")) or str(manifest.get("git_commit")).endswith("+")


def _environment(manifest: Manifest) -> dict[str, object]:
    """What a manifest knows of hardware, software and work, by name."""
    asked, counts = manifest.get("experiment"), manifest.get("num_prompts")
    if isinstance(asked, dict) and "imported" not in manifest:
        work = {name: _asked(asked, name) for name in WORKLOAD}
    else:  # of an import only the runs say what the work was
        work = None
    found = {name: manifest.get(name) for name in ENVIRONMENT} | {
        "work": work,
        "work.num_prompts": counts if isinstance(counts, Mapping) else None,
    }
    devices = {name: text for kind in DEVICES for name, text in _devices(manifest, kind).items()}
    return {name: value for name, value in found.items() if value is not None} | devices


def _asked(work: Mapping[str, Any], name: str) -> object:
    """A field of an experiment. A switch that is left to the engine says no more than one that a
    version did not have."""
    value: object = work.get(name)
    return None if name in SWITCHES and value == "auto" else value


def _devices(manifest: Manifest, kind: str) -> dict[str, str]:
    """How many devices a list has, and what is said of them: by `gpus.power_limit_w`, "700.0", or
    "700.0, 500.0" where they are not alike."""
    devices = manifest.get(kind)
    if not isinstance(devices, list):
        return {}
    names = dict.fromkeys(name for one in devices for name in one if name not in NOT_COMPARED)
    values = {name: [str(one.get(name, ABSENT)) for one in devices] for name in names}
    said = {f"{kind}.{name}": ", ".join(dict.fromkeys(found)) for name, found in values.items()}
    return {f"{kind}.count": str(len(devices))} | said


def _flat(value: object, name: str = "") -> dict[str, str]:
    """Nested fields as one level of `a.b.0`; what is None is left out."""
    items: Iterable[tuple[object, object]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {} if value is None else {name: str(value)}
    inside = [(f"{name}.{key}" if name else str(key), part) for key, part in items]
    return {key: text for path, part in inside for key, text in _flat(part, path).items()}
