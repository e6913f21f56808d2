"""What a step communicates, counted where torch hands it to its process groups, is what the
placement says, operation by operation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ranks import Pool
from training_runs import LOAD, layers_of, load_of, shape_of, training_plan

from strategies import TrainingLoad
from strategies.training import training_traffic
from workers.messages import RankReport, TrainingWork
from workers.training_records import (
    TRAINING_COLLECTIVES,
    TRAINING_OVERLAPS,
    TRAINING_PARTS,
    TrainingPartsRow,
)

pytestmark = pytest.mark.slow
INTERLEAVED = replace(LOAD, schedule="interleaved")
TORCH = ("dp2", "fsdp2", "tp2", "pp2", "tp2pp2", "tp2dp2", "pp2fsdp2", "pp2dp2", "dp2fsdp2")
ZERO = ("dp2zero1", "dp2zero2", "dp2zero3")
CASES = [
    *(("torch", layout, "Llama", load_of(layout)) for layout in TORCH),
    *(
        ("torch", layout, "Llama", replace(load_of(layout), activation_checkpointing="full"))
        for layout in ("tp2", "fsdp2")
    ),
    ("torch", "pp2", "Mistral", INTERLEAVED),
    ("torch", "tp2pp2", "Qwen3", load_of("tp2pp2")),
    *(("deepspeed", layout, "Llama", LOAD) for layout in ZERO),
]


@pytest.mark.parametrize(("engine", "layout", "family", "load"), CASES)
def test_counted_bytes_and_calls_are_the_analytic_ones(
    engine: str, layout: str, family: str, load: TrainingLoad, pool: Pool
) -> None:
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    plan = training_plan(layout, shape_of(family, layers_of(load)), None, load)
    (reports,) = pool.serve(plan, TrainingWork(2), engine=engine)
    for report in reports:
        assert report.training is not None
        rows = TRAINING_COLLECTIVES.rows(report.training.traffic)
        expected = training_traffic(plan.placement, plan.model, load, report.rank)
        sent = {(one.op, one.axis): one for one in expected if one.op != "recv"}
        found = {(row.op, row.axis): row.bytes for row in rows}
        if layout == "dp2zero3":  # of a small model much is gathered ahead, and then kept
            gathered, most = found.pop(("all_gather", "dp")), sent["all_gather", "dp"].bytes
            assert most / 2 <= gathered <= most
        assert found == {key: sent[key].bytes for key in sent if key in found}
        assert len(found) == len(sent) - (layout == "dp2zero3")
        for row in rows:
            calls = sent[row.op, row.axis].calls
            assert calls in (None, row.calls)


@pytest.mark.parametrize(
    ("engine", "layout", "load"),
    [
        ("torch", "dp2", LOAD),
        ("torch", "tp2fsdp2", load_of("tp2fsdp2")),
        ("torch", "pp2", replace(LOAD, schedule="gpipe")),
        ("torch", "pp2dp2", LOAD),
        ("torch", "pp2", INTERLEAVED),
        ("deepspeed", "dp2zero1", LOAD),
    ],
)
def test_every_call_of_a_step_is_timed_and_every_moment_of_it_has_a_part(
    engine: str, layout: str, load: TrainingLoad, pool: Pool
) -> None:
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    plan = training_plan(layout, shape_of("Llama", layers_of(load)), None, load)
    (reports,) = pool.serve(plan, TrainingWork(2, observe=True), engine=engine)
    stages = [number for report in reports[::2] for number in _parts(report).stages]
    for report in reports:
        assert report.training is not None
        counted = TRAINING_COLLECTIVES.rows(report.training.traffic)
        seen = {(one.op, one.axis): one for one in TRAINING_OVERLAPS.rows(report.training.overlaps)}
        for row in counted:
            one = seen[row.op, row.axis]
            assert one.seen_calls == row.calls
            assert one.exposed_ms is not None
            if row.op == "send":  # its end is told to nobody
                assert one.hidden_ms is None
            else:
                assert one.busy_ms == pytest.approx(one.exposed_ms + one.hidden_ms)
        parts = _parts(report)
        names = ("forward", "backward", "optimizer", "other", "exposed", "handover", "agreement")
        every = sum(getattr(parts, f"{name}_ms") for name in (*names, "gap"))
        assert every == pytest.approx(parts.step_ms)
        assert min(parts.forward_ms, parts.backward_ms, parts.optimizer_ms) > 0
        if "pp" in layout:
            assert 0 < parts.bubble_share < 1
            assert {"send", "recv"} <= {op for op, _ in seen}
        else:
            assert parts.bubble_share is None
    assert load.schedule != "interleaved" or stages == [0, 2]


def _parts(report: RankReport) -> TrainingPartsRow:
    assert report.training is not None
    (row,) = TRAINING_PARTS.rows(report.training.parts)
    return row
