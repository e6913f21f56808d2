"""What a run needs besides its plan: a calibration that was asked for, room for results, and what
Ray takes of this machine. All of it is tried before Ray is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import pyarrow as pa

from orchestrator.cluster.connection import Cluster
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.node import fabric
from orchestrator.plan.deployments import PlannedDeployment
from orchestrator.run.jobs import Job
from orchestrator.run.limits import check_limits
from orchestrator.run.origin import check_origin, origin_of
from orchestrator.run.schedule import Schedule
from orchestrator.store.folders import check_writable
from orchestrator.store.identity import changed, switches_told
from orchestrator.store.store import Store


def check_surroundings(
    store: Store,
    experiment: Experiment,
    planned: Sequence[PlannedDeployment],
    cluster: Cluster | None,
) -> pa.Table | None:
    """The calibration, table FABRIC, if there is one. cluster: the one that was joined.

    Raises UserError where a calibration that is asked for cannot be read, no run can be added to
    the folder of the results (see `Store.check_open`), and, if any is to be added, where these come
    from other hardware or software, the folder cannot be written, or this process may take too
    little of the machine for Ray. Results that are finished need none of the latter.
    """
    calibration = fabric.look_up(experiment.fabric, experiment.result_dir)
    store.check_open()
    jobs = [Job(one, experiment, store) for one in planned]
    if Schedule(jobs, experiment, store).is_unfinished():
        origin = origin_of(planned[0].plan.device, cluster)
        check_origin(store, origin, experiment.allow_other_node)
        _check_switches(store, planned)
        check_writable(store.folder, "results", "--result-dir")
        if cluster is None:
            check_limits()
    return calibration


def _check_switches(store: Store, planned: Sequence[PlannedDeployment]) -> None:
    """Raise UserError where runs that are there were made with another value of a switch than it
    has now: the engine has come to do by itself what it did not do then."""
    there = switches_told(store.read("summary"))
    for one in planned:
        asked, switches = one.deployment, asdict(one.plan.switches)
        row = there.get((asked.strategy, asked.engine, asked.ablation), {})
        if names := changed(row, switches):
            was = ", ".join(f"{name} {row[name]} (now {switches[name]})" for name in names)
            raise UserError(
                f"{store.folder} holds runs of {asked.strategy} by {asked.engine} with {was}; "
                "give another --result-dir, or move it away"
            )


def settled_counts(store: Store) -> Mapping[str, int]:
    """Load, as "short.c8", -> requests of a run, as the pilots of earlier commands settled it."""
    found: Mapping[str, int] = store.manifest().get("num_prompts", {})
    return found
