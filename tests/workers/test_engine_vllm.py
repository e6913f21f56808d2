"""The engine `vllm`, as far as it goes without vLLM: what it is given, what it refuses, the closed
loop, its tables, and what ends its processes."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from ranks import engine_plan
from tables import make

from orchestrator.cluster.room import bundles_for
from orchestrator.errors import UserError
from orchestrator.plan import models, planning
from strategies import Split, Topology
from strategies.shapes import Device
from workers import engines
from workers.actor import Worker
from workers.engines.vllm import run as vllm_run
from workers.engines.vllm import settings as vllm_settings
from workers.engines.vllm import worker as vllm_worker
from workers.engines.vllm.ablation import ABLATED, leave_out_communication
from workers.engines.vllm.dummy_model import dummy_model
from workers.engines.vllm.engine import OutOfMemoryError, VllmEngine, VllmFailed, failure, held
from workers.engines.vllm.run import Watch, requests_table, serve, steps_table
from workers.engines.vllm.settings import across_nodes, arguments, environment, refusal
from workers.engines.vllm.worker import OWNER, ErrorFile, Recorder, attend, counts_of
from workers.messages import EnginePlan, RankReport, Request, Switches, Work
from workers.progress import Progress
from workers.records import DECODE, PREFILL, STEPS

WORK = Work(tuple(Request(i, tuple(range(4 + i)), 3) for i in range(5)), 2)


def plan(layout: str = "tp1", **changes: Any) -> EnginePlan:
    return engine_plan(layout, models.resolve("tiny", "dummy").shape, None, WORK, **changes)


# -- what it is given


def test_vllm_gets_what_our_options_say_and_keeps_its_defaults_else() -> None:
    asked = plan("dp2tp2pp2", device="cuda", max_concurrency=5, prefill_tokens=2048)
    assert arguments(asked, "folder") == {
        "model": "folder",
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "seed": 0,
        "max_model_len": asked.max_len,
        "profiler_config": vllm_settings.PROFILER,
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "distributed_executor_backend": "mp",
        "worker_extension_cls": vllm_settings.EXTENSION,
    }


@pytest.mark.parametrize(
    ("device", "concurrency", "given"),
    [("cuda", 100, None), ("cuda", 256, None), ("cuda", 300, 512), ("cpu", 129, 256)],
)
def test_it_has_its_own_number_of_seats_unless_these_are_too_few(
    device: str, concurrency: int, given: int | None
) -> None:
    asked = plan(device=device, max_concurrency=concurrency)
    assert arguments(asked, "folder").get("max_num_seqs") == given


def test_a_pass_has_the_tokens_that_were_asked_for() -> None:
    asked = plan(switches=Switches(chunked_prefill_size="64"), prefill_tokens=64)
    assert arguments(asked, "folder")["max_num_batched_tokens"] == 64


def test_prompts_stay_whole_where_they_are_not_to_be_cut() -> None:
    given = arguments(
        plan(switches=Switches(chunked_prefill_size="off"), prefill_tokens=1), "folder"
    )
    assert (given["enable_chunked_prefill"], given["max_num_batched_tokens"]) == (False, 11)


def test_links_that_are_left_out_are_not_used_by_its_own_all_reduce_either() -> None:
    assert arguments(plan("tp2", device="cuda", ablation="p2p"), "")["disable_custom_all_reduce"]
    assert "disable_custom_all_reduce" not in arguments(plan("tp2", device="cuda"), "")


FUSED = "fuse_allreduce_rms"


def test_where_communication_is_left_out_nothing_is_fused_with_it_in_either_run() -> None:
    whole = plan("tp2", device="cuda", ablations=("comm",))
    assert "compilation_config" not in arguments(replace(whole, ablations=("p2p",)), "")
    for one in (whole, replace(whole, ablation="comm")):
        assert arguments(one, "")["compilation_config"] == {"pass_config": {FUSED: False}}
    asked = (("compilation_config", '{"mode": 3, "pass_config": {"fuse_norm_quant": true}}'),)
    assert arguments(replace(whole, engine_args=asked), "")["compilation_config"] == {
        "mode": 3,
        "pass_config": {"fuse_norm_quant": True, FUSED: False},
    }
    assert [environment(replace(whole, ablation=what))[ABLATED] for what in ("none", "comm")] == [
        "none",
        "comm",
    ]


def test_what_is_left_out_gives_outputs_of_the_right_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    class GroupCoordinator:
        world_size = 2
        _all_reduce_out_place = _all_gather_out_place = None

    _vllm_with(monkeypatch, GroupCoordinator)
    leave_out_communication()
    group, x = GroupCoordinator(), torch.ones(3, 4)
    assert group._all_reduce_out_place(x) is x  # on a CPU
    there = x.to("meta")
    summed = group._all_reduce_out_place(there)
    assert summed is not there
    assert (summed.shape, summed.device.type) == ((3, 4), "meta")
    assert group._all_gather_out_place(x, -1).shape == (3, 8)
    assert group._all_gather_out_place(x, 0).shape == (6, 4)


@pytest.mark.parametrize("ablation", ["comm", "none"])
def test_each_worker_tells_what_it_leaves_out(
    ablation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class GroupCoordinator:
        _all_reduce_out_place = _all_gather_out_place = None

    _vllm_with(monkeypatch, GroupCoordinator)
    monkeypatch.delenv(OWNER, raising=False)
    monkeypatch.setenv(ABLATED, ablation)
    attend()
    recorder = Recorder()
    recorder.model_runner = SimpleNamespace(get_model=lambda: torch.nn.Linear(2, 3))  # type: ignore[attr-defined]
    told = recorder.orchestrator_built()
    assert told == {"parameter_bytes": 9 * 4, "left_out": ablation}


def test_communication_is_left_out_whatever_the_owners_number_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On another node a worker may have the number that the owner has on its own."""
    called: list[str] = []
    monkeypatch.setattr(vllm_worker, "leave_out_communication", lambda: called.append("comm"))
    monkeypatch.setenv(OWNER, str(os.getpid()))
    monkeypatch.setenv(ABLATED, "comm")
    attend()
    monkeypatch.setenv(ABLATED, "none")
    attend()
    assert called == ["comm"]


