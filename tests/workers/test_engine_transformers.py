"""The engine `transformers`: static batches give what plain `generate` gives for each prompt
alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import plain
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from orchestrator.analysis.observed.accounting import account
from strategies import Load, ModelShape, Placement, Split, Topology, plan_layout
from workers.actor import Worker
from workers.engines import Engine, create
from workers.engines.transformers import device_map, empty_model
from workers.engines.transformers_config import shape_to_config
from workers.messages import EnginePlan, RankReport, Request, Work

pytestmark = pytest.mark.slow

VOCAB = 96
LENGTHS = (5, 1, 9, 3, 7, 6, 2)
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "rope_parameters": LLAMA3},
    "llama_bias_tied": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "mistral": {"architectures": ["MistralForCausalLM"], "head_dim": 32, "eos_token_id": 2},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "rope_theta": 1e6, "eos_token_id": [1, 2]},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32, "tie_word_embeddings": True},
}


def save_tiny(folder: Path, tied: bool = False) -> str:
    """A random model whose greedy tokens vary, in `folder`. Every eighth token ends a text, so that
    some do."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **BASE,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        eos_token_id=list(range(0, VOCAB, 8)),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def make_plan(
    layout: str, checkpoint: str | None, config: dict[str, Any] | None = None, **options: Any
) -> EnginePlan:
    config = config or json.loads((Path(str(checkpoint)) / "config.json").read_text())
    shape = ModelShape.from_config(config, "tiny")
    made = plan_layout(layout, shape, Load(16, 9, 3), Topology.uniform(8))
    options = {
        "dtype": "float32",
        "device": "cpu",
        "max_concurrency": 3,
        "max_len": 32,
        "prefill_tokens": 64,
        **options,
    }
    return EnginePlan(shape, made.name, made.placement, checkpoint, **options)


def make_work(max_concurrency: int = 3, **options: Any) -> Work:
    """Seven ragged prompts with different output lengths."""
    generator = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(1, VOCAB, (3 + i * 5 % 11,), generator=generator).tolist()
        for i in range(len(LENGTHS))
    ]
    requests = tuple(
        Request(10 + i, tuple(prompt), n)
        for i, (prompt, n) in enumerate(zip(prompts, LENGTHS, strict=True))
    )
    return Work(requests, max_concurrency, **options)


def serve(plan: EnginePlan, *works: Work) -> list[RankReport]:
    worker = Worker(rank=0)
    worker.build("transformers", plan, None)
    reports = [worker.run(work) for work in works]
    worker.close()
    return reports


def outputs(*reports: RankReport) -> dict[int, list[int]]:
    rows = [
        row
        for report in reports
        if report.requests is not None
        for row in report.requests.to_pylist()
    ]
    return {row["request_index"]: row["output_token_ids"] for row in rows}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("ignore_eos", [True, False])
@pytest.mark.parametrize("concurrency", [1, 3, 32])
def test_waves_of_ragged_prompts_give_the_tokens_of_each_prompt_alone(
    checkpoint: str, concurrency: int, ignore_eos: bool
) -> None:
    work = make_work(concurrency, ignore_eos=ignore_eos)
    (report,) = serve(make_plan("tp1", checkpoint), work)
    expected = plain(checkpoint, work)
    assert outputs(report) == expected
    lengths = [len(tokens) for tokens in expected.values()]
    assert (lengths == list(LENGTHS)) is ignore_eos, (
        "an end token must occur, or this test says nothing about them"
    )


def test_every_token_has_its_time_and_a_wave_starts_when_the_last_one_ended(
    checkpoint: str,
) -> None:
    (report,) = serve(make_plan("tp1", checkpoint), make_work(3))
    rows = report.requests.to_pylist()
    assert [row["request_index"] for row in rows] == [10, 11, 12, 13, 14, 15, 16]
    for row, length in zip(rows, LENGTHS, strict=True):
        times = row["token_times_s"]
        assert len(times) == row["output_len"] == length
        assert times == sorted(times)
        assert row["arrival_s"] < times[0]
    first, second = rows[:3], rows[3:6]
    assert {row["arrival_s"] for row in second} == {second[0]["arrival_s"]}
    assert second[0]["arrival_s"] >= max(row["token_times_s"][-1] for row in first)


