"""The engine `deepspeed`: AutoTP, replicas and ZeRO-3 over two processes give the tokens of the
engine `transformers`."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import Any

import pyarrow as pa
import pytest
from ranks import forking
from test_engine_transformers import (
    BASE,
    LENGTHS,
    VARIANTS,
    make_plan,
    make_work,
    outputs,
    save_tiny,
)
from test_engine_transformers import serve as serve_transformers

from orchestrator.analysis.observed.accounting import account
from strategies import Split
from workers.actor import Worker
from workers.engines import create
from workers.messages import Built, EnginePlan, RankReport, Work

pytest.importorskip("deepspeed")

RANKS = 2
LLAMA = {**BASE, "architectures": ["LlamaForCausalLM"]}
Case = tuple[EnginePlan, Work]
Results = dict[str, list[tuple[Built, RankReport]]]


def cases(folder: str, tied: str) -> dict[str, Case]:
    """What the two processes run, one after another."""
    observed = make_work(observe=True)
    return {
        "tp2": (make_plan("tp2", folder), observed),
        "tp2 eos": (make_plan("tp2", folder), make_work(ignore_eos=False)),
        "tp2 tied": (make_plan("tp2", tied), make_work()),
        "tp2 dummy": (make_plan("tp2", None, {**BASE, **VARIANTS["qwen3"]}), make_work()),
        "tp2 bias": (make_plan("tp2", None, {**BASE, **VARIANTS["qwen2"]}), make_work()),
        "tp2 sampled": (make_plan("tp2", folder, temperature=1.0, seed=3), make_work()),
        "dp2": (make_plan("dp2", folder), observed),
        "dp2 one seat": (make_plan("dp2", folder), make_work(1)),
        "dp2zero3": (make_plan("dp2zero3", folder), observed),
        "dp2zero3 eos": (make_plan("dp2zero3", folder), make_work(ignore_eos=False)),
        "dp2zero3 one seat": (make_plan("dp2zero3", folder), make_work(1)),
        "dp2zero3 dummy": (
            make_plan("dp2zero3", None, {**BASE, **VARIANTS["llama_bias_tied"]}),
            make_work(),
        ),
    }


def run_rank(rank: int, runs: dict[str, Case], addresses: Any, results: Any) -> None:
    for name, (plan, work) in runs.items():
        worker = Worker(rank)
        address = worker.open_store("127.0.0.1") if rank == 0 else addresses.get(timeout=60)
        if rank == 0:
            addresses.put(address)
        built = worker.build("deepspeed", plan, address)
        results.put((name, rank, built, worker.run(work)))
        worker.close()


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    untied, tied = tmp_path_factory.mktemp("untied"), tmp_path_factory.mktemp("tied")
    return cases(save_tiny(untied), save_tiny(tied, tied=True))


@pytest.fixture(scope="module")
def results(plans: dict[str, Case]) -> Results:
    """Every case's reports, by rank."""
    context = forking()
    addresses, reports = context.Queue(), context.Queue()
    processes = [
        context.Process(target=run_rank, args=(rank, plans, addresses, reports))
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    got: dict[tuple[str, int], tuple[Built, RankReport]] = {}
    try:
        while len(got) < RANKS * len(plans):
            assert all(process.exitcode in (None, 0) for process in processes), (
                f"a rank died after {sorted(got)}"
            )
            try:
                name, rank, built, report = reports.get(timeout=1)
            except Empty:
                continue
            got[name, rank] = built, report
    finally:
        for process in processes:
            if len(got) == RANKS * len(plans):
                process.join(5)
            else:
                process.kill()
    return {name: [got[name, rank] for rank in range(RANKS)] for name in plans}


@pytest.mark.parametrize(
    "name",
    [
        "tp2",
        "tp2 eos",
        "tp2 tied",
        "tp2 dummy",
        "tp2 bias",
        "tp2 sampled",
        "dp2",
        "dp2 one seat",
        "dp2zero3",
        "dp2zero3 eos",
        "dp2zero3 one seat",
        "dp2zero3 dummy",
    ],
)
@pytest.mark.ranks
def test_tokens_are_those_of_the_engine_transformers(
    name: str, plans: dict[str, Case], results: Results
) -> None:
    plan, work = plans[name]
    single = replace(plan, placement=make_plan("tp1", None, LLAMA).placement, layout="tp1")
    (reference,) = serve_transformers(single, replace(work, observe=False))
    assert outputs(*(report for _, report in results[name])) == outputs(reference)


@pytest.mark.ranks
def test_a_replica_is_reported_once(results: Results) -> None:
    first, second = (report for _, report in results["tp2"])
    assert first.requests is not None
    assert second.requests is None
    assert first.steps.num_rows == second.steps.num_rows == 9 + 7 + 2
    served = [
        report.requests.to_pylist() for _, report in results["dp2"] if report.requests is not None
    ]
    assert [{row["replica"] for row in rows} for rows in served] == [{0}, {1}]
    assert [len(rows) for rows in served] == [5, 2]


@pytest.mark.ranks
def test_a_replica_beyond_the_concurrency_serves_nothing(results: Results) -> None:
    for name in ("dp2 one seat", "dp2zero3 one seat"):
        _, idle = results[name][1]
        assert idle.requests is not None
        assert idle.requests.num_rows == 0


@pytest.mark.ranks
def test_zero_ranks_make_the_same_number_of_steps(results: Results) -> None:
    for name in ("dp2zero3", "dp2zero3 eos", "dp2zero3 one seat"):
        first, second = (report.steps.to_pylist() for _, report in results[name])
        assert [step["phase"] for step in first] == [step["phase"] for step in second]
        assert [step["num_requests"] for step in first] != [step["num_requests"] for step in second]


@pytest.mark.ranks
def test_weights_are_cut(results: Results) -> None:
    whole = results["dp2"][0][0].weight_bytes
    bytes_of = {name: [built.weight_bytes for built, _ in rows] for name, rows in results.items()}
    assert sum(bytes_of["dp2zero3"]) == whole
    # AutoTP replicates the embedding and the norms and halves the rest.
    replicated = 4 * BASE["hidden_size"] * (BASE["vocab_size"] + 2 * BASE["num_hidden_layers"] + 1)
    assert bytes_of["tp2"] == [(whole + replicated) // 2] * 2
    assert bytes_of["tp2"] == bytes_of["tp2 eos"]


def totals(report: RankReport) -> dict[tuple[str, str, str], tuple[int, int]]:
    assert report.collectives is not None
    return {
        (r["phase"], r["op"], r["axis"]): (r["calls"], r["bytes"])
        for r in report.collectives.to_pylist()
    }


@pytest.mark.ranks
def test_auto_tp_is_counted_as_two_all_reduces_a_layer_and_one_of_logits(
    plans: dict[str, Case], results: Results
) -> None:
    hidden, layers, vocab = BASE["hidden_size"], BASE["num_hidden_layers"], BASE["vocab_size"]
    work = plans["tp2"][1]
    rows = [min(3, len(LENGTHS) - i) for i in range(0, len(LENGTHS), 3)]
    widths = [
        max(len(request.prompt) for request in work.requests[i : i + 3])
        for i in range(0, len(LENGTHS), 3)
    ]
    decodes = [max(LENGTHS[i : i + 3]) - 1 for i in range(0, len(LENGTHS), 3)]
    prefill = sum(
        4 * r * (2 * layers * w * hidden + vocab) for r, w in zip(rows, widths, strict=True)
    )
    decode = sum(
        4 * r * n * (2 * layers * hidden + vocab) for r, n in zip(rows, decodes, strict=True)
    )
    for _, report in results["tp2"]:
        assert totals(report) == {
            ("prefill", "all_reduce", "tp"): (3 * (2 * layers + 1), prefill),
            ("decode", "all_reduce", "tp"): (sum(decodes) * (2 * layers + 1), decode),
        }


@pytest.mark.ranks
def test_zero_is_counted_as_gathering_every_matrix_in_every_step(
    plans: dict[str, Case], results: Results
) -> None:
    shape = plans["dp2zero3"][0].model
    matrices = 4 * sum(s[0] * s[1] for _, s in shape.parameters() if len(s) == 2)
    for built, report in results["dp2zero3"]:
        steps = Counter(step["phase"] for step in report.steps.to_pylist())
        found = totals(report)
        # The first passes over a new model bring its vectors along, which then stay: a rest of less
        # than one pass.
        passes = {phase: found[phase, "all_gather", "dp"][1] // matrices for phase in steps}
        assert passes == steps
        assert built.kv_tokens is None


@pytest.mark.ranks
def test_replicas_without_zero_do_not_communicate(results: Results) -> None:
    for _, report in results["dp2"]:
        assert totals(report) == {}
        assert set(report.spans.column("kind").to_pylist()) == {"compute"}


@pytest.mark.parametrize("name", ["tp2", "dp2zero3"])
@pytest.mark.ranks
def test_an_observed_run_says_what_communication_took(name: str, results: Results) -> None:
    placement = make_plan(name, None, LLAMA).placement
    spans = pa.concat_tables([report.spans for _, report in results[name]])
    rows = account(spans, placement)["parts"].to_pylist()
    assert {(row["rank"], row["phase"]) for row in rows} == {
        (rank, phase) for rank in (0, 1) for phase in ("prefill", "decode")
    }
    for row in rows:
        assert 0 < row["exposed_transfer_ms"] <= row["comm_busy_ms"] < row["step_ms"]
        assert row["bubble_ms"] == 0
    assert results[f"{name} eos"][0][1].spans is None


def test_one_rank_needs_no_others(plans: dict[str, Case]) -> None:
    plan, work = plans["tp2"]
    plan = replace(plan, placement=make_plan("tp1", None, LLAMA).placement)
    worker = Worker(rank=0)
    worker.build("deepspeed", plan, None)
    report = worker.run(work)
    worker.close()
    assert outputs(report) == outputs(*serve_transformers(plan, work))


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("tp1", None),
        ("tp2", None),
        ("dp4", None),
        ("dp2zero3", None),
        ("pp2", "pipeline stages"),
        ("tp2pp2", "pipeline stages"),
        ("tp2dp2", "tp with dp"),
        ("tp4", "2 KV heads over tp=4"),
    ],
)
def test_it_refuses_by_name_what_it_cannot_run(layout: str, reason: str | None) -> None:
    said = create("deepspeed").supports(make_plan(layout, None, LLAMA))
    assert said is None if reason is None else reason in str(said)


def test_it_refuses_a_plug_ins_cuts_that_it_would_not_make() -> None:
    plan, engine = make_plan("tp1", None, LLAMA), create("deepspeed")
    mlp_alone = plan.placement.with_axis("tp", 2).with_params(
        {"model.layers.*.mlp.gate_proj.weight": Split("tp", 0)}
    )
    assert "cuts model.layers.0.self_attn.q_proj.weight otherwise" in str(
        engine.supports(replace(plan, placement=mlp_alone))
    )
    sharded = make_plan("dp2", None, LLAMA).placement.with_params(
        {"model.layers.1.mlp.up_proj.weight": Split("dp", 0)}
    )
    assert "cuts model.layers.1.mlp.up_proj.weight otherwise" in str(
        engine.supports(replace(plan, placement=sharded))
    )
    tuned = make_plan("dp2", None, LLAMA).placement.with_options(schedule="fast")
    assert "no option schedule" in str(engine.supports(replace(plan, placement=tuned)))


def test_without_deepspeed_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create("deepspeed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'shard-orchestrator[deepspeed]'" in str(
        engine.supports(make_plan("tp2", None, LLAMA))
    )


@pytest.mark.ranks
def test_nothing_is_left_in_shared_memory(results: Results) -> None:
    assert results
    assert not list(Path("/dev/shm").glob("deepspeed_*"))
