"""vLLM's all-reduces in a prediction, whose kernels have the norm behind the sum."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.plan import models
from orchestrator.predict import factors
from orchestrator.predict.hardware import CUSTOM, GRAPH, Hardware, Span, of_sheet
from orchestrator.predict.layouts import Case, candidates
from orchestrator.predict.load import Asked
from orchestrator.predict.passes import DECODE, Setting, Work
from orchestrator.predict.replica import Lengths
from strategies.precision import Precision

KNOWN = factors.load()
VLLM = KNOWN.of("vllm")
LAYERS = 80
MIB = 1 << 20


def hardware(gpu: str = "h200") -> Hardware:
    return of_sheet(gpu, KNOWN.attainable, KNOWN.calibrations.get(gpu.upper()))


def setting(layout: str, gpu: str = "h200", engine: factors.EngineFactors = VLLM) -> Setting:
    shape, asked = models.resolve("llama-70b", "dummy").shape, Asked(Lengths(256, 128, 2048), 1)
    case = Case(shape, Precision("bfloat16"), hardware(gpu), engine, asked)
    ((_, found),) = candidates(case, [layout], 16, 1).settings
    return found


@pytest.mark.parametrize(
    ("ranks", "mib", "us"),
    [
        (2, 0, 2.8),  # 2.1 and 0.35 for each rank
        (4, 0, 3.5),
        (4, 1, 3.5 + 9.97),  # to each of three others, at 0.701 of 450 GB/s, nothing with it
        (8, 0.25, 4.9 + 5.82),
    ],
)
def test_each_rank_sends_its_message_to_all_others(ranks: int, mib: float, us: float) -> None:
    found = hardware().fabric.fused_sum_seconds(CUSTOM, Span(ranks), mib * MIB)
    assert found == pytest.approx(us * 1e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "span", "mib"),
    [
        ("nccl", Span(2), 1),
        (CUSTOM, Span(2), 65),
        (CUSTOM, Span(4), 2.5),
        (CUSTOM, Span(3), 0.1),  # vLLM has none for three
        (CUSTOM, Span(4, nodes=2), 1),
        (CUSTOM, Span(4, islands=2), 1),
    ],
)
def test_other_sums_are_those_of_nccl(kind: str, span: Span, mib: float) -> None:
    assert hardware().fabric.fused_sum_seconds(kind, span, mib * MIB) is None


def test_gpus_on_pcie_sum_by_nccl() -> None:
    assert hardware("l40s").fabric.fused_sum_seconds(CUSTOM, Span(2), MIB) is None
    assert setting("tp2", "l40s").placed.allreduce == "nccl"


def test_the_norm_of_a_sum_is_communication_and_no_kernel_of_its_own() -> None:
    one = setting("tp4")
    work = Work(DECODE, 32, 32, read=32 * 320)
    without = Setting(one.placed, replace(VLLM, norm_s=0.0))
    mine, plain = one.pass_of(0, work), without.pass_of(0, work)
    norms = (2 * LAYERS + 1) * VLLM.norm_s  # two of a layer, one of the embedding
    assert mine.transfer - plain.transfer == pytest.approx(norms)
    assert plain.compute - mine.compute == pytest.approx(norms)
    assert mine.seconds == pytest.approx(plain.seconds)


def test_a_sum_by_nccl_has_its_norm_in_a_kernel_of_its_own() -> None:
    one = setting("tp4")
    nccl = replace(one.placed, allreduce="nccl")
    work = Work(DECODE, 32, 32, read=32 * 320)
    assert nccl.transfer(0, work, GRAPH).fused == 0
    assert one.placed.transfer(0, work, GRAPH).fused == 2 * LAYERS + 1
    assert one.placed.transfer(0, replace(work, tokens=200), GRAPH).fused == 0  # 3.1 MiB
    assert Setting(nccl, VLLM).pass_of(0, work).seconds > one.pass_of(0, work).seconds


@pytest.mark.parametrize(
    ("layout", "rows", "fused"),
    [("tp2", 32, True), ("tp2", 2048, True), ("tp2", 2049, False), ("tp4", 1, False)],
)
def test_one_shot_of_torch_between_two_has_a_norm_too(layout: str, rows: int, fused: bool) -> None:
    """Up to 32 MiB, and between more ranks not."""
    one = setting(layout, engine=KNOWN.of("torch"))
    assert one.placed.transfer(0, Work(DECODE, rows, rows), GRAPH).fused == fused * (2 * LAYERS + 1)