def test_steps_are_one_prefill_and_the_longest_rows_decodes(checkpoint: str) -> None:
    work = make_work(3)
    (report,) = serve(make_plan("tp1", checkpoint), work)
    steps = report.steps.to_pylist()
    assert [step["phase"] for step in steps[:10]] == ["prefill", *["decode"] * 8, "prefill"]
    assert len(steps) == 9 + 7 + 2
    assert steps[0]["num_tokens"] == sum(len(request.prompt) for request in work.requests[:3])
    # Output lengths 5, 1 and 9: rows that are done no longer count.
    assert [step["num_requests"] for step in steps[:9]] == [3, 2, 2, 2, 2, 1, 1, 1, 1]


def test_one_device_communicates_nothing(checkpoint: str) -> None:
    observed, timed = serve(make_plan("tp1", checkpoint), make_work(observe=True), make_work())
    assert timed.spans is None
    assert timed.collectives.num_rows == 0
    rows = account(observed.spans, make_plan("tp1", checkpoint).placement)["parts"].to_pylist()
    assert [(row["phase"], row["steps"]) for row in rows] == [("prefill", 2), ("decode", 14)]
    assert all(
        row["compute_ms"] > 0.5 * row["step_ms"] and row["comm_busy_ms"] == 0 for row in rows
    )


def test_sampling_repeats_with_its_seed(checkpoint: str) -> None:
    plan = make_plan("tp1", checkpoint, temperature=1.0, seed=3)
    once, again = serve(plan, make_work(), make_work())
    (other,) = serve(replace(plan, seed=4), make_work())
    (greedy,) = serve(replace(plan, temperature=0.0), make_work())
    assert outputs(once) == outputs(again)
    assert outputs(once) != outputs(other)
    assert outputs(once) != outputs(greedy)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_config_made_of_a_shape_describes_the_same_model(variant: str) -> None:
    config = {**BASE, **VARIANTS[variant]}
    shape = ModelShape.from_config(config, "tiny")
    back = {**shape_to_config(shape).to_dict(), "architectures": config["architectures"]}
    assert ModelShape.from_config(back, "tiny") == shape
    model = empty_model(make_plan("tp1", None, config))
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == dict(
        shape.parameters()
    )
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_dummy_weights_are_the_ones_that_every_engine_has(variant: str, tmp_path: Path) -> None:
    from workers.weights import dummy_tensor

    plan = make_plan("tp1", None, {**BASE, **VARIANTS[variant]})
    reference = AutoModelForCausalLM.from_config(shape_to_config(plan.model))
    for name, parameter in reference.named_parameters():
        box = tuple(slice(0, size) for size in parameter.shape)
        parameter.data.copy_(dummy_tensor(name, tuple(parameter.shape), box, torch.float32, "cpu"))
    reference.save_pretrained(tmp_path)
    work = make_work(4)
    (report,) = serve(plan, work)
    assert outputs(report) == plain(str(tmp_path), work)


def test_layers_go_to_the_devices_of_their_stages() -> None:
    config = {**BASE, "architectures": ["LlamaForCausalLM"]}
    placement = make_plan("pp3", None, config).placement
    devices = [torch.device("cuda", i) for i in range(3)]
    places = device_map(placement, False, devices)
    assert [places[f"model.layers.{i}"].index for i in range(3)] == [0, 1, 2]
    assert (
        places["model.embed_tokens"].index,
        places["model.norm"].index,
        places["lm_head"].index,
    ) == (0, 2, 2)
    assert device_map(placement, True, devices)["lm_head"].index == 0


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("tp2", "does not cut tensors"),
        ("dp2", "does not run replicas"),
        ("tp2pp2", "does not cut tensors"),
        ("pp2", "device_map needs GPUs"),
        ("tp1", None),
    ],
)
def test_it_refuses_by_name_what_it_cannot_run(layout: str, reason: str | None) -> None:
    said = create("transformers").supports(
        make_plan(layout, None, {**BASE, "architectures": ["LlamaForCausalLM"]})
    )
    assert said is None if reason is None else reason in str(said)


def test_it_refuses_a_plug_ins_axis_and_cuts() -> None:
    engine: Engine = create("transformers")
    plan = make_plan("tp1", None, {**BASE, "architectures": ["LlamaForCausalLM"]})
    sequence = plan.placement.with_axis("cp", 2)
    assert "the axis cp" in str(engine.supports(replace(plan, placement=sequence)))
    cut: Placement = make_plan(
        "pp2", None, {**BASE, "architectures": ["LlamaForCausalLM"]}
    ).placement
    cut = cut.with_params({"lm_head.weight": Split("pp", 0)})
    assert "lm_head.weight" in str(engine.supports(replace(plan, placement=cut, device="cuda")))


@pytest.mark.parametrize("module", ["transformers", "deepspeed"])
def test_the_driver_can_ask_without_importing_torch(module: str) -> None:
    code = f"import sys, workers.engines.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
