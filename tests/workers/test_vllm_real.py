"""The engine `vllm` with a real vLLM on the CPU: `make test-vllm` runs it. Skipped without vLLM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from ranks import engine_plan

from orchestrator.analysis.observed.accounting import (
    PARTS_OF_STEP,
    TIMED,
    PartsRow,
    TimedRow,
    account,
)
from orchestrator.plan import models
from orchestrator.store.arrow_files import concat
from orchestrator.store.store import Store
from strategies import Load, Topology, plan_layout
from workers.actor import Worker
from workers.messages import RankReport, Request, Work
from workers.records import COMPUTE, DECODE, PREFILL

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.ranks, pytest.mark.timeout(600)]

GONE_S = 15.0  # within which nothing is left of a worker that was killed
WORK = Work(tuple(Request(i, tuple(range(5 + i, 37 + i)), 8) for i in range(6)), 2)


OBSERVED = replace(WORK, observe=True)


def served(
    engine: str, layout: str, runs: Sequence[Work] = (WORK,), ablation: str = "none"
) -> list[list[RankReport]]:
    """What an engine in this process reports of each run. Its variables go with it: the nodes that
    a later test starts would have them."""
    before = dict(os.environ)
    model = models.resolve("tiny", "auto")
    plan = engine_plan(
        layout, model.shape, model.checkpoint, runs[0], timeout_s=600.0, ablation=ablation
    )
    worker = Worker()
    try:
        worker.build(engine, plan, None)
        answers = [worker.run(work) for work in runs]
    finally:
        worker.close()
        os.environ.clear()
        os.environ.update(before)
    return [[one] if isinstance(one, RankReport) else list(one) for one in answers]


@pytest.fixture(scope="module")
def of_torch() -> list[list[int]]:
    """The tokens that the engine torch makes."""
    return tokens(served("torch", "tp1")[0])


def tokens(reports: list[RankReport]) -> list[list[int]]:
    assert reports[0].requests is not None
    found: list[list[int]] = reports[0].requests["output_token_ids"].to_pylist()
    return found


@pytest.mark.parametrize("layout", ["tp1", "tp2"])
def test_every_run_makes_the_tokens_of_torch_and_tells_its_steps(
    layout: str, of_torch: list[list[int]]
) -> None:
    ranks = int(layout[-1])
    *runs, observed = served("vllm", layout, (WORK, WORK, OBSERVED))
    assert tokens(observed) == of_torch
    assert_booked(observed, layout)
    for reports in runs:
        assert {one.spans for one in reports} == {None}
        assert [one.rank for one in reports] == [*range(ranks)]
        assert tokens(reports) == of_torch
        assert [one.requests is None for one in reports[1:]] == [True] * (len(reports) - 1)
        for report in reports:
            steps = report.steps.to_pylist()
            asked = sum(len(one.prompt) + one.output_len - 1 for one in WORK.requests)
            assert sum(one["num_tokens"] for one in steps) == asked
            assert {one["phase"] for one in steps} == {PREFILL, DECODE}
            assert max(one["num_requests"] for one in steps) == WORK.max_concurrency
            assert report.peak_memory_bytes > 0


# Conversations of three and two turns; every prompt begins with those that are shorter.
# On a CPU a block of the prefix cache has 128 tokens: one, two and one are found again.
BLOCK = 128
WORDS = tuple(range(5, 405))
TALKS = tuple(
    Request(index, WORDS[:length], 8, at, after)
    for index, length, at, after in (
        (0, 200, 0.2, None),
        (1, 300, 0.0, 0),
        (2, 400, 0.0, 1),
        (3, 130, 0.6, None),
        (4, 260, 0.0, 3),
    )
)


def test_turns_follow_their_replies_at_their_times_and_find_their_own_prompts_cached() -> None:
    open_ = Work(TALKS, 2, reuse="conversation")
    closed = replace(open_, requests=tuple(replace(one, arrival_s=0.0) for one in TALKS))
    alone = Work(tuple(replace(one, after=None) for one in closed.requests), 1)
    of_torch = tokens(served("torch", "tp1", (closed,))[0])
    asked = sum(len(one.prompt) + one.output_len - 1 for one in TALKS)
    reports = [one for (one,) in served("vllm", "tp1", (open_, closed, alone))]
    assert [tokens([one]) for one in reports] == [of_torch] * 3
    for report in reports[:2]:
        rows = rows_of(report)
        for turn, reply in ((1, 0), (2, 1), (4, 3)):
            assert rows[turn]["arrival_s"] == rows[reply]["token_times_s"][-1]
            assert rows[turn]["token_times_s"][0] > rows[turn]["arrival_s"]
        assert tokens_read(report) == asked - 4 * BLOCK
    timed = rows_of(reports[0])
    assert [timed[index]["arrival_s"] for index in (0, 3)] == [0.2, 0.6]
    assert all(0 <= row["admitted_s"] - row["arrival_s"] < 0.2 for row in timed)
    assert tokens_read(reports[2]) == asked  # a conversation finds nothing of another one


def rows_of(report: RankReport) -> list[dict[str, Any]]:
    assert report.requests is not None
    found: list[dict[str, Any]] = report.requests.to_pylist()
    return found


def tokens_read(report: RankReport) -> int:
    """Tokens that went through the model."""
    return sum(one["num_tokens"] for one in report.steps.to_pylist())


def assert_booked(reports: list[RankReport], layout: str) -> None:
    """Every step of an observed run is taken apart, and communication is in it under tp2."""
    assert [one.unobserved for one in reports] == [None] * len(reports)
    shape = models.resolve("tiny", "auto").shape
    placement = plan_layout(layout, shape, Load(1, 1, 1), Topology.uniform(len(reports))).placement
    tables = account(concat(one.spans for one in reports), placement)
    for one in reports:
        assert one.spans is not None
        taken = {(row["step"], row["phase"]) for row in one.steps.to_pylist()}
        assert taken == {(row["step"], row["phase"]) for row in one.spans.to_pylist()}
    rows = PARTS_OF_STEP.rows(tables["parts"])
    assert {(row.rank, row.phase) for row in rows} == {
        (one.rank, phase) for one in reports for phase in (PREFILL, DECODE)
    }
    for row in rows:
        assert (row.steps_unmatched, row.reason) == (0, None)
        assert row.compute_ms is not None
        assert row.compute_ms > 0
        assert (row.exposed_transfer_ms or 0) > 0 or layout == "tp1"
    calls = {(row.op, row.calls / kept(rows, row)) for row in TIMED.rows(tables[TIMED.name])}
    reductions = ("all_reduce", 2 * shape.num_layers + 1)
    assert calls == ({reductions, ("all_gather", 1)} if layout == "tp2" else set())


def kept(rows: Sequence[PartsRow], of: TimedRow) -> int:
    """Steps that count of the rank and phase of a row of calls."""
    (steps,) = (row.steps for row in rows if (row.rank, row.phase) == (of.rank, of.phase))
    return steps


def test_without_communication_a_step_has_none(of_torch: list[list[int]]) -> None:
    (reports,) = served("vllm", "tp2", (OBSERVED,), ablation="comm")
    assert tokens(reports) != of_torch
    for one in reports:
        assert one.spans is not None
        assert set(one.spans.column("kind").to_pylist()) == {COMPUTE}


def test_no_process_is_left_when_the_worker_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent.parent / 'support')!r})\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "if __name__ == '__main__':\n"
        "    from ranks import engine_plan\n"
        "    from test_vllm_real import WORK, Worker, models\n"
        "    model = models.resolve('tiny', 'auto')\n"
        "    plan = engine_plan('tp2', model.shape, model.checkpoint, WORK, timeout_s=600.0)\n"
        "    Worker().build('vllm', plan, None)\n"
        "    print('built', flush=True)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "killed.py").write_text(script)
    command = [sys.executable, str(tmp_path / "killed.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert any(line == "built\n" for line in worker.stdout)
        left = psutil.Process(worker.pid).children(recursive=True)
        assert len(left) >= 3  # the engine core and two workers
        os.kill(worker.pid, signal.SIGKILL)
        began = time.monotonic()
        _, alive = psutil.wait_procs(left, timeout=GONE_S)
        assert not alive, f"{alive} after {time.monotonic() - began:.0f} s"


def test_replicas_serve_beside_the_engine_torch_with_equal_tokens(tmp_path: Path) -> None:
    asked = "--engine torch,vllm --strategy dp2 --device cpu --input-len 32 --output-len 8 "
    more = "--max-concurrency 2 --num-prompts 4 --num-warmups 1 --save-detailed --result-dir"
    command = [sys.executable, "-m", "orchestrator", "submit", *(asked + more).split()]
    subprocess.run([*command, str(tmp_path)], check=True, timeout=500)
    (folder,) = tmp_path.iterdir()
    store = Store(folder)
    requests, steps = store.read("requests"), store.read("steps")
    assert requests is not None
    assert steps is not None
    made: dict[str, list[list[int]]] = {}
    for row in requests.sort_by("request_index").to_pylist():
        made.setdefault(row["engine"], []).append(row["output_token_ids"])
    assert len(made["torch"]) == 4
    assert made["vllm"] == made["torch"]
    assert {row["rank"] for row in steps.to_pylist() if row["engine"] == "vllm"} == {0, 1}
    settings = store.manifest()["engine_settings"]["tiny.dp2.vllm.float32"]
    assert "max_num_seqs" not in settings
    assert settings["resolved.cache_config.enable_prefix_caching"] == "True"
