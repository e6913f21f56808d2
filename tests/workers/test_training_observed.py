"""An optimizer step taken apart: from what a profiler saw to parts, and to communication that is
exposed or hidden."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_traces import BASE_NS, GpuTrace
from ranks import Pool
from training_runs import LOAD, layers_of, load_of, shape_of, training_plan

from strategies.placement import Placement
from workers.engines.training.counting import Issued
from workers.engines.training.observed import SeenCall, SeenStep, overlaps_of, parts_of
from workers.engines.training.observing import WANTED, Watch, steps_seen
from workers.intervals import Span
from workers.messages import TrainingWork
from workers.probes.marks import Marks
from workers.probes.trace_files import TraceFile, read_trace
from workers.training_records import TrainingOverlapRow

GEMM = "sm90_xmma_gemm_bf16"
ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
SEND_RECV = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"
NODE = "autograd::engine::evaluate_function: MmBackward0"


def placed(layout: str) -> Placement:
    return training_plan(layout, shape_of("Llama"), None).placement


def step(calls: list[SeenCall], **computing: list[Span]) -> SeenStep:
    return SeenStep((0.0, 1000.0), computing, calls)


def by_op(rows: list[TrainingOverlapRow]) -> dict[str, tuple[Any, ...]]:
    return {one.op: (one.axis, one.busy_ms, one.exposed_ms, one.hidden_ms) for one in rows}


# -- from spans to rows


def test_what_computes_beside_a_collective_hides_it() -> None:
    found = step(
        [SeenCall("all_reduce", "dp", [(300.0, 600.0)])],
        forward=[(0.0, 200.0)],
        backward=[(200.0, 500.0)],
        optimizer=[(700.0, 900.0)],
    )
    assert by_op(overlaps_of(0, [found])) == {"all_reduce": ("dp", 0.3, 0.1, pytest.approx(0.2))}
    row = parts_of(0, placed("dp2"), [found], [0.0008])
    parts = row.forward_ms, row.backward_ms, row.optimizer_ms, row.exposed_ms, row.gap_ms
    assert parts == pytest.approx((0.2, 0.3, 0.2, 0.1, 0.2))
    assert row.busy_ms == pytest.approx(0.3)
    assert row.profile_ratio == pytest.approx(1.25)
    assert (row.bubble_ms, row.bubble_share, row.reason) == (None, None, None)
    assert row.host_copy_ms is None


def test_the_parts_of_a_step_sum_to_it_whatever_overlaps() -> None:
    found = step(
        [
            SeenCall("all_gather", "tp", [(100.0, 400.0), (380.0, 420.0)]),
            SeenCall("send_recv", "pp", [(410.0, 650.0)]),
            SeenCall("all_reduce", None, [(600.0, 990.0)], agrees=True),
        ],
        forward=[(0.0, 150.0)],
        backward=[(100.0, 300.0), (500.0, 550.0)],
        other=[(290.0, 310.0)],
    )
    row = parts_of(1, placed("tp2pp2"), [found], [0.001])
    names = ("forward", "backward", "optimizer", "other", "exposed", "handover", "agreement", "gap")
    assert sum(getattr(row, f"{name}_ms") for name in names) == pytest.approx(row.step_ms)
    assert row.reason is None


def test_a_rank_of_a_pipeline_waits_in_hand_overs_and_for_the_last_rank_of_the_step() -> None:
    found = step(
        [
            SeenCall("send_recv", "pp", [(0.0, 250.0)]),
            SeenCall("all_reduce", None, [(600.0, 750.0)], agrees=True),
        ],
        forward=[(250.0, 400.0)],
        backward=[(400.0, 600.0)],
        optimizer=[(750.0, 1000.0)],
    )
    row = parts_of(2, placed("tp2pp2"), [found], [0.001])
    assert row.stages == (1,)
    assert row.bubble_ms == pytest.approx(0.4)
    assert row.bubble_share == pytest.approx(0.4 / 0.75)
    assert by_op(overlaps_of(2, [found])) == {"send_recv": ("pp", 0.25, 0.25, 0.0)}


def test_what_cannot_be_told_is_none_and_said() -> None:
    found = step(
        [
            SeenCall("recv", "pp", [(100.0, 200.0)], ends=False),
            SeenCall("all_gather", "fsdp", []),
            SeenCall("all_reduce", None, [(300.0, 400.0)]),
        ]
    )
    rows = by_op(overlaps_of(0, [found]))
    assert rows["recv"] == ("pp", None, pytest.approx(0.1), None)
    assert rows["all_gather"] == ("fsdp", None, None, None)
    assert rows["all_reduce"][0] is None
    reason = parts_of(0, placed("pp2"), [found], [0.001]).reason
    assert reason is not None
    for said in (
        "the group of all_reduce is not told",
        "the end of recv is not told",
        "not every all_gather was seen",
    ):
        assert said in reason


# -- from a trace to spans


def read(trace: GpuTrace, folder: Path) -> TraceFile:
    return read_trace(trace.write(folder / "trace.json.gz"), WANTED, time.monotonic() + 60)


def test_kernels_of_a_gpu_are_of_the_part_that_launched_them(tmp_path: Path) -> None:
    """The host is ahead: forward is launched at 10 and runs at 100. Replicas sum gradients beside
    the backward pass, and the last of it alone."""
    trace, told = GpuTrace(), {"In msg nelems": 500, "dtype": "BFloat16"}
    trace.step("train", 0, 0, 1000)
    trace.add("user_annotation", "part/forward", 5, 20)
    trace.add("cpu_op", NODE, 30, 60)
    trace.add("user_annotation", "part/agree", 70, 80)
    trace.add("user_annotation", "part/optimizer", 85, 95)
    ranks = {"Process Group Ranks": "[0, 1]", "Group size": 2}
    trace.launch(10, (GEMM, 100, 300))
    trace.launch(40, (GEMM, 300, 500))
    trace.launch(50, (ALL_REDUCE, 400, 650), **{"Collective name": "allreduce", **told, **ranks})
    trace.launch(75, (ALL_REDUCE, 650, 700), **{"Collective name": "allreduce", **ranks})
    trace.launch(90, (GEMM, 700, 800))
    (found,) = steps_seen(read(trace, tmp_path), placed("dp2"), 0, "cuda", ())
    assert {name: len(spans) for name, spans in found.computing.items()} == {
        "forward": 1,
        "backward": 1,
        "optimizer": 1,
    }
    assert by_op(overlaps_of(0, [found])) == {"all_reduce": ("dp", 0.25, 0.15, pytest.approx(0.1))}
    row = parts_of(0, placed("dp2"), [found], [0.001])
    assert (row.forward_ms, row.backward_ms, row.optimizer_ms) == pytest.approx((0.2, 0.2, 0.1))
    assert (row.agreement_ms, row.gap_ms) == pytest.approx((0.05, 0.3))


def test_copies_to_and_from_main_memory_are_told_apart_whatever_runs_beside_them(
    tmp_path: Path,
) -> None:
    trace = GpuTrace()
    trace.step("train", 0, 0, 1000)
    trace.launch(10, (GEMM, 100, 300))
    trace.launch(20, ("Memcpy DtoH (Device -> Pinned)", 200, 400))
    trace.launch(30, ("Memcpy HtoD (Pinned -> Device)", 350, 500))
    trace.launch(40, ("Memcpy DtoD (Device -> Device)", 600, 700))
    (found,) = steps_seen(read(trace, tmp_path), placed("fsdp2"), 0, "cuda", ())
    row = parts_of(0, placed("fsdp2"), [found], [0.001])
    assert row.host_copy_ms == pytest.approx(0.3)
    assert row.other_ms == pytest.approx(0.5)


def test_where_the_gpu_alone_is_profiled_the_host_marks_its_ranges_by_the_same_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeRO-3 gathers beside the forward pass, and sums a norm in its update."""
    trace, marks, now = GpuTrace(), Marks(), 0.0
    monkeypatch.setattr(time, "time_ns", lambda: BASE_NS + round(1000 * now))
    with marks.kept(), marks.range("step/train/1"):
        for name, at in {"forward": 10, "backward": 40, "optimizer": 70, "agree": 90}.items():
            now = at
            with marks.range(f"part/{name}"):
                now = at + 15
        now = 110
    trace.launch(12, ("ncclDevKernel_AllGather_RING_LL()", 50, 200))
    trace.launch(20, (GEMM, 100, 300))
    trace.launch(45, (GEMM, 300, 500))
    trace.launch(50, ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL()", 450, 650))
    trace.launch(75, (ALL_REDUCE, 650, 660))
    trace.launch(80, (GEMM, 700, 800))
    trace.launch(95, (ALL_REDUCE, 800, 830))
    found, layout = read(trace, tmp_path), placed("dp2zero3")
    found.events.extend(marks.events(found.origin))
    journal = [
        Issued("all_gather", "dp"),
        Issued("reduce_scatter", "dp"),
        Issued("all_reduce", None),
    ]
    (seen,) = steps_seen(found, layout, 0, "cuda", journal)
    assert seen.window == pytest.approx((0, 110))
    assert by_op(overlaps_of(0, [seen])) == {
        "all_gather": ("dp", 0.15, 0.05, pytest.approx(0.1)),
        "reduce_scatter": ("dp", 0.2, 0.15, pytest.approx(0.05)),
    }
    assert {name: len(spans) for name, spans in seen.computing.items()} == {
        "forward": 1,
        "backward": 1,
        "optimizer": 1,
    }
    assert [call.op for call in seen.calls if call.agrees] == ["all_reduce", "all_reduce"]


def test_a_kernel_that_nothing_is_told_of_is_over_what_its_operation_is_over(
    tmp_path: Path,
) -> None:
    """One that the counted step did not call is over nobody knows what."""
    trace = GpuTrace()
    trace.step("train", 0, 0, 1000)
    trace.add("user_annotation", "part/backward", 5, 60)
    trace.add("user_annotation", "part/agree", 80, 90)
    trace.launch(10, ("ncclDevKernel_AllGather_RING_LL()", 100, 200))
    trace.launch(20, (SEND_RECV, 200, 300))
    trace.launch(30, ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL()", 300, 400))
    trace.launch(70, (ALL_REDUCE, 400, 500))
    trace.launch(85, (ALL_REDUCE, 500, 600))
    journal = [
        Issued("all_gather", "fsdp"),
        Issued("recv", "pp"),
        Issued("send", "pp"),
        Issued("reduce_scatter", "fsdp"),
    ]
    layout = placed("pp2fsdp2")
    (found,) = steps_seen(read(trace, tmp_path), layout, 0, "cuda", journal)
    assert [(call.op, call.axis, call.agrees) for call in found.calls] == [
        ("all_gather", "fsdp", False),
        ("send_recv", "pp", False),
        ("reduce_scatter", "fsdp", False),
        ("all_reduce", None, False),
        ("all_reduce", None, True),
    ]
    assert parts_of(0, layout, [found], [0.001]).reason == "the group of all_reduce is not told"


DP, TP, NUMBER = (Issued("all_reduce", axis) for axis in ("dp", "tp", None))


@pytest.mark.parametrize(
    ("device", "journal", "is_seen"),
    [
        ("cuda", [], False),
        ("cuda", [DP, Issued("all_gather", "fsdp"), DP], False),
        ("cuda", [Issued("all_gather", "dp"), NUMBER], False),
        ("cuda", [DP, NUMBER], True),
        ("cuda", [TP, DP], True),
        ("cpu", [DP], True),
    ],
)
def test_the_host_is_profiled_where_an_operation_is_over_several_axes(
    device: str, journal: list[Issued], is_seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of kernels do not tell these apart."""
    asked: list[Any] = []
    monkeypatch.setattr(torch.profiler, "profile", lambda activities, **_: asked.extend(activities))
    Watch(placed("dp2"), 0, torch.device(device), journal)
    kinds = torch.profiler.ProfilerActivity
    assert asked == [kinds.CPU] * is_seen + [kinds.CUDA] * (device == "cuda")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "schedule"),
    [("fsdp2", "1f1b"), ("pp2", "1f1b"), ("pp2", "gpipe"), ("pp2", "interleaved")],
)
def test_a_step_marks_its_backward_passes(layout: str, schedule: Any, pool: Pool) -> None:
    load = replace(load_of(layout), schedule=schedule)
    plan = training_plan(layout, shape_of("Llama", layers_of(load)), None, load)
    try:
        pool.build(plan)
        marked = pool.call("marked", [(TrainingWork(1),)] * 2)
    finally:
        pool.call("close", [()] * 2)
    for within, axes in marked:
        assert within
        assert all(one == {"part/backward"} for one in within)
        assert all(over == {layout.rstrip("2")} for over in axes.values())


def test_the_clock_of_marks_is_that_of_the_profiler(tmp_path: Path) -> None:
    marks = Marks()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        with marks.kept(), marks.range("mine"), torch.profiler.record_function("theirs"):
            time.sleep(0.01)
        with marks.range("theirs too"):  # kept no longer
            pass
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    trace = read_trace(tmp_path / "trace.json", WANTED, time.monotonic() + 60)
    (mine,) = marks.events(trace.origin)
    theirs, others = (one for one in trace.events if one.name.startswith("theirs"))
    assert (mine.name, others.name) == ("mine", "theirs too")
    assert mine.start == pytest.approx(theirs.start, abs=5e3)
    assert mine.end == pytest.approx(theirs.end, abs=5e3)


def test_a_step_of_which_no_kernel_was_seen_is_not_taken_apart(tmp_path: Path) -> None:
    trace = GpuTrace()
    trace.step("train", 0, 0, 1000)
    assert not steps_seen(read(trace, tmp_path), placed("dp2zero3"), 0, "cuda", ())


@pytest.mark.parametrize(
    ("layout", "told", "axis"),
    [
        ("tp2dp2", {"Process Group Ranks": "[0, 2]"}, "dp"),
        ("tp2dp2", {"Process Group Ranks": "[0, 1]"}, "tp"),
        ("tp2dp2", {"Process Group Ranks": "[0, 1, ..., 31]"}, None),
        ("tp2", {}, "tp"),
        ("tp2dp2", {}, None),
    ],
)
def test_the_axis_of_a_kernel_is_that_of_the_ranks_of_its_group(
    layout: str, told: Mapping[str, str], axis: str | None, tmp_path: Path
) -> None:
    trace = GpuTrace()
    trace.step("train", 0, 0, 1000)
    sizes = {"In msg nelems": 500, "dtype": "BFloat16"}
    trace.launch(50, (ALL_REDUCE, 400, 650), **{"Collective name": "allreduce", **sizes, **told})
    journal = [NUMBER, TP] if layout == "tp2" else [TP, DP]
    (found,) = steps_seen(read(trace, tmp_path), placed(layout), 0, "cuda", journal)
    assert [(call.op, call.axis) for call in found.calls] == [("all_reduce", axis)]


def test_a_group_of_one_rank_communicates_nothing(tmp_path: Path) -> None:
    trace, told = GpuTrace(), {"Collective name": "_allgather_base", "Process Group Ranks": "[0]"}
    trace.step("train", 0, 0, 1000)
    trace.launch(50, (ALL_REDUCE, 400, 650), **told)
    (found,) = steps_seen(read(trace, tmp_path), placed("tp2dp2"), 0, "cuda", ())
    assert (list(found.calls), found.computing) == ([], {"other": [(400.0, 650.0)]})
    trace.told, trace.events = False, []
    trace.step("train", 0, 0, 1000)
    trace.launch(50, (ALL_REDUCE, 400, 650))
    journal = [Issued("all_reduce", "alone")]
    (found,) = steps_seen(read(trace, tmp_path), placed("tp2dp2"), 0, "cuda", journal)
    assert (list(found.calls), found.computing) == ([], {"other": [(400.0, 650.0)]})
    trace = GpuTrace()
    trace.step("train", 0, 0, 1000)
    trace.add("cpu_op", "c10d::_allgather_base_", 100, 110)
    trace.add("user_annotation", "gloo:all_gather", 120, 400)
    journal = [Issued("all_gather", "alone")]
    (found,) = steps_seen(read(trace, tmp_path), placed("tp2dp2"), 0, "cpu", journal)
    assert not found.calls


def test_a_kernel_that_sends_and_receives_at_once_is_one_hand_over(tmp_path: Path) -> None:
    trace = GpuTrace()
    trace.step("train", 0, 0, 1000)
    trace.launch(50, (SEND_RECV, 400, 650))
    (found,) = steps_seen(read(trace, tmp_path), placed("pp2"), 0, "cuda", ())
    assert by_op(overlaps_of(0, [found])) == {"send_recv": ("pp", 0.25, 0.25, 0.0)}


def test_on_a_cpu_a_call_lasts_from_its_issue_to_the_end_that_gloo_tells(tmp_path: Path) -> None:
    """DDP waits for its own at the end of the backward pass: what runs before that hides it."""
    trace = GpuTrace()
    trace.step("train", 0, 0, 1000)
    trace.add("user_annotation", "part/forward", 0, 200)
    trace.add("cpu_op", NODE, 200, 300)
    trace.add("cpu_op", "c10d::allreduce_", 290, 295)
    trace.add("cpu_op", NODE, 300, 500)
    trace.add("user_annotation", "gloo:all_reduce", 310, 650)
    journal = [Issued("all_reduce", "dp")]
    (found,) = steps_seen(read(trace, tmp_path), placed("dp2"), 0, "cpu", journal)
    assert by_op(overlaps_of(0, [found])) == {
        "all_reduce": ("dp", pytest.approx(0.36), pytest.approx(0.15), pytest.approx(0.21))
    }
    row = parts_of(0, placed("dp2"), [found], [0.001])
    assert (row.forward_ms, row.backward_ms, row.exposed_ms) == pytest.approx((0.2, 0.3, 0.15))


def test_on_a_cpu_a_call_that_is_waited_for_is_exposed_as_long_as_that_takes(
    tmp_path: Path,
) -> None:
    trace = GpuTrace()
    trace.step("train", 0, 0, 1000)
    trace.add("cpu_op", "c10d::_allgather_base_", 100, 110)
    trace.add("user_annotation", "gloo:all_gather", 120, 400)
    trace.add("user_annotation", "part/wait", 300, 405)
    trace.add("cpu_op", "c10d::recv_", 500, 510)
    trace.add("user_annotation", "gloo:recv", 505, 800)
    trace.add("user_annotation", "part/wait", 600, 800)
    journal = [Issued("all_gather", "fsdp"), Issued("recv", "pp")]
    (found,) = steps_seen(read(trace, tmp_path), placed("pp2fsdp2"), 0, "cpu", journal)
    rows = by_op(overlaps_of(0, [found]))
    assert rows["all_gather"] == pytest.approx(("fsdp", 0.3, 0.1, 0.2))
    assert rows["recv"] == ("pp", None, pytest.approx(0.2), None)


def test_calls_in_another_order_than_the_counted_ones_have_no_axis(tmp_path: Path) -> None:
    trace = GpuTrace()
    trace.step("train", 0, 0, 1000)
    trace.add("cpu_op", "c10d::allreduce_", 100, 110)
    trace.add("user_annotation", "gloo:all_reduce", 120, 400)
    journal = [Issued("all_gather", "fsdp")]
    (found,) = steps_seen(read(trace, tmp_path), placed("fsdp2"), 0, "cpu", journal)
    assert [call.axis for call in found.calls] == [None]


# -- what is refused of fusion


@pytest.mark.parametrize(
    ("layout", "mode", "why"),
    [
        ("tp2", "selective", "it cannot select what to keep; use --fusion off"),
        ("dp2", "off", "needs a C++ compiler on CPUs"),
    ],
)
def test_what_cannot_be_fused_is_refused_in_a_line(
    layout: str, mode: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.engines import refusal
    from workers.messages import Switches

    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    load = replace(LOAD, activation_checkpointing=mode)
    asked = training_plan(layout, shape_of("Llama"), None, load, switches=Switches(fusion="on"))
    reason = refusal("torch", asked)
    assert reason is not None
    assert why in reason
    assert "\n" not in reason