@pytest.mark.parametrize(
    ("ablation", "left_out", "wrong"),
    [
        ("comm", ("comm", "comm"), None),
        ("comm", ("comm", "none"), 3),
        ("none", ("none", "none"), None),
        ("p2p", ("none", "none"), None),
        ("p2p", ("comm", "none"), 2),
    ],
)
def test_a_run_that_does_not_leave_out_what_it_should_fails(
    ablation: str, left_out: tuple[str, str], wrong: int | None
) -> None:
    engine = VllmEngine()
    asked = plan("dp2tp2", device="cuda", ablation=ablation)
    engine._plan = asked
    engine._context = _context(asked, 2)
    engine._engine = SimpleNamespace(vllm_config=SimpleNamespace(cache_config=_CACHE))
    told = [{"parameter_bytes": 7, "left_out": one} for one in left_out]
    if wrong is None:
        built = engine._built(1.0, told, {})
        assert [(one.rank, one.weight_bytes) for one in built] == [(2, 7), (3, 7)]
    else:
        with pytest.raises(VllmFailed, match=f"rank {wrong} leaves out .*{ABLATED}"):
            engine._built(1.0, told, {})


_CACHE = SimpleNamespace(kv_cache_size_tokens=64)


def _context(asked: EnginePlan, rank: int) -> Any:
    return SimpleNamespace(
        rank=rank, placement=asked.placement, device=torch.device("cpu"), at=lambda axis: 0
    )


def test_rays_workers_get_the_variable_of_an_ablation_beside_those_of_the_user() -> None:
    assert across_nodes((3, 1)) == {
        "VLLM_RAY_BUNDLE_INDICES": "3,1",
        "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY": ABLATED,
    }
    twice = across_nodes((0,), across_nodes((0,), "A,B")["VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"])
    assert twice["VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"] == f"A,B,{ABLATED}"


def test_a_vllm_that_calls_its_collectives_by_other_names_is_not_ablated_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _vllm_with(monkeypatch, type("GroupCoordinator", (), {}))
    with pytest.raises(RuntimeError, match="has no GroupCoordinator"):
        leave_out_communication()


