"""Checks of the machine around the GPUs: limits, cores, packages, torch and Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.node.checks import FAIL, PASS, WARN, Check, listed, passed_if
from orchestrator.node.facts import Facts
from workers.units import format_bytes

MIN_SHM = 64 << 20  # docker's default, which is too little for NCCL and Ray
GOOD_SHM = 1 << 30  # what Ray's store and NCCL take
MIN_FILES, GOOD_FILES = 4096, 65536  # Ray opens some for each worker and asks for 65536 itself
BUSY_SHARE = 0.25  # of the cores: others may use this much before launch gaps grow


def torch_works(facts: Facts) -> Check:
    """torch starts and sees the GPUs that NVML sees."""
    torch, gpus = facts.torch, len(facts.gpus)
    if torch.error:
        advice = "reinstall torch (pip install --force-reinstall torch)"
        return Check("torch", FAIL, torch.error, advice)
    found = f"{torch.version}, CUDA {torch.cuda or 'none'}"
    if gpus and torch.gpus == 0:
        found = f"{found}: it sees no GPU, NVML sees {gpus}"
        return Check("torch", FAIL, found, "install torch for CUDA, not for CPU")
    if torch.gpus != gpus:
        found = f"{found}: it sees {torch.gpus} GPUs, NVML {gpus}"
        return Check("torch", WARN, found, "look at CUDA_VISIBLE_DEVICES and MIG")
    return Check("torch", PASS, found)


def shared_memory(facts: Facts) -> Check:
    """/dev/shm holds what Ray and NCCL put into it."""
    free = facts.shm_free_bytes
    found = "no /dev/shm" if free is None else f"{format_bytes(free)} free"
    advice = "give the container more: docker run --shm-size=8g (or --ipc=host)"
    if free is None or free < MIN_SHM:
        return Check("shared memory", FAIL, found, advice)
    return passed_if(free >= GOOD_SHM, "shared memory", found, advice)


def open_files(facts: Facts) -> Check:
    """Ray's processes may open as many files as they need."""
    limit, advice = facts.nofile, f"ulimit -n {GOOD_FILES}"
    if limit is None:
        return Check("open files", PASS, "unlimited")
    if limit < MIN_FILES:
        return Check("open files", FAIL, f"at most {limit}", advice)
    return passed_if(limit >= GOOD_FILES, "open files", f"at most {limit}", advice)


def locked_memory(facts: Facts) -> Check:
    """In a cluster, memory can be locked without a limit: RDMA between nodes needs that."""
    limit, several_nodes = facts.memlock, bool(facts.gpus and facts.ray.address)
    found = "unlimited" if limit is None else format_bytes(limit)
    good = limit is None or not several_nodes
    return passed_if(good, "locked memory", found, "ulimit -l unlimited: InfiniBand pins memory")


def processors(facts: Facts) -> Check:
    """There is a core for each GPU's worker and one for the driver, and other jobs leave them
    idle."""
    cores, load, needed = facts.cpus, facts.load, len(facts.gpus) + 1
    found = f"{cores} cores, load {load:.1f}"
    if facts.gpus and cores < needed:
        advice = f"give this job {needed} cores: each GPU's launches need one"
        return Check("CPU", WARN, found, advice)
    idle = load <= max(1.0, BUSY_SHARE * cores)
    return passed_if(idle, "CPU", found, "something else is running here; wait, or end it")


def bytecode(facts: Facts) -> Check:
    """Python keeps what it compiles, so that the processes of a start only read it."""
    kept = facts.keeps_bytecode
    found = "kept" if kept else "not kept: each process of a start compiles its modules anew"
    return passed_if(kept, "bytecode", found, "unset PYTHONDONTWRITEBYTECODE: it costs seconds")


def versions(facts: Facts) -> Check:
    """Every package is in the range that this project asks for."""
    wrong = [package for package in facts.packages if not package.ok]
    if wrong:
        names = "; ".join(
            f"{p.name} {p.installed or 'missing'} (wants {p.range or 'any'})" for p in wrong
        )
        return Check("packages", FAIL, names, "pip install -c constraints.txt -e .")
    other = [
        f"{p.name} {p.installed} ({p.tested})"
        for p in facts.packages
        if p.tested not in (None, p.public_version)
    ]
    found = f"all {len(facts.packages)} in the ranges that pyproject.toml asks for"
    return Check("packages", PASS, f"{found}; not as tested: {listed(other)}" if other else found)


def ray(facts: Facts) -> Check:
    """The Ray cluster that was asked for answers."""
    address, error = facts.ray.address, facts.ray.error
    if error:
        advice = "ray start --head there, or leave --address and RAY_ADDRESS out"
        return Check("Ray", FAIL, error, advice)
    found = f"{address} answers" if address else "no address given: a local one is started"
    return Check("Ray", PASS, found)


CHECKS: Sequence[Callable[[Facts], Check]] = (
    torch_works,
    shared_memory,
    open_files,
    locked_memory,
    processors,
    bytecode,
    versions,
    ray,
)
