"""`benchmarks/layer_kernels.py`: what it makes of the kernels that a profiler has seen."""

from __future__ import annotations

from types import ModuleType

import pytest
from benchmark_scripts import BENCHMARKS, ended, loaded

SCRIPT = BENCHMARKS / "layer_kernels.py"
LAYER = [("_norm", 3.0), ("_streamed", 10.0), ("_decode", 5.0), ("_norm", 4.0), ("_streamed", 60.0)]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return loaded("layer_kernels", monkeypatch)


def test_without_a_gpu_it_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "kernels of few rows are for Hopper GPUs, and this machine has none"
    assert ended(SCRIPT, patch=monkeypatch) == said


def replay(script: ModuleType, begins: float, first: float) -> list[object]:
    """Two kernels before the layers, of which the first takes longer, and one behind them."""
    lengths = [("fill", 1.0), ("copy", 2.0)]
    lengths += [(name, us * first) for name, us in LAYER] + LAYER * (script.LAYERS - 1)
    ran, at = [], begins
    for name, us in [*lengths, ("add", 1.0)]:
        at += us
        ran.append(script.Launch(name, at))
    return ran


def test_a_kernel_takes_from_the_end_of_the_one_before_to_its_own_end(script: ModuleType) -> None:
    replays = [replay(script, at, first) for at, first in ((0.0, 2.0), (5e6, 3.0))]
    found = script.of_layer(replays)
    assert [name for name, _ in found] == [name for name, _ in LAYER]
    assert [us for _, us in found] == pytest.approx([us for _, us in LAYER], abs=1e-6)


def test_kernels_that_are_not_of_layers_alike_are_refused(script: ModuleType) -> None:
    odd = replay(script, 0.0, 1.0)
    for number in range(2, len(odd), 3):
        odd[number] = script.Launch(f"other {number}", odd[number].end)
    with pytest.raises(ValueError, match="no 16 layers that are alike: fill, copy, other 2"):
        script.of_layer([odd])


def test_a_line_says_what_a_layer_takes(script: ModuleType) -> None:
    rows = [
        script.LayerKernelRow(
            gpu="H",
            model="m",
            tp=2,
            requests=count,
            quantization="none",
            sums=False,
            place=at,
            kernel=name,
            us=us,
        )
        for count in (1, 32)
        for at, (name, us) in enumerate([("_norm", 3.0), ("_streamed_and_more_and_more", 10.5)])
    ]
    one, many = script.told(rows)
    assert one == "m tp2 none, 1 requests: _norm 3.0, _streamed_and_more_a 10.5: 13.5 us a layer"
    assert many.startswith("m tp2 none, 32 requests")
