"""Nsight Systems and Nsight Compute around the workers: how one is started under them, and where
their reports go."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from orchestrator.cluster import hardware
from orchestrator.cluster.ranks import Place
from orchestrator.errors import UserError
from workers.records import COUNTERS

if TYPE_CHECKING:
    from orchestrator.cluster.connection import Cluster

T = TypeVar("T")
TOOLS = {"nsys": "Nsight Systems", "ncu": "Nsight Compute"}  # program -> what it is a part of
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

# Nsight Compute counts where the worker says so and nothing else. It leaves clocks and caches as
# they are: the step is to be counted as it runs. Few metrics need few runs of a kernel.
COUNTING = (
    "--profile-from-start off --target-processes all --clock-control none --cache-control none "
    f"--csv --page raw --print-units base --metrics {','.join(COUNTERS.values())}"
)

# $0: what ncu writes; then the worker's own command. ncu writes when the worker has ended, see
# SCRIPT. In a log file's name it would read %; other locales write 1.234,5.
COUNTING_SCRIPT = (
    'mkdir -p "${0%/*}"; rm -f "$0"; log=$(mktemp); '
    f'LC_ALL=C.UTF-8 ncu {COUNTING} --log-file "$log" setsid --wait "$@"; '
    'mv "$log" "$0.unfinished"; mv "$0.unfinished" "$0"'
)


def counting_command(report: Path, python: str) -> str:
    """The same under Nsight Compute. `report` is there once the worker and ncu have ended."""
    return shlex.join(["bash", "-c", COUNTING_SCRIPT, str(report), python])


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
    from ray.exceptions import RayError  # plans are made without it

    on: dict[str, dict[str, int]] = {}  # by the node they are on
    for rank, (place, report) in enumerate(zip(places, reports, strict=True)):
        on.setdefault(place.node_id, {})[str(report)] = rank
    tasks = {node: partial(name_reports, ranks, WRITE_S) for node, ranks in on.items()}
    try:
        answers = _on_nodes(tasks, variables, WRITE_S)
    except RayError as error:
        return [f"nsys did not write any report of {group} ({type(error).__name__})"]
    return [complaint for answer in answers for complaint in answer]


def read_counters(
    place: Place, report: Path, variables: Mapping[str, str], timeout_s: float
) -> str:
    """What ncu wrote at that place, waited for; empty where it did not, or the node is gone."""
    from ray.exceptions import RayError

    try:
        found = _on_nodes({place.node_id: partial(_text, report, timeout_s)}, variables, timeout_s)
    except RayError:
        return ""
    return found[0]


def _on_nodes(
    tasks: Mapping[str, Callable[[], T]], variables: Mapping[str, str], timeout_s: float
) -> list[T]:
    """What each task returns on its node, after `timeout_s` at most. Raises RayError."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    runtime = {"env_vars": dict(variables)}
    refs = [
        ray.remote(num_cpus=0, max_retries=0, runtime_env=runtime)(_called)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(task)
        for node, task in tasks.items()
    ]
    answers: list[T] = ray.get(refs, timeout=timeout_s + TASK_S)
    return answers


def _called(task: Callable[[], T]) -> T:
    return task()


def _text(report: Path, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    while not report.exists() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return report.read_text(errors="replace") if report.exists() else ""


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


def folder(results: Path, joined: bool, tool: str = "nsys") -> Path:
    """The folder of all reports of a tool: in the folder of the `results`; under a cluster that was
    joined, in /tmp of the node where a rank ran."""
    return Path("/tmp", f"{results.name}.{tool}") if joined else results.absolute() / tool


def remark(results: Path, joined: bool) -> str:
    """Where the reports go."""
    where = "on the node of each rank, in" if joined else "in"
    return (
        f"reports of Nsight Systems will be {where} {folder(results, joined)}; it slows the "
        "runs, so their results are kept apart from others"
    )


def counting_remark(results: Path, joined: bool) -> str:
    """What is counted, and where the text goes that it is read from."""
    where = "on the node of rank 0, in" if joined else "in"
    return (
        "after its runs each cell gets workers whose rank 0 is under Nsight Compute; what that "
        f"writes will be {where} {folder(results, joined, 'ncu')}"
    )


def check(tool: str, device: str, cluster: Cluster | None) -> None:
    """Raise UserError where a machine that may get a rank has no `tool` of TOOLS: a node of the
    `cluster` that was joined with devices of `device`, else this machine."""
    if cluster is not None:
        without = [f"node {node}" for node in cluster.without(tool, device)]
    else:
        without = [] if tool in hardware.profilers() else ["this machine"]
    if without:
        raise UserError(
            f"--{tool} needs {TOOLS[tool]}: no `{tool}` on the PATH of {', '.join(without)}; "
            f"install it there, or leave --{tool} out"
        )
