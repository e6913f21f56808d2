"""Which node a command ran on, by what its block of the manifest says."""

from __future__ import annotations

import pytest

from orchestrator.store.node_id import NodeId, distinct, found_among, next_number

AB, BC, D = ({"gpu_uuids": uuids} for uuids in (["a", "b"], ["b", "c"], ["d"]))
EPYC, XEON = ({"cpu_model": model} for model in ("EPYC", "Xeon"))


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (AB, BC, True),
        (AB, D, False),
        (EPYC, EPYC, True),
        (EPYC, XEON, False),
        (AB | EPYC, D | EPYC, False),  # GPUs decide
        (AB | EPYC, EPYC, None),
        (EPYC, {}, None),
        ({}, {}, None),
    ],
)
def test_a_gpu_in_common_decides_and_without_gpus_the_cpu(
    one: dict[str, object], other: dict[str, object], is_same: bool | None
) -> None:
    assert NodeId.of(one).is_same(NodeId.of(other)) is is_same
    assert NodeId.of(other).is_same(NodeId.of(one)) is is_same


def test_a_node_is_found_by_its_number_and_a_new_one_gets_the_next() -> None:
    blocks = [AB | {"node": 0}, {}, D | {"node": 3}]
    assert found_among(NodeId.of(D), blocks) == 3
    assert found_among(NodeId.of(BC), blocks) == 0
    assert found_among(NodeId.of(EPYC), blocks) is None
    assert next_number(blocks) == 4
    assert next_number([]) == 0


def test_blocks_that_share_gpus_through_a_third_are_of_one_node() -> None:
    assert distinct(map(NodeId.of, [{"gpu_uuids": ["a"]}, {"gpu_uuids": ["c"]}])) == 2
    ends = [{"gpu_uuids": ["a"]}, {"gpu_uuids": ["c"]}, D, AB, BC]
    assert distinct(map(NodeId.of, ends)) == 2
