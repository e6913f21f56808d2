"""What is asked of training, what of it is refused before anything is taken, and what is made of
its runs."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
from click.testing import CliRunner
from fakes import write_config
from pydantic import ValidationError
from rich.console import Console

from orchestrator.analysis.training.comparison import compared, findings_of, trained_at
from orchestrator.analysis.training.observed import TrainedParts, times_of
from orchestrator.analysis.training.rows import (
    TRAINED,
    Trained,
    TrainingAttempt,
    failed,
    trained,
    training_tables,
)
from orchestrator.cli import main
from orchestrator.errors import Refused
from orchestrator.experiment import Experiment, Run
from orchestrator.plan import planning
from orchestrator.plan.deployments import PlannedDeployment
from orchestrator.report.training.terminal import render
from orchestrator.run.jobs import Job
from orchestrator.store.catalog import list_runs
from orchestrator.store.identity import identity_of
from orchestrator.store.store import Store
from strategies import Topology
from strategies.training import flops_per_token
from workers.engines import training_state
from workers.messages import Built, RankReport, TrainingWork
from workers.records import STEPS
from workers.training_records import (
    TRAINING_COLLECTIVES,
    TRAINING_OVERLAPS,
    TRAINING_PARTS,
    TRAINING_STEPS,
    TrainingCollectiveRow,
    TrainingOverlapRow,
    TrainingPartsRow,
    TrainingReport,
    TrainingStepRow,
)

TRAIN: dict[str, Any] = {
    "workload": "train",
    "seq_len": 64,
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "steps": 5,
    "device": "cpu",
}


def plan(**fields: Any) -> tuple[PlannedDeployment, ...]:
    experiment = Experiment(**{**TRAIN, **fields})
    device, topology = planning.choose_device(experiment, Topology(()))
    return planning.plan_experiment(experiment, device, topology)


# -- what is asked


def test_every_layout_gets_one_cell_of_the_same_load() -> None:
    planned = plan(strategy="tp1,dp2,fsdp2,tp2pp2")
    assert [one.deployment.strategy for one in planned] == ["tp1", "dp2", "fsdp2", "tp2pp2"]
    assert {cell.cell.load for one in planned for cell in one.cells} == {"train64.c8"}
    assert {one.plan.dtype for one in planned} == {"float32"}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"workload": "train", "output_len": 5, "input_len": 5}, "input_len is about the workload"),
        ({"workload": "train", "max_concurrency": 4}, "max_concurrency is about the workload"),
        ({"workload": "train", "trace_speed": 2.0}, "trace_speed is about the workload generate"),
        ({"workload": "train", "rate_runs": 2}, "rate_runs is about the workload generate"),
        *(
            ({"workload": "train", name: value}, f"{name} is about the workload generate")
            for name, value in {
                "dataset_format": "chat",
                "dataset_columns": {"prompt": "a"},
                "multi_turn": True,
                "skip_invalid": True,
                "trace_window": "60s",
            }.items()
        ),
        ({"workload": "train", "dtype": "float16"}, "give precision instead, or give workload"),
        ({"seq_len": 64}, "seq_len is about the workload train, and generate is asked for"),
        ({"steps": 5}, "leave steps out, or give workload train"),
        ({"workload": "train", "technique": "graphs"}, "use checkpointing, accumulation, fusion"),
        (
            {"workload": "train", "technique": "fusion=half"},
            "no 'fusion=half'; use fusion=on, fusion=off",
        ),
        ({"workload": "train", "technique": "comm=off"}, "no 'comm=off'; use comm"),
        ({"workload": "train", "ablate": "p2p"}, "training can do with comm"),
        ({"workload": "train", "data_column": "body"}, "give data too"),
        ({"workload": "train", "dataset_split": "a"}, "splits; give dataset_path or data too"),
        (
            {"workload": "train", "micro_batch_size": 2, "gradient_accumulation_steps": 2},
            "say the same twice",
        ),
    ],
)
def test_a_flag_without_effect_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Experiment(**fields)


@pytest.mark.parametrize("kind", ["cudnn", "flash"])
def test_the_attention_that_is_asked_for_reaches_the_workers(
    kind: Literal["cudnn", "flash"],
) -> None:
    fields = {**TRAIN, "device": "cuda", "model": "llama-8b", "load_format": "dummy"}
    experiment = Experiment(strategy="fsdp4", attention=kind, **fields)
    (one,) = planning.plan_experiment(experiment, "cuda", Topology.uniform(4, 141 * 10**9))
    assert one.plan.switches.attention == kind
    with pytest.raises(Refused, match="it has no --attention; leave it out"):
        plan(strategy="dp2", attention=kind)


def test_what_training_is_asked_makes_another_experiment() -> None:
    asked = Experiment(**TRAIN)
    assert identity_of(asked) == identity_of(asked.model_copy(update={"strategy": ("dp2",)}))
    for change in (
        {"seq_len": 32},
        {"global_batch_size": 16},
        {"activation_checkpointing": "full"},
    ):
        assert identity_of(asked) != identity_of(asked.model_copy(update=change))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"strategy": "dp4"}, None),
        ({"strategy": "dp4", "micro_batch_size": 4}, "use 16, or a micro-batch size of 1, 2"),
        ({"strategy": "pp4", "micro_batch_size": 4}, "fewer than the 4 stages"),
        ({"strategy": "tp4", "seq_len": 66}, "66 tokens do not divide over tp=4; use --seq-len 68"),
        ({"strategy": "tp8"}, "use 4 ranks of tp at most"),
        ({"strategy": "tp3"}, "8 heads of tiny do not divide over tp=3; use 1, 2, 4$"),
        ({"strategy": "dp2zero2", "engine": "torch"}, "dp2zero2 needs the engine deepspeed"),
        ({"strategy": "tp2", "engine": "deepspeed"}, "trains replicas .dp. alone"),
        ({"strategy": "dp2", "engine": "vllm"}, "the engine 'vllm' only generates"),
        (
            {"strategy": "dp2zero2", "save_checkpoint": Path("x")},
            "saves no checkpoint of dp2zero2; .* with --resume-from under a layout of the engine",
        ),
        (
            {"strategy": "dp2", "engine": "deepspeed", "save_checkpoint": Path("x")},
            "saves no checkpoint of dp2; leave --save-checkpoint out, or use --engine torch$",
        ),
        ({"save_checkpoint": Path(__file__, "x")}, r"test_training_cells.py is a file; give ano"),
        ({"save_checkpoint": Path("x" * 300)}, "^--save-checkpoint x+: File name too long; give"),
        ({"strategy": "dp2", "schedule": "gpipe"}, "none of the layouts dp2 has one; leave it out"),
        ({"strategy": "dp2,pp2", "schedule": "gpipe"}, None),
        ({"seq_len": 4096}, "longer than tiny knows positions: 2048"),
        ({"precision": "fp8"}, "--precision fp8 needs GPUs, and CPUs are asked for; use --pre"),
        (
            {"precision": "fp8", "strategy": "fsdp2", "seq_len": 20},
            "take tokens of a micro-batch by 16",
        ),
        ({"precision": "fp8", "strategy": "dp2zero1"}, "here it has no FP8, and --precision fp8"),
        ({"precision": "fp8-fp16", "strategy": "tp2"}, "no FP8 over tp; use dp, fsdp or pp"),
        ({"precision": "fp16", "strategy": "dp2", "engine": "deepspeed"}, "under ZeRO alone"),
        ({"offload": "optimizer+params", "strategy": "tp2fsdp2"}, "use --offload optimizer"),
        ({"offload": "optimizer+params", "strategy": "dp2"}, "cut over replicas; use fsdpN"),
        ({"offload": "optimizer+params", "strategy": "dp2zero2"}, "use dpNzero3, or --offload"),
        ({"offload": "optimizer", "strategy": "dp2", "engine": "deepspeed"}, "what ZeRO cuts"),
        ({"resume_from": Path("nothing")}, "there is no training state in .*nothing; give a fol"),
        (
            {"strategy": "dp2", "micro_batch_size": None, "gradient_accumulation_steps": 3},
            "use a multiple of 6",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(
    fields: dict[str, Any], why: str | None
) -> None:
    if why is None:
        plan(**fields)
        return
    with pytest.raises(Refused, match=why) as error:
        plan(**fields)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_refused_where_workers_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    folder = tmp_path / "a" / "b"
    with pytest.raises(Refused, match=f"{folder}: {tmp_path} cannot be written to; give another"):
        plan(strategy="dp2", save_checkpoint=folder)
    assert plan(strategy="dp2", save_checkpoint=folder, address="10.0.0.1:6379")


def test_a_file_in_place_of_a_layout_s_own_folder_is_refused(tmp_path: Path) -> None:
    for layout, name in (("dp2", "tiny.dp2.torch.float32"), ("tp2", "tiny.tp2.torch.float32")):
        (tmp_path / name).touch()
        with pytest.raises(Refused, match=f"{tmp_path}: {tmp_path / name} is a file; give another"):
            plan(strategy=f"tp1,{layout}", save_checkpoint=tmp_path)
        (tmp_path / name).unlink()


def test_sequences_are_no_longer_than_a_window(tmp_path: Path) -> None:
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    folder = write_config(tmp_path / "m", **mistral, sliding_window=16)
    asked = {"model": str(folder), "load_format": "dummy", "strategy": "dp2"}
    assert plan(**asked, seq_len=16)
    with pytest.raises(Refused, match="that of m is 16 tokens; use --seq-len 16 or less"):
        plan(**asked, seq_len=32)


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_what_is_saved_comes_with_the_tokenizer_of_the_model(load_format: str) -> None:
    (one,) = plan(strategy="dp2", save_checkpoint=Path("out"), load_format=load_format)
    work = one.cells[0].work
    assert isinstance(work, TrainingWork)
    assert work.like is not None
    assert Path(work.like, "tokenizer.json").is_file()


@pytest.fixture(autouse=True)
def with_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torchao were installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: found("torch" if name == "torchao" else name)
    )


def test_fp8_is_refused_on_gpus_without_it() -> None:
    asked = {"device": "cuda", "precision": "fp8", "strategy": "fsdp2"}
    experiment = Experiment(**{**TRAIN, **asked})
    gpus = [replace(one, capability=(8, 0)) for one in Topology.uniform(2, 80 * 10**9).devices]
    with pytest.raises(Refused, match=r"needs GPUs of compute capability 8.9 or more; .* has 8.0"):
        planning.plan_experiment(experiment, "cuda", Topology(tuple(gpus)))


def test_fp8_is_refused_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    experiment = Experiment(**{**TRAIN, "precision": "fp8", "strategy": "fsdp2"})
    with pytest.raises(Refused, match=r"FP8 needs torchao: pip install 'shard-orchestrator.fp8.'"):
        planning.plan_experiment(experiment, "cuda", Topology.uniform(2, 80 * 10**9))
    with pytest.raises(Refused, match="needs GPUs, and CPUs are asked for"):  # which none mends
        plan(precision="fp8", strategy="fsdp2")


def test_runs_keep_their_states_in_folders_of_their_own(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    job = Job(one, Experiment(**TRAIN, checkpoint_interval=2), store)
    works = [job.training_work(run, one.cells[0]) for run in job.runs(one.cells[0], 0)]
    assert {work.interval for work in works} == {2}
    name = "tiny.dp2.torch.float32.train64.c8.s0.r0"
    assert works[0].state == str(store.folder.absolute() / "states" / name)
    plain = Job(one, Experiment(**TRAIN), store)
    assert plain.training_work(next(iter(plain.runs(one.cells[0], 0))), one.cells[0]).state is None


def test_a_layout_that_is_changed_to_be_compared_keeps_no_state(store: Store) -> None:
    as_asked, changed = plan(strategy="dp2", technique="comm")
    experiment = Experiment(**TRAIN, checkpoint_interval=2)
    jobs = [Job(one, experiment, store) for one in (as_asked, changed)]
    runs = [next(iter(job.runs(job.deployment.cells[0], 0))) for job in jobs]
    works = [j.training_work(r, j.deployment.cells[0]) for j, r in zip(jobs, runs, strict=True)]
    assert [work.state is None for work in works] == [False, True]


def state_of(planned: PlannedDeployment, folder: Path, **changes: Any) -> Path:
    """A state after 3 steps of a run."""
    target = folder / training_state.name_of(3)
    target.mkdir()
    state = training_state.TrainingState.of(planned.plan, None)
    training_state.write(replace(state, **{"step": 3, **changes}), target)
    return target


def test_runs_begin_with_a_state_that_another_layout_wrote(tmp_path: Path) -> None:
    (before,) = plan(strategy="tp2pp2")
    state = state_of(before, tmp_path)
    (one,) = plan(strategy="fsdp2", resume_from=tmp_path)
    (cell,) = one.cells
    assert isinstance(cell.work, TrainingWork)
    assert cell.work.resume == str(state)
    assert cell.warmup.resume is None  # type: ignore[union-attr]
    asked = [Experiment(**TRAIN, resume_from=path) for path in (tmp_path, None)]
    assert identity_of(asked[0]) != identity_of(asked[1])


@pytest.mark.parametrize(
    ("changes", "fields", "why"),
    [
        ({}, {"steps": 3}, "is of 3 steps, and --steps 3 asks for no more; use --steps 4"),
        ({}, {"seed": 4}, "cannot be gone on from: it was written with --seed 0, and 4 is"),
        ({}, {"seq_len": 32}, "it was written with --seq-len 64, and 32 is asked for"),
        ({"parameters": (("x", (1,)),)}, {}, r"it has \(1,\) of x, and the model no such"),
        ({"data": "0"}, {}, "it was trained on other data"),
    ],
)
def test_a_state_of_another_run_is_refused_in_a_line(
    changes: dict[str, Any], fields: dict[str, Any], why: str, tmp_path: Path
) -> None:
    (one,) = plan(strategy="dp2")
    state_of(one, tmp_path, **changes)
    with pytest.raises(Refused, match=why) as error:
        plan(strategy="dp2", resume_from=tmp_path, **fields)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_refused_with_what_it_takes() -> None:
    experiment = Experiment(
        **{**TRAIN, "device": "cuda", "model": "llama-8b", "load_format": "dummy"},
        strategy=("dp2", "fsdp2"),
    )
    gpus = Topology.uniform(2, 80 * 10**9, "H100")
    with pytest.raises(Refused, match="llama-8b under dp2 does not fit: a GPU would take") as error:
        planning.plan_experiment(experiment, "cuda", gpus)
    assert "16.1 GB of weights" in str(error.value)
    assert "96.4 GB of optimizer state" in str(error.value)


def test_too_few_micro_batches_are_a_warning_under_gpipe() -> None:
    (one,) = plan(strategy="pp4", micro_batch_size=4, schedule="gpipe")
    (remark,) = one.remarks
    assert "60% of a step is bubble" in remark


def test_accumulation_steps_say_the_size_of_a_micro_batch() -> None:
    asked = {"micro_batch_size": None, "gradient_accumulation_steps": 2}
    sizes = [one.plan.training for one in plan(strategy="tp1,dp2", **asked)]
    assert [one.micro_batch_size for one in sizes if one] == [4, 2]


def test_text_is_packed_once_for_every_layout(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A token is trained on once in an epoch. " * 200)
    first, second = plan(strategy="tp1,dp2", data=text, seq_len=16)
    (one,), (other,) = (planned.cells for planned in (first, second))
    assert isinstance(one.work, TrainingWork)
    assert one.work is other.work
    assert one.work.tokens is not None
    assert one.work.tokens.shape[1] == 17


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.text", "a.md", "a.json", "data/a.json"])
def test_other_text_is_another_experiment(name: str, tmp_path: Path) -> None:
    names, file = set(), tmp_path / "texts" / name
    file.parent.mkdir(parents=True)
    for words in ("one", "two"):
        file.write_text(words)
        names |= {identity_of(Experiment(**TRAIN, data=one)) for one in (file, tmp_path / "texts")}
    assert len(names) == 4


def test_a_split_of_the_data_is_another_experiment(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [json.dumps({"text": f"{split} {number}"}) for number in range(99)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    tokens = []
    for split in ("train", "test"):
        (one,) = plan(strategy="tp1", data=tmp_path, dataset_split=split, seq_len=16)
        assert isinstance(one.cells[0].work, TrainingWork)
        tokens.append(one.cells[0].work.tokens)
    assert tokens[0] is not None
    assert tokens[1] is not None
    assert tokens[0].tolist() != tokens[1].tolist()
    asked = [Experiment(**TRAIN, data=tmp_path, dataset_split=one) for one in ("train", "test")]
    assert identity_of(asked[0]) != identity_of(asked[1])


def test_text_that_is_not_enough_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("too little")
    with pytest.raises(Refused, match="and a step trains on 8; use more text"):
        plan(data=tmp_path / "text.txt")


def test_a_dry_run_says_what_would_be_trained() -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TRAIN.items()]
    result = CliRunner().invoke(main, ["submit", "--strategy", "dp2", "--dry-run", *options])
    said = "2 x cpu; replicas: 2, micro-batches of each: 2, sequences of each of these: 2."
    assert said in result.output
    assert result.exit_code == 0


# -- what is made of it


def report(rank: int, seconds: float) -> RankReport:
    """Of 3 steps that take `seconds` each, after a first one of 1 s."""
    rows = [
        TrainingStepRow(step=i, loss=3.0 - i, grad_norm=2.0, end_s=1.0 + i * seconds, resumed=False)
        for i in range(3)
    ]
    sent = TrainingCollectiveRow(rank=rank, op="all_reduce", axis="dp", calls=2, bytes=100 + rank)
    training = TrainingReport(
        steps=None if rank else TRAINING_STEPS.make(rows),
        traffic=TRAINING_COLLECTIVES.make([sent]),
        weight_bytes=10,
        gradient_bytes=20 + rank,
        optimizer_bytes=30,
    )
    return RankReport(rank, None, STEPS.make(()), None, 1000, training=training)


def attempt(
    store: Store, planned: PlannedDeployment, start: int, device_name: str | None = None
) -> TrainingAttempt:
    (cell,) = planned.cells
    job = Job(planned, Experiment(**TRAIN), store)
    return job.training_attempt(Run(cell.cell, start, 0), cell, "2026-01-01", device_name)


def row(store: Store, planned: PlannedDeployment, start: int, seconds: float) -> Trained:
    reports = [report(rank, seconds) for rank in range(planned.plan.placement.num_ranks)]
    built = [Built(0, 1.0, None, 10, None, "cpu")]
    return trained(attempt(store, planned, start), built, 5.0, "cpu", reports)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "tiny-0123456789")


def test_rates_leave_out_the_first_step(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    found = row(store, one, 0, 0.5)
    assert found.rate.step_time_ms == 500.0
    assert found.rate.tokens_per_second == 8 * 64 / 0.5
    assert found.rate.tokens_per_second_per_gpu == 8 * 64
    assert (found.result.first_loss, found.result.loss) == (3.0, 1.0)
    assert (found.memory.gradient_bytes, found.traffic.communication_bytes) == (21, 101)
    assert found.memory.activation_bytes is None
    assert found.rate.bubble_share is None


def test_rates_leave_out_the_first_step_after_a_stop_too(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    ends = [1.0, 1.5, 9.0, 9.7]
    rows = [
        TrainingStepRow(step=i, loss=1.0, grad_norm=1.0, end_s=end, resumed=i == 2)
        for i, end in enumerate(ends)
    ]
    reports = [report(rank, 0.5) for rank in range(2)]
    assert reports[0].training is not None
    kept = replace(reports[0].training, steps=TRAINING_STEPS.make(rows), states_s=2.0)
    reports[0] = replace(reports[0], training=kept)
    built = [Built(0, 1.0, None, 10, None, "cpu")]
    found = trained(attempt(store, one, 0), built, 5.0, "cpu", reports)
    assert found.rate.step_time_ms == pytest.approx(600.0)
    assert found.startup.states_s == 2
    kept = replace(kept, steps=TRAINING_STEPS.make(rows[:1]))
    reports[0] = replace(reports[0], training=kept)
    assert trained(attempt(store, one, 0), built, 5.0, "cpu", reports).rate.step_time_ms is None


def test_the_share_of_the_data_sheet_is_that_of_the_arithmetic_of_the_model(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    asked = replace(attempt(store, one, 0), peak=1e9)
    built = [Built(0, 1.0, None, 10, None, "H100")]
    found = trained(asked, built, 5.0, "H100", [report(rank, 0.5) for rank in range(2)])
    per_token = flops_per_token(one.plan.model, 64)
    assert found.rate.model_flops_utilization == pytest.approx(per_token * 1024 / 2e9)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_data_sheet_is_read_for_every_precision_of_16_bits(
    store: Store, precision: str
) -> None:
    (one,) = plan(strategy="dp2", precision=precision)
    assert attempt(store, one, 0, "NVIDIA H200").peak == 989.4e12


def test_a_pipeline_has_the_bubble_of_its_schedule(store: Store) -> None:
    (one,) = plan(strategy="pp2")
    assert row(store, one, 0, 0.5).rate.bubble_share == pytest.approx(1 / 5)


def kept(store: Store, planned: PlannedDeployment, run: Trained, tables: Any) -> Run:
    (cell,) = planned.cells
    name = Run(cell.cell, run.start, run.run)
    store.create()
    store.update_manifest(cells=[cell.cell.name])
    store.write_run(name, TRAINED.make([run]), tables)
    return name


def test_a_run_that_trained_is_a_result_with_tables_of_its_own(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    reports = [report(rank, 0.5) for rank in range(2)]
    name = kept(store, one, row(store, one, 0, 0.5), training_tables(reports))
    assert store.is_completed(name)
    assert not store.is_empty
    assert store.read("summary") is None
    steps = store.read("training_steps")
    assert isinstance(steps, pa.Table)
    assert steps["loss"].to_pylist() == [3.0, 2.0, 1.0]
    assert [one.strategies for one in list_runs([store.folder.parent])] == [["dp2"]]


def test_a_run_that_lost_a_table_counts_as_missing(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    name = kept(store, one, row(store, one, 0, 0.5), training_tables([report(0, 0.5)]))
    (part,) = (store.folder / "training_steps").iterdir()
    part.unlink()
    assert not Store(store.folder).is_completed(name)


def test_a_failed_run_is_kept_with_its_reason(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    name = kept(store, one, failed(attempt(store, one, 0), "out_of_memory"), {})
    assert not store.is_completed(name)
    (cell,) = findings_of([store.folder]).comparison
    assert (cell.status, cell.reason, cell.num_runs) == ("failed", "out_of_memory", 0)


def test_layouts_are_judged_by_their_starts(store: Store) -> None:
    fast, slow = plan(strategy="dp2,tp2")
    times = [0.50, 0.51, 0.49, 0.50]
    runs = [row(store, fast, i, time) for i, time in enumerate(times)]
    runs += [row(store, slow, i, 2 * time) for i, time in enumerate(times)]
    found = compared(runs)
    assert [one.cell.strategy for one in found.comparison] == ["dp2", "tp2"]
    assert found.comparison[1].relative_to_best == pytest.approx(0.5)
    assert found.comparison[0].num_starts == 4
    ((sentence,),) = (found.sentences(one.field.load) for one in found.found)
    assert sentence.startswith("dp2 trains 2.000x the tokens a second of tp2")
    assert "at 8 sequences a step (4 starts)" in sentence


def test_compare_and_report_show_runs_that_trained(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    kept(store, one, row(store, one, 0, 0.5), training_tables([report(0, 0.5)]))
    assert trained_at([store.folder]) == [store.folder]
    shown = CliRunner().invoke(main, ["compare", str(store.folder), "--json"])
    (cell,) = json.loads(shown.output)["comparison"]
    assert (cell["strategy"], cell["loss"], cell["tokens_per_second"]) == ("dp2", 1.0, 1024.0)
    table = CliRunner().invoke(main, ["compare", str(store.folder)])
    assert "8 x 64 tokens a step, 5 steps, fp32" in table.output
    assert (
        "tok/s: tokens trained on per second of all replicas; mean of the starts. " in table.output
    )
    CliRunner().invoke(main, ["report", str(store.folder)])
    page = (store.folder / "report.html").read_text()
    assert "all_reduce" in page
    assert "It is no ranking of them." in page
    assert '<th scope="row">dp2</th>' in page


def test_what_is_of_runs_that_serve_is_refused(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    kept(store, one, row(store, one, 0, 0.5), {})
    compared = CliRunner().invoke(main, ["compare", str(store.folder), "--objective", "latency"])
    assert "--objective is of runs that serve" in compared.output
    levels = CliRunner().invoke(main, ["compare", str(store.folder), "--goodput", "ttft:2000"])
    assert "--goodput, --slo is of runs that serve" in levels.output
    train = ["submit", "--workload", "train", "--device", "cpu"]
    traced = CliRunner().invoke(main, [*train, "--trace"])
    assert "no spans are kept of training" in traced.output
    predicted = CliRunner().invoke(main, [*train[:3], "--dry-run", "--gpu", "h100", "--gpus", "2"])
    assert "how fast a layout trains is not predicted" in predicted.output
    assert {compared.exit_code, levels.exit_code, traced.exit_code, predicted.exit_code} == {2}


def test_packed_results_are_read_as_they_are(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    kept(store, one, row(store, one, 0, 0.5), training_tables([report(0, 0.5)]))
    packed = store.folder.parent / "packed"
    CliRunner().invoke(main, ["pack", str(store.folder), "--out", str(packed)])
    assert (packed / "training.arrow").is_file()
    assert findings_of([packed]).comparison == findings_of([store.folder]).comparison


def test_results_of_two_workloads_are_not_compared(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    kept(store, one, row(store, one, 0, 0.5), {})
    other = Store(store.folder.parent / "tiny-9876543210")
    other.create()
    other.update_manifest(cells=["x"])
    result = CliRunner().invoke(main, ["compare", str(store.folder), str(other.folder)])
    assert "trained and others generated" in result.output
    assert result.exit_code != 0


def test_an_experiment_that_was_to_train_and_has_no_run_yet_stands_beside_one_that_trained(
    store: Store,
) -> None:
    (one,) = plan(strategy="dp2")
    kept(store, one, row(store, one, 0, 0.5), {})
    other = Store(store.folder.parent / "tiny-9876543210")
    other.create()
    other.update_manifest(cells=["x"], experiment={"workload": "train"})
    folders = [str(store.folder), str(other.folder)]
    assert CliRunner().invoke(main, ["compare", *folders]).exit_code == 0
    assert findings_of(trained_at([store.folder, other.folder])).comparison


def test_rows_of_unlike_precision_stay_apart(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    first = row(store, one, 0, 0.5)
    other = replace(first, cell=replace(first.cell, dtype="bfloat16"))
    assert len(compared([first, other]).comparison) == 2


# -- taken apart, and with one thing changed


def parts(store: Store, planned: PlannedDeployment, start: int, **fields: Any) -> TrainedParts:
    (cell,) = planned.cells
    key = store.start_key(cell.cell, start)
    some = {
        "rank": 0,
        "stages": (0,),
        "steps": 2,
        "step_ms": 100.0,
        "forward_ms": 20.0,
        "backward_ms": 40.0,
        "optimizer_ms": 5.0,
        "other_ms": 5.0,
        "exposed_ms": 10.0,
        "handover_ms": 0.0,
        "agreement_ms": 10.0,
        "gap_ms": 10.0,
        "busy_ms": 30.0,
        "host_copy_ms": 2.5,
        "bubble_ms": None,
        "bubble_share": None,
        "timed_step_ms": 98.0,
        "profile_ratio": 1.02,
        "reason": None,
    }
    return TrainedParts(cell=key.cell, start=start, **(some | fields))


def test_what_was_observed_is_a_mean_over_ranks_and_then_over_starts(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    seen = [
        parts(store, one, 0, exposed_ms=10.0),
        parts(store, one, 0, rank=1, exposed_ms=20.0),
        parts(store, one, 1, exposed_ms=30.0),
    ]
    times = compared([row(store, one, 0, 0.5)], None, seen).comparison[0].times
    assert times.communication_exposed_ms == pytest.approx((15.0 + 30.0) / 2)
    assert times.communication_hidden_ms == pytest.approx((15.0 + 0.0) / 2)
    assert times.communication_exposed_share == pytest.approx(0.225)
    assert (times.bubble_measured, times.observed_reason) == (None, None)


def test_what_was_not_observed_is_null_and_says_why(store: Store) -> None:
    (one,) = plan(strategy="dp2")
    (cell,) = compared([row(store, one, 0, 0.5)]).comparison
    assert (cell.times.forward_ms, cell.times.observed_reason) == (None, "no step was observed")
    slow = times_of([parts(store, one, 0, profile_ratio=1.2)], on_cpu=False)
    assert slow.communication_exposed_ms is None
    assert slow.observed_reason == "the profiled step takes 1.20 of the timed one"


def test_a_measured_bubble_stands_beside_that_of_the_schedule(store: Store) -> None:
    (one,) = plan(strategy="pp2")
    kept(store, one, row(store, one, 0, 0.5), training_tables([report(0, 0.5), report(1, 0.5)]))
    (cell,) = one.cells
    seen = [
        TrainingPartsRow(
            **{name: value for name, value in vars(found).items() if name not in ("cell", "start")}
        )
        for found in (
            parts(store, one, 0, bubble_ms=20.0, bubble_share=0.25, handover_ms=10.0),
            parts(store, one, 0, rank=1, stages=(1,), bubble_ms=30.0, bubble_share=0.35),
        )
    ]
    overlap = TrainingOverlapRow(
        rank=0,
        op="send_recv",
        axis="pp",
        seen_calls=4.0,
        busy_ms=None,
        exposed_ms=3.21,
        hidden_ms=None,
    )
    job = Job(one, Experiment(**TRAIN), store)
    assert job.is_unobserved(cell, 0)
    tables = {
        "training_parts": TRAINING_PARTS.make(seen),
        "training_overlaps": TRAINING_OVERLAPS.make([overlap]),
    }
    store.write_observed(cell.cell, 0, tables)
    assert not job.is_unobserved(cell, 0)
    (found,) = findings_of([store.folder]).comparison
    assert found.times.bubble_measured == pytest.approx(0.3)
    assert found.times.host_copy_ms == pytest.approx(2.5)
    assert found.rate.bubble_share == pytest.approx(0.2)
    CliRunner().invoke(main, ["report", str(store.folder)])
    page = (store.folder / "report.html").read_text()
    words = '<td class="word">send_recv</td><td class="word">pp</td>'
    for text in (f"{words}<td>\u2013</td><td>3.21</td><td>\u2013</td>", "35.0%"):
        assert text in page
    table = CliRunner().invoke(main, ["compare", str(store.folder)], terminal_width=400).output
    assert "as observed" in table
    assert "by the schedule alone" in table


def test_one_value_of_a_technique_is_enough() -> None:
    planned = plan(strategy="tp1", technique="checkpointing=full,precision=bf16")
    names = [one.deployment.ablation for one in planned]
    assert names == ["none", "checkpointing=full", "precision=bf16"]
    with pytest.raises(Refused, match="under no layout: it is so already"):
        plan(strategy="tp1", technique="checkpointing=off")


def test_a_change_of_each_technique_gets_a_deployment_of_its_own() -> None:
    asked = {"technique": "all", "activation_checkpointing": "full"}
    planned = plan(strategy="dp2,pp2", **asked)
    names = [one.deployment.layout for one in planned]
    assert names == [
        "dp2",
        "dp2 with checkpointing off",
        "dp2 with checkpointing selective",
        "dp2 with checkpointing cpu-offload",
        "dp2 with accumulation 1",
        "dp2 with accumulation 4",
        "dp2 with fusion on",
        "dp2 with fusion off",
        "dp2 with precision bf16",
        "dp2 with precision fp16",
        "dp2 with offload optimizer",
        "dp2 without comm",
        "pp2",
        "pp2 with checkpointing off",
        "pp2 with checkpointing selective",
        "pp2 with checkpointing cpu-offload",
        "pp2 with accumulation 8",
        "pp2 with fusion on",
        "pp2 with fusion off",
        "pp2 with precision bf16",
        "pp2 with precision fp16",
        "pp2 with offload optimizer",
    ]
    by_name = dict(zip(names, planned, strict=True))
    loads = [by_name[f"dp2 with accumulation {n}"].plan.training for n in (1, 4)]
    assert [one.micro_batch_size for one in loads if one] == [4, 1]
    assert by_name["dp2 with fusion on"].plan.switches.fusion == "on"
    assert by_name["dp2 without comm"].plan.ablation == "comm"
    half = by_name["dp2 with precision fp16"]
    assert half.deployment == replace(by_name["dp2"].deployment, ablation="precision=fp16")
    assert half.plan.dtype == "float16"
    refused = dict(by_name["pp2"].kept)
    assert "needs GPUs" in refused["precision=fp8"]
    assert "offload=optimizer+params" in refused
    assert "fewer than the 2 stages" in refused["accumulation=1"]
    assert refused["comm"] == "without hand-overs a pipeline has no order, and no bubble either"


def test_a_change_that_no_layout_can_have_is_refused() -> None:
    with pytest.raises(Refused, match="comm can be changed under no layout: one rank has no coll"):
        plan(strategy="tp1", technique="comm")
    assert [one.deployment.ablation for one in plan(strategy="dp2zero3", ablate="comm")] == [
        "none",
        "comm",
    ]


def test_of_a_change_whose_loss_is_no_number_no_time_is_told(store: Store) -> None:
    asked, silent = plan(strategy="dp2", technique="comm")
    without = row(store, silent, 0, 0.30)
    lost = replace(without, result=replace(without.result, loss=math.nan))
    found = compared([row(store, asked, 0, 0.50), lost])
    (effect,) = found.effects
    assert (effect.saved_pct, effect.step_time.with_it) == (None, pytest.approx(300.0))
    (reason,) = found.lost
    assert reason.startswith("dp2 without comm has a loss that is no number")


def test_a_clock_says_nothing_of_gpus_that_wait_for_their_host(store: Store) -> None:
    asked, silent = plan(strategy="dp2", technique="comm")
    runs = [row(store, asked, 0, 0.50), row(store, silent, 0, 0.40)]
    clocks = {one.cell: 1600.0 for one in runs}
    for gap_ms, told in ((5.0, 20.0), (6.0, None)):
        (effect,) = compared(runs, None, [parts(store, asked, 0, gap_ms=gap_ms)], clocks).effects
        assert effect.saved_pct == pytest.approx(20.0)
        assert effect.saved_at_one_clock_pct == (told and pytest.approx(told))


def test_each_change_has_a_row_beside_what_was_asked(store: Store) -> None:
    asked, full, selective, _, silent = plan(strategy="dp2", technique="checkpointing,comm")
    runs = [row(store, asked, start, 0.50 + 0.01 * start) for start in range(2)]
    runs += [row(store, full, start, 0.60 + 0.01 * start) for start in range(2)]
    runs += [row(store, silent, start, 0.40 + 0.01 * start) for start in range(2)]
    runs.append(failed(attempt(store, selective, 0), "out_of_memory"))
    clocks = {runs[0].cell: 1600.0, runs[-2].cell: 1520.0}  # MHz
    found = compared(runs, None, [parts(store, asked, 0, gap_ms=5.0, other_ms=10.0)], clocks)
    assert [one.cell.ablation for one in found.comparison] == ["none"]
    of_full, of_silent = found.effects
    assert of_full.step_time.with_it == pytest.approx(605.0)
    assert of_full.step_time.without == pytest.approx(505.0)
    assert of_full.step_time.ratio_ci_low is not None
    assert of_full.step_time.ratio_ci_low < 605 / 505 < (of_full.step_time.ratio_ci_high or 0)
    assert (of_full.loss_difference, of_full.communication_calls) == (0.0, 2)
    assert (of_full.peak_memory.with_it, of_full.exposed_pct) == (1000, None)
    assert of_silent.saved_pct == pytest.approx(100 * (1 - 405 / 505))
    at_one_clock = 100 * (1 - 405 * 0.95 / 505)
    assert of_silent.saved_at_one_clock_pct == pytest.approx(at_one_clock)
    assert of_full.saved_at_one_clock_pct is None
    assert (of_silent.exposed_pct, of_silent.loss_difference) == (pytest.approx(10.0), None)
    console = Console(record=True, width=200)
    render(found, console)
    shown = console.export_text()
    assert "dp2 with checkpointing full" in shown
    assert "605.0 of 505.0" in shown
    assert f"{at_one_clock:.1f}%" in shown
    assert "dp2 with checkpointing selective failed: out_of_memory" in shown
