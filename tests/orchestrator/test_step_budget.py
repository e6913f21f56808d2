"""`benchmarks/step_budget.py` says where a decode step goes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import ModuleType

import pytest
from spans import placed, span

from workers.records import COMPUTE, SpanRow

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "results" / "2xh100" / "qwen2.5-32b"
GAP, CLOSE = 0.5, 0.1  # us between two kernels, and before the reduction of a product's split-K
LAYERS, WAIT = 2, 3.0
# Kernels of a half in us; a negative one follows closely.
ATTENTION, MLP = (2, 7, -1, 2, 5, 1, 6), (2, 36, 1, 20)
BEFORE, AFTER = (1, 4), (2, 90, 3)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "step_budget", ROOT / "benchmarks" / "step_budget.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["step_budget"] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def step(
    rank: int,
    number: int,
    attention: tuple[float, ...] = ATTENTION,
    mlp: tuple[float, ...] = MLP,
    fused: bool = False,
) -> Iterator[SpanRow]:
    """A decode step of tp2 of which rank 0 is late at every all-reduce, by WAIT."""
    now = 10_000.0 * number
    for kernels in (BEFORE, *(attention, mlp) * LAYERS, AFTER):
        for us in kernels:
            now += CLOSE if us < 0 else GAP
            yield span(rank, number, COMPUTE, now / 1e3, (now + abs(us)) / 1e3)
            now += abs(us)
        if kernels is not AFTER:
            now += GAP + (WAIT if rank == 0 else 0)
            took = 10 + (0 if rank == 0 else WAIT)
            when = (now / 1e3, (now + took) / 1e3)
            yield span(rank, number, "all_reduce", *when, "tp", 1024, fused=fused)
            now += took


def budget(script: ModuleType, *spans: SpanRow) -> dict[str, tuple[float, float]]:
    """Name -> calls and us of a step."""
    found = script.budget_of(script.ranks_of(spans, placed("tp2")))
    return {
        name: (found.calls[name] / found.steps, us / found.steps) for name, us in found.us.items()
    }


def steps(attention: tuple[float, ...] = ATTENTION) -> list[SpanRow]:
    return [one for number in range(4) for rank in (0, 1) for one in step(rank, number, attention)]


def test_each_kernel_of_a_layer_is_told_by_its_place_between_two_all_reduces(
    script: ModuleType,
) -> None:
    found = budget(script, *steps())
    expected = {
        script.BEFORE: (2, 5),
        "add and norm": (2, 4),
        "qkv": (2, 16),
        "rope and cache": (2, 4),
        "attention": (2, 10),
        "join of splits": (2, 2),
        "output": (2, 12),
        "gate and up": (2, 72),
        "down": (2, 40),
        script.HEAD: (1, 90),
        script.AFTER: (2, 5),
    }
    for name, (calls, us) in expected.items():
        assert found[name] == (calls, pytest.approx(us, abs=1e-6)), name


def test_of_an_all_reduce_the_shortest_over_the_ranks_is_transfer_and_the_rest_waiting(
    script: ModuleType,
) -> None:
    found = budget(script, *steps())
    assert found[script.TRANSFER] == (5, pytest.approx(50))
    assert found[script.WAIT] == (5, pytest.approx(5 * WAIT / 2))


def test_the_parts_of_a_step_are_the_whole_step(script: ModuleType) -> None:
    seen = script.ranks_of(steps(), placed("tp2"))
    lengths = [end - start for one in seen for start, end in one.steps.values()]
    found = script.budget_of(seen)
    assert sum(found.us.values()) == pytest.approx(sum(lengths))


def test_a_context_that_is_not_split_has_nothing_to_join(script: ModuleType) -> None:
    found = budget(script, *steps(attention=(2, 7, 2, 5, 6)))
    assert "join of splits" not in found
    assert found["attention"] == (2, pytest.approx(10))
    assert found["output"] == (2, pytest.approx(12))


def test_behind_an_all_reduce_that_norms_there_is_no_norm(script: ModuleType) -> None:
    made = [
        one
        for number in range(4)
        for rank in (0, 1)
        for one in step(rank, number, ATTENTION[1:], MLP[1:], fused=True)
    ]
    found = budget(script, *made)
    assert not {"add and norm", "add and norm 2"} & set(found)
    assert found["qkv"] == (2, pytest.approx(16))
    assert found["join of splits"] == (2, pytest.approx(2))
    assert found["down"] == (2, pytest.approx(40))


def test_a_half_whose_kernels_touch_is_not_told_apart(script: ModuleType) -> None:
    odd = [one for rank in (0, 1) for one in step(rank, 4, (2, 8, 14))]
    found = budget(script, *steps(), *odd)
    assert found["attention half, not told apart"] == (2 / 4, pytest.approx(2 * 24 / 4))
    assert found["attention"][0] == 2 * 3 / 4


def test_what_a_matrix_has_to_read_is_the_shard_of_a_rank(script: ModuleType) -> None:
    from orchestrator.plan import planning

    layout, model = planning.sketch("tp4", "qwen2.5-32b")
    size = script.bytes_of(model, layout.placement, 2, context=100)
    assert size["gate and up"] == 2 * 27648 // 4 * 5120 * 2
    assert size["qkv"] == (40 + 2 * 8) // 4 * 128 * 5120 * 2
    assert size["attention"] == 2 * 2 * 128 * 2 * 100
    assert size[script.HEAD] == 152064 // 4 * 5120 * 2


def test_a_published_result_is_read(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["step_budget.py", str(PUBLISHED), "--cell", "tp2.c1"])
    script.main()
    tables = [
        list(lines)
        for is_row, lines in groupby(capsys.readouterr().out.splitlines(), lambda s: "|" in s)
        if is_row
    ]
    rows = [line.split(" | ") for line in tables[0][2:]]
    calls = {row[0].removeprefix("| "): row[1] for row in rows}
    assert calls["down"] == "64.0"
    assert calls[script.TRANSFER] == "129.0"


def test_results_without_such_a_cell_are_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["step_budget.py", str(PUBLISHED), "--cell", "tp8"])
    with pytest.raises(SystemExit, match="no spans of tp8"):
        script.main()
