"""Kernels that were launched before the one before them had ended count from its end."""

from __future__ import annotations

import pytest

from workers.probes.trace import Kernel, in_turn


def kernel(name: str, start: float, end: float) -> Kernel:
    return Kernel(name, "decode", 0, 0.0, start, end)


@pytest.mark.parametrize(
    ("spans", "counted"),
    [
        ([("a", 0, 4), ("b", 5, 7)], [("a", 0, 4), ("b", 5, 7)]),
        ([("b", 2, 7), ("a", 0, 4)], [("a", 0, 4), ("b", 4, 7)]),
        # Two wait for the same one, and one has ended before the clock of the other says so.
        ([("a", 0, 4), ("b", 1, 4), ("c", 2, 9)], [("a", 0, 4), ("b", 4, 4), ("c", 4, 9)]),
        ([("a", 0, 6), ("b", 1, 5), ("c", 2, 9)], [("a", 0, 6), ("b", 5, 5), ("c", 6, 9)]),
        # NCCL and copies have streams of their own.
        (
            [("a", 0, 4), ("ncclDevKernel", 1, 9), ("Memcpy DtoH", 2, 3), ("b", 3, 7)],
            [("a", 0, 4), ("ncclDevKernel", 1, 9), ("Memcpy DtoH", 2, 3), ("b", 4, 7)],
        ),
    ],
)
def test_a_kernel_begins_where_the_one_before_has_ended(
    spans: list[tuple[str, float, float]], counted: list[tuple[str, float, float]]
) -> None:
    found = in_turn([kernel(*span) for span in spans])
    assert [(one.name, one.start, one.end) for one in found] == counted
