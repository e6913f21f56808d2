"""What the doctor says of nodes that are not here."""

import contextlib
import io
import json
import operator
import re
from dataclasses import replace
from functools import reduce
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rich.console import Console

from orchestrator import cli
from orchestrator.cluster import hardware
from orchestrator.cluster.hardware import Gpu
from orchestrator.node import doctor, facts, gpu_checks
from orchestrator.node.doctor import FAIL, PASS, WARN, examine
from orchestrator.node.facts import Facts, GpuState, RayAnswer, Torch
from orchestrator.node.links import Pair
from orchestrator.node.packages import Package
from orchestrator.report.lists import render
from workers import device

GPU = GpuState(
    Gpu(0, "NVIDIA H200", "GPU-0", 141 << 30, "580.1", max_sm_clock_mhz=1980),
    ecc=True,
    ecc_errors=0,
    throttle=device.GPU_IDLE,
    persistence=True,
    temperature_c=31,
    processes=(),
    memory_used_bytes=500 << 20,
    mig=False,
)
OTHER = replace(GPU, gpu=replace(GPU.gpu, index=1))
LOWERED = replace(OTHER.gpu, power_limit_w=500.0, default_power_limit_w=700.0)
L40S = replace(GPU, gpu=replace(GPU.gpu, name="NVIDIA L40S"))
PAIR = Pair(0, 1, nvlinks=18, p2p=True, path="NVLink")
TORCH = Torch("2.11.0", "13.0", 2, "2.28.9", ((0, 1, True),))
GOOD = Facts(
    gpus=(GPU, OTHER),
    pairs=(PAIR,),
    driver_cuda="13.0",
    torch=TORCH,
    shm_free_bytes=64 << 30,
    nofile=1 << 20,
    memlock=None,
    cpus=32,
    load=0.4,
    packages=(Package("torch", ">=2.11", "2.11.0", True, "2.13.0"),),
    ray=RayAnswer(),
    keeps_bytecode=True,
)
CPU = replace(GOOD, gpus=(), pairs=(), driver_cuda=None, cpus=2, torch=Torch("2.13.0+cpu"))
HW_THERMAL, SW_POWER_CAP = 1 << 6, 1 << 2


def gpu(**changes):
    return {"gpus": (GPU, replace(OTHER, **changes))}


def torch(**changes):
    return {"torch": replace(TORCH, **changes)}


def pairs(*found):
    return {"pairs": found}


def of(name, **changes):
    return next(check for check in examine(replace(GOOD, **changes)) if check.name == name)


def test_a_good_node_passes_everything_and_needs_no_advice():
    assert {(check.status, check.advice) for check in examine(GOOD)} == {(PASS, "")}


def test_without_a_gpu_one_row_says_what_that_means_and_none_passes_for_a_gpu():
    checks = {check.name: check for check in examine(CPU)}
    assert (checks["GPUs"].status, "says nothing about GPUs" in checks["GPUs"].found) == (
        WARN,
        True,
    )
    assert {check.status for name, check in checks.items() if name != "GPUs"} == {PASS}
    assert not checks.keys() & {
        "driver",
        "NCCL",
        "P2P access",
        "NVLink",
        "ECC",
        "clocks",
        "persistence",
        "MIG",
        "other processes",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "will give good figures"),
        ({"nofile": 20000}, "less steady"),
        ({"nofile": 10}, "will not give"),
    ],
)
def test_one_sentence_says_what_the_checks_mean(changes, words):
    assert words in doctor.verdict(examine(replace(GOOD, **changes)))


