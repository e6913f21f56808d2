"""A Ray cluster to be joined and to die: prints its address, and stays until its stdin is
closed."""

from __future__ import annotations

import sys

import ray

from orchestrator.cluster.connection import start

with start("cpu", 2, dashboard=False):
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
