"""Runs with a technique and without it: which are planned, what is made of them, and how it is
shown."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from driver_inputs import deployment, run
from driver_inputs import plan as fake_plan
from fake_group import installed
from pydantic import ValidationError
from rich.console import Console
from spans import placed, span
from summaries import summary

from orchestrator.analysis.building import memory_of
from orchestrator.analysis.comparing import ablation
from orchestrator.analysis.comparing.ablation import TECHNIQUE_EFFECTS, technique_effects
from orchestrator.analysis.comparing.compare import compare
from orchestrator.analysis.comparing.findings import tables
from orchestrator.analysis.observed.accounting import PARTS_OF_STEP, account
from orchestrator.analysis.observed.communication import step_parts_of
from orchestrator.analysis.summary import Summary
from orchestrator.cli import main
from orchestrator.errors import UserError
from orchestrator.experiment import TECHNIQUES, Experiment, Technique
from orchestrator.plan import planning
from orchestrator.plan.deployments import PlannedDeployment
from orchestrator.plan.remarks import remarks
from orchestrator.report.sweep import render_techniques
from orchestrator.store.identity import identity_of
from strategies import Topology
from workers.messages import Built, RankReport
from workers.records import COMPUTE, DECODE, SPANS, AttentionTime

H200 = 141 * 10**9
BUILT = Built(0, 1.0, None, 100, None, "cpu")
PLAN = fake_plan(1)
DUMMY = {"model": "llama-70b", "load_format": "dummy", "strategy": "tp4"}


def plan(gpus: int = 0, **fields: Any) -> tuple[PlannedDeployment, ...]:
    experiment = Experiment(**fields)
    device, topology = planning.choose_device(experiment, Topology.uniform(gpus, H200, "H200"))
    return planning.plan_experiment(experiment, device, topology)


# -- what is planned


def test_a_technique_is_left_out_as_if_its_switch_had_been_given() -> None:
    whole, *without = plan(gpus=4, technique="attention,batching,chunking,fusion,graphs", **DUMMY)
    assert [one.deployment.ablation for one in (whole, *without)] == [
        "none",
        "attention",
        "batching",
        "chunking",
        "fusion",
        "graphs",
    ]
    fields = ("attention", "batching", "chunked_prefill_size", "fusion", "cuda_graphs")
    values = ("eager", "static", "off", "off", "off")
    for one, field, value in zip(without, fields, values, strict=True):
        (alone,) = plan(gpus=4, **{field: value}, **DUMMY)
        assert (one.plan, one.plan.ablation) == (alone.plan, "none")
        assert [cell.work for cell in one.cells] == [cell.work for cell in whole.cells]
    assert without[0].cells[0].cell.name.startswith("llama-70b.tp4.torch.bfloat16.without-")


def test_what_changes_nothing_is_not_run_and_that_is_said_once_a_layout() -> None:
    experiment = Experiment(strategy="tp2,pp2", technique="all")
    device, topology = planning.choose_device(experiment, Topology(()))
    planned = planning.plan_experiment(experiment, device, topology)
    assert [one.deployment.layout for one in planned[:4]] == [
        "tp2",
        "tp2 without attention",
        "tp2 without batching",
        "tp2 without chunking",
    ]
    said = [one for one in remarks(experiment, planned, topology) if "leaving out" in one]
    idle = (
        "leaving out fusion, graphs, overlap, products, pdl, quantization, kv-cache changes "
        "nothing (torch, cpu)"
    )
    assert said == [f"{layout}: {idle}; it is not run without" for layout in ("tp2", "pp2")]


def test_an_engine_that_has_no_choice_is_run_as_it_is() -> None:
    planned = plan(engine="torch,transformers", technique="attention,batching")
    assert [(one.deployment.engine, one.deployment.ablation) for one in planned] == [
        ("torch", "none"),
        ("torch", "attention"),
        ("torch", "batching"),
        ("transformers", "none"),
        ("transformers", "attention"),
    ]


@pytest.mark.parametrize(
    "fields", [{"technique": "graphs"}, {"technique": "batching", "batching": "static"}]
)
def test_a_command_that_would_leave_nothing_out_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"leaving out \w+ changes nothing for torch on cpu"):
        plan(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"technique": "pdl"},
        {"technique": "allreduce", "strategy": "dp2"},
        {"technique": "overlap", "strategy": "pp2"},
        {"technique": "quantization,pdl", "engine": "transformers"},
    ],
)
def test_no_option_is_named_that_would_turn_nothing_on(fields: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r": there is none of it; use other layouts"):
        plan(**fields)


def test_overlap_is_left_out_of_layouts_that_sum_over_tp_alone() -> None:
    planned = plan(strategy="tp2,pp2", overlap="on", technique="overlap")
    assert [one.deployment.layout for one in planned] == ["tp2", "tp2 without overlap", "pp2"]


def test_a_refusal_names_the_option_that_turns_a_technique_on() -> None:
    with pytest.raises(UserError, match=r"it is off as it is; --quantization would turn it on"):
        plan(technique="quantization")


def test_an_unknown_technique_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValidationError, match=f"no technique 'speed'; use {', '.join(TECHNIQUES)}"):
        Experiment(technique="attention,speed")


def test_switches_are_part_of_what_an_experiment_is_and_techniques_are_not() -> None:
    plain = identity_of(Experiment())
    asked = [
        {"attention": "eager"},
        {"cuda_graphs": "off"},
        {"fusion": "off"},
        {"batching": "static"},
        {"chunked_prefill_size": 64},
        {"chunked_prefill_size": "off"},
        {"allreduce": "gloo"},
    ]
    others = {identity_of(Experiment(**one)) for one in asked}
    assert len(others | {plain}) == len(asked) + 1
    assert identity_of(Experiment(technique=("attention",))) == plain


def test_yaml_truth_values_are_on_and_off() -> None:
    one = Experiment(cuda_graphs=True, fusion=False, chunked_prefill_size=False)
    assert (one.cuda_graphs, one.fusion, one.chunked_prefill_size) == ("on", "off", "off")


# -- what is run


def test_with_and_without_take_turns_and_what_they_say_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed(monkeypatch)
    planned = [deployment("tp1"), deployment("tp1", ablation="batching")]
    one = {"num_starts": 2, "num_warmups": 0}
    store, seen = run(planned[:1], tmp_path, **one)
    assert store.ablation() is None
    store, seen = run(planned, tmp_path, technique=("batching",), **one)
    assert [row[1] for row in seen.runs()] == [0, 1]  # those with it have a result
    (row,) = TECHNIQUE_EFFECTS.rows(store.ablation())
    assert (row.cell.ablation, row.num_starts) == ("batching", 0)  # of another command
    both, seen = run(planned, tmp_path / "both", technique=("batching",), **one)
    assert [start for _, start, _ in seen.runs()] == [0, 0, 1, 1]
    (row,) = TECHNIQUE_EFFECTS.rows(both.ablation())
    assert (row.num_starts, row.same_output) == (2, True)
    done = CliRunner().invoke(main, ["compare", str(both.folder), "--json"])
    (shown,) = json.loads(done.stdout)["techniques"]
    assert shown["output_throughput_ratio_ci_low"] <= shown["output_throughput_ratio"]
    assert (
        "batching · tiny · tp1 short at 1 concurrent"
        in CliRunner().invoke(main, ["compare", str(both.folder)]).stdout
    )

    page = tmp_path / "page.html"
    CliRunner().invoke(main, ["report", str(both.folder), "--out", str(page)])
    assert "What each technique does" in page.read_text()
    for command in (["export", "--format", "arrow"], ["pack"]):
        into = ["--out", str(tmp_path / command[0])]
        assert CliRunner().invoke(main, [*command, str(both.folder), *into]).exit_code == 0
        assert (tmp_path / command[0] / "ablation.arrow").is_file()
    for name in ("comparison.arrow", "ablation.arrow"):  # as a signal leaves it
        (both.folder / name).unlink()
    assert TECHNIQUE_EFFECTS.rows(tables(both.folder)["ablation"]) == [row]
    again = CliRunner().invoke(main, ["compare", str(tmp_path / "pack"), "--json"])
    assert json.loads(again.stdout)["techniques"] == [shown]


# -- what is asked for


@pytest.mark.parametrize(
    ("command", "layouts"),
    [
        (["ablate"], ["tp1", "tp1 without attention", "tp1 without batching"]),
        (["ablate", "--technique", "batching"], ["tp1", "tp1 without batching"]),
        (["submit"], ["tp1"]),
        (["submit", "--config", "techniques.yaml"], ["tp1", "tp1 without attention"]),
        (["ablate", "--config", "techniques.yaml"], ["tp1", "tp1 without attention"]),
    ],
)
def test_ablate_takes_the_options_of_submit_and_all_techniques_unless_some_are_named(
    command: list[str], layouts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("techniques.yaml").write_text("technique: attention\nbatching: static\n")
    more = ["--device", "cpu", "--chunked-prefill-size", "off", "--dry-run", "--json"]
    done = CliRunner().invoke(main, [*command, *more])
    assert [one["layout"] for one in json.loads(done.stdout)["deployments"]] == layouts


# -- what is made of it


def runs(what: str, *throughput: float, **fields: object) -> list[Summary]:
    """A run of each start."""
    return [
        summary(ablation=what, start=i, output_throughput=one, output_digest="a", **fields)
        for i, one in enumerate(throughput)
    ]


def effect(*more: Summary) -> ablation.TechniqueEffect:
    whole = runs("none", 100.0, 120.0, 110.0, attention="sdpa", memory_swing_bytes=10)
    without = runs("attention", 51.0, 60.0, 54.0, attention="eager", memory_swing_bytes=40)
    (found,) = technique_effects([*whole, *without, *more])
    return found


def test_a_figure_is_there_with_and_without_with_its_interval_and_their_ratio() -> None:
    found = effect()
    side = found.output_throughput
    assert (found.with_setting, found.without_setting) == ("sdpa", "eager")
    assert (found.num_starts, found.same_output) == (3, True)
    assert (side.with_it, side.without, side.ratio) == (110.0, 55.0, pytest.approx(2.0))
    # Student's t of 2 degrees of freedom is 4.303.
    assert side.with_ci_high == pytest.approx(110 + 4.3027 * 10 / 3**0.5, abs=0.01)
    assert side.ratio_ci_low is not None
    assert side.ratio_ci_high is not None
    assert 1.9 < side.ratio_ci_low < 2.0 < side.ratio_ci_high < 2.1
    assert (found.memory_swing.ratio, found.energy.with_it) == (0.25, None)


def test_other_tokens_are_told_and_runs_without_a_result_count_for_nothing() -> None:
    failed = summary(ablation="attention", start=3, status="failed", output_throughput=None)
    assert effect(failed).num_starts == 3
    other = summary(ablation="attention", start=3, output_throughput=55.0, output_digest="b")
    found = effect(other)
    assert found.same_output is False
    console = Console(record=True, width=120)
    render_techniques([found], console)
    assert "other tokens were made" in console.export_text()


def test_a_technique_that_names_the_cell_is_told_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TECHNIQUES, "dtype", Technique("dtype", "dtype", "float32"))
    (found,) = technique_effects([*runs("none", 2.0), *runs("dtype", 1.0)])
    assert (found.with_setting, found.without_setting) == ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("name", "left_out", "settings"),
    [
        ("fp8+kv-fp8", "quantization", ("fp8", "none")),
        ("fp8+kv-fp8", "kv-cache", ("fp8", "auto")),
        ("fp8-decode+kv-fp8", "quantization", ("fp8-decode", "none")),
        ("kv-fp8", "kv-cache", ("fp8", "auto")),
        ("fp8", "quantization", ("fp8", "none")),
    ],
)
def test_of_a_precision_only_what_is_left_out_is_told(
    name: str, left_out: str, settings: tuple[str, str]
) -> None:
    both = [*runs("none", 2.0, quantization=name), *runs(left_out, 1.0, quantization=name)]
    (found,) = technique_effects(both)
    assert (found.with_setting, found.without_setting) == settings


def test_collectives_and_techniques_are_told_apart() -> None:
    whole = runs("none", 100.0, decode_ms_per_step=10.0)
    comm = runs("comm", 110.0, decode_ms_per_step=9.0)
    eager = runs("attention", 50.0, decode_ms_per_step=20.0)
    every = [*whole, *comm, *eager]
    assert [one.cell.ablation for one in ablation.effects(every)] == ["comm"]
    assert [one.cell.ablation for one in technique_effects(every)] == ["attention"]
    assert [one.throughput.output_throughput for one in compare(every)] == [100.0]


def test_effects_are_in_the_order_of_techniques_layouts_and_users() -> None:
    every = [
        one
        for users in (1, 100, 32)
        for layout in ("tp2", "pp2")
        for what in ("pdl", "none", "attention")
        for one in runs(what, 1.0, strategy=layout, max_concurrency=users)
    ]
    assert [
        (one.cell.ablation, one.cell.strategy, one.cell.max_concurrency)
        for one in technique_effects(every)
    ] == list(itertools.product(("attention", "pdl"), ("tp2", "pp2"), (1, 32, 100)))


def test_the_table_has_the_figures_that_are_known() -> None:
    console = Console(record=True, width=120)
    render_techniques([effect()], console)
    text = console.export_text()
    assert "attention (sdpa against eager) · tiny · tp2 short at 8 concurrent" in text
    assert "throughput, tok/s" in text
    assert "memory, peak - least, MB" in text
    assert "energy" not in text


def test_results_without_any_technique_have_no_table() -> None:
    console = Console(record=True)
    render_techniques(technique_effects(runs("none", 1.0)), console)
    assert console.export_text() == ""


def test_attention_by_itself_is_a_column_of_each_phase_the_mean_over_ranks() -> None:
    alone = {
        (0, DECODE): AttentionTime(DECODE, 2e-3, 4 * 10**9),
        (1, DECODE): AttentionTime(DECODE, 4e-3, 4 * 10**9),
    }
    spans = [
        span(rank, step, COMPUTE, 10.0 * step, 10.0 * step + 9)
        for rank in (0, 1)
        for step in range(4)
    ]
    kept = account(SPANS.make(spans), placed("tp2"), attention=alone)
    step = step_parts_of(PARTS_OF_STEP.rows(kept["parts"]))
    assert step.decode.attention_ms == pytest.approx(3.0)
    assert step.decode.attention_tflops == pytest.approx(1.5)
    assert step.prefill.attention_ms is None


@pytest.mark.parametrize(
    ("counted", "gpu", "resident", "swing"),
    [
        (7, [1, 9], [1, 2], 7),
        (0, [1, 9], [1, 2], 0),
        (None, [3, 9, 4], [1, 2, 3], 6),
        (None, [None, None, 8], [5, 2, 4], 3),
        (None, [None, None], [5, None], None),
    ],
)
def test_the_swing_of_memory_is_the_allocators_or_else_that_of_the_samples(
    counted: int | None, gpu: list[int | None], resident: list[int | None], swing: int | None
) -> None:
    samples = pa.table({"memory_used_bytes": gpu, "process_rss_bytes": resident})
    report = RankReport(0, None, samples, None, 10, memory_swing_bytes=counted, telemetry=samples)
    assert memory_of([BUILT], PLAN, [report]).memory_swing_bytes == swing
