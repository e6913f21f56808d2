"""The environment variables by which GPUs compute and communicate, as the workers see them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from workers.rendezvous import ON_LOOPBACK

# Variables of other names are not kept: they may be secrets, and so may those of SECRET.
PREFIXES = ("NCCL_", "GLOO_", "CUDA_", "TORCH_", "NVSHMEM_", "VLLM_", "FLASHINFER_")
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
# What every worker gets. NVLink multicast stays off (it is not there on every machine). NCCL need
# not guard calls inside CUDA graphs against those outside: both go through one stream.
WORKER_ENVIRONMENT: Mapping[str, str] = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
    "NCCL_GRAPH_MIXING_SUPPORT": "0",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def import_path() -> str:
    """PYTHONPATH of a process that shall import what this one can."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def here() -> dict[str, str]:
    """The variables of this process."""
    return _told(os.environ)


def of_workers(nodes: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The variables of the workers, from those of each node: the workers' own come before these,
    but a node's choice of an interface is kept.

    Where nodes differ, every value that there is, with " | " between them; "" for unset. So it is
    for the interface on several nodes: a layout that fits on one of them stays on loopback, and a
    rank of another takes the interface of its node's address.
    """
    seen = [_told({**ON_LOOPBACK, **node, **WORKER_ENVIRONMENT}) for node in nodes]
    if len(nodes) > 1:
        seen += [_told({**node, **WORKER_ENVIRONMENT}) for node in nodes]
    names = sorted({name for one in seen for name in one})
    return {name: " | ".join(sorted({one.get(name, "") for one in seen})) for name in names}


def nvls(environment: Mapping[str, str]) -> str | None:
    """Whether NCCL may use NVLink multicast: "on" or "off", None where that is left to NCCL."""
    return {"0": "off", "1": "on"}.get(environment.get("NCCL_NVLS_ENABLE", ""))


def _told(variables: Mapping[str, str]) -> dict[str, str]:
    names = (name for name in sorted(variables) if name.startswith(PREFIXES))
    return {name: variables[name] for name in names if not any(part in name for part in SECRET)}
