"""When ranks sum through memory of their GPUs by themselves, and what becomes of results from
before they did."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from orchestrator.cluster import hardware
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.plan import planning
from orchestrator.plan.deployments import PlannedDeployment
from orchestrator.run.surroundings import _check_switches
from strategies import Device, Topology

H200 = Device("n", 0, 141 * 10**9, "H200", (9, 0), linked=True)
JOINED = Topology(tuple(replace(H200, index=number) for number in range(4)))


def plan(topology: Topology = JOINED, **fields: Any) -> tuple[PlannedDeployment, ...]:
    asked = {"model": "qwen2.5-32b", "load_format": "dummy", "strategy": "tp4", **fields}
    return planning.plan_experiment(Experiment(**asked), "cuda", topology)


def way(topology: Topology = JOINED, **fields: Any) -> str | None:
    return plan(topology, **fields)[0].plan.switches.allreduce


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "two-shot"),
        ({"strategy": "tp2"}, "one-shot"),
        ({"strategy": "tp2pp2"}, "one-shot"),
        ({"strategy": "pp4"}, "nccl"),  # nothing is summed
        ({"allreduce": "nccl"}, "nccl"),
        ({"ablate": "comm"}, "two-shot"),
        ({"ablate": "p2p"}, "nccl"),  # both arms, or they would differ in more than links
    ],
)
def test_gpus_that_nvlink_joins_sum_through_their_memory(
    fields: dict[str, str], expected: str
) -> None:
    assert {one.plan.switches.allreduce for one in plan(**fields)} == {expected}


def test_without_an_all_reduce_of_their_own_they_go_through_nccl() -> None:
    assert [one.plan.switches.allreduce for one in plan(technique="allreduce")] == [
        "two-shot",
        "nccl",
    ]


@pytest.mark.parametrize(
    "changes",
    [{"linked": False}, {"node": "another"}],
    ids=["a GPU on PCIe", "a GPU of another node"],
)
def test_other_gpus_sum_through_nccl(changes: dict[str, Any]) -> None:
    *others, last = JOINED.devices
    assert way(Topology((*others, replace(last, **changes)))) == "nccl"


def test_kernels_are_launched_early_where_every_gpu_can() -> None:
    *others, last = JOINED.devices
    found = [
        Topology((*others, replace(last, capability=one))).capability
        for one in ((9, 0), (9, 1), (12, 0), (8, 0), None)
    ]
    assert found == [(9, 0), (9, 0), None, None, None]


class Nvml:
    """GPUs 0, 1 and 2, of which NVLink does not join 0 and 2."""

    NVMLError = RuntimeError
    NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK = 2, 0

    def nvmlDeviceGetP2PStatus(self, one: int, other: int, what: int) -> int:
        return 5 if {one, other} == {0, 2} else 0

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA H200"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> object:
        return SimpleNamespace(total=141 << 30)

    def __getattr__(self, name: str) -> object:
        if name.startswith("nvmlDeviceGet"):
            return self._untold
        return 0

    def _untold(self, *arguments: object) -> object:
        raise RuntimeError("not supported")


@pytest.mark.parametrize(
    ("visible", "linked"),
    [([0, 1, 2], [False, True, False]), ([1, 2], [True, True]), ([0], [None])],
)
def test_a_gpu_is_joined_to_the_others_that_are_visible(
    visible: list[int], linked: list[bool | None]
) -> None:
    found = [hardware._describe(Nvml(), visible, index, "1") for index in range(len(visible))]
    assert [gpu.linked for gpu in found] == linked
    assert [gpu.device("n").linked for gpu in found] == [bool(one) for one in linked]


# -- results from before


def rows(**changes: str | None) -> Any:
    """A store with one run of tp4."""
    made = {
        "strategy": "tp4",
        "engine": "torch",
        "ablation": "none",
        "attention": "triton",
        "allreduce": "nccl",
        "chunked_prefill_size": "2048",
        "products": "triton",
        "pdl": "on",
        **changes,
    }
    return SimpleNamespace(folder="results/x", read=lambda _: pa.Table.from_pylist([made]))


def test_runs_are_not_added_to_those_that_an_engine_made_in_another_way() -> None:
    words = r"results/x holds runs of tp4 by torch with allreduce nccl \(now two-shot\); give ano"
    with pytest.raises(UserError, match=words):
        _check_switches(rows(), plan())


@pytest.mark.parametrize(
    "changes",
    [
        {"allreduce": "two-shot"},
        {"allreduce": None},
        {"engine": "vllm"},
        {"strategy": "tp2"},
        {"ablation": "allreduce"},
    ],
)
def test_runs_are_added_to_those_of_the_same_way_and_of_other_layouts(
    changes: dict[str, str | None],
) -> None:
    _check_switches(rows(**changes), plan())


def test_runs_from_before_there_was_a_switch_are_ones_without_it() -> None:
    old = rows(allreduce="two-shot", products=None, pdl=None)
    words = r"with products cublas \(now triton\), pdl off \(now on\); give another"
    with pytest.raises(UserError, match=words):
        _check_switches(old, plan())
    _check_switches(old, plan(products="cublas", pdl="off"))


def test_runs_are_added_where_there_are_none() -> None:
    _check_switches(SimpleNamespace(folder="x", read=lambda _: None), plan())  # type: ignore[arg-type]
