"""FP8 in a plan: what is asked for, on which GPUs and engines, what fits, and what bounds it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import write_config

from orchestrator.analysis.roofline import stages_of
from orchestrator.cli import main
from orchestrator.errors import Refused, UserError
from orchestrator.experiment import Experiment
from orchestrator.plan import models, planning
from orchestrator.plan.deployments import PlannedDeployment
from orchestrator.store.identity import identity_of
from strategies import Topology
from strategies.shapes import Device
from workers import engines
from workers.engines.vllm import settings

H200 = 141 * 10**9
DUMMY_70B = {"model": "llama-70b", "load_format": "dummy"}
CONFIG = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head"],
}
BLOCKS = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "max_position_embeddings": 512,
    "quantization_config": CONFIG,
}


def plan(
    capability: tuple[int, int] | None = (9, 0), **fields: Any
) -> tuple[PlannedDeployment, ...]:
    experiment = Experiment(**{**DUMMY_70B, **fields})
    topology = Topology((Device("local", 0, H200, "A GPU", capability),))
    return planning.plan_experiment(experiment, "cuda", topology)


def test_the_70b_fits_one_gpu_in_fp8_alone() -> None:
    with pytest.raises(UserError, match="llama-70b under tp1 in bfloat16 does not fit"):
        plan()
    (one,) = plan(quantization="fp8")
    assert one.deployment.name == "llama-70b.tp1.torch.bfloat16.fp8"
    (both,) = plan(quantization="fp8", kv_cache_dtype="fp8")
    assert both.deployment.quantization == "fp8+kv-fp8"
    with pytest.raises(UserError, match="in bfloat16 and fp8-decode does not fit"):
        plan(precision_policy="fp8-decode")


def test_a_gpu_without_fp8_is_refused_with_the_reason() -> None:
    said = "compute capability 8.9 or more; A GPU has 8.0, and no FP8"
    for fields in ({"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}):
        with pytest.raises(UserError, match=said):
            plan((8, 0), model="llama-8b", **fields)
        assert plan((8, 9), model="llama-8b", **fields)
        assert plan(None, model="llama-8b", **fields)  # not told
    assert plan((8, 0), model="llama-8b")


def test_a_policy_is_not_asked_for_without_fp8() -> None:
    with pytest.raises(UserError, match="leave one of them out"):
        plan(model="llama-8b", quantization="none", precision_policy="fp8-prefill")


@pytest.mark.parametrize("engine", ["transformers", "deepspeed"])
def test_engines_without_fp8_refuse_it(engine: str) -> None:
    (one,) = plan(quantization="fp8", kv_cache_dtype="fp8")
    assert "it has no FP8, and fp8+kv-fp8 is asked for" in str(engines.refusal(engine, one.plan))


def test_what_is_fp8_is_another_experiment_and_nothing_else_is() -> None:
    asked = [{}, {"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}]
    asked.append({"precision_policy": "fp8-prefill"})
    assert len({identity_of(Experiment(**fields)) for fields in asked}) == 4
    defaults = Experiment(quantization="auto", kv_cache_dtype="auto", precision_policy="uniform")
    assert identity_of(defaults) == identity_of(Experiment())


def test_a_pass_reads_half_the_weights_and_half_the_kv() -> None:
    (one,) = plan(quantization="fp8", kv_cache_dtype="fp8")
    single, model = one.plan.placement, one.plan.model
    (fp8,) = stages_of(single, model, one.plan.precision)
    (plain,) = stages_of(
        single, model, replace(one.plan, quantization="none", kv_cache_dtype="auto").precision
    )
    head = 2 * model.vocab_size * model.hidden_size
    assert fp8.weight_bytes - head == pytest.approx((plain.weight_bytes - head) / 2, rel=1e-3)
    assert fp8.kv_bytes * 2 == plain.kv_bytes
    assert (fp8.token_flops, fp8.head_flops) == (plain.token_flops, plain.head_flops)
    assert one.plan.fastest_dtype == "float8_e4m3fn"
    assert replace(one.plan, device="cpu").fastest_dtype == "bfloat16"


def test_with_a_precision_by_phase_each_pass_reads_its_own() -> None:
    (one,) = plan(model="llama-8b", precision_policy="fp8-decode")
    (stage,) = stages_of(one.plan.placement, one.plan.model, one.plan.precision)
    assert stage.weight_bytes < 0.6 * stage.streamed


def test_explain_says_what_fp8_takes_and_what_two_forms_cost() -> None:
    def explained(*more: str) -> dict[str, Any]:
        command = ["explain", "tp2", "--model", "llama-70b", "--memory", "141GB", "--json", *more]
        (found,) = json.loads(CliRunner().invoke(main, command).output)
        return found  # type: ignore[no-any-return]

    plain, fp8 = explained(), explained("--quantization", "fp8", "--kv-cache-dtype", "fp8")
    assert (plain["quantization"], fp8["quantization"]) == ("none", "fp8+kv-fp8")
    ratio = fp8["ranks"][0]["weight_bytes"] / plain["ranks"][0]["weight_bytes"]
    assert 0.5 < ratio < 0.53
    assert fp8["ranks"][0]["kv_bytes_per_token"] * 2 == plain["ranks"][0]["kv_bytes_per_token"]
    assert fp8["budget"]["kv_tokens"] > 2 * plain["budget"]["kv_tokens"]
    asked = ["explain", "tp2", "--model", "llama-70b", "--precision-policy", "fp8-prefill"]
    said = CliRunner().invoke(main, asked).output
    assert "prefill reads 36.3 GB of weights and decode 70.6 GB" in " ".join(said.split())


def test_a_dry_run_says_what_two_forms_cost() -> None:
    asked = "submit --strategy tp2 --device cpu --precision-policy fp8-decode --dry-run"
    said = " ".join(CliRunner().invoke(main, asked.split()).output.split())
    assert "tiny.tp2.torch.float32.fp8-decode" in said
    assert "Precision by phase: prefill reads" in said


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ("--quantization int4", "'auto', 'none' or 'fp8'"),
        ("--kv-cache-dtype int8", "'auto' or 'fp8'"),
        ("--precision-policy fp8", "'uniform', 'fp8-prefill' or 'fp8-decode'"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(option: str, known: str) -> None:
    for command in ("explain tp1", "submit --dry-run"):
        found = CliRunner().invoke(main, [*command.split(), *option.split()])
        assert found.exit_code == 2
        assert known in found.output
        assert len(found.output.strip().splitlines()) == 1


def test_a_checkpoint_in_fp8_is_served_as_it_is_stored(tmp_path: Path) -> None:
    folder = write_config(tmp_path, **BLOCKS)
    (one,) = plan(model=str(folder))
    assert (one.deployment.quantization, one.plan.model.fp8.block) == ("fp8", (128, 128))
    (none,) = plan(model=str(folder), quantization="none")
    assert none.deployment.quantization == "none"


def test_a_layout_that_cuts_blocks_is_not_predicted(tmp_path: Path) -> None:
    """As no run of it is made: a rank of tp4 has 64 of the 256 columns."""
    write_config(tmp_path, **BLOCKS)
    asked = ["plan", "--model", str(tmp_path), "--gpu", "h200", "--gpus", "4"]
    done = CliRunner().invoke(main, [*asked, "--strategy", "tp4", "--strategy", "pp1"])
    said = " ".join(done.stdout.split())
    assert "tp4: impossible: the engine torch cannot run it: it cuts model.layers.0." in said
    assert "tp1: impossible" not in said


def test_another_quantization_is_refused_with_those_that_run(tmp_path: Path) -> None:
    folder = write_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(Refused, match=r"method gptq .* fp8 and compressed-tensors") as refused:
        models.resolve(str(folder), "dummy")
    assert "\n" not in str(refused.value)


# -- vLLM


def test_vllm_gets_it_under_its_own_names() -> None:
    (one,) = plan(quantization="fp8", kv_cache_dtype="fp8")
    given = settings.arguments(one.plan, "folder")
    assert (given["quantization"], given["kv_cache_dtype"]) == ("fp8", "fp8")
    plain = settings.arguments(replace(one.plan, quantization="none", kv_cache_dtype="auto"), "")
    assert not {"quantization", "kv_cache_dtype"} & plain.keys()


def test_vllm_reads_the_form_of_a_checkpoint_itself(tmp_path: Path) -> None:
    folder = write_config(tmp_path, **BLOCKS)
    (one,) = plan(model=str(folder))
    assert settings.arguments(one.plan, "")["quantization"] == "fp8"  # of dummy weights
    stored = replace(one.plan, checkpoint=str(folder))
    assert "quantization" not in settings.arguments(stored, "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantization": "fp8-decode"}, "one precision for both phases"),
        ({"quantization": "fp8", "device": "cpu"}, "on a CPU it has no FP8"),
        ({"quantization": "fp8"}, None),
    ],
)
def test_vllm_refuses_what_it_does_not_have(changes: dict[str, str], said: str | None) -> None:
    (one,) = plan(quantization="fp8")
    reason = settings._fp8(replace(one.plan, **changes))
    assert reason is None if said is None else said in str(reason)
