"""A Ray cluster to be joined and to die, as `ray start --head` makes one: prints its address, and
stays until its stdin is closed."""

from __future__ import annotations

import sys

import ray

ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
