"""DeepSpeed trains replicas, and ZeRO 1 to 3 over them, as one process does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from ranks import Pool
from training_runs import FEW, LOAD, SOME, alone, check_same, curve, shape_of, training_plan

from strategies import TrainingLoad
from strategies.training import training_memory
from strategies.training.moments import BUCKET
from workers.engines.training.batches import random_batches
from workers.engines.training.deepspeed import Replica
from workers.messages import TrainingWork
from workers.rank import RankContext
from workers.training_records import TRAINING_COLLECTIVES

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow


def has_float16() -> bool:
    """As DeepSpeed's accelerator of CPUs decides."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    except Exception:
        return False


@pytest.mark.parametrize("layout", ["tp1", "dp2", "dp2zero1", "dp2zero2", "dp2zero3"])
def test_every_stage_of_zero_has_the_losses_and_norms_of_one_process(
    layout: str, pool: Pool
) -> None:
    plan = training_plan(layout, shape_of("Llama"), None, LOAD)
    (reports,) = pool.serve(plan, TrainingWork(SOME), engine="deepspeed")
    check_same(curve(reports), alone("Llama"))
    for one in reports:
        assert one.training is not None
        rows = TRAINING_COLLECTIVES.rows(one.training.traffic)
        calls = Counter({row.op: row.calls for row in rows})
        assert bool(calls) == (layout != "tp1")


@pytest.mark.parametrize("layout", ["dp2", "dp2zero1", "dp2zero2", "dp2zero3"])
def test_in_bf16_updates_are_of_float32(layout: str, pool: Pool) -> None:
    shape, load = shape_of("Llama"), replace(LOAD, precision="bf16")
    plan = training_plan(layout, shape, None, load, dtype="bfloat16")
    (reports,) = pool.serve(plan, TrainingWork(FEW), engine="deepspeed", counts=False)
    check_same(curve(reports), alone("Llama"), 0.05)
    share = 2 if "zero" in layout else 1
    weights = 2 * sum(
        rows * columns
        for _, (rows, *rest) in shape.parameters()
        for columns in [rest[0] if rest else 1]
    )
    for one in reports:
        assert one.training is not None
        assert one.training.optimizer_bytes >= 6 * weights // share


@pytest.mark.parametrize(
    ("layout", "offload"),
    [
        ("dp2zero1", "optimizer"),
        ("dp2zero2", "optimizer"),
        ("zero2", "optimizer"),
        ("zero3", "optimizer"),  # then rank 0 has had an engine more than rank 1
        ("dp2zero3", "optimizer"),
        ("dp2zero3", "optimizer+params"),
    ],
)
def test_what_zero_keeps_in_main_memory_changes_no_loss(
    layout: str, offload: Any, pool: Pool
) -> None:
    plan = training_plan(layout, shape_of("Llama"), None, replace(LOAD, offload=offload))
    (reports,) = pool.serve(plan, TrainingWork(FEW), engine="deepspeed", counts=False)
    check_same(curve(reports), alone("Llama"))


def kept_by(layout: str, load: TrainingLoad, pool: Pool) -> int:
    """Bytes of all tensors of rank 0 after a step."""
    dtype = "bfloat16" if load.precision == "bf16" else "float32"
    plan = training_plan(layout, shape_of("Llama"), None, load, dtype=dtype)
    try:
        pool.build(plan, "deepspeed")
        pool.call("count_nothing", [()] * 2)
        pool.call("run", [(TrainingWork(1),)] * 2)
        return int(pool.call("kept", [()] * 2)[0][0])
    finally:
        pool.call("close", [()] * 2)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("layout", ["dp2zero2", "dp2zero3"])
def test_what_zero_keeps_in_main_memory_is_as_predicted(
    layout: str, precision: Any, pool: Pool
) -> None:
    """Beside the weights and the buckets of the device, which is the same memory here."""
    shape = shape_of("Llama")
    load = replace(LOAD, precision=precision, offload="optimizer")
    placement = training_plan(layout, shape, None, load).placement
    predicted = training_memory(placement, shape, load)[0]
    host, width = predicted.host, 2 if precision == "bf16" else 4
    largest = max(math.prod(size) for _, size in shape.parameters())
    if layout == "dp2zero3":  # what is there only while it is moved is gone
        expected = host.total - host.buffers + predicted.weights + width * BUCKET
    else:  # the device has a gradient of its own
        expected = host.total + predicted.weights + width * largest
    found = kept_by(layout, load, pool)
    # A matrix of which a rank steps a part is summed whole.
    assert found == pytest.approx(expected, abs=2 * width * largest)