def _vllm_with(monkeypatch: pytest.MonkeyPatch, coordinator: type) -> None:
    state = SimpleNamespace(GroupCoordinator=coordinator)
    for name in ("vllm", "vllm.distributed"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.distributed.parallel_state", state)


def test_every_start_of_a_model_of_dummy_weights_has_its_config_at_the_same_path(
    tmp_path: Path,
) -> None:
    """vLLM keys what it has compiled by that path."""
    one, other = plan().model, replace(plan().model, num_layers=1)
    folder = dummy_model(one, tmp_path)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == one.num_layers
    made = (folder / "config.json").stat().st_ino
    assert dummy_model(replace(one), tmp_path) == folder != dummy_model(other, tmp_path)
    assert (folder / "config.json").stat().st_ino == made
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_setting_is_json_or_else_a_text() -> None:
    texts = (("a", "0.8"), ("b", "true"), ("c", '{"mode": 3}'), ("d", "fp8"))
    given = arguments(plan(engine_args=texts), "")
    assert [given[name] for name in "abcd"] == [0.8, True, {"mode": 3}, "fp8"]


def test_on_a_cpu_there_is_room_for_the_kv_of_every_seat() -> None:
    token = 2 * 8 * models.resolve("llama-8b", "dummy").shape.head_dim * 4 * 32
    asked = replace(plan(), model=models.resolve("llama-8b", "dummy").shape, max_len=4096)
    asked = replace(asked, placement=replace(asked.placement, stages=(_stage(32),)))
    room = int(environment(replace(asked, max_concurrency=8))["VLLM_CPU_KVCACHE_SPACE"])
    assert room * 2**30 >= 8 * 4096 * token > (room - 2) * 2**30


def _stage(layers: int) -> Any:
    from strategies import Stage

    return Stage(0, range(layers), embed=True, head=True)


def test_weights_are_those_of_the_layout_where_vllm_packs_them_out_of_sight() -> None:
    whole, half = held(plan("tp1"), 0, 7), held(plan("tp2"), 0, 7)
    assert held(plan(device="cuda"), 0, 7) == 7
    assert 7 < half < whole < 2 * half


# -- what it refuses


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_settings, "_installed", lambda plan: None)
    monkeypatch.setattr(vllm_settings, "known_arguments", lambda: frozenset({"block_size", "seed"}))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (plan("tp2"), None),
        (plan("dp2tp2pp2", device="cuda"), None),
        (plan(engine_args=(("block_size", "32"),)), None),
        (plan("pp2"), "on a CPU it does not do pipeline stages (pp)"),
        (plan(nsys_dir="/tmp"), "its processes do not run under Nsight Systems"),
        (
            plan(engine_args=(("seed", "1"),)),
            "--engine-arg seed is not its to set; it follows --seed",
        ),
        (
            plan(engine_args=(("block-size", "1"),)),
            "it has no setting block-size (--engine-arg); the nearest is block_size",
        ),
        (
            plan(engine_args=(("speed", "1"),)),
            "it has no setting speed (--engine-arg); its EngineArgs names them",
        ),
        (
            replace(plan("tp2"), placement=replace(plan("tp2").placement, devices=(1, 0))),
            "it cuts a model as tp2pp1dp1 does, and tp2 cuts it in another way",
        ),
        (
            replace(plan(), placement=replace(plan().placement, params={"x": (Split("tp", 0),)})),
            "it cuts a model as tp1pp1dp1 does, and tp1 cuts it in another way",
        ),
    ],
)
def test_what_vllm_would_do_otherwise_is_refused(asked: EnginePlan, reason: str | None) -> None:
    assert refusal(asked) == reason


def test_without_vllm_the_reason_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_settings.importlib.util, "find_spec", lambda name: None)
    assert refusal(plan()) == "it is not installed: pip install 'shard-orchestrator[vllm]'"


def test_an_engine_without_settings_of_its_own_takes_none() -> None:
    assert engines.refusal("torch", plan(engine_args=(("block_size", "32"),))) == (
        "it takes no --engine-arg, and block_size is given"
    )


# -- one process a replica


@pytest.fixture
def vllm_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "create", lambda name: VllmEngine())


