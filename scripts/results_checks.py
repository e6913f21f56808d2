"""What communication costs, measured in a second way, and whether the order of the GPUs matters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from published import THROUGHPUT, Published, known, listed, paragraph

from orchestrator.analysis.comparing.ablation import Effect
from orchestrator.analysis.comparing.changes import changes
from orchestrator.analysis.comparing.two_results import two_results

AGREE = 2.0  # percent of a step by which an ablation and the profile may differ
SWAP_MATTERS = 0.01  # of throughput; more would be said otherwise


def without(found: Published) -> Iterator[str]:
    """A run without its collectives, beside the profile of the whole one."""
    effects = found.findings.ablations
    assert {one.cell.ablation for one in effects} == {"comm"}
    assert {one.num_starts for one in found.findings.comparison} == {1}
    assert all(abs(one.saved_pct - known(one.expected_pct)) < AGREE for one in effects)
    layouts = sorted({one.cell.strategy for one in effects}, reverse=True)
    yield "## What communication costs, measured twice"
    yield paragraph(
        "`--ablate comm` on qwen2.5-32b, four H200, one start.",
        *(
            _of_layout(layout, [one for one in effects if one.cell.strategy == layout])
            for layout in layouts
        ),
        "The two agree within 2 points of a step.",
    )


def _of_layout(layout: str, effects: list[Effect]) -> str:
    saved = [f"{one.saved_pct:.1f}%" for one in effects]
    profile = [f"{known(one.expected_pct):.1f}%" for one in effects]
    at = [one.cell.max_concurrency for one in effects]
    return (
        f"Without its collectives a decode step of {layout} is shorter by {listed(saved)} at "
        f"{listed(at)} concurrent; by the profile of the whole layout it should be "
        f"{listed(profile)}."
    )


def swapped(base: Path, new: Path) -> Iterator[str]:
    """The same layouts with the ranks on each other's GPUs."""
    orders = [Published(one).results.manifest["environment"] for one in (base, new)]
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in orders] == [None, "1,0"]
    found = [one for one in changes(two_results(base, new)) if one.metric == THROUGHPUT]
    ((starts, other),) = {(one.base_starts, one.new_starts) for one in found}
    assert starts == other
    assert all(abs(known(one.ratio) - 1) < SWAP_MATTERS for one in found)
    ratios = [
        f"{known(one.ratio):.3f}x [{known(one.ci_low):.3f}, {known(one.ci_high):.3f}] under "
        f"{one.joined.strategy}"
        for one in found
    ]
    yield "## The GPUs the other way round"
    yield paragraph(
        f"With `CUDA_VISIBLE_DEVICES=1,0` the ranks trade places. On two H100, at 100 concurrent, "
        f"{starts} starts each way, throughput is then {listed(ratios)}.",
        f"So the order of the GPUs moves these means by less than {100 * SWAP_MATTERS:.0f}%.",
    )