@pytest.mark.parametrize(
    ("layout", "offload"),
    [
        ("dp2", "none"),
        ("dp2zero1", "none"),
        ("dp2zero2", "optimizer"),
        ("dp2zero3", "none"),
        ("dp2zero3", "optimizer"),
        ("dp2zero3", "optimizer+params"),
    ],
)
def test_each_run_begins_with_the_first_weights_and_no_moments(
    layout: str, offload: Any, pool: Pool
) -> None:
    load = replace(LOAD, precision="bf16", offload=offload)
    plan = training_plan(layout, shape_of("Llama"), None, load, dtype="bfloat16")
    works = [TrainingWork(FEW)] * 2
    first, second = pool.serve(plan, *works, engine="deepspeed", counts=False)
    check_same(curve(second), curve(first), 0.0)


@pytest.fixture
def alone_in_main_memory() -> Iterator[Replica]:
    """ZeRO-3 offloaded of a single rank, in this process."""
    load = replace(LOAD, precision="bf16", offload="optimizer")
    plan = training_plan("zero3", shape_of("Llama"), None, load, dtype="bfloat16")
    replica = Replica(RankContext(0, plan.placement, torch.device("cpu")), plan)
    yield replica
    replica.close()


def test_under_zero_an_engine_stays_from_run_to_run(alone_in_main_memory: Replica) -> None:
    """To make one anew touches main memory that is new, which is slow."""
    replica = alone_in_main_memory
    replica.reset()
    made = replica._engine
    for tokens in random_batches(replica._plan, 0, range(1)):
        replica.step(tokens)
    assert replica.updates == 1
    replica.reset()
    assert replica._engine is made
    assert replica.updates == 0


@pytest.mark.skipif(not has_float16(), reason="DeepSpeed has no float16 on this CPU")
@pytest.mark.parametrize("layout", ["dp2zero1", "dp2zero3"])
def test_in_fp16_zero_leaves_out_steps_that_overflow(layout: str, pool: Pool) -> None:
    load = replace(LOAD, precision="fp16")
    plan = training_plan(layout, shape_of("Llama"), None, load, dtype="float16")
    (reports,) = pool.serve(plan, TrainingWork(2 * FEW), engine="deepspeed", counts=False)
    finite = [one for one in curve(reports) if math.isfinite(one.grad_norm)]
    assert len(finite) >= FEW
    assert finite[0].loss == pytest.approx(alone("Llama")[0].loss, abs=0.02)


@pytest.mark.skipif(has_float16(), reason="DeepSpeed has float16 on this CPU")
def test_float16_is_refused_where_the_cpu_has_none(pool: Pool) -> None:
    load = replace(LOAD, precision="fp16")
    plan = training_plan("dp2zero1", shape_of("Llama"), None, load, dtype="float16")
    with pytest.raises(RuntimeError, match=r"no float16 on this CPU.*use bfloat16, or --engine"):
        pool.serve(plan, TrainingWork(FEW), engine="deepspeed", counts=False)


def test_replicas_without_zero_count_their_updates_as_torch_does(pool: Pool) -> None:
    """DeepSpeed begins with an update by zeros where weights are not float32."""
    shape, load = shape_of("Llama"), replace(LOAD, precision="bf16")
    plan = training_plan("tp1", shape, None, load, dtype="bfloat16")
    curves = [
        curve(pool.serve(plan, TrainingWork(FEW), engine=engine, counts=False)[0])
        for engine in ("torch", "deepspeed")
    ]
    check_same(*curves, 2e-3)


@pytest.mark.parametrize("layout", ["dp2", "dp2zero2", "dp2zero3"])
def test_runs_of_one_process_keep_no_memory_and_no_process_group(layout: str, pool: Pool) -> None:
    plan = training_plan(layout, shape_of("Llama"), None)
    kept = []
    for _ in range(2):
        pool.serve(plan, TrainingWork(2), engine="deepspeed")
        kept.append(pool.call("kept", [(), ()]))
    whole = 4 * shape_of("Llama").num_parameters
    for (before, groups), (after, _) in zip(*kept, strict=True):
        assert after - before < whole / 100
        assert groups == 0


@pytest.mark.parametrize("layout", ["dp2", "dp2zero1", "dp2zero2", "dp2zero3"])
def test_without_collectives_ranks_step_by_themselves(layout: str, pool: Pool) -> None:
    """A rank has its own part in place of what it would receive, so all it computes is a number."""
    plan = training_plan(layout, shape_of("Llama"), None, LOAD, ablation="comm")
    (reports,) = pool.serve(plan, TrainingWork(FEW), engine="deepspeed")
    first, whole = curve(reports)[0], alone("Llama")[0]
    assert first.grad_norm != pytest.approx(whole.grad_norm, rel=1e-3)
    assert all(math.isfinite(one.loss) and one.grad_norm < 100 for one in curve(reports))
    is_whole = layout != "dp2zero3"  # which gathers a rank's own part as each of the others
    assert (first.loss == pytest.approx(whole.loss, abs=1e-4)) == is_whole
    for one in reports:
        assert one.training is not None
        assert one.training.traffic.num_rows == 0