@pytest.mark.usefixtures("vllm_is_known")
@pytest.mark.parametrize(
    ("layout", "bundles"),
    [
        ("tp4", [{"GPU": 4}]),
        ("dp2", [{"GPU": 1}, {"GPU": 1}]),
        ("dp2tp2", [{"GPU": 2}, {"GPU": 2}]),
    ],
)
def test_a_replica_is_given_all_its_devices_at_once(
    layout: str, bundles: list[dict[str, float]]
) -> None:
    assert bundles_for(plan(layout, device="cuda"), "vllm") == bundles


@pytest.mark.usefixtures("vllm_is_known")
def test_a_replica_on_several_nodes_has_a_bundle_for_each_device_and_rays_workers() -> None:
    asked = plan("dp2tp4", device="cuda", spans_nodes=True)
    assert bundles_for(asked, "vllm") == [{"GPU": 1}] * 8
    assert arguments(asked, "folder")["distributed_executor_backend"] == "ray"


@pytest.mark.usefixtures("vllm_is_known")
@pytest.mark.parametrize(
    ("layout", "nodes", "spans"),
    [
        ("tp4", {"a": 4}, False),
        ("dp2tp2", {"a": 2, "b": 2}, False),
        ("tp4", {"a": 2, "b": 2}, True),
        ("dp2tp2", {"a": 3, "b": 1}, True),  # each fits on a node, but not both
    ],
)
def test_a_replica_is_on_several_nodes_only_where_it_has_to_be(
    layout: str, nodes: dict[str, int], spans: bool
) -> None:
    asked = plan(layout, device="cuda")
    assert planning.spans_nodes("vllm", asked, topology(nodes)) is spans
    assert not planning.spans_nodes("vllm", asked, topology({"a": 8}))


@pytest.mark.usefixtures("vllm_is_known")
def test_on_a_cpu_a_replica_has_to_fit_on_a_node() -> None:
    with pytest.raises(UserError) as error:
        planning.spans_nodes("vllm", plan("tp4"), topology({"a": 3, "b": 2}))
    assert str(error.value) == (
        "the engine vllm cannot run tp4: it takes 1 x 4 CPU workers, each 4 of them on one node, "
        "and the nodes have 3, 2; use fewer ranks a replica, larger nodes, or --engine torch, "
        "which has a process for each rank"
    )


def test_an_engine_with_one_process_needs_a_node_that_has_all_devices() -> None:
    with pytest.raises(UserError, match="transformers cannot run pp4: it takes 1 x 4 GPUs, each 4"):
        planning.spans_nodes("transformers", plan("pp4", device="cuda"), topology({"a": 3, "b": 3}))
    assert not planning.spans_nodes("torch", plan("pp4", device="cuda"), topology({"a": 1, "b": 3}))


def topology(nodes: dict[str, int]) -> Topology:
    return Topology(tuple(Device(name, i) for name, count in nodes.items() for i in range(count)))


def test_a_worker_tells_its_engine_in_which_bundles_its_devices_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    class Spans:
        processes = "per_replica"

        def build(self, context: Any, plan: EnginePlan) -> list[Any]:
            return seen.append((context.rank, context.bundles)) or []

        def close(self) -> None:
            pass

    monkeypatch.setattr(engines, "create", lambda name: Spans())
    worker = Worker()
    worker.assign(2, (3, 1))
    worker.build("spans", plan("dp2tp2", spans_nodes=True), None)
    worker.close()
    assert seen == [(2, (3, 1))]


def test_on_several_nodes_a_replica_is_not_profiled_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = plan("tp2", device="cuda", spans_nodes=True)
    steps = make(STEPS, [{"rank": 0, "phase": DECODE}])
    reports = [RankReport(rank, None, steps, None, 0) for rank in (0, 1)]
    engine = VllmEngine()
    engine._plan, engine._folder, engine._context = asked, tmp_path, _context(asked, 0)
    engine._engine = SimpleNamespace(
        collective_rpc=lambda method: [], start_profile=lambda: pytest.fail("profiled")
    )
    engine._context.progress = None
    monkeypatch.setattr(engine, "_reports", lambda *told: reports)
    monkeypatch.setattr(engine, "_params", lambda work: None)
    monkeypatch.setattr(vllm_run, "serve", lambda *served: None)
    assert engine.run(WORK) == reports
    observed = engine.run(replace(WORK, observe=True))
    assert {one.unobserved for one in observed} == {
        "on several nodes, vLLM's profiler leaves each trace on the node of its worker"
    }


