"""Nsight Systems around the workers: how one is started under it, and where its report goes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster import hardware
from orchestrator.cluster.ranks import Place
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.cluster.connection import Cluster

SUFFIX, GATHERED = ".nsys-rep", ".qdstrm"  # a report, and the raw data that nsys makes it from
WRITE_S = 300.0  # for nsys to make a report of what it gathered, after the worker has ended
TASK_S = 120.0  # for a task to begin on a node
POLL_S = 0.1

# cuda-graph-trace=node: without it a replayed graph is one box without its kernels. wait=primary:
# nsys does not wait for processes that a worker leaves running.
OPTIONS = (
    "--trace=cuda,nvtx --cuda-graph-trace=node --sample=none --cpuctxsw=none --wait=primary "
    "--force-overwrite=true"
)

# $0: the report; $1: what nsys writes, less its suffix; then the worker's own command. nsys writes
# its report for a while after the worker has ended. A shell waits for it and then gives the file
# its name: a report of that name is complete, and an empty one says that there is none. Ray kills
# the process group of a worker that has ended, and nsys with it: the worker gets a group of its
# own.
SCRIPT = (
    'mkdir -p "${0%/*}"; '
    f'nsys profile {OPTIONS} --output="${{1//%/%%}}" setsid "${{@:2}}"; '
    f'mv "$1{SUFFIX}" "$0" || : > "$0"'
)


def command(report: Path, python: str) -> str:
    """The command that Ray starts instead of `python`, as text for a shell. `report` exists once
    the worker and nsys have ended.

    Ray's own way, runtime_env "nsight", starts whichever `python` is first on the PATH. It keeps
    the report in the folder of Ray's session, where one cannot see whether it is complete.
    """
    return shlex.join(
        ["bash", "-c", SCRIPT, str(report), str(_unfinished(report).with_suffix("")), python]
    )


def name_reports(ranks: Mapping[str, int], timeout_s: float) -> list[str]:
    """Name the reports of this node by rank, waiting for each: "rank0.nsys-rep", or
    "rank0-2.nsys-rep" and so on where an earlier start of the same layout has that name. ranks:
    report -> rank. Returns a sentence for each that nsys did not write.
    """
    waiting = {Path(report): rank for report, rank in ranks.items()}
    deadline = time.monotonic() + timeout_s
    said = []
    while waiting and time.monotonic() < deadline:
        for report in [path for path in waiting if path.exists()]:
            said += _name(report, waiting.pop(report))
        time.sleep(POLL_S)
    return [*said, *(f"nsys had not written {report} after {timeout_s:g} s" for report in waiting)]


def name_everywhere(
    places: Sequence[Place], reports: Sequence[Path], variables: Mapping[str, str], group: str
) -> list[str]:
    """Have each node name its reports by rank. places, reports: of each rank. variables: of the
    workers' environment. Returns a sentence for each report of the `group` that is missing."""
    import ray  # plans are made without it
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    on: dict[str, dict[str, int]] = {}  # by the node they are on
    for rank, (place, report) in enumerate(zip(places, reports, strict=True)):
        on.setdefault(place.node_id, {})[str(report)] = rank
    runtime = {"env_vars": dict(variables)}
    task = ray.remote(num_cpus=0, max_retries=0, runtime_env=runtime)(name_reports)
    refs = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            ranks, WRITE_S
        )
        for node, ranks in on.items()
    ]
    try:
        answers = ray.get(refs, timeout=WRITE_S + TASK_S)
    except RayError as error:
        return [f"nsys did not write any report of {group} ({type(error).__name__})"]
    return [complaint for answer in answers for complaint in answer]


def _name(report: Path, rank: int) -> list[str]:
    if report.stat().st_size:
        report.rename(_free(report.with_name(f"rank{rank}{SUFFIX}")))
        return []
    report.unlink()
    return [f"nsys wrote no report of rank {rank}{_gathered(report, rank)}"]


def _gathered(report: Path, rank: int) -> str:
    """Says where the raw data is. An nsys without its importer leaves only that."""
    found = _unfinished(report).with_suffix(GATHERED)
    if not found.exists():
        return ""
    kept = found.rename(_free(report.with_name(f"rank{rank}{GATHERED}")))
    return (
        f"; what it gathered is in {kept}, of which QdstrmImporter, a part of Nsight Systems, "
        "makes one"
    )


def _unfinished(report: Path) -> Path:
    return report.with_name(f"{report.stem}-unfinished{SUFFIX}")


def _free(path: Path) -> Path:
    taken, number = path, 1
    while taken.exists():
        number += 1
        taken = path.with_stem(f"{path.stem}-{number}")
    return taken


def folder(results: Path, joined: bool) -> Path:
    """The folder of all reports: in the folder of the `results`; under a cluster that was joined,
    in /tmp of the node where a rank ran."""
    return Path("/tmp", f"{results.name}.nsys") if joined else results.absolute() / "nsys"


def remark(results: Path, joined: bool) -> str:
    """Where the reports go."""
    where = "on the node of each rank, in" if joined else "in"
    return (
        f"reports of Nsight Systems will be {where} {folder(results, joined)}; it slows the "
        "runs, so their results are kept apart from others"
    )


def check(device: str, cluster: Cluster | None) -> None:
    """Raise UserError where a machine that may get a rank has no `nsys`: a node of the `cluster`
    that was joined with devices of `device`, else this machine."""
    if cluster is not None:
        without = [f"node {node}" for node in cluster.without_nsys(device)]
    else:
        without = [] if hardware.has_nsys() else ["this machine"]
    if without:
        raise UserError(
            f"--nsys needs Nsight Systems: no `nsys` on the PATH of {', '.join(without)}; install "
            "it there, or leave --nsys out"
        )
