"""manifest.json: what was asked, on which hardware and software."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.cluster import environment, hardware
from orchestrator.cluster.connection import Cluster
from orchestrator.experiment import Experiment
from orchestrator.plan.deployments import PlannedCell, PlannedDeployment
from orchestrator.run.origin import Origin, origin_of
from orchestrator.run.source import source
from orchestrator.store.folders import now
from orchestrator.store.identity import identity_of
from orchestrator.store.store import Store
from workers.versions import versions

# Fields whose lists grow from command to command in one folder of results.
GROWING = ("strategy", "engine", "scenario", "max_concurrency", "ablate", "technique")


def write(
    store: Store,
    experiment: Experiment,
    planned: Sequence[PlannedDeployment],
    cluster: Cluster,
    device: str,
    block: int,
) -> None:
    """What was asked and on what: enough to say later whether two results can be compared.

    device: "cuda" or "cpu". block: number of this command among those that made the runs.
    """
    before, topology = store.manifest(), cluster.topology(device)
    origin = origin_of(device, cluster)
    gpus, of_source = origin.gpus or tuple(hardware.gpus()), _source()
    variables = environment.of_workers([node.environment for node in cluster.nodes])
    cells = [cell for one in planned for cell in one.cells]
    store.update_manifest(
        started_at=before.get("started_at", now()),
        experiment=_asked(experiment, before),
        dataset=list(planned[0].remarks) if planned else [],
        identity=identity_of(experiment),
        cells=sorted({*before.get("cells", []), *(one.cell.name for one in cells)}),
        asked=_asked_of(cells, experiment, before),
        meshes={**before.get("meshes", {}), **_meshes(planned)},
        blocks=_blocks(before, block, origin, of_source),
        device=device,
        topology=[asdict(one) for one in topology.devices],
        gpus=[hardware.as_data(gpu) for gpu in gpus],
        driver_version=gpus[0].driver if gpus else None,
        nccl_version=next((v for k, v in versions().items() if k.startswith("nvidia-nccl")), None),
        versions=versions(),
        environment=variables,
        nvls=environment.nvls(variables) if device == "cuda" else None,
        **of_source,
        host=asdict(hardware.host()),
        ray={"embedded": cluster.embedded, "address": cluster.address},
        metadata=experiment.metadata,
    )


def _asked(experiment: Experiment, before: Mapping[str, Any]) -> Mapping[str, object]:
    """The fields of the experiment; lists hold what earlier commands asked of these results too."""
    earlier, now = before.get("experiment", {}), experiment.model_dump(mode="json")
    both = {name: list(dict.fromkeys([*_list(earlier.get(name)), *now[name]])) for name in GROWING}
    return now | both


def _asked_of(
    cells: Sequence[PlannedCell], experiment: Experiment, before: Mapping[str, Any]
) -> dict[str, object]:
    """Cell -> [starts, runs of each] that each command asked for of it."""
    asked, earlier = [experiment.num_starts, experiment.num_runs], before.get("asked", {})
    names = [one.cell.name for one in cells]
    known = {name: earlier.get(name, []) for name in names}
    mine = {name: pairs if asked in pairs else [*pairs, asked] for name, pairs in known.items()}
    return {**earlier, **mine}


def _list(value: Any) -> Sequence[Any]:
    """A field of a manifest that was one value, or none, before it grew."""
    return value if isinstance(value, list) else [value] * (value is not None)


def _source() -> dict[str, object]:
    """The commit of the source and whether it was changed; None where it is no checkout."""
    here = source()
    return {"git_commit": here.commit if here else None, "git_dirty": here.dirty if here else None}


def _meshes(planned: Sequence[PlannedDeployment]) -> dict[str, object]:
    """Layout -> its mesh: [axis, degree] of each axis, the innermost last."""
    return {one.deployment.strategy: one.plan.placement.mesh for one in planned}


def _blocks(
    before: Mapping[str, Any], block: int, origin: Origin, of_source: Mapping[str, object]
) -> list[Mapping[str, object]]:
    """When, where and with what each command ran, entry n being of the runs of block n. One that
    ended before it kept a run gave its number to the next, and so its entry. Of one whose entry was
    lost nothing is known."""
    earlier = before.get("blocks", [])[:block]
    lost: list[Mapping[str, object]] = [{}] * (block - len(earlier))
    mine = {
        "started_at": now(),
        "host": hardware.host().name,
        "node": origin.node_among(earlier),
        "cpu_model": origin.cpu_model,
        "gpu_uuids": [gpu.uuid for gpu in origin.gpus],
        "gpus": [hardware.as_data(gpu) for gpu in origin.gpus],
        **of_source,
    }
    return [*earlier, *lost, mine]