def test_a_replica_sees_no_gpu_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    worker = Worker(device_index=2)
    worker._gpu_ids = ["2", "3"]
    worker._see_own_gpus()
    assert (os.environ["CUDA_VISIBLE_DEVICES"], worker.device_index) == ("2,3", 0)


# -- a run


END = "orchestrator_end"


class FakeVllm:
    """An LLMEngine whose every step brings `each` tokens of every request it has, `step_s` after
    the one before. lengths: of those that end before their asked length."""

    def __init__(
        self,
        each: int = 1,
        cached: int = 0,
        resets: tuple[bool, ...] = (True,),
        step_s: float = 0.0,
        lengths: Mapping[int, int] = {},
    ) -> None:
        self.each, self.cached, self.resets, self.step_s = each, cached, list(resets), step_s
        self.lengths = lengths
        self.left: dict[str, int] = {}
        self.most = 0
        self.salts: list[str] = []
        self.engine_core = _Core(self)

    def reset_prefix_cache(self) -> bool:
        return self.resets.pop(0) if len(self.resets) > 1 else self.resets[0]

    def collective_rpc(self, method: str, args: tuple[bool, ...] = ()) -> list[dict[str, Any]]:
        begins = method == "orchestrator_begin"
        assert (method, args) == (("orchestrator_begin", (False,)) if begins else (END, ()))
        return [] if begins else [{"steps": [], "peak_memory_bytes": 0}]

    def add_request(self, name: str, prompt: dict[str, Any], params: int) -> None:
        if not self.left:
            self.engine_core.begin_step()
        self.left[name] = self.lengths.get(int(name), params)
        self.salts.append(prompt["cache_salt"])
        self.most = max(self.most, len(self.left))

    def step(self) -> list[Any]:
        outputs = self.engine_core.get_output().outputs
        return [_named(one, one.request_id not in self.left) for one in outputs]


class _Core:
    def __init__(self, engine: FakeVllm) -> None:
        self.engine = engine
        self.outputs_queue: queue.Queue[None] = queue.Queue()

    def begin_step(self) -> None:
        threading.Timer(self.engine.step_s, self.outputs_queue.put, (None,)).start()

    def get_output(self) -> Any:
        self.outputs_queue.get()
        engine, outputs = self.engine, []
        for name in list(engine.left):
            made = min(engine.each, engine.left[name])
            engine.left[name] -= made
            if not engine.left[name]:
                del engine.left[name]
            outputs.append(_output(name, [7] * made, engine.cached))
        if engine.left:
            self.begin_step()
        stats = SimpleNamespace(num_running_reqs=len(engine.left), num_waiting_reqs=0)
        return SimpleNamespace(timestamp=time.monotonic(), outputs=outputs, scheduler_stats=stats)


def _output(name: str, tokens: list[int], cached: int = 0) -> Any:
    stats = SimpleNamespace(num_cached_tokens=cached)
    return SimpleNamespace(request_id=name, new_token_ids=tokens, prefill_stats=stats)


def _named(output: Any, finished: bool) -> Any:
    return SimpleNamespace(request_id=output.request_id, finished=finished)


def run(engine: FakeVllm, work: Work = WORK) -> list[dict[str, Any]]:
    watch = serve(engine, work, lambda request: request.output_len, Progress(), work.is_open)
    rows: list[dict[str, Any]] = requests_table(watch, work, replica=1).to_pylist()
    return rows


def test_a_request_arrives_when_one_in_flight_has_ended() -> None:
    engine = FakeVllm()
    rows = run(engine)
    assert engine.most == WORK.max_concurrency
    ends = [row["token_times_s"][-1] for row in rows]
    assert [row["arrival_s"] for row in rows] == [0.0, 0.0, ends[0], ends[1], ends[2]]
    assert [row["output_token_ids"] for row in rows] == [[7, 7, 7]] * 5
    assert {row["cached_tokens"] for row in rows} == {0}
    assert engine.salts == ["0", "1", "2", "3", "4"]  # no prompt finds itself in the cache
    assert "get_output" not in vars(engine.engine_core)  # vLLM has its own again