@pytest.mark.parametrize(
    ("name", "status", "words", "changes"),
    [
        ("driver", FAIL, "torch is built for CUDA 13.0", {"driver_cuda": "12.4"}),
        ("torch", FAIL, "it sees no GPU, NVML sees 2", torch(gpus=0)),
        ("torch", FAIL, "libcuda", {"torch": Torch(error="OSError: libcuda")}),
        ("torch", WARN, "it sees 1 GPUs, NVML 2", torch(gpus=1)),
        ("NCCL", FAIL, "none", torch(nccl=None)),
        ("P2P access", WARN, "not between 0-1", torch(peers=((0, 1, False),))),
        ("P2P access", WARN, "not between 0-1", torch(peers=()) | pairs(replace(PAIR, p2p=False))),
        ("NVLink", WARN, "17 links between 0-1, of 18", pairs(replace(PAIR, nvlinks=17))),
        ("NVLink", WARN, "none; PCIe (SYS)", pairs(replace(PAIR, nvlinks=0, path="SYS"))),
        (
            "NVLink",
            WARN,
            "18 links between 0-1; no links between 0-2",
            pairs(PAIR, replace(PAIR, b=2, nvlinks=0)),
        ),
        ("ECC", FAIL, "uncorrected errors on GPU 1", gpu(ecc_errors=3)),
        ("ECC", WARN, "on for some", gpu(ecc=False)),
        ("clocks", FAIL, "GPU 1: hw_thermal", gpu(throttle=HW_THERMAL | SW_POWER_CAP)),
        ("clocks", WARN, "GPU 1: sw_power_cap", gpu(throttle=SW_POWER_CAP)),
        ("clocks", WARN, "GPU 1: power limit 500 W, by default 700 W", gpu(gpu=LOWERED)),
        ("clocks", WARN, "GPU 1: 88 C", gpu(temperature_c=88)),
        ("bytecode", WARN, "compiles its modules anew", {"keeps_bytecode": False}),
        ("persistence", WARN, "off on GPU 1", gpu(persistence=False)),
        ("MIG", FAIL, "GPU 1", gpu(mig=True)),
        (
            "other processes",
            WARN,
            "GPU 1: process 77 holds 21.5 GB",
            gpu(processes=(77,), memory_used_bytes=20 << 30),
        ),
        ("other processes", WARN, "GPU 1: somebody holds", gpu(memory_used_bytes=20 << 30)),
        ("shared memory", FAIL, "33.6 MB free", {"shm_free_bytes": 32 << 20}),
        ("shared memory", FAIL, "no /dev/shm", {"shm_free_bytes": None}),
        ("shared memory", WARN, "536.9 MB free", {"shm_free_bytes": 512 << 20}),
        ("open files", FAIL, "at most 1024", {"nofile": 1024}),
        ("open files", WARN, "at most 20000", {"nofile": 20000}),
        (
            "locked memory",
            WARN,
            "65.5 kB",
            {"memlock": 64 << 10, "ray": RayAnswer("10.0.0.1:6379")},
        ),
        ("CPU", WARN, "2 cores", {"cpus": 2}),
        ("CPU", WARN, "load 20.0", {"load": 20.0}),
        (
            "packages",
            FAIL,
            "ray missing (wants >=2.50)",
            {"packages": (Package("ray", ">=2.50", None, False, None),)},
        ),
        (
            "Ray",
            FAIL,
            "no Ray cluster answers",
            {"ray": RayAnswer("h:1", "no Ray cluster answers at h:1")},
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(name, status, words, changes):
    check = of(name, **changes)
    assert (check.status, bool(check.advice)) == (status, True)
    assert words in check.found


@pytest.mark.parametrize(
    ("name", "words", "changes"),
    [
        ("P2P access", "unknown for 0-1", torch(peers=()) | pairs(replace(PAIR, p2p=None))),
        ("NVLink", "one GPU", pairs()),
        ("NVLink", "none", {"gpus": (L40S, L40S)} | pairs(replace(PAIR, nvlinks=0, path="NODE"))),
        ("ECC", "not reported", {"gpus": (replace(GPU, ecc=None, ecc_errors=None),)}),
        ("clocks", "not held down", {"gpus": (replace(GPU, throttle=None, temperature_c=None),)}),
        (
            "other processes",
            "none",
            {"gpus": (replace(GPU, processes=None, memory_used_bytes=None),)},
        ),
        ("locked memory", "65.5 kB", {"memlock": 64 << 10}),
        ("packages", "torch 2.11.0 (2.13.0)", {}),
        ("Ray", "h:1 answers", {"ray": RayAnswer("h:1")}),
    ],
)
def test_what_is_not_told_or_not_needed_is_no_fault(name, words, changes):
    check = of(name, **changes)
    assert (check.status, check.advice) == (PASS, "")
    assert words in check.found


def test_the_screen_counts_what_it_shows():
    console = Console(file=io.StringIO(), width=120)
    render(examine(replace(GOOD, **gpu(persistence=False), nofile=10)), console)
    text = console.file.getvalue()
    assert "1 fail, 1 warn, 15 pass" in text
    assert "nvidia-smi -pm 1" in text


@pytest.mark.parametrize(
    ("changes", "status"), [({}, 0), ({"nofile": 20000}, 0), ({"nofile": 10}, 1)]
)
def test_only_a_fail_is_told_by_the_exit_status(monkeypatch, changes, status):
    monkeypatch.setattr(facts, "gather", lambda address: replace(CPU, **changes))
    done = CliRunner().invoke(cli.main, ["doctor", "--json"])
    assert done.exit_code == status, done.output
    assert {"name", "status", "found", "advice"} == set(json.loads(done.stdout)[0])


def test_what_is_gathered_here_can_be_examined(monkeypatch):
    monkeypatch.setattr(
        facts, "torch_facts", lambda: TORCH
    )  # starting torch takes long and is tried elsewhere
    found = facts.gather("nonsense")
    assert all(package.ok for package in found.packages)
    assert next(check for check in examine(found) if check.name == "Ray").status == FAIL


def test_reasons_of_low_clocks_are_named():
    assert device.throttle_names(0) == []
    assert device.throttle_names(SW_POWER_CAP | device.GPU_IDLE) == ["gpu_idle", "sw_power_cap"]
    assert device.throttle_names(1 << 11) == ["bit_11"]


def test_every_reason_of_nvml_has_a_name_and_is_judged():
    import pynvml

    masks = {
        name: getattr(pynvml, name)
        for name in dir(pynvml)
        if re.match("nvmlClocks(Event|Throttle)Reason", name) and not name.endswith("All")
    }
    every = reduce(operator.or_, masks.values())
    assert every == reduce(operator.or_, device.THROTTLE_REASONS)
    assert every == gpu_checks.SLOWED | gpu_checks.LIMITED | device.GPU_IDLE
    assert not gpu_checks.SLOWED & gpu_checks.LIMITED


class VirtualGpu:
    """NVML of a GPU that tells its name and memory, and refuses every other question."""

    NVMLError = RuntimeError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 1, 0

    def nvmlSystemGetDriverVersion(self):
        return "580.1"

    def nvmlDeviceGetName(self, handle):
        return "NVIDIA H200-1-18C"

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=18 << 30, used=1 << 30)

    def __getattr__(self, name):
        def refuse(*arguments):
            raise RuntimeError("not supported")

        if not name.startswith("nvml"):
            raise AttributeError(name)
        return refuse


def test_what_nvml_refuses_is_none_and_is_left_out_of_the_data(monkeypatch):
    there = contextlib.nullcontext((VirtualGpu(), ["a"]))
    monkeypatch.setattr(hardware, "visible_gpus", lambda: there)
    (state,) = facts.gpus()
    assert state == GpuState(
        Gpu(0, "NVIDIA H200-1-18C", "GPU-a", 18 << 30, "580.1"), memory_used_bytes=1 << 30
    )
    assert set(hardware.as_data(state.gpu)) == {"index", "name", "uuid", "memory_bytes", "driver"}
    checks = {check.name: check for check in examine(replace(GOOD, gpus=(state,)))}
    assert (checks["clocks"].status, checks["ECC"].found) == (PASS, "not reported")
