"""What a step of vLLM consists of, from the traces of its workers: recorded ones of a CPU, and such
as a GPU's in their form, with times that are known."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpu_traces import ALL_REDUCE, GEMM, PHASES, SEND_RECV, GpuTrace, first_stage, last_stage

from orchestrator.analysis.observed.accounting import PARTS_OF_STEP, TIMED, account
from orchestrator.analysis.observed.communication import step_parts_of
from orchestrator.plan import models
from orchestrator.store.arrow_files import concat
from strategies import Load, Topology, plan_layout
from strategies.placement import Placement
from workers.engines.vllm.spans import WANTED, spans_of
from workers.engines.vllm.window import NO_TRACE, Seen, Window
from workers.intervals import intersect, union
from workers.probes import trace_files
from workers.probes.trace_files import TraceFile, read_trace
from workers.records import COMPUTE, DECODE, PREFILL, SPANS, STALL, SpanRow

RECORDED = Path(__file__).parent / "vllm_traces"  # steps 2 to 6 of a run of the preset tiny
LAYERS = 4


def placed(layout: str, ranks: int) -> Placement:
    shape = models.resolve("tiny", "dummy").shape
    return plan_layout(layout, shape, Load(1, 1, 1), Topology.uniform(ranks)).placement


def read(path: Path, device: str) -> TraceFile:
    return read_trace(path, WANTED[device], time.monotonic() + 60)


def recorded(layout: str, rank: int) -> list[SpanRow]:
    (path,) = (RECORDED / layout).glob(f"rank{rank}.*")
    placement = placed(layout, int(layout[-1]))
    return SPANS.rows(spans_of(rank, read(path, "cpu"), placement, "cpu"))


# -- recorded on a CPU


@pytest.mark.parametrize("rank", [0, 1])
def test_collectives_of_a_step_come_from_the_trace_in_their_order(rank: int) -> None:
    spans = recorded("tp2", rank)
    steps = dict.fromkeys((span.step, span.phase) for span in spans)
    assert list(steps) == [(2, PREFILL), (3, PREFILL), (4, PREFILL), (5, DECODE), (6, PREFILL)]
    for step, _ in steps:
        calls = [one for one in spans if one.step == step and one.kind != COMPUTE]
        # Of the embedding, of attention and of the MLP of each layer; the logits are gathered.
        assert [one.kind for one in calls] == ["all_reduce"] * (2 * LAYERS + 1) + ["all_gather"]
        assert {(one.axis, one.bytes, one.call_step) for one in calls} == {("tp", None, step)}


def test_a_single_rank_only_computes() -> None:
    assert {span.kind for span in recorded("tp1", 0)} == {COMPUTE}


def test_what_communicates_within_an_operator_is_not_computed_too() -> None:
    spans = recorded("tp2", 0)
    computing = union(one.when for one in spans if one.kind == COMPUTE and one.when)
    others = union(one.when for one in spans if one.kind != COMPUTE and one.when)
    assert computing
    assert others
    assert intersect(computing, others) == []


def test_the_same_analysis_books_communication_of_both_ranks() -> None:
    spans = SPANS.make([*recorded("tp2", 0), *recorded("tp2", 1)])
    tables = account(spans, placed("tp2", 2))
    for row in PARTS_OF_STEP.rows(tables["parts"]):
        assert (row.steps_unmatched, row.reason) == (0, None)
        assert row.exposed_transfer_ms is not None
        assert row.exposed_transfer_ms > 0
        assert row.compute_ms is not None
        assert row.compute_ms > 0
    calls = {(row.rank, row.phase, row.op): row.calls for row in TIMED.rows(tables[TIMED.name])}
    assert calls[0, DECODE, "all_reduce"] == calls[1, DECODE, "all_reduce"] == 2 * LAYERS + 1


# -- as on GPUs


def traces(folder: Path, told: bool = True) -> list[Path]:
    """Of the ranks of tp2pp2. Each process has a clock of its own."""
    late = (0.0, 10.0)
    made = [first_stage(GpuTrace(7000 * i, told), late[i]) for i in (0, 1)]
    made += [last_stage(GpuTrace(7000 * i, told)) for i in (2, 3)]
    name = "dp0_pp{}_tp{}_dcp0_ep0_rank{}.1795707725357783611.pt.trace.json.gz"
    return [one.write(folder / name.format(i // 2, i % 2, i)) for i, one in enumerate(made)]


def accounted(paths: list[Path], layout: str = "tp2pp2") -> dict[str, Any]:
    placement = placed(layout, len(paths))
    found = [spans_of(i, read(path, "cuda"), placement, "cuda") for i, path in enumerate(paths)]
    return account(concat(found), placement)


# Microseconds of a decode step: compute, transfer, wait, bubble, fused, gap.
FIRST = (300, 55, 10, 395, 40, 200)  # tp rank 0 waits for tp rank 1, which computes longer
SECOND = (310, 55, 0, 395, 40, 200)
LAST = (365, 65, 0, 360, 0, 210)  # of its bubble 290 on the host, before it launches a receive


def test_the_parts_of_a_step_are_those_of_its_kernels(tmp_path: Path) -> None:
    tables = accounted(traces(tmp_path))
    parts = ("compute", "exposed_transfer", "exposed_wait", "bubble", "fused", "launch_gap")
    for row in PARTS_OF_STEP.rows(tables["parts"]):
        assert (row.steps_unmatched, row.reason) == (0, None)
        assert row.steps == (3 if row.phase == DECODE else 1)
        assert row.step_ms == pytest.approx(1.0, abs=1e-4)
        found = [1e3 * getattr(row, f"{part}_ms") for part in parts]
        assert found == pytest.approx((FIRST, SECOND, LAST, LAST)[row.rank], abs=0.1)
        assert row.wait_compute_ms == row.exposed_wait_ms


def test_a_stage_whose_host_waits_before_it_launches_its_receive_is_in_a_bubble(
    tmp_path: Path,
) -> None:
    paths = traces(tmp_path)
    spans = SPANS.rows(spans_of(3, read(paths[3], "cuda"), placed("tp2pp2", 4), "cuda"))
    waits = [one for one in spans if one.kind == STALL]
    assert [one.step for one in waits] == [step for step in range(len(PHASES)) for _ in "12"]
    assert {(one.axis, one.fused, one.bytes) for one in waits} == {(None, None, None)}
    took = [one.when[1] - one.when[0] for one in waits if one.when]
    assert took == pytest.approx([242, 48] * len(PHASES), abs=0.1)
    (receives,) = (
        row
        for row in TIMED.rows(accounted(paths)[TIMED.name])
        if (row.rank, row.phase, row.op) == (3, DECODE, "recv")
    )
    assert receives.wait_us == pytest.approx(70, abs=0.1)  # the call's own


def test_sends_are_matched_with_receives_and_bytes_are_known_where_the_trace_tells_them(
    tmp_path: Path,
) -> None:
    rows = TIMED.rows(accounted(traces(tmp_path))[TIMED.name])
    of = {(row.rank, row.op): row for row in rows if row.phase == DECODE}
    assert set(of) == {
        *((rank, op) for rank in (0, 1) for op in ("all_reduce", "send", "broadcast")),
        *(
            (rank, op)
            for rank in (2, 3)
            for op in ("all_reduce", "all_gather", "recv", "broadcast")
        ),
    }
    for sender, receiver in ((0, 2), (1, 3)):
        for row in (of[sender, "send"], of[receiver, "recv"]):
            assert (row.calls, row.bytes, row.axis) == (3, 3 * 4096, "pp")
            assert row.transfer_us == pytest.approx(20, abs=0.1)
            assert row.algbw == pytest.approx(4096 / 20 / 1e3, rel=0.01)
    assert (of[0, "broadcast"].bytes, of[0, "broadcast"].axis) == (3 * 32, "pp")
    assert (of[0, "all_reduce"].calls, of[0, "all_reduce"].axis) == (6, "tp")
    assert of[2, "all_reduce"].bytes is of[2, "all_reduce"].algbw is None  # in a graph
    assert of[2, "all_reduce"].transfer_us == pytest.approx(20, abs=0.1)


def test_where_the_trace_tells_nothing_of_them_the_first_stage_sends_and_the_last_receives(
    tmp_path: Path,
) -> None:
    rows = TIMED.rows(accounted(traces(tmp_path, told=False))[TIMED.name])
    found = {(row.rank, row.op, row.bytes) for row in rows if row.op in ("send", "recv")}
    assert found == {(0, "send", None), (1, "send", None), (2, "recv", None), (3, "recv", None)}


def test_of_a_stage_in_the_middle_it_is_not_known_which_is_which(tmp_path: Path) -> None:
    trace = GpuTrace(told=False)
    trace.step(DECODE, 0, 0, 50)
    trace.launch(10, (SEND_RECV, 20, 30))
    placement = placed("pp4", 4)
    found = read(trace.write(tmp_path / "trace.json.gz"), "cuda")
    (span,) = SPANS.rows(spans_of(1, found, placement, "cuda"))
    assert (span.kind, span.axis) == ("other", None)


def test_a_step_lasts_until_the_next_one_begins_be_it_without_tokens(tmp_path: Path) -> None:
    path = traces(tmp_path)[0]
    spans = SPANS.rows(spans_of(0, read(path, "cuda"), placed("tp2pp2", 4), "cuda"))
    assert {one.step for one in spans if one.kind == "broadcast"} == set(range(len(PHASES)))
    last = max(one.end_us for one in spans if one.end_us)
    assert last - min(one.start_us for one in spans if one.start_us) == pytest.approx(6800, abs=0.1)


def test_a_communicating_kernel_on_a_device_alone_is_not_guessed_at(tmp_path: Path) -> None:
    trace = GpuTrace()
    for number in (0, 1):
        t = 100 * number
        trace.step(DECODE, number, t, t + 50)
        trace.launch(t + 10, (GEMM, t + 20, t + 30))
        trace.launch(t + 11, (ALL_REDUCE, t + 30, t + 40))
    (row,) = PARTS_OF_STEP.rows(accounted([trace.write(tmp_path / "t.json.gz")], "tp1")["parts"])
    assert (row.step_ms, row.reason) == (
        None,
        "a kernel of all_reduce ran that fits none of the calls",
    )


# -- reading


def text_of(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_files, "PIECE", 37)


@pytest.mark.usefixtures("small_pieces")
def test_a_trace_is_read_piece_by_piece(tmp_path: Path) -> None:
    path = last_stage(GpuTrace(ahead_us=5)).write(tmp_path / "trace.json.gz")
    found = read(path, "cuda")
    whole = json.loads(text_of(path))
    kept = [one for one in whole["traceEvents"] if one.get("cat") in WANTED["cuda"]]
    assert [one.name for one in found.events] == [one["name"] for one in kept]
    assert [one.start for one in found.events] == [one["ts"] for one in kept]
    assert found.origin == trace_files.origin_us(whole["baseTimeNanoseconds"])
    plain = tmp_path / "trace.json"  # and where its base follows the events
    plain.write_text(json.dumps(dict(sorted(whole.items(), key=lambda one: one[0] < "c"))))
    assert read(plain, "cuda") == found


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda text: text[: len(text) // 2], "cut short"),
        (lambda text: text.replace('"ph"', "ph", 40), "not JSON"),
        (lambda text: text.replace("traceEvents", "events"), "has no events"),
        (lambda text: "", "has no events"),
    ],
)
def test_what_is_no_whole_trace_is_an_error(
    spoil: Callable[[str], str], error: str, tmp_path: Path
) -> None:
    path = last_stage(GpuTrace()).write(tmp_path / "trace.json.gz")
    spoiled = tmp_path / "spoiled.json"
    spoiled.write_text(spoil(text_of(path)))
    with pytest.raises(ValueError, match=error):
        read(spoiled, "cuda")


def test_reading_ends_when_there_is_no_time_left(tmp_path: Path) -> None:
    path = last_stage(GpuTrace()).write(tmp_path / "trace.json.gz")
    with pytest.raises(TimeoutError, match="no time left"):
        read_trace(path, WANTED["cuda"], time.monotonic() - 1)


# -- a window


class FakeEngine:
    """An LLMEngine whose profiler leaves `left` in `folder`.

    fails: "start" or "stop": what its workers' profilers cannot do. As vLLM's they warn of it and
    raise nothing. "calls start" or "calls stop": that call of the workers raises.
    """

    def __init__(self, folder: Path, left: list[Path], fails: str = "") -> None:
        self.folder, self.left, self.fails = folder, left, fails
        self.stopped = False

    def start_profile(self) -> None:
        if self.fails == "calls start":
            raise RuntimeError("no CUPTI")

    def stop_profile(self) -> None:
        self.stopped = True
        if self.fails == "calls stop":
            raise RuntimeError("no disk\nand more")
        for path in () if self.fails in ("start", "stop") else self.left:
            shutil.copy(path, self.folder / path.name)


def seen(folder: Path, left: list[Path], fails: str = "", timeout_s: float = 60.0) -> list[Seen]:
    """What is seen of ranks 4 to 7, those of the second replica."""
    mine = folder / "traces"
    mine.mkdir()
    (mine / "rank0.1.pt.trace.json.gz").write_text("of the window before")
    engine = FakeEngine(mine, left, fails)
    window = Window.of(engine, mine, timeout_s)
    with window.watching():
        pass
    assert engine.stopped
    found = window.seen(range(4, 8), placed("dp2tp2pp2", 8), "cuda")
    assert list(mine.iterdir()) == []  # traces are large
    return found


def test_each_rank_of_a_replica_is_seen_by_its_own_trace(tmp_path: Path) -> None:
    found = seen(tmp_path, traces(tmp_path / "left"))
    assert [one.reason for one in found] == [None] * 4
    ranks = [set(one.spans.column("rank").to_pylist()) for one in found if one.spans]
    assert ranks == [{4}, {5}, {6}, {7}]
    kinds = [Counter(one.spans.column("kind").to_pylist()) for one in found if one.spans]
    assert [one["send"] for one in kinds] == [7, 7, 0, 0]


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        ("start", NO_TRACE),
        ("stop", NO_TRACE),
        ("calls stop", "vLLM's profiler did not stop: RuntimeError: no disk"),
    ],
)
def test_a_profiler_that_fails_is_a_reason_and_no_failed_run(
    fails: str, reason: str, tmp_path: Path
) -> None:
    found = seen(tmp_path, traces(tmp_path / "left"), fails)
    assert [(one.spans, one.reason) for one in found] == [(None, reason)] * 4


def test_workers_that_could_start_are_seen_where_another_one_could_not(tmp_path: Path) -> None:
    reasons = [one.reason for one in seen(tmp_path, traces(tmp_path / "l")[1:], "calls start")]
    assert reasons == ["vLLM's profiler did not start: RuntimeError: no CUPTI", None, None, None]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_folder_that_cannot_be_had_is_a_reason_and_no_failed_run(
    when: str, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    if when == "before":
        place.write_text("a file")
    window = Window.of(FakeEngine(place / "traces", []), place / "traces", 60.0)
    with window.watching():
        pass
    shutil.rmtree(place, ignore_errors=True)
    (found,) = window.seen([0], placed("tp1", 1), "cuda")
    assert found.reason is not None
    assert found.reason.startswith(
        {
            "before": "no folder could be made for vLLM's traces: NotADirectoryError",
            "after": "the folder of vLLM's traces could not be read: FileNotFoundError",
        }[when]
    )


def test_a_trace_that_is_missing_or_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    left = traces(tmp_path / "left")
    left.pop(0)
    left[0].write_bytes(left[0].read_bytes()[:500])
    GpuTrace().write(left[1])
    reasons = [one.reason or "" for one in seen(tmp_path, left)]
    assert reasons[0] == NO_TRACE
    assert reasons[1].startswith("its trace could not be read: EOFError")
    assert reasons[2] == "its trace could not be read: ValueError: no step is marked in it"
    assert reasons[3] == ""


def test_no_trace_is_read_past_the_time_of_the_run(tmp_path: Path) -> None:
    for one in seen(tmp_path, traces(tmp_path / "left"), timeout_s=-10.0):
        assert one.reason is not None
        assert "TimeoutError: there was no time left to read it" in one.reason


def test_why_a_rank_was_not_seen_is_why_its_step_is_null(tmp_path: Path) -> None:
    paths = traces(tmp_path)[:2]
    placement = placed("tp2", 2)
    spans = spans_of(0, read(paths[0], "cuda"), placement, "cuda")
    tables = account(spans, placement, unseen={1: "its trace could not be read"})
    rows = PARTS_OF_STEP.rows(tables["parts"])
    assert {(row.rank, row.steps) for row in rows} == {(0, 0), (1, 0)}
    alone = [row for row in rows if row.rank == 1]
    step = step_parts_of(alone).decode
    assert step.step_reason == "no step of rank 1 is left: its trace could not be read"
    assert (step.step_ms, step.comm_exposed.ms) == (None, None)
    other = step_parts_of([replace(row) for row in rows if row.rank == 0]).decode
    assert "ranks do not agree" in (other.step_reason or "")
