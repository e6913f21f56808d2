"""What a step communicates, counted where torch hands it to its process groups, is what the
placement says, operation by operation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ranks import Pool
from training_runs import LOAD, shape_of, training_plan

from strategies import TrainingLoad
from strategies.training import training_traffic
from workers.messages import TrainingWork
from workers.records import TRAINING_COLLECTIVES

pytestmark = pytest.mark.slow
FULL = replace(LOAD, activation_checkpointing="full")
INTERLEAVED = replace(LOAD, schedule="interleaved")
TORCH = ("dp2", "fsdp2", "tp2", "pp2", "tp2pp2", "tp2dp2", "pp2fsdp2", "pp2dp2", "dp2fsdp2")
ZERO = ("dp2zero1", "dp2zero2", "dp2zero3")
CASES = [
    *(("torch", layout, "Llama", LOAD) for layout in TORCH),
    *(("torch", layout, "Llama", FULL) for layout in ("tp2", "fsdp2")),
    ("torch", "pp2", "Mistral", INTERLEAVED),
    ("torch", "tp2pp2", "Qwen3", LOAD),
    *(("deepspeed", layout, "Llama", LOAD) for layout in ZERO),
]


@pytest.mark.parametrize(("engine", "layout", "family", "load"), CASES)
def test_counted_bytes_and_calls_are_the_analytic_ones(
    engine: str, layout: str, family: str, load: TrainingLoad, pool: Pool
) -> None:
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    plan = training_plan(layout, shape_of(family), None, load)
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
