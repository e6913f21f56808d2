"""Which variables of the environment are kept of the workers, and what they say of NVLS."""

from __future__ import annotations

import pytest

from orchestrator.cluster import environment, nodes

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
OURS = {
    **LOOPBACK,
    "NCCL_GRAPH_MIXING_SUPPORT": "0",
    "NCCL_NVLS_ENABLE": "0",
    "NVSHMEM_DISABLE_NVLS": "1",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}


def test_variables_of_other_names_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {
        "NCCL_ALGO": "Ring",
        "CUDA_VISIBLE_DEVICES": "1",
        "TORCH_LOGS": "x",
        "NVSHMEM_DEBUG": "1",
        "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    }
    left = {"HF_TOKEN": "secret", "AWS_SECRET_ACCESS_KEY": "secret", "MY_NCCL_KEY": "secret"}
    left |= {"VLLM_API_KEY": "secret", "VLLM_S3_SECRET": "secret"}
    for name, value in {**kept, **left}.items():
        monkeypatch.setenv(name, value)
    seen = environment.here()
    assert kept.items() <= seen.items()
    assert not left.keys() & seen.keys()
    assert all(name.startswith(environment.PREFIXES) for name in seen)
    assert nodes.this_node("cpu", 1).environment == seen


def test_workers_have_the_variables_of_their_node_and_ours_come_first() -> None:
    node = {"NCCL_ALGO": "Ring", "NCCL_NVLS_ENABLE": "1", "HF_TOKEN": "secret"}
    assert environment.of_workers([node]) == {**OURS, "NCCL_ALGO": "Ring"}
    assert environment.of_workers([{}]) == OURS


def test_an_interface_that_a_node_has_chosen_is_kept() -> None:
    found = environment.of_workers([{"NCCL_SOCKET_IFNAME": "eth1"}])
    assert found == {**OURS, "NCCL_SOCKET_IFNAME": "eth1"}


def test_several_nodes_have_the_interface_of_a_layout_on_one_of_them_and_that_of_others() -> None:
    found = environment.of_workers([{"NCCL_SOCKET_IFNAME": "eth1"}, {"NCCL_SOCKET_IFNAME": "eth1"}])
    assert found["NCCL_SOCKET_IFNAME"] == "eth1"
    assert found["GLOO_SOCKET_IFNAME"] == " | lo"


def test_a_variable_in_which_nodes_differ_has_every_value() -> None:
    found = environment.of_workers([{"NCCL_ALGO": "Ring"}, {"NCCL_ALGO": "Tree"}, {}])
    assert found["NCCL_ALGO"] == " | Ring | Tree"


@pytest.mark.parametrize(("value", "said"), [("0", "off"), ("1", "on"), ("2", None), (None, None)])
def test_nvls_is_on_or_off_where_nccl_was_told(value: str | None, said: str | None) -> None:
    told = {} if value is None else {"NCCL_NVLS_ENABLE": value}
    assert environment.nvls(told) == said


def test_this_project_has_nvls_off() -> None:
    assert environment.nvls(environment.of_workers([{"NCCL_NVLS_ENABLE": "1"}])) == "off"