def test_in_an_open_loop_a_request_is_handed_in_when_it_arrives() -> None:
    """Steps take long, so that the second request comes while vLLM is in one, and the third when it
    has had nothing to do for a while."""
    at = (0.05, 0.15, 0.9)
    work = Work(tuple(Request(i, (1, 2), 2, when) for i, when in enumerate(at)), 4)
    engine = FakeVllm(step_s=0.2)
    rows = run(engine, work)
    assert [row["arrival_s"] for row in rows] == list(at)
    for row in rows:
        assert row["admitted_s"] == pytest.approx(row["arrival_s"], abs=0.08)
        assert row["admitted_s"] >= row["arrival_s"]
    first, second, third = (row["token_times_s"][0] for row in rows)
    assert first == second  # it was there for the step under way, which has made no token yet
    assert third == pytest.approx(1.1, abs=0.1)


def test_in_an_open_loop_no_more_are_in_flight_than_was_asked_for() -> None:
    engine = FakeVllm(step_s=0.01)
    rows = run(engine, Work(tuple(Request(i, (1,), 5, 0.001 * (i + 1)) for i in range(4)), 1))
    assert engine.most == 1
    ends = [row["token_times_s"][-1] for row in rows]
    assert [row["arrival_s"] for row in rows] == [0.001, 0.002, 0.003, 0.004]
    assert all(
        row["admitted_s"] >= end for row, end in zip(rows[1:], ends[:-1], strict=True)
    )  # the client's own queue


@pytest.mark.parametrize("arrival_s", [0.0, 0.01])
def test_a_turn_is_handed_in_when_the_reply_before_it_has_ended(arrival_s: float) -> None:
    after = {1: 0, 2: 1, 4: 3}
    asked = tuple(
        Request(i, (1, 2), 2, 0.0 if i in after else arrival_s, after.get(i)) for i in range(5)
    )
    engine = FakeVllm(cached=16)
    rows = run(engine, Work(asked, 2, reuse="conversation"))
    for turn, reply in after.items():
        assert rows[turn]["arrival_s"] == rows[reply]["token_times_s"][-1]
        assert rows[turn]["token_times_s"][0] > rows[turn]["arrival_s"]
        assert (rows[turn]["admitted_s"] is None) == (not arrival_s)
    assert sorted(engine.salts) == ["0", "0", "0", "3", "3"]  # a conversation finds its own blocks


