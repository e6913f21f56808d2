"""A decode step of a tiny model under the real Nsight Compute. Runs where there is a GPU, and `ncu`
is on the PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from orchestrator.analysis.kernels import read_kernels, refusal, unknown
from orchestrator.cluster import nsight
from workers.probes.kernels import Registry

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there are no kernels on a CPU"),
    pytest.mark.skipif(shutil.which("ncu") is None, reason="needs ncu of Nsight Compute"),
]
# What the process of a rank does: a run of which a step is counted.
PROGRAM = """
from dataclasses import replace
from ranks import BASE, FAMILIES, engine_plan, ragged_requests
from strategies import ModelShape
from workers.actor import Worker
from workers.messages import Work

shape = ModelShape.from_config(
    {**BASE, **FAMILIES["Llama"], "hidden_size": 256, "architectures": ["LlamaForCausalLM"]},
    "llama",
)
work = Work(ragged_requests(shape.vocab_size, count=4), max_concurrency=4)
plan = engine_plan("tp1", shape, None, work, device="cuda", dtype="bfloat16")
plan = replace(plan, switches=replace(plan.switches, cuda_graphs="off"))
worker = Worker()
worker.build("torch", plan, None)
worker.run(replace(work, count=True))
worker.close()
"""


def test_every_metric_is_counted_for_the_kernels_of_one_step(tmp_path: Path) -> None:
    report, program = tmp_path / "step.csv", tmp_path / "rank.py"
    program.write_text(PROGRAM)
    command = f"exec {nsight.counting_command(report, sys.executable)} {program}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=500
    )
    text = report.read_text()
    kernels = read_kernels(text, rank=0, num_requests=4)
    assert kernels, f"{refusal(text)}\n{text}\n{done.stdout}\n{done.stderr}"
    assert unknown(kernels) == []
    assert all(one.time_us and one.registers for one in kernels)
    registry = Registry.beside(())
    assert not any(registry.of(one.kernel).operations for one in kernels)
    for name in ("dram_pct", "l2_pct", "l2_hit_pct", "occupancy_pct", "tensor_pct"):
        known = [value for one in kernels if (value := getattr(one, name)) is not None]
        assert all(0 <= value <= 105 for value in known), name
    assert any(one.tensor_pct for one in kernels)  # the products in BF16
    assert any("decode" in one.kernel for one in kernels)  # attention over pages
