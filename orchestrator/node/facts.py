"""What `orchestrator doctor` looks at, gathered into one plain dict. What cannot be learned is
None, and nothing is changed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from orchestrator.cluster import hardware
from orchestrator.errors import UserError
from orchestrator.node import links
from orchestrator.node.links import ask
from workers.versions import PROJECT

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
PROBE_S = 120.0  # for torch to start, from a cold disk
# In a process of its own: asking for peer access makes a CUDA context, which takes memory for as
# long as the process lives.
PROBE = """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": 0}
found |= {"nccl": None, "peers": [], "error": None}
try:
    if torch.cuda.is_available():
        count = found["gpus"] = torch.cuda.device_count()
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
        found["peers"] = [[a, b, torch.cuda.can_device_access_peer(a, b)] for a, b in pairs]
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def gather(address: str | None = None) -> dict[str, Any]:
    """Facts about this machine, its GPUs, limits and packages, and whether the Ray cluster at
    `address` answers."""
    shm = "/dev/shm"
    return {
        "gpus": gpus(),
        "pairs": links.pairs(),
        "driver_cuda": driver_cuda(),
        "torch": torch_facts(),
        "shm_free_bytes": shutil.disk_usage(shm).free if os.path.isdir(shm) else None,
        "nofile": _limit(resource.RLIMIT_NOFILE),
        "memlock": _limit(resource.RLIMIT_MEMLOCK),
        "packages": list(packages()),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "load": os.getloadavg()[0],
        "ray": ray_facts(address),
    }


def gpus() -> list[dict[str, Any]]:
    """Of every visible GPU what NVML tells; a field that it does not tell is None."""
    described = hardware.gpus()
    with hardware.visible_gpus() as (nvml, handles):
        return [
            known | _state(nvml, handle) for known, handle in zip(described, handles, strict=True)
        ]


def _state(nvml: Any, handle: Any) -> dict[str, Any]:
    ecc = ask(nvml, nvml.nvmlDeviceGetEccMode, handle)
    running = ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    memory = ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    mig = (
        ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
        if hasattr(nvml, "nvmlDeviceGetMigMode")
        else None
    )
    errors = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    return {
        "ecc": None if ecc is None else bool(ecc[0]),
        "ecc_errors": ask(nvml, nvml.nvmlDeviceGetTotalEccErrors, handle, *errors),
        "throttle": throttle_names(
            nvml, ask(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        ),
        "persistence": ask(nvml, nvml.nvmlDeviceGetPersistenceMode, handle),
        "temperature_c": ask(
            nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
        ),
        "processes": None if running is None else [process.pid for process in running],
        "memory_used_bytes": None if memory is None else memory.used,
        "mig": None if mig is None else bool(mig[0]),
    }


def throttle_names(nvml: Any, bits: int | None) -> list[str] | None:
    """NVML's mask of reasons in words: 'SwPowerCap', 'HwThermalSlowdown' ..."""
    if bits is None:
        return None
    prefix = "nvmlClocksThrottleReason"
    masks = {
        name.removeprefix(prefix): getattr(nvml, name)
        for name in dir(nvml)
        if name.startswith(prefix)
    }
    single = {
        name: mask
        for name, mask in masks.items()
        if name not in ("None", "All", "UserDefinedClocks")
    }
    return sorted(name for name, mask in single.items() if bits & mask)


def driver_cuda() -> str | None:
    """The newest CUDA that the driver can run, '13.0'."""
    with hardware.visible_gpus() as (nvml, _):
        found = None if nvml is None else ask(nvml, nvml.nvmlSystemGetCudaDriverVersion)
    return None if found is None else f"{found // 1000}.{found % 1000 // 10}"


def torch_facts() -> dict[str, Any]:
    """torch's version, CUDA and NCCL, the GPUs it sees and [a, b, whether a reaches b]; `error`
    where it does not work."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_S
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    except (IndexError, ValueError):
        return {"error": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}


def packages() -> Iterator[dict[str, Any]]:
    """Every requirement of this project: name, range, installed version (None: missing), whether
    that is in the range, and the version that this project is tested with (None outside of a
    checkout)."""
    tested = (
        dict(line.split("==") for line in CONSTRAINTS.read_text().split() if "==" in line)
        if CONSTRAINTS.is_file()
        else {}
    )
    for text in requires(PROJECT) or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = None
        inside = found is not None and requirement.specifier.contains(found, prereleases=True)
        yield {
            "name": requirement.name,
            "range": str(requirement.specifier),
            "installed": found,
            "ok": inside,
            "tested": tested.get(requirement.name),
        }


def ray_facts(address: str | None) -> dict[str, Any]:
    """The address asked for, and why there is no cluster there; error is None where it answers or
    none was asked for."""
    if address is None:
        return {"address": None, "error": None}
    from orchestrator.cluster.connection import check_address

    try:
        check_address(address)
    except UserError as error:
        return {"address": address, "error": str(error)}
    return {"address": address, "error": None}


def _limit(kind: int) -> int | None:
    """The soft limit; None for unlimited."""
    soft = resource.getrlimit(kind)[0]
    return None if soft == resource.RLIM_INFINITY else soft