def test_a_replica_whose_requests_are_all_there_at_once_is_open_where_the_whole_loop_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only replica 0 has one that arrives later. On both a request waits for its seat from its own
    arrival on."""
    at = (0.0, 0.0, 0.0, 0.0, 0.3)
    work = Work(tuple(Request(i, (1,), 3, when) for i, when in enumerate(at)), 2)
    monkeypatch.setattr(VllmEngine, "_params", lambda self, work: lambda one: one.output_len)
    rows: dict[int, dict[str, Any]] = {}
    for replica in range(2):
        rows |= {row["request_index"]: row for row in _served(replica, work)}
    assert [rows[i]["arrival_s"] for i in range(5)] == list(at)
    for first, second in ((0, 2), (1, 3)):
        assert 0.0 <= rows[first]["admitted_s"] < rows[first]["token_times_s"][-1]
        assert rows[second]["admitted_s"] >= rows[first]["token_times_s"][-1] >= 0.15


def _served(replica: int, work: Work) -> list[dict[str, Any]]:
    """Requests of one of two replicas, as the engine reports them."""
    engine, placement = VllmEngine(), plan("dp2").placement
    engine._engine, engine._plan = FakeVllm(step_s=0.05), plan("dp2")
    engine._context = SimpleNamespace(  # type: ignore[assignment]
        rank=replica, placement=placement, progress=Progress(), at=lambda axis: replica
    )
    (report,) = engine.run(work)
    assert report.requests is not None
    found: list[dict[str, Any]] = report.requests.to_pylist()
    return found


@pytest.mark.parametrize("seats", [1, 2, 8])
@pytest.mark.parametrize("arrival_s", [0.0, 0.01])
def test_more_seats_than_conversations_and_replies_that_end_early_change_no_order(
    seats: int, arrival_s: float
) -> None:
    asked = tuple(
        Request(i, (1,), 4, 0.0 if i % 3 else arrival_s, i - 1 if i % 3 else None) for i in range(6)
    )
    work = Work(asked, seats, ignore_eos=False, reuse="conversation")
    engine = FakeVllm(lengths={0: 1, 1: 2, 3: 1, 5: 3})
    rows = run(engine, work)
    assert [row["output_len"] for row in rows] == [1, 2, 4, 1, 4, 3]
    assert engine.most == min(seats, 2)
    for index in (1, 2, 4, 5):
        assert rows[index]["arrival_s"] == rows[index - 1]["token_times_s"][-1]


def test_a_replica_without_conversations_serves_nothing() -> None:
    work = Work((Request(0, (1,), 2), Request(1, (1,), 2, after=0)), 8, reuse="conversation")
    assert [len(run(FakeVllm(), work.share(replica, 4))) for replica in range(4)] == [2, 0, 0, 0]


def test_a_reply_without_a_token_ends_the_run_and_not_the_loop() -> None:
    """The turn after it is served, so that nothing waits, and then the run is no result."""
    work = Work(tuple(Request(i, (1,), 2, after=i - 1 if i else None) for i in range(3)), 1)
    engine = FakeVllm(lengths={1: 0})
    with pytest.raises(RuntimeError, match="vLLM made no token for request 1"):
        run(engine, work)
    assert len(engine.salts) == 3


def test_blocks_of_all_requests_may_be_found_where_the_work_says_so() -> None:
    engine = FakeVllm(cached=16)
    assert len(run(engine, replace(WORK, reuse="all"))) == 5
    assert set(engine.salts) == {"0"}


def test_tokens_that_one_step_brings_have_one_time() -> None:
    for row in run(FakeVllm(each=3)):
        assert len(row["token_times_s"]) == 3
        assert len(set(row["token_times_s"])) == 1


def test_a_run_that_found_prompts_in_the_cache_is_no_result() -> None:
    with pytest.raises(RuntimeError, match="found tokens of request 0 in its prefix cache"):
        run(FakeVllm(cached=16))


def test_a_cache_that_is_not_reset_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_run, "SETTLE_S", 0.001)
    assert run(FakeVllm(resets=(False, False, True)))  # blocks of the run before were still held
    monkeypatch.setattr(vllm_run, "RESET_S", 0.01)
    with pytest.raises(RuntimeError, match=r"did not reset its prefix cache within 0\.01 s"):
        run(FakeVllm(resets=(False,)))


def test_outputs_of_the_run_before_are_left_out() -> None:
    watch = Watch(Progress(), began_s=100.0)
    stats = SimpleNamespace(num_running_reqs=0, num_waiting_reqs=0)
    for at, name in ((99.0, "1"), (101.0, "2-a1b2c3d4")):
        output = _output(name, [5])
        watch.keep(SimpleNamespace(timestamp=at, outputs=[output], scheduler_stats=stats))
    assert (watch.by_request(), watch.ends_s) == ({2: ([5], [1.0])}, [101.0])


def test_steps_are_what_the_worker_counted_and_end_where_the_core_had_their_outputs() -> None:
    watch = Watch(Progress(), began_s=100.0, ends_s=[101.0, 102.0, 103.0])
    counted = [[2, 20, 20], [0, 0, 0], [3, 3, 0], [1, 1, 0]]  # an empty one, one after the end
    steps = steps_table(watch, 4, counted).to_pylist()
    assert [(one["step"], one["phase"], one["end_s"]) for one in steps] == [
        (0, PREFILL, 1.0),
        (1, DECODE, 3.0),
    ]
    assert [(one["rank"], one["num_requests"], one["num_tokens"]) for one in steps] == [
        (4, 2, 20),
        (4, 3, 3),
    ]
    assert steps_table(watch, 4, counted[:2]).num_rows == 0  # not known which ended when


def test_a_request_without_a_token_is_in_its_prompt() -> None:
    cached = SimpleNamespace(req_ids=["decoding", "chunk"], num_output_tokens=[4, 0])
    scheduled = SimpleNamespace(
        scheduled_cached_reqs=cached,
        num_scheduled_tokens={"decoding": 1, "chunk": 10, "first": 5},
        total_num_scheduled_tokens=16,
    )
    assert counts_of(scheduled) == [3, 16, 15]


# -- failures


def test_a_failure_is_what_vllms_first_process_to_fail_logged(tmp_path: Path) -> None:
    logger = logging.getLogger("test-vllm-errors")
    logger.addHandler(ErrorFile(str(tmp_path / "errors")))
    logger.error("said without an exception")
    for error in (ValueError("no such layer"), RuntimeError("see above")):
        try:
            raise error
        except Exception:
            logger.exception("failed")
    first = json.loads((tmp_path / "errors").read_text().splitlines()[0])
    assert first == {"type": "ValueError", "message": "no such layer"}
    engine = VllmEngine()
    engine._folder = tmp_path
    cause = engine._cause(RuntimeError("core failed"))
    assert (type(cause), str(cause)) == (VllmFailed, "vLLM: ValueError: no such layer")


def test_a_worker_of_vllm_that_was_killed_is_the_cause_of_the_call_that_it_cancels(
    tmp_path: Path,
) -> None:
    logger = logging.getLogger("test-vllm-death")
    logger.addHandler(ErrorFile(str(tmp_path / "errors")))
    logger.error("Worker proc %s died unexpectedly (exit code: %s)", "VllmWorker-0", -9)
    try:
        raise RuntimeError("cancelled")
    except RuntimeError:
        logger.exception("EngineCore encountered a fatal error.")
    engine = VllmEngine()
    engine._folder = tmp_path
    cause = str(engine._cause(RuntimeError("EngineCore encountered an issue.")))
    assert cause == "vLLM: WorkerDied: Worker proc VllmWorker-0 died unexpectedly (exit code: -9)"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("OutOfMemoryError", "CUDA out of memory"),
        ("ValueError", "No available memory for the cache blocks. Try ..."),
    ],
)
def test_no_room_is_told_as_out_of_memory(kind: str, message: str) -> None:
    assert isinstance(failure(kind, message), OutOfMemoryError)


def test_what_a_worker_on_another_node_raised_is_the_reason() -> None:
    text = (
        "ray::RayWorkerProc.initialize_worker() (pid=7, ip=10.0.0.2)\n  File 'a.py', line 1\n"
        "    raise ValueError('no such dtype: int7')\nValueError: no such dtype: int7"
    )
    assert str(failure("RayTaskError(ValueError)", text)) == (
        "vLLM: ValueError: no such dtype: int7"
    )
    full = failure("RayTaskError(OutOfMemoryError)", "...\ntorch.OutOfMemoryError: CUDA is full")
    assert isinstance(full, OutOfMemoryError)
    assert str(full) == "vLLM: OutOfMemoryError: CUDA is full"


def test_a_process_ends_with_the_one_that_started_it() -> None:
    child = (
        "import time; from workers.engines.vllm.worker import attend; attend(); "
        "print('attends', flush=True); time.sleep(600)"
    )
    parent = (
        "import os, subprocess, sys; os.environ['ORCHESTRATOR_VLLM_OWNER'] = str(os.getpid()); "
        f"one = subprocess.Popen([sys.executable, '-c', {child!r}]); print(one.pid); one.wait()"
    )
    command = [sys.executable, "-u", "-c", parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        started = psutil.Process(int(owner.stdout.readline()))
        assert owner.stdout.readline() == "attends\n"
        os.kill(owner.pid, signal.SIGKILL)
        assert psutil.wait_procs([started], timeout=15)[1] == []


@pytest.mark.parametrize(("actor", "attends"), [("01000000", False), (None, True)])
def test_a_worker_that_ray_started_is_rays_to_end(
    actor: str | None, attends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[int] = []
    context = SimpleNamespace(get_actor_id=lambda: actor)
    ray = SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)
    libc = SimpleNamespace(prctl=lambda option, _: called.append(option))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv(vllm_worker.OWNER, str(os.getppid()))  # on this node, as it happens
    monkeypatch.delenv(vllm_worker.ERRORS, raising=False)
    monkeypatch.setattr(vllm_worker.ctypes, "CDLL", lambda *args, **options: libc)
    monkeypatch.setattr(vllm_worker.os, "getppid", lambda: 2)
    vllm_worker.attend()
    assert called == [vllm_worker.PR_SET_PDEATHSIG] * attends


def test_a_vllm_of_somebody_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm_worker.OWNER, raising=False)
    monkeypatch.setattr(vllm_worker.ctypes, "CDLL", lambda *args, **options: pytest.fail("called"))
    vllm_worker.attend()
