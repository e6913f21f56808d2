"""From an experiment to plans, and every reason there is to refuse one."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from fakes import write_checkpoint
from pydantic import ValidationError

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.plan import fitting, planning
from orchestrator.plan.deployments import PlannedDeployment
from orchestrator.plan.fitting import concurrent_requests
from orchestrator.plan.remarks import remarks as remarks_of
from orchestrator.store.identity import identity_of
from strategies import LayoutError, Topology
from strategies.shapes import Device
from workers import engines

H200 = 141 * 10**9
DUMMY_70B = {"model": "llama-70b", "load_format": "dummy"}
SHORT = {"input_len": 16, "output_len": 8}


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "main_memory", lambda: 16 * 10**9)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("fake"))


def plan(gpus: int = 0, **fields: Any) -> tuple[PlannedDeployment, ...]:
    experiment = Experiment(**fields)
    device, topology = planning.choose_device(experiment, Topology.uniform(gpus, H200, "H200"))
    return planning.plan_experiment(experiment, device, topology)


def remarks(gpus: int = 0, **fields: Any) -> list[str]:
    experiment = Experiment(**fields)
    device, topology = planning.choose_device(experiment, Topology.uniform(gpus, H200, "H200"))
    return list(
        remarks_of(experiment, planning.plan_experiment(experiment, device, topology), topology)
    )


def test_nothing_but_a_strategy_is_enough_without_a_gpu() -> None:
    (one,) = plan(strategy="tp4")
    assert one.deployment.name == "tiny.tp4.torch.float32"
    assert (one.plan.device, one.plan.dtype, one.plan.placement.num_ranks) == ("cpu", "float32", 4)
    assert one.plan.checkpoint
    assert one.decode
    (cell,) = one.cells
    assert (cell.cell.scenario.name, cell.cell.max_concurrency, len(cell.work.requests)) == (
        "short",
        8,
        8,
    )


def test_gpus_are_used_where_there_are_any() -> None:
    (one,) = plan(gpus=4, strategy="tp4")
    assert (one.plan.device, one.plan.dtype) == ("cuda", "bfloat16")
    (one,) = plan(gpus=4, strategy="tp4", device="cpu")
    assert (one.plan.device, one.plan.dtype) == ("cpu", "float32")


def test_cells_are_scenarios_by_concurrency_planned_for_the_heaviest() -> None:
    (one,) = plan(model="tiny", scenario="short,long", max_concurrency="1,4")
    names = [cell.cell.name.removeprefix(one.deployment.name) for cell in one.cells]
    assert names == [".short.c1", ".short.c4", ".long.c1", ".long.c4"]
    assert (one.plan.max_concurrency, one.plan.max_len) == (4, 1536)


def test_two_names_of_one_layout_are_one_deployment() -> None:
    assert [one.deployment.strategy for one in plan(strategy="3d,pp2tp2,tp2pp2dp1,tp2")] == [
        "tp2pp2",
        "tp2",
    ]


def test_every_layout_gets_the_same_work() -> None:
    one, other = plan(strategy="tp2,dp2pp2")
    assert [(c.work, c.warmup) for c in one.cells] == [(c.work, c.warmup) for c in other.cells]


def test_every_layout_prefills_in_pieces_of_one_size() -> None:
    assert {one.plan.prefill_tokens for one in plan(strategy="tp2,pp2,dp2")} == {2048}
    chosen = plan(strategy="tp2,pp2", chunked_prefill_size=64)
    assert [(one.plan.prefill_tokens, one.plan.chunked_prefill) for one in chosen] == [
        (64, True)
    ] * 2


def test_a_pass_has_room_for_a_whole_prompt_where_none_is_cut() -> None:
    (one,) = plan(chunked_prefill_size="off")
    assert (one.plan.prefill_tokens, one.plan.chunked_prefill) == (2048, False)
    long = {"input_len": 3000, "output_len": 2, **DUMMY_70B}
    (one,) = plan(gpus=4, strategy="tp4", chunked_prefill_size="off", **long)
    assert one.plan.prefill_tokens == 3000


def test_where_a_pilot_settles_the_count_every_layout_gets_the_same_requests() -> None:
    planned = plan(strategy="tp2,pp2", min_duration=5.0, max_concurrency="1,4")
    for one in planned:
        assert [len(cell.work.requests) for cell in one.cells] == [1, 4]  # the pilot's
    tp, pp = (one.settled({"short.c1": 6, "short.c4": 12}) for one in planned)
    assert [len(cell.work.requests) for cell in tp.cells] == [6, 12]
    assert [cell.work for cell in tp.cells] == [cell.work for cell in pp.cells]
    assert tp.cells[1].work.requests[:4] == planned[0].cells[1].work.requests


def test_a_load_that_was_not_settled_stays_the_pilots() -> None:
    (one,) = plan(min_duration=5.0, max_concurrency="1,4")
    small, large = one.settled({"short.c1": 6}).cells
    assert (small.sized, large.sized is None) == (None, False)
    assert large == one.cells[1]
    (fixed,) = plan(max_concurrency="1,4")
    assert fixed.settled({"short.c1": 6}) == fixed


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"num_prompts": 9}, "leave num_prompts out"),
        ({"request_rate": 2.0}, "leave request_rate out"),
        ({"dataset_path": "prompts.jsonl"}, "leave dataset_path out"),
        ({"timeout": 5.0}, "would not end within the timeout of 5 s"),
    ],
)
def test_a_least_duration_and_what_settles_the_requests_otherwise_are_refused_together(
    beside: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        Experiment(min_duration=8.0, **beside)


def test_starts_may_be_added_to_results_and_another_least_duration_makes_others() -> None:
    one = identity_of(Experiment())
    assert identity_of(Experiment(num_starts=5, num_runs=2, save_spans=True)) == one
    assert identity_of(Experiment(until_ci=0.02, max_starts=20)) == one
    assert identity_of(Experiment(min_duration=8.0)) != one


def test_zero_brings_its_engine_and_says_so() -> None:
    (one,) = plan(gpus=4, strategy="dp4zero3", **DUMMY_70B)
    assert one.deployment.engine == "deepspeed"
    assert "dp4zero3 runs on the engine deepspeed, which it needs" in remarks(
        4, strategy="dp4zero3", **DUMMY_70B
    )


def test_starts_that_cannot_be_added_are_remarked_on() -> None:
    said = "--until-ci adds no starts: there are 20 anyhow, and --max-starts is 10"
    assert said in remarks(strategy="dp4", until_ci=0.05, num_starts=20)
    assert said not in remarks(strategy="dp4", until_ci=0.05, num_starts=20, max_starts=30)


def test_replicas_without_work_and_queues_are_remarked_on() -> None:
    assert "dp4 at max_concurrency 1: 3 of 4 replicas have nothing to do" in remarks(
        strategy="dp4", max_concurrency=1
    )
    wanted = {
        "strategy": "dp2",
        "model": "qwen2.5-32b",
        "load_format": "dummy",
        "scenario": "long",
        "max_concurrency": 1000,
    }
    assert any("requests queue" in line for line in remarks(2, **wanted))


def test_replicas_that_fit_on_no_node_are_planned_over_several_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.engines.vllm.settings._installed", lambda plan: None)
    two = Topology(tuple(Device(node, i, H200, "H200") for node in ("a", "b") for i in (0, 1)))
    asked = Experiment(strategy="tp4,dp2tp2", engine="vllm", **DUMMY_70B)
    planned = planning.plan_experiment(asked, "cuda", two)
    assert [one.plan.spans_nodes for one in planned] == [True, False]
    said = [line for line in remarks_of(asked, planned, two) if "of several" in line]
    assert [line.partition(":")[0] for line in said] == ["tp4 on vllm"]


def test_an_ablation_that_applies_to_nothing_is_remarked_on() -> None:
    assert remarks(strategy="tp2", ablate="comm") == []
    assert remarks(strategy="pp2", ablate="comm") == [
        "pp2: --ablate comm would change nothing (torch, cpu); it is not run without"
    ]
    assert remarks(strategy="tp1", ablate="comm", engine="transformers") == [
        "tp1: the engine transformers cannot leave out comm; it is not run without"
    ]
    assert len(plan(strategy="tp2", ablate="comm,p2p")) == 2
    assert [line.partition(":")[0] for line in remarks(strategy="tp2,dp2", ablate="comm,p2p")] == [
        "tp2",
        "dp2",
        "dp2",
    ]


def test_a_70b_fits_when_cut_and_its_room_is_known() -> None:
    (one,) = plan(gpus=4, strategy="tp4", **DUMMY_70B)
    held = concurrent_requests(one.plan, Topology.uniform(4, H200))
    assert held is not None
    assert 2500 < held < 3500


@pytest.mark.parametrize(
    ("gpus", "fields", "message"),
    [
        (
            4,
            {"strategy": "dp4", **DUMMY_70B},
            "under dp4 .* does not fit: .*141.1 GB of weights.*141.0 GB; that leaves no room",
        ),
        (1, {"strategy": "tp4"}, "tp4 needs 4 GPUs; 1 is here; use --device cpu or fewer"),
        (2, {"strategy": "tp2pp2"}, "tp2pp2 needs 4 GPUs; 2 are here"),
        (0, {"strategy": "dp1000"}, "dp1000 needs 1000 CPU workers; 128 are here"),
        (0, {"device": "cuda"}, "there is none here; use --device cpu"),
        (
            0,
            {"strategy": "dp2", **DUMMY_70B},
            "llama-70b under dp2 in float32 does not fit: .*564.4 GB for weights",
        ),
        (0, {"strategy": "tq2"}, "there is no strategy 'tq'; did you mean 'tp2'"),
        (0, {"strategy": "tp3"}, "8 heads of tiny do not divide over tp=3"),
        (0, {"strategy": "pp5"}, "use 1 to 4"),
        (0, {"engine": "torhc"}, "there is no engine 'torhc'; did you mean 'torch'"),
        (
            0,
            {"strategy": "dp2zero3", "engine": "torch"},
            "dp2zero3 needs the engine deepspeed, --engine asks for torch",
        ),
        (
            0,
            {"input_len": 2040, "output_len": 9},
            "2040 prompt \\+ 9 output tokens = 2049, but tiny has 2048 positions",
        ),
        (0, {"model": "llama-8b"}, "--load-format dummy"),
    ],
)
def test_refusals(gpus: int, fields: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, LayoutError, engines.EngineError), match=message) as caught:
        plan(gpus, **fields)
    assert "\n" not in str(caught.value)


def test_a_layout_that_puts_two_ranks_on_one_device_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def twice(*arguments: Any) -> Any:
        layout = original(*arguments)
        return replace(layout, placement=replace(layout.placement, devices=(1, 1)))

    original = planning.plan_layout
    monkeypatch.setattr(planning, "plan_layout", twice)
    with pytest.raises(
        UserError, match=r"tp2 puts its ranks on the devices \[1, 1\]; .* each of 0 to 1 once"
    ):
        plan(strategy="tp2")


def test_what_an_engine_cannot_run_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky:
        def supports(self, plan: Any) -> str:
            return "it does not do pipeline stages"

    monkeypatch.setattr(engines, "create", lambda name: Picky())
    with pytest.raises(
        UserError, match="the engine torch cannot run pp2: it does not do pipeline stages"
    ):
        plan(strategy="pp2")


def test_a_checkpoint_folder_is_a_model_by_its_name(checkpoint: Path) -> None:
    (one,) = plan(model=str(checkpoint), strategy="tp2", **SHORT)
    assert one.deployment.model == checkpoint.name
    assert one.decode is None


def test_an_engine_that_two_packages_bring_is_refused(monkeypatch):
    found = [EntryPoint("torch", f"{package}:Engine", engines.GROUP) for package in ("one", "two")]
    monkeypatch.setattr(engines, "entry_points", lambda **_: found)
    with pytest.raises(
        engines.EngineError,
        match="one:Engine and two:Engine both bring an engine 'torch'; uninstall one of them",
    ):
        engines.create("torch")


def test_every_engine_that_is_asked_for_gets_every_layout() -> None:
    planned = plan(strategy=("tp1", "tp1"), engine="torch,transformers")
    names = [one.deployment.name for one in planned]
    assert names == ["tiny.tp1.torch.float32", "tiny.tp1.transformers.float32"]


def test_settings_go_to_the_engines_that_take_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "takes_arguments", lambda name: name == "transformers")
    asked = {"engine_arg": {"mode": {"level": 3}}}
    planned = plan(engine="torch,transformers", **asked)
    assert [one.plan.engine_args for one in planned] == [(), (("mode", '{"level": 3}'),)]
    with pytest.raises(UserError, match=r"engine torch cannot run tp1: it takes no --engine-arg"):
        plan(engine="torch", **asked)


def test_results_of_other_settings_are_kept_elsewhere() -> None:
    plain = identity_of(Experiment())
    assert identity_of(Experiment(engine="torch,vllm")) == plain
    assert identity_of(Experiment(engine_arg={"block_size": "32"})) != plain
    assert identity_of(Experiment(engine="torch", ablate="comm")) == plain
    # With it vLLM's whole runs go without a fusion, too: they are no more starts of the fused ones.
    assert identity_of(Experiment(engine="torch,vllm", ablate="comm")) != plain
