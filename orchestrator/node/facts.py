"""The facts that `orchestrator doctor` checks. A fact that cannot be found out is None. Nothing on
the machine is changed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster import hardware
from orchestrator.cluster.hardware import Gpu
from orchestrator.errors import UserError
from orchestrator.node import links
from orchestrator.node.links import Pair
from orchestrator.node.packages import Package, packages
from workers.device import answer_of, num_cores

SHM = "/dev/shm"
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


@dataclass(frozen=True, slots=True)
class GpuState:
    """A GPU and its present state. None: NVML does not report it.

    ecc: error correction is on. ecc_errors: uncorrected ones since the driver started. throttle:
    NVML's mask of the reasons for low clocks (`workers.device`). processes: ids of those that
    compute on it; in a container NVML hides them.
    """

    gpu: Gpu
    ecc: bool | None = None
    ecc_errors: int | None = None
    throttle: int | None = None
    persistence: bool | None = None
    temperature_c: int | None = None
    processes: tuple[int, ...] | None = None
    memory_used_bytes: int | None = None
    mig: bool | None = None

    @property
    def index(self) -> int:
        """Its number, as torch counts."""
        return self.gpu.index


@dataclass(frozen=True, slots=True)
class Torch:
    """What torch says: its version, CUDA and NCCL, the number of GPUs that it sees, and (a, b,
    whether a reaches b) for every two of them. error: why it does not work, None where it does."""

    version: str | None = None
    cuda: str | None = None
    gpus: int = 0
    nccl: str | None = None
    peers: tuple[tuple[int, int, bool], ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RayAnswer:
    """address: the one asked for, None where there is none. error: why no cluster answers there,
    None where one does."""

    address: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is looked at. driver_cuda: the newest CUDA that the driver can run, "13.0".
    nofile, memlock: limits of this process, None for unlimited. load: processes that run or wait to
    run, over the last minute. keeps_bytecode: whether Python keeps the modules that it compiles."""

    gpus: tuple[GpuState, ...]
    pairs: tuple[Pair, ...]
    driver_cuda: str | None
    torch: Torch
    shm_free_bytes: int | None
    nofile: int | None
    memlock: int | None
    packages: tuple[Package, ...]
    cpus: int
    load: float
    ray: RayAnswer
    keeps_bytecode: bool


def gather(address: str | None = None) -> Facts:
    """Facts about this machine, its GPUs, limits and packages, and whether the Ray cluster at
    `address` answers."""
    return Facts(
        gpus=gpus(),
        pairs=tuple(links.pairs()),
        driver_cuda=driver_cuda(),
        torch=torch_facts(),
        shm_free_bytes=shutil.disk_usage(SHM).free if os.path.isdir(SHM) else None,
        nofile=_limit(resource.RLIMIT_NOFILE),
        memlock=_limit(resource.RLIMIT_MEMLOCK),
        packages=tuple(packages()),
        cpus=num_cores(),
        load=os.getloadavg()[0],
        ray=ray_answer(address),
        keeps_bytecode=not sys.dont_write_bytecode,
    )


def gpus() -> tuple[GpuState, ...]:
    """Every visible GPU and its state."""
    described = hardware.gpus()
    with hardware.visible_gpus() as (nvml, handles):
        return tuple(
            _state(nvml, handle, gpu) for gpu, handle in zip(described, handles, strict=True)
        )


def _state(nvml: Any, handle: Any, gpu: Gpu) -> GpuState:
    ecc = answer_of(nvml, nvml.nvmlDeviceGetEccMode, handle)
    running = answer_of(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    memory = answer_of(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    persistence = answer_of(nvml, nvml.nvmlDeviceGetPersistenceMode, handle)
    has_mig = hasattr(nvml, "nvmlDeviceGetMigMode")
    mig = answer_of(nvml, nvml.nvmlDeviceGetMigMode, handle) if has_mig else None
    errors = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    return GpuState(
        gpu=gpu,
        ecc=None if ecc is None else bool(ecc[0]),
        ecc_errors=answer_of(nvml, nvml.nvmlDeviceGetTotalEccErrors, handle, *errors),
        throttle=answer_of(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle),
        persistence=None if persistence is None else bool(persistence),
        temperature_c=answer_of(
            nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
        ),
        processes=None if running is None else tuple(process.pid for process in running),
        memory_used_bytes=None if memory is None else memory.used,
        mig=None if mig is None else bool(mig[0]),
    )


def driver_cuda() -> str | None:
    """The newest CUDA that the driver can run, "13.0"."""
    with hardware.visible_gpus() as (nvml, _):
        found = None if nvml is None else answer_of(nvml, nvml.nvmlSystemGetCudaDriverVersion)
    return None if found is None else f"{found // 1000}.{found % 1000 // 10}"


def torch_facts() -> Torch:
    """What torch says in a process of its own."""
    command = [sys.executable, "-c", PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Torch(error=str(error))
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        peers = tuple((a, b, reaches) for a, b, reaches in found.pop("peers"))
        return Torch(peers=peers, **found)
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines() or ["the process ended without a message"]
        return Torch(error=said[-1])


def ray_answer(address: str | None) -> RayAnswer:
    """Whether a Ray cluster answers at `address`."""
    if address is None:
        return RayAnswer()
    from orchestrator.cluster.connection import check_address

    try:
        check_address(address)
    except UserError as error:
        return RayAnswer(address, str(error))
    return RayAnswer(address)


def _limit(kind: int) -> int | None:
    """The soft limit; None for unlimited."""
    soft = resource.getrlimit(kind)[0]
    return None if soft == resource.RLIM_INFINITY else soft
